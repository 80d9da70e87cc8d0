"""AudioCaps: YouTube clips of 10 s from AudioSet with human captions. Kim et al. 2019, doi 10.18653/v1/N19-1011.

The authors publish only captions. The layout is that of aac-datasets, which downloads the audio:
``csv_files_v1/train.csv`` (audiocap_id, youtube_id, start_time, caption; older copies have it at the top) and
``audio_32000Hz/train/{youtube_id}_{start_time}.flac``, at any sample rate, FLAC or WAV. Videos disappear, so every copy
lacks some: raise ``max_bad_fraction`` accordingly; the record contains the numbers.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from clapcur.corpora.copies import Corpus, Entry, file_of, listing
from clapcur.data.recordings import recording
from clapcur.errors import ManifestError

NAME = "AudioCaps"
COLUMNS = ("youtube_id", "start_time", "caption")


def read(folder: Path, folds: Sequence[str]) -> Iterator[Entry]:
    """Yield the clips of some splits of a copy, each with all its captions."""
    for split in folds:
        table = file_of(NAME, folder, f"csv_files_v1/{split}.csv", f"{split}.csv", f"csv_files_v2/{split}.csv")
        captions: dict[tuple[str, str], list[str]] = {}
        for row in listing(NAME, table, COLUMNS):
            captions.setdefault((row["youtube_id"], row["start_time"]), []).append(row["caption"])
        audio = _audio_folder(folder)
        there = frozenset(os.listdir(folder / audio / split)) if (folder / audio / split).is_dir() else frozenset()
        for (video, start), texts in captions.items():
            stem = f"{video}_{start}"
            name = f"{stem}.wav" if f"{stem}.wav" in there else f"{stem}.flac"
            yield Entry(f"{audio}/{split}/{name}", tuple(texts), "", split, recording("youtube", video))


def _audio_folder(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("audio_*Hz"))
    if len(found) > 1:
        raise ManifestError(
            f"{folder} holds {NAME} at several sample rates ({', '.join(found)}); keep only one of them"
        )
    return found[0] if found else "audio_32000Hz"


AUDIOCAPS = Corpus(
    name="audiocaps",
    title=NAME,
    licence="captions: MIT; audio: the uploaders', from YouTube",
    clips={"train": (49_838, 91_256), "val": (495,), "test": (975,)},
    folds=("train",),
    layout=("csv_files_v1/train.csv", "audio_32000Hz/train/*.flac"),
    recordings="YouTube",
    departures=(
        "the reference's index has 44,292 captions, what was left on YouTube at its time; every copy differs",
        "captions as published; the reference removes commas (in 15 % of the training captions) and makes _ a space",
        "the five captions of a val or test clip are never on two sides of a split",
    ),
    read=read,
)
