"""Mutated audio of every format that libsndfile writes, through ingest and embed, in little memory.

A step is one mutated file. Files are ingested and embedded a batch at a time; where a batch goes wrong it is halved
until the files are found that do it. Nothing may crash, hang, take memory without end or become a NaN row: every file
is in, or in quarantine with a reason.
"""

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from stress.chain import STEPS, finish
from stress.commands import Ended, run
from stress.harness import Run
from stress.mutating import mutate

NUM_FILES = 3000
BATCH = 250
MEMORY = 2 * 2**30  # bytes beside what the program starts with
PATIENCE_S = 120.0  # for a batch
REFUSED = {"avr", "ircam", "mat4", "mat5", "mpc2k", "paf", "pvf", "sd2", "sds", "wve", "xi"}
# formats in which a cut file looks like a whole one, so that clapcur takes none; an untouched file of any other is in
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
    path = folder / "sounds" / f"{number:05d}-{'-'.join(kind)}-{name}.{suffix}".lower().replace(" ", "-")
    path.write_bytes(data)
    return path


def _judge(context: Run, files: Mapping[int, Path], folder: Path, home: Path, teacher: str) -> None:
    """Ingest and embed some files; where that goes wrong and names none of them, find out which it is."""
    beside = folder / "plain" / "beside.wav"  # so that there is always something to take
    samples = 0.1 * np.random.default_rng(min(files)).standard_normal(8000)
    soundfile.write(beside, samples, 16_000)
    table = folder / f"table-{min(files)}-{len(files)}.csv"
    table.write_text("\n".join(["path", str(beside), *map(str, files.values())]) + "\n")
    ended = [run(["ingest", str(table), "--max-bad", "1", "--json"], home, folder, PATIENCE_S, memory=MEMORY)]
    if not ended[-1].code == 0:
        _halve(context, files, folder, home, teacher, ended[-1])
        return
    manifest = ended[-1].answer["id"]
    ended.append(run(["embed", teacher, manifest, "--json"], home, folder, PATIENCE_S, memory=MEMORY))
    if not ended[-1].code == 0:
        _halve(context, files, folder, home, teacher, ended[-1])
        return
    context.count("files", len(files))
    store = home / "store"
    told = _outcomes(files, store / "manifest" / manifest, store / "embeddings" / ended[-1].answer["id"])
    for number, outcome in told.items():
        if outcome in ("in", "in quarantine"):
            context.count(f"files that are {outcome}")
        else:
            context.fail(number, f"{files[number].name}: {outcome}", files[number])


def _halve(context: Run, files: Mapping[int, Path], folder: Path, home: Path, teacher: str, ended: Ended) -> None:
    if len(files) == 1:
        ((number, path),) = files.items()
        context.fail(number, f"{path.name}: {ended}\n{ended.err}", path)
        return
    numbers = sorted(files)
    for half in (numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]):
        _judge(context, {number: files[number] for number in half}, folder, home, teacher)


def _outcomes(files: Mapping[int, Path], manifest: Path, embeddings: Path) -> dict[int, str]:
    """Say of each file whether it is in, with a unit row, or in quarantine, with a reason; or else what is wrong."""
    import pandas as pd

    quarantine = pd.read_parquet(manifest / "quarantine.parquet")
    reasons = dict(zip(quarantine.path, quarantine.reason, strict=True))
    clips = set(pd.read_parquet(manifest / "clips.parquet").clip_id)
    rows = np.concatenate([np.load(path) for path in sorted(embeddings.glob("rows-*.npy"))]).astype(np.float64)
    ids = pd.read_parquet(embeddings / "ids.parquet").id.tolist()
    lengths = dict(zip(ids, np.linalg.norm(rows, axis=1), strict=True))
    told = {}
    for number, path in files.items():
        clip, reason = hashlib.sha256(path.read_bytes()).hexdigest(), reasons.get(str(path))
        if (clip in clips) == bool(reason):
            told[number] = f"it is in the manifest: {clip in clips}, and in quarantine: {reason}"
        elif reason:
            _, form, *_, mutation = path.stem.split("-")
            is_lost = mutation == "untouched" and form not in REFUSED
            told[number] = f"it is in quarantine, as it was written: {reason}" if is_lost else "in quarantine"
        elif clip not in lengths:
            told[number] = "it is in the manifest and has no row"
        else:
            told[number] = "in" if abs(lengths[clip] - 1) < 1e-3 else f"its row has the length {lengths[clip]}"
    return told
