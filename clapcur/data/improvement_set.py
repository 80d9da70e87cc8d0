"""The Improvement-Set on disk, written as a stream, and the card that describes it.

``pairs.parquet`` holds one row per pair: clip_id, caption_id, similarity (audio against caption), class (of the
nearest class prompt of the caption), class_similarity (caption against that prompt) and rank (of the caption among
those kept or passed over for its clip, 0 is the nearest). Rows are sorted by clip_id, so that the row groups answer
"which pairs hold this clip" without reading the rest.
"""

from collections import Counter
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

PAIRS = "pairs.parquet"
ROW_GROUP = 65_536
ROUNDING = 1e-3  # by which a cosine of two unit rows of float32 or bfloat16 may pass 1
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
    """Streams pairs into ``pairs.parquet`` and counts what the card tells.

    Pairs must come in the order of clip_id; memory holds one row group and counters.
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
        """Write what waits; the file takes its name only when all went well."""
        if error is None:
            self._flush()
        self._writer.close()
        if error is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)

    def add(self, pairs: pa.Table) -> None:
        """Add a table of `SCHEMA`; a clip may go on in the next one.

        Raises
        ------
        DataError
            A similarity is no cosine: an embedding that it was made from is not a unit row.
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
        """Count clips, and in how many clips each class occurs, by the runs of equal clips."""
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
        """Return mean, least and greatest similarity of the pairs."""
        low, high = self._similarity_range
        return {"mean": self._similarity_sum / self.num_pairs, "min": low, "max": high}

    def class_coverage(self, class_names: tuple[str, ...]) -> dict[str, dict[str, int]]:
        """Return the numbers of pairs and clips of every class, those without any included."""
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
                f"{pairs['clip_id'][first]} and the caption {pairs['caption_id'][first]}; their embeddings are no unit "
                "rows, embed them again"
            )


def read_pairs(artifact: Artifact, clip_id: str | None = None) -> pd.DataFrame:
    """Read the pairs of a finished Improvement-Set, or those of one clip."""
    if artifact.kind != "improvement_set":
        raise ArtifactError(f"expected an improvement_set, got the {artifact.kind} {artifact.id}")
    filters: Any = [("clip_id", "==", clip_id)] if clip_id else None
    return pq.read_table(artifact.path / PAIRS, filters=filters).to_pandas()
