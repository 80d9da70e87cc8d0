"""The manifest artifact of a scan: its identity, its payload, and where its clips are today."""

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

    def compute(inputs: Mapping[str, Artifact], config: Any, work: Workspace) -> Outcome:
        tables.write(work.path)
        write_table(scan.quarantine, QUARANTINE, work.path / "quarantine.parquet")
        facts = {"quarantine": scan.reasons, "exclusions": scan.exclusions, "source": scan.source}
        return Outcome(counts=scan.counts, facts=facts)

    return Stage("ingest", VERSION, "manifest", compute), identity


def refresh_locations(artifact: Artifact, scan: Scan) -> bool:
    """Write where the clips are now into a manifest that was made before, and tell whether anything had moved.

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
    """Return the SHA-256 of a table's values, whatever library wrote them."""
    digest = hashlib.sha256()
    for name in table.columns:
        digest.update(json.dumps([name, table[name].tolist()], separators=(",", ":")).encode())
    return digest.hexdigest()
