"""A small experiment made of artifacts alone, through `stage.run`: from manifests to scores, without a model."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from clapcur.data.decision import Decision
from clapcur.data.manifest import CLIPS, captions_table
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.store.record import Outcome
from clapcur.store.runner import run
from clapcur.testing import card

CAMPAIGN = Campaign("esc50", "compare esc50", "c" * 64)
FIRST_MS = 1_800_000_000_000  # of a training's history


def clip(name: str) -> str:
    """Return the id of a clip whose file holds its name."""
    return hashlib.sha256(name.encode()).hexdigest()


def make(
    home: Home,
    kind: str,
    name: str,
    write: Callable[[Workspace], Outcome | None],
    inputs: Mapping[str, Artifact] | None = None,
    config: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    campaign: Campaign | None = CAMPAIGN,
    on_step: Any = None,
) -> Artifact:
    """Make one artifact; `write` fills the payload and returns counts and metrics."""
    stages = {"manifest": "ingest", "checkpoint": "train", "embeddings": "embed", "improvement_set": "curate"}
    stage = Stage(stages.get(kind, "evaluate"), "1", kind, lambda inputs, config, work: write(work) or Outcome())
    given = {"name": name, **(config or {})}
    return run(stage, given, inputs or {}, home, campaign=campaign, tags=tags, on_step=on_step)


def manifest(home: Home, role: str, clips: Sequence[str] = (), pairs: Sequence[tuple[str, str]] = ()) -> Artifact:
    """Make a manifest of clips by name and of (clip name, caption)."""
    names = sorted({*clips, *(name for name, _ in pairs)}, key=clip)
    texts = captions_table(caption for _, caption in pairs)
    id_of = dict(zip(texts.caption, texts.caption_id, strict=True))

    def write(work: Workspace) -> Outcome:
        table = pd.DataFrame({"clip_id": [clip(name) for name in names]}).reindex(columns=CLIPS.names)
        table.assign(recording_id="").to_parquet(work.path / "clips.parquet", index=False)
        texts.to_parquet(work.path / "captions.parquet", index=False)
        rows = sorted((clip(name), id_of[caption]) for name, caption in pairs)
        pd.DataFrame(rows, columns=["clip_id", "caption_id"], dtype="str").to_parquet(work.path / "pairs.parquet")
        where = {"clip_id": [clip(name) for name in names], "path": [f"/audio/{name}.wav" for name in names]}
        pd.DataFrame(where, dtype="str").to_parquet(work.path / "locations.parquet", index=False)
        return Outcome(counts={"clips": len(names), "pairs": len(rows)})

    return make(home, "manifest", f"{role} {names} {list(pairs)}", write, tags={"role": role, "dataset": "esc50"})


def improvement_set(
    home: Home, pairs: Sequence[tuple[str, str, float]], inputs: Mapping[str, Artifact], strategy: str = "ads"
) -> Artifact:
    """Make an Improvement-Set of (clip name, caption, similarity)."""
    texts = captions_table(caption for _, caption, _ in pairs)
    id_of = dict(zip(texts.caption, texts.caption_id, strict=True))
    rows = sorted((clip(name), id_of[caption], similarity) for name, caption, similarity in pairs)

    def write(work: Workspace) -> Outcome:
        table = pd.DataFrame(rows, columns=["clip_id", "caption_id", "similarity"])
        table = table.assign(**{"class": "dog", "class_similarity": 0.75, "rank": 0})
        table.to_parquet(work.path / "pairs.parquet", index=False)
        card(strategy).write(work.path)
        (work.path / "similarity.png").write_bytes(b"\x89PNG similarity")
        return Outcome(counts={"pairs": len(rows)}, metrics={"threshold.audio": 0.41})

    tags = {"strategy": strategy, "seed": 0}
    return make(
        home, "improvement_set", str(pairs), write, inputs, {"strategy": strategy, "caption_threshold": 0.7}, tags
    )


def checkpoint(
    home: Home, inputs: Mapping[str, Artifact], row: str, seen: Sequence[str], steps: int = 3, on_step: Any = None
) -> Artifact:
    """Make a checkpoint with a history of one loss a step; `seen` are the roles that were trained on."""
    role = "teacher" if row == "teacher" else "student"

    def write(work: Workspace) -> Outcome:
        (work.path / "model.safetensors").write_bytes(row.encode())
        (work.path / "config.json").write_text("{}")
        lines = []
        for step in range(1, steps + 1):
            metrics = {"loss": 1 / step, "learning_rate": 1e-4}
            work.on_step(step, metrics)
            lines.append({"step": step, "time_ms": FIRST_MS + 1000 * step, **metrics})
        (work.path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Outcome(counts={f"seen.{role}": 8 * steps for role in seen}, metrics={"loss": 1 / steps})

    tags = {
        "role": role,
        "row": row,
        "strategy": row.removesuffix("+sl"),
        "soft_labels": row.endswith("+sl"),
        "seed": 0,
    }
    return make(
        home, "checkpoint", row, write, inputs, {"beta": 0.5, "towers": {"text": "minilm"}}, tags, on_step=on_step
    )


def embeddings(home: Home, checkpoint: Artifact, what: str, manifest: Artifact | None = None) -> Artifact:
    """Make an embeddings artifact without rows."""
    inputs = {"checkpoint": checkpoint} | ({"manifest": manifest} if manifest else {})
    return make(home, "embeddings", what, lambda work: None, inputs, tags={"role": what})


def scores(home: Home, checkpoint: Artifact, evaluation: Artifact, row: str, accuracy: float) -> Artifact:
    """Make the scores of a checkpoint."""

    def write(work: Workspace) -> Outcome:
        (work.path / "scores.json").write_text(json.dumps({"accuracy": accuracy}))
        (work.path / "confusion.png").write_bytes(b"\x89PNG confusion")
        return Outcome(counts={"clips": 4}, metrics={"accuracy": accuracy, "transductive": accuracy + 0.0625})

    inputs = {
        "checkpoint": checkpoint,
        "evaluation": evaluation,
        "prompt_embeddings": embeddings(home, checkpoint, "prompts"),
        "audio_embeddings": embeddings(home, checkpoint, "evaluation", evaluation),
    }
    return make(home, "scores", row, write, inputs, {"prompt": "the sound of {}"}, {"row": row, "seed": 0})


def teacher_only(home: Home) -> dict[str, Artifact]:
    """Make a teacher and its scores."""
    made = {"teacher_pairs": manifest(home, "pairs", pairs=[("dog-1", "a dog barks"), ("rain-1", "rain falls")])}
    made["evaluation"] = manifest(home, "evaluation", clips=["test-1", "test-2"])
    made["teacher"] = checkpoint(home, {"teacher_pairs": made["teacher_pairs"]}, "teacher", ["teacher_pairs"])
    made["teacher_scores"] = scores(home, made["teacher"], made["evaluation"], "teacher", 0.5)
    return made


def experiment(home: Home) -> dict[str, Artifact]:
    """Make a teacher, an Improvement-Set, a student of it and the scores of both."""
    made: dict[str, Artifact] = {}
    made["teacher_pairs"] = manifest(home, "pairs", pairs=[("dog-1", "a dog barks"), ("rain-1", "rain falls")])
    made["pool"] = manifest(home, "pool", clips=["pool-1", "pool-2", "pool-3"])
    made["evaluation"] = manifest(home, "evaluation", clips=["test-1", "test-2"])
    made["teacher"] = checkpoint(home, {"teacher_pairs": made["teacher_pairs"]}, "teacher", ["teacher_pairs"])
    curated = {role: made[role] for role in ("teacher_pairs", "pool", "evaluation")} | {
        "pool_embeddings": embeddings(home, made["teacher"], "pool", made["pool"]),
        "prompt_embeddings": embeddings(home, made["teacher"], "prompts"),
    }
    pairs = [("pool-1", "a dog barks", 0.5), ("pool-2", "a dog barks", 0.625), ("pool-2", "rain falls", 0.4375)]
    made["set"] = improvement_set(home, pairs, curated)
    inputs = {role: made[role] for role in ("teacher_pairs", "pool")} | {
        "init": made["teacher"],
        "teacher": made["teacher"],
        "improvement_set": made["set"],
    }
    made["student"] = checkpoint(home, inputs, "ads+sl", ["improvement_set", "teacher_pairs"])
    made["teacher_scores"] = scores(home, made["teacher"], made["evaluation"], "teacher", 0.5)
    made["student_scores"] = scores(home, made["student"], made["evaluation"], "ads+sl", 0.75)
    return made


def decision(
    home: Home, teacher: Artifact, champion: Artifact, challenger: Artifact, promoted: bool, dataset: str = "esc50"
) -> Artifact:
    """Make the decision about a challenger."""
    inputs = {"teacher": teacher, "champion": champion, "challenger": challenger}
    said = Decision(
        dataset=dataset, champion=champion.id, challenger=challenger.id, promoted=promoted, why="3 points better",
        accuracy={"champion": 0.5, "challenger": 0.53}, change=0.03, interval=(0.01, 0.05), num_clips=400,
        num_recordings=40,
    )  # fmt: skip

    def write(work: Workspace) -> Outcome:
        said.write(work.path)
        return Outcome(counts={"clips": 400}, metrics={"change": 0.03})

    name = f"{challenger.id} against {champion.id}"
    return make(home, "decision", name, write, inputs, {"dataset": dataset}, {"role": "gate", "dataset": dataset})
