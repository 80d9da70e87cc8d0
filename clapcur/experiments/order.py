"""Post-training on the order of sounds, and its test: how sounds are composed, and which parts are trained."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from clapcur.config import check_seed, from_dict, frozen, read_mapping, to_dict
from clapcur.data.class_names import PROMPT, check_prompt
from clapcur.models.config import ClapConfig, OrderHeadConfig, Part
from clapcur.stages.compose import ComposeConfig
from clapcur.stages.ingest import IngestConfig
from clapcur.stages.train import SoftLabels, TrainConfig
from clapcur.stages.train.config import OrderTraining

log = logging.getLogger("clapcur")
# the parts that the paper trains, among those that lead to an embedding
LEARNS: tuple[Part, ...] = ("audio_last", "audio_projection", "text_last", "text_projection")
STAGES: dict[str, tuple[Literal["a", "b"], ...]] = {"a": ("a",), "b": ("b",), "a+b": ("a", "b")}


@frozen
class PostTraining:
    """Composed groups, and one training for each of the stages, each from the checkpoint of the one before."""

    stages: tuple[str, ...] = ("a", "b")
    """Trainings in order: a, b, or a+b for one training with both losses."""
    compose: ComposeConfig = ComposeConfig()
    """How sounds are composed; duration_s is limited to the window of the checkpoint."""
    train: TrainConfig = TrainConfig(
        num_examples=48_000, batch_size=96, learning_rate=1e-4, gradient_clip=0.5,
        order=OrderTraining(forward_first=0.5, choice_phrasings="all"),
        selection="order", learns=LEARNS, soft_labels=SoftLabels(), hard_target="identical", replay_probability=0.5,
    )  # fmt: skip
    """Config of each training; the stage, and the order head as a part to train, are set automatically."""
    order_head: OrderHeadConfig | None = OrderHeadConfig()
    """Order-aware pooling to add to a tower without one; None: add none."""

    def __post_init__(self) -> None:
        """Reject unknown stages, and a training without composed groups."""
        if not self.stages or not set(self.stages) <= STAGES.keys():
            raise ValueError(f"stages must be among {', '.join(STAGES)}, got {', '.join(self.stages) or 'none'}")
        if self.train.order is None:
            raise ValueError("a post-training needs composed groups: set train.order")

    def changed(self, stages: str, order_head: bool, seed: int | None) -> "PostTraining":
        """Return this post-training with the options of a command line.

        Parameters
        ----------
        stages : str
            Trainings in order, separated by commas, such as ``a,b``.
        order_head : bool
            Whether to keep the order head of this config; False removes it.
        seed : int or None
            Seed of groups and training; None: keep the seeds of this config.

        Raises
        ------
        ValueError
            A stage is unknown, or the seed makes no sense.
        """
        chosen = dataclasses.replace(
            self, stages=tuple(stages.split(",")), order_head=self.order_head if order_head else None
        )
        return chosen if seed is None else chosen.seeded(seed)

    def seeded(self, seed: int) -> "PostTraining":
        """Return this post-training with another seed for groups and training."""
        composing, training = dataclasses.replace(self.compose, seed=seed), dataclasses.replace(self.train, seed=seed)
        return dataclasses.replace(self, compose=composing, train=training)

    def composing(self, model: ClapConfig) -> ComposeConfig:
        """Return how sounds are composed for a model, limited to the length of its window."""
        return dataclasses.replace(self.compose, duration_s=min(self.compose.duration_s, model.window_s))

    def trainings(self, model: ClapConfig) -> Iterator[TrainConfig]:
        """Yield the trainings of a model, in order."""
        assert self.train.order is not None
        has_head = model.audio.order_head is not None or self.order_head is not None
        parts: tuple[Part, ...] = ("order_head",) if has_head else ()
        learns = tuple(dict.fromkeys((*self.train.learns, *parts)))
        for stage in self.stages:
            order = dataclasses.replace(
                self.train.order, stages=STAGES[stage],
                add_head=None if model.audio.order_head is not None else self.order_head,
            )  # fmt: skip
            learning = learns if self.train.learns else ()
            yield dataclasses.replace(self.train, order=order, learns=learning)


@frozen
class OrderEvaluation:
    """How it is scored what a checkpoint hears of the order of sounds."""

    clips: IngestConfig | None = None
    """Labelled clips of single sounds to compose; None: the evaluation clips."""
    num_groups: int = 200
    """Number of groups of two sounds; each group gives five items."""
    duration_s: float | None = None
    """Length of every item, in seconds; None: the window of the checkpoint."""
    prompt: str = PROMPT
    """Caption prompt; {} is replaced by the described sounds."""
    seed: int = 0
    """Seed of the groups, the distractors and the bootstrap; all seeds of an experiment share one test."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        check_seed(self.seed)
        check_prompt(self.prompt)
        self.composing(5.0)

    def composing(self, window_s: float) -> ComposeConfig:
        """Return how sounds are composed for a model with a window of `window_s` seconds; all groups are held out."""
        return ComposeConfig(
            duration_s=self.duration_s or window_s, num_held_out_groups=self.num_groups, held_out=1.0,
            prompt=self.prompt, seed=self.seed,
        )  # fmt: skip


def post_training_from_file(path: Path) -> PostTraining:
    """Read a post-training from a YAML file; fields left out, at any depth, have their built-in defaults."""
    return from_dict(PostTraining, _over(to_dict(PostTraining()), read_mapping(path)), where=str(path))


def _over(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for name, value in given.items():
        below = merged.get(name)
        merged[name] = _over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def warn_of_deaf_tower(settings: PostTraining, model: ClapConfig) -> None:
    """Warn if neither the pooling nor the receptive field of the audio tower can represent order over a whole item."""
    heard_s, duration_s = model.hears_order_s, settings.composing(model).duration_s
    if settings.order_head is None and heard_s < duration_s:
        log.warning(
            "the pooling of the audio tower ignores order, so it can order sounds only within %.2f s, but the composed "
            "items are %.2f s long; add an order head (--order-head)", heard_s, duration_s,
        )  # fmt: skip
