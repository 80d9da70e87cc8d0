"""Generated captions: what was written for the clips of a pool, and why each caption was kept or rejected.

The payload of a generated manifest is that of any manifest (`clapcur.data.manifest`), with the clips that have a kept
caption. In addition, ``generated.parquet`` contains every caption that was tried: clip_id, caption_id, caption, way
(template, retrieve, captioner or pseudo-label), tags (of the clip, strongest first, separated by semicolons), strength
(of the strongest tag, see `clapcur.data.tags.Tag`; for a pseudo-label, its probability), similarity (of clip and
caption), tag_similarity (of clip and the name of its strongest tag) and verdict. Similarities are cosines; they are
missing if no model was used. For a clip without a tag, which only a captioner captions, tags is empty, and strength and
tag_similarity are missing. Rows are sorted by clip, those of a clip in the order in which they were tried.
"""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from clapcur.data.manifest import Manifest, captions_table, write_locations, write_table
from clapcur.store.artifacts import Artifact

FILE = "generated.parquet"
KEPT = ("kept", "best")  # verdicts of captions in the manifest; "best": the nearest one, if none is near enough
GENERATED = pa.schema(
    {
        "clip_id": pa.string(), "caption_id": pa.string(), "caption": pa.string(), "way": pa.string(),
        "tags": pa.string(), "strength": pa.float64(), "similarity": pa.float32(),
        "tag_similarity": pa.float32(), "verdict": pa.string(),
    }
)  # fmt: skip


def write_generated(table: pd.DataFrame, folder: Path) -> None:
    """Write all captions that were tried to the folder of the manifest."""
    write_table(table, GENERATED, folder / FILE)


def manifest_of(pool: Manifest, kept: pd.DataFrame) -> Manifest:
    """Return a manifest of the pool's clips in `kept` (clip_id, caption_id, caption), with these captions."""
    pairs = kept[["clip_id", "caption_id"]].drop_duplicates().sort_values(["clip_id", "caption_id"], ignore_index=True)
    clips = pool.clips[pool.clips.clip_id.isin(pairs.clip_id)].reset_index(drop=True)
    places = pool.locations[pool.locations.clip_id.isin(pairs.clip_id)].reset_index(drop=True)
    return Manifest(clips, captions_table(kept.caption), pairs, places)


def refresh_locations(artifact: Artifact, pool: Artifact) -> None:
    """Update the locations of a generated manifest whose pool has moved."""
    places = Manifest.open(pool).locations
    clips = pd.read_parquet(artifact.path / "clips.parquet", columns=["clip_id"]).clip_id
    write_locations(places[places.clip_id.isin(clips)].reset_index(drop=True), artifact.path)


def is_generated(manifest: Artifact) -> bool:
    """Return whether the captions of a manifest were generated."""
    return (manifest.path / FILE).is_file()


def read_generated(manifest: Artifact) -> pd.DataFrame:
    """Return all captions that were tried, sorted by clip."""
    return pd.read_parquet(manifest.path / FILE)
