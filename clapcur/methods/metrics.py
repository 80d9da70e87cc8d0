"""Scores of a model from its embeddings: classification, intervals, retrieval, transduction.

Pure functions of numpy arrays. Shapes: N clips, K classes, Q queries, G gallery items, D embedding.
Embeddings are unit rows; a label or prediction is the index of a class prompt, from 0.

References
----------
.. [1] Cameron, Gelbach & Miller 2008, "Bootstrap-Based Improvements for Inference with Clustered
    Errors": why whole groups are resampled.
.. [2] McSherry & Najork 2008, "Computing Information Retrieval Performance Measures Efficiently in
    the Presence of Tied Scores", ECIR.
.. [3] Zhou & Wang 2026, "Transductive Zero-Shot Audio Classification with Audio-Language Models",
    arXiv:2606.17160.
.. [4] Zanella, Gerin & Ben Ayed 2024, "Boosting Vision-Language Models with Transduction"
    (TransCLIP), arXiv:2406.01837.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

NORM_TOLERANCE = 1e-3
LEAST_CLIPS_PER_CLASS = 2.5  # [3]: no certain gain from transduction below
QUERIES_AT_ONCE = 1024  # bounds the memory of the retrieval metrics; ours

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


def predict(audio_ND: Floats, text_KD: Floats) -> NDArray[np.int64]:
    """Return the class with the nearest prompt for each clip: zero-shot classification.

    Parameters
    ----------
    audio_ND, text_KD : array, shapes (N, D) and (K, D)
        Unit rows of the clips and of the class prompts.

    Returns
    -------
    array, shape (N,), int64
        Among equally near prompts, the first.

    Raises
    ------
    ValueError
        Rows are not unit vectors, or dimensions differ.
    """
    # rounded, so that equal prompts are equally near whatever the order of summation
    return _cosines(audio_ND, text_KD).astype(np.float32).argmax(axis=1)


def accuracy(predicted_N: Integers, label_N: Integers) -> float:
    """Return the share of clips whose prediction is their label, in [0, 1]; every clip has the same weight."""
    _check_aligned(predicted=predicted_N, label=label_N)
    return float(np.mean(np.asarray(predicted_N) == np.asarray(label_N)))


def confusion_matrix(predicted_N: Integers, label_N: Integers, num_classes: int) -> NDArray[np.int64]:
    """Count the clips of each class (rows) by predicted class (columns).

    Parameters
    ----------
    predicted_N, label_N : array, shape (N,), integer
        Indices in 0 to num_classes - 1.
    num_classes : int
        K; a class without clips has a row of zeros.

    Returns
    -------
    array, shape (K, K), int64

    Raises
    ------
    ValueError
        Lengths differ, there is no clip, or an index is out of range.
    """
    _check_classes(predicted_N, label_N, num_classes)
    cell_N = np.asarray(label_N) * num_classes + np.asarray(predicted_N)
    return np.bincount(cell_N, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(predicted_N: Integers, label_N: Integers, num_classes: int) -> NDArray[np.float64]:
    """Return the share of each class's clips that are recognised; NaN for a class without clips.

    Parameters and errors are those of `confusion_matrix`; the result has the shape (K,).
    """
    _check_classes(predicted_N, label_N, num_classes)
    label_N = np.asarray(label_N)
    num_clips_K = np.bincount(label_N, minlength=num_classes)
    num_right_K = np.bincount(label_N[label_N == np.asarray(predicted_N)], minlength=num_classes)
    recognised_K = np.full(num_classes, np.nan)
    return np.divide(num_right_K, num_clips_K, out=recognised_K, where=num_clips_K > 0)


def _check_classes(predicted_N: Integers, label_N: Integers, num_classes: int) -> None:
    _check_aligned(predicted=predicted_N, label=label_N)
    for name, index_N in (("predicted", predicted_N), ("label", label_N)):
        if np.min(index_N) < 0 or np.max(index_N) >= num_classes:
            raise ValueError(f"{name} must be in 0 to {num_classes - 1}, got {np.min(index_N)} to {np.max(index_N)}")


def macro_accuracy(predicted_N: Integers, label_N: Integers, num_classes: int) -> float:
    """Return the mean accuracy of the classes that have clips: every class has the same weight.

    Parameters and errors are those of `confusion_matrix`.
    """
    return float(np.nanmean(per_class_accuracy(predicted_N, label_N, num_classes)))


def bootstrap_interval(
    correct_N: ArrayLike,
    groups_N: ArrayLike,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval of a mean over clips, by resampling the recordings that the clips were cut from.

    Clips of one recording tend to be right or wrong together, and ESC-50 and UrbanSound8K have several clips from most
    recordings. An interval from resampling clips would be too narrow.

    Parameters
    ----------
    correct_N : array, shape (N,)
        1 if a clip is right and 0 if not, or any other score of a clip.
    groups_N : array, shape (N,)
        The source recording of each clip, as numbers or strings.
    level : float in (0, 1)
        Share of repetitions of the experiment whose interval contains the true value.
    num_resamples : int
        Number of resamples, each with as many recordings as there are.
    seed : int
        Equal seeds give equal intervals, in any order of the clips.

    Returns
    -------
    low, high : float
        Percentiles of the mean over the clips of the drawn recordings.

    Raises
    ------
    ValueError
        Lengths differ, the level is out of range, or there is only one recording, so that the variation between
        recordings is unknown.

    Notes
    -----
    The cluster bootstrap of [1]_ with percentile limits: somewhat too narrow with fewer than about 20 recordings, and
    of zero width if all clips are right.
    """
    _check_aligned(correct=correct_N, groups=groups_N)
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level:g}; a percentage?")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    recordings, recording_N = np.unique(np.asarray(groups_N), return_inverse=True)
    num_recordings = len(recordings)
    if num_recordings == 1:
        raise ValueError(
            f"an interval needs at least 2 source recordings, but all {len(recording_N)} clips are "
            "from one: the interval would have no width"
        )
    num_clips_G = np.bincount(recording_N)
    sum_G = np.bincount(recording_N, weights=np.asarray(correct_N, np.float64))
    rng = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    for resample in range(num_resamples):
        drawn_G = rng.integers(num_recordings, size=num_recordings)
        means[resample] = sum_G[drawn_G].sum() / num_clips_G[drawn_G].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_change(
    before_N: ArrayLike,
    after_N: ArrayLike,
    groups_N: ArrayLike,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return the change of a mean from one model to another on the same clips, with its interval.

    Parameters
    ----------
    before_N, after_N : array, shape (N,)
        Which clips the first model (the teacher) and the second (the student) classify correctly.
    groups_N, level, num_resamples, seed
        As in `bootstrap_interval`.

    Returns
    -------
    change, low, high : float
        ``after - before``: positive if the second model is better. The interval is that of the difference clip by clip,
        and much narrower than one from two separate intervals.
    """
    _check_aligned(before=before_N, after=after_N)
    change_N = np.asarray(after_N, np.float64) - np.asarray(before_N, np.float64)
    low, high = bootstrap_interval(change_N, groups_N, level=level, num_resamples=num_resamples, seed=seed)
    return float(change_N.mean()), low, high


def recall_at_k(similarity_QG: Floats, relevant_QG: NDArray[np.bool_], k: int) -> float:
    """Return the share of queries with a relevant item among their first k, in [0, 1].

    Parameters
    ----------
    similarity_QG : array, shape (Q, G)
        For text to audio, the queries are captions and the gallery items are clips; for audio to text, transpose both
        matrices.
    relevant_QG : array, shape (Q, G), bool
        All relevant items: all captions of a clip, and every copy of a clip in the gallery. Build it by comparing ids;
        the diagonal alone would treat four of five captions as wrong.
    k : int
        At least 1.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        Shapes differ, a similarity is NaN, a query has no relevant item, or k is below 1.

    Notes
    -----
    One of several relevant items is enough, as in the retrieval tables of the CLAP papers: the best of a clip's five
    captions counts. (The *share* of the relevant items that are found would be at most 1/5 at k = 1.)

    Equal similarities have no order. The value is the mean over all orders of the tied items [2]_: a model for which
    everything is equally similar scores exactly chance, and the order of the gallery does not matter.
    """

    def found(ties: "_Ties") -> NDArray[np.float64]:
        # the probability that place j misses, given that all places before it missed
        still_wrong = np.maximum(ties.size - ties.relevant - ties.offset, 0)
        return 1 - np.prod(still_wrong / (ties.size - ties.offset), axis=1)

    return _mean_over_queries(found, similarity_QG, relevant_QG, k)


def mean_average_precision_at_k(similarity_QG: Floats, relevant_QG: NDArray[np.bool_], k: int) -> float:
    """Return the mean over queries of the average precision of their first k items (such as mAP@10), in [0, 1].

    Parameters
    ----------
    similarity_QG, relevant_QG, k
        As in `recall_at_k`, as are the errors and the treatment of ties.

    Returns
    -------
    float

    Notes
    -----
    The average precision of a query with R relevant items is the sum of the precisions at the places of the relevant
    items among the first k, divided by min(R, k): a perfect ranking scores 1.
    """

    def average_precision(ties: "_Ties") -> NDArray[np.float64]:
        # expected relevant items up to and at a place, given that the place is relevant; [2], AP
        others = ties.offset * (ties.relevant - 1) / np.maximum(ties.size - 1, 1)
        precision = (ties.relevant_before + others + 1) / (ties.place + 1)
        expected = (ties.relevant / ties.size * precision).sum(axis=1)
        return expected / np.minimum(ties.num_relevant, k)

    return _mean_over_queries(average_precision, similarity_QG, relevant_QG, k)


def similarity_from_ranking(ranking_QR: Integers, num_items: int) -> NDArray[np.float32]:
    """Convert ranked lists, best first, to similarities with the same ranking.

    Parameters
    ----------
    ranking_QR : array, shape (Q, R), integer
        The first R gallery items of each query.
    num_items : int
        G, the size of the gallery.

    Returns
    -------
    array, shape (Q, G), float32
        Minus the place; minus infinity for items that are not listed. Metrics at k up to R are exact.
    """
    num_queries, num_ranked = np.shape(ranking_QR)
    similarity_QG = np.full((num_queries, num_items), -np.inf, np.float32)
    places = np.broadcast_to(-np.arange(num_ranked, dtype=np.float32), (num_queries, num_ranked))
    np.put_along_axis(similarity_QG, np.asarray(ranking_QR), places, axis=1)
    return similarity_QG


def transductive_posteriors(
    audio_ND: Floats,
    text_KD: Floats,
    *,
    logit_scale: float = 100.0,
    anchor: float = 1.0,
    num_confident: int = 8,
    num_rounds: int = 10,
) -> NDArray[np.float64]:
    """Classify a whole batch of clips at once: text-anchored spherical EM, without labels.

    Zero-shot classification uses one clip at a time. This also uses the similarity of clips of the same class: a
    mixture with one mean per class and one shared spherical variance is fitted to the audio alone, with the zero-shot
    posteriors as its prior.

    Parameters
    ----------
    audio_ND, text_KD : array, shapes (N, D) and (K, D)
        Unit rows of the clips and of the class prompts; a class need not have clips.
    logit_scale : float > 0
        Scale of the zero-shot logits: exp of the model's own parameter. A much larger scale makes the prior so
        confident that the clips change nothing.
    anchor : float >= 0
        Exponent of the prior (lambda in [4]_); 0 is plain clustering after the first round.
    num_confident : int
        Number of clips, those with the highest zero-shot posterior, that initialise the mean of a class; at most N/K.
    num_rounds : int
        Rounds of EM; 0 is the zero-shot posterior.

    Returns
    -------
    array, shape (N, K), float64
        Rows sum to 1. With fewer clips than classes, or if all clips are equal, this is the zero-shot posterior, since
        there is nothing to learn from.

    Raises
    ------
    ValueError
        Rows are not unit vectors, dimensions differ, or a parameter is out of range.

    Notes
    -----
    [3]_ reports gains of 4.6 to 9.2 points on sound events, but none with fewer than about 2.5 clips per class or if
    the zero-shot posterior is near chance: see `transductive_diagnostics`. The test clips are used together, so the
    scores are shown beside inductive ones, not among them.

    The framework is that of [3]_ and [4]_: the prior enters as y^lambda, and the means start from confident clips and
    are normalised in every round. Two choices are ours, because the constants of [3]_ were not available:

    - Audio rows are centred first. The audio and text embeddings of a CLAP are in different cones, so the audio's
      common direction dominates every cosine, but does not separate classes.
    - The variance is per *effective* dimension, the participation ratio of the audio's spectrum, tr(C)^2 / tr(C^2).
      With the nominal D, the likelihood of a 1024-dimensional embedding, which varies in about 30 directions, would
      overwhelm any prior ([4]_ divides it by 50).
    """
    _check_at_least(0, anchor=anchor, num_rounds=num_rounds)
    _check_at_least(1, num_confident=num_confident)
    if not logit_scale > 0:
        raise ValueError(f"logit_scale must be above 0, got {logit_scale:g}; its logarithm?")
    audio_ND, text_KD = np.asarray(audio_ND), np.asarray(text_KD)
    cosine_NK = _cosines(audio_ND, text_KD)
    from scipy.special import log_softmax  # imported late, for commands that score nothing

    log_prior_NK = log_softmax(logit_scale * cosine_NK, axis=1)
    num_clips, num_classes = cosine_NK.shape
    if num_clips < num_classes:
        return np.exp(log_prior_NK)
    centred_ND = _directions(audio_ND - np.mean(audio_ND, axis=0, dtype=np.float64))
    if not centred_ND.any():
        return np.exp(log_prior_NK)
    spread_DD = centred_ND.T @ centred_ND / num_clips
    num_dims = np.trace(spread_DD) ** 2 / np.sum(spread_DD**2)

    # equal posteriors, such as those that round to 1, are ordered by their cosine
    most_confident_NK = np.lexsort((-cosine_NK, -log_prior_NK), axis=0)
    start_MK = most_confident_NK[: min(num_confident, num_clips // num_classes)]
    mean_KD = _directions(centred_ND[start_MK].sum(axis=0))
    posterior_NK = np.exp(log_prior_NK)
    for _ in range(num_rounds):
        closeness_NK = centred_ND @ mean_KD.T
        # squared distances are 2 - 2 closeness; the floor keeps the result finite if the clips of each class are equal
        variance = np.sum(posterior_NK * (2 - 2 * closeness_NK)) / num_clips / num_dims
        log_likelihood_NK = closeness_NK / max(variance, 1e-6)
        posterior_NK = np.exp(log_softmax(anchor * log_prior_NK + log_likelihood_NK, axis=1))
        mean_KD = _directions(posterior_NK.T @ centred_ND)
    return posterior_NK


def transductive_diagnostics(posterior_NK: Floats) -> dict[str, float]:
    """Return measures of whether a batch is suitable for transduction, without labels.

    Parameters
    ----------
    posterior_NK : array, shape (N, K)
        From `transductive_posteriors`.

    Returns
    -------
    dict
        ``clips_per_class``: N / K, to be compared with `LEAST_CLIPS_PER_CLASS`;
        ``smallest_class``: expected number of clips in the smallest class, near 0 if a class was
        lost or has no clip; ``entropy``: mean over clips, divided by log K, near 1 if the
        model does not distinguish the classes.
    """
    posterior_NK = np.asarray(posterior_NK, np.float64)
    num_clips, num_classes = posterior_NK.shape
    logarithm_NK = np.log(np.where(posterior_NK > 0, posterior_NK, 1))
    entropy_N = -np.sum(posterior_NK * logarithm_NK, axis=1)
    return {
        "clips_per_class": num_clips / num_classes,
        "smallest_class": float(posterior_NK.sum(axis=0).min()),
        "entropy": float(entropy_N.mean() / np.log(num_classes)) if num_classes > 1 else 0.0,
    }


class _Ties:
    """The first k places of every ranking, with the tie that each of them is in.

    The arrays have the shape (Q, k): ``size`` of the tie, ``relevant`` items in it and ``relevant_before`` it, and
    ``offset`` of the place in its tie. ``place``, from 0, has the shape (k,), and ``num_relevant`` (Q,).
    """

    def __init__(self, similarity_QG: Floats, relevant_QG: NDArray[np.bool_], k: int) -> None:
        order_QG = np.argsort(-similarity_QG, axis=1, kind="stable")
        similarity_QG = np.take_along_axis(similarity_QG, order_QG, axis=1)
        relevant_QG = np.take_along_axis(relevant_QG, order_QG, axis=1)
        num_items = similarity_QG.shape[1]
        place_G = np.arange(num_items)
        changes = similarity_QG[:, 1:] != similarity_QG[:, :-1]
        starts_QG = np.pad(changes, ((0, 0), (1, 0)), constant_values=True)
        ends_QG = np.pad(changes, ((0, 0), (0, 1)), constant_values=True)
        start = np.maximum.accumulate(np.where(starts_QG, place_G, 0), axis=1)
        next_end = np.where(ends_QG, place_G + 1, num_items)[:, ::-1]
        end = np.minimum.accumulate(next_end, axis=1)[:, ::-1]
        found_up_to = np.pad(np.cumsum(relevant_QG, axis=1), ((0, 0), (1, 0)))
        start, end = start[:, :k], end[:, :k]
        self.place = place_G[:k]
        self.size = end - start
        self.offset = self.place - start
        self.relevant_before = np.take_along_axis(found_up_to, start, axis=1)
        relevant_up_to = np.take_along_axis(found_up_to, end, axis=1)
        self.relevant: NDArray[np.int64] = relevant_up_to - self.relevant_before
        self.num_relevant = found_up_to[:, -1]


def _mean_over_queries(
    score: Callable[[_Ties], NDArray[np.float64]],
    similarity_QG: Floats,
    relevant_QG: NDArray[np.bool_],
    k: int,
) -> float:
    similarity_QG, relevant_QG = np.asarray(similarity_QG), np.asarray(relevant_QG, np.bool_)
    _check_at_least(1, k=k)
    if similarity_QG.ndim != 2 or similarity_QG.shape != relevant_QG.shape:
        raise ValueError(
            "similarity and relevant must have the same shape (queries, gallery), "
            f"got {similarity_QG.shape} and {relevant_QG.shape}"
        )
    if not relevant_QG.any(axis=1).all() or not len(relevant_QG):
        without = np.flatnonzero(~relevant_QG.any(axis=1))
        raise ValueError(
            f"every query needs a relevant item, but {len(without)} of {len(relevant_QG)} have none; "
            f"the first is {without[:1]}: it would count as missed for any model"
        )
    if np.isnan(similarity_QG).any():
        raise ValueError("similarities must be numbers, got NaN: its rank would be arbitrary")
    parts = [
        score(_Ties(similarity_QG[first:][:QUERIES_AT_ONCE], relevant_QG[first:][:QUERIES_AT_ONCE], k))
        for first in range(0, len(similarity_QG), QUERIES_AT_ONCE)
    ]
    return float(np.concatenate(parts).mean())


def _cosines(audio_ND: Floats, text_KD: Floats) -> NDArray[np.float64]:
    audio_ND, text_KD = np.asarray(audio_ND, np.float64), np.asarray(text_KD, np.float64)
    if audio_ND.ndim != 2 or text_KD.ndim != 2 or audio_ND.shape[1] != text_KD.shape[1]:
        raise ValueError(
            "expected audio rows (N, D) and text rows (K, D) of one model, "
            f"got shapes {audio_ND.shape} and {text_KD.shape}"
        )
    if not len(text_KD):
        raise ValueError("expected at least one class prompt, got none")
    for name, rows in (("audio", audio_ND), ("text", text_KD)):
        norms = np.linalg.norm(rows, axis=1)
        if not np.all(np.abs(norms - 1) <= NORM_TOLERANCE):
            wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))[0]
            raise ValueError(
                f"{name} rows must be unit vectors, row {wrong} has norm {norms[wrong]:.4g}: a "
                "long row would win every comparison; divide each row by its norm"
            )
    return audio_ND @ text_KD.T


def _directions(rows_ND: Floats) -> NDArray[np.float64]:
    """Normalise rows; rows that are zero up to rounding become zero."""
    norms = np.linalg.norm(rows_ND, axis=-1, keepdims=True)
    return np.divide(rows_ND, norms, out=np.zeros(rows_ND.shape), where=norms > 1e-6)


def _check_aligned(**arrays: ArrayLike) -> None:
    (name, first), (other_name, other) = arrays.items()
    if np.ndim(first) != 1 or np.shape(first) != np.shape(other) or not np.size(first):
        raise ValueError(
            f"{name} and {other_name} must hold one entry per clip, got shapes {np.shape(first)} and {np.shape(other)}"
        )


def _check_at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value:g}")
