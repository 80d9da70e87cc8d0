"""Which pairs of an Improvement-Set are worth hearing: evenly over classes, and over scores inside a class.

A class gives three kinds of pairs. *border*: its lowest scores, the nearest above the threshold. *top*: its highest.
*random*: one pair out of each of equally large parts of what is between, so that the draw covers the range of scores.

Each pair has a weight: how many pairs of the set it represents. Border and top pairs are all there and weigh 1, a drawn
one weighs as much as its part has pairs; the weights of a class add up to its size. A share that is weighted so (of
pairs marked wrong, for instance) is therefore an estimate for the whole set, although the borders are heard more often.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

REASONS = ("border", "top", "random")


def choose_pairs(
    score_P: NDArray[np.float32], class_P: NDArray[np.object_], num_pairs: int, *, border: float, top: float, seed: int
) -> pd.DataFrame:
    """Choose pairs to hear; the same arguments always choose the same ones.

    Parameters
    ----------
    score_P : NDArray, shape (P,)
        The score that the set's threshold cuts, one for each pair of the set.
    class_P : NDArray, shape (P,)
        The class of each pair.
    num_pairs : int
        How many to choose; all of them where the set has fewer. Small classes give what they have, the others more.
    border, top : float
        Shares of the lowest and of the highest scores among the pairs of a class, rounded down; together below 1, so
        that at least one pair of the class is drawn.
    seed : int
        Of the draw, and of which classes get one pair more where they cannot all have the same number.

    Returns
    -------
    DataFrame
        ``row`` (index into the set's pairs), ``class``, ``reason`` (border, top or random), ``weight``. In turns: the
        first pair of every class, then the second of every class, with the reasons mixed, so that whoever stops early
        has heard all classes.
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
    """Share `total` between classes as evenly as their sizes allow; what is left over goes to the first ones."""
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
    """Choose `count` of a class's pairs, which come ordered by score, lowest first; one at least is drawn."""
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
