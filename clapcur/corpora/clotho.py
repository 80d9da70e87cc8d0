"""Clotho v2.1: 5,929 Freesound clips of 15 to 30 s, five captions each. Drossos et al. 2020, arXiv:1910.09387.

Two layouts are read: that of aac-datasets (``clotho_csv_files/``, ``clotho_audio_files/development/``) and that of the
archives unpacked side by side (``clotho_captions_development.csv``, ``development/``). Captions come from
``clotho_captions_*.csv`` (file_name, caption_1 to caption_5), the Freesound id from ``clotho_metadata_*.csv``
(``sound_id``; the file is Latin-1). A few sounds have no id ("Not found"): their clips are counted as
``without_recording``, and only their bytes and embeddings can reveal copies in other corpora.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from clapcur.corpora.copies import Corpus, Entry, file_of, listing
from clapcur.data.recordings import recording
from clapcur.errors import ManifestError

NAME = "Clotho"
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read(folder: Path, folds: Sequence[str]) -> Iterator[Entry]:
    """Yield the clips of some splits of a copy."""
    for split in folds:
        audio = file_of(NAME, folder, f"clotho_audio_files/{split}", split).relative_to(folder).as_posix()
        names = [f"clotho_{kind}_{split}.csv" for kind in ("captions", "metadata")]
        captions, metadata = (file_of(NAME, folder, f"clotho_csv_files/{name}", name) for name in names)
        sounds = _sounds(metadata)
        for row in listing(NAME, captions, ("file_name", *CAPTIONS)):
            texts = tuple(row[name] for name in CAPTIONS)
            recording_id = recording("freesound", sounds.get(row["file_name"].strip(), ""))
            yield Entry(f"{audio}/{row['file_name']}", texts, "", split, recording_id)


def _sounds(path: Path) -> dict[str, str]:
    """Return the Freesound id of every file; the CSV is read leniently, since uploaders' texts may break its rules."""
    with open(path, newline="", encoding="latin-1") as file:
        rows = csv.DictReader(file)
        if missing := {"file_name", "sound_id"} - set(rows.fieldnames or ()):
            raise ManifestError(f"{path} is not a table of {NAME}: it has no column {', '.join(sorted(missing))}")
        return {row["file_name"].strip(): row["sound_id"] for row in rows}


CLOTHO = Corpus(
    name="clotho",
    title=NAME,
    licence="audio: each clip's own Creative Commons licence, in the metadata; captions: non-commercial, of Tampere "
    "University",
    clips={"development": (3839,), "validation": (1045,), "evaluation": (1045,)},
    folds=("development",),
    layout=(
        "clotho_csv_files/clotho_captions_development.csv",
        "clotho_csv_files/clotho_metadata_development.csv",
        "clotho_audio_files/development/*.wav",
    ),
    recordings="Freesound",
    departures=(
        "the reference's index holds all three splits (29,646 captions, the evaluation split among them); here only "
        "development is taken unless `folds` names more: 3,839 clips, 19,195 captions",
        "captions as published; the reference removes commas (in 17 % of them) and makes _ a space",
        "the captions of one clip are never on two sides of a split; the reference splits pairs",
    ),
    read=read,
)
