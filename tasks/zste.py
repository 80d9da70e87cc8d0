"""Checkpoint x held-out compositions -> scores of order."""

from collections.abc import Mapping

from clapcur.data.rows import Row
from clapcur.methods.contamination import ancestors
from clapcur.stages.zste import STAGE, ZsteConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task


@stage_task("zste-{row.name}-seed{seed}")
def zste(
    config: ZsteConfig, inputs: Mapping[str, Artifact], row: Row, seed: int, campaign: Campaign | None = None
) -> Artifact:
    """Score what one row's checkpoint hears of order."""
    made_from = ancestors(Home.open().store, inputs["checkpoint"])
    tags = {"role": "order", **row.tags, "seed": seed}
    return run_stage(STAGE, config, {**inputs, **made_from}, campaign, tags)
