"""Join the clips of a pool with captions: find the thresholds, and the pairs that pass caps and thresholds.

The order is: cap per caption, cap per clip, thresholds. A threshold by count is determined after the caps. If class
thresholds were applied before the caps, a dropped pair would free a place for the next caption of its clip, and more
pairs than requested would be kept.

Pairs are processed as Arrow tables of at most `BLOCK_PAIRS` rows. Only their similarities are ever all in memory, and
only to find a threshold by count.
"""

from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from clapcur.data.improvement_set import SCHEMA, ImprovementSetWriter
from clapcur.data.set_diff import merged
from clapcur.methods.devices import pick_device
from clapcur.methods.hubness import Correction
from clapcur.methods.similarity import (
    Clusters,
    caption_floor,
    similar_pairs,
    similarity_histogram,
    threshold_for_count,
)
from clapcur.methods.thresholds import nth_largest
from clapcur.progress import progress
from clapcur.stages.curate.candidates import Captions, share_of_class
from clapcur.stages.curate.config import CurateConfig
from clapcur.stages.curate.taken_over import TakenOver

COUNTED_PAIRS = 2**26  # of a sample of clips, for the histogram and the first guess of a threshold; ours, one second
BLOCK_PAIRS = 2**18  # in memory at once, 50 MiB with their ids; ours
HISTOGRAM_BINS = 20_000  # over [-1, 1]
SPARE = 1.5  # factor by which a guessed threshold should let through more pairs than requested; ours

Thresholds = dict[str, float] | float  # one per class, or one for all


class PoolJoin:
    """The pairs of clips with candidate captions, including those reused from an earlier set."""

    def __init__(
        self, clip_ids: NDArray[np.object_], rows_ND: NDArray[np.float32], captions: Captions, config: CurateConfig,
        taken_over: TakenOver, wrong: Set[tuple[str, str]], correction: Correction | None = None,
    ) -> None:  # fmt: skip
        self.rows_ND, self.captions, self.config, self.taken_over = rows_ND, captions, config, taken_over
        self.device = pick_device(config.device)
        self.wrong = pa.array([f"{clip} {caption}" for clip, caption in sorted(wrong)], pa.string())
        self.clip_ids = pa.array(clip_ids, pa.string())
        self.caption_ids = pa.array(captions.ids, pa.string())
        self.classes = pa.array(captions.classes, pa.string())
        self.by_class = config.even_classes and config.audio_threshold.count is not None
        self.is_empty = not len(captions.ids) or not len(clip_ids)
        self.offsets = None if correction is None or self.is_empty else correction.offsets(rows_ND)
        self.clusters = None
        if config.approximate is not None and not self.is_empty:
            num_clusters = min(config.approximate.num_clusters, len(captions.ids))
            num_probes = min(config.approximate.num_probes, num_clusters)
            self.clusters = Clusters.of(captions.rows_MD, num_clusters, num_probes)
        self.floor_M: NDArray[np.float32] | None = None
        if config.max_per_caption and not self.is_empty:
            self.floor_M = caption_floor(
                rows_ND, captions.rows_MD, config.max_per_caption, offsets=self.offsets, device=self.device
            )

    def thresholds(self) -> Thresholds:
        """Return the configured similarity, or the thresholds that keep the configured number of pairs."""
        threshold = self.config.audio_threshold
        if threshold.similarity is not None:
            return threshold.similarity
        assert threshold.count is not None
        if not len(self.captions.ids):
            return 1.0
        for least in (self._guess(), -1.0):
            found = self._similarities(least)
            enough = all(len(values) >= self._count for values in found.values())
            if enough or least == -1.0:
                break
        by_class = {name: nth_largest(values, self._count) for name, values in found.items()}
        return by_class if self.by_class else by_class[""]

    @property
    def _count(self) -> int:
        count = self.config.audio_threshold.count
        assert count is not None
        return share_of_class(count, self.config) if self.by_class else count

    def _groups(self) -> dict[str, NDArray[np.bool_]]:
        """Return masks of captions that share a threshold by count: those of each class, or all."""
        if not self.by_class:
            return {"": np.ones(len(self.captions.ids), bool)}
        return {str(name): self.captions.classes == name for name in np.unique(self.captions.classes)}

    def _guess(self) -> Thresholds:
        """Return thresholds that are certainly or probably not above the final ones.

        If an earlier set is reused, these are its own, because the n-th best pair can only improve with more clips.
        Otherwise they are estimated from a sample of the clips, unless caps drop pairs that the sample cannot predict.
        """
        if (before := self.taken_over.thresholds()) is not None:
            return before
        if self.is_empty or self.config.max_per_clip is not None or self.config.max_per_caption is not None:
            return -1.0
        guess = {}
        for name, of_group in self._groups().items():
            offsets = None if self.offsets is None else (self.offsets[0], self.offsets[1][of_group])
            counts, num_clips = sample_histogram(self.rows_ND, self.captions.rows_MD[of_group], offsets, self.device)
            wanted = self._count * num_clips / len(self.clip_ids)
            spare = wanted if num_clips == len(self.clip_ids) else SPARE * wanted + 5 * np.sqrt(wanted) + 5
            bin_width = 2 / HISTOGRAM_BINS  # rounding may count a pair in the bin above its own
            guess[name] = max(-1.0, threshold_for_count(counts, int(np.ceil(spare))) - bin_width)
        return guess if self.by_class else guess[""]

    def _similarities(self, least: Thresholds) -> dict[str, NDArray[np.float32]]:
        """Return the similarities of all pairs at or above these thresholds, by group that shares a threshold."""
        found: dict[str, list[NDArray[np.float32]]] = {name: [np.empty(0, np.float32)] for name in self._groups()}
        for blocks in (self.blocks(least), self.taken_over.blocks()):
            for block in blocks:
                similarity = block["similarity"].to_numpy()
                if not self.by_class:
                    found[""].append(similarity)
                    continue
                classes = block["class"].combine_chunks().dictionary_encode()
                codes = classes.indices.to_numpy()
                for code, name in enumerate(classes.dictionary.to_pylist()):
                    found[name].append(similarity[codes == code])
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def blocks(
        self, least: Thresholds, on_clips: Callable[[int], None] | None = None, some: slice = slice(None),
        exact: bool = False,
    ) -> Iterator[pa.Table]:  # fmt: skip
        """Yield the pairs of the scored clips, sorted by clip: at least those that reach their threshold.

        Parameters
        ----------
        least : float or dict of str to float
            Minimum similarity, for all captions or by class.
        on_clips : callable, optional
            Called with the number of clips done since the last call.
        some : slice
            Which of the clips to score.
        exact : bool
            Whether to search exactly even if the config allows an approximate search.

        Yields
        ------
        pyarrow.Table
            At most `BLOCK_PAIRS` rows with the columns of an Improvement-Set.
        """
        if self.is_empty:
            return
        cap, floor_M, done = self.config.max_per_clip, self.floor_M, 0
        lowest = min(least.values()) if isinstance(least, dict) else least
        if isinstance(least, dict) and cap is None:
            of_class_M = np.array([least[name] for name in self.captions.classes], np.float32)
            floor_M = of_class_M if floor_M is None else np.maximum(floor_M, of_class_M)
        found = similar_pairs(
            self.rows_ND[some], self.captions.rows_MD, max(-1.0, min(1.0, lowest)), cap_per_clip=cap,
            caption_floor_M=floor_M, offsets=self.offsets and (self.offsets[0][some], self.offsets[1]),
            clusters=None if exact else self.clusters, max_pairs_per_block=BLOCK_PAIRS, device=self.device,
        )  # fmt: skip
        for block in found:
            clip, text = pa.array(block.audio_index), pa.array(block.text_index)
            columns: list[Any] = [
                self.clip_ids.take(clip), self.caption_ids.take(text), pa.array(block.similarity),
                self.classes.take(text), pa.array(self.captions.class_similarity_M[block.text_index]),
                pa.array(block.rank),
            ]  # fmt: skip
            pairs = pa.Table.from_arrays(columns, schema=SCHEMA)
            if len(self.wrong):
                names = pc.binary_join_element_wise(pairs["clip_id"], pairs["caption_id"], " ")
                pairs = pairs.filter(pc.invert(pc.is_in(names, value_set=self.wrong)))
            yield pairs
            if on_clips is not None:
                on_clips(int(block.audio_index[-1]) + 1 - done)
                done = int(block.audio_index[-1]) + 1

    def write(self, writer: ImprovementSetWriter, least: Thresholds) -> None:
        """Write the pairs that reach their threshold, including reused ones."""
        with progress(f"curate {self.config.strategy}", len(self.clip_ids), "clips") as advance:
            new = self.blocks(least, advance)
            for pairs in merged(self.taken_over.blocks(), new) if self.taken_over.earlier else new:
                writer.add(pairs.filter(_reaches(pairs, least)))

    def recall(self, least: Thresholds, num_checked: int) -> dict[str, float]:
        """Search some clips exactly, and return the fraction of their pairs that the approximate search found."""
        some = slice(0, num_checked)
        found, pairs = (
            sum(
                int(pc.sum(_reaches(block, least)).as_py() or 0) for block in self.blocks(least, some=some, exact=exact)
            )
            for exact in (False, True)
        )
        return {"clips": min(num_checked, len(self.clip_ids)), "pairs": pairs, "recall": found / max(1, pairs)}


def sample_histogram(
    rows_ND: NDArray[np.float32], text_MD: NDArray[np.float32],
    offsets: tuple[NDArray[np.float32], NDArray[np.float32]] | None, device: torch.device,
) -> tuple[NDArray[np.int64], int]:  # fmt: skip
    """Count the pairs by similarity in `HISTOGRAM_BINS` over [-1, 1].

    If there are more than `COUNTED_PAIRS` pairs, only the first clips are counted; ids are hashes, so these are a
    random sample.

    Parameters
    ----------
    rows_ND : NDArray, shape (N, D), float32
        Unit rows of the clips, sorted by clip id.
    text_MD : NDArray, shape (M, D), float32
        Unit rows of the captions.
    offsets : (NDArray of shape (N,), NDArray of shape (M,)) or None
        As in `similar_pairs`.
    device : torch.device

    Returns
    -------
    NDArray, shape (HISTOGRAM_BINS,), int64
    int
        Number of clips that were counted.
    """
    num_clips = min(len(rows_ND), max(256, COUNTED_PAIRS // max(1, len(text_MD))))
    offsets = offsets and (offsets[0][:num_clips], offsets[1])
    counts = similarity_histogram(rows_ND[:num_clips], text_MD, num_bins=HISTOGRAM_BINS, offsets=offsets, device=device)
    return counts, num_clips


def _reaches(pairs: pa.Table, least: Thresholds) -> Any:
    """Return for each pair whether it reaches its threshold."""
    if not isinstance(least, Mapping):
        return pc.greater_equal(pairs["similarity"], pa.scalar(np.float32(least), pa.float32()))
    classes = pairs["class"].combine_chunks().dictionary_encode()
    own = np.array([least[name] for name in classes.dictionary.to_pylist()], np.float32)
    return pa.array(pairs["similarity"].to_numpy() >= own[classes.indices.to_numpy()])
