"""A take-down: remove clips from every pool, list what they influenced, and rebuild what is in use without them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow

from clapcur.data import champions
from clapcur.data.forgotten import are_forgotten
from clapcur.data.manifest import Manifest
from clapcur.data.recordings import asked_as, recording_id
from clapcur.data.takedowns import all_tainted
from clapcur.errors import ArtifactError, DataError
from clapcur.experiments.config import Experiment
from clapcur.flows.recurate import pool_name, recurate
from clapcur.lineage import pools
from clapcur.lineage.queries import clips_named, clips_of_recording, impact
from clapcur.stages.tombstone import Tombstone
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home
from clapcur.store.readable import model_name
from clapcur.tasks.common import SHAPED_BY_CLIPS
from clapcur.tasks.pool import grow
from clapcur.tasks.tombstone import bury

log = logging.getLogger("clapcur")


@flow(name="forget", flow_run_name="forget")
def forget(clips: Sequence[str], reason: str = "", experiments: Sequence[Experiment] = ()) -> list[dict[str, Any]]:
    """Take clips down.

    Parameters
    ----------
    clips : sequence of str
        Clip ids, first digits of one (at least 6), paths of audio files, or recording ids. A recording id takes down
        every clip of the recording, including clips that are cut from it later.
    reason : str
        Reason, stored in the record.
    experiments : sequence of Experiment
        Experiments whose students are in use; those that a clip influenced are curated and trained again.

    Returns
    -------
    list of dict
        The result of `clapcur.lineage.queries.impact` for each clip, and for every clip with the same sound:
        everything that it influenced before it was taken down.

    Raises
    ------
    ArtifactError
        A name is ambiguous.
    DataError
        A name refers to no known clip.
    """
    home = Home.open()
    touched, stones = asked_for(home, clips, reason)
    for stone in stones:  # only after every name was resolved
        bury(stone)
    for name in pools.names(home):
        if touched.keys() & set(Manifest.open(pools.head(home, name)).clips.clip_id):
            grow(name)
    for experiment in experiments:
        recurate(experiment)
    return list(touched.values())


def asked_for(home: Home, clips: Sequence[str], reason: str) -> tuple[dict[str, dict[str, Any]], list[Tombstone]]:
    """Return what each clip to take down influenced, by clip id, and the tombstones to write.

    Parameters
    ----------
    home : Home
    clips : sequence of str
        Names as for `forget`.
    reason : str
        Reason, stored in the tombstones.
    """
    touched: dict[str, dict[str, Any]] = {}
    stones: list[Tombstone] = []
    for name in clips:
        recording = recording_of(home, name)
        told = [impact(home, clip) for clip in (clips_of_recording(home, recording) if recording else [name])]
        sounds = {one["clip_id"]: sound_of(home, one) for one in told}
        names = {*sounds, *filter(None, sounds.values()), *(asked_as(recording) if recording else ())}
        told += [impact(home, clip) for clip in clips_named(home, names) if clip not in sounds]
        stones += [
            Tombstone(clip_id=clip, pcm_sha256=sound, recording_id=recording, reason=reason)
            for clip, sound in sounds.items()
        ]
        touched |= {one["clip_id"]: one for one in told}
    return touched, stones


@dataclass(frozen=True)
class TakeDown:
    """What a take-down would do."""

    touched: tuple[dict[str, Any], ...]
    """For each clip, everything that it influenced, as `forget` returns it."""
    pools: dict[str, int]
    """Number of clips that would leave, by name of the pool."""
    outdated: tuple[tuple[Artifact, str], ...]
    """Artifacts that would not be used any more, and why."""
    aliases: tuple[tuple[str, Artifact, Artifact | None], ...]
    """Aliases that would move: name, such as ``clapcur-esc50@champion``, the checkpoint now and then."""
    experiments: tuple[str, ...]
    """Names of the experiments that would be curated again."""


def plan_take_down(clips: Sequence[str], experiments: Sequence[Experiment] = ()) -> TakeDown:
    """Return what `forget` would do. Nothing is written.

    Parameters
    ----------
    clips : sequence of str
    experiments : sequence of Experiment
        As for `forget`.
    """
    home = Home.open()
    touched, stones = asked_for(home, clips, "")
    now = pools.forgotten(home)
    then = now.union(*(names_of(stone) for stone in stones))
    shaped = [artifact for kind in SHAPED_BY_CLIPS for artifact in home.store.of_kind(kind)]
    before = all_tainted(home.store, shaped, now) if now else {}
    why = all_tainted(home.store, shaped, then)
    leaving = {
        name: int(are_forgotten(Manifest.open(pools.head(home, name)).clips, then).sum()) for name in pools.names(home)
    }
    moving, datasets = [], set()
    for dataset in champions.datasets(home.store):
        standing = champions.standing(home.store, dataset)
        left = champions.standing(home.store, dataset, then)
        moved = [(alias, one) for alias, one in standing.items() if left.get(alias) != one]
        moving += [(f"{model_name(dataset)}@{alias}", one, left.get(alias)) for alias, one in moved]
        datasets |= {dataset} if moved else set()
    return TakeDown(
        touched=tuple(touched.values()),
        pools={name: number for name, number in leaving.items() if number},
        outdated=tuple((one, why[one.id]) for one in shaped if one.id in why and one.id not in before),
        aliases=tuple(moving),
        experiments=tuple(one.name for one in experiments if leaving.get(pool_name(one)) or one.name in datasets),
    )


def names_of(stone: Tombstone) -> set[str]:
    """Return the names that a tombstone adds to what is forgotten; see `clapcur.data.forgotten`."""
    recording = asked_as(stone.recording_id) if stone.recording_id else ()
    return {*filter(None, (stone.clip_id, stone.pcm_sha256)), *recording}


def recording_of(home: Home, name: str) -> str:
    """Return the id of the recording that a name refers to; empty if it refers to a clip.

    Raises
    ------
    ArtifactError
        The name could refer to either.
    """
    if Path(name).is_file() or not clips_of_recording(home, name):
        return ""
    try:
        clip = impact(home, name)["clip_id"]
    except (ArtifactError, DataError):
        return recording_id(name)
    raise ArtifactError(
        f"{name!r} is both a recording and the start of the clip id {clip[:16]}; give the recording with its origin, "
        "such as freesound:100032, or more digits of the clip id"
    )


def sound_of(home: Home, told: dict[str, Any]) -> str:
    """Return the hash of a clip's samples, from a manifest that lists it; empty if no such manifest can be read.

    Raises
    ------
    DataError
        No manifest and no Improvement-Set has the clip.
    """
    for entry in told["manifests"]:
        try:
            clips = Manifest.open(home.store.find(entry["id"])).clips
        except (ArtifactError, OSError) as error:
            log.warning("cannot read the samples of the clip %s from %s: %s", told["clip_id"], entry["id"], error)
            continue
        return str(clips[clips.clip_id == told["clip_id"]].pcm_sha256.iloc[0])
    if told["manifests"] or told["improvement_sets"]:
        return ""
    raise DataError(f"the clip {told['clip_id']} is in no manifest of {home.root}")
