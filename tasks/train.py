"""Pairs, or an Improvement-Set with replay -> checkpoint."""

from collections.abc import Mapping

from clapcur.data.rows import Row
from clapcur.stages.train import STAGE, TrainConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import run_stage, stage_task


@stage_task("train-{row.name}-seed{config.seed}")
def train(config: TrainConfig, inputs: Mapping[str, Artifact], row: Row, campaign: Campaign | None = None) -> Artifact:
    """Train the teacher or one row's student; the curves are seen in MLflow while it runs."""
    role = "teacher" if row.is_teacher else "student"
    tags = {"role": role, **row.tags, "seed": config.seed}
    return run_stage(STAGE, config, inputs, campaign, tags, is_live=True)
