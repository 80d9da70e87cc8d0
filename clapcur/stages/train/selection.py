"""What chooses the weights: the loss on held-out pairs or, where a paper did so, the score on the test set."""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pandas as pd
import torch

from clapcur.data.class_names import readable
from clapcur.data.composed_captions import Meaning, reversed_meaning
from clapcur.data.compositions import KINDS, Compositions, Group, item_id
from clapcur.errors import CheckpointError
from clapcur.methods.losses import hard_target, soft_contrastive_loss
from clapcur.methods.zste import top_one_probability
from clapcur.models.clap import Clap
from clapcur.stages.train.config import TrainConfig
from clapcur.stages.train.crops import Waveforms
from clapcur.stages.train.features import AudioFeatures, TextFeatures
from clapcur.stages.train.step import not_finite_clips, told_clips

HELD_OUT_BATCH = 256
Phrasings = Literal["first", "all"]


def held_out_loss(
    model: Clap, pairs: pd.DataFrame, text: TextFeatures, audio: AudioFeatures, waveforms: Waveforms
) -> float:
    """Return the contrastive loss on the held-out pairs, in nats: centre crops, evaluation mode, fixed batches.

    Pairs with the same caption or clip share the target, so that a set poor in captions does not punish a model for
    finding both.

    Weights that have run away give a loss that is not finite and are never chosen.

    Parameters
    ----------
    model : Clap
    pairs : DataFrame
        clip_id, caption_id; at least one row.
    text : TextFeatures
    audio : AudioFeatures
    waveforms : Waveforms

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
            waveform = waveforms.load(chosen.clip_id.tolist(), np.full(len(chosen), 0.5))
            heard_ND, text_ND = audio.encode(waveform), text.encode(chosen.caption_id.tolist())
            target = hard_target(
                chosen.caption_id.tolist(), chosen.clip_id.tolist(), form="identical", device=heard_ND.device
            )
            loss = soft_contrastive_loss(model.scale() * heard_ND @ text_ND.T, target, target).item()
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


def held_out_order(
    model: Clap, compositions: Compositions, text: TextFeatures, audio: AudioFeatures, waveforms: Waveforms,
    phrasings: Phrasings = "first",
) -> dict[str, float]:  # fmt: skip
    """Return what a model hears of the held-out groups: order, everything, and both in one figure; evaluation mode.

    Parameters
    ----------
    model : Clap
    compositions : Compositions
        At least one group is held out.
    text : TextFeatures
    audio : AudioFeatures
    waveforms : Waveforms
        With a renderer of the compositions.
    phrasings : {"first", "all"}
        Of a sequence; with all of them the order is the mean over connectors.

    Returns
    -------
    dict
        ``held_out_order``: share of sequences that are nearer to their caption than to that of the reverse;
        ``held_out_single``: share of single sounds that are nearest to their own name; ``held_out_recall``: R@1 of all
        items among the captions of everything that is held out, the ones and the others; ``held_out_choice``:
        sqrt(R@1 * max(0, order - 50)), both in per cent (arXiv 2301.02074). Ties count as chance.
    """
    was_training = model.training
    model.eval()
    items = _held_out_items(compositions)
    said = _said(compositions, phrasings)
    with torch.inference_mode():
        text_MD = torch.cat([text.encode(captions) for captions in order_captions(compositions, phrasings)])
        similarities = []
        for start in range(0, len(items), HELD_OUT_BATCH):
            names = [name for name, _ in items[start : start + HELD_OUT_BATCH]]
            waveform = waveforms.load(names, np.full(len(names), 0.5))
            similarities.append((audio.encode(waveform) @ text_MD.T).cpu().numpy())
    model.train(was_training)
    place = {key: index for index, (key, _) in enumerate(said)}
    all_NM, num_phrasings = np.concatenate(similarities), 1 + max(number for _, number in place)
    meanings = [meaning for meaning, number in place if number == 0]
    similarity_NM = all_NM[:, [place[meaning, 0] for meaning in meanings]]  # recall is measured with one caption each
    index_of = {meaning: index for index, meaning in enumerate(meanings)}
    is_own_NM = np.array([index_of[meaning] for _, meaning in items])[:, None] == np.arange(len(meanings))
    recall = top_one_probability(similarity_NM, is_own_NM).mean()
    single_N = np.array([meaning[0] == "single" for _, meaning in items])
    names_M = np.array([meaning[0] == "single" for meaning in meanings])
    single = top_one_probability(similarity_NM[single_N][:, names_M], is_own_NM[single_N][:, names_M]).mean()
    sequences = [(row, meaning) for row, (_, meaning) in enumerate(items) if meaning[0] == "sequence"]
    both = [
        [all_NM[row, place[meaning, number]], all_NM[row, place[reversed_meaning(meaning), number]]]
        for row, meaning in sequences
        for number in range(num_phrasings)
    ]
    order = top_one_probability(np.array(both), np.tile([True, False], (len(both), 1))).mean()
    return {
        "held_out_order": float(order), "held_out_single": float(single), "held_out_recall": float(recall),
        "held_out_choice": math.sqrt(100 * recall * max(0.0, 100 * order - 50)),
    }  # fmt: skip


def order_captions(compositions: Compositions, phrasings: Phrasings = "first") -> Iterator[list[str]]:
    """Yield the captions that the held-out order is measured with, in the batches in which they are embedded."""
    captions = [caption for _, caption in _said(compositions, phrasings)]
    for start in range(0, len(captions), HELD_OUT_BATCH):
        yield captions[start : start + HELD_OUT_BATCH]


def _said(compositions: Compositions, phrasings: Phrasings) -> list[tuple[tuple[Meaning, int], str]]:
    """Return the caption of each held-out meaning, and of sequences each phrasing: ((meaning, its number), caption)."""
    meanings = sorted({meaning for _, meaning in _held_out_items(compositions)})
    return [
        ((meaning, number), caption)
        for meaning in meanings
        for number, caption in enumerate(compositions.caption_ids[meaning])
        if number == 0 or (phrasings == "all" and meaning[0] == "sequence")
    ]


def _held_out_items(compositions: Compositions) -> list[tuple[str, Meaning]]:
    return [
        (item_id(group.group_id, kind), group.meaning(kind))
        for group in Group.of(compositions.of_split("held_out"))
        for kind in KINDS
    ]


def test_accuracy(
    model: Clap, clips: pd.DataFrame, config: TrainConfig, text: TextFeatures, audio: AudioFeatures,
    waveforms: Waveforms,
) -> float:  # fmt: skip
    """Return the zero-shot accuracy on labelled clips: centre crops, evaluation mode.

    Parameters
    ----------
    model : Clap
    clips : DataFrame
        clip_id, label; at least one row.
    config : TrainConfig
        Has the names of the classes and their prompts.
    text : TextFeatures
    audio : AudioFeatures
    waveforms : Waveforms

    Returns
    -------
    float
        0 to 1.
    """
    was_training = model.training
    model.eval()
    labels, right = [readable(name) for name in config.test_classes], 0
    with torch.inference_mode():
        prompts_KD = model.encode_text(text.tokenize(config.test_prompts))
        for start in range(0, len(clips), HELD_OUT_BATCH):
            part = clips.iloc[start : start + HELD_OUT_BATCH]
            waveform = waveforms.load(part.clip_id.tolist(), np.full(len(part), 0.5))
            best = (audio.encode(waveform) @ prompts_KD.T).argmax(dim=1).tolist()
            right += sum(labels[index] == readable(label) for index, label in zip(best, part.label, strict=True))
    model.train(was_training)
    return right / len(clips)
