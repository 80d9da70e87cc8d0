"""Rows that say the same: which of a table may stay.

As SemDeDup (Abbas et al. 2023, arXiv:2303.09540) does it: k-means puts near rows into one cluster, and inside a
cluster every pair above a threshold counts as a duplicate. Up to `CLUSTER_ROWS` rows are one cluster, so that nothing
is missed; of larger tables a pair that k-means tears apart is. Of duplicates the first row stays, where SemDeDup keeps
the one that is least like its centre: which one stays must not depend on what else is in the table.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from clapcur.methods.similarity import similar_pairs, spherical_k_means

CLUSTER_ROWS = 50_000  # about; ours: a second or two of products a cluster on a processor


def duplicate_of(
    rows_ND: NDArray[np.float32], threshold: float, seed: int = 0, device: torch.device | str | None = None
) -> NDArray[np.int64]:
    """Return for each row the row that represents it: itself where it stays.

    Parameters
    ----------
    rows_ND : array, shape (N, D)
        Unit rows.
    threshold : float
        Cosine, inclusive. A row that is that near to one that stays goes; near to one that goes, it may stay.
    seed : int
        Of k-means.
    device : torch.device or str, optional
        Of the products; the CPU where not given.

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
            for row, later in zip(*pairs, strict=True):  # rows rise: whether this one stays is settled
                if kept_N[row] == row and kept_N[later] == later:
                    kept_N[later] = row
    return kept_N
