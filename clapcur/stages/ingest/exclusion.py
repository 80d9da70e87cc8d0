"""Exclude the clips that exclusion lists name, so that an evaluation set cannot leak into a pool.

An entry is a clip id, a hash of samples, a path or a recording id. A clip is excluded if an entry names the clip, any
of its paths, or any recording that it is said to be cut from; the same sound in another container is excluded too.
Lists published with corpora are read as they are: the tables of AudioCaps and UrbanSound8K name recordings by
``youtube_id`` and ``fsID``, WavCaps' blacklists are JSON, and AudioSet's files are named ``Y{id}.wav``. Entries are
matched as in `clapcur.methods.contamination`.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from clapcur.audio import addresses
from clapcur.data.recordings import (
    PLACE_OF_COLUMN,
    asked_as,
    known_as,
    recording,
    recording_id,
    recording_of_file_name,
    youtube_ids,
)
from clapcur.data.tables import READERS, cell_text, read_table, text_lines
from clapcur.errors import ManifestError
from clapcur.methods.contamination import known_by, with_twins
from clapcur.stages.ingest.config import Columns
from clapcur.textfiles import read_text

log = logging.getLogger("clapcur")

HASH = re.compile(r"[0-9A-Fa-f]{64}")  # of a clip's bytes or samples
PLACE_OF_LIST = {"audioset": "youtube", "freesound": "freesound"}


@dataclass(frozen=True)
class Names:
    """All names of one clip."""

    clip_id: str
    pcm_sha256: str
    paths: Set[str]
    # absolute; a member of a tar also as people write it, /pool/a.tar/dog.wav
    recording_ids: Set[str]

    @property
    def all_names(self) -> tuple[str, ...]:
        """All names together, because an entry of a list does not state its type."""
        recordings = (key for name in self.recording_ids for key in known_as(name))
        return self.clip_id, self.pcm_sha256, *self.paths, *recordings


def excluded(
    clips: Sequence[Names], lists: Sequence[str], columns: Columns, base: str
) -> tuple[set[str], dict[str, dict[str, int]]]:
    """Find the clips that must be excluded.

    Parameters
    ----------
    clips : sequence of Names
    lists : sequence of str
        Paths of exclusion lists.
    columns : Columns
        Names of the columns of paths and recording ids, for lists that are tables.
    base : str
        Folder or URL that relative paths in a list start from; the same as for the source.

    Returns
    -------
    (set of clip ids, dict)
        For each list the dict has the number of ``entries``, how many of them ``hit``, the number of ``clips`` that
        they hit and, if any, the number of entries that hit ``without_place``; see `clapcur.data.recordings`.

    Raises
    ------
    ManifestError
        A list is missing or empty, or is a table without a usable column.
    """
    sounds = pd.DataFrame(
        {"clip_id": [clip.clip_id for clip in clips], "pcm_sha256": [clip.pcm_sha256 for clip in clips]}
    )
    rows = [(clip.clip_id, name) for clip in clips for name in clip.all_names]
    names = pd.DataFrame(rows, columns=["clip_id", "name"], dtype="str")
    gone: set[str] = set()
    said = {}
    for path in lists:
        meant = {entry: _meant(entry, base) for entry in _entries(Path(path), columns)}
        hits = known_by(names, set().union(*meant.values()))
        found = set(hits.name)
        hit = with_twins(set(hits.clip_id), sounds)
        said[path] = {
            "entries": len(meant), "hit": sum(not found.isdisjoint(ways) for ways in meant.values()), "clips": len(hit)
        }  # fmt: skip
        if bare := [entry for entry, ways in meant.items() if _without_place(entry, found & ways)]:
            said[path]["without_place"] = len(bare)
            log.warning(
                "%s: %d recordings, such as %s, name their origin (freesound:100032) either here or in the source, not "
                "in both; they are compared without it. Write both the same way", path, len(bare), min(bare),
            )  # fmt: skip
        gone |= hit
    return gone, said


def _without_place(entry: str, found: Set[str]) -> bool:
    """Return whether an entry matched a clip only because one of them does not name the origin of its recording."""
    name = recording_id(entry)
    return name not in found and not found.isdisjoint(set(asked_as(name)) - {name})


def _meant(entry: str, base: str) -> set[str]:
    """Return what an entry may refer to: a clip, samples, a path, a recording, or a file named by its recording."""
    path = unicodedata.normalize("NFC", entry)
    spellings = {entry, path, unicodedata.normalize("NFD", path), entry.replace("\\", "/")}
    meant = {
        entry.casefold() if HASH.fullmatch(entry) else entry,
        *(addresses.absolute(base, way) for way in spellings),
    }
    recordings = {recording_id(entry), recording_of_file_name(entry)} - {""}
    return meant.union(*map(asked_as, recordings)) - {""}


def _entries(path: Path, columns: Columns) -> set[str]:
    if not path.is_file():
        raise ManifestError(f"the exclusion list {path} does not exist; without it, its clips would not be excluded")
    if path.suffix.lower() == ".json":
        entries = _by_place(path)
    elif path.suffix.lower() in READERS:
        entries = _table_entries(path, columns)
    else:
        lines = (line.strip() for _, line in text_lines(path))
        entries = {line for line in lines if line and not line.startswith("#")}
    if not entries:
        raise ManifestError(f"the exclusion list {path} is empty: nothing would be excluded")
    return entries


def _by_place(path: Path) -> set[str]:
    """Return the recordings in a JSON file of lists by origin, the format of WavCaps' blacklists."""
    try:
        lists = json.loads(read_text(path))
        known = {PLACE_OF_LIST[name.casefold()]: list(names) for name, names in lists.items()}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ManifestError(
            f"the exclusion list {path} must be JSON with lists named {', '.join(PLACE_OF_LIST)} ({error})"
        ) from None
    found = set()
    for place, names in known.items():
        for name in map(str, names):
            stem = name.rpartition(".")[0] or name
            for one in youtube_ids(stem) if place == "youtube" else (stem,):
                found.add(recording(place, one))
    return found


def _table_entries(path: Path, columns: Columns) -> set[str]:
    header, rows = read_table(path)
    wanted = ("clip_id", "pcm_sha256", "path", "recording_id", columns.path, columns.recording_id)
    used = {name: "" for name in wanted if name in header} | {
        name: place for name, place in PLACE_OF_COLUMN.items() if name in header
    }
    if not used:
        names = ", ".join(dict.fromkeys([*(name for name in wanted if name), *PLACE_OF_COLUMN]))
        raise ManifestError(f"the exclusion list {path} needs one of the columns {names}; it has {header}")
    found = set()
    for line, row in rows:
        for name, place in used.items():
            cell = cell_text(row.get(name), f"{path}, line {line}")
            found.add(recording(place, cell) if place else cell)
    return found - {""}
