"""Tables, tones and scans of them."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clapcur.stages.ingest import IngestConfig, Scan, refresh_locations, scan, stage_for
from clapcur.store.artifacts import Artifact, Store
from clapcur.testing import write_tone


def write_csv(path: Path, rows: Iterable[Sequence[object]], delimiter: str = ",") -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def tones(folder: Path, num: int) -> list[str]:
    """Write clips `0.wav`, `1.wav`, ... and return their names."""
    return [write_tone(folder / f"{i}.wav", 200 + 100 * i, seed=i, duration_s=0.1).name for i in range(num)]


def scanned(source: Path, cache: Path | None = None, **config: Any) -> Scan:
    return scan(IngestConfig(source=str(source), num_workers=2, **config), cache)


def make(store: Store, found: Scan) -> Artifact:
    """Do what a task does: reuse the artifact of this content, or write it."""
    stage, identity = stage_for(found)
    key = stage.key(identity, {})
    artifact = store.get(key, verify=True)
    if artifact is None:
        work = store.open(key)
        artifact = store.commit(work, stage.compute({}, identity, work), 0.0)
    refresh_locations(artifact, found)
    return artifact


def name(found: Scan) -> str:
    stage, identity = stage_for(found)
    return stage.key(identity, {}).id


def pairs(found: Scan) -> set[tuple[str, str]]:
    """Return the pairs as (file name, caption)."""
    table = found.manifest.pairs.merge(found.manifest.captions).merge(found.manifest.locations)
    return {(Path(path).name, caption) for path, caption in zip(table.path, table.caption, strict=True)}


def quarantined(found: Scan) -> dict[str, str]:
    assert found.counts["quarantined"] == len(found.quarantine) == sum(found.reasons.values())
    return dict(zip(found.quarantine.path, found.quarantine.reason, strict=True))
