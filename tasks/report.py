"""Scores -> report."""

from collections.abc import Mapping

from clapcur.stages.report import STAGE, ReportConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task
from clapcur.tasks.pages import show


@stage_task("report")
def report(config: ReportConfig, inputs: Mapping[str, Artifact], campaign: Campaign | None = None) -> Artifact:
    """Compare the scores of all rows.

    Parameters
    ----------
    config : ReportConfig
    inputs : mapping of str to Artifact
        Scores, by the roles that the rows name; the records of the scores name the checkpoints. Without an evaluation
        set: the checkpoints, by their roles.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    store = Home.open().store
    checkpoints = {
        f"checkpoint.{role}": store.find(scores.record.inputs["checkpoint"])
        for role, scores in inputs.items()
        if scores.kind == "scores"
    }
    return show(run_stage(STAGE, config, {**inputs, **checkpoints}, campaign, {"role": "report"}))
