"""Embeddings -> Improvement-Set."""

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from clapcur.lineage import pools
from clapcur.stages.curate import STAGE, CurateConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import TRIED_AGAIN, run_stage


@task(cache_policy=NO_CACHE, task_run_name="curate-{config.strategy}-seed{seed}", **TRIED_AGAIN)
def curate(
    config: CurateConfig, inputs: Mapping[str, Artifact], seed: int, campaign: Campaign | None = None
) -> Artifact:
    """Curate one strategy's pairs with the teacher of one seed; of a version of a pool only new clips are scored."""
    inputs = pools.with_earlier(Home.open(), STAGE, config, inputs)
    return run_stage(STAGE, config, inputs, campaign, {"strategy": config.strategy, "seed": seed})
