"""Checkpoint x clips, captions or prompts -> embeddings."""

from collections.abc import Mapping

from clapcur.lineage import pools
from clapcur.stages.embed import STAGE, EmbedConfig, with_left_out
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task
from clapcur.tasks.fan_out import spread


@stage_task("embed-{what}")
def embed(config: EmbedConfig, inputs: Mapping[str, Artifact], what: str, campaign: Campaign | None = None) -> Artifact:
    """Embed clips, captions or prompts with the checkpoint, on the workers that `clapcur.tasks.fan_out` finds.

    If an earlier version of the pool was embedded, only new clips are embedded. Clips that could not be read before are
    embedded once they can be read.

    Parameters
    ----------
    config : EmbedConfig
    inputs : mapping of str to Artifact
        By role: ``checkpoint`` and, except for prompts, ``manifest``.
    what : str
        Part of the experiment that is embedded, such as ``pool``.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    home = Home.open()
    inputs = with_left_out(home.store, config, pools.with_earlier(home, STAGE, config, inputs))
    return run_stage(STAGE, config, inputs, campaign, {"role": what}, spread=spread())
