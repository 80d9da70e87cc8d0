"""AudioSet: two million YouTube clips of 10 s, the paper's unpaired pool. Gemmeke et al. 2017.

The official lists are at the top: ``unbalanced_train_segments.csv``, ``balanced_train_segments.csv``,
``eval_segments.csv`` (YTID, start_seconds, end_seconds, positive_labels, after three lines of comments). Google does
not publish audio; copies name their files in many ways, so files are found anywhere below the folder by the YouTube id
in their name (``Y{id}.wav``, ``{id}.flac``, ``{id}_{start}.flac``, ``{id}_{start_ms}_{end_ms}.wav``). The labels are
not read: a pool has none.

The paper's pool is unbalanced_train without corrupt files and without AudioCaps. Corrupt files are quarantined
automatically; AudioCaps is excluded by its own tables, as is any other list of YouTube ids::

    pool:
      source: data/audioset
      corpus: audioset
      exclude: [audiocaps/train.csv, audiocaps/val.csv, audiocaps/test.csv]
"""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from clapcur.corpora.copies import Corpus, Entry, file_of
from clapcur.data.recordings import AUDIO_FILE, recording, youtube_ids
from clapcur.data.tables import text_lines
from clapcur.errors import ManifestError

NAME = "AudioSet"


def read(folder: Path, folds: Sequence[str]) -> Iterator[Entry]:
    """Yield the clips of some splits of a copy; a clip whose file is missing gets the most common file name."""
    tables = {split: file_of(NAME, folder, f"{split}_segments.csv") for split in folds}
    files = _files(folder)
    for split, table in tables.items():
        for video in _videos(table):
            path = files.get(video, f"{split}_segments/Y{video}.wav")
            yield Entry(path, (), "", split, recording("youtube", video))


def _videos(table: Path) -> Iterator[str]:
    """Yield the YouTube ids of a list."""
    for row in csv.reader((line for _, line in text_lines(table)), skipinitialspace=True):
        if row and not row[0].startswith("#"):
            if len(row) < 4 or len(row[0]) != 11:
                raise ManifestError(
                    f"{table} is not a table of {NAME}: expected YTID, start, end, labels, got {', '.join(row)[:80]}"
                )
            yield row[0]


def _files(folder: Path) -> dict[str, str]:
    """Return the path of each video's file; of several, the first in alphabetical order."""
    found: dict[str, str] = {}
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        place = Path(root).relative_to(folder).as_posix()
        for name in sorted(names):
            if match := AUDIO_FILE.fullmatch(name):
                for video in youtube_ids(match["stem"]):
                    found.setdefault(video, name if place == "." else f"{place}/{name}")
    return found


AUDIOSET = Corpus(
    name="audioset",
    title=NAME,
    licence="lists: CC BY 4.0; audio: the uploaders', from YouTube",
    clips={"unbalanced_train": (2_041_789,), "balanced_train": (22_160,), "eval": (20_371,)},
    folds=("unbalanced_train",),
    layout=("unbalanced_train_segments.csv", "audio files named by their YouTube id"),
    recordings="YouTube",
    departures=(
        "the reference's list of good files (over 1.9 million) and what made it are unpublished; here corrupt files go "
        "to the quarantine, and `exclude` with AudioCaps' own tables keeps its clips out",
    ),
    read=read,
)
