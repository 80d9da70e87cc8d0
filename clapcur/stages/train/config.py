"""What a training is: model, budget, optimiser, targets, mix and selection."""

import math
from typing import Literal

from clapcur.config import check_seed, frozen, machine
from clapcur.methods.losses import SoftForm
from clapcur.models.config import ClapConfig


@frozen
class SoftLabels:
    """Soft targets from the teacher's similarities (Eqs. 3-4); the forms are those of `losses.soft_targets`."""

    form: SoftForm = "cross_modal"
    # paper | row | softmax | cross_modal
    beta: float = 0.5
    # weight of the soft target, 0 is the hard loss
    temperature: float = 0.07
    # of the teacher's similarities in the forms softmax and cross_modal

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must lie in [0, 1], got {self.beta}")
        if self.temperature <= 0:
            raise ValueError(f"the teacher's temperature must be positive, got {self.temperature}")


@frozen
class TrainConfig:
    """A full training: model, budget, optimiser, targets, mix and selection."""

    model: ClapConfig | None = None
    # of fresh weights; None where an `init` checkpoint brings its own
    num_examples: int
    # the sample budget: pairs seen in all, replay included
    batch_size: int = 64
    # pairs per step; every other pair of the batch is a negative
    micro_batch: int | None = None
    # pairs that pass the towers at a time, in each process; None: all. Features are cached, so that loss and gradient
    # are still those of the whole batch; but dropout draws, and Cnn14 takes its batch statistics, by the micro-batch,
    # so it is part of the identity
    processes: int = 1
    # that share a batch, on one machine and each with its own GPU; they are one process but for dropout, which each
    # draws for itself
    optimiser: Literal["adamw", "adam"] = "adamw"
    # adam without weight decay is the paper's
    learning_rate: float = 1e-3
    # peak
    final_learning_rate: float = 1e-6
    # end of the cosine
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.1
    # share of the steps with a linear warm-up
    weight_decay: float = 0.01
    # of weights with two or more dimensions; adamw only
    gradient_clip: float = 5.0
    # largest norm of the gradient (reference code: 5)
    frozen_towers: tuple[Literal["audio", "text"], ...] = ()
    # encoders that keep their weights; their projections always learn
    soft_labels: SoftLabels | None = None
    # None: hard targets
    hard_target: Literal["diagonal", "identical"] = "diagonal"
    # identical: pairs with the same caption or clip share the mass instead of repelling each other
    replay_probability: float = 0.5
    # of a whole batch; only with an Improvement-Set
    balance: Literal["class", "clip_id", "caption_id"] | None = None
    # how the Improvement-Set is drawn; None: every pair alike
    time_masks: int = 0
    # SpecAugment: masks per clip of up to 1/8 of the frames
    frequency_masks: int = 0
    # SpecAugment: masks per clip of up to 1/8 of the mel bins
    precision: Literal["float32", "bfloat16"] = "float32"
    # of the towers (autocast); front end, logits and losses are float32 always
    held_out: float = 0.1
    # share of the source recordings of the teacher pairs that is kept out of every batch
    selection: Literal["held_out", "last", "reference"] = "held_out"
    # which weights become the checkpoint: least held-out loss, the last, or the best zero-shot accuracy on the very
    # clips that are scored afterwards, as the reference code does: only to compare with its figures
    test_prompts: tuple[str, ...] = ()
    # with selection="reference": class prompts, in the order of `test_classes`
    test_classes: tuple[str, ...] = ()
    # with selection="reference": labels of the input `evaluation`
    num_evaluations: int = 8
    # on the held-out pairs, evenly over the steps
    seed: int = 0
    device: str = machine("auto")
    num_workers: int = machine(2)
    # threads that decode ahead of the step
    cache_mib: int = machine(2048)
    # decoded waveforms kept in memory
    save_every_s: float = machine(60.0)
    # seconds between two saved states

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        check_seed(self.seed)
        if self.num_examples < self.batch_size:
            raise ValueError(
                f"num_examples is the budget of pairs and must be at least one batch of {self.batch_size}, "
                f"got {self.num_examples}"
            )
        if self.batch_size < 2:
            raise ValueError(f"a contrastive batch needs at least 2 pairs, got batch_size {self.batch_size}")
        if self.processes < 1 or self.batch_size % self.processes:
            raise ValueError(
                f"processes share a batch evenly: batch_size {self.batch_size} is no multiple of processes "
                f"{self.processes}"
            )
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(
                f"micro_batch must be at least 1 pair, or None for the whole batch, got {self.micro_batch}"
            )
        for name in ("replay_probability", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1), got {self.held_out}")
        if self.selection == "held_out" and (self.held_out == 0 or self.num_evaluations < 1):
            raise ValueError(
                "selection='held_out' needs held_out > 0 and num_evaluations > 0; or take selection='last'"
            )
        if len(self.test_prompts) != len(self.test_classes):
            raise ValueError(
                f"expected one prompt for each of {len(self.test_classes)} test_classes, got {len(self.test_prompts)}"
            )

    @property
    def num_steps(self) -> int:
        """Optimiser steps in the budget."""
        return self.num_examples // self.batch_size

    @property
    def evaluated_steps(self) -> set[int]:
        """Numbers of steps after which the held-out pairs, or the test set, are evaluated."""
        return {round((i + 1) * self.num_steps / self.num_evaluations) for i in range(self.num_evaluations)}

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then the schedule."""
        warmup_steps = math.ceil(self.warmup * self.num_steps)
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        through = (step - warmup_steps) / max(1, self.num_steps - warmup_steps)
        return (
            self.final_learning_rate
            + (self.learning_rate - self.final_learning_rate) * (1 + math.cos(math.pi * through)) / 2
        )
