"""Generated captions: what was written for the clips of a pool, and why it was kept or not.

The payload of a generated manifest is that of any manifest (`clapcur.data.manifest`), with the clips that have a kept
caption; beside it is ``generated.parquet`` with every caption that was tried: clip_id, caption_id, caption, way
(template, retrieve, captioner or pseudo-label), tags (of the clip, strongest first, separated by semicolons), strength
(of the strongest, see `clapcur.data.tags.Tag`; of a pseudo-label its probability), similarity (of clip and caption),
tag_similarity (of clip and the name of its strongest tag) and verdict. Similarities are cosines, and missing where no
model was asked. Rows are sorted by clip.
"""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from clapcur.data.manifest import Manifest, captions_table, write_locations, write_table
from clapcur.store.artifacts import Artifact

FILE = "generated.parquet"
KEPT = ("kept", "best")  # verdicts of captions that are in the manifest; "best": the best of those not near enough
GENERATED = pa.schema(
    {
        "clip_id": pa.string(), "caption_id": pa.string(), "caption": pa.string(), "way": pa.string(),
        "tags": pa.string(), "strength": pa.float64(), "similarity": pa.float32(),
        "tag_similarity": pa.float32(), "verdict": pa.string(),
    }
)  # fmt: skip


def write_generated(table: pd.DataFrame, folder: Path) -> None:
    """Write all captions that were tried into the folder of the manifest."""
    write_table(table, GENERATED, folder / FILE)


def manifest_of(pool: Manifest, kept: pd.DataFrame) -> Manifest:
    """Return the clips of a pool that have captions, with these: rows with clip_id, caption_id and caption."""
    pairs = kept[["clip_id", "caption_id"]].drop_duplicates().sort_values(["clip_id", "caption_id"], ignore_index=True)
    clips = pool.clips[pool.clips.clip_id.isin(pairs.clip_id)].reset_index(drop=True)
    places = pool.locations[pool.locations.clip_id.isin(pairs.clip_id)].reset_index(drop=True)
    return Manifest(clips, captions_table(kept.caption), pairs, places)


def refresh_locations(artifact: Artifact, pool: Artifact) -> None:
    """Write where the clips are now into a manifest that was made before its pool moved."""
    places = Manifest.open(pool).locations
    clips = pd.read_parquet(artifact.path / "clips.parquet", columns=["clip_id"]).clip_id
    write_locations(places[places.clip_id.isin(clips)].reset_index(drop=True), artifact.path)


def is_generated(manifest: Artifact) -> bool:
    """Return whether the captions of a manifest were generated."""
    return (manifest.path / FILE).is_file()


def read_generated(manifest: Artifact) -> pd.DataFrame:
    """Return all captions that were tried, sorted by clip."""
    return pd.read_parquet(manifest.path / FILE)
