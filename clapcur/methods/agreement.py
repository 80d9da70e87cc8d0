"""How far people agree beyond chance.

References
----------
.. [1] Cohen 1960, "A Coefficient of Agreement for Nominal Scales", Educational and Psychological Measurement 20(1).
"""

import math
from collections.abc import Sequence

import numpy as np


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float:
    """Return Cohen's kappa [1]_ of two people who judged the same items.

    Parameters
    ----------
    one, other : sequence of str, length N
        What each said of the N items.

    Returns
    -------
    float
        1: they agree on every item. 0: as often as chance would have it. NaN if chance alone makes them agree always
        (both gave every item the same judgement), or if there is no item.

    Raises
    ------
    ValueError
        The sequences differ in length.
    """
    if len(one) != len(other):
        raise ValueError(f"both must have judged the same items, got {len(one)} and {len(other)} judgements")
    if not len(one):
        return math.nan
    judgements, codes = np.unique([*one, *other], return_inverse=True)
    table_KK = np.zeros((len(judgements), len(judgements)))
    np.add.at(table_KK, (codes[: len(one)], codes[len(one) :]), 1)
    table_KK /= len(one)
    observed, expected = float(np.trace(table_KK)), float(table_KK.sum(axis=0) @ table_KK.sum(axis=1))
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan
