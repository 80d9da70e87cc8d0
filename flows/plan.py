"""What a re-curation would do, before it is done."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from clapcur.data import champions
from clapcur.data.manifest import Manifest
from clapcur.experiments.config import Experiment
from clapcur.flows.recurate import pool_name
from clapcur.flows.steps import ingest_all, selecting
from clapcur.lineage import pools
from clapcur.stages.adopt import stage_for
from clapcur.stages.embed import STAGE as EMBED
from clapcur.stages.embed import EmbedConfig
from clapcur.stages.train import STAGE as TRAIN
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home


class Step(NamedTuple):
    """One stage of the plan."""

    what: str
    new: int
    # clips to embed or to score, examples to train on
    reused: int
    seconds: float | None
    # as long as the last one took, by its size; None where there was none to go by


def plan(experiment: Experiment) -> tuple[str, list[Step]]:
    """Return whether `clapcur.flows.recurate` would go to work on this experiment now, and what it would cost.

    Nothing but the ingest of the tables is run, which costs a look at every file.

    Returns
    -------
    str
        Why it is time to curate, empty where it is not.
    list of Step
        What would be done if it were; a student is trained where enough pairs change, which nobody knows before.
    """
    home, rules = Home.open(), experiment.on_landing
    pool_name(experiment)
    manifests = ingest_all(experiment, Campaign(experiment.name, "plan", "plan"))
    news = pools.news(home, manifests["pool"], experiment.curate(rules.strategy))
    outdated = champions.why_outdated(home.store, experiment.name)
    why = news.due(rules.min_new_clips, rules.max_wait_hours) or outdated
    seed = experiment.seeds[0]
    training, teacher = experiment.train_teacher(seed), known_teacher(home, experiment, seed, manifests)
    num_clips = len(Manifest.open(manifests["pool"]).clips)
    known = _embedded(home, teacher, manifests["pool"], experiment.num_crops) if teacher else 0
    to_score = num_clips if teacher is None or news.curated is None or news.gone_clips else news.new_clips
    steps = [
        Step("adopt teacher", 0 if teacher else 1, 1 if teacher else 0, None if teacher is None else 0.0)
        if training is None
        else Step("train teacher", 0, training.num_examples, 0.0)
        if teacher
        else Step("train teacher", training.num_examples, 0, _estimate(home, "train", training.num_examples)),
        Step("embed pool", num_clips - known, known, _estimate(home, "embed", num_clips - known)),
        Step(f"curate {rules.strategy}", to_score, num_clips - to_score, _estimate(home, "curate", to_score)),
        Step(
            f"train {rules.row.name}", experiment.student.num_examples, 0,
            _estimate(home, "train", experiment.student.num_examples),
        ),
    ]  # fmt: skip
    return why, steps


def known_teacher(home: Home, experiment: Experiment, seed: int, manifests: Mapping[str, Artifact]) -> Artifact | None:
    """Return the teacher where it is there already, without making or reading one."""
    adopted, training, inputs = (
        experiment.adopt(seed),
        experiment.train_teacher(seed),
        {"teacher_pairs": manifests["pairs"]},
    )
    if adopted is not None:
        stage, identity = stage_for(adopted)
        checkpoint = home.store.get(stage.key(identity, inputs if adopted.needs_captions else {}))
        if checkpoint is None or training is None:
            return checkpoint
        inputs["init"] = checkpoint
    assert training is not None
    return home.store.get(TRAIN.key(training, inputs | selecting(training, manifests)))


def _embedded(home: Home, teacher: Artifact, pool: Artifact, num_crops: int) -> int:
    """Return how many clips of the pool have rows of this teacher already."""
    config = EmbedConfig(what="audio", num_crops=num_crops)
    inputs = pools.with_earlier(home, EMBED, config, {"checkpoint": teacher, "manifest": pool})
    if home.store.get(EMBED.key(config, inputs)):
        return len(Manifest.open(pool).clips)
    if "previous" not in inputs:
        return 0
    before = Manifest.open(home.store.find(inputs["previous"].record["inputs"]["manifest"])).clips.clip_id
    return int(Manifest.open(pool).clips.clip_id.isin(set(before)).sum())


def _estimate(home: Home, stage: str, size: int) -> float | None:
    """Return how long a stage of this size takes, by the last one like it."""
    if size == 0:
        return 0.0
    kinds = {"train": "checkpoint", "embed": "embeddings", "curate": "improvement_set"}
    for artifact in reversed(list(home.store.of_kind(kinds[stage]))):
        record = artifact.record
        if record["stage"] == stage and (done := _size(stage, record)):
            return size * float(record["finished"] - record["started"]) / done
    return None


def _size(stage: str, record: dict[str, Any]) -> int:
    if stage == "train":
        return int(record["config"]["num_examples"])
    if stage == "curate":
        return int(record["counts"].get("candidate_clips", 0))
    return int(record["counts"].get("embedded", 0)) if record["config"]["what"] == "audio" else 0
