"""Embeddings x class prompts -> scores."""

from collections.abc import Mapping

from clapcur.data.rows import Row
from clapcur.methods.contamination import ancestors
from clapcur.stages.evaluate import STAGE, EvaluateConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task


@stage_task("evaluate-{row.name}-seed{seed}")
def evaluate(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], row: Row, seed: int, campaign: Campaign | None = None
) -> Artifact:
    """Score one row's checkpoint zero-shot."""
    tags = {**row.tags, "seed": seed}
    if campaign is not None:
        tags["dataset"] = campaign.experiment
    made_from = ancestors(Home.open().store, inputs["checkpoint"])
    return run_stage(STAGE, config, {**inputs, **made_from}, campaign, tags)
