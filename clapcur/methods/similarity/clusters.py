"""Clusters of texts, so that a clip is compared only with texts near it, where an exact join would take too long.

The centres are found by faiss' k-means, as in its IVF indexes. Unlike in faiss' lists, the products inside a cluster
are dense tiles. They run on the same device as those of the exact join, and the pairs found are scored exactly. Only
pairs whose cluster is not among those nearest to the clip are missed: `recall` counts them on a sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clapcur.methods.similarity.rows import Rows, as_rows, check_positive, load_rows


@dataclass(frozen=True)
class Clusters:
    """The cluster of each text, and the number of clusters that are searched for a clip.

    Attributes
    ----------
    order_M : array, shape (M,), int64
        Rows of the texts, cluster by cluster, in ascending order within each.
    ends_C : array, shape (C,), int64
        End of each cluster in that order.
    centre_CD : array, shape (C, D), float32
        Unit rows.
    num_probes : int
        Number of clusters searched for a clip.
    """

    order_M: NDArray[np.int64]
    ends_C: NDArray[np.int64]
    centre_CD: NDArray[np.float32]
    num_probes: int

    @classmethod
    def of(cls, text_MD: Rows, num_clusters: int, num_probes: int, seed: int = 0) -> "Clusters":
        """Find clusters by spherical k-means.

        Parameters
        ----------
        text_MD : Rows, shape (M, D)
            Unit rows.
        num_clusters : int
            Usually about the square root of M; at most M.
        num_probes : int
            At most `num_clusters`, with which the search is exact.
        seed : int

        Raises
        ------
        ValueError
            The numbers are inconsistent with each other or with the table.
        """
        text_MD = as_rows(text_MD)
        check_positive(num_clusters=num_clusters, num_probes=num_probes)
        if not num_probes <= num_clusters <= len(text_MD):
            raise ValueError(
                f"expected num_probes <= num_clusters <= {len(text_MD)} texts, got {num_probes} and {num_clusters}"
            )
        centre_CD, cluster_M = spherical_k_means(load_rows(text_MD, slice(None), "cpu").numpy(), num_clusters, seed)
        ends_C = np.cumsum(np.bincount(cluster_M, minlength=num_clusters))
        return cls(np.argsort(cluster_M, kind="stable"), ends_C, centre_CD, num_probes)

    def near(self, audio_RD: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield each cluster, as a slice of `order_M`, with the clips for which it is searched, in ascending order."""
        centre_CD = torch.from_numpy(self.centre_CD).to(audio_RD)
        nearest_RP = (audio_RD @ centre_CD.T).topk(self.num_probes, dim=1).indices
        clip_P = torch.arange(len(audio_RD), device=audio_RD.device).repeat_interleave(self.num_probes)
        order = torch.argsort(nearest_RP.flatten(), stable=True)
        counts = torch.bincount(nearest_RP.flatten(), minlength=len(self.ends_C)).tolist()
        for cluster, some in enumerate(clip_P[order].split(counts)):
            start = int(self.ends_C[cluster - 1]) if cluster else 0
            if len(some) and start < self.ends_C[cluster]:
                yield slice(start, int(self.ends_C[cluster])), some


def spherical_k_means(
    rows_ND: NDArray[np.float32], num_clusters: int, seed: int = 0, *, iterations: int = 10
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return unit centres, shape (C, D), and the cluster of each row, shape (N,), by faiss' k-means.

    It runs on a GPU if faiss finds one. The same seed gives the same clusters on the same machine.

    Parameters
    ----------
    rows_ND : array, shape (N, D), float32
        Unit rows.
    num_clusters : int
        C, at most N.
    seed : int
        Seed for the rows from which the centres start.
    iterations : int
    """
    import faiss  # imported late: an exact search does not need it

    means = faiss.Kmeans(
        rows_ND.shape[1], num_clusters, niter=iterations, seed=seed, spherical=True, verbose=False,
        gpu=faiss.get_num_gpus() > 0, min_points_per_centroid=1, max_points_per_centroid=256,
    )  # fmt: skip
    means.train(np.ascontiguousarray(rows_ND, np.float32))
    _, cluster_N1 = means.index.search(np.ascontiguousarray(rows_ND, np.float32), 1)
    return np.array(means.centroids, np.float32), cluster_N1[:, 0].astype(np.int64)
