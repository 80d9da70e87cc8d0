"""Checkpoint of another project -> checkpoint."""

from collections.abc import Mapping

from clapcur.stages.adopt import AdoptConfig, stage_for
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import run_stage, stage_task


@stage_task("adopt")
def adopt(config: AdoptConfig, inputs: Mapping[str, Artifact], campaign: Campaign | None = None) -> Artifact:
    """Import a checkpoint of another project; ``adopted.json`` lists how each of its tensors was used.

    Parameters
    ----------
    config : AdoptConfig
    inputs : mapping of str to Artifact
        By role: ``teacher_pairs`` (manifest) if a small text tower with fresh weights learns its vocabulary, else
        empty.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    stage, identity = stage_for(config)
    tags = {"role": "teacher", "row": "teacher", "strategy": "teacher", "soft_labels": False, "seed": config.seed}
    return run_stage(stage, identity, inputs, campaign, tags)
