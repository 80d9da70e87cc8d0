"""DS: the training pairs whose caption was kept."""

from collections.abc import Set

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clapcur.data.improvement_set import SCHEMA, ImprovementSetWriter
from clapcur.data.manifest import Manifest
from clapcur.stages.curate.candidates import Captions


def write_training_pairs(
    writer: ImprovementSetWriter, teacher_pairs: Manifest, clip_ids: NDArray[np.object_],
    rows_ND: NDArray[np.float32], captions: Captions, wrong: Set[tuple[str, str]],
) -> None:  # fmt: skip
    """Write the training pairs of the eligible clips whose caption was kept (DS)."""
    pairs = teacher_pairs.pairs
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
    columns = (
        clip_ids[clip], captions.ids[text], similarity, captions.classes[text], captions.class_similarity_M[text], rank
    )  # fmt: skip
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    writer.add(pa.Table.from_arrays(arrays, schema=SCHEMA))
