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
    """Embed what `config` names with the checkpoint; `what` says which part of the experiment it is.

    Of a version of a pool only what is new is embedded, by the workers that `clapcur.tasks.fan_out` finds; so are clips
    that a table of this version left out, once they can be read again.
    """
    home = Home.open()
    inputs = with_left_out(home.store, config, pools.with_earlier(home, STAGE, config, inputs))
    return run_stage(STAGE, config, inputs, campaign, {"role": what}, spread=spread())
