"""The commands that add new audio and take audio down: land, watch, recurate and forget."""

import csv
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clapcur.cli.console import (
    HomeOption,
    JsonOption,
    RootsOption,
    columns_table,
    facts_table,
    open_home,
    print_json,
    show,
    show_artifact,
    show_quarantine,
    working,
)
from clapcur.cli.planning import DryRunOption, show_dry_run
from clapcur.errors import DataError
from clapcur.store.artifacts import Artifact

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clapcur.flows.forget import TakeDown
    from clapcur.stages.ingest import IngestConfig

INFLUENCED = (  # lists in the answer to what a clip influenced, in the order in which they are shown
    "manifests", "embeddings", "tags", "improvement_sets", "compositions", "captioners", "checkpoints", "scores",
    "models",
)  # fmt: skip
PoolName = Annotated[str, typer.Option("--pool", help="Name of the pool: letters, digits and _ . -")]
Config = Annotated[Path, typer.Argument(help="Experiment file with `pool: pool:NAME`.", show_default=False)]


def land(
    source: Annotated[
        str, typer.Argument(help="A folder of audio files or shards, a shard, a URL, or a table with a path column.")
    ],
    pool: PoolName,
    root: RootsOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add new audio to a pool.

    New files become the pool's next version; files already in the pool are skipped. A running Prefect server is
    notified, so that its automation can re-curate.
    """
    from clapcur.audio import addresses

    if not addresses.is_url(source) and not Path(source).exists():
        raise DataError(
            f"{source} does not exist; give a folder of audio files, a shard, or a table with a path column"
        )
    open_home(home)
    from clapcur.stages.ingest import IngestConfig

    with working():
        config = IngestConfig(source=addresses.absolute(os.getcwd(), source), roots=tuple(root or IngestConfig.roots))
        landed, made = _land(config, pool)
    show_landing(landed, made, as_json)


def _land(source: "IngestConfig", pool: str) -> tuple[Artifact, Artifact]:
    """Ingest new audio; return its manifest and the pool's newest version.

    This is not run as a flow, because scanning a folder must not require starting a server.
    """
    from clapcur.tasks.ingest import ingest
    from clapcur.tasks.pool import grow

    landed = ingest(source, "landing")
    return landed, grow(pool, landed)


def show_landing(landed: Artifact, version: Artifact, as_json: bool) -> None:
    """Print the newest version of a pool, and the rows of the landing that could not be used.

    Parameters
    ----------
    landed : Artifact
        Manifest of the new audio.
    version : Artifact
        Newest version of the pool.
    as_json : bool
        Whether to print one line of JSON.
    """
    config = version.record.config
    facts: dict[str, Any] = {"version": config["version"], "pool": config["name"]}
    if as_json:
        facts |= {"landed": landed.id, "quarantine": landed.record.facts.get("quarantine", {})}
    show_artifact(version, as_json, **facts)
    if not as_json:
        show_quarantine(landed)


def watch(
    folder: Annotated[Path, typer.Argument(help="Folder that receives audio files or shards.")],
    pool: PoolName,
    settle: Annotated[
        float, typer.Option(help="Treat a file as complete after this many seconds without a change.")
    ] = 10.0,
    every: Annotated[float, typer.Option(help="Seconds between two scans of the folder.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Stop after files were added once.")] = False,
    home: HomeOption = None,
) -> None:
    """Watch a folder and add complete new files to a pool.

    Runs until Ctrl-C. Files that are still being written are skipped until they are complete. An interrupted landing is
    repeated at the next scan.
    """
    if settle <= 0 or every <= 0:
        raise typer.BadParameter(f"--settle and --every must be seconds above 0, got {settle:g} and {every:g}")
    where = open_home(home)
    from clapcur.data.inbox import Watch
    from clapcur.stages.ingest import IngestConfig
    from clapcur.stages.pool import check_pool_name

    table = where.root / "watched" / f"{check_pool_name(pool)}.csv"
    table.parent.mkdir(exist_ok=True)
    watched, landed = Watch(folder, settle), set[Path]()
    show(f"watching {folder} for the pool {pool}; stop with Ctrl-C")
    while True:
        complete = watched.look(time.monotonic())
        if complete - landed:
            # names that are not UTF-8 are escaped, and then reported in the quarantine as missing files
            with open(table, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                csv.writer(file).writerows([["path"], *([str(path.absolute())] for path in sorted(complete))])
            with working():
                manifest, made = _land(IngestConfig(source=str(table), max_bad_fraction=1.0), pool)
            landed = complete
            show_landing(manifest, made, as_json=False)
            if once:
                return
        time.sleep(every)


def recurate(
    config: Config,
    force: Annotated[
        bool, typer.Option("--force", help="Run now, without waiting for more clips or more changed pairs.")
    ] = False,
    dry_run: DryRunOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Update a student after its pool has changed.

    Embeds and scores new clips, writes the next Improvement-Set, and trains a student if enough pairs changed. The
    student becomes champion if it beats the current one. From then on, `clapcur up` re-curates this experiment
    automatically.
    """
    from clapcur.experiments.config import experiment_from_file

    experiment = experiment_from_file(config)
    where = open_home(home, must_exist=dry_run)
    if dry_run:
        return show_dry_run("recurate", experiment, as_json, force=force)
    from clapcur.cli.experiments import run_flow
    from clapcur.lineage import pools

    with working():
        from clapcur.flows.recurate import recurate as flow

        made = run_flow(flow, experiment, force=force)
    pools.follow(where, config)
    show_recuration(made, as_json)


def show_recuration(made: Artifact, as_json: bool) -> None:
    """Print the last step of a re-curation, and why it stopped there."""
    if made.kind == "decision":
        from dataclasses import asdict

        from clapcur.data.decision import Decision

        decision = Decision.open(made)
        if as_json:
            print_json({"id": made.id, "kind": made.kind} | asdict(decision))
            return
        show(facts_table({"decision": made.id, "challenger": decision.challenger, "champion": decision.champion}))
        show(f"{'Promoted' if decision.promoted else 'Not promoted'}: {decision.why}.")
        return
    said = {
        "manifest": "too few new clips to curate again",
        "improvement_set": "too few pairs changed to train a student",
    }[made.kind]
    if as_json:
        print_json({"id": made.id, "kind": made.kind, "why": said})
        return
    show(f"{made.kind.replace('_', ' ')} {made.id}: {said}; see `clapcur plan`, or force it with --force")


def forget(
    clips: Annotated[
        list[str], typer.Argument(help="Clip ids, their first digits, or paths of audio files.", show_default=False)
    ],
    reason: Annotated[str, typer.Option(help="Reason, stored in the record.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the clips and what would be outdated; change nothing.")
    ] = False,
    config: Annotated[
        list[Path] | None,
        typer.Option(help="Experiments whose students are in use; default: every experiment re-curated before."),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take clips down and list everything that they influenced.

    Removes the clips from every pool and refuses them from then on, in any container. Re-curates the experiments in
    use without them, and replaces a champion that was trained on them.
    """
    where = open_home(home, must_exist=True)
    from clapcur.cli.experiments import run_flow
    from clapcur.experiments.config import experiment_from_file
    from clapcur.lineage import pools

    experiments = [experiment_from_file(path) for path in config or pools.followed(where)]
    if dry_run:
        with working():
            from clapcur.flows.forget import plan_take_down

            planned = plan_take_down(clips, experiments)
        return show_take_down(planned, as_json)
    with working():
        from clapcur.flows.forget import forget as flow

        touched = run_flow(flow, clips, reason=reason, experiments=experiments)
    if as_json:
        found: list[dict[str, Any]] = [
            {"clip_id": told["clip_id"]} | {kind: [entry["id"] for entry in told[kind]] for kind in INFLUENCED}
            for told in touched
        ]
        print_json({"home": str(where.root), "forgotten": found})
        return
    for told in touched:
        show(f"clip {told['clip_id']} is forgotten; it influenced", influenced_table(told))
    if not experiments:
        show("Nothing was recomputed: no experiment was re-curated before; name those in use with --config.")


def influenced_table(told: Mapping[str, Any]) -> "RenderableType":
    """Return a table of everything that a clip influenced."""
    rows = [
        (kind.replace("_", " "), entry["id"], entry["label"], entry["because"])
        for kind in INFLUENCED
        for entry in told[kind]
    ]
    return columns_table(("", "id", "made by", "because"), rows)


def show_take_down(planned: "TakeDown", as_json: bool) -> None:
    """Print what a take-down would do, or one line of JSON."""
    from clapcur.store.readable import label

    if as_json:
        print_json(
            {
                "dry_run": True,
                "clips": [{kind: told[kind] for kind in ("clip_id", *INFLUENCED)} for told in planned.touched],
                "pools": planned.pools,
                "outdated": [
                    {"id": one.id, "kind": one.kind, "label": label(one.record), "because": why}
                    for one, why in planned.outdated
                ],
                "aliases": [
                    {"alias": alias, "checkpoint": one.id, "then": then.id if then else None}
                    for alias, one, then in planned.aliases
                ],
                "experiments": planned.experiments,
            }
        )
        return
    for told in planned.touched:
        show(f"clip {told['clip_id']} would be forgotten; it influenced", influenced_table(told))
    rows = [(one.kind.replace("_", " "), one.id, label(one.record), why) for one, why in planned.outdated]
    if rows:
        show("These would be outdated:", columns_table(("", "id", "made by", "because"), rows))
    for alias, one, then in planned.aliases:
        show(f"{alias}: {one.id} -> {then.id if then else 'none'}")
    for name, number in planned.pools.items():
        show(f"clips that would leave the pool {name}: {number:,}")
    if planned.experiments:
        show(f"These would be curated again: {', '.join(planned.experiments)}.")
    show("Nothing was changed. Outdated artifacts stay in the store until `clapcur gc --delete` removes them.")
