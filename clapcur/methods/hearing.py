"""Whether a sentence describes something audible: a linear classifier over the words of the sentence.

The features are the distinct content words of a sentence, reduced to stems (``barked`` and ``barks`` are ``bark``), and
the pairs of consecutive stems. Function words are not features: they would distinguish the style of captions from that
of books, not sounds from thoughts. A sentence with stems and pairs ``f``, of which ``n`` are stems, has

    score = 1 / (1 + exp(-(bias + sum of weights of f / sqrt(n))))

where unknown words have no weight but count in ``n``. A score of 0.5 means that, with equally many captions and other
sentences, both are equally likely to look like this. The weights are a readable table, ``heard_words.csv``, fitted by
``benchmarks/general_text.py`` (docs/corpora.md describes the data and the accuracy). English only: the score of a text
in another language is meaningless.
"""

import csv
import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).with_name("heard_words.csv")
BIAS = "(bias)"  # the name of the constant in the table
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
VOWEL = re.compile("[aeiouy]")
FUNCTION_WORDS = frozenset(
    "a an the and or of to in on at by for with from as is are was were be been being it its this that these those he"
    " she they his her their him them i you we my your our me us do does did has have had not no so but if then than"
    " there here who which what when where while will would can could may might must shall should one some any all"
    " other into over out up down off about after before again also very more most such only own same too just s t"
    " each both between through during".split()
)
MIN_SENTENCES_WORD, MIN_SENTENCES_PAIR = 5, 20  # minimum occurrences of a feature with a weight (ours)
RIDGE = 1e-5  # factor of the squared weights, added to the mean loss per sentence (ours)
SMALLEST_WEIGHT = 0.25  # smaller weights are left out of the table (ours)


def stem(word: str) -> str:
    """Return a lower-case word without the endings of plural, past tense and participle.

    This does far less than Porter's stemmer: it removes only endings that vary between captions of sounds.
    """
    word = re.split("['’]", word)[0]
    for ending in ("ing", "ed", "es", "s"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3 and VOWEL.search(rest) and not word.endswith("ss"):
            if ending in ("ing", "ed") and len(rest) > 3 and rest[-1] == rest[-2] and rest[-1] not in "lsz":
                rest = rest[:-1]  # humming
            word = rest
            break
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]
    return word[:-1] + "i" if len(word) > 3 and word.endswith("y") else word


def stems(text: str) -> list[str]:
    """Return the stems of the content words of a text, in order."""
    return [stem(word) for word in WORD.findall(text.casefold()) if word not in FUNCTION_WORDS]


def features(text: str) -> tuple[frozenset[str], float]:
    """Return the stems of a text and the pairs of consecutive stems, and the square root of the number of stems.

    The stems of a pair are separated by a space; pairs do not count in the number.
    """
    found = stems(text)
    alone = frozenset(found)
    pairs = frozenset(f"{first} {second}" for first, second in zip(found, found[1:], strict=False))
    return alone | pairs, math.sqrt(max(1, len(alone)))


@dataclass(frozen=True)
class Hearing:
    """A fitted classifier."""

    bias: float
    weights: Mapping[str, float]
    # by stem, or by two stems separated by a space

    def score(self, text: str) -> float:
        """Return a score in (0, 1) for how much a text looks like the description of a sound."""
        found, root = features(text)
        weights = self.weights
        total = self.bias + math.fsum(weights[name] for name in found if name in weights) / root
        return 1 / (1 + math.exp(-total))

    def reasons(self, text: str, most: int = 3) -> list[tuple[str, float]]:
        """Return the most important features with their contributions to the sum, the most important first."""
        found, root = features(text)
        known = [(name, self.weights[name] / root) for name in found if name in self.weights]
        return sorted(known, key=lambda item: (-abs(item[1]), item[0]))[:most]


@functools.cache
def shipped() -> Hearing:
    """Return the classifier of ``heard_words.csv``."""
    return read_weights(WEIGHTS)


def read_weights(path: Path) -> Hearing:
    """Read a classifier from its table, with a column of words and one of weights."""
    with open(path, newline="", encoding="utf-8") as file:
        weights = {row["words"]: float(row["weight"]) for row in csv.DictReader(file)}
    return Hearing(weights.pop(BIAS), weights)


def write_weights(hearing: Hearing, path: Path) -> None:
    """Write a classifier as a table, with two decimals and without weights below `SMALLEST_WEIGHT`."""
    kept = {name: round(weight, 2) for name, weight in hearing.weights.items() if abs(weight) >= SMALLEST_WEIGHT}
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("words", "weight"))
        writer.writerow((BIAS, f"{hearing.bias:.2f}"))
        writer.writerows((name, f"{weight:g}") for name, weight in sorted(kept.items()))


def fit(heard: Sequence[str], others: Sequence[str]) -> Hearing:
    """Fit the classifier: logistic regression with a ridge penalty, with both sides given equal total weight.

    Parameters
    ----------
    heard : sequence of str
        Captions of sounds.
    others : sequence of str
        Sentences that do not describe a sound.

    Raises
    ------
    ValueError
        One side is empty, or no word is frequent enough.
    """
    import numpy as np
    from scipy import sparse
    from scipy.optimize import minimize

    if not heard or not others:
        raise ValueError(f"expected audible and other sentences, got {len(heard)} audible and {len(others)} others")
    rows = [features(text) for text in (*heard, *others)]
    names = _frequent(found for found, _ in rows)
    if not names:
        raise ValueError(
            f"no word occurs in at least {MIN_SENTENCES_WORD} of the {len(rows)} sentences: give more sentences"
        )
    place = {name: index for index, name in enumerate(names)}
    columns, ends, values = [], [0], []
    for found, root in rows:
        known = sorted(place[name] for name in found if name in place)
        columns += known
        values += [1 / root] * len(known)
        ends.append(len(columns))
    matrix = sparse.csr_matrix((values, columns, ends), shape=(len(rows), len(names)))
    is_heard = np.repeat([1.0, 0.0], [len(heard), len(others)])
    share = np.where(is_heard == 1, 0.5 / len(heard), 0.5 / len(others))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        logits = matrix @ weights + bias
        value = share @ np.logaddexp(0, np.where(is_heard == 1, -logits, logits)) + RIDGE * weights @ weights
        slope = share * (1 / (1 + np.exp(-logits)) - is_heard)
        return value, np.append(matrix.T @ slope + 2 * RIDGE * weights, slope.sum())

    best = minimize(loss, np.zeros(len(names) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return Hearing(float(best[-1]), dict(zip(names, best[:-1].tolist(), strict=True)))


def _frequent(rows: Iterable[frozenset[str]]) -> list[str]:
    counts = Counter(name for found in rows for name in found)
    return sorted(
        name for name, count in counts.items()
        if count >= (MIN_SENTENCES_PAIR if " " in name else MIN_SENTENCES_WORD)
    )  # fmt: skip
