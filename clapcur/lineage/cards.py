"""Cards in Markdown: what a set or a model is, what it was made from, and how to use it.

They are read by people who do not have the home: they have ids, counts and thresholds, and no paths of this machine.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from clapcur import __version__
from clapcur.lineage.queries import trace
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home

SHOWN_KINDS = ("improvement_set", "manifest", "checkpoint", "compositions", "captioner", "tags")
LICENCE = "The licences of the recordings are those of their sources; captions keep the licence of their texts."


def card(metadata: Mapping[str, Any], title: str, sections: Mapping[str, str]) -> str:
    """Return a card: YAML between two lines of dashes, a title, and sections.

    Parameters
    ----------
    metadata : mapping
        What the Hugging Face Hub reads.
    title : str
    sections : mapping of str to str
        By heading; the text under "" has none. Empty sections are left out.
    """
    front = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    parts = [f"## {heading}\n\n{text}" if heading else text for heading, text in sections.items() if text]
    return "\n\n".join([f"---\n{front}---", f"# {title}", *parts]) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown; empty if it has no rows."""
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *lines]) if lines else ""


def _cell(value: Any) -> str:
    return re.sub(r"([|<`\\])", r"\\\1", " ".join(str(value).split()))


def made_from(home: Home, artifact: Artifact) -> str:
    """Return a table of an artifact and everything that it was made from, with counts and thresholds."""
    nodes = [node for node in _walk(trace(home, artifact.id)) if node["kind"] in SHOWN_KINDS]
    unique = {node["id"]: node for node in reversed(nodes)}  # the first mention of each
    rows = [
        (
            node["role"].replace("_", " ") or "this", node.get("label", "lost"), node["kind"].replace("_", " "),
            node["id"], _numbers(node.get("counts", {})), _numbers(node.get("thresholds", {})),
        )
        for node in reversed(unique.values())
    ]  # fmt: skip
    return table(("role", "made by", "kind", "id", "counts", "thresholds"), rows)


def _walk(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield node
    for below in node["inputs"]:
        yield from _walk(below)


def _numbers(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


COLUMNS = {
    "clip_id": "SHA-256 of the bytes of the audio file",
    "caption_id": "SHA-256 of the caption",
    "caption": "the caption, in Unicode NFC",
    "similarity": "cosine of clip and caption, by the teacher; empty for pairs that were given",
    "class": "class whose prompt is nearest to the caption; a guess of the teacher, not a label",
    "class_similarity": "cosine of the caption and that prompt",
    "recording_id": "the source recording that the clip was cut from, if known",
    "set_id": "artifact that the pair is from",
    "role": "how the pair was used: improvement_set, replay, teacher_pairs",
    "way": "how the caption was generated",
    "tags": "tags of the clip that the caption was generated from",
    "verdict": "why the generated caption was kept",
    "tags_from": "artifact of the tags",
}
"""Columns of a shared set, and what they hold."""

READ = {
    "csv": """```python
import pandas as pd

pairs = pd.read_csv("pairs.csv")  # the column path has the audio files
```

`clapcur ingest pairs.csv` reads it too.""",
    "hf": """```python
from datasets import load_dataset

pairs = load_dataset("path/to/this/folder", split="train")
```

`clapcur ingest data/` reads it too.""",
    "webdataset": """```python
import glob

import webdataset

shards = webdataset.WebDataset(sorted(glob.glob("*.tar")), shardshuffle=False)
pairs = shards.to_tuple("wav;flac;ogg;mp3", "txt", "json")  # bytes
```

`clapcur ingest .` reads it too. A clip with several captions is in the shards once for each of them.""",
}
"""How each form is read."""


def data_card(home: Home, artifact: Artifact, form: str, counts: Mapping[str, int], columns: Iterable[str]) -> str:
    """Return the card of a shared set of pairs.

    Parameters
    ----------
    home : Home
    artifact : Artifact
        What the pairs are from.
    form : {"csv", "hf", "webdataset"}
    counts : mapping of str to int
        ``pairs``, ``clips`` and ``forgotten``, the pairs that were left out because their clip was taken down.
    columns : iterable of str
        Those that the form has.
    """
    kind = artifact.kind.replace("_", " ")
    metadata: dict[str, Any] = {"pretty_name": f"Pairs of the {kind} {artifact.id}", "license": "other"}
    if form == "hf":
        files = [{"split": "train", "path": "data/train-*.parquet"}]
        metadata["configs"] = [{"config_name": "default", "data_files": files}]
    metadata["tags"] = ["audio", "audio-text", "clapcur"]
    about = (
        f"{counts['pairs']:,} pairs of {counts['clips']:,} audio clips and captions, from the {kind} `{artifact.id}`, "
        f"written by clapcur {__version__}. A model matched clips and captions; nobody has checked each pair. "
        "`similarity` says how sure it was."
    )
    if counts["forgotten"]:
        about += f" {counts['forgotten']:,} pairs were left out because their recordings were taken down."
    described = table(("column", ""), [(name, COLUMNS[name]) for name in columns if name in COLUMNS])
    return card(
        metadata, metadata["pretty_name"],
        {
            "": about, "How to read it": READ[form], "Columns": described,
            "Where it came from": made_from(home, artifact), "Licence": LICENCE,
        },
    )  # fmt: skip
