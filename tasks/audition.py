"""Improvement-Set -> audition page."""

from clapcur.stages.audition import STAGE, AuditionConfig, audition_inputs
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task


@stage_task("audition-{improvement_set.id}")
def audition(config: AuditionConfig, improvement_set: Artifact, campaign: Campaign | None = None) -> Artifact:
    """Make the page on which the pairs of a set are heard; the manifests of its pairs are found by its record."""
    inputs = audition_inputs(Home.open().store, improvement_set)
    strategy = improvement_set.record.config["strategy"]
    return run_stage(STAGE, config, inputs, campaign, {"role": "audition", "strategy": strategy})
