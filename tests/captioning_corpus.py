"""Tones whose captions also name what only a tag tells, and a captioner that learned from them."""

from pathlib import Path

import numpy as np
import pandas as pd
from training_corpus import MODEL, TONES

from clapcur.data.tags import Tags
from clapcur.models.captioner import CaptionerConfig
from clapcur.models.clap import Clap
from clapcur.stages.captioner import STAGE, CaptionerTraining, train_captioner
from clapcur.store.artifacts import Artifact, Store, sha256_file
from clapcur.testing import clips_table, commit, manifest, write_tone

THINGS = ("Dog", "Rain")  # classes, of which nothing is heard in a tone
TRAINING = CaptionerTraining(
    captioner=CaptionerConfig(hidden_size=32, num_heads=2, vocab_size=60, max_tokens=16, dropout=0.0),
    num_examples=16 * 140, batch_size=16, learning_rate=4e-3, final_learning_rate=4e-4, held_out=0.25,
    num_evaluations=4, num_workers=1, device="cpu",
)  # fmt: skip
SHORT = 16 * 12  # a budget of a training whose captions do not matter


class CaptionedTones:
    """Clips with a tone, a tag and a caption of both: `pairs` to learn from and `pool` without captions."""

    def __init__(self, folder: Path):
        self.store = Store(folder / "store")
        self.tone, self.thing, self.paths = {}, {}, {}
        for index in range(60):
            tone = list(TONES)[index % 3]
            path = write_tone(folder / f"{index}.wav", TONES[tone], seed=index)
            clip = sha256_file(path)
            self.tone[clip], self.thing[clip], self.paths[clip] = tone, THINGS[index // 3 % 2], path
        clips = list(self.paths)
        self.pairs = self.manifest_of("pairs", clips[:48], captioned=True)
        self.pool = self.manifest_of("pool", clips[48:])
        self.checkpoint = commit(self.store, "checkpoint", "clap", self._write_model)
        self.tags, self.pool_tags = self.tags_of("pairs tags", self.pairs), self.tags_of("pool tags", self.pool)

    def manifest_of(self, name: str, clips: list[str], captioned: bool = False) -> Artifact:
        pairs = [(clip, f"a {self.tone[clip]} and a {self.thing[clip].lower()}") for clip in clips if captioned]
        return manifest(self.store, name, clips_table(clips), pairs, paths={clip: self.paths[clip] for clip in clips})

    def tags_of(self, name: str, of: Artifact, classes: tuple[str, ...] = THINGS) -> Artifact:
        clips = pd.read_parquet(of.path / "clips.parquet").clip_id.tolist()
        rows = [(clip, THINGS.index(self.thing[clip]), 0.9) for clip in clips]
        table = pd.DataFrame(rows, columns=["clip_id", "class", "probability"]).astype({"class": np.int32})
        tags = Tags.of(pd.DataFrame({"name": classes, "mid": ""}), table, clips, lambda mean_K: np.full(2, 0.5))
        return commit(self.store, "tags", name, lambda work: tags.write(work.path), {"manifest": of})

    @property
    def inputs(self) -> dict[str, Artifact]:
        return {"checkpoint": self.checkpoint, "pairs": self.pairs, "tags": self.tags}

    def train(self, config: CaptionerTraining = TRAINING, inputs=None) -> Artifact:
        key = STAGE.key(config, inputs or self.inputs)
        if found := self.store.get(key):
            return found
        work = self.store.open(key)
        return self.store.commit(work, train_captioner(inputs or self.inputs, config, work), 0.0)

    @staticmethod
    def _write_model(work) -> None:
        Clap.create(MODEL, ["a tone"], seed=1).save(work.path)
