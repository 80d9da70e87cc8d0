"""The commands for the order of sounds: score how well a checkpoint recognises it, and post-train on it."""

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
        help="Labelled clips of single sounds: a manifest, or a table or corpus folder that `ingest` accepts.",
    ),
]


def zste(
    checkpoint: Checkpoint,
    clips: ClipsOption,
    num_groups: Annotated[
        int, typer.Option(min=1, help="Number of groups of two sounds; each group gives five items.")
    ] = 200,
    duration: Annotated[
        float | None, typer.Option(help="Length of an item in seconds; default: the window of the checkpoint.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="Caption prompt; {} is replaced by the described sounds.")] = PROMPT,
    seed: Annotated[int, typer.Option(help="Seed of the groups, the distractors and the bootstrap.")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score how well a checkpoint hears the order of sounds.

    The score is zero-shot. Combines two labelled sounds, in sequence and at the same time, and lets the model
    choose among captions. Shows each task with its chance level and a 95 % interval. The checkpoint may be a file
    or folder that was not adopted.
    """
    where = open_home(home)
    with working():
        from clapcur.data.order_scores import OrderScores
        from clapcur.experiments.order import OrderEvaluation
        from clapcur.flows.given import checkpoint_of, clips_of
        from clapcur.flows.steps import order_scores

        test = OrderEvaluation(num_groups=num_groups, duration_s=duration, prompt=prompt, seed=seed)
        scored, sounds = checkpoint_of(where, checkpoint), clips_of(where, clips)
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
        typer.Option(help="Clips of single sounds: a labelled manifest or table, or an Improvement-Set (DS or ADS)."),
    ],
    stages: Annotated[
        str, typer.Option(help="a: number of sounds; b: their order; a,b: first a, then b; a+b: both in one training.")
    ] = "a,b",
    config: Annotated[
        Path | None, typer.Option("--config", help="Fields of a post-training (YAML); default: built in.")
    ] = None,
    order_head: Annotated[bool, typer.Option(help="Add order-aware pooling to the audio tower if it has none.")] = True,
    replay: Annotated[
        str, typer.Option(help="Improvement-Set or manifest of pairs to replay; default: the single sounds.")
    ] = "",
    seed: Annotated[
        int | None, typer.Option(help="Seed of the groups and the training; default: from the config.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Teach a checkpoint the order of sounds.

    Needs single sounds only (TeminAL). Combines sounds by class, with captions such as "a dog before a bell"; an
    Improvement-Set needs no labels. Replays earlier pairs with soft labels to prevent forgetting. Keeps the weights
    that recognise order best on held-out groups without losing accuracy on single sounds.
    """
    from clapcur.experiments.order import PostTraining, post_training_from_file

    settings = post_training_from_file(config) if config else PostTraining()
    settings = settings.changed(stages, order_head, seed)
    where = open_home(home)
    with working():
        from clapcur.cli.experiments import run_flow
        from clapcur.flows.given import checkpoint_of
        from clapcur.flows.order import post_train as flow
        from clapcur.flows.order import replay_of, sources_of

        given = sources_of(where, clips), settings, replay_of(where, replay)
        made = run_flow(flow, checkpoint_of(where, checkpoint), *given)
    show_artifact(made, as_json)


def show_order(made: Artifact, scores: "OrderScores") -> None:
    """Print the table of all tasks in per cent, and their protocol."""
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
