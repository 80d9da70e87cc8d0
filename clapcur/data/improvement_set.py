"""The Improvement-Set on disk, written as a stream, and its card.

``pairs.parquet`` has one row per pair: clip_id, caption_id, similarity (audio and caption), class (of the class prompt
nearest to the caption), class_similarity (caption and that prompt) and rank (of the caption among those kept or
skipped for its clip; 0 is the nearest). Rows are sorted by clip_id, so that the pairs of a clip can be found by row
group without reading the whole file.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clapcur.errors import ArtifactError, DataError
from clapcur.store.artifacts import Artifact
from clapcur.store.payloads import Payload

PAIRS = "pairs.parquet"
ROW_GROUP = 65_536
ROUNDING = 1e-3  # how far the cosine of two unit rows in float32 or bfloat16 may exceed 1
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("caption_id", pa.string()),
        ("similarity", pa.float32()),
        ("class", pa.string()),
        ("class_similarity", pa.float32()),
        ("rank", pa.int32()),
    ]
)


class ImprovementSetWriter:
    """Streams pairs to ``pairs.parquet`` and counts what the card reports.

    Pairs must arrive in the order of clip_id; memory holds one row group and the counters.
    """

    def __init__(self, folder: Path):
        self._path = folder / PAIRS
        self._temporary = folder / f".{PAIRS}.tmp"
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._last_clip: str | None = None
        self._classes_of_last: set[str] = set()
        self.num_pairs = 0
        self.num_clips = 0
        self.per_caption: Counter[str] = Counter()
        self.pairs_per_class: Counter[str] = Counter()
        self.clips_per_class: Counter[str] = Counter()
        self._similarity_sum = 0.0
        self._similarity_range = (np.inf, -np.inf)

    def __enter__(self) -> "ImprovementSetWriter":
        """Open the file."""
        self._writer = pq.ParquetWriter(self._temporary, SCHEMA, compression="zstd")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write the buffered pairs; the file gets its final name only if there was no error."""
        if error is None:
            self._flush()
        self._writer.close()
        if error is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)

    def add(self, pairs: pa.Table) -> None:
        """Add a table with the columns of `SCHEMA`; a clip may continue in the next table.

        Raises
        ------
        DataError
            A similarity is not in [-1, 1]: one of its embeddings does not have unit norm.
        """
        if not len(pairs):
            return
        _check_cosines(pairs)
        self._waiting.append(pairs)
        self._num_waiting += len(pairs)
        self.num_pairs += len(pairs)
        self._count_clips(pairs)
        for counter, column in ((self.per_caption, "caption_id"), (self.pairs_per_class, "class")):
            found = pc.value_counts(pairs[column])
            counter.update(dict(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True)))
        similarity = pairs["similarity"].to_numpy()
        self._similarity_sum += float(np.sum(similarity, dtype=np.float64))
        low, high = self._similarity_range
        self._similarity_range = (min(low, float(similarity.min())), max(high, float(similarity.max())))
        if self._num_waiting >= ROW_GROUP:
            self._flush()

    def _count_clips(self, pairs: pa.Table) -> None:
        """Count clips, and in how many clips each class occurs, from the runs of equal clip ids."""
        clips, classes = pairs["clip_id"].combine_chunks(), pairs["class"].combine_chunks().dictionary_encode()
        is_new_P = pc.not_equal(clips[1:], clips[:-1]).to_numpy(zero_copy_only=False)
        run_P = np.concatenate([[0], np.cumsum(is_new_P)])
        names = classes.dictionary.to_pylist()
        both = np.unique(run_P * len(names) + classes.indices.to_numpy())
        goes_on = clips[0].as_py() == self._last_clip
        self.num_clips += int(run_P[-1]) + (not goes_on)
        self.clips_per_class.update(dict(zip(names, np.bincount(both % len(names), minlength=len(names)), strict=True)))
        if goes_on:
            of_first = {names[code % len(names)] for code in both[both < len(names)]}
            self.clips_per_class.subtract(of_first & self._classes_of_last)
        of_last = {names[code % len(names)] for code in both[both // len(names) == run_P[-1]]}
        self._classes_of_last = of_last | (self._classes_of_last if goes_on and run_P[-1] == 0 else set())
        self._last_clip = clips[-1].as_py()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=ROW_GROUP)
        self._waiting, self._num_waiting = [], 0

    def counts(self) -> dict[str, int]:
        """Return the numbers of pairs, clips and captions."""
        return {"pairs": self.num_pairs, "clips": self.num_clips, "captions": len(self.per_caption)}

    def similarity_summary(self) -> dict[str, float]:
        """Return the mean, minimum and maximum similarity of the pairs."""
        low, high = self._similarity_range
        return {"mean": self._similarity_sum / self.num_pairs, "min": low, "max": high}

    def class_coverage(self, class_names: tuple[str, ...]) -> dict[str, dict[str, int]]:
        """Return the numbers of pairs and clips of every class, including classes without any."""
        return {
            name: {"pairs": int(self.pairs_per_class[name]), "clips": int(self.clips_per_class[name])}
            for name in class_names
        }


def _check_cosines(pairs: pa.Table) -> None:
    for name in ("similarity", "class_similarity"):
        values = pairs[name].to_numpy()
        is_cosine = np.abs(values) <= 1 + ROUNDING  # False for NaN
        if not is_cosine.all():
            first = int(np.argmin(is_cosine))
            raise DataError(
                f"a {name.replace('_', ' ')} must be a cosine in [-1, 1], got {values[first]} for the clip "
                f"{pairs['clip_id'][first]} and the caption {pairs['caption_id'][first]}; their embeddings are not "
                "L2-normalised: embed them again"
            )


@dataclass(frozen=True, kw_only=True)
class CaptionCount:
    """A caption, and the number of pairs with it."""

    caption: str
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Similarities of a sample of the candidate clips to all candidate captions."""

    clips: int
    # in the sample
    of_clips: int
    edges: list[float]
    # of the bins; one more than `counts`
    counts: list[int]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What changed since the set of an earlier version of the pool."""

    parent: str
    # id of that set
    added: int
    removed: int
    kept: int
    clips_added: int
    # clips that had no pair before
    clips_removed: int
    # clips that no longer have a pair
    pairs_per_class: dict[str, dict[str, int]]
    # before and after


@dataclass(frozen=True, kw_only=True)
class Card(Payload):
    """The composition of an Improvement-Set in numbers: ``card.json``. Similarities are cosines."""

    KIND = "improvement_set"
    FILE = "card.json"

    strategy: str
    thresholds: dict[str, float]
    # audio and caption, if the strategy uses them
    counts: dict[str, int]
    exclusions: dict[str, int]
    # candidate clips that were excluded, by reason
    contamination: Mapping[str, Any]
    # candidates and teacher_pairs against the evaluation clips
    marked_wrong: int
    similarity: dict[str, float]
    # mean, min and max over the pairs
    class_coverage: dict[str, dict[str, int]]
    # pairs and clips of each class
    top_captions: list[CaptionCount]
    histogram: Histogram | None = None
    # this and all fields below: DU and ADS only
    scored: dict[str, int] | None = None
    # new_clips, and clips_taken_over from the set of an earlier version
    class_thresholds: dict[str, float] | None = None
    # if each class has its own audio threshold
    hubness: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None
    # how a precision was converted to a similarity
    approximate: Mapping[str, Any] | None = None
    # what the approximate search missed
    changes: Changes | None = None


@dataclass(frozen=True)
class ImprovementSet:
    """The folder of an Improvement-Set: its card, and its pairs as a table or as a stream."""

    folder: Path

    @classmethod
    def open(cls, artifact: Artifact) -> "ImprovementSet":
        """Return the set of a finished artifact; raise ArtifactError if it is of another kind."""
        if artifact.kind != Card.KIND:
            raise ArtifactError(f"expected an artifact of kind {Card.KIND}, got the {artifact.kind} {artifact.id}")
        return cls(artifact.path)

    @cached_property
    def card(self) -> Card:
        """The composition of the set in numbers."""
        return Card.read(self.folder)

    def pairs(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Return all pairs, sorted by clip, with the given columns of `SCHEMA` or all."""
        return pd.read_parquet(self.folder / PAIRS, columns=columns)

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the pairs in order, at most one row group at a time."""
        with pq.ParquetFile(self.folder / PAIRS) as file:
            for batch in file.iter_batches(ROW_GROUP, columns=columns):
                yield pa.Table.from_batches([batch])
