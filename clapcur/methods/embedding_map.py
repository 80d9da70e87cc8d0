"""A map of embeddings: their first two principal components, and a sample of points that fits on a page.

Shapes: N clips, D dimensions, T texts, K classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 65_536  # rows per block, which limits the memory used


@dataclass(frozen=True)
class Plane:
    """The plane that shows the most variance of a table of rows.

    Attributes
    ----------
    mean_D : array, shape (D,)
        Mean of the rows.
    axes_D2 : array, shape (D, 2)
        Orthonormal axes, the one with more variance first; the largest entry of each is positive.
    explained : (float, float)
        Fraction of the variance along each axis, from 0 to 1.
    """

    mean_D: NDArray[np.float64]
    axes_D2: NDArray[np.float64]
    explained: tuple[float, float]

    def place(self, rows_ND: NDArray[np.float32], mean_D: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return the coordinates of rows, shape (N, 2), relative to the plane's mean or to another.

        Parameters
        ----------
        rows_ND : array, shape (N, D)
        mean_D : array, shape (D,), optional
            Row at the origin of the map; default: the mean of the plane.
        """
        centre_D = self.mean_D if mean_D is None else mean_D
        return np.asarray(rows_ND @ self.axes_D2 - centre_D @ self.axes_D2)


def principal_plane(rows_ND: NDArray[np.float32]) -> Plane:
    """Return the plane of the first two principal components; the same rows give the same plane.

    Parameters
    ----------
    rows_ND : array, shape (N, D)
        Read in blocks.

    Raises
    ------
    ValueError
        There are fewer than two rows or dimensions, or all rows are equal.
    """
    count, dims = rows_ND.shape
    if count < 2 or dims < 2:
        raise ValueError(f"a map needs at least two rows of two dimensions, got {count} of {dims}")
    mean_D = sum(block.sum(axis=0, dtype=np.float64) for block in _blocks(rows_ND)) / count
    covariance_DD = np.zeros((dims, dims))
    for block in _blocks(rows_ND):
        centred = block - mean_D
        covariance_DD += centred.T @ centred
    variance_D, axes_DD = np.linalg.eigh(covariance_DD)  # ascending
    if not variance_D.sum() > 1e-12 * count:
        raise ValueError(f"all {count:,} rows are equal: a map would show one point")
    axes_D2 = axes_DD[:, [-1, -2]]
    axes_D2 = axes_D2 * np.sign(
        axes_D2[np.abs(axes_D2).argmax(axis=0), [0, 1]]
    )  # eigenvectors have no sign of their own
    first, second = (float(variance_D[index] / variance_D.sum()) for index in (-1, -2))
    return Plane(mean_D, axes_D2, (first, max(0.0, second)))


def _blocks(rows_ND: NDArray[np.float32]) -> "list[NDArray[np.float32]]":
    return [rows_ND[start : start + BLOCK] for start in range(0, len(rows_ND), BLOCK)]


def stratified_sample(class_N: NDArray[np.object_], num_rows: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of a sample in which every class has its share, and at least one row.

    Parameters
    ----------
    class_N : array, shape (N,)
        The class of each row.
    num_rows : int
        Size of the sample; all rows if there are fewer. If there are more classes than that, some have no row.
    seed : int
        Seed of the draw within a class.

    Returns
    -------
    array, shape (min(N, num_rows),), int64
        Indices of rows, ascending.
    """
    if len(class_N) <= num_rows:
        return np.arange(len(class_N))
    _, code_N = np.unique(class_N.astype(str), return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(len(code_N))
    by_class = drawn[np.argsort(code_N[drawn], kind="stable")]
    is_first = np.r_[True, np.diff(code_N[by_class]) > 0]
    if is_first.sum() > num_rows:
        is_first[:] = False
    rest = by_class[~is_first]
    count = num_rows - int(is_first.sum())
    evenly = rest[np.floor((np.arange(count) + 0.5) * len(rest) / max(1, count)).astype(np.int64)]
    return np.sort(np.r_[by_class[is_first], evenly])
