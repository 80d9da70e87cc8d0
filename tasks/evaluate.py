"""Embeddings of clips x class prompts or captions -> scores."""

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
    """Score the checkpoint of one row: zero-shot classification or retrieval.

    Parameters
    ----------
    config : EvaluateConfig
    inputs : mapping of str to Artifact
        By role; see `clapcur.stages.evaluate`. The artifacts that the checkpoint was made from are added here.
    row : Row
        Row of the checkpoint, recorded with the scores.
    seed : int
        Seed of the checkpoint, recorded with the scores.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    tags = {**row.tags, "seed": seed}
    if campaign is not None:
        tags["dataset"] = campaign.experiment
    made_from = ancestors(Home.open().store, inputs["checkpoint"])
    return run_stage(STAGE, config, {**inputs, **made_from}, campaign, tags)
