"""The manifest artifact of a scan: its identity, its payload, and the current locations of its clips."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from clapcur.config import canonical
from clapcur.data.manifest import QUARANTINE, write_locations, write_table
from clapcur.errors import ArtifactError
from clapcur.stages.ingest.scanning import Scan
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.record import Outcome

VERSION = "1"


def stage_for(scan: Scan) -> tuple[Stage, dict[str, Any]]:
    """Return the stage that writes this scan, and the config that identifies its artifact.

    Decoded properties of a clip (duration, hash of samples) follow from its id and are not part of the identity, so
    another version of a decoder does not change the id of a pool. Counts of left-out rows are part of it, so the record
    of a reused artifact is true of this source too; the paths of bad files are not.
    """
    tables = scan.manifest
    identity = {
        "clips": _digest(tables.clips[["clip_id", "recording_id", "label", "fold"]]),
        "captions": _digest(tables.captions),
        "pairs": _digest(tables.pairs),
        "rules": canonical(scan.rules),
        "left_out": scan.reasons | {name: scan.counts[name] for name in ("duplicates", "excluded")},
    }

    def compute(inputs: Mapping[str, Artifact], config: Any, work: Workspace) -> Outcome:
        tables.write(work.path)
        write_table(scan.quarantine, QUARANTINE, work.path / "quarantine.parquet")
        facts = {"quarantine": scan.reasons, "exclusions": scan.exclusions, "source": scan.source}
        return Outcome(counts=scan.counts, facts=facts)

    return Stage("ingest", VERSION, "manifest", compute), identity


def refresh_locations(artifact: Artifact, scan: Scan) -> bool:
    """Write the current locations of the clips into an existing manifest; return whether any clip had moved.

    Raises
    ------
    ArtifactError
        The artifact is not the manifest of this scan.
    """
    places = scan.manifest.locations
    known = pd.read_parquet(artifact.path / "clips.parquet", columns=["clip_id"])
    if known.clip_id.tolist() != places.clip_id.tolist():
        raise ArtifactError(f"the manifest {artifact.id} and the scan of {scan.source} hold different clips")
    return write_locations(places, artifact.path)


def _digest(table: pd.DataFrame) -> str:
    """Return the SHA-256 of a table's values, independent of the library that made the table."""
    digest = hashlib.sha256()
    for name in table.columns:
        digest.update(json.dumps([name, table[name].tolist()], separators=(",", ":")).encode())
    return digest.hexdigest()
