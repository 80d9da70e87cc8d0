"""Train: ONE loop for teacher and student; the loss and the mix of data are configuration.

- A teacher starts from fresh weights and sees the pairs of a manifest with hard targets (Eq. 1).
- A student starts from the teacher and sees an Improvement-Set, with replay, hard or soft targets (Eqs. 2-5).

Every random choice is a pure function of the seed and the step, so a training that was killed and resumed ends with
the weights of one that never stopped (equal to the bit on a CPU). The held-out pairs, grouped by recording, are in no
batch; they choose the checkpoint. The test set is never looked at.

Inputs by role: ``teacher_pairs`` (manifest) always; ``init`` (checkpoint) for a student; ``improvement_set`` with the
``pool`` and ``captions`` manifests its ids point to; ``replay`` (an improvement_set, such as DS) where replay is not
over all teacher pairs; ``teacher`` (checkpoint) where the soft targets come from another model than ``init``;
``evaluation`` (manifest) with ``selection="reference"`` alone, where the test set chooses.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from clapcur.artifacts import Artifact, Stage, Workspace
from clapcur.class_names import readable
from clapcur.config import frozen, machine
from clapcur.errors import CheckpointError, DataError, EmptySetError
from clapcur.losses import SoftForm, hard_target, soft_contrastive_loss, soft_targets, target_statistics
from clapcur.manifest import Manifest
from clapcur.mixing import Batch, Mixture, PairSource
from clapcur.models.clap import Clap, ClapConfig, load_model, pick_device
from clapcur.progress import progress
from clapcur.training_state import StopRequest, TrainingState
from clapcur.waveforms import Waveforms

MAX_SKIPPED_IN_A_ROW = (
    3  # as the reference code: a step with a non-finite loss is skipped, the fourth in a row is fatal
)
HELD_OUT_BATCH = 256


@frozen
class SoftLabels:
    """Soft targets from the teacher's similarities (Eqs. 3-4); `clapcur.losses.soft_targets` explains the forms."""

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
        if self.num_examples < self.batch_size:
            raise ValueError(
                f"num_examples is the budget of pairs and must be at least one batch of {self.batch_size}, "
                f"got {self.num_examples}"
            )
        if self.batch_size < 2:
            raise ValueError(f"a contrastive batch needs at least 2 pairs, got batch_size {self.batch_size}")
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


@dataclass
class TrainingData:
    """Everything a step reads: sources of pairs, texts, and where the clips lie."""

    main: PairSource
    replay: PairSource | None
    held_out: pd.DataFrame  # clip_id, caption_id
    test: pd.DataFrame  # clip_id, label; empty unless the test set chooses
    captions: dict[str, str]  # caption_id -> text
    paths: dict[str, str]  # clip_id -> address
    counts: dict[str, int] = field(default_factory=dict)


def gather_data(inputs: Mapping[str, Artifact], config: TrainConfig) -> TrainingData:
    """Open the manifests and Improvement-Sets, and keep the held-out recordings out of all of them."""
    roles = ("teacher_pairs", "pool", "captions", "evaluation")
    manifests = [Manifest.open(inputs[role]) for role in roles if role in inputs]
    teacher_pairs = manifests[0]
    held_out_clips = teacher_pairs.held_out(config.held_out)
    held_out_captions = teacher_pairs.pairs[teacher_pairs.pairs.clip_id.isin(held_out_clips)]

    def source(role: str) -> PairSource:
        pairs = teacher_pairs.pairs if role == "teacher_pairs" else pd.read_parquet(inputs[role].path / "pairs.parquet")
        kept = pairs[~pairs.clip_id.isin(held_out_clips)]
        balance = config.balance if role == "improvement_set" else None
        return PairSource(kept, name=role, seed=config.seed, balance=balance)

    main = source("improvement_set" if "improvement_set" in inputs else "teacher_pairs")
    replay = None
    if "improvement_set" in inputs and config.replay_probability > 0:
        replay = source("replay" if "replay" in inputs else "teacher_pairs")
    if config.selection == "held_out" and len(held_out_captions) < 2:
        raise EmptySetError(
            f"only {len(held_out_captions)} held-out pairs to select a checkpoint with; raise held_out (now "
            f"{config.held_out}) or take selection='last'"
        )
    data = TrainingData(
        main,
        replay,
        held_out_captions.reset_index(drop=True),
        _test_clips(inputs, config),
        {key: text for m in manifests for key, text in zip(m.captions.caption_id, m.captions.caption, strict=True)},
        {clip: path for m in manifests for clip, path in m.paths.items()},
        {f"{s.name}_pairs": len(s.pairs) for s in (main, replay) if s} | {"held_out_pairs": len(held_out_captions)},
    )
    for used in (main, replay):
        if used is None:
            continue
        if missing := set(used.pairs.clip_id) - set(data.paths) | set(used.pairs.caption_id) - set(data.captions):
            raise DataError(
                f"{len(missing)} clips or captions of {used.name!r} are in none of the given manifests, the first is "
                f"{min(missing)}; give the pool and the captions that the set was curated from"
            )
    return data


def _test_clips(inputs: Mapping[str, Artifact], config: TrainConfig) -> pd.DataFrame:
    """Return the labelled clips that choose the weights; none unless the test set does."""
    if config.selection != "reference":
        return pd.DataFrame()
    if "evaluation" not in inputs or not config.test_classes:
        raise ValueError("selection='reference' needs the input `evaluation`, and test_classes with test_prompts")
    return Manifest.open(inputs["evaluation"]).clips[["clip_id", "label"]]


class TextFeatures:
    """The text side of a step: through the tower, or from a table where the tower is frozen.

    A frozen text encoder gives the same features whenever a caption comes up, so they are computed once.
    """

    def __init__(self, model: Clap, captions: Mapping[str, str], is_frozen: bool):
        self.model, self.captions, self.is_frozen = model, captions, is_frozen
        self._table: dict[str, torch.Tensor] = {}

    def encode(self, caption_ids: list[str]) -> torch.Tensor:
        """Return unit rows, shape (B, D), with a gradient where there is something to learn."""
        if not self.is_frozen:
            return self.model.encode_text([self.captions[name] for name in caption_ids])
        if new := sorted({name for name in caption_ids if name not in self._table}):
            with torch.no_grad():
                was_training = self.model.text.training
                self.model.text.eval()
                features = self.model.text_features([self.captions[name] for name in new])
                self.model.text.train(was_training)
            self._table.update(zip(new, features, strict=True))
        return self.model.project_text(torch.stack([self._table[name] for name in caption_ids]))


class Teacher:
    """The frozen model whose similarities soften the targets (Eqs. 3-4), in evaluation mode, on the same crops."""

    def __init__(self, model: Clap, captions: Mapping[str, str], labels: SoftLabels):
        self.model, self.labels = model.eval().requires_grad_(False), labels
        self._captions = captions
        self._text: dict[str, torch.Tensor] = {}

    def targets(
        self, logmel: torch.Tensor, caption_ids: list[str], hard: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the targets of both directions, each of shape (B, B)."""
        with torch.no_grad():
            audio = self.model.encode_logmel(logmel)
            if new := sorted({name for name in caption_ids if name not in self._text}):
                self._text.update(zip(new, self.model.encode_text([self._captions[name] for name in new]), strict=True))
            text = torch.stack([self._text[name] for name in caption_ids])
            labels = self.labels
            return soft_targets(labels.form, audio, text, beta=labels.beta, temperature=labels.temperature, hard=hard)


def train(inputs: Mapping[str, Artifact], config: TrainConfig, work: Workspace) -> dict[str, Any]:
    """Train a teacher or a student; the payload is the model folder and ``history.jsonl``.

    Raises
    ------
    EmptySetError
        Nothing to train on, or nothing held out to select with.
    CheckpointError
        The config's model and the one of the `init` checkpoint differ, or the loss stayed non-finite.
    Interrupted
        The process was told to stop; the state is saved and the next run goes on from it.
    """
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    data = gather_data(inputs, config)
    model = _initial_model(inputs, config, data, device)
    for tower in config.frozen_towers:
        getattr(model, tower).requires_grad_(False)
    teacher = None
    if config.soft_labels is not None:
        role = "teacher" if "teacher" in inputs else "init"
        if role not in inputs:
            raise CheckpointError("soft labels come from a teacher: give the checkpoint `teacher` or `init`")
        teacher = Teacher(load_model(inputs[role].path, config.device), data.captions, config.soft_labels)
    optimiser = _optimiser(model, config)
    mixture = Mixture(
        data.main, data.replay, replay_probability=config.replay_probability, batch_size=config.batch_size,
        num_steps=config.num_steps, seed=config.seed,
    )  # fmt: skip
    waveforms = Waveforms(
        data.paths, sample_rate=model.config.audio.front_end.sample_rate, num_samples=model.config.num_samples,
        cache_mib=config.cache_mib, num_workers=config.num_workers, short=model.config.short,
    )  # fmt: skip
    text = TextFeatures(model, data.captions, "text" in config.frozen_towers)
    state = TrainingState(model, optimiser, work.scratch / "state")
    state.load()
    evaluate_at = (
        {round((i + 1) * config.num_steps / config.num_evaluations) for i in range(config.num_evaluations)}
        if config.num_evaluations
        else set()
    )

    def check() -> None:
        """Measure what selects, and keep the weights where it is the best so far."""
        loss = math.inf
        if len(data.held_out) >= 2:
            loss = held_out_loss(model, data.held_out, text, waveforms, device)
            state.note(state.step, {"held_out_loss": loss}, work.on_step)
        if config.selection == "reference":
            accuracy = test_accuracy(model, data.test, config, waveforms, device)
            state.note(state.step, {"test_accuracy": accuracy}, work.on_step)
            loss = -accuracy
        if loss < state.best_loss:
            state.keep_best(loss)

    if state.step == 0 and "init" in inputs and config.selection != "reference":
        check()  # a student may be no better than what it started from
    saved = time.monotonic()
    with (
        StopRequest() as stop,
        waveforms,
        progress("train", config.num_steps, "steps", done=state.step) as advance,
    ):
        batches = waveforms.ahead(mixture.batch(step) for step in range(state.step, config.num_steps))
        for batch, waveform_BT in batches:
            metrics = training_step(model, teacher, text, optimiser, batch, waveform_BT.to(device), config)
            state.step = batch.step + 1
            state.skipped = 0 if math.isfinite(metrics["loss"]) else state.skipped + 1
            if state.skipped > MAX_SKIPPED_IN_A_ROW:
                raise CheckpointError(
                    f"the loss was not finite for {state.skipped} steps in a row (now step {state.step}); "
                    "lower the learning rate or look at the soft targets"
                )
            state.note(state.step, metrics, work.on_step)
            if state.step in evaluate_at:
                check()
            advance(1, f"loss {metrics['loss']:.3f}")
            if time.monotonic() - saved > config.save_every_s or stop.is_set:
                state.save()
                saved = time.monotonic()
            if stop.is_set:
                stop.leave(
                    f"stopped at step {state.step} of {config.num_steps}; the state is saved, run again to go on"
                )
    if config.selection != "last":
        state.restore_best()
    model.eval().save(work.path)
    state.write_history(work.path / "history.jsonl")
    work.environment["device"] = str(device)
    return {
        "counts": data.counts
        | {f"seen.{name}": seen for name, seen in mixture.examples_seen(config.num_steps).items()},
        "metrics": state.summary() | {"logit_scale": model.scale().item()},
    }


def training_step(
    model: Clap, teacher: Teacher | None, text: TextFeatures, optimiser: torch.optim.Optimizer, batch: Batch,
    waveform_BT: torch.Tensor, config: TrainConfig,
) -> dict[str, float]:  # fmt: skip
    """Take one optimiser step and return what is worth a curve."""
    torch.manual_seed(_step_seed(config.seed, batch.step))  # dropout and masks of a step are the same in every run
    model.train()
    for tower in config.frozen_towers:
        getattr(model, tower).eval()
    rate = config.learning_rate_at(batch.step)
    for group in optimiser.param_groups:
        group["lr"] = rate
    with torch.no_grad():
        logmel = model.front_end(waveform_BT)
    with torch.autocast(waveform_BT.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        audio_BD = model.encode_logmel(mask(logmel, config.time_masks, config.frequency_masks))
        text_BD = text.encode(batch.caption_ids)
        hard = hard_target(batch.caption_ids, batch.clip_ids, form=config.hard_target).to(waveform_BT.device)
        targets = (hard, hard) if teacher is None else teacher.targets(logmel, batch.caption_ids, hard)
    logits = model.scale() * audio_BD.float() @ text_BD.float().T
    loss = soft_contrastive_loss(logits, *targets)
    metrics = {"loss": loss.item(), "learning_rate": rate, "logit_scale": model.scale().item()}
    optimiser.zero_grad(set_to_none=True)
    if not math.isfinite(metrics["loss"]):
        return metrics
    loss.backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    metrics["gradient_norm"] = torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip).item()
    if teacher is not None:
        metrics |= {f"target.{name}": value for name, value in target_statistics(targets[0]).items()}
    optimiser.step()
    model.clamp_logit_scale_()
    return metrics


def held_out_loss(
    model: Clap, pairs: pd.DataFrame, text: TextFeatures, waveforms: Waveforms, device: torch.device
) -> float:
    """Return the contrastive loss on the held-out pairs, in nats: centre crops, evaluation mode, fixed batches.

    Pairs with the same caption or clip share the target, so that a set poor in captions does not punish a model for
    finding both.
    """
    was_training = model.training
    model.eval()
    total = 0.0
    shuffled = pairs.sample(frac=1.0, random_state=0)
    with torch.inference_mode():
        num_batches = math.ceil(len(shuffled) / HELD_OUT_BATCH)
        for rows in np.array_split(np.arange(len(shuffled)), num_batches):
            chosen = shuffled.iloc[rows]
            waveform = waveforms.load(chosen.clip_id.tolist(), np.full(len(chosen), 0.5)).to(device)
            audio, caption = model.encode_audio(waveform), text.encode(chosen.caption_id.tolist())
            target = hard_target(chosen.caption_id.tolist(), chosen.clip_id.tolist(), form="identical").to(device)
            total += soft_contrastive_loss(model.scale() * audio @ caption.T, target, target).item() * len(rows)
    model.train(was_training)
    return total / len(shuffled)


def test_accuracy(
    model: Clap, clips: pd.DataFrame, config: TrainConfig, waveforms: Waveforms, device: torch.device
) -> float:
    """Return the zero-shot accuracy on clips (clip_id, label): centre crops, evaluation mode."""
    was_training = model.training
    model.eval()
    labels, right = [readable(name) for name in config.test_classes], 0
    with torch.inference_mode():
        prompts_KD = model.encode_text(config.test_prompts)
        for start in range(0, len(clips), HELD_OUT_BATCH):
            part = clips.iloc[start : start + HELD_OUT_BATCH]
            waveform = waveforms.load(part.clip_id.tolist(), np.full(len(part), 0.5)).to(device)
            best = (model.encode_audio(waveform) @ prompts_KD.T).argmax(dim=1).tolist()
            right += sum(labels[index] == readable(label) for index, label in zip(best, part.label, strict=True))
    model.train(was_training)
    return right / len(clips)


def mask(logmel_BFM: torch.Tensor, time_masks: int, frequency_masks: int) -> torch.Tensor:
    """Blank random stretches of frames and mel bins with the clip's mean (SpecAugment, arXiv 1904.08779)."""
    if not time_masks and not frequency_masks:
        return logmel_BFM
    hidden = torch.zeros_like(logmel_BFM, dtype=torch.bool)
    for axis, count in ((1, time_masks), (2, frequency_masks)):
        size = logmel_BFM.shape[axis]
        place = torch.arange(size, device=logmel_BFM.device)
        for _ in range(count):
            width = (torch.rand(len(logmel_BFM), 1) * size / 8).to(logmel_BFM.device)
            start = torch.rand(len(logmel_BFM), 1).to(logmel_BFM.device) * (size - width)
            covered = (place >= start) & (place < start + width)
            hidden |= covered.unsqueeze(2) if axis == 1 else covered.unsqueeze(1)
    return torch.where(hidden, logmel_BFM.mean(dim=(1, 2), keepdim=True), logmel_BFM)


def _initial_model(
    inputs: Mapping[str, Artifact], config: TrainConfig, data: TrainingData, device: torch.device
) -> Clap:
    if "init" in inputs:
        model = load_model(inputs["init"].path, config.device)
        if config.model is not None and config.model != model.config:
            raise CheckpointError(
                f"the config describes another model than the checkpoint {inputs['init'].id} it should start from; "
                "leave `model` out to take the checkpoint's"
            )
        return model
    if config.model is None:
        raise ValueError("a training without an `init` checkpoint needs a `model` config")
    return Clap.create(config.model, captions=sorted(data.captions.values()), seed=config.seed).to(device)


def _optimiser(model: Clap, config: TrainConfig) -> torch.optim.Optimizer:
    learning = [p for p in model.parameters() if p.requires_grad]
    if config.optimiser == "adam":
        return torch.optim.Adam(learning, lr=config.learning_rate)
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


STAGE = Stage("train", "1", "checkpoint", train)
