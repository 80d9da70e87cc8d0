"""What a user names: an artifact by its id, or a file, folder or table, which is imported first."""

from pathlib import Path

from clapcur.lineage.queries import find
from clapcur.stages.adopt import AdoptConfig
from clapcur.stages.ingest import IngestConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home
from clapcur.tasks.adopt import adopt
from clapcur.tasks.ingest import ingest


def checkpoint_of(home: Home, name: str) -> Artifact:
    """Return the checkpoint that an id means, or a file or folder, which is imported."""
    if not Path(name).exists():
        return find(home, name, "checkpoint")
    return adopt(AdoptConfig(source=str(Path(name).absolute())), {})


def clips_of(home: Home, name: str) -> Artifact:
    """Return the manifest that an id means, or a table or folder, which is ingested."""
    if not Path(name).exists():
        return find(home, name, "manifest")
    return ingest(IngestConfig(source=str(Path(name).absolute())), "clips")
