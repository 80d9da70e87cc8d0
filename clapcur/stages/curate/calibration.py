"""A threshold by precision, measured on held-out pairs or on pairs that people marked."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from clapcur.data.class_names import check_class_names
from clapcur.data.embeddings import EmbeddingTable
from clapcur.data.manifest import Manifest
from clapcur.errors import EmptySetError
from clapcur.methods.hubness import Correction
from clapcur.methods.similarity import best_class
from clapcur.methods.thresholds import precision_threshold
from clapcur.stages.curate.candidates import Captions
from clapcur.stages.curate.config import CurateConfig
from clapcur.store.artifacts import Artifact


def calibrate(
    inputs: Mapping[str, Artifact], config: CurateConfig, captions: Captions, teacher_pairs: Manifest,
    correction: Correction | None,
) -> dict[str, float]:  # fmt: skip
    """Return the threshold that reaches the wanted precision on held-out pairs, and its evidence.

    Parameters
    ----------
    inputs : mapping of str to Artifact
        Inputs of the stage, by role.
    config : CurateConfig
        Its audio threshold is a precision.
    captions : Captions
        The candidate captions.
    teacher_pairs : Manifest
    correction : Correction or None
        Correction of hubness.

    Returns
    -------
    dict of str to float
        ``target``; ``held_out_pairs``, the number of pairs of clip and caption that were compared; and the result of
        `precision_threshold`.

    Raises
    ------
    EmptySetError
        No pair is held out, or no threshold reaches the precision.
    """
    target = config.audio_threshold.precision
    assert target is not None
    scores, agrees = _held_out_agreement(inputs, config, captions, teacher_pairs, correction)
    return {"target": target, "held_out_pairs": len(scores), **precision_threshold(scores, agrees, target)}


def calibrate_on_marks(
    config: CurateConfig, clip_ids: NDArray[np.object_], rows_ND: NDArray[np.float32], captions: Captions,
    correction: Correction | None,
) -> dict[str, float]:  # fmt: skip
    """Return the threshold that reaches the wanted precision on the pairs that people marked, and its evidence.

    An audition overrepresents pairs at the border of a set, so the precision of the whole set tends to be higher.

    Parameters
    ----------
    config : CurateConfig
        Its audio threshold is a precision; its marks are the judged pairs.
    clip_ids : NDArray, shape (N,)
        The candidate clips.
    rows_ND : NDArray, shape (N, D), float32
        Unit rows of these clips.
    captions : Captions
        The candidate captions.
    correction : Correction or None
        Correction of hubness.

    Returns
    -------
    dict of str to float
        ``target``; ``marked_pairs``, the number of marked pairs among these clips and captions; and the result of
        `precision_threshold`.

    Raises
    ------
    EmptySetError
        No marked pair is among these clips and captions, or no threshold reaches the precision.
    """
    target = config.audio_threshold.precision
    assert target is not None
    clip = {name: index for index, name in enumerate(clip_ids)}
    text = {name: index for index, name in enumerate(captions.ids)}
    known = [mark for mark in config.marks if mark[0] in clip and mark[1] in text]
    if not known:
        raise EmptySetError(
            f"none of the {len(config.marks)} marked pairs is from this pool and these captions; mark pairs of a set "
            "that was curated from them, or omit the marks"
        )
    clip_P, text_P = [clip[name] for name, _, _ in known], [text[name] for _, name, _ in known]
    scores = np.einsum("pd,pd->p", rows_ND[clip_P], captions.rows_MD[text_P]).astype(np.float32)
    if correction is not None:
        audio_offset_P, text_offset_M = correction.offsets(rows_ND[clip_P])
        scores -= audio_offset_P + text_offset_M[text_P]
    agrees = np.array([mark == "right" for _, _, mark in known])
    return {"target": target, "marked_pairs": len(known), **precision_threshold(scores, agrees, target)}


def _held_out_agreement(
    inputs: Mapping[str, Artifact], config: CurateConfig, captions: Captions, teacher_pairs: Manifest,
    correction: Correction | None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:  # fmt: skip
    """Score every held-out clip against every candidate caption, and return whether their classes agree.

    The class of a held-out clip is that of the nearest prompt to its own caption; no label is read. The pool may be
    harder than the held-out pairs: the precision holds for the teacher's own domain.
    """
    pairs = teacher_pairs.pairs[teacher_pairs.pairs.clip_id.isin(teacher_pairs.held_out(config.held_out))]
    pairs = pairs.drop_duplicates("clip_id")
    if pairs.empty:
        raise EmptySetError("a threshold by precision needs held-out pairs; raise held_out or give a similarity")
    prompts = EmbeddingTable.open(inputs["prompt_embeddings"]).rows_ND
    own_rows = EmbeddingTable.open(inputs["teacher_caption_embeddings"]).select(pairs.caption_id.tolist())
    own_class, _ = best_class(own_rows, prompts)
    names = np.array(check_class_names(config.class_names), object)
    audio = EmbeddingTable.open(inputs["teacher_clip_embeddings"]).select(pairs.clip_id.tolist())
    similarity = audio @ captions.rows_MD.T
    if correction is not None:
        audio_offset_N, text_offset_M = correction.offsets(audio)
        similarity -= audio_offset_N[:, None] + text_offset_M
    return similarity.ravel(), (names[own_class][:, None] == captions.classes[None, :]).ravel()
