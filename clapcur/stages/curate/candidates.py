"""Candidate captions and clips, and the exclusion of clips that overlap with the evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.data.class_names import check_class_names
from clapcur.data.embeddings import EmbeddingTable
from clapcur.data.manifest import Manifest
from clapcur.data.rows import GENERATED, SEARCHED
from clapcur.methods.contamination import Overlap, near_duplicate_threshold, overlap
from clapcur.methods.devices import pick_device
from clapcur.methods.near_duplicates import duplicate_of
from clapcur.methods.similarity import best_class
from clapcur.methods.thresholds import nth_largest
from clapcur.stages.curate.config import CurateConfig
from clapcur.store.artifacts import Artifact


@dataclass(frozen=True)
class Captions:
    """Captions with their unit rows and their nearest class prompts."""

    ids: NDArray[np.object_]
    texts: NDArray[np.object_]
    rows_MD: NDArray[np.float32]
    classes: NDArray[np.object_]
    class_similarity_M: NDArray[np.float32]

    def where(self, keep_M: NDArray[np.bool_]) -> "Captions":
        """Return the captions for which the mask is true."""
        return Captions(*(getattr(self, name)[keep_M] for name in self.__dataclass_fields__))


def candidate_captions(inputs: Mapping[str, Artifact], config: CurateConfig) -> Captions:
    """Return the captions to choose from, with their classes: the teacher's and, for a pool, the unpaired captions.

    For TagCap, only the generated captions are returned.
    """
    sources = [("teacher_pairs", "teacher_caption_embeddings")]
    if config.strategy in GENERATED:
        sources = [("generated", "generated_embeddings")]
    if "captions" in inputs and config.strategy in SEARCHED:
        sources.append(("captions", "caption_embeddings"))
    rows: dict[str, NDArray[np.float32]] = {}
    texts: dict[str, str] = {}
    for manifest_role, embeddings_role in sources:
        table = EmbeddingTable.open(inputs[embeddings_role])
        rows |= dict(zip(table.ids, table.rows_ND, strict=True))
        captions = Manifest.open(inputs[manifest_role]).captions
        texts |= dict(zip(captions.caption_id, captions.caption, strict=True))
    ids = sorted(rows)
    rows_MD = np.stack([rows[name] for name in ids])
    if config.distinct_captions is not None:
        stays = np.flatnonzero(
            duplicate_of(rows_MD, config.distinct_captions, device=str(pick_device(config.device)))
            == np.arange(len(ids))
        )
        ids, rows_MD = [ids[index] for index in stays], rows_MD[stays]
    prompts = EmbeddingTable.open(inputs["prompt_embeddings"])
    class_index_M, class_similarity_M = best_class(rows_MD, prompts.rows_ND, device=pick_device(config.device))
    names = np.array(check_class_names(config.class_names), object)
    ids_M, texts_M = np.array(ids, object), np.array([texts[name] for name in ids], object)
    return Captions(ids_M, texts_M, rows_MD, names[class_index_M], class_similarity_M)


def candidate_clips(
    inputs: Mapping[str, Artifact], config: CurateConfig, teacher_pairs: Manifest
) -> tuple[NDArray[np.object_], NDArray[np.float32], dict[str, int], "Guard"]:
    """Return the clips that may enter, and the number of excluded clips by reason.

    Parameters
    ----------
    inputs : mapping of str to Artifact
        Inputs of the stage, by role.
    config : CurateConfig
    teacher_pairs : Manifest

    Returns
    -------
    ids_N : NDArray, shape (N,)
        Sorted clip ids.
    rows_ND : NDArray, shape (N, D), float32
        Unit rows of these clips.
    counts : dict of str to int
        Number of excluded clips by reason; a clip counts for the first reason that applies.
    guard : Guard
        Overlap of the evaluation clips with these clips.
    """
    is_ds = config.strategy == "ds"
    clips = teacher_pairs.clips if is_ds else Manifest.open(inputs["pool"]).clips
    table = EmbeddingTable.open(inputs["teacher_clip_embeddings" if is_ds else "pool_embeddings"])
    clips = clips.sort_values("clip_id", ignore_index=True)
    num_clips = len(clips)
    if not is_ds:  # the teacher was trained on its own clips, so a missing one is an error
        clips = clips[~clips.clip_id.isin(table.left_out.id)].reset_index(drop=True)
    rows_ND = table.select(clips.clip_id.tolist())
    reasons: dict[str, NDArray[np.bool_]] = {
        "held_out": clips.clip_id.isin(teacher_pairs.held_out(config.held_out)).to_numpy()
    }
    guard = _guard(inputs, config, clips, rows_ND, teacher_pairs)
    if guard.candidates is not None:
        for reason in guard.candidates.checked:
            reasons[f"evaluation_{reason}"] = clips.clip_id.isin(guard.candidates.clips(reason)).to_numpy()
    keep = np.ones(len(clips), bool)
    counts: dict[str, int] = {"not_embedded": num_clips - len(clips)} if len(clips) < num_clips else {}
    for reason, applies in reasons.items():  # a clip counts for the first reason that applies
        counts[reason] = int((keep & applies).sum())
        keep &= ~applies
    if config.distinct_clips is not None:
        candidates = np.flatnonzero(keep)
        doubles = candidates[
            duplicate_of(rows_ND[candidates], config.distinct_clips, device=str(pick_device(config.device)))
            != np.arange(len(candidates))
        ]
        counts["double"] = len(doubles)
        keep[doubles] = False
    ids_N = clips.clip_id.to_numpy(object)
    if keep.all():  # avoids a copy of the pool's rows, which are large
        return ids_N, rows_ND, counts, guard
    return ids_N[keep], rows_ND[keep], counts, guard


@dataclass(frozen=True)
class Guard:
    """Overlap of the evaluation clips with the candidates and with the teacher's own pairs."""

    candidates: Overlap | None = None
    # None: there are no evaluation clips
    teacher_pairs: Overlap | None = None
    # not excluded, because the teacher was already trained on them; the scores report this overlap
    different_N: NDArray[np.float32] | None = None
    # similarity of each teacher clip to the nearest clip known to differ, if the threshold was calibrated on these

    def as_json(self) -> dict[str, Any]:
        """Return the facts that the card records."""
        both = {"candidates": self.candidates, "teacher_pairs": self.teacher_pairs}
        return {name: found.as_json() for name, found in both.items() if found is not None}


def _guard(
    inputs: Mapping[str, Artifact], config: CurateConfig, clips: pd.DataFrame, rows_ND: NDArray[np.float32],
    teacher_pairs: Manifest,
) -> Guard:  # fmt: skip
    """Compare the candidates and the teacher's pairs with the evaluation clips."""
    if "evaluation" not in inputs:
        return Guard()
    evaluation = Manifest.open(inputs["evaluation"]).clips
    looks = config.near_duplicate is not None and "evaluation_embeddings" in inputs
    teacher_rows, rows_MD, threshold, different_N = None, None, None, None
    if looks:
        table = EmbeddingTable.open(inputs["teacher_clip_embeddings"])
        teacher_rows = table.select(teacher_pairs.clips.clip_id.tolist())
        rows_MD = EmbeddingTable.open(inputs["evaluation_embeddings"]).select(evaluation.clip_id.tolist())
        threshold, different_N = near_duplicate_threshold(config.near_duplicate, teacher_pairs.clips, teacher_rows)
    return Guard(
        overlap(clips, evaluation, rows_ND if looks else None, rows_MD, threshold),
        overlap(teacher_pairs.clips, evaluation, teacher_rows, rows_MD, threshold),
        different_N,
    )


def caption_thresholds(captions: Captions, config: CurateConfig) -> NDArray[np.float32]:
    """Return the threshold of each caption: one for all, or one per class."""
    threshold = config.caption_threshold
    if threshold.similarity is not None:
        return np.full(len(captions.ids), threshold.similarity, np.float32)
    assert threshold.count is not None
    if not config.even_classes:
        return np.full(len(captions.ids), nth_largest(captions.class_similarity_M, threshold.count), np.float32)
    share = share_of_class(threshold.count, config)
    own = {
        name: nth_largest(captions.class_similarity_M[captions.classes == name], share)
        for name in np.unique(captions.classes)
    }
    return np.array([own[name] for name in captions.classes], np.float32)


def share_of_class(count: int, config: CurateConfig) -> int:
    """Return the even share of a count for one class."""
    return max(1, count // len(config.class_names))
