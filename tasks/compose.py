"""Labelled clips, or an Improvement-Set -> compositions."""

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from clapcur.stages.compose import STAGE, ComposeConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import TRIED_AGAIN, run_stage


@task(cache_policy=NO_CACHE, task_run_name="compose-{role}-seed{config.seed}", **TRIED_AGAIN)
def compose(
    config: ComposeConfig, inputs: Mapping[str, Artifact], role: str, campaign: Campaign | None = None
) -> Artifact:
    """Put single sounds together; `role` says what for: training or evaluation."""
    return run_stage(STAGE, config, inputs, campaign, {"role": role, "seed": config.seed})
