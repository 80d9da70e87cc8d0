"""ZSTE, zero-shot temporal evaluation: how well a model recognises the order of two sounds from similarities alone.

Pure functions of arrays. Each item gets a score in [0, 1]: the probability that its answer is right if ties are broken
at random, so that a model that knows nothing scores chance and not 100 %, and the order of the candidates does not
matter.

=========================== ==================== ==================================== =======================
task                        audio                candidates                           right, and its chance
=========================== ==================== ==================================== =======================
``single``                  A, B                 C classes                            the first: 1 / C
``both.sequence``           A then B, B then A   C classes                            the first two: 1 / C(C, 2)
``both.overlap``            A and B at once      C classes                            the first two: 1 / C(C, 2)
``relation``                A then B, B then A   A then B, B then A, A while B        the first: 1 / 3
``relation_distractors``    A then B, B then A   50 phrases over A, B and 5 others    the first: 1 / 50
``position``                A then B, B then A   first is x, second is x: 2C          the first two: 1 / C(2C, 2)
``order``                   A then B, B then A   A then B, B then A                   the first: 1 / 2
``winoground.text``         A then B, B then A   both captions                        of both sounds: 1 / 4
``winoground.audio``        A then B, B then A   both sounds                          of both captions: 1 / 4
``winoground.group``        A then B, B then A   both                                 text and audio: 1 / 6
=========================== ==================== ==================================== =======================

``retrieval`` uses a caption as the query for a sound among all sequences; with the caption reversed (sounds swapped) or
replaced (opposite connector), a model that understands captions must find the sound less often.

``relation``, ``order``, ``winoground`` and ``retrieval`` use every connector of a sequence in
`clapcur.data.composed_captions`, and ``position`` two phrasings; an item's score is the mean. ``relation_distractors``
uses one connector per item, in turn. Shapes: G groups, N items, C candidates, D embedding.

References
----------
.. [1] Sinha et al. 2024, arXiv:2408.09269: tasks 1 to 5. Task 5's published target marks both events as the first, and
   its right answers are at index 0; here targets are explicit.
.. [2] Thrush et al. 2022, "Winoground", arXiv:2204.03162.
.. [3] Owen 2007, "The pigeonhole bootstrap", arXiv:0712.1111.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.data.class_names import PROMPT, prompts
from clapcur.data.composed_captions import CONNECTORS, Meaning, phrase, replaced_phrase, reversed_meaning
from clapcur.data.compositions import KINDS, Group, Kind, item_id

DIGITS = 6  # decimals of a cosine: smaller differences only come from the order of summation
MAX_PHRASES = 50  # candidates of `relation_distractors` [1]
NUM_OTHERS = 5  # classes besides A and B among them [1]
POSITIONS = (("the first sound is {}", "the second sound is {}"), ("it begins with {}", "it ends with {}"))
RELATIONS = ("relation", "relation_distractors", "position")
TASKS = ("single", "both.sequence", "both.overlap", *RELATIONS)
SEQUENCES: tuple[Kind, ...] = ("forward", "reversed")

Floats = NDArray[np.floating]
EmbedText = Callable[[Sequence[str]], NDArray[np.float32]]


def top_set_probability(similarity_NC: Floats, is_target_NC: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the probability that the k most similar candidates are the k right ones, with ties broken at random.

    Parameters
    ----------
    similarity_NC : array, shape (N, C)
        Cosines.
    is_target_NC : array, shape (N, C)
        k right candidates in each row, at least one; k may differ between rows.

    Returns
    -------
    array, shape (N,), in [0, 1]
        0 if a wrong candidate is above a right one. Otherwise 1 / C(a + b, a), with a right and b wrong candidates that
        are tied at the lowest similarity of the right ones.

    Raises
    ------
    ValueError
        Shapes differ, a similarity is not finite, or a row has no right candidate.
    """
    if similarity_NC.ndim != 2 or similarity_NC.shape != is_target_NC.shape:
        raise ValueError(
            f"expected a target for each similarity, got shapes {similarity_NC.shape} and {is_target_NC.shape}"
        )
    if not np.isfinite(similarity_NC).all():
        raise ValueError("similarities must be finite: NaN is neither above nor below anything")
    if not is_target_NC.any(axis=1).all():
        raise ValueError("each row needs at least one correct candidate")
    rounded_NC = np.round(similarity_NC.astype(np.float64), DIGITS)
    lowest_N1 = np.where(is_target_NC, rounded_NC, np.inf).min(axis=1, keepdims=True)
    beaten_N = (~is_target_NC & (rounded_NC > lowest_N1)).any(axis=1)
    is_tied_NC = rounded_NC == lowest_N1
    right_N, all_N = (is_tied_NC & is_target_NC).sum(axis=1), is_tied_NC.sum(axis=1)
    draws_N = np.array([comb(*counts) for counts in zip(all_N.tolist(), right_N.tolist(), strict=True)], np.float64)
    return np.where(beaten_N, 0.0, 1 / draws_N)


def top_one_probability(similarity_NC: Floats, is_target_NC: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the probability that the most similar candidate is a right one, with ties broken at random, shape (N,)."""
    rounded_NC = np.round(similarity_NC.astype(np.float64), DIGITS)
    is_best_NC = rounded_NC == rounded_NC.max(axis=1, keepdims=True)
    return (is_best_NC & is_target_NC).sum(axis=1) / is_best_NC.sum(axis=1)


def winoground(similarity_N22: Floats) -> dict[str, NDArray[np.float64]]:
    """Score two sounds with the same events against two captions with the same words [2].

    Parameters
    ----------
    similarity_N22 : array, shape (N, 2, 2)
        Rows audio, columns captions; the diagonal is right.

    Returns
    -------
    dict of array, shape (N,), in [0, 1]
        ``text``: each sound prefers its own caption; ``audio``: each caption prefers its own sound; ``group``: both.
        If all are equal: 1/4, 1/4 and 1/6, the means over all 24 orders of the four.
    """
    value_N22 = np.round(similarity_N22.astype(np.float64), DIGITS)
    scores = {name: np.zeros(len(value_N22)) for name in ("text", "audio", "group")}
    draws = list(permutations(range(4)))
    for drawn in draws:
        (a, b), (c, d) = np.array(drawn).reshape(2, 2)
        is_above = {
            "text": [((0, 0), (0, 1), a > b), ((1, 1), (1, 0), d > c)],
            "audio": [((0, 0), (1, 0), a > c), ((1, 1), (0, 1), d > b)],
        }
        right = {}
        for name, pairs in is_above.items():
            found = []
            for one, other, wins_tie in pairs:
                high, low = value_N22[:, *one], value_N22[:, *other]
                found.append((high > low) | ((high == low) & wins_tie))
            right[name] = found[0] & found[1]
        right["group"] = right["text"] & right["audio"]
        for name, is_right in right.items():
            scores[name] += is_right
    return {name: score / len(draws) for name, score in scores.items()}


def pigeonhole_interval(
    score_N: Floats, recordings_NR: NDArray[Any], *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the interval of a mean over items that combine several recordings, by resampling the recordings [3].

    The weight of an item is the product, over its recordings, of the number of times that each was drawn.

    Parameters
    ----------
    score_N : array, shape (N,)
    recordings_NR : array, shape (N, R)
        The recordings of each item; an item with a single recording repeats it R times.
    level : float in (0, 1)
    num_resamples : int
    seed : int

    Returns
    -------
    low, high : float
        Percentiles of the weighted mean; resamples in which no item has a weight are skipped.

    Raises
    ------
    ValueError
        Lengths differ, there is no item, or the level is not in (0, 1).
    """
    if len(score_N) != len(recordings_NR) or not len(score_N):
        raise ValueError(
            f"expected recordings for each of at least one score, got {len(recordings_NR)}, {len(score_N)}"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level:g}")
    names, code_NR = np.unique(recordings_NR, return_inverse=True)
    code_NR = code_NR.reshape(recordings_NR.shape)
    is_single_N = (code_NR == code_NR[:, :1]).all(axis=1)
    rng, means = np.random.default_rng(seed), []
    for _ in range(num_resamples):
        drawn = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        weight_N = np.where(is_single_N, drawn[code_NR[:, 0]], drawn[code_NR].prod(axis=1))
        if weight_N.any():
            means.append(np.average(score_N, weights=weight_N))
    if not means:
        return 0.0, 1.0
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class OrderTest:
    """What is scored: the groups, the unit rows of their items, and the function that embeds texts.

    Attributes
    ----------
    groups : DataFrame
        As in `clapcur.data.compositions`.
    audio_GKD : array, shape (G, 5, D)
        Unit rows of the items, with kinds in the order of `KINDS`.
    class_names : sequence of str
        The C classes.
    embed_text : callable
        Maps texts to unit rows.
    prompt : str
        Prompt template of the captions.
    seed : int
        Seed for the choice of distractors.
    """

    groups: pd.DataFrame
    audio_GKD: NDArray[np.float32]
    class_names: Sequence[str]
    embed_text: EmbedText
    prompt: str = PROMPT
    seed: int = 0

    def audio(self, *kinds: Kind) -> NDArray[np.float32]:
        """Return the rows of some kinds, group by group, shape (G * len(kinds), D)."""
        return self.audio_GKD[:, [KINDS.index(kind) for kind in kinds]].reshape(-1, self.audio_GKD.shape[2])

    def items(self, *kinds: Kind) -> list[tuple[str, Meaning]]:
        """Return the names and meanings of items in the order of `audio`."""
        return [
            (item_id(group.group_id, kind), group.meaning(kind)) for group in Group.of(self.groups) for kind in kinds
        ]

    def rows(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the unit rows of texts; each distinct text is embedded once."""
        unique = sorted(set(texts))
        place = {text: index for index, text in enumerate(unique)}
        return self.embed_text(unique)[[place[text] for text in texts]]


def score_items(test: OrderTest) -> pd.DataFrame:
    """Return the score of every item in every task: columns task, item_id, score, chance."""
    tables = [
        *_classes(test),
        *_relations(test),
        _distractors(test),
        _positions(test),
        *_orders(test),
        *retrieval(test),
    ]
    return pd.concat(tables, ignore_index=True)


def _table(task: str, items: Sequence[tuple[str, Meaning]], score: Floats, chance: float | Floats) -> pd.DataFrame:
    return pd.DataFrame({"task": task, "item_id": [name for name, _ in items], "score": score, "chance": chance})


def _classes(test: OrderTest) -> Iterator[pd.DataFrame]:
    """Tasks 1 and 2: which classes are heard."""
    num_classes = len(test.class_names)
    prompts_CD = test.rows(prompts(test.class_names, test.prompt))
    for task, kinds in (
        ("single", ("first", "second")),
        ("both.sequence", SEQUENCES),
        ("both.overlap", ("overlap",)),
    ):
        items = test.items(*kinds)
        is_target = np.array([[name in meaning[1:] for name in test.class_names] for _, meaning in items])
        score = top_set_probability(test.audio(*kinds) @ prompts_CD.T, is_target)
        yield _table(task, items, score, 1 / comb(num_classes, 1 if task == "single" else 2))


def _variants() -> Iterator[tuple[str, str]]:
    """Yield each connector of a sequence with one of an overlap."""
    overlaps = list(CONNECTORS["overlap"])
    for index, connector in enumerate(CONNECTORS["sequence"]):
        yield connector, overlaps[index % len(overlaps)]


def _relations(test: OrderTest) -> Iterator[pd.DataFrame]:
    """Task 3: before, after, or at the same time."""
    items, audio_ND = test.items(*SEQUENCES), test.audio(*SEQUENCES)
    is_target = np.tile([True, False, False], (len(items), 1))
    scores = []
    for sequence, overlap in _variants():
        texts = []
        for _, meaning in items:
            one, other = sorted(meaning[1:])
            both_at_once: Meaning = ("overlap", one, other)
            texts += [
                phrase(meaning, sequence, test.prompt),
                phrase(reversed_meaning(meaning), sequence, test.prompt),
                phrase(both_at_once, overlap, test.prompt),
            ]
        rows_N3D = test.rows(texts).reshape(len(items), 3, -1)
        scores.append(top_set_probability(np.einsum("id,icd->ic", audio_ND, rows_N3D), is_target))
    yield _table("relation", items, np.mean(scores, axis=0), 1 / 3)


def _distractors(test: OrderTest) -> pd.DataFrame:
    """Task 4: the right phrase among phrases with two of seven classes; the overlap of A and B is always included."""
    rng = np.random.default_rng(test.seed)
    variants = list(_variants())
    items, audio_ND = test.items(*SEQUENCES), test.audio(*SEQUENCES)
    chosen: list[list[str]] = []
    for index, (_, meaning) in enumerate(items):
        others = sorted(set(test.class_names) - set(meaning[1:]))
        names = [*meaning[1:], *rng.permutation(others)[:NUM_OTHERS].tolist()]
        sequence, overlap = variants[index % len(variants)]
        said = [phrase(("sequence", *pair), sequence, test.prompt) for pair in permutations(names, 2)]
        said += [phrase(("overlap", *sorted(pair)), overlap, test.prompt) for pair in permutations(names, 2)]
        truth = phrase(meaning, sequence, test.prompt), phrase(("overlap", *sorted(names[:2])), overlap, test.prompt)
        rest = [text for text in dict.fromkeys(said) if text not in truth]
        chosen.append([*truth, *rng.permutation(rest)[: MAX_PHRASES - 2].tolist()])
    num_phrases = len(chosen[0])
    rows = test.rows([text for texts in chosen for text in texts]).reshape(len(items), num_phrases, -1)
    is_target = np.zeros((len(items), num_phrases), bool)
    is_target[:, 0] = True
    score = top_set_probability(np.einsum("id,icd->ic", audio_ND, rows), is_target)
    return _table("relation_distractors", items, score, 1 / num_phrases)


def _positions(test: OrderTest) -> pd.DataFrame:
    """Task 5: which sound is first and which is second; both must be right."""
    items, audio_ND = test.items(*SEQUENCES), test.audio(*SEQUENCES)
    num_classes = len(test.class_names)
    is_target = np.array(
        [[name == meaning[place] for place in (1, 2) for name in test.class_names] for _, meaning in items]
    )
    scores = []
    for templates in POSITIONS:
        texts = [text for template in templates for text in prompts(test.class_names, template)]
        scores.append(top_set_probability(audio_ND @ test.rows(texts).T, is_target))
    return _table("position", items, np.mean(scores, axis=0), 1 / comb(2 * num_classes, 2))


def _orders(test: OrderTest) -> Iterator[pd.DataFrame]:
    """Order alone, and Winoground: both sequences of a group against both captions."""
    audio_G2D = test.audio(*SEQUENCES).reshape(len(test.groups), 2, -1)
    found: dict[str, list[NDArray[np.float64]]] = {"order": [], "text": [], "audio": [], "group": []}
    for connector in CONNECTORS["sequence"]:
        texts = [phrase(meaning, connector, test.prompt) for _, meaning in test.items(*SEQUENCES)]
        similarity_G22 = np.einsum("gad,gtd->gat", audio_G2D, test.rows(texts).reshape(audio_G2D.shape))
        for name, score in winoground(similarity_G22).items():
            found[name].append(score)
        is_own = np.tile(np.eye(2, dtype=bool), (len(test.groups), 1))
        found["order"].append(top_set_probability(similarity_G22.reshape(-1, 2), is_own))
    yield _table("order", test.items(*SEQUENCES), np.mean(found["order"], axis=0), 1 / 2)
    for name, chance in (("text", 1 / 4), ("audio", 1 / 4), ("group", 1 / 6)):
        yield _table(f"winoground.{name}", test.items("forward"), np.mean(found[name], axis=0), chance)


def retrieval(test: OrderTest) -> Iterator[pd.DataFrame]:
    """Yield R@1 of captions among all sequences: unchanged, reversed, and with the connector replaced.

    The relevant sounds stay the same: those with the meaning of the unchanged caption. A model that understands
    captions finds them less often with the other two; a bag of words finds them as often with a reversed caption.
    """
    items, audio_ND = test.items(*SEQUENCES), test.audio(*SEQUENCES)
    codes_N = pd.factorize(np.array([f"{one}\n{other}" for _, (_, one, other) in items], object))[0]
    is_relevant_NN = codes_N[:, None] == codes_N[None, :]
    asked = {
        "retrieval": phrase,
        "retrieval.reversed": lambda meaning, *given: phrase(reversed_meaning(meaning), *given),
        "retrieval.replaced": replaced_phrase,
    }
    for task, said in asked.items():
        scores = [
            top_one_probability(
                test.rows([said(meaning, connector, test.prompt) for _, meaning in items]) @ audio_ND.T, is_relevant_NN
            )
            for connector in CONNECTORS["sequence"]
        ]
        yield _table(task, items, np.mean(scores, axis=0), is_relevant_NN.mean(axis=1))
