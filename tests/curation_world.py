"""A small corpus in the space of embeddings, and curations of it."""

import json

import numpy as np
import pandas as pd
import pytest

from clapcur.data.manifest import caption_id
from clapcur.stages import curate as module
from clapcur.stages.curate import CurateConfig, curate
from clapcur.store.artifacts import Store
from clapcur.testing import PAPER_RULE, clips_table, embeddings, manifest

CLASSES = ("dog", "rain", "siren")


DIM = 8


class World:
    """A small corpus in embedding space: class directions, noisy clips and captions around them."""

    def __init__(self, store: Store, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.store = store
        self.centres = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0][:3]

        def near(labels, spread):
            rows = self.centres[labels] + spread * rng.standard_normal((len(labels), DIM))
            return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

        self.teacher_clips = sorted(f"t{i:02d}" for i in range(30))
        self.teacher_labels = np.arange(30) % 3
        self.texts = [f"caption {i} of {CLASSES[label]}" for i, label in enumerate(self.teacher_labels)]
        self.caption_ids = [caption_id(text) for text in self.texts]
        self.pool_clips = sorted(f"p{i:02d}" for i in range(40))
        self.pool_labels = rng.integers(3, size=40)
        self.free_texts = [f"free caption {i}" for i in range(25)]
        self.free_ids = [caption_id(text) for text in self.free_texts]
        self.rows = {
            "teacher_clip": near(self.teacher_labels, 0.15), "teacher_caption": near(self.teacher_labels, 0.15),
            "pool": near(self.pool_labels, 0.25), "caption": near(rng.integers(3, size=25), 0.6),
            "prompt": near(np.arange(3), 0.05),
        }  # fmt: skip
        self.recordings = [f"rec{i // 2}" for i in range(40)]
        self.evaluation = clips_table(
            ["e0", self.pool_clips[0], "e2"],
            recording_id=["rec5", "", ""],
            pcm_sha256=["x", "y", f"pcm-{self.pool_clips[1]}"],
        )

    def inputs(self, with_captions: bool = True, with_evaluation: bool = False):
        pairs = list(zip(self.teacher_clips, self.texts, strict=True))
        s = self.store
        made = {
            "teacher_pairs": manifest(s, "pairs", clips_table(self.teacher_clips), pairs),
            "pool": manifest(s, "pool", clips_table(self.pool_clips, recording_id=self.recordings)),
            "teacher_clip_embeddings": embeddings(s, "tc", self.teacher_clips, self.rows["teacher_clip"]),
            "teacher_caption_embeddings": embeddings(s, "tt", self.caption_ids, self.rows["teacher_caption"]),
            "pool_embeddings": embeddings(s, "p", self.pool_clips, self.rows["pool"]),
            "prompt_embeddings": embeddings(s, "k", list(CLASSES), self.rows["prompt"]),
        }
        if with_captions:
            made["captions"] = manifest(s, "captions", captions=self.free_texts)
            made["caption_embeddings"] = embeddings(s, "c", self.free_ids, self.rows["caption"])
        if with_evaluation:
            made["evaluation"] = manifest(s, "evaluation", self.evaluation)
            rows = np.stack([self.centres[0], self.rows["pool"][0], self.rows["pool"][7]])
            made["evaluation_embeddings"] = embeddings(s, "e", self.evaluation.clip_id.tolist(), rows)
        return made


@pytest.fixture
def world(tmp_path) -> World:
    return World(Store(tmp_path / "store"))


def run(world: World, tmp_path, inputs=None, **settings) -> pd.DataFrame:
    settings = {"class_names": CLASSES, "held_out": 0.0, **PAPER_RULE, **settings}
    config = CurateConfig(**settings)
    key = module.STAGE.key(config, {})
    work = world.store.open(key)
    work.outcome = curate(inputs or world.inputs(), config, work)
    world.card = json.loads((work.path / "card.json").read_text())
    world.outcome = work.outcome
    return pd.read_parquet(work.path / "pairs.parquet")


def as_set(pairs: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(pairs.clip_id, pairs.caption_id, strict=True))


def all_captions(world: World):
    rows = np.concatenate([world.rows["teacher_caption"], world.rows["caption"]])
    return world.caption_ids + world.free_ids, rows
