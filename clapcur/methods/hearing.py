"""Whether a sentence describes something that can be heard: a linear classifier over the words of the sentence.

The features are the distinct content words of a sentence, reduced to stems (``barked`` and ``barks`` are ``bark``), and
each two of them that follow one another. Function words are no features: they would tell the style of a caption from
that of a book, not a sound from a thought. A sentence with stems and pairs ``f``, of which ``n`` are stems, has

    score = 1 / (1 + exp(-(bias + sum of weights of f / sqrt(n))))

where unknown words weigh nothing and count in ``n``. A score of 0.5 says that as many captions as other sentences look
like this, were there equally many of both. Nothing is looked up anywhere: the weights are a table that can be read,
``heard_words.csv``, fitted by ``benchmarks/general_text.py`` (docs/corpora.md has what it was fitted to, and how good
it is). English only: of a text in another language nothing is known.
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
MIN_SENTENCES_WORD, MIN_SENTENCES_PAIR = 5, 20  # in which a feature must occur to have a weight (ours)
RIDGE = 1e-5  # of the squared weights, beside the mean loss of a sentence (ours)
SMALLEST_WEIGHT = 0.25  # smaller ones are left out of the table (ours)


def stem(word: str) -> str:
    """Return a lower-case word without the endings of plural, past and participle; other words as they are.

    Far less than Porter's: only endings that captions of sounds vary in.
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
    """Return the stems of the content words of a text, in their order."""
    return [stem(word) for word in WORD.findall(text.casefold()) if word not in FUNCTION_WORDS]


def features(text: str) -> tuple[frozenset[str], float]:
    """Return the stems of a text with the pairs of them that follow one another, and the square root of their number.

    Pairs have a space between them and do not count in the number.
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
    # of stems, and of two of them with a space between

    def score(self, text: str) -> float:
        """Return how much a text looks like one that describes a sound, in (0, 1)."""
        found, root = features(text)
        weights = self.weights
        total = self.bias + math.fsum(weights[name] for name in found if name in weights) / root
        return 1 / (1 + math.exp(-total))

    def reasons(self, text: str, most: int = 3) -> list[tuple[str, float]]:
        """Return the features that decided most, with what each adds to the sum; the one that counts most is first."""
        found, root = features(text)
        known = [(name, self.weights[name] / root) for name in found if name in self.weights]
        return sorted(known, key=lambda item: (-abs(item[1]), item[0]))[:most]


@functools.cache
def shipped() -> Hearing:
    """Return the classifier of ``heard_words.csv``."""
    return read_weights(WEIGHTS)


def read_weights(path: Path) -> Hearing:
    """Read a classifier from its table: a column of words and one of weights."""
    with open(path, newline="", encoding="utf-8") as file:
        weights = {row["words"]: float(row["weight"]) for row in csv.DictReader(file)}
    return Hearing(weights.pop(BIAS), weights)


def write_weights(hearing: Hearing, path: Path) -> None:
    """Write a classifier as a table, with two digits behind the point and without what weighs next to nothing."""
    kept = {name: round(weight, 2) for name, weight in hearing.weights.items() if abs(weight) >= SMALLEST_WEIGHT}
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("words", "weight"))
        writer.writerow((BIAS, f"{hearing.bias:.2f}"))
        writer.writerows((name, f"{weight:g}") for name, weight in sorted(kept.items()))


def fit(heard: Sequence[str], others: Sequence[str]) -> Hearing:
    """Fit the classifier: logistic regression with a ridge, the two sides weighted as if they had equally many texts.

    Parameters
    ----------
    heard : sequence of str
        Captions of sounds.
    others : sequence of str
        Sentences that describe no sound.

    Raises
    ------
    ValueError
        One side is empty, or the two have no frequent word between them.
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
