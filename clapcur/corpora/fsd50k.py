"""FSD50K: 51,197 Freesound clips, captioned with their uploaders' texts. Fonseca et al. 2020, arXiv:2010.00475.

The layout is that of the archives: ``FSD50K.ground_truth/dev.csv`` (fname, labels, mids, split) and ``eval.csv``,
``FSD50K.metadata/dev_clips_info_FSD50K.json`` (title, description, ...) and ``eval_...``, ``FSD50K.dev_audio/`` and
``FSD50K.eval_audio/``. File names are Freesound ids. The caption is the title and the description, cleaned as in the
reference (`caption`). The 200 classes are for tagging, several per clip, and are not read.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from clapcur.corpora.copies import Corpus, Entry, file_of, listing
from clapcur.data.recordings import recording
from clapcur.errors import ManifestError
from clapcur.textfiles import read_text

NAME = "FSD50K"
LINKS = re.compile(r"<a.*</a>")  # from the first to the last link of a line, with everything in between
DROPPED = str.maketrans({",": None, "$": None, "*": None, "\r": None, "\n": " ", "_": " "})


def caption(title: str, description: str) -> str:
    """Return the caption of a clip: its title and description, cleaned as in the reference."""
    parts = (part.strip().translate(DROPPED) for part in re.split(LINKS, f"{title} {description}"))
    return " ".join(parts).strip()


def read(folder: Path, folds: Sequence[str]) -> Iterator[Entry]:
    """Yield the clips of some splits of a copy."""
    for part in ("dev", "eval"):
        if part not in {"eval" if fold == "eval" else "dev" for fold in folds}:
            continue
        table = file_of(NAME, folder, f"FSD50K.ground_truth/{part}.csv")
        described = _described(file_of(NAME, folder, f"FSD50K.metadata/{part}_clips_info_FSD50K.json"))
        for row in listing(NAME, table, ("fname", "split") if part == "dev" else ("fname",)):
            info = described.get(row["fname"], {})
            text = caption(str(info.get("title") or ""), str(info.get("description") or ""))
            path = f"FSD50K.{part}_audio/{row['fname']}.wav"
            yield Entry(path, (text,), "", row.get("split", "eval"), recording("freesound", row["fname"]))


def _described(path: Path) -> dict[str, dict[str, object]]:
    try:
        described = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is not valid JSON ({error}); was it fully unpacked?") from None
    if not isinstance(described, dict):
        raise ManifestError(
            f"{path} is not the metadata of {NAME}: expected a mapping from clips, got a {type(described).__name__}"
        )
    return described


FSD50K = Corpus(
    name="fsd50k",
    title=NAME,
    licence="each clip's own (CC0, CC BY, CC BY-NC, Sampling+), in the metadata; the whole CC BY 4.0",
    clips={"train": (36_796,), "val": (4_170,), "eval": (10_231,)},
    folds=("train",),
    layout=(
        "FSD50K.ground_truth/dev.csv",
        "FSD50K.metadata/dev_clips_info_FSD50K.json",
        "FSD50K.dev_audio/*.wav",
    ),
    recordings="Freesound",
    departures=(
        "like the reference: 36,796 clips, which is the official train split; text cleaned of links, commas, $ and *",
        "how its unpublished index joined title and description is not known; here a space is between them",
    ),
    read=read,
)
