"""A corpus of tones and trainings of next to nothing on it."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import torch
from safetensors.torch import load_file

from clapcur.data.improvement_set import SCHEMA, ImprovementSetWriter
from clapcur.data.manifest import caption_id
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, TextConfig
from clapcur.stages.train import STAGE, TrainConfig, train
from clapcur.store.artifacts import Store
from clapcur.testing import clips_table, commit, manifest, write_tone

TONES = {"low tone": 200.0, "middle tone": 800.0, "high tone": 3200.0}


MODEL = ClapConfig(
    audio=AudioConfig(
        front_end=FrontEndConfig(sample_rate=16_000, n_fft=512, hop_samples=160, num_mels=32, f_max=8000.0),
        width="tiny", block_dropout=0.1, dropout=0.1,
    ),
    text=TextConfig(hidden_size=32, num_layers=1, vocab_size=60),
    embedding_dim=32, window_s=0.5, projection_dropout=0.1,
)  # fmt: skip


TEACHER = TrainConfig(
    model=MODEL, num_examples=8 * 12, batch_size=8, learning_rate=2e-3, held_out=0.3, num_evaluations=3,
    num_workers=1, device="cpu",
)  # fmt: skip
STUDENT = dataclasses.replace(TEACHER, model=None, learning_rate=5e-4, num_examples=8 * 6)


class Corpus:
    """Tones in noise with captions, as artifacts in a store."""

    def __init__(self, folder: Path):
        self.store = Store(folder / "store")
        names = list(TONES)
        clips = [f"clip{i:02d}" for i in range(24)]
        paths = {c: write_tone(folder / "audio" / f"{c}.wav", TONES[names[i % 3]], i) for i, c in enumerate(clips)}
        self.texts = {clip: f"a {names[i % 3]} sounds" for i, clip in enumerate(clips)}
        pairs = [(clip, self.texts[clip]) for clip in clips[:18]]
        self.pairs = manifest(self.store, "pairs", clips_table(clips[:18]), pairs, paths=paths)
        self.pool = manifest(self.store, "pool", clips_table(clips[18:]), paths=paths)
        pool = [(clip, caption_id(self.texts[clip])) for clip in clips[18:]]
        self.set = commit(self.store, "improvement_set", "ads", lambda work: self._write_set(work, pool))

    @staticmethod
    def _write_set(work, pairs):
        with ImprovementSetWriter(work.path) as writer:
            names = [f"class {i % 3}" for i in range(len(pairs))]
            rows = [(*pair, 1.0, name, 1.0, 0) for pair, name in zip(pairs, names, strict=True)]
            writer.add(pa.table(list(zip(*rows, strict=True)), schema=SCHEMA))

    def run(self, config: TrainConfig, inputs, on_step=None):
        work = self.store.open(STAGE.key(config, inputs))
        if on_step:
            work.on_step = on_step
        outcome = train(inputs, config, work)
        return self.store.commit(work, outcome, 0.0)

    def teacher(self, **changes):
        config = dataclasses.replace(TEACHER, **changes)
        inputs = {"teacher_pairs": self.pairs}
        return self.store.get(STAGE.key(config, inputs)) or self.run(config, inputs)

    def student_inputs(self):
        return {
            "init": self.teacher(), "teacher_pairs": self.pairs, "improvement_set": self.set, "pool": self.pool,
        }  # fmt: skip


def weights(artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.path / "model.safetensors")


def history(artifact) -> list[dict]:
    return [json.loads(line) for line in (artifact.path / "history.jsonl").read_text().splitlines()]
