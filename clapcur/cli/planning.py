"""Show what a long command would do: `plan`, and the option --dry-run of commands that train."""

from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clapcur.cli.console import HomeOption, JsonOption, columns_table, open_home, print_json, show, working

if TYPE_CHECKING:
    from clapcur.experiments.config import Experiment
    from clapcur.flows.plan import Disk, Plan

DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show what would be computed and reused, and how long it would take; train nothing."
    ),
]


def plan(
    config: Annotated[Path, typer.Argument(help="Experiment file (YAML).", show_default=False)],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an experiment would compute and cost.

    Shows what would be trained, embedded, tagged and curated, what can be reused, the disk space, and an estimate of
    the remaining time from earlier runs on this machine. Reads tables, audio and checkpoints, so that errors in them
    are reported early; writes no artifact. Also lists what may be a mistake: clips in several tables, classes that no
    caption names, too few pairs or clips, labels without a clip, low sample rates.
    Plans the rows of `compare`; for a named pool (`pool: pool:NAME`), plans the next re-curation.
    """
    from clapcur.experiments.config import experiment_from_file

    experiment = experiment_from_file(config)
    open_home(home)
    is_landed = experiment.pool is not None and experiment.pool.landed_in is not None
    show_dry_run("recurate" if is_landed else "compare", experiment, as_json)


def show_dry_run(name: str, experiment: "Experiment", as_json: bool, **options: Any) -> None:
    """Print what a flow would compute for an experiment.

    Parameters
    ----------
    name : str
        Name of the flow and of its module in `clapcur.flows`, such as ``compare``.
    experiment : Experiment
    as_json : bool
        Whether to print one line of JSON.
    **options
        Further arguments of the flow.
    """
    with working():
        from clapcur.flows import plan as plans

        if name == "recurate":
            made = plans.plan_recuration(experiment, **options)
        else:
            flow = getattr(import_module(f"clapcur.flows.{name}"), name)
            made = plans.plan(experiment, partial(flow.fn, **options))
    show_plan(made, as_json)


def show_plan(made: "Plan", as_json: bool) -> None:
    """Print the steps of a plan, their estimated time and size, and what looks wrong, or one line of JSON."""
    if as_json:
        facts = {"results": made.num_results, "reused": made.num_reused, "seconds": made.seconds, "due": made.due}
        found = {"disk": asdict(made.disk), "findings": [asdict(one) for one in made.findings]}
        if made.news is not None:
            news = made.news
            facts |= {"missing": made.missing, "new_clips": news.new_clips, "gone_clips": news.gone_clips}
            facts |= {"hours_waited": news.hours, "version": news.version.id}
        print_json({**facts, **found, "unknown": made.unknown, "steps": [asdict(step) for step in made.steps]})
        return
    rows = [
        (step.what, f"{step.new:,}" if step.new else "-", f"{step.reused:,}" if step.reused else "-", step.unit,
         _duration(step.seconds))
        for step in made.steps
    ]  # fmt: skip
    show(columns_table(("", "new", "reused", "of", "about"), rows, right=("new", "reused", "about")))
    show(f"{made.num_reused:,} of {made.num_results:,} results already exist.{_time_left(made)}")
    show(_disk_text(made.disk))
    if made.findings:
        show("Before you start:", *(f"- {finding.text}." for finding in made.findings), "")
    if made.due is not None:
        not_yet = f"Not due yet: {made.missing}. `clapcur recurate --force` runs it anyway."
        show(f"Due: {made.due}." if made.due else not_yet)


def _disk_text(disk: "Disk") -> str:
    """Return a sentence with the estimated size of new models and embeddings and the free space."""
    text = (
        f"New models and embeddings take about {_bytes(disk.written)}, and a training up to {_bytes(disk.meanwhile)} "
        f"while it runs; {_bytes(disk.free)} are free."
    )
    return text if disk.fits else f"NOT ENOUGH SPACE: {text} Free some with `clapcur gc`, or use another --home."


def _bytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _time_left(made: "Plan") -> str:
    """Return a sentence with the estimated time left, and the number of steps without an estimate."""
    if made.num_reused == made.num_results:
        return ""
    if len(made.unknown) == sum(step.new > 0 for step in made.steps):
        return " There is no time estimate: no similar step has run in this home yet."
    said = f" The others take about {_duration(made.seconds)}, going by earlier runs in this home"
    return f"{said}, not counting {len(made.unknown)} steps that have never run here." if made.unknown else f"{said}."


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
