"""A landing, or clips that were taken down -> the next version of a pool."""

from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL

from clapcur.lineage import pools
from clapcur.stages.pool import STAGE
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task

LANDED = "clapcur.pool.landed"


@stage_task("grow-{name}")
def grow(name: str, landing: Artifact | None = None, campaign: Campaign | None = None) -> Artifact:
    """Return the newest version of a pool, made now where the landing or a tombstone changes anything.

    Where a Prefect server is known it hears of a new version, as the event `clapcur.pool.landed`. An event may be lost:
    it only saves the time until the next look of `clapcur.flows.reconcile`.
    """
    home = Home.open()
    with pools.turn(home, name) as lease:
        following = pools.next_version(home, name, landing)
        if following is None:
            return pools.head(home, name)
        config, inputs = following
        tags = {"role": "pool", "pool": name, "name": f"{name} v{config.version}"}
        lease.check()  # another version that came meanwhile is then the parent of the next
        version = run_stage(STAGE, config, inputs, campaign, tags)
    if PREFECT_API_URL.value():
        counts = version.record.counts
        payload = {"pool": name, "version": config.version, "id": version.id, "added": counts["added"]}
        emit_event(LANDED, {"prefect.resource.id": f"clapcur.pool.{name}"}, payload=payload)
    return version
