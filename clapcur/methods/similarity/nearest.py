"""The nearest keys of each query, the class of a caption, the floor under the clips of a caption."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clapcur.methods.similarity.join import BELOW_ALL, Join
from clapcur.methods.similarity.rows import (
    NORM_TOLERANCE,
    Rows,
    as_rows,
    check_dims,
    check_positive,
    check_rows,
    exact_cosine,
    load_rows,
    slices,
)

LEAST_SPARE = 8  # candidates that faiss is asked for beyond k, to see that no tie was cut; ours
QUERIES_AT_ONCE = 1024  # of faiss

Proposer = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def top_k(
    queries_QD: Rows,
    keys_MD: Rows,
    k: int,
    *,
    backend: Literal["faiss", "torch"] = "torch",
    offsets: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    tile: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    precision: torch.dtype | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the k most similar keys of each query.

    Parameters
    ----------
    queries_QD, keys_MD : Rows, shapes (Q, D) and (M, D)
        Unit rows. The keys are held on the device, the queries are read tile by tile.
    k : int, at most M
        Keys per query.
    backend : {"faiss", "torch"}
        What proposes the candidates: tiles on the device, as in `similar_pairs`, or a faiss
        ``IndexFlatIP``, which copies the keys (on a GPU where the device is one and faiss sees it;
        k is at most 2,000 there). The result is the same.
    offsets, tile, device, precision
        As in `similar_pairs`; of the torch backend, but for the device.

    Returns
    -------
    similarity_QK : array, shape (Q, k), float32
        Cosines, falling.
    index_QK : array, shape (Q, k), int64
        Rows of the keys. Of equally similar keys the one with the lower index is first, and is
        the one that is kept.

    Raises
    ------
    ValueError
        Rows are not unit vectors, dimensions differ, k is not in 1 to M, unknown backend, or offsets
        with faiss.
    """
    queries_QD = check_rows(queries_QD, "query")
    keys_MD = check_rows(keys_MD, "key")
    check_dims(queries_QD, keys_MD)
    if not 1 <= k <= len(keys_MD):
        raise ValueError(f"k must be between 1 and the number of keys, {len(keys_MD)}, got {k}")
    if backend == "faiss":
        if offsets is not None:
            raise ValueError("faiss does not support offsets: use backend='torch'")
        found = _faiss_top_k(queries_QD, keys_MD, k, device)
    elif backend == "torch":
        no_floor_M = np.full(len(keys_MD), BELOW_ALL, np.float32)
        join = Join(queries_QD, keys_MD, no_floor_M, k, offsets=offsets, tile=tile, device=device, precision=precision)
        found = [(block.similarity, block.text_index) for block in join.blocks()]  # k for each query, in their order
    else:
        raise ValueError(f"backend must be 'faiss' or 'torch', got {backend!r}")
    similarity = np.concatenate([part.reshape(-1) for part, _ in found] or [np.empty(0, np.float32)])
    index = np.concatenate([part.reshape(-1) for _, part in found] or [np.empty(0, np.int64)])
    return similarity.reshape(-1, k), index.reshape(-1, k)


def best_class(
    text_MD: Rows, prompts_KD: Rows, *, device: torch.device | str | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the class prompt that each text is nearest to: the rule by which DS selects captions.

    Parameters
    ----------
    text_MD, prompts_KD : Rows, shapes (M, D) and (K, D)
        Unit rows.
    device : torch.device or str, optional
        The CPU where not given.

    Returns
    -------
    class_index_M : array, shape (M,), int64
        The class with the largest cosine, of equal ones the first.
    similarity_M : array, shape (M,), float32
        That cosine. The reference code keeps neither.
    """
    similarity_M1, index_M1 = top_k(text_MD, prompts_KD, 1, device=device)
    return index_M1[:, 0], similarity_M1[:, 0]


def caption_floor(
    audio_ND: Rows,
    text_MD: Rows,
    k: int,
    *,
    offsets: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    device: torch.device | str | None = None,
) -> NDArray[np.float32]:
    """Find the k-th best similarity of each caption, by which `similar_pairs` caps its clips.

    Parameters
    ----------
    audio_ND, text_MD : Rows, shapes (N, D) and (M, D)
        Unit rows.
    k : int
        Clips that a caption may keep. Clips that tie with the k-th are kept too.
    offsets : (array of shape (N,), array of shape (M,)), optional
        As in `similar_pairs`.
    device : torch.device or str, optional
        The CPU where not given.

    Returns
    -------
    array, shape (M,), float32
        Minus infinity where there are at most k clips: nothing to cap.
    """
    check_positive(k=k)
    audio_ND, text_MD = as_rows(audio_ND), as_rows(text_MD)
    if len(audio_ND) <= k:
        check_rows(text_MD, "text")
        return np.full(len(text_MD), -np.inf, np.float32)
    similarity_MK, _ = top_k(text_MD, audio_ND, k, offsets=offsets and offsets[::-1], device=device)
    return similarity_MK[:, -1]


def _faiss_top_k(
    queries_QD: Rows, keys_MD: Rows, k: int, device: torch.device | str | None
) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    keys = load_rows(keys_MD, slice(None), device)
    propose = _faiss_proposer(keys)
    return [
        _best(load_rows(queries_QD, rows, device), keys, k, k + LEAST_SPARE, propose)
        for rows in slices(len(queries_QD), QUERIES_AT_ONCE)
    ]


def _best(
    queries_QD: Tensor,
    keys_MD: Tensor,
    k: int,
    width: int,
    propose: Proposer,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Take the k best of `width` proposals; ask for more where the k-th could be contested."""
    num_queries, num_keys = len(queries_QD), len(keys_MD)
    width = min(width, num_keys)
    rough_QW, index_QW = propose(queries_QD, width)
    row_P = torch.arange(num_queries, device=index_QW.device).repeat_interleave(width)
    exact_QW = exact_cosine(queries_QD, row_P, keys_MD, index_QW.flatten()).view(num_queries, width)
    exact, index = exact_QW.cpu().numpy(), index_QW.cpu().numpy()
    order_QK = np.lexsort((index, -exact), axis=1)[:, :k]
    exact_QK, index_QK = (np.take_along_axis(x, order_QK, axis=1) for x in (exact, index))
    if width == num_keys:
        return exact_QK, index_QK
    # a key that was not proposed has at most this cosine
    bound_Q = rough_QW[:, -1].cpu().numpy() + _faiss_error(queries_QD.shape[1])
    for rows in np.array_split(np.flatnonzero(exact_QK[:, -1] <= bound_Q), 4):
        if len(rows):
            wider = _best(queries_QD[rows], keys_MD, k, 4 * width, propose)
            exact_QK[rows], index_QK[rows] = wider
    return exact_QK, index_QK


def _faiss_proposer(keys_MD: Tensor) -> Proposer:
    import faiss  # not loaded by those who only use torch

    index: faiss.Index = faiss.IndexFlatIP(keys_MD.shape[1])
    if keys_MD.device.type == "cuda" and faiss.get_num_gpus():
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), keys_MD.device.index or 0, index)
    index.add(keys_MD.cpu().numpy())

    def propose(queries_QD: Tensor, width: int) -> tuple[Tensor, Tensor]:
        similarity, found = index.search(queries_QD.cpu().numpy(), width)
        return torch.from_numpy(similarity), torch.from_numpy(found).to(queries_QD.device)

    return propose


def _faiss_error(dim: int) -> float:
    """Bound the error of a float32 dot product of unit rows, in any order of summation, and two roundings after it."""
    unit = 2.0**-24
    return (1 + NORM_TOLERANCE) ** 2 * (dim * unit / (1 - dim * unit) + 2 * unit)
