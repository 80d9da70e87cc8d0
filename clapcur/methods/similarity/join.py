"""The join: every pair of clip and text at or above a threshold, within caps and floors.

Tiles of a low-precision product propose pairs (`clapcur.methods.similarity.screening`), exact cosines decide. Memory
use is that of one tile and one block of pairs, whatever the number of pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clapcur.methods.similarity.clusters import Clusters
from clapcur.methods.similarity.rows import (
    Rows,
    check_cosine,
    check_dims,
    check_positive,
    check_rows,
    exact_cosine,
    load_rows,
    slices,
)
from clapcur.methods.similarity.screening import GROUPS, Screen, fastest_precision, reaching

TILES = {"cpu": (4096, 4096), "cuda": (8192, 32768)}  # clips and texts of one product; ours, measured
BELOW_ALL = -4.0  # below every score
GROUPS_PER_PLACE = 8  # groups of texts per place under a cap: enough for their maxima to be near the best; ours

Proposals = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PairBlock:
    """Pairs of consecutive clips, sorted by clip, descending similarity, text index.

    Attributes
    ----------
    audio_index, text_index : array, shape (P,), int64
        Rows of the two tables.
    similarity : array, shape (P,), float32
        Cosine, minus the offsets if there are any.
    rank : array, shape (P,), int32
        Rank of the text among those that its clip keeps, from 0.
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
    offsets: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    clusters: Clusters | None = None,
    tile: tuple[int, int] | None = None,
    max_pairs_per_block: int = 1_000_000,
    device: torch.device | str | None = None,
    precision: torch.dtype | None = None,
) -> Iterator[PairBlock]:
    """Find every pair of clip and text whose cosine is at least the threshold.

    Parameters
    ----------
    audio_ND, text_MD : Rows, shapes (N, D) and (M, D)
        Unit rows. The text is kept on the device, the audio is read tile by tile.
    threshold : float in [-1, 1]
        Minimum cosine, inclusive, compared in float32.
    cap_per_clip : int, optional
        Maximum number of texts per clip: the most similar; of equally similar ones those with the lower index.
    caption_floor_M : array, shape (M,), optional
        Minimum cosine of each text, as `caption_floor` returns it to cap the clips of a caption. It is applied before
        the cap per clip.
    offsets : (array of shape (N,), array of shape (M,)), optional
        Subtracted from each cosine before any comparison, for a hubness correction (`clapcur.methods.hubness`). The
        similarity of a pair is then the cosine minus both.
    clusters : Clusters, optional
        Search only the texts in the clusters nearest to each clip: not exact, but less work.
    tile : (int, int), optional
        Clips and texts of one product; bounds the memory, not the result.
    max_pairs_per_block : int
        Maximum size of a block. A tile of clips with more pairs is halved and searched again.
    device : torch.device or str, optional
        Device for the products; by default the CPU.
    precision : torch.dtype, optional
        Precision of the tiles; by default the fastest on this device. It does not affect the result.

    Yields
    ------
    PairBlock
        Never empty, in the order of the clips. Concatenated blocks are sorted like a single one; a clip is in several
        consecutive blocks only if it alone exceeds the budget.

    Raises
    ------
    ValueError
        Rows are not unit vectors, dimensions differ, or the threshold is not a cosine. Raised by the call, not when the
        first block is read.

    Notes
    -----
    The time is that of N * M * D multiplications, the memory that of one tile and one block. The pairs and their order
    are the same for every tile, budget, precision and device.
    """
    audio_ND = check_rows(audio_ND, "audio")
    text_MD = check_rows(text_MD, "text")
    check_dims(audio_ND, text_MD)
    check_cosine(threshold)
    check_positive(cap_per_clip=cap_per_clip, max_pairs_per_block=max_pairs_per_block)
    floor_M = _floor_per_text(threshold, caption_floor_M, len(text_MD))
    join = Join(
        audio_ND, text_MD, floor_M, cap_per_clip, offsets=offsets, clusters=clusters, tile=tile,
        budget=max_pairs_per_block, device=device, precision=precision,
    )  # fmt: skip
    return join.blocks()


class Join:
    """The search behind `similar_pairs`: blocks of clips, halved while they have too many pairs.

    `floor_M` (one number per text, not checked) is applied before the cap.
    """

    def __init__(
        self, audio_ND: Rows, text_MD: Rows, floor_M: NDArray[np.float32], cap: int | None, *,
        offsets: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None, clusters: Clusters | None = None,
        tile: tuple[int, int] | None = None, budget: int = 1_000_000, device: torch.device | str | None = None,
        precision: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        order_M = None if clusters is None else clusters.order_M
        self.audio_ND, self.cap, self.budget, self.clusters = audio_ND, cap, budget, clusters
        self.text_MD = load_rows(text_MD, slice(None), device)
        self.order_M = None if order_M is None else torch.from_numpy(order_M).to(self.text_MD.device)
        self.floor_M = torch.from_numpy(floor_M).to(self.text_MD.device)
        self.offset_N: Tensor | None = None if offsets is None else self._offset(offsets[0])
        self.offset_M: Tensor | None = None if offsets is None else self._offset(offsets[1])
        if self.order_M is not None:  # put the texts of a cluster together
            self.text_MD, self.floor_M = self.text_MD[self.order_M], self.floor_M[self.order_M]
            self.offset_M = None if self.offset_M is None else self.offset_M[self.order_M]
        self.has_one_floor = len(floor_M) == 0 or bool((floor_M == floor_M[0]).all())
        num_products = len(audio_ND) * len(text_MD) * (text_MD.shape[1] if text_MD.ndim == 2 else 0)
        dtype = precision or fastest_precision(self.text_MD.device, num_products)
        self.screen = Screen(self.text_MD, dtype, self.offset_M)
        self.most_clips, self.tile_texts = tile_on(self.text_MD.device, tile)

    def blocks(self) -> Iterator[PairBlock]:
        """Yield all pairs; the number of clips per step adapts to the number of their pairs."""
        start, num_clips = 0, self.most_clips
        while start < len(self.audio_ND) and len(self.text_MD):
            rows = slice(start, start + num_clips)
            audio_RD = load_rows(self.audio_ND, rows, self.text_MD.device)
            offset_R = None if self.offset_N is None else self.offset_N[rows]
            proposals = self._propose(audio_RD, offset_R)
            if proposals is None:
                num_clips = len(audio_RD) // 2
                continue
            pairs = self._score(audio_RD, offset_R, *proposals)
            yield from _split(pairs, start, self.budget)
            start += len(audio_RD)
            if 4 * len(proposals[0]) <= self.budget:
                num_clips = min(2 * num_clips, self.most_clips)

    def _propose(self, audio_RD: Tensor, offset_R: Tensor | None) -> Proposals | None:
        """Find the pairs that may reach their floor and be within the cap; None if several clips exceed the budget."""
        low_RD, error = self.screen.rows(audio_RD, offset_R)
        best = None if self.cap is None else _BestOfEach(len(audio_RD), self.cap, error, low_RD)
        found = [_nothing(low_RD)]
        for columns, some in self._tiles(audio_RD):
            product_RT = self.screen.product(low_RD if some is None else low_RD[some], columns)
            bounds = [self.floor_M[None, columns] - error]
            if best is not None:
                best.see(product_RT, None if self.has_one_floor else self.floor_M[columns], some)
                bounds.append(best.bound(some))
                if self.has_one_floor:  # then one bound per clip is enough
                    bounds = [torch.maximum(bounds[1], bounds[0][:, :1])]
            row, column = reaching(product_RT, *bounds)
            clip, rough = row if some is None else some[row], product_RT[row, column]
            found.append((clip, column + columns.start, rough))
            if sum(len(clip) for clip, _, _ in found) > self.budget and len(audio_RD) > 1:
                found = found if best is None else [best.keep(found)]
                if sum(len(clip) for clip, _, _ in found) > self.budget:
                    return None
        clip, text, _ = _joined(found) if best is None else best.keep(found)
        return clip, text

    def _tiles(self, audio_RD: Tensor) -> Iterator[tuple[slice, Tensor | None]]:
        """Yield the texts to compare, and the clips to compare them with; None: all clips."""
        if self.clusters is None:
            for columns in slices(len(self.text_MD), self.tile_texts):
                yield columns, None
            return
        for cluster, some in self.clusters.near(audio_RD):
            for part in slices(cluster.stop - cluster.start, self.tile_texts):
                yield slice(cluster.start + part.start, cluster.start + part.stop), some

    def _offset(self, offset: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(offset, np.float32)).to(self.text_MD.device)

    def _score(self, audio_RD: Tensor, offset_R: Tensor | None, clip_P: Tensor, text_P: Tensor) -> PairBlock:
        """Score the proposals exactly, drop those below their floor or beyond the cap, and sort the rest."""
        offset_P = None
        if self.offset_M is not None and offset_R is not None:
            offset_P = offset_R[clip_P].double() + self.offset_M[text_P]
        similarity_P = exact_cosine(audio_RD, clip_P, self.text_MD, text_P, offset_P)
        kept_P = similarity_P >= self.floor_M[text_P]
        if self.order_M is not None:
            text_P = self.order_M[text_P]
        clip, text, similarity = (x[kept_P].cpu().numpy() for x in (clip_P, text_P, similarity_P))
        order = _best_first(clip, text, similarity)
        clip, text, similarity = clip[order], text[order], similarity[order]
        rank = np.arange(len(clip)) - np.searchsorted(clip, clip)
        capped = slice(None) if self.cap is None else rank < self.cap
        return PairBlock(clip[capped], text[capped], similarity[capped], rank[capped].astype(np.int32))


class _BestOfEach:
    """The best similarities so far of each clip, as approximated by the tiles; pairs certainly below them are dropped.

    Only the maxima of groups of texts in a tile are sorted. They are similarities of different texts, so the cap-th
    largest of them is at most the cap-th best similarity.
    """

    def __init__(self, num_clips: int, cap: int, error: float, like: Tensor) -> None:
        self.cap, self.error = cap, error
        self._rounding = torch.finfo(like.dtype).eps / 2 if like.dtype != torch.float32 else 0.0
        self._best_RC = torch.full((num_clips, cap), BELOW_ALL, device=like.device)

    def see(self, product_RT: Tensor, floor_T: Tensor | None, some: Tensor | None) -> None:
        """Update the best similarities from a tile; if floors differ, only from products sure to reach theirs."""
        if floor_T is not None:
            sure_T = floor_T + self.error + 2 * self._rounding
            product_RT = product_RT.masked_fill(product_RT < sure_T, BELOW_ALL)
        num_texts = product_RT.shape[1]
        num_groups = min(num_texts, -(-GROUPS_PER_PLACE * self.cap // GROUPS) * GROUPS)
        size = num_texts // num_groups
        maxima_RG = product_RT[:, : size * num_groups].unflatten(1, (size, num_groups)).amax(dim=1).float()
        places = slice(None) if some is None else some
        seen = torch.cat([self._best_RC[places], maxima_RG.topk(min(self.cap, num_groups), dim=1).values], dim=1)
        self._best_RC[places] = seen.topk(self.cap, dim=1).values

    def bound(self, some: Tensor | None = None) -> Tensor:
        """Return the minimum product that may be among the best of its clip, shape (R, 1)."""
        last_R1 = self._best_RC[:, -1:] if some is None else self._best_RC[some, -1:]
        return last_R1 - 2 * self.error - self._rounding * last_R1.abs()

    def keep(self, found: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pairs that may still be among the best under the current bounds."""
        clip, text, rough = _joined(found)
        slack = -BELOW_ALL * self._rounding  # maximum rounding below a bound, as no bound is lower than BELOW_ALL
        kept_P = rough.float() >= self.bound()[clip, 0] - slack
        return clip[kept_P], text[kept_P], rough[kept_P]


def tile_on(device: torch.device, tile: tuple[int, int] | None) -> tuple[int, int]:
    """Return the numbers of clips and texts in one product: as given, or the default for the device."""
    num_clips, num_texts = tile or TILES.get(device.type, TILES["cpu"])
    check_positive(tile=min(num_clips, num_texts))
    return num_clips, num_texts


def _nothing(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    none = torch.empty(0, dtype=torch.int64, device=like.device)
    return none, none, like.new_empty(0)


def _joined(found: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    clip, text, rough = (torch.cat(parts) for parts in zip(*found, strict=True))
    return clip, text, rough


def _best_first(clip: NDArray[np.int64], text: NDArray[np.int64], similarity: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the order by clip, descending similarity and text; a stable sort of one number is the fastest."""
    bits = (similarity + np.float32(0)).view(np.int32).astype(np.int64)  # -0 becomes 0
    rising = np.where(bits < 0, -2147483648 - bits, bits)  # sorts like the floats
    by_text = np.argsort(text, kind="stable")
    return by_text[np.argsort((clip[by_text] << 32) - rising[by_text], kind="stable")]


def _split(pairs: PairBlock, first_clip: int, budget: int) -> Iterator[PairBlock]:
    for part in slices(len(pairs), budget):
        yield PairBlock(
            pairs.audio_index[part] + first_clip,
            pairs.text_index[part],
            pairs.similarity[part],
            pairs.rank[part],
        )


def _floor_per_text(
    threshold: float, caption_floor_M: NDArray[np.float32] | None, num_texts: int
) -> NDArray[np.float32]:
    floor_M = np.full(num_texts, threshold, np.float32)
    if caption_floor_M is None:
        return floor_M
    if np.shape(caption_floor_M) != (num_texts,) or np.isnan(caption_floor_M).any():
        raise ValueError(
            f"caption_floor_M must hold one number per text, {num_texts}, "
            f"got shape {np.shape(caption_floor_M)} (or NaN)"
        )
    return np.maximum(floor_M, np.asarray(caption_floor_M, np.float32))
