"""Captions that exist: for each clip the nearest of those that mention one of its tags. This is not BLAT."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clapcur.data.tags import Tag
from clapcur.methods.hearing import stems
from clapcur.stages.caption.words import mentions


def retrieved(
    tags: Mapping[str, Sequence[Tag]], clip_rows: Mapping[str, NDArray[np.float32]], texts: Sequence[str],
    text_rows_MD: NDArray[np.float32], most: int,
) -> dict[str, list[str]]:  # fmt: skip
    """Return the nearest captions of each clip, nearest first, among those that mention one of its tags.

    Parameters
    ----------
    tags : mapping
        The tags of each clip.
    clip_rows : mapping
        The unit row of each clip, shape (D,).
    texts : sequence of str, length M
    text_rows_MD : array, shape (M, D)
        Their unit rows, of the same model.
    most : int
        Captions of a clip.
    """
    said = [stems(text) for text in texts]
    names = sorted({tag.name for of_clip in tags.values() for tag in of_clip})
    of_tag = {name: np.array([m for m, words in enumerate(said) if mentions(words, name)], np.int64) for name in names}
    found = {}
    for clip, of_clip in tags.items():
        candidates = np.unique(np.concatenate([of_tag[tag.name] for tag in of_clip]))
        similarity = text_rows_MD[candidates] @ clip_rows[clip]
        nearest = candidates[np.argsort(-similarity, kind="stable")[:most]]
        found[clip] = list(dict.fromkeys(texts[index] for index in nearest))
    return found
