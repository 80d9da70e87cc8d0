"""Tombstone: records that a clip was taken down. It never enters again, and everything it influenced can be listed.

There is one artifact per clip. Its payload is empty files whose names identify the clip (`clapcur.data.forgotten`), so
a damaged record does not bring the clip back. `clapcur.stages.ingest` and `clapcur.stages.pool` leave out clips with a
tombstone; earlier artifacts stay in the store, as evidence, until `clapcur gc` removes them.
"""

from collections.abc import Mapping

from clapcur.config import frozen
from clapcur.data import forgotten
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.record import Outcome


@frozen
class Tombstone:
    """Which clip, and why."""

    clip_id: str
    """Id of the clip to take down."""
    pcm_sha256: str
    """Hash of its samples, to refuse the same audio in another container; empty if no manifest has it."""
    recording_id: str = ""
    """Recording id, if a whole recording was taken down: every clip of it is refused, now and later."""
    reason: str = ""
    """Reason, in the words of the person who asked."""

    def __post_init__(self) -> None:
        """Reject an id that is not valid in a file name."""
        for mark in self.marks:
            if len(mark.encode()) > forgotten.LONGEST_MARK or "\0" in mark:
                raise ValueError(
                    f"an id to forget must have at most {forgotten.LONGEST_MARK} bytes, got {mark!r:.80}; use the clip "
                    "ids instead"
                )

    @property
    def marks(self) -> list[str]:
        """Names of the payload's files."""
        return forgotten.marks_of(self.clip_id, self.pcm_sha256, self.recording_id)


def bury(inputs: Mapping[str, Artifact], config: Tombstone, work: Workspace) -> Outcome:
    """Write the tombstone.

    Inputs by role: none; the config identifies the clip.
    """
    forgotten.write_marks(work.path, config.marks)
    return Outcome(counts={"clips": 1})


STAGE = Stage("forget", "2", "tombstone", bury)
