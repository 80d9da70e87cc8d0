"""Cards in Markdown: what a set or a model is, what it was made from, and how to use it.

They are read by people who do not have the home: they have ids, counts and thresholds, and no paths of this machine.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from clapcur import __version__
from clapcur.data.report_table import ReportTable, change_in_points
from clapcur.data.scores import ZERO_SHOT, RetrievalScores, Scores, ZeroShotScores
from clapcur.errors import ArtifactError
from clapcur.lineage.queries import trace
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home
from clapcur.store.readable import label

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
        f"written by clapcur {__version__}. "
        + ("" if artifact.kind == "manifest" else "A model chose the pairs; they were not checked one by one. ")
        + "`similarity` is the cosine of clip and caption, if they have been compared."
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


LOAD = {
    "clapcur": """```python
import clapcur

model = clapcur.load({name!r})
model.classify(["dog.wav", "rain.flac"], ["dog bark", "rain", "siren"])  # a table of probabilities
```""",
    "hf": """```python
from transformers import ClapModel, ClapProcessor

model, processor = ClapModel.from_pretrained({name!r}), ClapProcessor.from_pretrained({name!r})
```""",
    "msclap": "`msclap.CLAPWrapper(model_fp=...)` loads this file, and so does `clapcur.load`.",
    "laion": "`laion_clap.CLAP_Module.load_ckpt` loads this file, and so does `clapcur.load`.",
    "onnx": "Two graphs for onnxruntime: audio (waveforms as `config.json` says) and text (ids of the tokenizer).",
    "adapter": "`clapcur adopt BASE --adapter FILE`, with the base that the adapters were trained on, gives the model.",
}
"""How a model is loaded, by the format of its export."""

LIMITS = """The model compares sounds with texts: zero-shot classification and search of environmental sounds like those
it was trained on. Probabilities are relative to the class names that are given: one of them is always the most
probable, also for a sound of none of them. The training pairs were chosen by a model and not checked by people, so its
mistakes may be learned. Scores hold for their test set and its classes. It does not recognise speech or speakers, and
should not be the only basis of a decision about people or safety."""


def model_card(home: Home, checkpoint: Artifact, form: str, name: str, license: str | None = None) -> str:
    """Return the card of a model.

    Parameters
    ----------
    home : Home
    checkpoint : Artifact
    form : str
        Format of the export, one of `LOAD`.
    name : str
        What to load the model by.
    license : str, optional
        Licence of the weights, as the Hub names it, such as ``cc-by-4.0``.
    """
    from clapcur.models.folder import read_config

    config = read_config(checkpoint.path / "config.json")
    audio = config.audio
    tower = "HTSAT" if audio.htsat else "YAMNet" if audio.yamnet else f"Cnn14 ({audio.width})"
    metadata = {
        **({"license": license} if license else {}),
        "library_name": "transformers" if form == "hf" else "clapcur",
        "tags": ["audio", "clap", "clapcur", "zero-shot-audio-classification"],
    }
    about = (
        f"An audio-text model (CLAP): {tower} for audio, {config.text.source} for text, embeddings of "
        f"{config.embedding_dim:,} dimensions, audio at {audio.front_end.sample_rate:,} Hz in windows of "
        f"{config.window_s:g} s. It is the checkpoint `{checkpoint.id}` ({label(checkpoint.record)}) of clapcur "
        f"{__version__}."
    )
    return card(
        metadata, name.rpartition("/")[2].removeprefix("hf:"),
        {
            "": about, "How to load it": LOAD[form].format(name=name),
            "What it was trained on": made_from(home, checkpoint), "Scores": _scores(home, checkpoint),
            "Intended use and limits": LIMITS,
            "Licence": f"{f'Weights: {license}. ' if license else ''}{LICENCE}",
        },
    )  # fmt: skip


def _scores(home: Home, checkpoint: Artifact) -> str:
    """Return the scores of a checkpoint and its changes from teacher and control; empty if it was never scored."""
    scores = [one for one in home.store.of_kind("scores") if one.record.inputs.get("checkpoint") == checkpoint.id]
    measured = table(("test set", "task", "score", "protocol", "contamination", "id"), map(_score, scores))
    compared = table(("comparison", "row", "vs teacher", "vs continued", "id"), _comparisons(home, checkpoint))
    note = "Intervals are 95 %; changes are paired, in points. *continued* is the teacher, trained further as long."
    return "\n\n".join(part for part in (measured, compared, note if measured or compared else "") if part)


def _score(scores: Artifact) -> tuple[Any, ...]:
    name = scores.record.experiment or label(scores.record)
    try:
        task = Scores.read(scores.path).protocol.task
        found = (ZeroShotScores if task == ZERO_SHOT else RetrievalScores).read(scores.path)
    except ArtifactError:  # of another kind, or of an old version: what its record says
        return name, scores.record.stage, _numbers(scores.record.metrics), "", "unknown", scores.id
    protocol = found.protocol
    said = f"{protocol.num_clips:,} clips of {protocol.num_recordings:,} recordings"
    if isinstance(found, ZeroShotScores):
        low, high = found.interval
        score = f"accuracy {found.accuracy:.3f} [{low:.3f}, {high:.3f}]"
        said += f", {protocol.num_classes} classes, prompt {protocol.prompt!r}"
    else:
        score = _numbers(found.metrics)
    return name, task, score, said, found.contamination.status, scores.id


def _comparisons(home: Home, checkpoint: Artifact) -> Iterator[tuple[Any, ...]]:
    for report in home.store.of_kind("report"):
        try:
            read = ReportTable.open(report)
        except ArtifactError:  # of an old version
            continue
        for line, seed in read.seeds:
            if seed.checkpoint == checkpoint.id:
                changes = (line.vs_teacher, line.vs_continued)
                seeds = f"{line.name}, mean of {line.num_seeds} seeds" if line.num_seeds > 1 else line.name
                yield read.title, seeds, *(change_in_points(one) if one else "-" for one in changes), report.id
