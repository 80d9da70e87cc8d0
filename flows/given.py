"""What a user names: an artifact by its id, or a file, folder or table, which is imported first."""

from pathlib import Path

from clapcur.audio.addresses import absolute, is_url
from clapcur.lineage.queries import find
from clapcur.stages.adopt import AdoptConfig
from clapcur.stages.ingest import POOL, IngestConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home
from clapcur.tasks.adopt import adopt
from clapcur.tasks.ingest import ingest
from clapcur.tasks.pool import grow


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


def pool_of(home: Home, name: str) -> Artifact:
    """Return the manifest that an id or ``pool:NAME`` means, or a folder, table, shard or URL, which is ingested."""
    if name.startswith(POOL):
        return grow(name.removeprefix(POOL))
    if not is_url(name) and not Path(name).exists():
        return find(home, name, "manifest")
    return ingest(IngestConfig(source=absolute(str(Path.cwd()), name)), "pool")
