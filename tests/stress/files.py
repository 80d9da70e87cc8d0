"""Mutated audio of every format that libsndfile writes, through ingest and embed, in little memory.

A step is one mutated file. Files are ingested and embedded a batch at a time; where a batch goes wrong it is halved
until the files are found that do it. Nothing may crash, hang, take memory without end or become a NaN row: every file
is in, or in quarantine with a reason.
"""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from stress.chain import STEPS, finish
from stress.commands import run
from stress.harness import Run
from stress.mutating import mutate

NUM_FILES = 3000
BATCH = 250
MEMORY = 2 * 2**30  # bytes beside what the program starts with
PATIENCE_S = 120.0  # for a batch
SUFFIXES = ("wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "voc", "nist", "opus", "snd")


def kinds() -> list[tuple[str, str]]:
    """Return every format and subtype that can be written here with a header, as soundfile names them."""
    formats = [name for name in soundfile.available_formats() if name != "RAW"]
    return [(name, subtype) for name in formats for subtype in soundfile.available_subtypes(name)]


def sound_file(folder: Path, kind: tuple[str, str], rng: random.Random) -> bytes | None:
    """Return the bytes of a sound file of this kind; None where libsndfile cannot write it after all."""
    name, subtype = kind
    rate, channels = rng.choice((8000, 16_000, 44_100, 48_000)), rng.choice((1, 1, 2))
    if subtype == "OPUS":
        rate = 48_000
    noise = np.random.default_rng(rng.getrandbits(32))
    samples = 0.2 * noise.standard_normal((int(rate * rng.uniform(0.06, 0.5)), channels))
    path = folder / f"plain.{name.lower()}"
    try:
        soundfile.write(path, samples.clip(-1, 1), rate, format=name, subtype=subtype)
    except (soundfile.LibsndfileError, ValueError):  # a rate or a number of channels that the format has no place for
        return None
    return path.read_bytes()


def campaign(context: Run, corpus: Path) -> None:
    """Run it."""
    home = context.folder / "home"
    ids: dict[str, str] = {}
    for step in STEPS[:5]:
        if step.name in ("pairs", "teacher"):
            ids[step.name] = finish(step, ids, home, corpus)
    numbers = range(NUM_FILES) if context.only_step is None else [context.only_step]
    batches = [list(numbers[start : start + BATCH]) for start in range(0, len(numbers), BATCH)]

    def batch(index: int) -> None:
        chosen = batches[index]
        folder = context.folder / f"batch-{index}"
        names = {number: _write(context, number, folder) for number in chosen}
        written = {number: path for number, path in names.items() if path is not None}
        _judge(context, written, folder, home, ids["teacher"])
        if context.only_step is None:
            context.drop(folder, -1)

    only, context.only_step = context.only_step, None  # batches are no steps; a file is
    context.steps(range(len(batches)), batch)
    context.only_step = only


def _write(context: Run, number: int, folder: Path) -> Path | None:
    """Write the mutated file of a step; its name says what was done."""
    rng = context.random(number)
    every = kinds()
    kind = every[number % len(every)]  # each as often as the others
    (folder / "plain").mkdir(parents=True, exist_ok=True)
    data = sound_file(folder / "plain", kind, rng)
    if data is None:
        context.count("files that libsndfile could not write")
        return None
    suffix = kind[0].lower()
    choice = rng.random()
    if choice < 0.05:
        name = "untouched"
    elif choice < 0.15:
        name, suffix = "other suffix", rng.choice(SUFFIXES)
    else:
        name, data = mutate(data, rng)
        if rng.random() < 0.3:
            _, data = mutate(data, rng) if data else ("", data)
    context.count(f"files: {name}")
    (folder / "sounds").mkdir(exist_ok=True)
    path = folder / "sounds" / f"{number:05d}-{'-'.join(kind).lower()}.{suffix}"
    path.write_bytes(data)
    return path


def _judge(context: Run, files: dict[int, Path], folder: Path, home: Path, teacher: str) -> None:
    """Ingest and embed some files; where that goes wrong, find out which of them do it."""
    said = _faults(files, folder, home, teacher)
    if not said:
        context.count("files", len(files))
        return
    if len(files) == 1:
        (number, path), = files.items()
        context.fail(number, f"{path.name}: {'; '.join(said)}", path)
        return
    numbers = sorted(files)
    for half in (numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]):
        _judge(context, {number: files[number] for number in half}, folder, home, teacher)


def _faults(files: dict[int, Path], folder: Path, home: Path, teacher: str) -> list[str]:
    """Say what goes wrong with these files; a sound one is always beside them, so that there is something to take."""
    table = folder / f"table-{min(files)}-{len(files)}.csv"
    beside = folder / "plain" / "beside.wav"
    samples = 0.1 * np.random.default_rng(min(files)).standard_normal(8000)
    soundfile.write(beside, samples, 16_000)
    paths = [beside, *files.values()]
    table.write_text("\n".join(["path", *map(str, paths)]) + "\n")
    ingested = run(
        ["ingest", str(table), "--max-bad", "1", "--json"], home, folder, PATIENCE_S, memory=MEMORY
    )
    if ingested.code:
        return [str(ingested)]
    manifest = ingested.answer["id"]
    said = _unaccounted(paths, home / "store" / "manifest" / manifest)
    embedded = run(["embed", teacher, manifest, "--json"], home, folder, PATIENCE_S, memory=MEMORY)
    if embedded.code:
        return [*said, str(embedded)]
    return said + _bad_rows(home, manifest, home / "store" / "embeddings" / embedded.answer["id"])


def _unaccounted(paths: Sequence[Path], manifest: Path) -> list[str]:
    """Name the files that are neither in the manifest nor in its quarantine with a reason."""
    import pandas as pd

    known = set(pd.read_parquet(manifest / "clips.parquet").clip_id)
    quarantine = pd.read_parquet(manifest / "quarantine.parquet")
    reasons = dict(zip(quarantine.path, quarantine.reason, strict=True))
    said = []
    for path in paths:
        is_in = hashlib.sha256(path.read_bytes()).hexdigest() in known
        if not is_in and not reasons.get(str(path)):
            said.append(f"{path.name} is neither in the manifest nor in quarantine")
        if is_in and str(path) in reasons:
            said.append(f"{path.name} is in the manifest and in quarantine ({reasons[str(path)]})")
    return said


def _bad_rows(home: Path, manifest: str, folder: Path) -> list[str]:
    import pandas as pd

    rows = np.concatenate([np.load(path) for path in sorted(folder.glob("rows-*.npy"))])
    ids = pd.read_parquet(folder / "ids.parquet").id.tolist()
    wanted = pd.read_parquet(home / "store" / "manifest" / manifest / "clips.parquet").clip_id.tolist()
    said = [] if ids == wanted else [f"{len(wanted)} clips have {len(ids)} rows"]
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    for index in np.flatnonzero(~(np.abs(lengths - 1) < 1e-3)):
        said.append(f"the row of clip {ids[index][:12]} has the length {lengths[index]}")
    return said
