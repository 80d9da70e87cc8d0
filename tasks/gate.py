"""Two scores -> who is champion."""

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from clapcur.artifacts import Artifact
from clapcur.catalog import Campaign
from clapcur.gate import STAGE, GateConfig
from tasks.common import TRIED_AGAIN, run_stage


@task(cache_policy=NO_CACHE, task_run_name="gate-{config.dataset}", **TRIED_AGAIN)
def gate(config: GateConfig, inputs: Mapping[str, Artifact], campaign: Campaign | None = None) -> Artifact:
    """Decide whether the challenger takes the champion's place."""
    return run_stage(STAGE, config, inputs, campaign, {"role": "gate", "dataset": config.dataset})
