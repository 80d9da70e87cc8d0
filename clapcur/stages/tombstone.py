"""Tombstone: a clip was taken down. It never enters again, and what it touched can be named.

One artifact for each clip. Its payload is empty files whose names say what was taken down (`clapcur.data.forgotten`),
so that damage to the record does not bring a clip back. `clapcur.stages.ingest` and `clapcur.stages.pool` leave out
what has one; what was made before stays in the store, as evidence, until it is collected.
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
        """Refuse an id that the name of a file cannot hold."""
        for mark in self.marks:
            if len(mark.encode()) > forgotten.LONGEST_MARK or "\0" in mark:
                raise ValueError(
                    f"an id to forget must have at most {forgotten.LONGEST_MARK} bytes, got {mark!r:.80}; use the clip "
                    "ids instead"
                )

    @property
    def marks(self) -> list[str]:
        """The names of the files that say it."""
        return forgotten.marks_of(self.clip_id, self.pcm_sha256, self.recording_id)


def bury(inputs: Mapping[str, Artifact], config: Tombstone, work: Workspace) -> Outcome:
    """Write what was taken down.

    Inputs by role: none; the config names what was taken down.
    """
    forgotten.write_marks(work.path, config.marks)
    return Outcome(counts={"clips": 1})


STAGE = Stage("forget", "2", "tombstone", bury)
