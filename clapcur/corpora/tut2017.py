"""TUT Acoustic Scenes 2017: 6,300 segments of 10 s in 15 scenes. Mesaros et al., Zenodo 400515 and 1040168.

The layout is that of the archives, side by side: ``TUT-acoustic-scenes-2017-development/`` (``meta.txt``: file, scene,
recording; tabs, no header) and ``TUT-acoustic-scenes-2017-evaluation/`` (``meta.txt``, or
``evaluation_setup/evaluate.txt`` if dcase_util has not created it: file, scene). Development files are named after the
recording that they were cut from (``audio/b020_90_100.wav``). Evaluation files are numbered; in some copies,
``evaluation_setup/map.txt`` gives their original names. Without it their recordings are unknown: they are counted as
``without_recording``.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from clapcur.corpora.copies import Corpus, Entry, file_of
from clapcur.data.recordings import recording
from clapcur.data.tables import text_lines
from clapcur.errors import ManifestError

NAME = "TUT Acoustic Scenes 2017"
CUT = re.compile(r"(?P<recording>[a-z]\d+)_\d+_\d+\.wav")


def read(folder: Path, folds: Sequence[str]) -> Iterator[Entry]:
    """Yield the clips of the two parts of a copy."""
    for part in folds:
        top = f"TUT-acoustic-scenes-2017-{part}"
        names = [f"{top}/meta.txt", *([f"{top}/evaluation_setup/evaluate.txt"] if part == "evaluation" else [])]
        rows = _rows(file_of(NAME, folder, *names), 2)
        map_file = folder / top / "evaluation_setup/map.txt"
        originals = _originals(map_file, {row[0] for row in rows}) if map_file.is_file() else {}
        for row in rows:
            file, scene = row[:2]
            original = originals.get(file, file).rpartition("/")[2]
            match = re.fullmatch(CUT, original)
            name = row[2] if len(row) > 2 and row[2] else match["recording"] if match else ""
            yield Entry(f"{top}/{file}", (), scene, part, recording("tut", name))


def _originals(path: Path, files: set[str]) -> dict[str, str]:
    """Return the original name of each file; the file names determine which of the two columns is which."""
    found: dict[str, str] = {}
    for first, second in (row[:2] for row in _rows(path, 2)):
        if (first in files) == (second in files):
            raise ManifestError(f"{path}: exactly one of {first} and {second} must be an evaluation file")
        found |= {first: second} if first in files else {second: first}
    return found


def _rows(path: Path, num_columns: int) -> list[list[str]]:
    rows = [row for row in csv.reader((line for _, line in text_lines(path)), delimiter="\t") if row]
    if broken := [row for row in rows if len(row) < num_columns]:
        raise ManifestError(
            f"{path} is not a table of {NAME}: expected {num_columns} tab-separated columns, got {broken[0]}"
        )
    return rows


TUT2017 = Corpus(
    name="tut2017",
    title=NAME,
    licence="non-commercial, of Tampere University of Technology",
    clips={"development": (4680,), "evaluation": (1620,)},
    folds=("development", "evaluation"),
    classes="tut2017",
    layout=(
        "TUT-acoustic-scenes-2017-development/meta.txt",
        "TUT-acoustic-scenes-2017-development/audio/*.wav",
        "TUT-acoustic-scenes-2017-evaluation/meta.txt",
        "TUT-acoustic-scenes-2017-evaluation/audio/*.wav",
    ),
    recordings="the session that a segment was cut from",
    departures=(
        "like the reference: development and evaluation are scored together, 6,300 segments; segments with recording "
        "errors (error.txt) are scored too",
        "the reference hears one random crop of 5 s of each segment; here crops are fixed",
    ),
    read=read,
)
