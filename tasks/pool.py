"""A landing, or clips that were taken down -> the next version of a pool."""

from contextlib import nullcontext

from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL

from clapcur.lineage import pools
from clapcur.stages.pool import STAGE
from clapcur.store import dry_run
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task

LANDED = "clapcur.pool.landed"


@stage_task("grow-{name}")
def grow(name: str, landing: Artifact | None = None, campaign: Campaign | None = None) -> Artifact:
    """Return the newest version of a pool, after making one if the landing or a tombstone changes the pool.

    If a Prefect server is configured, a new version emits the event `clapcur.pool.landed`. An event may be lost; it
    only saves the wait for the next run of `clapcur.flows.reconcile`.

    Parameters
    ----------
    name : str
        Name of the pool.
    landing : Artifact, optional
        Manifest of new clips; None: only remove clips that were taken down.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    home = Home.open()
    with nullcontext() if dry_run.current() else pools.turn(home, name) as lease:
        following = pools.next_version(home, name, landing)
        if following is None:
            return pools.head(home, name)
        config, inputs = following
        tags = {"role": "pool", "pool": name, "name": f"{name} v{config.version}"}
        if lease is not None:
            lease.check()  # raises if another process took over; its version is then the parent of the next
        version = run_stage(STAGE, config, inputs, campaign, tags)
    if PREFECT_API_URL.value() and dry_run.current() is None:
        counts = version.record.counts
        payload = {"pool": name, "version": config.version, "id": version.id, "added": counts["added"]}
        emit_event(LANDED, {"prefect.resource.id": f"clapcur.pool.{name}"}, payload=payload)
    return version
