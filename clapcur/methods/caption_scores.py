"""Scores of generated captions: how near they are to what people wrote, and how varied.

CIDEr-D is computed here, because aac-metrics, which has it without Java, needs msclap, whose numpy and transformers are
older than ours. Captions are lower-cased and cut into words without punctuation; the usual tokenizer is a Java program,
so that published figures, which come from it, may differ in the second digit.

References
----------
Vedantam et al. 2015, CIDEr, arXiv:1411.5726; tylin/coco-caption, `cider_scorer.py`.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clapcur.sequences import list_of_texts

LONGEST = 4  # words of an n-gram, as in the paper
SIGMA = 6.0  # of the penalty for another length, as in the paper
WORD = re.compile(r"\w+(?:'\w+)?")
Grams = Counter[tuple[str, ...]]


def words_of(caption: str) -> list[str]:
    """Return the words of a caption in lower case, without punctuation."""
    return WORD.findall(caption.lower())


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return CIDEr-D of each caption, shape (N,): from 0, nothing in common, to 10, the only reference itself.

    Rare n-grams count more than common ones, by the number of clips whose references have them.

    Parameters
    ----------
    captions : sequence of str, length N
        One of each clip.
    references : sequence of sequences of str, length N
        What people wrote of each clip, at least one caption.

    Raises
    ------
    ValueError
        Fewer than two clips, in which no n-gram is rarer than another; or a clip without a reference.
    """
    texts = list_of_texts("captions", captions)
    if len(texts) != len(references):
        raise ValueError(f"expected references for each of {len(texts)} captions, got {len(references)}")
    if len(texts) < 2:
        raise ValueError(f"CIDEr-D needs at least 2 clips, got {len(texts)}: every n-gram would be equally common")
    if lacking := [index for index, of_clip in enumerate(references) if not len(of_clip)]:
        raise ValueError(f"clip {lacking[0]} has no reference caption; leave out clips without one")
    said = [[_grams(text) for text in list_of_texts("references", of_clip)] for of_clip in references]
    clips_with: Grams = Counter(gram for of_clip in said for gram in set().union(*of_clip))
    weight = {gram: math.log(len(texts)) - math.log(count) for gram, count in clips_with.items()}
    unknown = math.log(len(texts))
    scores = []
    for text, of_clip in zip(texts, said, strict=True):
        own = _grams(text)
        scores.append(np.mean([_similarity(own, reference, weight, unknown) for reference in of_clip]))
    return 10 * np.array(scores)


def distinct_share(captions: Sequence[str]) -> float:
    """Return how many different captions there are for each caption, in (0, 1]; 1: no two are equal."""
    texts = [" ".join(words_of(text)) for text in list_of_texts("captions", captions)]
    if not texts:
        raise ValueError("expected at least one caption, got none")
    return len(set(texts)) / len(texts)


def vocabulary_size(captions: Sequence[str]) -> int:
    """Return the number of different words in captions."""
    return len({word for text in list_of_texts("captions", captions) for word in words_of(text)})


def _grams(caption: str) -> Grams:
    """Return how often each n-gram is in a caption, of one to four words."""
    words = words_of(caption)
    return Counter(
        tuple(words[start : start + size]) for size in range(1, LONGEST + 1) for start in range(len(words) - size + 1)
    )


def _similarity(own: Grams, reference: Grams, weight: dict[tuple[str, ...], float], unknown: float) -> float:
    """Return the mean over lengths of the clipped cosine of two captions, less for another number of words."""
    dots, norms, others = np.zeros(LONGEST), np.zeros(LONGEST), np.zeros(LONGEST)
    for gram, count in own.items():
        value = count * weight.get(gram, unknown)
        other = reference[gram] * weight.get(gram, unknown)
        norms[len(gram) - 1] += value**2
        dots[len(gram) - 1] += min(value, other) * other
    for gram, count in reference.items():
        others[len(gram) - 1] += (count * weight[gram]) ** 2
    length = np.sqrt(norms * others)
    cosines = np.divide(dots, length, out=np.zeros(LONGEST), where=length > 0)
    pairs = sum(count for gram, count in own.items() if len(gram) == 2)  # the reference code counts lengths in these
    others_pairs = sum(count for gram, count in reference.items() if len(gram) == 2)
    return float(cosines.mean() * math.exp(-((pairs - others_pairs) ** 2) / (2 * SIGMA**2)))
