"""What may never enter: clips named by exclusion lists, so that an evaluation set cannot leak into a pool.

An entry is a clip id, a hash of samples, a path or a recording id. A clip goes when an entry names it, any of the
paths it lies at, or any recording it was said to be cut from; so does the same sound in another container.
"""

import os
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from clapcur.errors import ManifestError
from clapcur.ingest.config import Columns
from clapcur.tables import READERS, cell_text, read_table, text_lines


@dataclass(frozen=True)
class Names:
    """All that one clip is known by."""

    clip_id: str
    pcm_sha256: str
    paths: Set[str]
    # absolute
    recording_ids: Set[str]


def excluded(
    clips: Sequence[Names], lists: Sequence[str], columns: Columns, base: Path
) -> tuple[set[str], dict[str, dict[str, int]]]:
    """Find the clips that must go.

    Parameters
    ----------
    clips : sequence of Names
    lists : sequence of str
        Paths of exclusion lists.
    columns : Columns
        What paths and recording ids are called in lists that are tables.
    base : Path
        What relative paths in a list are relative to: the same as in the source.

    Returns
    -------
    (set of clip ids, dict)
        The dict has for each list its ``entries``, how many of them ``hit``, and the ``clips`` that they hit.

    Raises
    ------
    ManifestError
        A list is missing, empty, or a table without a column to go by.
    """
    owners: dict[str, set[str]] = {}
    twins: dict[str, set[str]] = {}
    for clip in clips:
        twins.setdefault(clip.pcm_sha256, set()).add(clip.clip_id)
        for name in (clip.clip_id, clip.pcm_sha256, *clip.paths, *clip.recording_ids):
            owners.setdefault(name, set()).add(clip.clip_id)
    sound = {clip.clip_id: clip.pcm_sha256 for clip in clips}
    gone: set[str] = set()
    said = {}
    for name in lists:
        entries = _entries(Path(name), columns)
        hits = {entry: owners.get(entry, set()) | owners.get(os.path.abspath(base / entry), set()) for entry in entries}
        hit = {twin for clip in set().union(*hits.values()) for twin in twins[sound[clip]]}
        said[name] = {"entries": len(entries), "hit": sum(map(bool, hits.values())), "clips": len(hit)}
        gone |= hit
    return gone, said


def _entries(path: Path, columns: Columns) -> set[str]:
    if not path.is_file():
        raise ManifestError(f"the exclusion list {path} does not exist; without it, what it names would enter")
    if path.suffix.lower() in READERS:
        entries = _table_entries(path, columns)
    else:
        lines = (line.strip() for _, line in text_lines(path))
        entries = {line for line in lines if line and not line.startswith("#")}
    if not entries:
        raise ManifestError(f"the exclusion list {path} is empty: nothing would be kept out")
    return entries


def _table_entries(path: Path, columns: Columns) -> set[str]:
    header, rows = read_table(path)
    wanted = ("clip_id", "pcm_sha256", "path", "recording_id", columns.path, columns.recording_id)
    used = [name for name in dict.fromkeys(wanted) if name in header]
    if not used:
        names = ", ".join(dict.fromkeys(name for name in wanted if name))
        raise ManifestError(f"the exclusion list {path} needs one of the columns {names}; it has {header}")
    cells = (cell_text(row.get(name), f"{path}, line {line}") for line, row in rows for name in used)
    return {cell for cell in cells if cell}
