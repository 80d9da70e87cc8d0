"""Pairs, or an Improvement-Set with replay -> checkpoint."""

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from clapcur.data.rows import Row
from clapcur.stages.train import STAGE, TrainConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import TRIED_AGAIN, run_stage


@task(cache_policy=NO_CACHE, task_run_name="train-{row.name}-seed{config.seed}", **TRIED_AGAIN)
def train(config: TrainConfig, inputs: Mapping[str, Artifact], row: Row, campaign: Campaign | None = None) -> Artifact:
    """Train the teacher or one row's student; the curves are seen in MLflow while it runs."""
    role = "teacher" if row.strategy == "teacher" else "student"
    tags = {"role": role, **row.tags, "seed": config.seed}
    return run_stage(STAGE, config, inputs, campaign, tags, is_live=True)
