"""One optimiser step: features by the micro-batch, loss over the whole batch, of all processes that share it.

The contrastive loss needs the embeddings of every pair at once, the towers do not. So a step goes

1. forward through the towers, micro-batch by micro-batch; with more than one, nothing is kept but the embeddings,
2. the loss and its gradient with respect to the embeddings of the whole batch,
3. back through the towers, micro-batch by micro-batch, each forward pass repeated with the same dropout and masks.

Loss and gradient are those of the whole batch, at the memory of one micro-batch and a third more work (Gao et al. 2021,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv:2101.06983). Only batch norm tells the
difference: its statistics are those of a micro-batch.

Shapes: N pairs in the batch, B of them this process's, T samples, D embedding.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clapcur.errors import CheckpointError
from clapcur.methods.devices import pick_precision
from clapcur.methods.losses import contrastive_loss_of_rows, hard_target, soft_targets, target_statistics
from clapcur.methods.temporal_losses import shared_event_target, temporal_log_weights
from clapcur.models.clap import Clap
from clapcur.models.order_head import Pooled
from clapcur.stages.train.config import SoftLabels, TrainConfig
from clapcur.stages.train.features import AudioFeatures, TextFeatures, Tokens, encode_heard
from clapcur.stages.train.ranks import Ranks
from clapcur.stages.train.sampling import Batch

SHOWN_CLIPS = 256  # of a batch in a message; any batch that people train on a few GPUs with
log = logging.getLogger("clapcur")


@dataclass(frozen=True)
class Loaded:
    """What the pairs of this process consist of, on the host; pinned where a GPU will want it."""

    waveform_BT: Tensor
    tokens: Tokens | None  # None where a table has the text features

    def pinned(self) -> "Loaded":
        """Return the same in memory that a GPU copies from while the host continues."""
        tokens = self.tokens and {name: values.pin_memory() for name, values in self.tokens.items()}
        return Loaded(self.waveform_BT.pin_memory(), tokens)


class Teacher:
    """The frozen model whose similarities soften the targets (Eqs. 3-4), in evaluation mode, on the same crops.

    A caption is embedded once, as nothing about it is random.

    Parameters
    ----------
    model : Clap
    captions : mapping
        caption_id -> text.
    labels : SoftLabels
    caches_audio : bool
        Take the features of its audio tower from memory; worth it where the same crops come again.
    """

    def __init__(self, model: Clap, captions: Mapping[str, str], labels: SoftLabels, caches_audio: bool = False):
        self.model, self.labels = model.eval().requires_grad_(False), labels
        self.audio = AudioFeatures(model, caches_audio)
        self._captions = captions
        self._text: dict[str, Tensor] = {}

    @torch.no_grad()
    def remember(self, caption_ids: Sequence[str]) -> None:
        """Embed those captions that were not met before."""
        if new := sorted({name for name in caption_ids if name not in self._text}):
            self._text.update(zip(new, self.model.encode_text([self._captions[name] for name in new]), strict=True))

    @torch.no_grad()
    def targets(
        self, heard: Sequence[Tensor | Pooled], caption_ids: list[str], hard_NN: Tensor, ranks: Ranks
    ) -> tuple[Tensor, Tensor]:
        """Return this process's rows of the targets of both directions, each of shape (B, N).

        Parameters
        ----------
        heard : sequence of Tensor or Pooled
            Of this process's clips, a micro-batch each: what `AudioFeatures.inputs` gives.
        caption_ids : list of str, length B
        hard_NN : Tensor, shape (N, N)
        ranks : Ranks
        """
        audio_BD = torch.cat([encode_heard(self.model, part) for part in heard])
        self.remember(caption_ids)
        text_BD = torch.stack([self._text[name] for name in caption_ids])
        labels = self.labels
        return soft_targets(
            labels.form, ranks.gather(audio_BD), ranks.gather(text_BD), beta=labels.beta,
            temperature=labels.temperature, hard=hard_NN, rows=ranks.share(len(hard_NN)),
        )  # fmt: skip


class Towers(nn.Module):
    """All that learns, as one function: what is heard and text to embeddings, and the scale."""

    def __init__(self, model: Clap):
        super().__init__()
        self.model = model

    def forward(self, heard: Tensor | Pooled, text: Tokens | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return audio and text rows, shape (B, D) each, and the scale of their similarities, shape ()."""
        audio_BD = encode_heard(self.model, heard)
        text_BD = self.model.project_text(text) if isinstance(text, Tensor) else self.model.encode_text(text)
        return audio_BD, text_BD, self.model.scale()


class ContrastiveStep:
    """Takes optimiser steps.

    Where the device runs out of memory the micro-batch is halved, which is said, and the step taken again.

    Parameters
    ----------
    model : Clap
    teacher : Teacher or None
        None: hard targets.
    text : TextFeatures
        Of `model`.
    audio : AudioFeatures
        Of `model`.
    optimiser : torch.optim.Optimizer
    config : TrainConfig
    ranks : Ranks
    learning : sequence of Module, optional
        All that is in training mode during a step; the whole model but the frozen towers where not given.
    """

    def __init__(
        self, model: Clap, teacher: Teacher | None, text: TextFeatures, audio: AudioFeatures,
        optimiser: torch.optim.Optimizer, config: TrainConfig, ranks: Ranks,
        learning: Sequence[nn.Module] | None = None,
    ):  # fmt: skip
        self.model, self.teacher, self.text, self.audio, self.optimiser = model, teacher, text, audio, optimiser
        self.config, self.ranks = config, ranks
        self.precision = pick_precision(config.precision, ranks.device)
        self.micro_batch = min(config.micro_batch or config.batch_size, config.batch_size // ranks.size)
        self.towers: Any = ranks.wrap(Towers(model))
        self._parameters = [p for group in optimiser.param_groups for p in group["params"]]
        self._learning = learning

    def __call__(self, batch: Batch, loaded: Loaded) -> dict[str, float]:
        """Take the step of a batch and return what is worth a curve.

        A loss or gradient that is not finite changes no weight.

        Raises
        ------
        CheckpointError
            The device ran out of memory and the micro-batch cannot be halved.
        """
        self.model.train(self._learning is None)
        for module in self._learning or ():
            module.train()
        for tower in self.config.frozen:
            getattr(self.model, tower).eval()
        rate = self.config.learning_rate_at(batch.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        found = self._gradients_that_fit(batch, loaded)
        # The one place of a step where the host waits for the device.
        values = dict(zip(found, torch.stack([value.float() for value in found.values()]).tolist(), strict=True))
        if is_sound(values):
            self.optimiser.step()
            self.model.clamp_logit_scale_()
        return {"loss": values.pop("loss"), "learning_rate": rate, **values}

    def remember(self, batch: Batch) -> None:
        """Compute what a step keeps of its captions, in the same groups, without taking the step.

        The last bits of a row depend on the rows that are computed with it.
        """
        caption_ids = batch.caption_ids[self.ranks.share(self.config.batch_size)]
        for part in self._parts(caption_ids):
            self.text.remember(caption_ids[part])
        if self.teacher is not None:
            self.teacher.remember(caption_ids)

    def _parts(self, caption_ids: Sequence[str]) -> list[slice]:
        """Return where the micro-batches of this process's pairs begin and end."""
        return [slice(start, start + self.micro_batch) for start in range(0, len(caption_ids), self.micro_batch)]

    def _gradients_that_fit(self, batch: Batch, loaded: Loaded) -> dict[str, Tensor]:
        while True:
            put_back = _remembered(self.model)
            try:
                return self._gradients(batch, loaded, put_back)
            except torch.OutOfMemoryError as error:
                if self.ranks.size > 1 or self.micro_batch == 1:
                    raise CheckpointError(
                        f"step {batch.step} does not fit in the memory of {self.ranks.device} with micro-batches of "
                        f"{self.micro_batch} pairs; lower micro_batch, or use a shorter window: {error}"
                    ) from error
            # Only here has the traceback let go of the activations.
            put_back()
            if self.ranks.device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro_batch = math.ceil(self.micro_batch / 2)
            log.warning(
                "out of memory on %s in step %d: continuing with micro-batches of %d pairs; set micro_batch to this "
                "value to use it in all steps", self.ranks.device, batch.step, self.micro_batch,
            )  # fmt: skip

    def _gradients(self, batch: Batch, loaded: Loaded, put_back: Callable[[], None]) -> dict[str, Tensor]:
        """Put the gradient of the whole batch into the weights; return the figures of the step."""
        self.optimiser.zero_grad(set_to_none=True)
        config, ranks, device = self.config, self.ranks, self.ranks.device
        own = ranks.share(config.batch_size)
        caption_ids = batch.caption_ids[own]
        parts = self._parts(caption_ids)
        heard = [self.audio.inputs(loaded.waveform_BT[part]) for part in parts]

        def forward(index: int) -> tuple[Tensor, Tensor, Tensor]:
            torch.manual_seed(draws_of(config.seed, batch.step, ranks.rank * len(parts) + index))
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
                audio = heard[index]
                if (config.time_masks or config.frequency_masks) and isinstance(audio, Tensor):
                    audio = mask(audio, config.time_masks, config.frequency_masks)
                made: tuple[Tensor, Tensor, Tensor] = self.towers(
                    audio, self.text.inputs(caption_ids, loaded.tokens, parts[index])
                )
                return made

        hard_NN, log_weights_NN = self._hard_target(batch)
        is_whole = len(parts) == 1
        with torch.set_grad_enabled(is_whole):
            made = [forward(index) for index in range(len(parts))]
        if not is_whole:
            put_back()  # the statistics take their step in the second pass
        audio_BD, text_BD = (torch.cat([rows[side] for rows in made]).detach().requires_grad_() for side in (0, 1))
        scale = made[0][2].detach().requires_grad_()
        if self.teacher is None or batch.groups is not None:  # a composed pair is right by construction
            targets = hard_NN[own], hard_NN[own]
        else:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
                targets = self.teacher.targets(self._taught(loaded, parts, heard), caption_ids, hard_NN, ranks)
        audio_logits_BN = scale * audio_BD @ ranks.gather(text_BD).T
        text_logits_BN = audio_logits_BN.T if ranks.size == 1 else scale * text_BD @ ranks.gather(audio_BD).T
        if log_weights_NN is not None:  # symmetric: the rows of one direction are those of the other
            audio_logits_BN, text_logits_BN = (
                logits + log_weights_NN[own] for logits in (audio_logits_BN, text_logits_BN)
            )
        loss = contrastive_loss_of_rows(audio_logits_BN, text_logits_BN, *targets)
        # The ranks' losses add up to the batch's, but their gradients of the weights are averaged.
        gradients = [ranks.size * g for g in torch.autograd.grad(loss, (audio_BD, text_BD, scale))]

        for index, part in enumerate(parts):
            is_last = index == len(parts) - 1
            waits = isinstance(self.towers, DistributedDataParallel) and not is_last
            with self.towers.no_sync() if waits else nullcontext():
                rows = made[0] if is_whole else forward(index)
                count = 3 if is_last else 2  # the scale's gradient is of the batch, not of a part
                upstream = [gradients[0][part], gradients[1][part], gradients[2]]
                pairs = zip(rows[:count], upstream[:count], strict=True)
                learned = [(row, gradient) for row, gradient in pairs if row.requires_grad]
                torch.autograd.backward([row for row, _ in learned], [gradient for _, gradient in learned])

        is_soft = self.teacher is not None and batch.groups is None
        statistics = target_statistics(targets[0], own) if is_soft else {}
        totals = ranks.total(torch.stack([loss, *(value / ranks.size for value in statistics.values())]))
        return {
            "loss": totals[0],
            "logit_scale": scale.detach(),
            "gradient_norm": nn.utils.clip_grad_norm_(self._parameters, config.gradient_clip),
            **{f"target.{name}": total for name, total in zip(statistics, totals[1:], strict=True)},
        }

    def _taught(self, loaded: Loaded, parts: list[slice], heard: list[Tensor | Pooled]) -> list[Tensor | Pooled]:
        """Return what the teacher hears of the same crops: the same frames, or what its own trunk made of them."""
        assert self.teacher is not None
        if not self.teacher.audio.is_frozen:
            return heard
        return [self.teacher.audio.inputs(loaded.waveform_BT[part]) for part in parts]

    def _hard_target(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the target that nobody softens, shape (N, N), and log weights where the pairs have some."""
        config, groups, device = self.config, batch.groups, self.ranks.device
        if groups is None or config.order is None:
            return hard_target(batch.caption_ids, batch.clip_ids, form=config.hard_target, device=device), None
        hard_NN = hard_target(groups.meanings, batch.clip_ids, form="identical", device=device)
        if groups.stage == "a":
            return shared_event_target(hard_NN, groups.events, config.order.softness), None
        codes = (torch.from_numpy(codes_N).to(device) for codes_N in (groups.group_codes_N, groups.kind_codes_N))
        order = config.order
        return hard_NN, temporal_log_weights(*codes, alpha_same=order.alpha_same, alpha_cross=order.alpha_cross)


class NotFinite(CheckpointError):
    """A loss is not finite; every process of a training meets it at the same step, and the first one tells it."""


@torch.no_grad()
def not_finite_clips(model: Clap, clip_ids: Sequence[str], waveform_BT: Tensor) -> list[str]:
    """Return the clips that a model hears as NaN or infinity, whatever its weights are: to name a culprit.

    Parameters
    ----------
    model : Clap
    clip_ids : sequence of str
        B of them.
    waveform_BT : Tensor, shape (B, T)

    Returns
    -------
    list of str
        Each clip once.
    """
    spoilt = []
    for clip, waveform_T in zip(clip_ids, waveform_BT, strict=True):
        logmel = model.front_end(waveform_T[None].to(model.logit_scale.device))
        if not (torch.isfinite(waveform_T).all() and torch.isfinite(logmel).all()):
            spoilt.append(clip)
    return list(dict.fromkeys(spoilt))


def told_clips(clip_ids: Sequence[str], suspects: Sequence[str], paths: Mapping[str, str]) -> str:
    """Return the clips of a batch by path for a message, those that are to blame first.

    Parameters
    ----------
    clip_ids : sequence of str
        Of the batch.
    suspects : sequence of str
        Those that are to blame; none where nobody knows.
    paths : mapping of str to str
        Addresses by clip id.
    """
    others = [clip for clip in dict.fromkeys(clip_ids) if clip not in suspects]
    shown = [paths.get(clip, clip) for clip in others[:SHOWN_CLIPS]]
    rest = f" and {len(others) - SHOWN_CLIPS} more" if len(others) > SHOWN_CLIPS else ""
    if not suspects:
        return f"its clips are {', '.join(shown)}{rest}"
    blamed = ", ".join(paths.get(clip, clip) for clip in suspects)
    return f"not finite in the model's input: {blamed}; the other clips of the batch: {', '.join(shown)}{rest}"


def is_sound(metrics: Mapping[str, float]) -> bool:
    """Return whether loss and gradient of a step are finite."""
    return math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"])


def _remembered(model: nn.Module) -> Callable[[], None]:
    """Return what puts the buffers, such as running statistics, back to where they are now."""
    before = [buffer.clone() for buffer in model.buffers()]

    def put_back() -> None:
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)

    return put_back


def mask(logmel_BFM: Tensor, time_masks: int, frequency_masks: int) -> Tensor:
    """Blank random stretches of frames and mel bins with the clip's mean (SpecAugment, arXiv 1904.08779).

    Parameters
    ----------
    logmel_BFM : Tensor, shape (B, F, M)
    time_masks, frequency_masks : int
        Stretches of frames and of mel bins in each clip; none is longer than an eighth of its axis.

    Returns
    -------
    Tensor, shape (B, F, M)
    """
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


def draws_of(seed: int, step: int, part: int) -> int:
    """Return the seed of dropout and masks: the same in every run, and in both passes of a micro-batch.

    Parameters
    ----------
    seed : int
        Of the training.
    step : int
    part : int
        Number of the micro-batch, counted over all ranks.
    """
    return int(np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0] >> 1)
