"""Tagger x clips -> tags; and the tagger itself."""

from collections.abc import Mapping

from clapcur.lineage import pools
from clapcur.stages import tag as tag_stage
from clapcur.stages import tagger as tagger_stage
from clapcur.stages.tag import TagConfig
from clapcur.stages.tagger import TaggerConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task


@stage_task("tagger")
def adopt_tagger(config: TaggerConfig, campaign: Campaign | None = None) -> Artifact:
    """Import a tagger of another project."""
    stage, identity = tagger_stage.stage_for(config)
    return run_stage(stage, identity, {}, campaign, {"role": "tagger"})


@stage_task("tag-{role}")
def tag(config: TagConfig, inputs: Mapping[str, Artifact], role: str, campaign: Campaign | None = None) -> Artifact:
    """Tag the clips of a manifest; if an earlier version of the pool was tagged, only new clips are processed.

    Parameters
    ----------
    config : TagConfig
    inputs : mapping of str to Artifact
        By role; see `clapcur.stages.tag`.
    role : str
        Role of the clips in the experiment, such as ``pool``.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    stage, identity = tag_stage.stage_for(config)
    inputs = pools.with_earlier(Home.open(), stage, identity, inputs)
    return run_stage(stage, identity, inputs, campaign, {"role": role})
