"""A clip that was taken down -> its tombstone."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from clapcur.stages.tombstone import STAGE, Tombstone
from clapcur.store.artifacts import Artifact
from clapcur.tasks.common import TRIED_AGAIN, run_stage


@task(cache_policy=NO_CACHE, task_run_name="bury-{stone.clip_id}", **TRIED_AGAIN)
def bury(stone: Tombstone) -> Artifact:
    """Note that a clip must never enter again."""
    return run_stage(STAGE, stone, {}, None, {"role": "tombstone"})
