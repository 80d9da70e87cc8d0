"""Embeddings -> Improvement-Set."""

from collections.abc import Mapping

from clapcur.lineage import pools
from clapcur.stages.curate import STAGE, CurateConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task
from clapcur.tasks.pages import show


@stage_task("curate-{config.strategy}-seed{seed}")
def curate(
    config: CurateConfig, inputs: Mapping[str, Artifact], seed: int, campaign: Campaign | None = None
) -> Artifact:
    """Curate the pairs of one strategy; if an earlier version of the pool was curated, only new clips are scored.

    Parameters
    ----------
    config : CurateConfig
    inputs : mapping of str to Artifact
        By role; see `clapcur.stages.curate.curate`.
    seed : int
        Seed of the teacher, recorded with the set.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    inputs = pools.with_earlier(Home.open(), STAGE, config, inputs)
    return show(run_stage(STAGE, config, inputs, campaign, {"strategy": config.strategy, "seed": seed}))
