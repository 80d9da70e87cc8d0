"""Rules for keeping generated captions: a plausible text, a mentioned tag, and the similarity to the clip."""

import re
from collections.abc import Sequence

import numpy as np

from clapcur.data.tags import Tag
from clapcur.methods.hearing import stems
from clapcur.stages.caption.words import mentions

NOT_SAID = re.compile(r"\d|[\[\]{}()<>|_#*\\]|https?:")
"""Digits and brackets: 6 % of the captions of a public corpus held raw probabilities (Auto-ACD, issue 4)."""


def is_sane(text: str, least_words: int, most_words: int) -> bool:
    """Return whether a text reads like a caption.

    It has no digits or brackets, a plausible length, no word three times in a row, and at least half of its words are
    distinct.

    Parameters
    ----------
    text : str
    least_words, most_words : int
        Minimum and maximum number of words.
    """
    words = text.lower().split()
    if not least_words <= len(words) <= most_words or NOT_SAID.search(text):
        return False
    repeats = any(words[i] == words[i + 1] == words[i + 2] for i in range(len(words) - 2))
    return not repeats and len(set(words)) * 2 >= len(words)


def says_a_tag(text: str, tags: Sequence[Tag]) -> bool:
    """Return whether a caption mentions one of the clip's tags."""
    said = stems(text)
    return any(mentions(said, tag.name) for tag in tags)


def chosen(
    verdicts: Sequence[str], similarity: Sequence[float], tag_similarity: float, least: float | None, most: int,
    above_tag: bool,
) -> list[str]:  # fmt: skip
    """Return the verdicts on the captions of one clip, tried in order, with at most `most` kept.

    Parameters
    ----------
    verdicts : sequence of str
        Verdicts on the text alone; "" if the text is acceptable.
    similarity : sequence of float
        Cosine of clip and caption; NaN without a model.
    tag_similarity : float
        Cosine of the clip and the name of its strongest tag; NaN without a model or a tag.
    least : float, optional
        Minimum cosine of a kept caption.
    most : int
        Maximum number of kept captions.
    above_tag : bool
        Whether a caption must be at least as similar as the name of the tag. If no caption is, the most similar one is
        kept (AudioSetCaps, JishengBai/AudioSetCaps, allows two more tries).
    """
    result = list(verdicts)
    open_ones = [index for index, verdict in enumerate(result) if not verdict]
    if least is not None:
        for index in open_ones:
            if similarity[index] < least:  # never where it is NaN
                result[index] = "too_far"
    open_ones = [index for index in open_ones if not result[index]]
    is_compared = above_tag and not np.isnan(tag_similarity)
    near = [i for i in open_ones if not is_compared or similarity[i] >= tag_similarity]
    for place, index in enumerate(near):
        result[index] = "kept" if place < most else "not_needed"
    for index in open_ones:
        if not result[index]:
            result[index] = "below_tag"
    if not near and open_ones:
        result[max(open_ones, key=lambda index: (similarity[index], -index))] = "best"
    return result
