"""Improvement-Set -> audition page."""

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from clapcur.stages.audition import STAGE, AuditionConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import TRIED_AGAIN, run_stage


@task(cache_policy=NO_CACHE, task_run_name="audition-{name}", **TRIED_AGAIN)
def audition(
    config: AuditionConfig, inputs: Mapping[str, Artifact], name: str, campaign: Campaign | None = None
) -> Artifact:
    """Make the page on which the pairs of a set are heard; `name` is the set's strategy."""
    return run_stage(STAGE, config, inputs, campaign, {"role": "audition", "strategy": name})
