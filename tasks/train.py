"""Pairs, or an Improvement-Set with replay -> checkpoint."""

from collections.abc import Mapping

from clapcur.data.rows import Row
from clapcur.stages.train import STAGE, TrainConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import run_stage, stage_task


@stage_task("train-{row.name}-seed{config.seed}")
def train(config: TrainConfig, inputs: Mapping[str, Artifact], row: Row, campaign: Campaign | None = None) -> Artifact:
    """Train the teacher or the student of one row; MLflow shows the curves while it runs.

    Parameters
    ----------
    config : TrainConfig
    inputs : mapping of str to Artifact
        By role; see `clapcur.stages.train`.
    row : Row
        Row of the new checkpoint, recorded with it.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    role = "teacher" if row.is_teacher else "student"
    tags = {"role": role, **row.tags, "seed": config.seed}
    return run_stage(STAGE, config, inputs, campaign, tags, is_live=True)
