"""Auditions of small Improvement-Sets."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clapcur import testing as building
from clapcur.data.improvement_set import SCHEMA
from clapcur.data.manifest import caption_id
from clapcur.stages.audition import STAGE, AuditionConfig, audition_inputs
from clapcur.store.artifacts import Artifact, Stage, Store
from clapcur.store.record import Outcome
from clapcur.testing import clips_table, manifest, write_tone

CLASSES = {"dog": "a dog barks", "rain": "rain falls", "bell": 'a <b>bell</b> rings & "fades", far away'}


SECONDS = 2.0


@dataclass(frozen=True)
class Audition:
    """A page of small tones, and what it was made of."""

    artifact: Artifact
    pairs: pd.DataFrame  # pairs.csv, in the order of the page
    set_id: str

    @property
    def page(self) -> Path:
        return self.artifact.path / "audition.html"

    @property
    def seconds(self) -> float:
        return SECONDS

    @property
    def num_silent(self) -> int:
        return int((self.pairs.sound != "embedded").sum())

    def index(self, clip: str, caption: str) -> int:
        return int(np.flatnonzero((self.pairs.clip_id == clip) & (self.pairs.caption_id == caption))[0])

    @property
    def data(self) -> dict:
        """The JSON that the page carries."""
        (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', self.page.read_text(), re.S)
        return json.loads(text)


def improvement_set(
    store: Store, sounds: Path, num_clips: int = 12, missing: int = 0, strategy: str = "ads", classes=CLASSES,
    card: Mapping | None = None, rows_ND: np.ndarray | None = None, num_unchosen: int = 0,
) -> Artifact:  # fmt: skip
    """Make a set in which each clip has two captions, of its own class and of the next; clips are in `sounds`.

    The last `num_unchosen` clips have no pair. With `rows_ND`, the embeddings of the clips and then of the prompts, the
    set has embeddings among its inputs.
    """
    names, texts = list(classes), list(classes.values())
    clips = [f"clip{index:060x}" for index in range(0xA1, 0xA1 + num_clips)]
    paths = {clip: sounds / f"{clip[-4:]}.wav" for clip in clips}
    for index, path in enumerate(paths.values()):
        if index >= missing:
            write_tone(path, 300 + 100 * index, seed=index, duration_s=SECONDS)
    pool = manifest(store, "pool", clips_table(clips, duration_s=[SECONDS] * num_clips), paths=paths)
    teacher_pairs = manifest(store, "pairs", pairs=(), captions=texts)
    rows = []
    for index, clip in enumerate(clips[: num_clips - num_unchosen]):
        for rank in range(2):
            which = (index + rank) % len(names)
            similarity = np.float32(0.9 - 0.017 * index - 0.21 * rank)
            class_similarity = np.float32(0.75 + 0.01 * ((7 * index + rank) % 20))
            rows.append((clip, caption_id(texts[which]), similarity, names[which], class_similarity, rank))
    table = pd.DataFrame(rows, columns=SCHEMA.names)
    said = building.card(
        strategy,
        thresholds={"caption": 0.7} | ({} if strategy == "ds" else {"audio": 0.3}),
        counts={"pairs": len(table), "clips": num_clips, "captions": len(texts)},
        class_coverage={name: {"pairs": int((table["class"] == name).sum()), "clips": num_clips} for name in names},
        **(card or {}),
    )

    def compute(inputs, config, work):
        table.to_parquet(work.path / "pairs.parquet", index=False, row_group_size=5)
        said.write(work.path)
        return Outcome(counts=said.counts)

    stage = Stage("curate", "1", "improvement_set", compute)
    inputs = {"teacher_pairs": teacher_pairs, "pool": pool}
    if rows_ND is not None:
        inputs["pool_embeddings"] = building.embeddings(store, "p", clips, rows_ND[:num_clips])
        inputs["prompt_embeddings"] = building.embeddings(store, "k", names, rows_ND[num_clips:])
    config = {
        "strategy": strategy,
        "class_names": names,
        "even_classes": False,
        "caption_threshold": {"count": None, "similarity": 0.7},
    }
    work = store.open(stage.key(config, inputs))
    return store.commit(work, compute(inputs, config, work), time.time())


def make(store: Store, source: Artifact, **config) -> Audition:
    """Run the stage on a set."""
    config = AuditionConfig(**config)
    inputs = audition_inputs(store, source)
    work = store.open(STAGE.key(config, inputs))
    outcome = STAGE.compute(inputs, config, work)
    made = store.commit(work, outcome, time.time())
    return Audition(made, pd.read_csv(made.path / "pairs.csv", dtype={"clip_id": "str"}), source.id)


def make_audition(store: Store, sounds: Path, num_pairs: int = 12, missing: int = 0, **config) -> Audition:
    """Make a set of tones and its page; the files of the first `missing` clips are not there."""
    return make(store, improvement_set(store, sounds, missing=missing), num_pairs=num_pairs, **config)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
