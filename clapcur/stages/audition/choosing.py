"""Choose the pairs of an Improvement-Set to listen to: evenly over classes, and over the scores within a class.

Each class contributes three kinds of pairs. *border*: its lowest scores, just above the threshold. *top*: its highest
scores. *random*: the scores in between are split into parts of equal size, and one pair is drawn from each part, so the
draw covers the range of scores.

Each pair has a weight: the number of pairs of the set that it represents. Border and top pairs have weight 1, a drawn
pair the size of its part; the weights of a class add up to its size. A weighted fraction (of pairs marked wrong, for
instance) is therefore an estimate for the whole set, although border pairs are overrepresented.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

REASONS = ("border", "top", "random")


def choose_pairs(
    score_P: NDArray[np.float32], class_P: NDArray[np.object_], num_pairs: int, *, border: float, top: float, seed: int
) -> pd.DataFrame:
    """Choose pairs to listen to; the same arguments always choose the same pairs.

    Parameters
    ----------
    score_P : NDArray, shape (P,)
        Score of each pair to which the set's threshold applies.
    class_P : NDArray, shape (P,)
        The class of each pair.
    num_pairs : int
        Number of pairs to choose; all pairs if the set has fewer. Small classes contribute all they have, others more.
    border, top : float
        Fractions of a class's pairs to take from its lowest and highest scores, rounded down; their sum is below 1, so
        that at least one pair of the class is drawn.
    seed : int
        Seed of the draw, and of which classes get one more pair if the number cannot be split evenly.

    Returns
    -------
    DataFrame
        ``row`` (index into the set's pairs), ``class``, ``reason`` (border, top or random), ``weight``. The order
        alternates: the first pair of every class, then the second, and so on, with mixed reasons, so that a listener
        who stops early has heard all classes.
    """
    rng = np.random.default_rng(seed)
    rows = {str(name): np.asarray(of) for name, of in pd.Series(class_P).groupby(class_P).indices.items()}
    sizes = {name: len(rows[name]) for name in rng.permutation(sorted(rows)).tolist()}
    chosen = []
    for name, count in sorted(even_shares(sizes, num_pairs).items()):
        if not count:
            continue
        ordered = rows[name][np.argsort(score_P[rows[name]], kind="stable")]
        chosen.append(_choose_in_class(ordered, count, border, top, rng).assign(**{"class": name}))
    turns = pd.concat([table.sample(frac=1, random_state=rng).assign(turn=range(len(table))) for table in chosen])
    turns = turns.sort_values(["turn", "class"], ignore_index=True)
    return turns[["row", "class", "reason", "weight"]]


def even_shares(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Split `total` over classes as evenly as their sizes allow; the first classes get the remainder."""
    shares = dict.fromkeys(sizes, 0)
    left = min(total, sum(sizes.values()))
    while left:
        growing = [name for name in sizes if shares[name] < sizes[name]]
        step = max(1, left // len(growing))
        for name in growing[:left]:
            given = min(step, sizes[name] - shares[name])
            shares[name] += given
            left -= given
    return shares


def _choose_in_class(
    ordered: NDArray[np.int64], count: int, border: float, top: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Choose `count` of a class's pairs, which are ordered by score, lowest first; at least one is drawn at random."""
    num_border, num_top = int(border * count), int(top * count)
    parts = np.array_split(ordered[num_border : len(ordered) - num_top], count - num_border - num_top)
    drawn = [int(rng.choice(part)) for part in parts]
    return pd.DataFrame(
        {
            "row": [*ordered[:num_border].tolist(), *drawn, *ordered[len(ordered) - num_top :].tolist()],
            "reason": ["border"] * num_border + ["random"] * len(drawn) + ["top"] * num_top,
            "weight": [1] * num_border + [len(part) for part in parts] + [1] * num_top,
        }
    )
