"""An audio tower, captioned clips and their tags -> a captioner."""

from collections.abc import Mapping

from clapcur.stages.captioner import STAGE, CaptionerTraining
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import run_stage, stage_task


@stage_task("captioner-seed{config.seed}")
def train_captioner(
    config: CaptionerTraining, inputs: Mapping[str, Artifact], campaign: Campaign | None = None
) -> Artifact:
    """Train a captioner on captioned clips and their tags; MLflow shows the curves while it runs.

    Parameters
    ----------
    config : CaptionerTraining
    inputs : mapping of str to Artifact
        By role: ``checkpoint``, ``pairs`` and ``tags``.
    campaign : Campaign, optional
        The experiment that asks, for MLflow.
    """
    return run_stage(STAGE, config, inputs, campaign, {"seed": config.seed}, is_live=True)
