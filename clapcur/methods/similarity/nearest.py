"""The nearest keys of each query, the class of a caption, and the minimum similarity of a caption's clips."""

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

LEAST_SPARE = 8  # minimum number of candidates beyond k requested from faiss, to detect ties that were cut; ours
QUERIES_AT_ONCE = 1024  # per call of faiss

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
    """Return the k most similar keys of each query.

    Parameters
    ----------
    queries_QD, keys_MD : Rows, shapes (Q, D) and (M, D)
        Unit rows. The keys are kept on the device, the queries are read tile by tile.
    k : int, at most M
        Keys per query.
    backend : {"faiss", "torch"}
        What proposes the candidates: tiles on the device, as in `similar_pairs`, or a faiss ``IndexFlatIP``, which
        copies the keys (to the GPU if the device is one that faiss finds; k is at most 2,000 there). The result is the
        same.
    offsets, tile, device, precision
        As in `similar_pairs`; all except the device apply only to the torch backend.

    Returns
    -------
    similarity_QK : array, shape (Q, k), float32
        Cosines, in descending order.
    index_QK : array, shape (Q, k), int64
        Rows of the keys. Of equally similar keys, the one with the lower index is first and is preferred.

    Raises
    ------
    ValueError
        Rows are not unit vectors, dimensions differ, k is not in 1 to M, the backend is unknown, or offsets are given
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
    """Return the nearest class prompt of each text: the rule by which DS selects captions.

    Parameters
    ----------
    text_MD, prompts_KD : Rows, shapes (M, D) and (K, D)
        Unit rows.
    device : torch.device or str, optional
        By default the CPU.

    Returns
    -------
    class_index_M : array, shape (M,), int64
        The class with the largest cosine; of equal ones, the first.
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
    """Return the k-th best similarity of each caption, with which `similar_pairs` caps its clips.

    Parameters
    ----------
    audio_ND, text_MD : Rows, shapes (N, D) and (M, D)
        Unit rows.
    k : int
        Maximum number of clips per caption. Clips that tie with the k-th are kept, too.
    offsets : (array of shape (N,), array of shape (M,)), optional
        As in `similar_pairs`.
    device : torch.device or str, optional
        By default the CPU.

    Returns
    -------
    array, shape (M,), float32
        Minus infinity if there are at most k clips: nothing is capped.
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
    """Return the k best of `width` proposals; request more if the k-th place is not certain."""
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
    import faiss  # imported late: the torch backend does not need it

    index: faiss.Index = faiss.IndexFlatIP(keys_MD.shape[1])
    if keys_MD.device.type == "cuda" and faiss.get_num_gpus():
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), keys_MD.device.index or 0, index)
    index.add(keys_MD.cpu().numpy())

    def propose(queries_QD: Tensor, width: int) -> tuple[Tensor, Tensor]:
        similarity, found = index.search(queries_QD.cpu().numpy(), width)
        return torch.from_numpy(similarity), torch.from_numpy(found).to(queries_QD.device)

    return propose


def _faiss_error(dim: int) -> float:
    """Return a bound on the error of a float32 dot product of unit rows, summed in any order and then rounded twice."""
    unit = 2.0**-24
    return (1 + NORM_TOLERANCE) ** 2 * (dim * unit / (1 - dim * unit) + 2 * unit)
