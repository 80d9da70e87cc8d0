"""A clip that was taken down -> its tombstone."""

from clapcur.stages.tombstone import STAGE, Tombstone
from clapcur.store.artifacts import Artifact
from clapcur.tasks.common import run_stage, stage_task


@stage_task("bury-{stone.clip_id}")
def bury(stone: Tombstone) -> Artifact:
    """Record that a clip must never enter again."""
    return run_stage(STAGE, stone, {}, None, {"role": "tombstone"})
