"""What chooses the weights: the loss on held-out pairs or, where a paper did so, the score on the test set."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from clapcur.data.class_names import readable
from clapcur.errors import CheckpointError
from clapcur.methods.losses import hard_target, soft_contrastive_loss
from clapcur.models.clap import Clap
from clapcur.stages.train.config import TrainConfig
from clapcur.stages.train.crops import Waveforms
from clapcur.stages.train.step import TextFeatures, not_finite_clips, told_clips

HELD_OUT_BATCH = 256


def held_out_loss(
    model: Clap, pairs: pd.DataFrame, text: TextFeatures, waveforms: Waveforms, device: torch.device
) -> float:
    """Return the contrastive loss on the held-out pairs, in nats: centre crops, evaluation mode, fixed batches.

    Pairs with the same caption or clip share the target, so that a set poor in captions does not punish a model for
    finding both.

    Weights that have run away give a loss that is not finite and are never chosen.

    Raises
    ------
    CheckpointError
        The loss is not finite because of a clip: no weights could ever be chosen.
    """
    was_training = model.training
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for chosen in held_out_batches(pairs):
            waveform = waveforms.load(chosen.clip_id.tolist(), np.full(len(chosen), 0.5)).to(device)
            audio, caption = model.encode_audio(waveform), text.encode(chosen.caption_id.tolist())
            target = hard_target(chosen.caption_id.tolist(), chosen.clip_id.tolist(), form="identical", device=device)
            loss = soft_contrastive_loss(model.scale() * audio @ caption.T, target, target).item()
            if not math.isfinite(loss):
                clips = chosen.clip_id.tolist()
                if suspects := not_finite_clips(model, clips, waveform):
                    told = told_clips(clips, suspects, waveforms.paths)
                    raise CheckpointError(f"the loss on held-out pairs is not finite; {told}")
            total += loss * len(chosen)
    model.train(was_training)
    return total / len(pairs)


def held_out_batches(pairs: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the held-out pairs in the batches over which their loss is computed, always the same."""
    shuffled = pairs.sample(frac=1.0, random_state=0)
    for rows in np.array_split(np.arange(len(shuffled)), math.ceil(len(shuffled) / HELD_OUT_BATCH)):
        yield shuffled.iloc[rows]


def test_accuracy(
    model: Clap, clips: pd.DataFrame, config: TrainConfig, text: TextFeatures, waveforms: Waveforms,
    device: torch.device,
) -> float:  # fmt: skip
    """Return the zero-shot accuracy on clips (clip_id, label): centre crops, evaluation mode."""
    was_training = model.training
    model.eval()
    labels, right = [readable(name) for name in config.test_classes], 0
    with torch.inference_mode():
        prompts_KD = model.encode_text(text.tokenize(config.test_prompts))
        for start in range(0, len(clips), HELD_OUT_BATCH):
            part = clips.iloc[start : start + HELD_OUT_BATCH]
            waveform = waveforms.load(part.clip_id.tolist(), np.full(len(part), 0.5)).to(device)
            best = (model.encode_audio(waveform) @ prompts_KD.T).argmax(dim=1).tolist()
            right += sum(labels[index] == readable(label) for index, label in zip(best, part.label, strict=True))
    model.train(was_training)
    return right / len(clips)
