"""What a training is: model, budget, optimiser, targets, mix and selection."""

import math
from typing import Literal, get_args

from clapcur.config import added, check_seed, frozen, machine
from clapcur.methods.losses import SoftForm
from clapcur.models.config import ClapConfig, LoraConfig, OrderHeadConfig, Part, Tower


@frozen
class SoftLabels:
    """Soft targets from the teacher's similarities (Eqs. 3-4); the forms are those of `losses.soft_targets`."""

    form: SoftForm = "cross_modal"
    """Form of the soft target: paper, row, softmax or cross_modal."""
    beta: float = 0.5
    """Weight of the soft target; 0 is the hard loss."""
    temperature: float = 0.07
    """Temperature of the teacher's similarities, for the forms softmax and cross_modal."""

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
    """Stages whose losses are used; each batch draws one of them. To train a before b, use two trainings."""
    alpha_same: float = 1.0
    """Stage b: weight of negatives with the same two sounds in another order; 0: none."""
    alpha_cross: float = 1.0
    """Stage b: weight of negatives with other sounds in another order; 0: none."""
    softness: float = 0.0
    """Stage a: fraction of the target that goes to pairs that share some sounds; 0 as in the paper."""
    forward_first: float = added(0.0)
    """Fraction of the training in which captions name the sounds of a sequence in the order in which they are heard
    (before, then, followed by). A text encoder learns "before" early; "after" reverses the names and
    needs that first."""
    choice_phrasings: Literal["first", "all"] = added("first")
    """Captions of a sequence used for the held-out order score: the first phrasing (before), or all of them."""
    add_head: OrderHeadConfig | None = None
    """Order-aware pooling to add to the audio tower before training; None: none."""
    max_single_loss: float = 0.02
    """Maximum loss of accuracy on held-out single sounds, as a fraction; weights that lose more are not selected."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if not self.stages or len(set(self.stages)) != len(self.stages):
            raise ValueError(f"stages must be a, b, or both, each once, got {', '.join(self.stages) or 'none'}")
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
    """Architecture of a new model; None: that of the checkpoint that the training starts from."""
    num_examples: int
    """Sample budget: total number of pairs seen, including replay."""
    batch_size: int = 64
    """Pairs per step; each pair's negatives are the other pairs of the batch."""
    micro_batch: int | None = None
    """Pairs per forward pass, in each process; None: the whole batch. Features are cached (GradCache), so loss and
    gradient are those of the whole batch. Dropout and batch statistics use the micro-batch, so this field is part of
    the signature."""
    processes: int = 1
    """Number of processes that share each batch, on one machine, each with its own GPU. Results equal those of one
    process, except for dropout, which each process draws separately."""
    optimiser: Literal["adamw", "adam"] = "adamw"
    """Optimiser; the paper uses adam without weight decay."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    final_learning_rate: float = 1e-6
    """Learning rate at the end of the cosine."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning-rate schedule after the warm-up."""
    warmup: float = 0.1
    """Fraction of the steps used for linear warm-up."""
    weight_decay: float = 0.01
    """Weight decay, for weights with two or more dimensions; adamw only."""
    gradient_clip: float = 5.0
    """Maximum gradient norm; the reference code uses 5."""
    frozen_towers: tuple[Tower, ...] = ()
    """Towers with frozen weights; their projections are always trained."""
    adapt: Literal["all", "projections", "lora"] = added("all")
    """How the towers are trained. all: every weight, except those of `frozen_towers`; projections: none, both towers
    are frozen; lora: low-rank adapters beside the frozen weights, which are merged into the checkpoint in the end."""
    lora: LoraConfig = added(LoraConfig())
    """Size of the adapters; only with adapt: lora."""
    soft_labels: SoftLabels | None = None
    """Soft targets; None: hard targets."""
    hard_target: Literal["diagonal", "identical"] = "diagonal"
    """Hard target. identical: pairs with the same caption or clip share the target instead of being negatives."""
    replay_probability: float = 0.5
    """Probability that a batch is a replay batch; only with an Improvement-Set."""
    balance: Literal["class", "clip_id", "caption_id"] | None = None
    """Sample the Improvement-Set evenly by class, clip or caption; None: every pair equally often."""
    num_crops: int | None = added(None)
    """Number of fixed crops per clip to draw from, spread evenly (1: the centre); None: any position. A frozen audio
    tower computes the features of each crop once, so few crops make later steps cheap."""
    time_masks: int = 0
    """SpecAugment: number of time masks per clip, each of up to 1/8 of the frames."""
    frequency_masks: int = 0
    """SpecAugment: number of frequency masks per clip, each of up to 1/8 of the mel bands."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Precision of the towers (autocast); front end, logits and losses are always float32. auto: bfloat16 on a GPU or
    CPU with bfloat16 instructions, else float32; the checkpoint's record shows which was used."""
    held_out: float = 0.1
    """Fraction of the source recordings of the teacher's pairs that is held out from training."""
    selection: Literal["held_out", "last", "reference", "order"] = "held_out"
    """Which weights become the checkpoint. held_out: lowest held-out loss; last: the last step; reference: highest
    accuracy on the evaluation clips themselves; order: highest sqrt(R@1 * max(0, order - 50)) on held-out groups
    (arXiv 2301.02074), R@1 and order in per cent. reference is what the reference code does; use it only to compare
    with its results."""
    order: OrderTraining | None = added(None)
    """Order losses on composed groups; needs the input `compositions`. None: train on pairs."""
    learns: tuple[Part, ...] = added(())
    """Parts to train; all others stay unchanged; empty: everything except `frozen_towers`."""
    test_prompts: tuple[str, ...] = ()
    """For selection="reference": class prompts, in the order of `test_classes`."""
    test_classes: tuple[str, ...] = ()
    """For selection="reference": labels of the input `evaluation`."""
    num_evaluations: int = 8
    """Number of evaluations on the held-out pairs, spread evenly over the steps."""
    seed: int = 0
    """Seed of the weights, batches, crops and masks."""
    device: str = machine("auto")
    """Device; auto: the first GPU, or the CPU if there is none."""
    num_workers: int = machine(2)
    """Number of threads that decode audio ahead of the step."""
    cache_mib: int = machine(2048)
    """Memory for decoded waveforms, in MiB; and the same again for features of a frozen audio tower."""
    save_every_s: float = machine(60.0)
    """Interval between saved states, in seconds."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        check_seed(self.seed)
        if self.num_examples < self.batch_size:
            raise ValueError(
                f"num_examples (the sample budget) must be at least one batch of {self.batch_size} pairs, "
                f"got {self.num_examples}"
            )
        if self.batch_size < 2:
            raise ValueError(f"a contrastive batch needs at least 2 pairs, got batch_size {self.batch_size}")
        if self.processes < 1 or self.batch_size % self.processes:
            raise ValueError(
                f"batch_size must be a multiple of processes, got batch_size {self.batch_size} and processes "
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
                raise ValueError(f"learns must list parts among {', '.join(get_args(Part))}, got {part!r}")
        if self.selection == "held_out" and (self.held_out == 0 or self.num_evaluations < 1):
            raise ValueError("selection='held_out' needs held_out > 0 and num_evaluations > 0; or use selection='last'")
        if self.order is None and self.selection == "order":
            raise ValueError("selection='order' needs a training on composed groups: set `order`")
        if self.order is not None and self.selection not in ("order", "last"):
            raise ValueError(
                f"a training on composed groups needs selection='order' or 'last', got selection={self.selection!r}"
            )
        if self.selection == "order" and self.num_evaluations < 1:
            raise ValueError("selection='order' needs num_evaluations > 0; or use selection='last'")
        if self.learns and self.frozen_towers:
            raise ValueError("give either `learns` or `frozen_towers`, not both")
        if self.learns and self.adapt != "all":
            raise ValueError("give either `learns` or `adapt`, not both")
        if self.adapt == "lora" and set(self.frozen_towers) == set(get_args(Tower)):
            raise ValueError("adapt: lora needs a tower that is not frozen; or use adapt: projections")
        if len(self.test_prompts) != len(self.test_classes):
            raise ValueError(
                f"expected one prompt for each of {len(self.test_classes)} test_classes, got {len(self.test_prompts)}"
            )

    @property
    def frozen(self) -> tuple[Tower, ...]:
        """Towers that do not learn at all."""
        return get_args(Tower) if self.adapt == "projections" else self.frozen_towers

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
