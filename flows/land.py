"""Landing: new audio becomes the next version of a pool."""

from prefect import flow

from clapcur.stages.ingest import IngestConfig
from clapcur.store.artifacts import Artifact
from clapcur.tasks.ingest import ingest
from clapcur.tasks.pool import grow


@flow(name="land", flow_run_name="land-{pool}")
def land(source: IngestConfig, pool: str) -> Artifact:
    """Ingest a folder or table into a pool, and return the pool's newest version.

    Clips that are already in the pool are skipped; if no clip is new, the pool gets no new version.
    """
    return grow(pool, ingest(source, "landing"))
