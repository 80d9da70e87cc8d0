"""What was taken down, as recorded in tombstones: clips, their sounds, and whole recordings.

A tombstone states this twice: in its record, and in the names of empty files beside it. File names survive damage to
the content of files, so that a clip stays forgotten even if the record is unreadable or lost. Everything that is
forgotten is one set of strings, the *names*: clip ids, hashes of samples, and the keys that ask for a recording
(`clapcur.data.recordings.asked_as`).
"""

from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clapcur.data.recordings import asked_as, known_as, recording_id
from clapcur.errors import ArtifactError, DamagedArtifact
from clapcur.store.artifacts import Store, write_atomic
from clapcur.store.record import checked_record

if TYPE_CHECKING:
    import pandas as pd

KIND = "tombstone"
FIELDS = ("clip_id", "pcm_sha256", "recording_id")
LONGEST_MARK = 240  # bytes; a file name has at most 255


def marks_of(clip_id: str, pcm_sha256: str, recording_id: str) -> list[str]:
    """Return the names of the files that a tombstone consists of.

    Parameters
    ----------
    clip_id, pcm_sha256, recording_id : str
        What is forgotten; an empty value gets no file.

    Returns
    -------
    list of str
        ``field=value``, with % and / escaped.
    """
    values = zip(FIELDS, (clip_id, pcm_sha256, recording_id), strict=True)
    return [f"{name}={value.replace('%', '%25').replace('/', '%2F')}" for name, value in values if value]


def write_marks(folder: Path, marks: list[str]) -> None:
    """Write the files of a tombstone; they are enough to make the clip forgotten, even if no record follows."""
    for mark in marks:
        write_atomic(folder / mark, b"")


def forgotten_names(store: Store) -> frozenset[str]:
    """Return the names of everything that was taken down.

    Raises
    ------
    DamagedArtifact
        A tombstone cannot be read and nothing else states which clip it is for; nothing may be ingested, trained or
        promoted until this is repaired.
    """
    return frozenset(
        name for folder in _folders(store) for field, value in _said(folder) for name in _names(field, value)
    )


def _folders(store: Store) -> list[Path]:
    """Return the folders of all tombstones, including those that were set aside.

    An unreadable root, or a file in its place, is an error: it does not prove that there are no tombstones.
    """
    root = store.root / KIND
    try:
        return sorted(one for one in root.iterdir() if not one.name.startswith(".") or one.is_dir())
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not root.is_symlink():
            return []
        raise DamagedArtifact(
            f"cannot read the tombstones in {root} ({error.strerror}), so clips that were taken down cannot be "
            "excluded: "
            "make the folder readable, or restore it from a backup"
        ) from error


def _said(folder: Path) -> list[tuple[str, str]]:
    """Return the fields and values of a tombstone, from its files and its record."""
    said: list[tuple[str, str]] = []
    try:
        marks = [path.name.partition("=") for path in folder.iterdir()]
        said = [(field, value.replace("%2F", "/").replace("%25", "%")) for field, _, value in marks if field in FIELDS]
        config = checked_record(folder).config
        told = [(field, str(config.get(field, ""))) for field in FIELDS]
        if not any(value for _, value in told):
            raise DamagedArtifact(f"the record of the tombstone {folder.name} names no clip")
        return said + told
    except (DamagedArtifact, OSError) as damage:
        if not said:
            why = str(damage) if isinstance(damage, DamagedArtifact) else f"cannot read {folder} ({damage.strerror})"
            raise DamagedArtifact(
                f"{why}. It is unknown which clip this tombstone is for: run `clapcur forget` on that clip again, then "
                f"delete {folder}"
            ) from None
    except ArtifactError:  # no record: it is being written, its writer was killed, or it was deleted
        pass
    return said


def _names(field: str, value: str) -> Iterator[str]:
    if value:
        yield from asked_as(recording_id(value)) if field == "recording_id" else (value,)


def are_forgotten(clips: "pd.DataFrame", names: Set[str]) -> NDArray[np.bool_]:
    """Return for each row of a clips table whether the clip, its sound or its recording was taken down."""
    if not names:
        return np.zeros(len(clips), bool)
    of_recording = {
        recording: bool(names & set(known_as(recording_id(recording)))) for recording in clips.recording_id.unique()
    }
    return (clips.clip_id.isin(names) | clips.pcm_sha256.isin(names)).to_numpy() | clips.recording_id.map(
        of_recording
    ).to_numpy(bool)
