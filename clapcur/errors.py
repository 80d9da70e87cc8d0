"""The errors of clapcur: everything that a user can fix is a `ClapcurError`.

A caller's mistake (a threshold of 70) is a `ValueError` or `TypeError`; bad files, manifests, checkpoints and
artifacts are the classes below. The command line prints one line for all of them, without a traceback.
"""


def printable(text: str) -> str:
    """Return `text` with line breaks, control characters and bytes that are not UTF-8 escaped, for display."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class ClapcurError(Exception):
    """Something outside the program is not as expected; the message states what to do."""


class DataError(ClapcurError):
    """An audio file, a table or a folder cannot be used as it is."""


class ManifestError(DataError):
    """A manifest, or the table to be ingested as one, has wrong columns or contents."""


class CheckpointError(ClapcurError):
    """A checkpoint is incomplete, belongs to another configuration, or is in an unknown format."""


class EmptySetError(ClapcurError):
    """A curation kept no pairs; the message gives thresholds that would keep some."""


class ArtifactError(ClapcurError):
    """An artifact is unknown or damaged, or was computed from something other than its name states."""


class LeaseLostError(ArtifactError):
    """Another process took over the artifact that this one was computing, because this one stopped responding."""


class DamagedArtifact(ArtifactError):
    """The record or the payload of an artifact is not what was written; the artifact is treated as missing."""


class OutdatedError(ClapcurError):
    """An input of a step was taken down or replaced while the step ran; run it again with the current inputs."""


class Interrupted(ClapcurError):
    """The process was asked to stop; the work so far is saved and continues at the next run."""
