"""Merge: several manifests -> one, or a share of it. Teachers are seldom trained on a single corpus.

Payload: that of a manifest (see `clapcur.data.manifest`). A clip in several inputs counts once, as described by the
first of them, with the pairs of all.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from clapcur.config import frozen
from clapcur.data.manifest import Manifest, union, write_locations
from clapcur.errors import EmptySetError
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.record import Outcome


@frozen
class MergeConfig:
    """How much to keep."""

    share: float = 1.0
    """Fraction of the source recordings to keep, with all their clips; the choice does not depend on other inputs."""

    def __post_init__(self) -> None:
        """Reject a share outside (0, 1]."""
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share:g}; a percentage?")


def merge(inputs: Mapping[str, Artifact], config: MergeConfig, work: Workspace) -> Outcome:
    """Write one manifest of all inputs, in the order of their roles.

    Inputs by role: one or more manifests, under any names.

    Raises
    ------
    EmptySetError
        The share is so small that no clip is left.
    """
    whole = union([Manifest.open(inputs[role]) for role in sorted(inputs)])
    taken = whole.sample(config.share)
    if len(whole.clips) and not len(taken.clips):
        raise EmptySetError(f"a share of {config.share:g} leaves no recording of {len(whole.clips)} clips; raise it")
    taken.write(work.path)
    tables = {"clips": taken.clips, "captions": taken.captions, "pairs": taken.pairs}
    return Outcome(counts={name: len(table) for name, table in tables.items()} | {"of_clips": len(whole.clips)})


def refresh_locations(artifact: Artifact, manifests: Sequence[Artifact]) -> None:
    """Write the current locations of the clips into a manifest that was merged before its inputs moved."""
    places = union([Manifest.open(manifest) for manifest in manifests]).locations
    clips = pd.read_parquet(artifact.path / "clips.parquet", columns=["clip_id"]).clip_id
    write_locations(places[places.clip_id.isin(clips)].reset_index(drop=True), artifact.path)


STAGE = Stage("merge", "1", "manifest", merge)
