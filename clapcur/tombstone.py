"""Tombstone: a clip was taken down. It never enters again, and what it touched can be named.

One artifact for each clip, without payload: the record is all there is to say. `clapcur.ingest` and `clapcur.pool`
leave out what has one; what was made before stays in the store, as evidence, until it is collected.
"""

from collections.abc import Mapping
from typing import Any

from clapcur.artifacts import Artifact, Stage, Workspace
from clapcur.config import frozen


@frozen
class Tombstone:
    """Which clip, and why."""

    clip_id: str
    pcm_sha256: str
    # of its samples: the same sound in another container is refused too
    reason: str = ""


def bury(inputs: Mapping[str, Artifact], config: Tombstone, work: Workspace) -> dict[str, Any]:
    """Say in the record what was taken down; there is no payload."""
    return {"counts": {"clips": 1}}


STAGE = Stage("forget", "1", "tombstone", bury)
