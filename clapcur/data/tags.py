"""Tags: the classes that a tagger detected in each clip of a manifest.

Payload of a ``tags`` artifact:

- ``classes.parquet``: name, mid (in AudioSet's ontology, or empty), mean (probability over all clips), threshold (the
  minimum probability for the tag), clips (the number that have the tag); in the order of the tagger's outputs.
- ``tags.parquet``: clip_id, class (row of ``classes``), probability, for every probability that reaches the tagging
  floor; sorted by clip and class.
- ``ids.parquet``: id of every clip that was tagged, including clips without a tag.
- ``left_out.parquet`` (optional): clips that could not be tagged (`clapcur.data.embeddings`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from clapcur.data.embeddings import LEFT_OUT, left_out_table, read_ids, read_left_out
from clapcur.data.manifest import write_table
from clapcur.errors import ArtifactError
from clapcur.store.artifacts import Artifact

KIND = "tags"
CLASSES = pa.schema(
    {
        "name": pa.string(), "mid": pa.string(), "mean": pa.float64(), "threshold": pa.float64(), "clips": pa.int64(),
    }
)  # fmt: skip
TAGS = pa.schema({"clip_id": pa.string(), "class": pa.int32(), "probability": pa.float32()})
IDS = pa.schema({"id": pa.string()})
VectorForm = Literal["given", "probability"]  # 1 for each tag that is given; or the probability of each class
Thresholds = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Tag:
    """A class that was assigned to a clip."""

    name: str
    probability: float
    # the tagger's output, 0 to 1; not comparable between classes
    strength: float
    # the probability divided by the threshold of the class; at least 1


@dataclass(frozen=True)
class Tags:
    """The tags of some clips, as the tables of the payload."""

    classes: pd.DataFrame
    tags: pd.DataFrame
    clip_ids: list[str]
    left_out: pd.DataFrame = field(default_factory=lambda: left_out_table([]))

    @classmethod
    def of(
        cls, names: pd.DataFrame, tags: pd.DataFrame, clip_ids: list[str], thresholds: Thresholds,
        left_out: pd.DataFrame | None = None,
    ) -> "Tags":  # fmt: skip
        """Return tags with the mean, the threshold and the number of clips of each class.

        Parameters
        ----------
        names : DataFrame
            name and mid of each class.
        tags : DataFrame
            clip_id, class, probability.
        clip_ids : list of str
        thresholds : callable
            Maps the mean probability of each class over all clips, shape (K,), to its threshold.
        left_out : DataFrame, optional
        """
        tags = tags.sort_values(["clip_id", "class"], ignore_index=True)
        sums = np.bincount(tags["class"], tags.probability.to_numpy(np.float64), minlength=len(names))
        means = sums / max(1, len(clip_ids))
        threshold_K = thresholds(means)
        given = tags.probability.to_numpy(np.float64) >= threshold_K[tags["class"].to_numpy()]
        counts = np.bincount(tags["class"][given], minlength=len(names))
        classes = pd.DataFrame(
            {"name": names.name, "mid": names.mid, "mean": means, "threshold": threshold_K, "clips": counts}
        )
        return cls(classes, tags, sorted(clip_ids), left_out_table([]) if left_out is None else left_out)

    @classmethod
    def open(cls, artifact: Artifact) -> "Tags":
        """Read the tags of a finished artifact; raise ArtifactError if it is of another kind."""
        if artifact.kind != KIND:
            raise ArtifactError(f"expected tags, got the {artifact.kind} {artifact.id}")
        read = {name: pd.read_parquet(artifact.path / f"{name}.parquet") for name in ("classes", "tags")}
        return cls(**read, clip_ids=read_ids(artifact.path), left_out=read_left_out(artifact.path))

    def write(self, folder: Path) -> None:
        """Write the payload."""
        write_table(self.classes, CLASSES, folder / "classes.parquet")
        write_table(self.tags, TAGS, folder / "tags.parquet")
        write_table(pd.DataFrame({"id": self.clip_ids}, dtype="str"), IDS, folder / "ids.parquet")
        if len(self.left_out):
            self.left_out.to_parquet(folder / LEFT_OUT, index=False)

    def given(self, most: int, unsaid: Collection[str] = ()) -> Mapping[str, list[Tag]]:
        """Return the tags that reach the threshold of their class, strongest first, for each clip that has any.

        Parameters
        ----------
        most : int
            Maximum number of tags per clip.
        unsaid : collection of str
            Names of classes to skip.
        """
        threshold = self.classes.threshold.to_numpy()[self.tags["class"].to_numpy()]
        strength = self.tags.probability.to_numpy(np.float64) / np.maximum(threshold, 1e-12)
        passed_over = self.classes.name.isin(list(unsaid)).to_numpy()[self.tags["class"].to_numpy()]
        table = self.tags.assign(strength=strength)[(strength >= 1) & ~passed_over]
        table = table.sort_values(["clip_id", "strength", "class"], ascending=[True, False, True])
        names = self.classes.name.tolist()
        found: dict[str, list[Tag]] = {}
        for row in table.itertuples(index=False):
            tags = found.setdefault(row.clip_id, [])
            if len(tags) < most:
                tags.append(Tag(names[row[1]], float(row.probability), float(row.strength)))
        return found

    def vectors(
        self, clip_ids: Sequence[str], class_names: Sequence[str], form: VectorForm = "given"
    ) -> NDArray[np.float32]:
        """Return tags as vectors over classes, shape (N, K), of the clips in their order; zeros where there is no tag.

        Parameters
        ----------
        clip_ids : sequence of str
        class_names : sequence of str
            Classes of the vectors, in their order; tags of other classes are left out.
        form : {"given", "probability"}
            1 for each tag that reaches the threshold of its class; or the probability of each class.
        """
        vector_NK = np.zeros((len(clip_ids), len(class_names)), np.float32)
        if not len(clip_ids):
            return vector_NK
        # They are sorted by clip: a block of clips needs few rows of a long table.
        first = int(self.tags.clip_id.searchsorted(min(clip_ids)))
        last = int(self.tags.clip_id.searchsorted(max(clip_ids), side="right"))
        near, number = self.tags.iloc[first:last], self.tags["class"].to_numpy()[first:last]
        probability = near.probability.to_numpy(np.float64)
        column = pd.Index(class_names).get_indexer(pd.Index(self.classes.name))[number]
        row = pd.Index(clip_ids).get_indexer(pd.Index(near.clip_id))
        kept = (row >= 0) & (column >= 0)
        if form == "given":
            kept &= probability >= self.classes.threshold.to_numpy()[number]
        vector_NK[row[kept], column[kept]] = probability[kept] if form == "probability" else 1.0
        return vector_NK
