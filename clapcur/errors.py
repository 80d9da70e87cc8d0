"""The few errors of clapcur: everything that a user can mend is a `ClapcurError`.

A caller's mistake (a threshold of 70) is a `ValueError` or `TypeError`; bad files, manifests, checkpoints and
artifacts are the classes below. The command line prints one line for all of them, without a traceback.
"""


def printable(text: str) -> str:
    """Return a text for people: line breaks, control characters and bytes that are not UTF-8 come out escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class ClapcurError(Exception):
    """Something outside the program is not as expected; the message says what to do."""


class DataError(ClapcurError):
    """An audio file, a table or a folder cannot be used as it is."""


class ManifestError(DataError):
    """A manifest, or the table that should become one, has wrong columns or contents."""


class CheckpointError(ClapcurError):
    """A checkpoint is incomplete, from another configuration, or not one of ours."""


class EmptySetError(ClapcurError):
    """A curation kept no pair at all; the message names thresholds that would."""


class ArtifactError(ClapcurError):
    """An artifact is unknown, damaged, or was made from something else than its name says."""


class LeaseLostError(ArtifactError):
    """Another process took over what this one was making, for this one was asleep."""


class DamagedArtifact(ArtifactError):
    """The record or the payload of an artifact is not what was written; the artifact does not count as there."""


class OutdatedError(ClapcurError):
    """What a step works with was taken down or replaced meanwhile; begin again with what holds now."""


class Interrupted(ClapcurError):
    """The process was asked to stop; the work so far is saved and continues at the next run."""
