"""What a shard holds, and a scan of it."""

from pathlib import Path
from typing import Any

from clapcur.audio import addresses
from clapcur.stages.ingest import IngestConfig, scan


def member_names(found: Any) -> set[str]:
    return {addresses.readable(path).rpartition("/")[2] for path in found.manifest.paths.values()}


def scanned_url(url: str, cache: Path | None = None, **config: Any) -> Any:
    return scan(IngestConfig(source=url, num_workers=2, **config), cache)
