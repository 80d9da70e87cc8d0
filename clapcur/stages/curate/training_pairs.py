"""Given pairs, which need no search: the training pairs (DS), and generated captions with their clips (TagCap)."""

from collections.abc import Set

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clapcur.data.improvement_set import SCHEMA, ImprovementSetWriter
from clapcur.data.manifest import Manifest
from clapcur.data.rows import GENERATED
from clapcur.methods.thresholds import nth_largest
from clapcur.stages.curate.candidates import Captions, share_of_class
from clapcur.stages.curate.config import CurateConfig


def write_given_pairs(
    writer: ImprovementSetWriter, given: Manifest, clip_ids: NDArray[np.object_], rows_ND: NDArray[np.float32],
    captions: Captions, config: CurateConfig, wrong: Set[tuple[str, str]],
) -> dict[str, float]:  # fmt: skip
    """Write the given pairs of the eligible clips whose caption was kept.

    Parameters
    ----------
    writer : ImprovementSetWriter
    given : Manifest
        Manifest of the pairs.
    clip_ids : NDArray, shape (N,)
        The eligible clips, sorted.
    rows_ND : NDArray, shape (N, D), float32
        Unit rows of these clips.
    captions : Captions
        The kept captions.
    config : CurateConfig
    wrong : set of (str, str)
        Clip and caption of the pairs that people marked as wrong.

    Returns
    -------
    dict of str to float
        For generated pairs, the audio threshold of each class, or one for all under ""; empty for training pairs, whose
        audio similarity is not compared.
    """
    pairs = given.pairs
    pairs = pairs[pairs.clip_id.isin(clip_ids) & pairs.caption_id.isin(captions.ids)]
    is_wrong = [pair in wrong for pair in zip(pairs.clip_id, pairs.caption_id, strict=True)]
    pairs = pairs[~np.array(is_wrong, bool)]
    clip = np.searchsorted(clip_ids.astype(str), pairs.clip_id.to_numpy(str))
    text = np.searchsorted(captions.ids.astype(str), pairs.caption_id.to_numpy(str))
    similarity = np.einsum("pd,pd->p", rows_ND[clip], captions.rows_MD[text]).astype(np.float32)
    order = np.lexsort((text, -similarity, clip))
    clip, text, similarity = clip[order], text[order], similarity[order]
    first_of_clip = np.searchsorted(clip, clip, side="left")
    rank = (np.arange(len(clip)) - first_of_clip).astype(np.int32)
    thresholds: dict[str, float] = {}
    if config.strategy in GENERATED:
        stays = rank < (config.max_per_clip or len(rank) + 1)
        classes = captions.classes[text]
        thresholds = _thresholds(similarity[stays], classes[stays], config)
        least = np.array([thresholds.get(name, thresholds.get("", 1.0)) for name in classes], np.float32)
        stays &= similarity >= least
        clip, text, similarity, rank = clip[stays], text[stays], similarity[stays], rank[stays]
    columns = (
        clip_ids[clip], captions.ids[text], similarity, captions.classes[text], captions.class_similarity_M[text], rank
    )  # fmt: skip
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    writer.add(pa.Table.from_arrays(arrays, schema=SCHEMA))
    return thresholds


def _thresholds(
    similarity: NDArray[np.float32], classes: NDArray[np.object_], config: CurateConfig
) -> dict[str, float]:
    """Return the configured similarity, or the thresholds that keep the configured number of pairs."""
    threshold = config.audio_threshold
    if threshold.similarity is not None:
        return {"": threshold.similarity}
    assert threshold.count is not None
    if not config.even_classes:
        return {"": float(nth_largest(similarity, threshold.count))}
    share = share_of_class(threshold.count, config)
    return {str(name): float(nth_largest(similarity[classes == name], share)) for name in np.unique(classes)}
