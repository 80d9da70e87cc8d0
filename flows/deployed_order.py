"""The deployments for the order of sounds: they take a checkpoint and sounds instead of an experiment."""

import logging
from typing import Annotated, Literal

from prefect import State

from clapcur.experiments.order import OrderEvaluation, PostTraining, post_training_from_file
from clapcur.flows import order
from clapcur.flows.deployed import config_path, deployed, done, shown
from clapcur.flows.given import checkpoint_of, clips_of
from clapcur.store.home import Home

Checkpoint = Annotated[
    str,
    shown(
        title="Checkpoint",
        description="Checkpoint to train or score [id, its first digits, or a file or folder of a CLAP on the worker].",
        min_length=1,
    ),
]
Seed = Annotated[int, shown(title="Seed", description="Seed of the groups and the training [whole number].", ge=0)]


@deployed("post-train", hours=24 * 7)
def post_train(
    checkpoint: Checkpoint,
    clips: Annotated[
        str,
        shown(
            title="Single sounds",
            description="Clips to compose [id of a labelled manifest or of an Improvement-Set, or a table with labels"
            " on the worker]. A set needs no labels.",
            min_length=1,
        ),
    ],
    stages: Annotated[
        Literal["a,b", "a", "b", "a+b"],
        shown(
            title="Stages",
            description="a: number of sounds; b: their order; a,b: first a, then b; a+b: both in one training.",
        ),
    ] = "a,b",
    order_head: Annotated[
        bool,
        shown(title="Order head", description="Add order-aware pooling to the audio tower if it has none."),
    ] = True,
    replay: Annotated[
        str,
        shown(
            title="Replay",
            description="Pairs to replay, so that earlier abilities are kept [id of an Improvement-Set or of a "
            "manifest of"
            " pairs]. Empty: the single sounds with their class names.",
        ),
    ] = "",
    settings: Annotated[
        str,
        shown(
            title="Settings",
            description="File with the fields of a post-training [path on the worker's machine]. Empty: built-in "
            "defaults.",
        ),
    ] = "",
    seed: Seed = 0,
) -> State:
    """Train a checkpoint to recognise the order of sounds, using single sounds only."""
    logging.getLogger("clapcur").setLevel(logging.INFO)
    home = Home.open()
    chosen = post_training_from_file(config_path(settings)) if settings else PostTraining()
    return done(
        order.post_train.fn(
            checkpoint_of(home, checkpoint), order.sources_of(home, clips),
            chosen.changed(stages, order_head, seed), order.replay_of(home, replay),
        )
    )  # fmt: skip


@deployed("zste", hours=48)
def zste(
    checkpoint: Checkpoint,
    clips: Annotated[
        str,
        shown(
            title="Single sounds",
            description="Clips to compose [id of a labelled manifest, or a table with labels on the worker].",
            min_length=1,
        ),
    ],
    num_groups: Annotated[
        int,
        shown(
            title="Groups",
            description="Number of groups of two sounds; each group gives five items [whole number].",
            ge=1,
        ),
    ] = 200,
    seed: Seed = 0,
) -> State:
    """Score how well a checkpoint recognises the order of sounds, zero-shot, with the chance level of each task."""
    logging.getLogger("clapcur").setLevel(logging.INFO)
    home = Home.open()
    scored, sounds = checkpoint_of(home, checkpoint), clips_of(home, clips)
    return done(order.zste.fn(scored, sounds, OrderEvaluation(num_groups=num_groups, seed=seed)))
