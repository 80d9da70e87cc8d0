"""Tags x clips -> a manifest of the clips with generated captions."""

from collections.abc import Mapping

from clapcur.data.generated import refresh_locations
from clapcur.lineage import pools
from clapcur.stages import caption as stage_module
from clapcur.stages.caption import CaptionConfig
from clapcur.store import dry_run
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task


@stage_task("caption-{role}")
def caption(
    config: CaptionConfig, inputs: Mapping[str, Artifact], role: str, campaign: Campaign | None = None
) -> Artifact:
    """Generate captions for the clips of ``pool``, guided by their tags.

    If the captioner captioned the pool before, or an earlier version of it, it hears only clips that are new or have
    other tags now.

    Parameters
    ----------
    config : CaptionConfig
    inputs : mapping of str to Artifact
        By role; see `clapcur.stages.caption`.
    role : str
        Use of the captions: ``pairs`` for a teacher, or ``generated`` for a curation.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    stage, identity = stage_module.stage_for(config)
    if config.way == "captioner":
        inputs = pools.with_earlier_captions(Home.open(), stage, identity, inputs)
    artifact = run_stage(stage, identity, inputs, campaign, {"role": role})
    if artifact.is_made and dry_run.current() is None:
        refresh_locations(artifact, inputs["pool"])
    return artifact
