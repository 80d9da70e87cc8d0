"""The commands about the order of sounds: how much of it a checkpoint hears, and training that teaches it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clapcur.cli.arguments import Checkpoint
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
from clapcur.data.rows import Row
from clapcur.store.artifacts import Artifact

if TYPE_CHECKING:
    from clapcur.data.order_scores import OrderScores

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
        from clapcur.data.order_scores import OrderScores
        from clapcur.experiments.order import OrderEvaluation
        from clapcur.flows.order import checkpoint_of, labelled_clips
        from clapcur.flows.steps import order_scores

        test = OrderEvaluation(num_groups=num_groups, duration_s=duration, prompt=prompt, seed=seed)
        scored, sounds = checkpoint_of(where, checkpoint), labelled_clips(where, clips)
        made = order_scores(test, scored, sounds, Row.of(scored.record), seed)
    scores = OrderScores.open(made)
    if as_json:
        said = asdict(scores)
        show_artifact(made, as_json, **{name: said[name] for name in ("tasks", "protocol", "contamination")})
        return
    show_order(made, scores)


def post_train(
    checkpoint: Checkpoint,
    clips: Annotated[
        str,
        typer.Option(help="Single sounds: a manifest or a table with labels, or an Improvement-Set (DS or ADS)."),
    ],
    stages: Annotated[
        str, typer.Option(help="a: how many sounds; b: in which order; a,b: one after the other; a+b: both at once.")
    ] = "a,b",
    config: Annotated[
        Path | None, typer.Option("--config", help="The fields of a post-training, as YAML; default: built in.")
    ] = None,
    order_head: Annotated[
        bool, typer.Option(help="Give the audio tower a pooling that hears order, where it has none.")
    ] = True,
    replay: Annotated[
        str, typer.Option(help="An Improvement-Set, or a manifest of pairs, to replay; default: the single sounds.")
    ] = "",
    seed: Annotated[int | None, typer.Option(help="Of groups and training; default: that of the config.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Teach a checkpoint to hear in which order sounds come, from single sounds alone (TeminAL).

    Sounds are put together by class, with captions such as "a dog before a bell"; an Improvement-Set needs no label.
    What it could do before is replayed with soft labels, and the weights that are kept hear the most order on held-out
    groups without losing single sounds.
    """
    from clapcur.experiments.order import PostTraining, post_training_from_file

    settings = post_training_from_file(config) if config else PostTraining()
    settings = settings.changed(stages, order_head, seed)
    where = open_home(home)
    with working():
        from clapcur.cli.experiments import run_flow
        from clapcur.flows.order import checkpoint_of, replay_of, sources_of
        from clapcur.flows.order import post_train as flow

        given = sources_of(where, clips), settings, replay_of(where, replay)
        made = run_flow(flow, checkpoint_of(where, checkpoint), *given)
    show_artifact(made, as_json)


def show_order(made: Artifact, scores: "OrderScores") -> None:
    """Print the table of all tasks, in per cent, and under which protocol they were scored."""
    rows = [
        (name, f"{100 * found.score:.1f}", f"{100 * found.chance:.1f}", _percent(found.interval))
        for name, found in scores.tasks.items()
    ]
    show(columns_table(("task", "% right", "chance", "95 % interval"), rows, right=("% right", "chance")))
    facts = {
        "order_scores": made.id,
        "folder": made.uri,
        "relations": f"{100 * scores.relations:.1f}",
        "average": f"{100 * scores.average:.1f}",
        "contamination": f"{scores.contamination.status}, {scores.contamination.num_clips} clips",
    }
    show(facts_table(facts))
    show("\nunder this protocol:", facts_table(scores.protocol.facts()))


def _percent(interval: tuple[float, float]) -> str:
    return interval_text([round(100 * limit, 1) for limit in interval])
