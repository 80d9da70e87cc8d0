"""Similarity thresholds: by cosine, by count, or by the desired precision on held-out pairs."""

import numpy as np
from numpy.typing import NDArray

from clapcur.config import frozen
from clapcur.errors import EmptySetError

LEAST_SUPPORT = 20  # minimum number of held-out pairs for a meaningful precision


@frozen
class Threshold:
    """A similarity threshold, given in exactly one of three ways.

    Thresholds do not transfer between teachers: 0.7 fits the paper's, while the 99.9th percentile of a teacher trained
    on 1,200 pairs is 0.62.
    """

    similarity: float | None = None
    """Minimum cosine, in [-1, 1], inclusive."""
    count: int | None = None
    """Number of best pairs (audio) or captions (caption) to keep; ties at the end are kept, and `max_per_clip` and
    `max_per_caption` are applied before counting."""
    precision: float | None = None
    """Audio only: use the lowest threshold at which this fraction of held-out pairs has the right class."""

    def __post_init__(self) -> None:
        """Reject a threshold that is given in no or several ways, and values without a meaning."""
        given = [name for name in ("similarity", "count", "precision") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a threshold needs exactly one of similarity, count and precision, got {given or 'none'}")
        if self.similarity is not None and not -1 <= self.similarity <= 1:
            raise ValueError(f"threshold must be a cosine in [-1, 1], got {self.similarity:g}; a percentage?")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if self.precision is not None and not 0 < self.precision <= 1:
            raise ValueError(f"precision must be in (0, 1], got {self.precision:g}; a percentage?")


def precision_threshold(scores: NDArray[np.float32], agrees: NDArray[np.bool_], target: float) -> dict[str, float]:
    """Return the lowest similarity at or above which at least `target` of the scores agree.

    Parameters
    ----------
    scores : array, shape (P,), float32
        Similarities of the judged pairs.
    agrees : array, shape (P,), bool
        Whether each pair is right.
    target : float
        Share of right pairs, 0 to 1.

    Returns
    -------
    dict
        ``similarity``, the ``precision`` reached there and its ``support`` in pairs.

    Raises
    ------
    EmptySetError
        No threshold with at least `LEAST_SUPPORT` pairs reaches the target; the message gives the best precision.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(agrees[order])
    support = np.arange(1, len(scores) + 1)
    precision = hits / support
    is_last_of_ties = np.append(ordered[1:] < ordered[:-1], True)
    usable = is_last_of_ties & (support >= LEAST_SUPPORT)
    reached = np.flatnonzero(usable & (precision >= target))
    if len(reached) == 0:
        best = float(precision[usable].max()) if usable.any() else float("nan")
        raise EmptySetError(
            f"no threshold reaches precision {target:g} on {len(scores)} held-out pairs; the best is {best:.3f}: "
            "lower the precision, or give the threshold by similarity or count"
        )
    at = int(reached[-1])
    return {"similarity": float(ordered[at]), "precision": float(precision[at]), "support": int(support[at])}


def nth_largest(values: NDArray[np.float32], n: int) -> float:
    """Return the n-th largest value, the smallest if there are fewer than n, and 1 if there are none."""
    if not len(values):
        return 1.0
    place = max(0, len(values) - n)
    return float(np.partition(values, place)[place])
