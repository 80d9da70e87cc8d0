"""ESC-50: 2,000 environmental sounds of 5 s in 50 classes, five folds. Piczak 2015, doi 10.1145/2733373.2806390.

The layout is that of the archive: ``meta/esc50.csv`` (filename, fold, target, category, esc10, src_file, take) and
``audio/``. ``src_file`` is the Freesound id of the recording; a recording is in one fold. Labels are kept as written
(``sea_waves``); `clapcur.data.class_names` makes them readable, in the order of ``target``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from clapcur.corpora.copies import Corpus, Entry, file_of, listing
from clapcur.data.recordings import recording

NAME = "ESC-50"


def read(folder: Path, folds: Sequence[str]) -> Iterator[Entry]:
    """Yield the clips of a copy."""
    path = file_of(NAME, folder, "meta/esc50.csv")
    for row in listing(NAME, path, ("filename", "fold", "category", "src_file")):
        yield Entry(
            f"audio/{row['filename']}", (), row["category"], row["fold"], recording("freesound", row["src_file"])
        )


ESC50 = Corpus(
    name="esc50",
    title=NAME,
    licence="CC BY-NC 3.0; the ESC-10 part CC BY 3.0; each clip's own in LICENSE",
    clips={str(fold): (400,) for fold in range(1, 6)},
    folds=("1", "2", "3", "4", "5"),
    classes="esc50",
    layout=("meta/esc50.csv", "audio/*.wav"),
    recordings="Freesound",
    departures=(
        "like the reference: all five folds are scored, 2,000 clips",
        "the reference leaves absent files out silently; here each is named and counted",
    ),
    read=read,
)
