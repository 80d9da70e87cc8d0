"""Reuse the Improvement-Set of an earlier version of the pool."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clapcur.config import canonical
from clapcur.data.embeddings import read_left_out
from clapcur.data.improvement_set import ImprovementSet
from clapcur.data.manifest import Manifest
from clapcur.stages.curate.config import CurateConfig
from clapcur.store.artifacts import Artifact


@dataclass(frozen=True)
class TakenOver:
    """The part of an earlier pool version's Improvement-Set that is reused (DU and ADS)."""

    earlier: ImprovementSet | None
    # None: nothing is reused
    scored: frozenset[str] = frozenset()
    # candidate clips of the earlier set

    @classmethod
    def open(
        cls, inputs: Mapping[str, Artifact], config: CurateConfig, version: str, clip_ids: NDArray[np.object_]
    ) -> "TakenOver":
        """Return what can be reused, which may be nothing.

        The earlier set must have been made by this version of the stage, from the same config and other inputs. All
        clips are scored again if the result could differ otherwise: if a clip was removed (which makes room for pairs
        that the earlier set did not keep), with a cap per caption or removal of duplicates (where a new clip can
        replace another), with a correction of hubness (which is measured on the whole pool), and if any clip had no
        embedding, then or now.

        Parameters
        ----------
        inputs : mapping of str to Artifact
            Inputs of the stage, by role.
        config : CurateConfig
        version : str
            Version of the stage.
        clip_ids : NDArray, shape (N,)
            The current candidates.
        """
        of_whole_pool = config.max_per_caption, config.distinct_clips, config.hubness
        if "parent" not in inputs or any(setting is not None for setting in of_whole_pool):
            return cls(None)
        parent, changing = inputs["parent"], ("pool", "pool_embeddings", "parent", "parent_pool")
        record = parent.record
        others = {role: artifact.id for role, artifact in inputs.items() if role not in changing}
        same = {role: name for role, name in record.inputs.items() if role not in changing} == others
        before = set(Manifest.open(inputs["parent_pool"]).clips.clip_id)
        left = before - set(Manifest.open(inputs["pool"]).clips.clip_id)
        had_all = not record.counts.get("excluded.not_embedded")
        has_all = not len(read_left_out(inputs["pool_embeddings"].path))
        if (
            not (same and had_all and has_all)
            or left
            or (record.version, record.config) != (version, canonical(config))
        ):
            return cls(None)
        return cls(ImprovementSet.open(parent), frozenset(before & set(clip_ids)))

    def is_new(self, clip_ids: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Return for each clip whether it must be scored."""
        return np.array([name not in self.scored for name in clip_ids], bool)

    def thresholds(self) -> dict[str, float] | float | None:
        """Return the thresholds of the earlier set, one for all or one per class; None if nothing is reused."""
        if self.earlier is None:
            return None
        card = self.earlier.card
        return card.class_thresholds or card.thresholds["audio"]

    def blocks(self) -> Iterator[pa.Table]:
        """Yield the pairs of the earlier set."""
        return self.earlier.blocks() if self.earlier else iter(())
