"""Exact cosine similarity of audio and text at any size: pairs over a threshold, top k, counts.

Shapes: N audio clips, M texts, Q queries, P pairs, D embedding, R rows of one block, T texts of one
tile. Rows are unit vectors, so a cosine is a dot product. Inputs are numpy arrays (memory maps
too) or tensors of any float type; results are numpy arrays.

A large product is computed in tiles, and a tile's float32 sums depend, in the last bits, on its
shape, the device and the number of threads: equal rows get unequal similarities, and a pair at the
threshold comes and goes with the machine. So the tiles only propose. Whatever they find within
their proven rounding error [1]_ of the bound is scored again, alone, in float64, rounded to
float32, and then compared with ``>=`` (as the paper's code does; faiss compares with ``>``).
A similarity is thus a function of its two rows and of nothing else.

References
----------
.. [1] Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1: in any order of
    summation the error of a dot product is at most D u / (1 - D u) times the product of the norms,
    u = 2^-24 in float32.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NORM_TOLERANCE = 1e-3  # rows that were stored in float16 are off by up to 5e-4
SCORED_AT_ONCE = 2**22  # numbers gathered by one step of the second scoring; ours
LEAST_SPARE = 8  # candidates that a top-k search takes beyond k to see that no tie was cut; ours
PRECISION_LOCK = threading.Lock()  # torch's matmul precision is a setting of the whole process

Rows = Tensor | NDArray[np.floating]
Proposals = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PairBlock:
    """Pairs of some consecutive clips, sorted by clip, falling similarity, text index.

    Attributes
    ----------
    audio_index, text_index : array, shape (P,), int64
        Rows of the two tables.
    similarity : array, shape (P,), float32
        Cosine.
    rank : array, shape (P,), int32
        Place of the text among those that its clip keeps, from 0.
    """

    audio_index: NDArray[np.int64]
    text_index: NDArray[np.int64]
    similarity: NDArray[np.float32]
    rank: NDArray[np.int32]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.audio_index)


def similar_pairs(
    audio_ND: Rows,
    text_MD: Rows,
    threshold: float,
    *,
    cap_per_clip: int | None = None,
    caption_floor_M: NDArray[np.float32] | None = None,
    tile: tuple[int, int] = (2048, 8192),
    max_pairs_per_block: int = 1_000_000,
    device: torch.device | str | None = None,
) -> Iterator[PairBlock]:
    """Find every pair of clip and text whose cosine is at least the threshold.

    Parameters
    ----------
    audio_ND, text_MD : Rows, shapes (N, D) and (M, D)
        Unit rows. The text is held on the device, the audio is read tile by tile.
    threshold : float in [-1, 1]
        Least cosine, inclusive, compared in float32.
    cap_per_clip : int, optional
        Keep only the best so many texts of each clip; of equal ones those with the lower index.
    caption_floor_M : array, shape (M,), optional
        Least cosine of each text, as `caption_floor` gives it to cap the clips of a caption. It
        holds before the cap per clip.
    tile : (int, int)
        Clips and texts of one product; bounds the memory, not the result.
    max_pairs_per_block : int
        No block is larger. Where a tile of clips finds more, it is halved and searched again.
    device : torch.device or str, optional
        Of the products; the CPU where not given.

    Yields
    ------
    PairBlock
        Never empty, in the order of the clips. The blocks in sequence are sorted as one block is;
        a clip lies in several consecutive ones only where it alone exceeds the budget.

    Raises
    ------
    ValueError
        At the call, not at the first block: rows are not unit vectors, dimensions differ, or the
        threshold is not a cosine.

    Notes
    -----
    Time is that of N * M * D multiplications; memory that of a tile and of a block. The same pairs
    come in the same order for every tile, budget and device.
    """
    _check_rows(audio_ND, "audio")
    _check_rows(text_MD, "text")
    _check_dims(audio_ND, text_MD)
    _check_cosine(threshold)
    _check_positive(cap_per_clip=cap_per_clip, tile=min(tile), max_pairs_per_block=max_pairs_per_block)
    join = _Join(
        audio_ND,
        _load(text_MD, slice(None), device),
        _floor_per_text(threshold, caption_floor_M, len(text_MD), device),
        cap_per_clip,
        tile[1],
        max_pairs_per_block,
    )
    return join.blocks(tile[0])


def top_k(
    queries_QD: Rows,
    keys_MD: Rows,
    k: int,
    *,
    backend: Literal["faiss", "torch"] = "faiss",
    tile: tuple[int, int] = (1024, 65536),
    device: torch.device | str | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the k most similar keys of each query.

    Parameters
    ----------
    queries_QD, keys_MD : Rows, shapes (Q, D) and (M, D)
        Unit rows. The keys are held on the device, the queries are read tile by tile.
    k : int, at most M
        Keys per query.
    backend : {"faiss", "torch"}
        What proposes the candidates: a faiss ``IndexFlatIP`` on the CPU, which copies the keys, or
        tiles on the device. The result is the same.
    tile : (int, int)
        Queries at a time, and keys of one product of the torch backend.
    device : torch.device or str, optional
        Of the torch backend and the second scoring; the CPU where not given.

    Returns
    -------
    similarity_QK : array, shape (Q, k), float32
        Cosines, falling.
    index_QK : array, shape (Q, k), int64
        Rows of the keys. Of equally similar keys the one with the lower index stands first, and is
        the one that is kept.

    Raises
    ------
    ValueError
        Rows are not unit vectors, dimensions differ, k is not in 1 to M, unknown backend.
    """
    _check_rows(queries_QD, "query")
    _check_rows(keys_MD, "key")
    _check_dims(queries_QD, keys_MD)
    _check_positive(tile=min(tile))
    if not 1 <= k <= len(keys_MD):
        raise ValueError(f"k must be between 1 and the number of keys, {len(keys_MD)}, got {k}")
    if backend not in ("faiss", "torch"):
        raise ValueError(f"backend must be 'faiss' or 'torch', got {backend!r}")
    keys = _load(keys_MD, slice(None), device)
    propose = _faiss_proposer(keys) if backend == "faiss" else _torch_proposer(keys, tile[1])
    found = [
        _best(_load(queries_QD, rows, device), keys, k, k + LEAST_SPARE, propose)
        for rows in _slices(len(queries_QD), tile[0])
    ]
    return (
        np.concatenate([similarity for similarity, _ in found] or [np.empty((0, k), np.float32)]),
        np.concatenate([index for _, index in found] or [np.empty((0, k), np.int64)]),
    )


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
    similarity_M1, index_M1 = top_k(text_MD, prompts_KD, 1, backend="torch", device=device)
    return index_M1[:, 0], similarity_M1[:, 0]


def caption_floor(
    audio_ND: Rows, text_MD: Rows, k: int, *, device: torch.device | str | None = None
) -> NDArray[np.float32]:
    """Find the k-th best similarity of each caption, by which `similar_pairs` caps its clips.

    Parameters
    ----------
    audio_ND, text_MD : Rows, shapes (N, D) and (M, D)
        Unit rows.
    k : int
        Clips that a caption may keep. Clips that tie with the k-th are kept too.
    device : torch.device or str, optional
        The CPU where not given.

    Returns
    -------
    array, shape (M,), float32
        Minus infinity where there are at most k clips: nothing to cap.
    """
    _check_positive(k=k)
    if len(audio_ND) <= k:
        _check_rows(text_MD, "text")
        return np.full(len(text_MD), -np.inf, np.float32)
    similarity_MK, _ = top_k(text_MD, audio_ND, k, backend="torch", tile=(64, 65536), device=device)
    return similarity_MK[:, -1]


def similarity_histogram(
    audio_ND: Rows,
    text_MD: Rows,
    *,
    num_bins: int = 20_000,
    range: tuple[float, float] = (-1.0, 1.0),
    tile: tuple[int, int] = (2048, 8192),
    device: torch.device | str | None = None,
) -> NDArray[np.int64]:
    """Count all N * M pairs by similarity, so that a threshold by number needs no search.

    Parameters
    ----------
    audio_ND, text_MD : Rows, shapes (N, D) and (M, D)
        Unit rows.
    num_bins : int
        Equal bins; the default is 1e-4 wide.
    range : (float, float)
        Outer edges; what lies beyond counts in the outermost bins.
    tile, device
        As in `similar_pairs`.

    Returns
    -------
    array, shape (num_bins,), int64
        A bin holds its lower edge and not its upper one, the last bin both. Pairs that lie within
        rounding (1e-6) of an edge may be counted on its other side: they are not scored again.
    """
    _check_rows(audio_ND, "audio")
    _check_rows(text_MD, "text")
    _check_dims(audio_ND, text_MD)
    _check_positive(num_bins=num_bins, tile=min(tile))
    text = _load(text_MD, slice(None), device)
    counts = torch.zeros(num_bins, dtype=torch.int64, device=text.device)
    tiles = itertools.product(_slices(len(audio_ND), tile[0]), _slices(len(text), tile[1]))
    for rows, columns in tiles:
        similarity_RT = _product(_load(audio_ND, rows, device), text[columns])
        place_RT = (similarity_RT - range[0]) * (num_bins / (range[1] - range[0]))
        bins_RT = place_RT.int().clamp_(0, num_bins - 1)
        counts += torch.bincount(bins_RT.flatten(), minlength=num_bins)
    return counts.cpu().numpy()


def threshold_for_count(counts: NDArray[np.int64], target: int, *, range: tuple[float, float] = (-1.0, 1.0)) -> float:
    """Find the lowest threshold that keeps at most a target number of pairs.

    Parameters
    ----------
    counts : array, shape (num_bins,), int64
        From `similarity_histogram`.
    target : int
        Most pairs to keep, at least 1.
    range : (float, float)
        As the histogram was made with.

    Returns
    -------
    float
        The smallest edge of a bin at or above which lie no more than ``target`` pairs.

    Raises
    ------
    ValueError
        The target is below 1, or the highest bin alone holds more pairs than that.
    """
    _check_positive(target=target)
    counts = np.asarray(counts)
    at_or_above = np.cumsum(counts[::-1])[::-1]
    if at_or_above[-1] > target:
        raise ValueError(
            f"the highest bin alone holds {at_or_above[-1]} pairs, more than the target of "
            f"{target}: no threshold separates them; raise the target or remove duplicates"
        )
    return float(_edges(len(counts), range)[np.argmax(at_or_above <= target)])


class _Join:
    """The search behind `similar_pairs`: blocks of clips, halved while they find too much."""

    def __init__(
        self,
        audio_ND: Rows,
        text_MD: Tensor,
        floor_M: Tensor,
        cap_per_clip: int | None,
        tile_texts: int,
        budget: int,
    ) -> None:
        self.audio_ND = audio_ND
        self.text_MD = text_MD
        self.floor_M = floor_M
        self.cap = cap_per_clip
        self.tile_texts = tile_texts
        self.budget = budget
        self.margin = _rounding_error(text_MD.shape[1])

    def blocks(self, most_clips: int) -> Iterator[PairBlock]:
        """Yield all pairs; the number of clips at a time follows the number of pairs they have."""
        start, num_clips = 0, most_clips
        while start < len(self.audio_ND) and len(self.text_MD):
            audio_RD = _load(self.audio_ND, slice(start, start + num_clips), self.text_MD.device)
            proposals = self._propose(audio_RD)
            if proposals is None:
                num_clips = len(audio_RD) // 2
                continue
            pairs = self._score(audio_RD, *proposals)
            yield from _split(pairs, start, self.budget)
            start += len(audio_RD)
            if 4 * len(proposals[0]) <= self.budget:
                num_clips = min(2 * num_clips, most_clips)

    def _propose(self, audio_RD: Tensor) -> Proposals | None:
        """Find what may reach its floor; None where several clips exceed the budget."""
        clips, texts, num_found = [], [], 0
        best_RC = audio_RD.new_full((len(audio_RD), self.cap or 0), -torch.inf)
        for columns in _slices(len(self.text_MD), self.tile_texts):
            similarity_RT = _product(audio_RD, self.text_MD[columns])
            floor_T = self.floor_M[columns]
            hit_RT = similarity_RT >= floor_T - self.margin
            if self.cap is not None:
                # what is surely below the cap-th best so far needs no second scoring
                unsure_RT = similarity_RT < floor_T + self.margin
                sure_RT = similarity_RT.masked_fill(unsure_RT, -torch.inf)
                best_RC = torch.cat([best_RC, sure_RT], dim=1).topk(self.cap, dim=1).values
                hit_RT &= similarity_RT >= best_RC[:, -1:] - 2 * self.margin
            num_found += int(torch.count_nonzero(hit_RT))
            if num_found > self.budget and len(audio_RD) > 1:
                return None
            clip, text = hit_RT.nonzero(as_tuple=True)
            clips.append(clip)
            texts.append(text + columns.start)
        return torch.cat(clips), torch.cat(texts)

    def _score(self, audio_RD: Tensor, clip_P: Tensor, text_P: Tensor) -> PairBlock:
        """Score the proposals exactly, drop what is below its floor or beyond the cap, and sort."""
        similarity_P = _cosine(audio_RD, clip_P, self.text_MD, text_P)
        kept = similarity_P >= self.floor_M[text_P]
        clip, text, similarity = (x[kept].cpu().numpy() for x in (clip_P, text_P, similarity_P))
        order = np.lexsort((text, -similarity, clip))
        clip, text, similarity = clip[order], text[order], similarity[order]
        rank = np.arange(len(clip)) - np.searchsorted(clip, clip)
        capped = slice(None) if self.cap is None else rank < self.cap
        return PairBlock(clip[capped], text[capped], similarity[capped], rank[capped].astype(np.int32))


def _split(pairs: PairBlock, first_clip: int, budget: int) -> Iterator[PairBlock]:
    for part in _slices(len(pairs), budget):
        yield PairBlock(
            pairs.audio_index[part] + first_clip,
            pairs.text_index[part],
            pairs.similarity[part],
            pairs.rank[part],
        )


def _floor_per_text(
    threshold: float,
    caption_floor_M: NDArray[np.float32] | None,
    num_texts: int,
    device: torch.device | str | None,
) -> Tensor:
    floor_M = np.full(num_texts, threshold, np.float32)
    if caption_floor_M is not None:
        if np.shape(caption_floor_M) != (num_texts,) or np.isnan(caption_floor_M).any():
            raise ValueError(
                f"caption_floor_M must hold one number per text, {num_texts}, "
                f"got shape {np.shape(caption_floor_M)} (or NaN)"
            )
        floor_M = np.maximum(floor_M, np.asarray(caption_floor_M, np.float32))
    return torch.from_numpy(floor_M).to(device or "cpu")


def _best(
    queries_QD: Tensor,
    keys_MD: Tensor,
    k: int,
    width: int,
    propose: Callable[[Tensor, int], Proposals],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Take the k best of `width` proposals; ask for more where the k-th could be contested."""
    num_queries, num_keys = len(queries_QD), len(keys_MD)
    width = min(width, num_keys)
    rough_QW, index_QW = propose(queries_QD, width)
    row_P = torch.arange(num_queries, device=index_QW.device).repeat_interleave(width)
    exact_QW = _cosine(queries_QD, row_P, keys_MD, index_QW.flatten()).view(num_queries, width)
    exact, index = exact_QW.cpu().numpy(), index_QW.cpu().numpy()
    order_QK = np.lexsort((index, -exact), axis=1)[:, :k]
    exact_QK, index_QK = (np.take_along_axis(x, order_QK, axis=1) for x in (exact, index))
    if width == num_keys:
        return exact_QK, index_QK
    # a key that was not proposed has at most this cosine
    bound_Q = rough_QW[:, -1].cpu().numpy() + _rounding_error(queries_QD.shape[1])
    for rows in np.array_split(np.flatnonzero(exact_QK[:, -1] <= bound_Q), 4):
        if len(rows):
            wider = _best(queries_QD[rows], keys_MD, k, 4 * width, propose)
            exact_QK[rows], index_QK[rows] = wider
    return exact_QK, index_QK


def _torch_proposer(keys_MD: Tensor, tile_keys: int) -> Callable[[Tensor, int], Proposals]:
    def propose(queries_QD: Tensor, width: int) -> Proposals:
        similarity_QW = queries_QD.new_empty((len(queries_QD), 0))
        index_QW = torch.empty_like(similarity_QW, dtype=torch.int64)
        for columns in _slices(len(keys_MD), tile_keys):
            similarity_QT = _product(queries_QD, keys_MD[columns])
            best = similarity_QT.topk(min(width, similarity_QT.shape[1]), dim=1)
            seen = torch.cat([similarity_QW, best.values], dim=1)
            where = torch.cat([index_QW, best.indices + columns.start], dim=1)
            similarity_QW, chosen = seen.topk(min(width, seen.shape[1]), dim=1)
            index_QW = where.gather(1, chosen)
        return similarity_QW, index_QW

    return propose


def _faiss_proposer(keys_MD: Tensor) -> Callable[[Tensor, int], Proposals]:
    import faiss  # not loaded by those who only use torch

    index = faiss.IndexFlatIP(keys_MD.shape[1])
    index.add(keys_MD.cpu().numpy())

    def propose(queries_QD: Tensor, width: int) -> Proposals:
        similarity, found = index.search(queries_QD.cpu().numpy(), width)
        return torch.from_numpy(similarity), torch.from_numpy(found).to(queries_QD.device)

    return propose


def _cosine(audio_ND: Tensor, audio_P: Tensor, text_MD: Tensor, text_P: Tensor) -> Tensor:
    """Score pairs one by one: float64 sums, rounded to float32."""
    similarity_P = audio_ND.new_empty(len(audio_P))
    for part in _slices(len(audio_P), max(1, SCORED_AT_ONCE // max(1, audio_ND.shape[1]))):
        audio_PD = audio_ND[audio_P[part]].double()
        similarity_P[part] = audio_PD.mul_(text_MD[text_P[part]]).sum(dim=1).float()
    return similarity_P


def _product(audio_RD: Tensor, text_TD: Tensor) -> Tensor:
    """Multiply in true float32: TF32 or bfloat16, if the trainer chose them, are off by 1e-3."""
    with PRECISION_LOCK, _full_precision(), torch.autocast(audio_RD.device.type, enabled=False):
        return audio_RD @ text_TD.T


@contextmanager
def _full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _rounding_error(dim: int) -> float:
    """Bound the error of a float32 dot product of unit rows [1]_ and two roundings after it."""
    unit = 2.0**-24
    return (1 + NORM_TOLERANCE) ** 2 * (dim * unit / (1 - dim * unit) + 2 * unit)


def _load(rows_ND: Rows, rows: slice, device: torch.device | str | None) -> Tensor:
    if isinstance(rows_ND, Tensor):
        return rows_ND.detach()[rows].to(device=device or "cpu", dtype=torch.float32)
    part = np.ascontiguousarray(rows_ND[rows], dtype=np.float32)
    return torch.from_numpy(part if part.flags.writeable else part.copy()).to(device or "cpu")


def _slices(num_rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _edges(num_bins: int, range: tuple[float, float]) -> NDArray[np.float32]:
    return np.linspace(*range, num_bins + 1).astype(np.float32)


def _check_rows(rows_ND: Rows, name: str) -> None:
    if rows_ND.ndim != 2:
        raise ValueError(f"{name} rows must have the shape (number, D), got {tuple(rows_ND.shape)}")
    device = rows_ND.device if isinstance(rows_ND, Tensor) else None
    for rows in _slices(len(rows_ND), 65536):
        norms = _load(rows_ND, rows, device).norm(dim=1).cpu().numpy()
        if not np.all(np.abs(norms - 1) <= NORM_TOLERANCE):
            wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))
            raise ValueError(
                f"{name} rows must be unit vectors, row {rows.start + wrong[0]} has norm "
                f"{norms[wrong[0]]:.4g}; features in place of embeddings? their products are no "
                "cosines, and no threshold would mean what it says; divide each row by its norm"
            )


def _check_dims(audio_ND: Rows, text_MD: Rows) -> None:
    if len(audio_ND) and len(text_MD) and audio_ND.shape[1] != text_MD.shape[1]:
        raise ValueError(
            f"both sides must come from one model, got {audio_ND.shape[1]} and {text_MD.shape[1]} dimensions"
        )


def _check_cosine(threshold: float) -> None:
    if not -1 <= threshold <= 1:
        raise ValueError(
            f"threshold must be a cosine in [-1, 1], got {threshold:g}; a percentage? every pair would be dropped"
        )


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
