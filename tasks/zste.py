"""Checkpoint x held-out compositions -> scores of order."""

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from clapcur.stages.zste import STAGE, ZsteConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import TRIED_AGAIN, run_stage


@task(cache_policy=NO_CACHE, task_run_name="zste-{row}-seed{seed}", **TRIED_AGAIN)
def zste(
    config: ZsteConfig, inputs: Mapping[str, Artifact], row: str, seed: int, campaign: Campaign | None = None
) -> Artifact:
    """Score what one row's checkpoint hears of order."""
    return run_stage(STAGE, config, inputs, campaign, {"role": "order", "row": row, "seed": seed})
