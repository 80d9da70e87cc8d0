"""The loop: batches in, steps, evaluations, saved states; the best weights out."""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import psutil
import torch

from clapcur.data.compositions import Renderer
from clapcur.errors import CheckpointError
from clapcur.models.adapters import ADAPTER, add_adapters, digest_of, merge_adapters, save_adapter
from clapcur.models.clap import Clap, load_model
from clapcur.models.config import Tower
from clapcur.models.parts import let_learn
from clapcur.models.training_state import StopRequest, TrainingState
from clapcur.progress import progress
from clapcur.stages.train.config import TrainConfig
from clapcur.stages.train.crops import DECODED, Waveforms
from clapcur.stages.train.data import TrainingData, gather_data
from clapcur.stages.train.features import POOLED, AudioFeatures, TextFeatures, is_trunk_frozen
from clapcur.stages.train.ranks import Ranks, first_of
from clapcur.stages.train.sampling import Batch, Mixture
from clapcur.stages.train.selection import (
    held_out_batches,
    held_out_loss,
    held_out_order,
    order_captions,
    test_accuracy,
)
from clapcur.stages.train.step import (
    ContrastiveStep,
    Loaded,
    NotFinite,
    Teacher,
    is_sound,
    not_finite_clips,
    told_clips,
)
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.record import Outcome

MEASURE_EVERY = 10  # steps from one figure of speed and memory to the next


class Training:
    """What every process of a training has, in the state that was saved last.

    Parameters
    ----------
    inputs : mapping
        Artifacts by role.
    config : TrainConfig
    state : Path
        Where the state is saved, without suffix.
    ranks : Ranks
    """

    def __init__(self, inputs: Mapping[str, Artifact], config: TrainConfig, state: Path, ranks: Ranks):
        torch.manual_seed(config.seed)
        self.config, self.ranks = config, ranks
        self.data = gather_data(inputs, config)
        self.model = _initial_model(inputs, config, self.data, ranks.device)
        for tower in config.frozen:
            getattr(self.model, tower).requires_grad_(False)
        learning = let_learn(self.model, config.learns) if config.learns else None
        self.base = digest_of(self.model) if config.adapt != "all" and "init" in inputs else None
        if config.adapt == "lora":
            if self.base is None:
                raise ValueError("adapt: lora needs a checkpoint to start from; a new model has to learn every weight")
            adapted = [tower for tower in get_args(Tower) if tower not in config.frozen]
            learning = add_adapters(self.model, config.lora, adapted, config.seed)
        POOLED.max_bytes = max(POOLED.max_bytes, config.cache_mib * 2**20)
        keeps_audio = is_trunk_frozen(self.model) and not (config.time_masks or config.frequency_masks)
        self.audio = AudioFeatures(self.model, keeps_audio)
        teacher = None
        if config.soft_labels is not None:
            role = "teacher" if "teacher" in inputs else "init"
            if role not in inputs:
                raise CheckpointError("soft labels need a teacher: give the checkpoint `teacher` or `init`")
            frozen = load_model(inputs[role].path, str(ranks.device))
            teacher = Teacher(frozen, self.data.captions, config.soft_labels, keeps_audio)
        optimiser = make_optimiser(self.model, config)
        self.mixture = Mixture(
            self.data.main, self.data.replay, replay_probability=config.replay_probability,
            batch_size=config.batch_size, num_steps=config.num_steps, seed=config.seed,
            num_crops=config.num_crops,
        )  # fmt: skip
        self.waveforms = Waveforms(
            self.data.paths, sample_rate=self.model.config.audio.front_end.sample_rate,
            num_samples=self.model.config.num_samples, cache_mib=config.cache_mib, num_workers=config.num_workers,
            short=self.model.config.short, renderer=_renderer(self.data, self.model),
        )  # fmt: skip
        is_frozen = not any(weight.requires_grad for weight in self.model.text.parameters())
        self.text = TextFeatures(self.model, self.data.captions, is_frozen)
        self.state = TrainingState(self.model, optimiser, state)
        self.state.load()
        self.step = ContrastiveStep(self.model, teacher, self.text, self.audio, optimiser, config, ranks, learning)
        self.step.micro_batch = self.state.micro_batch or self.step.micro_batch
        self.evaluates_first = "init" in inputs and config.selection != "reference"
        self._remember()

    def _remember(self) -> None:
        """Compute again what the steps before the saved state kept of captions, group by group as they did.

        Computed in other groups, the rows would differ in their last bits, and the resumed training from an unbroken
        one.
        """
        if self.step.teacher is None and not self.text.is_frozen:
            return
        for step in range(self.state.step):
            if step == 0 and self.evaluates_first:
                self._remember_held_out()
            self.step.remember(self.mixture.batch(step))
            if step + 1 in self.config.evaluated_steps:
                self._remember_held_out()

    def _remember_held_out(self) -> None:
        if self.ranks.rank != 0:  # the first rank alone evaluates
            return
        if len(self.data.held_out) >= 2:
            for chosen in held_out_batches(self.data.held_out):
                self.text.remember(chosen.caption_id.tolist())
        if self.data.compositions is not None and self.config.order is not None and self.config.selection == "order":
            for captions in order_captions(self.data.compositions, self.config.order.choice_phrasings):
                self.text.remember(captions)

    def batches(self) -> Iterator[tuple[Batch, Loaded]]:
        """Yield the batches that are left, and of each what is this process's."""
        left = range(self.state.step, self.config.num_steps)
        return self.waveforms.ahead((self.mixture.batch(step) for step in left), self._load)

    def take(self, batch: Batch, loaded: Loaded) -> dict[str, float]:
        """Take the step of a batch; every rank meets the same loss, and stops where it is not finite.

        Raises
        ------
        NotFinite
            Loss or gradient are not finite: no weight was changed, and none will be.
        """
        metrics = self.step(batch, loaded)
        if is_sound(metrics):
            return metrics
        own = self.ranks.share(self.config.batch_size)
        suspects = not_finite_clips(self.model, batch.clip_ids[own], loaded.waveform_BT)
        what = "loss" if not math.isfinite(metrics["loss"]) else "gradient"
        raise NotFinite(
            f"the {what} of step {batch.step} is not finite; training stopped before changing a weight; "
            + told_clips(batch.clip_ids, suspects, self.data.paths)
            + "; if no clip is damaged, lower the learning rate or check the soft targets"
        )

    def _load(self, batch: Batch) -> Loaded:
        own = self.ranks.share(self.config.batch_size)
        waveform_BT = self.waveforms.load(batch.clip_ids[own], batch.offsets_B[own])
        loaded = Loaded(waveform_BT, self.text.prepare(batch.caption_ids[own]))
        return loaded.pinned() if self.ranks.device.type == "cuda" else loaded


def train(inputs: Mapping[str, Artifact], config: TrainConfig, work: Workspace) -> Outcome:
    """Train a teacher or a student; the payload is the model folder and ``history.jsonl``.

    With ``adapt: lora`` or ``projections`` there is ``adapter.safetensors`` too: what was learned, without the base
    (`clapcur.models.adapters`).
    Times, speed and memory are in ``times.jsonl`` beside it, which is no payload: equal trainings have equal digests.

    Inputs by role: see `clapcur.stages.train`; a training on order has ``init``, ``compositions`` and the manifests of
    their clips.

    Raises
    ------
    EmptySetError
        Nothing to train on, or nothing held out to select with.
    CheckpointError
        The config's model and the one of the `init` checkpoint differ, a loss or a weight is not finite, one pair does
        not fit the memory, or another process of the training died.
    Interrupted
        The process was told to stop; the state is saved and the next run resumes from it.
    """
    state = work.scratch / "state"
    job = {
        "config": dataclasses.asdict(config), "state": str(state),
        "inputs": {role: dataclasses.asdict(artifact) for role, artifact in inputs.items()},
    }  # fmt: skip
    with first_of(config.processes, config.device, job) as ranks:
        return _lead(Training(inputs, config, state, ranks), work)


def assist(inputs: Mapping[str, Artifact], config: TrainConfig, state: Path, ranks: Ranks) -> None:
    """Compute this rank's share of a training that another process leads.

    Parameters
    ----------
    inputs : mapping of str to Artifact
        By role, those of the stage.
    config : TrainConfig
    state : Path
        As for `Training`.
    ranks : Ranks

    Raises
    ------
    NotFinite
        As `Training.take`.
    """
    training = Training(inputs, config, state, ranks)
    with training.waveforms:
        for batch, loaded in training.batches():
            training.take(batch, loaded)


def _lead(training: Training, work: Workspace) -> Outcome:
    """Take the steps that are left, evaluate, save, report; return what the record says."""
    config, data, model, state = training.config, training.data, training.model, training.state
    device = training.ranks.device

    def check() -> None:
        """Measure what selects, and keep the weights where it is the best so far."""
        loss = math.inf
        if len(data.held_out) >= 2:
            loss = held_out_loss(model, data.held_out, training.text, training.audio, training.waveforms)
            state.note(state.step, {"held_out_loss": loss}, work.on_step)
        if config.selection == "reference":
            accuracy = test_accuracy(model, data.test, config, training.text, training.audio, training.waveforms)
            state.note(state.step, {"test_accuracy": accuracy}, work.on_step)
            loss = -accuracy
        if config.selection == "order":
            assert data.compositions is not None and config.order is not None
            heard = held_out_order(
                model, data.compositions, training.text, training.audio, training.waveforms,
                config.order.choice_phrasings,
            )  # fmt: skip
            state.note(state.step, heard, work.on_step)
            start = state.first("held_out_single")
            keeps = heard["held_out_single"] >= start - config.order.max_single_loss
            loss = -heard["held_out_choice"] if keeps else math.inf
        if loss < state.best_loss:
            state.keep_best(loss)

    if state.step == 0 and training.evaluates_first:
        check()  # a student may be no better than what it started from
    saved = time.monotonic()
    with (
        StopRequest() as stop,
        training.waveforms,
        progress("train", config.num_steps, "steps", done=state.step) as advance,
    ):
        meter = Meter(config.batch_size, device)
        for batch, loaded in training.batches():
            metrics = training.take(batch, loaded)
            state.step = batch.step + 1
            state.micro_batch = training.step.micro_batch
            state.note(state.step, metrics, work.on_step, meter.read(state.step, config.num_steps))
            if state.step in config.evaluated_steps:
                check()
                meter.restart()
            advance(1, f"loss {metrics['loss']:.3f}")
            if time.monotonic() - saved > config.save_every_s or stop.is_set:
                state.save()
                saved = time.monotonic()
            if stop.is_set:
                stop.leave(
                    f"stopped at step {state.step} of {config.num_steps}; the state is saved: run the same command "
                    "again to resume"
                )
    if config.selection != "last":
        if not state.has_best:
            raise CheckpointError("the loss on held-out pairs was never finite; lower the learning rate")
        state.restore_best()
    if training.base is not None:
        save_adapter(model, work.path / ADAPTER, training.base)
        merge_adapters(model)
    model.eval().save(work.path)
    state.write_history(work.path)
    work.environment |= {
        "device": str(device), "micro_batch": training.step.micro_batch,
        "precision": str(training.step.precision).removeprefix("torch."),
    }  # fmt: skip
    seen = training.mixture.examples_seen(config.num_steps)
    return Outcome(
        counts=data.counts | {f"seen.{name}": count for name, count in seen.items()},
        metrics=_chosen(config, state.summary()) | {"logit_scale": model.scale().item()},
    )


def _chosen(config: TrainConfig, figures: dict[str, float]) -> dict[str, float]:
    """Return the figures of a training, with the best one under the name of what chose the weights."""
    if config.selection == "order" and "held_out_loss" in figures:
        figures["held_out_choice"] = -figures.pop("held_out_loss")
    return figures


class Meter:
    """Speed and memory, every few steps.

    Parameters
    ----------
    batch_size : int
        Pairs a step, of all processes.
    device : torch.device
        Whose memory: the most that torch held of a GPU, or the resident memory of this process.
    """

    def __init__(self, batch_size: int, device: torch.device):
        self._batch_size, self._device = batch_size, device
        self.restart()

    def restart(self) -> None:
        """Leave out what happened since the last figure."""
        self._since, self._steps = time.monotonic(), 0

    def read(self, step: int, num_steps: int) -> dict[str, float]:
        """Count a step; return the figures where they are due, else nothing."""
        self._steps += 1
        if step % MEASURE_EVERY and step != num_steps:
            return {}
        speed = self._steps * self._batch_size / (time.monotonic() - self._since)
        self.restart()
        if self._device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self._device)
        else:
            memory = psutil.Process().memory_info().rss
        return {"samples_per_s": speed, "memory_mib": memory / 2**20}


def _renderer(data: TrainingData, model: Clap) -> Renderer | None:
    """Return what renders the composed items of a training.

    Raises
    ------
    CheckpointError
        They are longer than the model's window: cut, a sequence may lose one of its sounds.
    """
    if data.compositions is None:
        return None
    duration_s, window_s = data.compositions.duration_s, model.config.window_s
    if round(duration_s * model.config.audio.front_end.sample_rate) > model.config.num_samples:
        raise CheckpointError(
            f"the composed items are {duration_s:g} s long, but the window of the checkpoint is {window_s:g} s; "
            "compose "
            f"them with duration_s of at most {window_s:g}"
        )
    return Renderer(data.compositions, data.paths, DECODED)


def _initial_model(
    inputs: Mapping[str, Artifact], config: TrainConfig, data: TrainingData, device: torch.device
) -> Clap:
    if "init" in inputs:
        model = load_model(inputs["init"].path, str(device))
        if config.model is not None and config.model != model.config:
            raise CheckpointError(
                f"`model` in the config differs from the checkpoint {inputs['init'].id} to start from; omit `model` to "
                "use the checkpoint's"
            )
        if config.order is not None and config.order.add_head is not None:
            if model.config.audio.order_head is None:  # the stage before may have added it
                model = model.with_order_head(config.order.add_head, config.seed)
            elif model.config.audio.order_head != config.order.add_head:
                raise CheckpointError(
                    f"the order head of the checkpoint {inputs['init'].id} differs from add_head; omit add_head"
                )
        return model
    if config.model is None:
        raise ValueError("a training without an `init` checkpoint needs a `model` config")
    return Clap.create(config.model, captions=sorted(data.captions.values()), seed=config.seed).to(device)


def make_optimiser(model: Clap, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the config's optimiser of all weights that learn."""
    learning = [p for p in model.parameters() if p.requires_grad]
    is_fused = model.logit_scale.device.type == "cuda"  # one launch for all weights; on a CPU it gains 1 % at most
    if config.optimiser == "adam":
        return torch.optim.Adam(learning, lr=config.learning_rate, fused=is_fused)
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=is_fused)


STAGE = Stage("train", "2", "checkpoint", train)
