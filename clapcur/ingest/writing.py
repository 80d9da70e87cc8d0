"""The manifest artifact of a scan: its identity, its payload, and where its clips lie today."""

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from clapcur.artifacts import LOCATIONS, Artifact, Stage, Workspace, write_atomic
from clapcur.config import canonical
from clapcur.errors import ArtifactError
from clapcur.ingest.scanning import CAPTIONS, CLIPS, PAIRS, PLACES, QUARANTINE, Scan

VERSION = "1"
ROW_GROUP = 2**16  # rows; small enough that a look-up of one clip among millions of pairs reads little


def stage_for(scan: Scan) -> tuple[Stage, dict[str, Any]]:
    """Return the stage that writes this scan and the config that names its artifact.

    What is decoded from a clip's bytes (duration, hash of samples) follows from its id and is not signed: another
    version of a decoder must not rename a pool. Counts of what was left out are signed, so that the record of an
    artifact that is found again is true of this source too; where bad files lie is not.
    """
    tables = scan.manifest
    identity = {
        "clips": _digest(tables.clips[["clip_id", "recording_id", "label", "fold"]]),
        "captions": _digest(tables.captions),
        "pairs": _digest(tables.pairs),
        "rules": canonical(scan.rules),
        "left_out": scan.reasons | {name: scan.counts[name] for name in ("duplicates", "excluded")},
    }

    def compute(inputs: Mapping[str, Artifact], config: Any, work: Workspace) -> dict[str, Any]:
        for name, table, schema in (
            ("clips.parquet", tables.clips, CLIPS),
            ("captions.parquet", tables.captions, CAPTIONS),
            ("pairs.parquet", tables.pairs, PAIRS),
            ("quarantine.parquet", scan.quarantine, QUARANTINE),
            (LOCATIONS, tables.locations, PLACES),
        ):
            _write(table, schema, work.path / name)
        return {
            "counts": scan.counts, "quarantine": scan.reasons, "exclusions": scan.exclusions, "source": scan.source
        }  # fmt: skip

    return Stage("ingest", VERSION, "manifest", compute), identity


def refresh_locations(artifact: Artifact, scan: Scan) -> bool:
    """Write where the clips lie now into a manifest that was made before, and tell whether anything had moved.

    Raises
    ------
    ArtifactError
        The artifact is not the manifest of this scan.
    """
    places = scan.manifest.locations
    known = pd.read_parquet(artifact.path / "clips.parquet", columns=["clip_id"])
    if known.clip_id.tolist() != places.clip_id.tolist():
        raise ArtifactError(f"the manifest {artifact.id} holds other clips than the scan of {scan.source}")
    path = artifact.path / LOCATIONS
    if path.exists() and pd.read_parquet(path).equals(places):
        return False
    _write(places, PLACES, path)
    return True


def _digest(table: pd.DataFrame) -> str:
    """Return the SHA-256 of a table's values, whatever library wrote them."""
    digest = hashlib.sha256()
    for name in table.columns:
        digest.update(json.dumps([name, table[name].tolist()], separators=(",", ":")).encode())
    return digest.hexdigest()


def _write(table: pd.DataFrame, schema: pa.Schema, path: Path) -> None:
    """Write a table so that the same content is the same bytes, without pandas' own notes on it."""
    content = BytesIO()
    plain = pa.Table.from_pandas(table, schema=schema, preserve_index=False).replace_schema_metadata(None)
    parquet.write_table(plain, content, row_group_size=ROW_GROUP, compression="zstd")
    write_atomic(path, content.getvalue())
