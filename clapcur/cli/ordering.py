"""The commands about the order of sounds: how much of it a checkpoint hears, and training that teaches it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from clapcur.cli.arguments import Checkpoint, find
from clapcur.cli.console import (
    HomeOption,
    JsonOption,
    columns_table,
    facts_table,
    interval_text,
    open_home,
    show,
    show_artifact,
    working,
)
from clapcur.data.class_names import PROMPT
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home

ClipsOption = Annotated[
    str,
    typer.Option(
        help="Single sounds with labels: a manifest, or a table or folder of a corpus as `ingest` takes it.",
    ),
]


def zste(
    checkpoint: Checkpoint,
    clips: ClipsOption,
    num_groups: Annotated[int, typer.Option(min=1, help="Groups of two sounds; each is heard in five ways.")] = 200,
    duration: Annotated[
        float | None, typer.Option(help="Seconds of an item; default: the window of the checkpoint.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What captions begin with; {} is the place of what is heard.")] = PROMPT,
    seed: Annotated[int, typer.Option(help="Of the groups, the distractors and the bootstrap.")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score what a checkpoint hears of the order of sounds, zero-shot.

    Two labelled sounds are put together, one after the other and both at once, and the model chooses among captions.
    Each task is shown with its chance and a 95 % interval. The checkpoint may be a file or folder that was not adopted.
    """
    where = open_home(home)
    with working():
        from clapcur.stages.compose import ComposeConfig
        from clapcur.stages.zste import ZsteConfig
        from clapcur.tasks.compose import compose
        from clapcur.tasks.zste import zste as run

        scored = checkpoint_of(where, checkpoint)
        manifest = labelled_clips(where, clips)
        composing = ComposeConfig(
            duration_s=duration or window_of(scored), num_held_out_groups=num_groups, held_out=1.0, prompt=prompt,
            seed=seed,
        )  # fmt: skip
        composed = compose.fn(composing, {"clips": manifest}, "evaluation")
        inputs = {"checkpoint": scored, "compositions": composed, "clips": manifest}
        tags = scored.record.get("tags", {})
        made = run.fn(ZsteConfig(prompt=prompt, seed=seed), inputs, str(tags.get("row", "checkpoint")), seed)
    scores = json.loads((made.path / "scores.json").read_text())
    if as_json:
        show_artifact(made, as_json, **{name: scores[name] for name in ("tasks", "protocol", "contamination")})
        return
    show_order(made, scores)


def show_order(made: Artifact, scores: Mapping[str, Any]) -> None:
    """Print the table of all tasks, in per cent, and under which protocol they were scored."""
    rows = [
        (name, *(f"{100 * value:.1f}" for value in (found["score"], found["chance"])), _percent(found["interval"]))
        for name, found in scores["tasks"].items()
    ]
    show(columns_table(("task", "% right", "chance", "95 % interval"), rows, right=("% right", "chance")))
    known = scores["contamination"]
    facts = {"order_scores": made.id, "folder": made.uri} | {
        name: f"{100 * scores[name]:.1f}" for name in ("relations", "average")
    }
    show(facts_table(facts | {"contamination": f"{known['status']}, {known['num_clips']} clips"}))
    show("\nunder this protocol:", facts_table(scores["protocol"]))


def _percent(interval: list[float]) -> str:
    return interval_text([round(100 * limit, 1) for limit in interval])


def checkpoint_of(home: Home, name: str) -> Artifact:
    """Return the checkpoint that an id means, or a file or folder, which is adopted."""
    if not Path(name).exists():
        return find(home, name, "checkpoint")
    from clapcur.stages.adopt import AdoptConfig
    from clapcur.tasks.adopt import adopt

    return adopt.fn(AdoptConfig(source=str(Path(name).absolute())), {})


def labelled_clips(home: Home, name: str) -> Artifact:
    """Return the manifest that an id means, or a table, which is ingested."""
    if not Path(name).exists():
        return find(home, name, "manifest")
    from clapcur.stages.ingest import IngestConfig
    from clapcur.tasks.ingest import ingest

    return ingest.fn(IngestConfig(source=str(Path(name).absolute())), "clips")


def window_of(checkpoint: Artifact) -> float:
    """Return the seconds that a checkpoint hears at a time."""
    from clapcur.models.folder import read_config

    return read_config(checkpoint.path / "config.json").window_s
