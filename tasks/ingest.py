"""Folder or table -> manifest."""

from clapcur.lineage import pools
from clapcur.stages import ingest as stage_module
from clapcur.stages.ingest import IngestConfig
from clapcur.store import dry_run
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task


@stage_task("ingest-{role}")
def ingest(config: IngestConfig, role: str, campaign: Campaign | None = None) -> Artifact:
    """Probe and hash the files that `config` names; the identity of the manifest is their content, not their location.

    Clips that were taken down are left out.

    Parameters
    ----------
    config : IngestConfig
    role : str
        Role of the manifest in the experiment, such as ``pairs`` or ``pool``.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    home, dry = Home.open(), dry_run.current()
    cache = home.root / "probes.db"
    if dry:
        cache = dry.copy(cache)
    scan = stage_module.scan(config, probe_cache=cache, forgotten=pools.forgotten(home))
    stage, identity = stage_module.stage_for(scan)
    artifact = run_stage(stage, identity, {}, campaign, {"role": role})
    if dry_run.current() is None:
        stage_module.refresh_locations(artifact, scan)
    return artifact
