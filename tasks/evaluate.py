"""Embeddings x class prompts -> scores."""

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from clapcur.data.rows import Row
from clapcur.stages.evaluate import STAGE, EvaluateConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import TRIED_AGAIN, run_stage


@task(cache_policy=NO_CACHE, task_run_name="evaluate-{row.name}-seed{seed}", **TRIED_AGAIN)
def evaluate(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], row: Row, seed: int, campaign: Campaign | None = None
) -> Artifact:
    """Score one row's checkpoint zero-shot."""
    tags = {**row.tags, "seed": seed}
    if campaign is not None:
        tags["dataset"] = campaign.experiment
    return run_stage(STAGE, config, inputs, campaign, tags)
