"""Sounds of a few classes for tests of order, and what is composed of them."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile

from clapcur.data.improvement_set import SCHEMA, ImprovementSetWriter
from clapcur.data.manifest import caption_id
from clapcur.stages.compose import STAGE, ComposeConfig, compose
from clapcur.store.artifacts import Artifact, Store, sha256_file
from clapcur.testing import clips_table, commit, manifest

RATE = 16_000
CLASSES = {"bell": 2500.0, "dog": 600.0, "engine": 90.0, "whistle": 5000.0}  # Hz
SMALL = ComposeConfig(duration_s=1.0, num_groups=40, num_held_out_groups=20, held_out=0.4, num_workers=1)


def write_sound(
    path: Path, frequency_hz: float, seed: int, duration_s: float = 0.6, level: float = 0.3, silence_s: float = 0.2
) -> Path:
    """Write a tone in noise with silence around it; another seed is another recording.

    In 16-bit integers: into a file of floats libsndfile writes the time, so that no two are the same.
    """
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(duration_s * RATE)) / RATE
    wave = np.sin(2 * np.pi * frequency_hz * (1 + 0.02 * rng.standard_normal()) * time_s)
    sound = level * (wave + 0.05 * rng.standard_normal(len(time_s)))
    silence = np.zeros(int(silence_s * RATE))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate([silence, sound, silence]), RATE, subtype="PCM_16")
    return path


def sounds(
    store: Store, folder: Path, classes: Mapping[str, float] = CLASSES, recordings: int = 8, takes: int = 2,
    name: str = "sounds", **changes: Any,
) -> Artifact:  # fmt: skip
    """Make a labelled manifest: clips of all lengths and levels, several of a recording."""
    paths, columns = {}, {"label": [], "recording_id": []}
    for number, (label, frequency) in enumerate(classes.items()):
        for index in range(recordings * takes):
            file = folder / name / f"{label}-{index:02d}.wav"
            seed = zlib.crc32(name.encode()) % 2**16 + 1000 * number + index // takes
            options = {"duration_s": 0.4 + 0.2 * (index % 4), "level": 0.05 + 0.1 * (index % 3), **changes}
            paths[sha256_file(write_sound(file, frequency, seed, **options))] = file
            columns["label"].append(label)
            columns["recording_id"].append(f"{name}-{label}-{index // takes}")
    table = clips_table(list(paths), **columns).sort_values("clip_id", ignore_index=True)
    return manifest(store, name, table, paths=paths)


def improvement_set(store: Store, pool: Artifact, rows: Sequence[tuple[str, str, str, float]], strategy: str = "ads"):
    """Make an Improvement-Set of (clip id, caption, class, similarity)."""

    def write(work):
        with ImprovementSetWriter(work.path) as writer:
            found = [(clip, caption_id(text), s, name, 0.8, 0) for clip, text, name, s in sorted(rows)]
            writer.add(pa.table(list(zip(*found, strict=True)), schema=SCHEMA))

    made = commit(store, "improvement_set", f"{strategy} of {pool.id}", write, {"pool": pool})
    return made


def composed(store: Store, inputs: Mapping[str, Artifact], config: ComposeConfig = SMALL) -> Artifact:
    """Run the stage."""
    key = STAGE.key(config, inputs)
    if found := store.get(key):
        return found
    work = store.open(key)
    return store.commit(work, compose(inputs, config, work), 0.0)
