"""Checkpoint x held-out compositions -> scores for the order of sounds."""

from collections.abc import Mapping

from clapcur.data.rows import Row
from clapcur.methods.contamination import ancestors
from clapcur.stages.zste import STAGE, ZsteConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task


@stage_task("zste-{row.name}-seed{seed}")
def zste(
    config: ZsteConfig, inputs: Mapping[str, Artifact], row: Row, seed: int, campaign: Campaign | None = None
) -> Artifact:
    """Score how well the checkpoint of one row recognises the order of sounds.

    Parameters
    ----------
    config : ZsteConfig
    inputs : mapping of str to Artifact
        By role; see `clapcur.stages.zste`. The artifacts that the checkpoint was made from are added here.
    row : Row
        Row of the checkpoint, recorded with the scores.
    seed : int
        Seed of the checkpoint, recorded with the scores.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    made_from = ancestors(Home.open().store, inputs["checkpoint"])
    tags = {"role": "order", **row.tags, "seed": seed}
    return run_stage(STAGE, config, {**inputs, **made_from}, campaign, tags)
