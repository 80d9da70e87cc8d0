"""What a training is: model, budget, optimiser, targets, mix and selection."""

import math
from typing import Literal, get_args

from clapcur.config import added, check_seed, frozen, machine
from clapcur.methods.losses import SoftForm
from clapcur.models.config import ClapConfig, OrderHeadConfig, Part


@frozen
class SoftLabels:
    """Soft targets from the teacher's similarities (Eqs. 3-4); the forms are those of `losses.soft_targets`."""

    form: SoftForm = "cross_modal"
    """Form of the soft target: paper, row, softmax or cross_modal."""
    beta: float = 0.5
    """Weight of the soft target; 0 is the hard loss."""
    temperature: float = 0.07
    """Temperature of the teacher's similarities, in the forms softmax and cross_modal."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {self.beta}")
        if self.temperature <= 0:
            raise ValueError(f"the teacher's temperature must be positive, got {self.temperature}")


@frozen
class OrderTraining:
    """Training on composed groups: how many sounds there are (a) and in which order (b); arXiv 2408.09269."""

    stages: tuple[Literal["a", "b"], ...] = ("b",)
    """Which losses: each batch takes one of them at random. A after B in one training is another: give one each."""
    alpha_same: float = 1.0
    """Stage b: weight of the same two sounds in another order as negatives; 0 takes them out."""
    alpha_cross: float = 1.0
    """Stage b: weight of other sounds in another order as negatives; 0 takes them out."""
    softness: float = 0.0
    """Stage a: share of the target that goes to pairs with some of the same sounds; 0 is the paper's."""
    forward_first: float = added(0.0)
    """Share of the training in which sequences are described in the order in which they are heard (before, then,
    followed by). A text encoder learns "before" early; "after" turns the sentence around and needs that first."""
    choice_phrasings: Literal["first", "all"] = added("first")
    """Phrasings of a sequence that the held-out order is measured with: the first one, before, or all of them."""
    add_head: OrderHeadConfig | None = None
    """Order-aware pooling that the audio tower is given first; None: it stays as it is."""
    max_single_loss: float = 0.02
    """Weights that recognise so much less of the held-out single sounds than the start, as a share, are not chosen."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if not self.stages or len(set(self.stages)) != len(self.stages):
            raise ValueError(f"stages are a, b, or both once, got {', '.join(self.stages) or 'none'}")
        for name in ("alpha_same", "alpha_cross"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite weight of at least 0, got {getattr(self, name)}")
        for name in ("softness", "max_single_loss", "forward_first"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@frozen
class TrainConfig:
    """A full training: model, budget, optimiser, targets, mix and selection."""

    model: ClapConfig | None = None
    """Architecture of fresh weights; None: that of the checkpoint that the training starts from."""
    num_examples: int
    """Sample budget: the pairs seen in all, replay included."""
    batch_size: int = 64
    """Pairs per step; each pair's negatives are the other pairs of the batch."""
    micro_batch: int | None = None
    """Pairs that pass the towers at a time, in each process; None: all. Features are cached (GradCache), so that loss
    and gradient are those of the whole batch. Dropout and batch statistics work by the micro-batch, so it is part of
    the identity."""
    processes: int = 1
    """Processes that share each batch, on one machine, each with its own GPU. The result is that of one process, except
    for dropout, which each process draws for itself."""
    optimiser: Literal["adamw", "adam"] = "adamw"
    """Optimiser; the paper uses adam without weight decay."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    final_learning_rate: float = 1e-6
    """Learning rate at the end of the cosine."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: float = 0.1
    """Share of the steps that warm up linearly."""
    weight_decay: float = 0.01
    """Weight decay of weights with two or more dimensions; adamw only."""
    gradient_clip: float = 5.0
    """Largest norm of the gradient; the reference code uses 5."""
    frozen_towers: tuple[Literal["audio", "text"], ...] = ()
    """Towers whose weights stay fixed; their projections always learn."""
    soft_labels: SoftLabels | None = None
    """Soft targets; None: hard targets."""
    hard_target: Literal["diagonal", "identical"] = "diagonal"
    """Hard target. identical: pairs with the same caption or clip share the target instead of being negatives."""
    replay_probability: float = 0.5
    """Probability that a whole batch is a replay batch; only with an Improvement-Set."""
    balance: Literal["class", "clip_id", "caption_id"] | None = None
    """Draw the Improvement-Set evenly by class, clip or caption; None: every pair alike."""
    num_crops: int | None = added(None)
    """Crops of a clip that batches draw from, evenly spread over it (1: its centre); None: any. A frozen audio tower
    hears each crop once and keeps its features, so that few crops make later steps cheap."""
    time_masks: int = 0
    """SpecAugment: masks per clip, each of up to 1/8 of the frames."""
    frequency_masks: int = 0
    """SpecAugment: masks per clip, each of up to 1/8 of the mel bands."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Precision of the towers (autocast); front end, logits and losses are always float32. auto: bfloat16 on a GPU or
    CPU that has instructions for it, else float32; the checkpoint's record says which."""
    held_out: float = 0.1
    """Share of the source recordings of the teacher's pairs that no batch contains."""
    selection: Literal["held_out", "last", "reference", "order"] = "held_out"
    """Which weights become the checkpoint: those with the least held-out loss, the last ones, (reference) those with
    the best accuracy on the very clips that are scored afterwards, or (order) those with the greatest
    sqrt(R@1 * max(0, order - 50)) on held-out groups (arXiv 2301.02074), R@1 and order in per cent. The last is what
    the reference code does; use it only to compare with its figures."""
    order: OrderTraining | None = added(None)
    """Losses of order on composed groups; needs the input `compositions`. None: pairs as ever."""
    learns: tuple[Part, ...] = added(())
    """Parts that learn, all others stay as they are to the byte; empty: everything but `frozen_towers`."""
    test_prompts: tuple[str, ...] = ()
    """With selection="reference": class prompts, in the order of `test_classes`."""
    test_classes: tuple[str, ...] = ()
    """With selection="reference": labels of the input `evaluation`."""
    num_evaluations: int = 8
    """Evaluations on the held-out pairs, spread evenly over the steps."""
    seed: int = 0
    """Seed of weights, batches, crops and masks."""
    device: str = machine("auto")
    """Device; auto takes the first GPU if there is one."""
    num_workers: int = machine(2)
    """Threads that decode audio ahead of the step."""
    cache_mib: int = machine(2048)
    """MiB of decoded waveforms that are kept in memory, and as many of the features of a frozen audio tower."""
    save_every_s: float = machine(60.0)
    """Seconds between two saved states."""

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
        if self.num_crops is not None and self.num_crops < 1:
            raise ValueError(f"num_crops must be at least 1, or None for any crop, got {self.num_crops}")
        for name in ("replay_probability", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {self.held_out}")
        for part in self.learns:
            if part not in get_args(Part):
                raise ValueError(f"learns names parts, of {', '.join(get_args(Part))}, got {part!r}")
        if self.selection == "held_out" and (self.held_out == 0 or self.num_evaluations < 1):
            raise ValueError(
                "selection='held_out' needs held_out > 0 and num_evaluations > 0; or take selection='last'"
            )
        if self.order is None and self.selection == "order":
            raise ValueError("selection='order' is for a training on composed groups: give `order`")
        if self.order is not None and self.selection not in ("order", "last"):
            raise ValueError(
                f"a training on composed groups has selection='order' or 'last', got selection={self.selection!r}"
            )
        if self.selection == "order" and self.num_evaluations < 1:
            raise ValueError("selection='order' needs num_evaluations > 0; or take selection='last'")
        if self.learns and self.frozen_towers:
            raise ValueError("`learns` names all that learns: leave frozen_towers out")
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
