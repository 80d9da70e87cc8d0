"""Labelled clips, or an Improvement-Set -> compositions."""

from collections.abc import Mapping

from clapcur.stages.compose import STAGE, ComposeConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import run_stage, stage_task


@stage_task("compose-{role}-seed{config.seed}")
def compose(
    config: ComposeConfig, inputs: Mapping[str, Artifact], role: str, campaign: Campaign | None = None
) -> Artifact:
    """Compose single sounds.

    Parameters
    ----------
    config : ComposeConfig
    inputs : mapping of str to Artifact
        By role; see `clapcur.stages.compose`.
    role : str
        Use of the compositions: ``training`` or ``evaluation``.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    return run_stage(STAGE, config, inputs, campaign, {"role": role, "seed": config.seed})
