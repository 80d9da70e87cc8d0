"""The flows behind the deployments that follow a pool: land, reconcile, recurate, forget."""

from typing import Annotated

from prefect import State
from prefect.states import Completed

from clapcur.audio import addresses
from clapcur.errors import DataError
from clapcur.flows.deployed import config_path, deployed, done, load, shown
from clapcur.flows.forget import forget as forget_flow
from clapcur.flows.land import land as land_flow
from clapcur.flows.reconcile import reconcile as reconcile_flow
from clapcur.flows.recurate import recurate as recurate_flow
from clapcur.lineage import pools
from clapcur.stages.ingest import IngestConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home
from clapcur.tasks.publish import publish

FOLLOWED = " Empty: every followed experiment, that is, each one that `clapcur recurate CONFIG` was run for."
Followed = Annotated[
    str, shown(title="Experiment", description=f"Experiment file [path on the worker's machine].{FOLLOWED}")
]


@deployed("land", hours=24)
def land(
    source: Annotated[
        str,
        shown(
            title="Source",
            description="New audio [path of a folder of audio, shard or table on the worker's machine, or URL].",
            min_length=1,
        ),
    ],
    pool: Annotated[
        str, shown(title="Pool", description="Pool to add it to [name: letters, digits and _ . -].", min_length=1)
    ],
) -> State:
    """Add new audio to a pool."""
    place = source if addresses.is_url(source) else str(config_path(source).absolute())
    return done(land_flow.fn(IngestConfig(source=place), pool))


@deployed("recurate", hours=24 * 7)
def recurate(
    config: Followed = "",
    force: Annotated[
        bool, shown(title="Force", description="Run now, without waiting for more clips or more changed pairs.")
    ] = False,
) -> State:
    """Update students after their pool has changed: embed and score new clips, train if enough pairs changed."""
    if config:
        pools.follow(Home.open(), config_path(config))
    made: list[Artifact] = []
    for path in followed(config):
        made.append(recurate_flow.fn(load(path), force))
        publish(made[-1])
    return Completed(message=", ".join(f"{one.kind.replace('_', ' ')} {one.id}" for one in made))


@deployed("reconcile", hours=1)
def reconcile(config: Followed = "") -> State:
    """Check whether a pool has changed enough for a re-curation, and start it if so."""
    started = reconcile_flow.fn(followed(config, or_fail=False))
    return Completed(message=f"started {', '.join(started)}" if started else "nothing to do")


@deployed("forget", hours=24 * 7)
def forget(
    clips: Annotated[
        list[str],
        shown(
            title="Clips",
            description="Clips to take down [clip id, its first digits, or path on the worker's machine].",
            min_length=1,
        ),
    ],
    reason: Annotated[str, shown(title="Reason", description="Reason [text, stored in the record].")] = "",
    config: Followed = "",
) -> State:
    """Take clips down, list everything that they influenced, and rebuild what is in use."""
    experiments = [load(path) for path in followed(config, or_fail=False)]
    touched = forget_flow.fn(clips, reason, experiments)
    told = [f"{entry['clip_id'][:12]}: {len(entry['checkpoints'])} checkpoints" for entry in touched]
    return Completed(message=f"forgotten, with what they influenced: {', '.join(told)}")


def followed(config: str, or_fail: bool = True) -> list[str]:
    """Return the file of the named experiment or, if `config` is empty, of all followed experiments.

    Raises
    ------
    DataError
        No experiment is named or followed, and `or_fail` is true.
    """
    found = [config] if config else [str(path) for path in pools.followed(Home.open())]
    if not found and or_fail:
        raise DataError("no experiment is followed; name one, or run `clapcur recurate CONFIG` once")
    return found
