"""Somebody else's checkpoint -> checkpoint."""

from collections.abc import Mapping

from clapcur.stages.adopt import AdoptConfig, stage_for
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import run_stage, stage_task


@stage_task("adopt")
def adopt(config: AdoptConfig, inputs: Mapping[str, Artifact], campaign: Campaign | None = None) -> Artifact:
    """Take a checkpoint of another project as it is; what was made of its tensors is in ``adopted.json``."""
    stage, identity = stage_for(config)
    tags = {"role": "teacher", "row": "teacher", "strategy": "teacher", "soft_labels": False, "seed": config.seed}
    return run_stage(stage, identity, inputs, campaign, tags)
