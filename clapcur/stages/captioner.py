"""Captioner: an audio tower, captioned clips and their tags -> a captioner (BLAT, arXiv 2303.07902).

Inputs by role: ``checkpoint``, a CLAP whose audio tower hears, frozen; ``pairs``, a manifest of clips with captions;
``tags`` of these clips.

The frames of every clip are computed once and kept on disk. The captioner is told no tags in half of the examples, so
that it captions clips that have none, too. Held-out recordings choose the weights; they are those that a training on
the same manifest holds out (`Manifest.held_out`).

Every random choice is a pure function of the seed and the step: a training that was killed and resumed ends with the
weights of one that never stopped (equal to the bit on a CPU).

Payload: the folder of `clapcur.models.captioner.Captioner.save`, ``history.jsonl``; beside it ``times.jsonl``.

Notes
-----
From wsntxxn/AudioCaption: label smoothing, optimiser, peak learning rate, clipping. Left out: scheduled sampling,
weight averaging and the recurrent layers over the frames. Added: a warm-up. The learning rate ends at a tenth of its
peak, there at a thousandth.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clapcur.config import check_seed, frozen, machine
from clapcur.data.manifest import Manifest
from clapcur.data.tags import Tags
from clapcur.errors import CheckpointError, DataError, EmptySetError
from clapcur.methods.caption_scores import cider_d, distinct_share, vocabulary_size
from clapcur.methods.devices import device_name
from clapcur.models.captioner import IGNORED, Captioner, CaptionerConfig
from clapcur.models.clap import evaluating, load_model
from clapcur.models.training_state import StopRequest, TrainingState
from clapcur.progress import progress
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.record import Outcome

BLOCK = 256  # clips whose frames are in one file; ours
MOST_SCORED = 1000  # held-out clips that are captioned for the scores; ours
log = logging.getLogger("clapcur")


@frozen
class CaptionerTraining:
    """The training of a captioner."""

    captioner: CaptionerConfig = CaptionerConfig()
    """Size of the captioner, and what it is told of a clip."""
    num_examples: int = 100_000
    """Sample budget: total number of pairs seen."""
    batch_size: int = 32
    """Pairs per step; as in wsntxxn/AudioCaption."""
    learning_rate: float = 5e-4
    """Peak learning rate of Adam; as in wsntxxn/AudioCaption."""
    final_learning_rate: float = 5e-5
    """Learning rate at the end of its exponential decay. wsntxxn/AudioCaption ends at 5e-7, which decays too fast for
    short budgets."""
    warmup: float = 0.05
    """Fraction of the steps used for linear warm-up."""
    weight_decay: float = 1e-6
    """Weight decay of Adam; as in wsntxxn/AudioCaption."""
    gradient_clip: float = 1.0
    """Maximum gradient norm; as in wsntxxn/AudioCaption."""
    label_smoothing: float = 0.1
    """Fraction of the target that is spread over all words; as in wsntxxn/AudioCaption."""
    untagged: float = 0.5
    """Probability that the captioner is told no tags of an example, so that it also captions clips without tags."""
    held_out: float = 0.1
    """Fraction of the source recordings that is held out and chooses the weights."""
    num_evaluations: int = 10
    """Number of evaluations on the held-out pairs, spread evenly over the steps."""
    seed: int = 0
    """Seed of the weights, batches, dropout and examples without tags."""
    device: str = machine("auto")
    """Device; auto: the first GPU, or the CPU if there is none."""
    num_workers: int = machine(0)
    """Number of threads that decode audio; 0: one per CPU."""
    save_every_s: float = machine(60.0)
    """Interval between saved states, in seconds."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        check_seed(self.seed)
        if not 1 <= self.batch_size <= self.num_examples:
            raise ValueError(
                "num_examples (the sample budget) must be at least one batch, and a batch one pair, got "
                f"{self.num_examples} and batch_size {self.batch_size}"
            )
        for name in ("warmup", "untagged"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}; a percentage?")
        for name in ("held_out", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}; a percentage?")
        if self.held_out == 0 or self.num_evaluations < 1:
            raise ValueError("held-out recordings choose the weights: held_out and num_evaluations must be above 0")
        if not 0 < self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                "expected 0 < final_learning_rate <= learning_rate, got "
                f"{self.final_learning_rate:g} and {self.learning_rate:g}"
            )

    @property
    def num_steps(self) -> int:
        """Optimiser steps in the budget."""
        return self.num_examples // self.batch_size

    @property
    def evaluated_steps(self) -> set[int]:
        """Numbers of steps after which the held-out pairs are evaluated."""
        return {round((i + 1) * self.num_steps / self.num_evaluations) for i in range(self.num_evaluations)} - {0}

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then exponential decay."""
        warmup_steps = math.ceil(self.warmup * self.num_steps)
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        through = (step - warmup_steps) / max(1, self.num_steps - 1 - warmup_steps)
        return float(self.learning_rate * (self.final_learning_rate / self.learning_rate) ** through)


def train_captioner(inputs: Mapping[str, Artifact], config: CaptionerTraining, work: Workspace) -> Outcome:
    """Train a captioner; the payload is its folder and ``history.jsonl``.

    Inputs by role: see `clapcur.stages.captioner`.

    Raises
    ------
    EmptySetError
        No pair to learn from, or none held out.
    DataError
        A clip cannot be read, or the tags are of other clips.
    CheckpointError
        A loss is not finite.
    Interrupted
        The process was told to stop; the state is saved and the next run resumes from it.
    """
    data = _Pairs(inputs, config)
    model = load_model(inputs["checkpoint"].path, config.device)
    words = [data.texts[name] for name in sorted(set(data.learned.caption_id))]
    captioner = Captioner.create(config.captioner, model, words, data.class_names, config.seed)
    del model
    frames = _kept_frames(captioner, data, config, work)
    captioner.decoder.standardise(*frames.statistics([data.row[clip] for clip in sorted(set(data.learned.clip_id))]))
    _train(captioner, data, frames, config, work)
    captioner.eval().save(work.path)
    work.environment["device"] = device_name(captioner.device)
    counts = data.counts | {"vocabulary": len(captioner.tokenizer)}
    tokens = captioner.tokenizer(words, verbose=False)["input_ids"]
    if truncated := sum(len(ids) > config.captioner.max_tokens for ids in tokens):
        counts["truncated_captions"] = truncated
        log.warning(
            "%d of %d captions are longer than max_tokens (%d) and were truncated", truncated, len(words),
            config.captioner.max_tokens,
        )  # fmt: skip
    return Outcome(counts=counts, metrics=data.figures | _scores(captioner, data, frames, config))


class _Pairs:
    """The pairs of a training, with the tag vectors of their clips.

    Parameters
    ----------
    inputs : mapping
    config : CaptionerTraining
    """

    def __init__(self, inputs: Mapping[str, Artifact], config: CaptionerTraining) -> None:
        manifest, tags = Manifest.open(inputs["pairs"]), Tags.open(inputs["tags"])
        known = set(tags.clip_ids)
        pairs = manifest.pairs.sort_values(["clip_id", "caption_id"], ignore_index=True)
        if pairs.empty:
            raise EmptySetError(f"the manifest {inputs['pairs'].id} has no pairs to learn captions from")
        kept = pairs[pairs.clip_id.isin(known)].reset_index(drop=True)
        if kept.empty:
            raise DataError(
                f"none of the {pairs.clip_id.nunique()} captioned clips of the manifest {inputs['pairs'].id} is in the "
                f"tags {inputs['tags'].id}; tag this manifest"
            )
        self.texts = dict(zip(manifest.captions.caption_id, manifest.captions.caption, strict=True))
        self.texts = {name: self.texts[name] for name in sorted(set(kept.caption_id))}
        self.clips, self.paths = sorted(set(kept.clip_id)), manifest.paths
        self.row = {clip: index for index, clip in enumerate(self.clips)}
        self.class_names = tuple(tags.classes.name)
        self.tags_NK = tags.vectors(self.clips, self.class_names, config.captioner.tag_vector)
        is_held_out = kept.clip_id.isin(manifest.held_out(config.held_out))
        self.held_out, self.learned = (kept[is_held_out == side].reset_index(drop=True) for side in (True, False))
        if self.held_out.empty or self.learned.empty:
            raise EmptySetError(
                f"{len(self.learned)} pairs to learn from and {len(self.held_out)} held out; give more recordings, or "
                f"change held_out (now {config.held_out})"
            )
        self.counts = {
            "pairs": len(self.learned), "held_out_pairs": len(self.held_out), "clips": len(self.clips),
            "tagged_clips": int(self.tags_NK.any(axis=1).sum()), "classes": len(self.class_names),
        }  # fmt: skip
        if lacking := pairs.clip_id.nunique() - len(self.clips):
            self.counts["not_in_tags"] = lacking
        self.figures: dict[str, float] = {}


class _Frames:
    """The frames of all clips, in files that are read as they are needed."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._blocks = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]

    def of(self, rows: Sequence[int]) -> Tensor:
        """Return the frames of some clips, shape (N, L, C), by their places among all."""
        return torch.from_numpy(np.stack([self._blocks[row // BLOCK][row % BLOCK] for row in rows]))

    def statistics(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel over the frames of some clips, both of shape (C,)."""
        total, squares, count = 0.0, 0.0, 0
        for row in rows:
            frames_LC = self._blocks[row // BLOCK][row % BLOCK].astype(np.float64)
            total, squares = total + frames_LC.sum(axis=0), squares + (frames_LC**2).sum(axis=0)
            count += len(frames_LC)
        mean_C = np.asarray(total) / count
        deviation_C = np.sqrt(np.maximum(np.asarray(squares) / count - mean_C**2, 0))
        return torch.from_numpy(mean_C).float(), torch.from_numpy(deviation_C).float()


def _kept_frames(captioner: Captioner, data: _Pairs, config: CaptionerTraining, work: Workspace) -> _Frames:
    """Compute the frames of the clips that an earlier run did not; every one is of its file, once."""
    starts = range(0, len(data.clips), BLOCK)
    files = [work.scratch / f"frames-{start // BLOCK:05d}.npy" for start in starts]
    blocks = [data.clips[start : start + BLOCK] for start in starts]
    done = sum(len(block) for block, file in zip(blocks, files, strict=True) if work.is_done(file.stem))
    with StopRequest() as stop, progress("hear", len(data.clips), "clips", done=done) as advance:
        for block, file in zip(blocks, files, strict=True):
            if work.is_done(file.stem):
                continue
            parts, paths = [], [data.paths[clip] for clip in block]
            names = dict(zip(paths, block, strict=True))
            for part in captioner.hear(paths, num_workers=config.num_workers, clip_ids=names):
                parts.append(part.float().cpu().numpy())
                advance(len(part))
                if stop.is_set:
                    stop.leave("stopped while hearing clips; run the same command again to resume")
            np.save(file, np.concatenate(parts))
            work.mark_done(file.stem)
    return _Frames(files)


def _train(captioner: Captioner, data: _Pairs, frames: _Frames, config: CaptionerTraining, work: Workspace) -> None:
    """Take the steps that are left; put the best weights into the captioner."""
    learning = [weight for weight in captioner.decoder.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(learning, lr=config.learning_rate, weight_decay=config.weight_decay)
    state = TrainingState(captioner.decoder, optimiser, work.scratch / "state")
    state.load()
    saved = time.monotonic()
    with StopRequest() as stop, progress("train captioner", config.num_steps, "steps", done=state.step) as advance:
        for step in range(state.step, config.num_steps):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate_at(step)
            captioner.train()
            optimiser.zero_grad(set_to_none=True)
            torch.manual_seed(_draw(config.seed, step))
            pairs = data.learned.iloc[batch_of(step, len(data.learned), config.batch_size, config.seed)]
            loss = _loss(captioner, data, frames, pairs, untagged_of(step, len(pairs), config), config)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(learning, config.gradient_clip)
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise CheckpointError(
                    f"the loss or the gradient of step {step} is not finite; training stopped before changing a "
                    "weight; lower the learning rate"
                )
            optimiser.step()
            state.step = step + 1
            state.note(state.step, {"loss": loss.item(), "gradient_norm": norm.item()}, work.on_step)
            if state.step in config.evaluated_steps:
                measured = _held_out_losses(captioner, data, frames, config)
                state.note(state.step, measured, work.on_step)
                if measured["held_out_loss"] < state.best_loss:
                    state.keep_best(measured["held_out_loss"])
            advance(1, f"loss {loss.item():.3f}")
            if time.monotonic() - saved > config.save_every_s or stop.is_set:
                state.save()
                saved = time.monotonic()
            if stop.is_set and state.step < config.num_steps:
                stop.leave(
                    f"stopped at step {state.step} of {config.num_steps}; the state is saved: run the same command "
                    "again to resume"
                )
    if not state.has_best:
        raise CheckpointError("the loss on held-out pairs was never finite; lower the learning rate")
    state.restore_best()
    state.write_history(work.path)
    data.figures = state.summary()


def batch_of(step: int, num_pairs: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """Return the pairs of a step, shape (B,): each pair once in an epoch, in a new order in each.

    Parameters
    ----------
    step : int
    num_pairs, batch_size : int
    seed : int
        Of the order.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    orders = {
        epoch: np.random.default_rng([seed, epoch]).permutation(num_pairs) for epoch in np.unique(places // num_pairs)
    }
    return np.array([orders[place // num_pairs][place % num_pairs] for place in places], np.int64)


def untagged_of(step: int, num_examples: int, config: CaptionerTraining) -> NDArray[np.bool_]:
    """Return which examples of a step the captioner is told no tags of, shape (B,).

    Parameters
    ----------
    step : int
    num_examples : int
    config : CaptionerTraining
    """
    drawn: NDArray[np.bool_] = np.random.default_rng([config.seed, step, 1]).random(num_examples) < config.untagged
    return drawn


def _loss(
    captioner: Captioner, data: _Pairs, frames: _Frames, pairs: pd.DataFrame, untagged_B: NDArray[np.bool_],
    config: CaptionerTraining,
) -> Tensor:  # fmt: skip
    """Return the smoothed cross-entropy of some pairs, a mean over their tokens, shape ()."""
    rows = [data.row[clip] for clip in pairs.clip_id]
    tags_BK = torch.from_numpy(data.tags_NK[rows] * ~untagged_B[:, None])
    tokens_BS, targets_BS = captioner.tokenize([data.texts[name] for name in pairs.caption_id])
    device = captioner.device
    logits_BSV = captioner.logits(frames.of(rows).to(device), tags_BK.to(device), tokens_BS.to(device))
    return F.cross_entropy(
        logits_BSV.flatten(0, 1).float(), targets_BS.flatten().to(device), ignore_index=IGNORED,
        label_smoothing=config.label_smoothing,
    )  # fmt: skip


def _held_out_losses(
    captioner: Captioner, data: _Pairs, frames: _Frames, config: CaptionerTraining
) -> dict[str, float]:
    """Return the loss on the held-out pairs with tags, without, and of the mix that is learned from."""
    losses = []
    with evaluating(captioner.decoder), torch.no_grad():
        for is_untagged in (False, True):
            total = 0.0
            for start in range(0, len(data.held_out), config.batch_size):
                part = data.held_out.iloc[start : start + config.batch_size]
                told = np.full(len(part), is_untagged)
                total += len(part) * _loss(captioner, data, frames, part, told, config).item()
            losses.append(total / len(data.held_out))
    tagged, untagged = losses
    mixed = (1 - config.untagged) * tagged + config.untagged * untagged
    return {"held_out_loss": mixed, "held_out_loss_tagged": tagged, "held_out_loss_untagged": untagged}


def _scores(captioner: Captioner, data: _Pairs, frames: _Frames, config: CaptionerTraining) -> dict[str, float]:
    """Caption the held-out clips, which chose the weights, with and without their tags, and score the captions."""
    references: dict[str, list[str]] = {}
    for clip, caption in zip(data.held_out.clip_id, data.held_out.caption_id, strict=True):
        references.setdefault(clip, []).append(data.texts[caption])
    rows = [data.row[clip] for clip in list(references)[:MOST_SCORED]]
    figures = {}
    for name, factor in (("tagged", 1), ("untagged", 0)):
        said: list[str] = []
        for start in range(0, len(rows), config.batch_size):
            part = rows[start : start + config.batch_size]
            tags = torch.from_numpy(factor * data.tags_NK[part])
            said += [texts[0] for texts in captioner.generate(frames.of(part), tags)]
        if len(said) >= 2:
            figures[f"cider_d_{name}"] = float(cider_d(said, list(references.values())[:MOST_SCORED]).mean())
        figures |= {f"distinct_{name}": distinct_share(said), f"words_{name}": float(vocabulary_size(said))}
    return figures


def _draw(seed: int, step: int) -> int:
    """Return the seed of the dropout of a step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


STAGE = Stage("captioner", "1", "captioner", train_captioner)
