"""Mutated tables, shards and experiment files: one line of error, or quarantine, and never a traceback.

A step is one mutated file. The commands run one after another in a process that has imported everything; one that dies
or hangs takes the others of its batch with it, which then have a process each.
"""

import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from stress.commands import Ended, run_many
from stress.harness import Run
from stress.mutating import mutate

NUM_FILES = 1200
BATCH = 60
PATIENCE_S = 180.0
MEMORY = 2 * 2**30  # bytes
TEXTS = ("a dog barks", "rain falls on a roof", 'a "loud" bell, far away', "ein Vogel zwitschert über dem Dach", "")
WORDS = ("null", "nan", "-1", "1e400", "[1, 2]", "{}", "~", "'", '"', ",", ";", "\\", "\0", "\ufeff", "\r", "=cmd()")
# what is put into texts: what tools write for nothing, and what ends or begins something


def campaign(context: Run, corpus: Path) -> None:
    """Run it."""
    sounds = context.folder / "sounds"
    sounds.mkdir()
    for number in range(8):
        rng = np.random.default_rng(number)
        soundfile.write(sounds / f"{number}.wav", 0.1 * rng.standard_normal(4000), 16_000)
    numbers = list(range(NUM_FILES)) if context.only_step is None else [context.only_step]
    batches = [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]

    def batch(index: int) -> None:
        home = context.folder / f"home-{index}" / "home"
        home.parent.mkdir()
        commands = {number: _command(context, number, sounds, corpus) for number in batches[index]}
        # MLflow is no part of this, and an address without a server makes it rest
        away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        ended = run_many(list(commands.values()), home, context.folder, PATIENCE_S, memory=MEMORY, more=away)
        for number, one in zip(commands, ended, strict=True):
            if fault := _fault(one):
                context.fail(number, f"{fault}: {one}\n{one.err[-3000:]}", Path(commands[number][1]))
            context.count("files")
            context.count(f"files with exit code {one.code}")
        context.drop(home.parent, -1)

    only, context.only_step = context.only_step, None
    context.steps(range(len(batches)), batch)
    context.only_step = only


def _fault(ended: Ended) -> str:
    """Return what is wrong with how a command took a bad file; nothing where it behaved."""
    lines = [line for line in ended.err.splitlines() if line.startswith(("error:", "Traceback"))]
    if ended.code is None:
        return "it hung"
    if ended.code not in (0, 1, 2):
        return f"it died with {ended.code}"
    if "Traceback" in ended.err:
        return "it showed a traceback"
    if ended.code and len(lines) != 1:
        return f"expected one line of error, got {len(lines)}"
    if ended.code and len(lines[0]) > 2000:
        return f"the line of error has {len(lines[0]):,} characters"
    return ""


def _command(context: Run, number: int, sounds: Path, corpus: Path) -> list[str]:
    """Write the mutated file of a step and return the command that reads it."""
    rng = context.random(number)
    kind = ("csv", "tsv", "jsonl", "parquet", "tar", "yaml", "txt", "shard")[number % 8]
    path = context.folder / f"{number:05d}.{'parquet' if kind == 'shard' else kind}"
    data = _sound(kind, rng, sounds, corpus)
    if kind in ("csv", "tsv", "jsonl", "yaml", "txt") and rng.random() < 0.5:
        name, data = "words put in", _put_in(data, rng)
    else:
        name, data = mutate(data, rng)
    context.count(f"files: {kind}, {name}")
    path.write_bytes(data)
    if kind == "yaml":
        return ["plan", str(path)]
    return ["ingest", str(path), "--audio-folder", str(sounds), "--max-bad", "1", "--json"]


def _put_in(data: bytes, rng: random.Random) -> bytes:
    """Replace a few words by others that mean something to a parser."""
    text = data.decode()
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(text))
        text = text[:start] + rng.choice(WORDS) + text[start + rng.randint(0, 6) :]
    return text.encode()


def _sound(kind: str, rng: random.Random, sounds: Path, corpus: Path) -> bytes:
    """Return a sound file of this kind, which names sounds or holds them."""
    rows = [
        {"path": f"{rng.randrange(8)}.wav", "caption": rng.choice(TEXTS), "recording_id": rng.choice(("r1", "17", ""))}
        for _ in range(rng.randint(2, 12))
    ]
    if kind in ("csv", "tsv"):
        return _separated(rows, "," if kind == "csv" else "\t")
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if kind == "txt":
        return "\n".join(str(row["caption"]) for row in rows).encode()
    if kind == "tar":
        return _tar(rows, sounds)
    if kind == "yaml":
        return (corpus / "experiment.yaml").read_text().replace(": p", f": {corpus}/p", 1).encode()
    cells = [{**row, "audio": (sounds / str(row["path"])).read_bytes()} for row in rows] if kind == "shard" else rows
    return _parquet(cells)


def _separated(rows: Sequence[Mapping[str, Any]], separator: str) -> bytes:
    import csv

    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerows([rows[0].keys(), *(row.values() for row in rows)])
    return text.getvalue().encode()


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pandas as pd

    written = io.BytesIO()
    pd.DataFrame(rows).to_parquet(written, index=False)
    return written.getvalue()


def _tar(rows: Sequence[Mapping[str, Any]], sounds: Path) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for number, row in enumerate(rows):
            told = json.dumps({"caption": row["caption"], "recording_id": row["recording_id"]}).encode()
            for suffix, data in (("wav", (sounds / str(row["path"])).read_bytes()), ("json", told)):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return written.getvalue()
