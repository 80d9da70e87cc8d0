"""MACS: 3,930 soundscapes of 10 s with 17,275 captions by several people. Martin and Mesaros 2021, Zenodo 5114771.

The layout is that of aac-datasets: ``MACS.yaml`` (files: filename, annotations: annotator_id, sentence, tags) and
``audio/``. The audio is part of TAU Urban Acoustic Scenes 2019. Its file names give the place of recording
(``airport-barcelona-0-0-a.wav``: scene, city, location, segment, device), and all segments of a location are one
recording: TAU's own splits are by location.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clapcur.corpora.copies import Corpus, Entry, file_of
from clapcur.data.recordings import recording
from clapcur.errors import ManifestError
from clapcur.textfiles import read_text

NAME = "MACS"
FILE = re.compile(r"(?P<scene>[a-z_]+)-(?P<location>[a-z]+-\d+)-\d+-[a-z]\.wav")


def read(folder: Path, folds: Sequence[str]) -> Iterator[Entry]:
    """Yield the clips of a copy, each with all its captions."""
    for clip in _files(file_of(NAME, folder, "MACS.yaml")):
        texts = tuple(str(annotation["sentence"]) for annotation in clip["annotations"])
        match = re.fullmatch(FILE, clip["filename"])
        recording_id = recording("tau", match["location"]) if match else ""
        yield Entry(f"audio/{clip['filename']}", texts, "", "full", recording_id)


def _files(path: Path) -> list[dict[str, Any]]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the pure Python loader takes most of a minute
    try:
        files: list[dict[str, Any]] = yaml.load(read_text(path), loader)["files"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ManifestError(f"{path} is not the file of {NAME}: {type(error).__name__}, {error}") from None
    return files


MACS = Corpus(
    name="macs",
    title=NAME,
    licence="captions: non-commercial, of Tampere University; audio: that of TAU Urban Acoustic Scenes 2019, "
    "non-commercial",
    clips={"full": (3930,)},
    folds=("full",),
    layout=("MACS.yaml", "audio/*.wav"),
    recordings="TAU city and location",
    departures=(
        "like the reference: each sentence is a pair, the tags are no captions, equal sentences of a clip count once",
        "captions as published; the reference removes commas and makes _ a space",
        "all clips of a location stay on one side of a split; the reference splits pairs",
    ),
    read=read,
)
