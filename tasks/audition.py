"""Improvement-Set -> audition page."""

from clapcur.stages.audition import STAGE, AuditionConfig, audition_inputs
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task


@stage_task("audition-{improvement_set.id}")
def audition(config: AuditionConfig, improvement_set: Artifact, campaign: Campaign | None = None) -> Artifact:
    """Write a page for listening to the pairs of a set; its record names the manifests of the pairs.

    Parameters
    ----------
    config : AuditionConfig
    improvement_set : Artifact
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    inputs = audition_inputs(Home.open().store, improvement_set)
    strategy = improvement_set.record.config["strategy"]
    return run_stage(STAGE, config, inputs, campaign, {"role": "audition", "strategy": strategy})
