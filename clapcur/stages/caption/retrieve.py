"""Retrieved captions: for each clip the most similar existing ones that mention one of its tags. This is not BLAT."""

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
    """Return the most similar captions of each clip, best first, among those that mention one of its tags.

    Parameters
    ----------
    tags : mapping
        Tags by clip id.
    clip_rows : mapping
        Unit row of each clip, shape (D,), by clip id.
    texts : sequence of str, length M
    text_rows_MD : array, shape (M, D)
        Unit rows of the texts, from the same model.
    most : int
        Maximum number of captions per clip.
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
