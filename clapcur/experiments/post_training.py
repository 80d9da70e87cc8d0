"""What a post-training on the order of sounds is: how sounds are put together, and what learns from them."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clapcur.config import from_dict, frozen, read_mapping, to_dict
from clapcur.models.config import ClapConfig, OrderHeadConfig
from clapcur.stages.compose import ComposeConfig
from clapcur.stages.train import SoftLabels, TrainConfig
from clapcur.stages.train.config import OrderTraining

log = logging.getLogger("clapcur")
LEARNS = ("audio_last", "audio_projection", "text_last", "text_projection")  # those of the paper's on the path to a row
STAGES = {"a": "teminal-a", "b": "teminal-b", "a+b": "teminal-ab"}


@frozen
class PostTraining:
    """Composed groups, and one training for each of the stages, each from the checkpoint of the one before."""

    stages: tuple[str, ...] = ("a", "b")
    """The trainings: a, b, or a+b for one with both losses."""
    compose: ComposeConfig = ComposeConfig()
    """How sounds are put together; its duration_s is cut to the window of the checkpoint."""
    train: TrainConfig = TrainConfig(
        num_examples=48_000, batch_size=96, learning_rate=1e-4, gradient_clip=0.5, order=OrderTraining(),
        selection="order", learns=LEARNS, soft_labels=SoftLabels(), hard_target="identical", replay_probability=0.5,
    )  # fmt: skip
    """Each training; the stage, and the order head among what learns, are filled in."""
    order_head: OrderHeadConfig | None = OrderHeadConfig()
    """Order-aware pooling that a tower without one is given; None: the tower stays as it is."""

    def __post_init__(self) -> None:
        """Refuse stages that there are none of, and a training without order."""
        if not self.stages or not set(self.stages) <= STAGES.keys():
            raise ValueError(f"stages are of {', '.join(STAGES)}, got {', '.join(self.stages) or 'none'}")
        if self.train.order is None:
            raise ValueError("a post-training trains on composed groups: give train.order")

    def changed(self, stages: str, order_head: bool, seed: int | None) -> "PostTraining":
        """Return the same with what a command line says."""
        changes = {} if seed is None else {"seed": seed}
        return dataclasses.replace(
            self,
            stages=tuple(stages.split(",")),
            order_head=self.order_head if order_head else None,
            compose=dataclasses.replace(self.compose, **changes),
            train=dataclasses.replace(self.train, **changes),
        )

    def composing(self, model: ClapConfig) -> ComposeConfig:
        """Return how sounds are put together for a model: not longer than it hears at a time."""
        return dataclasses.replace(self.compose, duration_s=min(self.compose.duration_s, model.window_s))

    def trainings(self, model: ClapConfig) -> Iterator[tuple[str, TrainConfig]]:
        """Yield the trainings of a model, by name."""
        assert self.train.order is not None
        has_head = model.audio.order_head is not None or self.order_head is not None
        learns = tuple(dict.fromkeys([*self.train.learns, *(["order_head"] if has_head else [])]))
        for stage in self.stages:
            order = dataclasses.replace(
                self.train.order, stages=tuple(stage.split("+")),
                add_head=None if model.audio.order_head is not None else self.order_head,
            )  # fmt: skip
            learning = learns if self.train.learns else ()
            yield STAGES[stage], dataclasses.replace(self.train, order=order, learns=learning)


def post_training_from_file(path: Path) -> PostTraining:
    """Return the post-training that a YAML file describes; what it leaves out, at any depth, is as built in."""
    return from_dict(PostTraining, _over(to_dict(PostTraining()), read_mapping(path)), where=str(path))


def _over(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for name, value in given.items():
        below = merged.get(name)
        is_nested = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[name] = _over(below, value) if is_nested else value
    return merged


def warn_of_deaf_tower(settings: PostTraining, model: ClapConfig) -> None:
    """Warn where neither the pooling nor the receptive field of the audio tower can carry order over an item."""
    heard_s, duration_s = model.hears_order_s, settings.composing(model).duration_s
    if settings.order_head is None and heard_s < duration_s:
        log.warning(
            "the audio tower pools without order and tells what came first within %.2f s only, the composed items have "
            "%.2f s: it hears their order near the joint alone; give it an order head (--order-head)", heard_s,
            duration_s,
        )  # fmt: skip
