"""Near-duplicate rows: which rows of a table to keep.

As in SemDeDup (Abbas et al. 2023, arXiv:2303.09540), k-means puts near rows into one cluster, and within a cluster
every pair at or above a threshold counts as a duplicate. Up to `CLUSTER_ROWS` rows are one cluster, so that no pair is
missed; in larger tables, a pair that k-means separates is missed. Of duplicates the first row is kept, while SemDeDup
keeps the one farthest from its centre: the choice must not depend on the rest of the table.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from clapcur.methods.similarity import similar_pairs, spherical_k_means

CLUSTER_ROWS = 50_000  # approximate; ours: one or two seconds of matrix products per cluster on a CPU


def duplicate_of(
    rows_ND: NDArray[np.float32], threshold: float, seed: int = 0, device: torch.device | str | None = None
) -> NDArray[np.int64]:
    """Return for each row the row that represents it: itself if it is kept.

    Parameters
    ----------
    rows_ND : array, shape (N, D)
        Unit rows.
    threshold : float
        Cosine, inclusive. A row that reaches it with a kept row is removed; with a removed row, it may be kept.
    seed : int
        Seed of k-means.
    device : torch.device or str, optional
        Device for the matrix products; by default the CPU.

    Returns
    -------
    array, shape (N,), int64
    """
    rows_ND = np.asarray(rows_ND)
    kept_N = np.arange(len(rows_ND))
    num_clusters = -(-len(rows_ND) // CLUSTER_ROWS)
    cluster_N = spherical_k_means(rows_ND, num_clusters, seed)[1] if num_clusters > 1 else np.zeros(len(rows_ND), int)
    for cluster in range(num_clusters):
        members = np.flatnonzero(cluster_N == cluster)
        for block in similar_pairs(rows_ND[members], rows_ND[members], threshold, device=device):
            is_later = block.text_index > block.audio_index
            pairs = members[block.audio_index[is_later]], members[block.text_index[is_later]]
            for row, later in zip(*pairs, strict=True):  # rows ascend: whether this one is kept is decided
                if kept_N[row] == row and kept_N[later] == later:
                    kept_N[later] = row
    return kept_N
