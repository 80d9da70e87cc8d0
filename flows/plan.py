"""Plan a flow: take its own steps in a dry run, to see what it would compute."""

import functools
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from clapcur.data import champions
from clapcur.data.manifest import Manifest
from clapcur.data.rows import SEARCHED
from clapcur.experiments.config import Experiment
from clapcur.experiments.findings import Finding, findings
from clapcur.flows.recurate import bring_up_to_date, pool_name
from clapcur.flows.steps import manifests_of, model_of
from clapcur.lineage import pools
from clapcur.models.config import ClapConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.dry_run import DryRun, dry_run
from clapcur.store.home import Home
from clapcur.store.readable import label
from clapcur.store.record import Record
from clapcur.tasks.pool import grow


@dataclass(frozen=True)
class Work:
    """The items that a stage processes one by one."""

    role: str
    """Input whose clips or captions it goes through."""
    done: str
    """Count in the record of a finished one that says how many these were."""
    before: str = ""
    """Input that an earlier result comes by, whose work is taken over."""


WORK = {
    "embed": Work("manifest", "embedded", before="previous"),
    "tag": Work("manifest", "heard", before="previous"),
    "curate": Work("pool", "candidate_clips", before="parent_pool"),
    "caption": Work("pool", "pool_clips", before="previous"),
    "pseudo_label": Work("pool", "pool_clips"),
}  # by stage; any other stage makes one result, and its time does not depend on a size


@dataclass(frozen=True)
class Step:
    """The work of one stage for one part of the experiment, over all seeds."""

    what: str
    """Name of the step, such as ``train ads+sl`` or ``embed pool``."""
    unit: str
    """Unit of the counts: examples, clips, captions, or results."""
    new: int
    """Number to compute."""
    reused: int
    """Number that can be reused."""
    seconds: float | None
    """Estimated time, from the last similar step and its size; None if there was none."""


@dataclass(frozen=True)
class Disk:
    """The disk space that a flow would take, in bytes."""

    written: int
    """Estimated size of new checkpoints, imported models and embeddings."""
    meanwhile: int
    """Estimated size of the state of one training, which is deleted at its end."""
    free: int
    """Free space on the disk of the home."""

    @property
    def fits(self) -> bool:
        """Whether the free space is enough."""
        return self.written + self.meanwhile <= self.free


@dataclass(frozen=True)
class Plan:
    """What a flow would do."""

    steps: tuple[Step, ...]
    num_results: int
    num_reused: int
    disk: Disk
    findings: tuple[Finding, ...]
    """What looks wrong with the inputs."""
    due: str | None = None
    """For a re-curation: why it is due, empty if it is not; None for any other flow."""
    missing: str = ""
    """For a re-curation that is not due: what it waits for."""
    news: pools.News | None = None
    """For a re-curation: the changes to the pool since the last one."""

    @property
    def seconds(self) -> float:
        """Estimated time of all steps whose time is known."""
        return sum(step.seconds or 0.0 for step in self.steps)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the steps whose time is unknown."""
        return tuple(step.what for step in self.steps if step.seconds is None)


def plan(
    experiment: Experiment, flow: Callable[[Experiment], Any], measured: Mapping[str, float] | None = None
) -> Plan:
    """Return what a flow would compute for an experiment, how long that takes, how large it is, and what looks wrong.

    Tables, sounds and checkpoints are read, so errors in them are reported; nothing is trained, embedded or scored, and
    no artifact is written.

    Parameters
    ----------
    experiment : Experiment
    flow : callable
        Function of a flow, such as ``clapcur.flows.compare.compare.fn``.
    measured : mapping of str to float, optional
        Seconds per item by stage, for stages that have never run in this home.
    """
    home, found = Home.open(), dict[str, list[Step]]()
    with dry_run() as run:
        flow(experiment)
        rates = _Rates(home, experiment.name, measured or {})
        for artifact in run.asked.values():
            step = _step(home, artifact, rates)
            found.setdefault(step.what, []).append(step)
        disk = _disk(home, run)
        with dry_run():  # of its own, as it may ask for other artifacts than the flow
            doubts = tuple(findings(experiment, manifests_of(experiment), _sample_rate(run)))
    steps = tuple(_together(parts) for parts in found.values())
    reused = sum(artifact.is_made for artifact in run.asked.values())
    return Plan(steps, len(run.asked), reused, disk, doubts)


def plan_recuration(experiment: Experiment, force: bool = False) -> Plan:
    """Return what `clapcur.flows.recurate` would do if it were due, and whether it is. Nothing is written to the home.

    The plan includes a student, although one is trained only if enough pairs change, which is not known in advance.

    Parameters
    ----------
    experiment : Experiment
    force : bool
        Whether the flow would be forced, and so is due in any case.
    """
    home, rules = Home.open(), experiment.on_landing
    with dry_run():
        news = pools.news(home, grow(pool_name(experiment)), experiment.curate(rules.strategy))
        outdated = champions.why_outdated(home.store, experiment.name)
        due = news.due(rules.min_new_clips, rules.max_wait_hours) or outdated or ("it is forced" if force else "")
        missing = "" if due else news.missing(rules.min_new_clips, rules.max_wait_hours)
        planned = plan(experiment, lambda one: bring_up_to_date(one, force=True))
    return replace(planned, due=due, missing=missing, news=news)


def _step(home: Home, artifact: Artifact, rates: "_Rates") -> Step:
    """Return the step that makes one artifact."""
    record = artifact.record
    size, unit = _size(home, record)
    if artifact.is_made:
        return Step(label(record), unit, 0, size, 0.0)
    taken_over = _taken_over(home, record)
    return Step(label(record), unit, size - taken_over, taken_over, rates.seconds(record, size - taken_over))


def _together(parts: list[Step]) -> Step:
    """Merge the steps of several seeds into one."""
    times = [part.seconds for part in parts if part.seconds is not None]
    return Step(
        parts[0].what, parts[0].unit, sum(part.new for part in parts), sum(part.reused for part in parts),
        sum(times) if len(times) == len(parts) else None,
    )  # fmt: skip


def _size(home: Home, record: Record) -> tuple[int, str]:
    """Return the number of items that a stage processes, and their unit."""
    stage, config, inputs = record.stage, record.config, record.inputs
    if stage in ("train", "captioner"):
        return int(config["num_examples"]), "examples"
    if stage == "embed" and config["what"] == "prompts":
        return len(config["prompts"]), "prompts"
    if stage in WORK:
        what = "captions" if config.get("what") == "captions" else "clips"
        role = "teacher_pairs" if config.get("strategy") == "ds" else WORK[stage].role
        return len(_ids(home, inputs[role], what)), what
    return 1, "results"


def _taken_over(home: Home, record: Record) -> int:
    """Return how many of these items are reused from an earlier result."""
    inputs, work = record.inputs, WORK.get(record.stage)
    if work is None or work.before not in inputs:
        return 0
    before = inputs[work.before]
    manifest = home.store.find(inputs[work.role])
    what = "captions" if record.config.get("what") == "captions" and manifest.is_made else "clips"
    now = _ids(home, manifest.id, what)
    if record.stage == "curate":
        if record.config["strategy"] not in SEARCHED:
            return 0  # all pairs are given, and only compared with thresholds
        earlier = _ids(home, before, "clips")
        return 0 if earlier - now else len(earlier)  # if the pool lost clips, all pairs are scored again
    earlier = _ids(home, home.store.find(before).record.inputs[work.role], what)
    return len(now & earlier)


def _ids(home: Home, manifest: str, what: str) -> set[str]:
    """Return the ids of a manifest's clips or captions; captions not generated yet count as one per pool clip."""
    artifact = home.store.find(manifest)
    while not artifact.is_made:
        inputs = artifact.record.inputs
        artifact, what = home.store.find(inputs.get("pool") or inputs["part00"]), "clips"
    opened = Manifest.open(artifact)
    return set(opened.captions.caption_id if what == "captions" else opened.clips.clip_id)


BYTES = 4  # of a weight and of a value of an embedding
STATES = 4  # of a training, each the size of the model: weights, two moments of Adam, best weights


def _disk(home: Home, run: DryRun) -> Disk:
    """Return the space that the unmade artifacts of a dry run take."""
    read = [
        one for one in run.known.values() if one.id not in run.asked and not one.path.is_relative_to(home.store.root)
    ]
    written = sum(file.stat().st_size for one in read for file in one.path.rglob("*") if file.is_file())
    largest = 0
    for artifact in (one for one in run.asked.values() if not one.is_made):
        record = artifact.record
        if record.stage == "train":
            size = BYTES * _num_weights(home, artifact)
            written, largest = written + size, max(largest, size)
        if record.stage == "embed":
            rows, _ = _size(home, record)
            model = model_of(home.store.find(record.inputs["checkpoint"]))
            written += BYTES * model.embedding_dim * (rows - _taken_over(home, record))
    return Disk(written, STATES * largest, shutil.disk_usage(home.root).free)


def _num_weights(home: Home, checkpoint: Artifact) -> int:
    """Return the number of weights of a checkpoint, by the model that its training starts from."""
    from safetensors import safe_open

    while not checkpoint.is_made and "init" in checkpoint.record.inputs:
        checkpoint = home.store.find(checkpoint.record.inputs["init"])
    if not checkpoint.is_made:
        return _num_fresh_weights(model_of(checkpoint))
    with safe_open(checkpoint.path / "model.safetensors", "numpy") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]
    return sum(math.prod(shape) for shape in shapes)


@functools.lru_cache
def _num_fresh_weights(model: ClapConfig) -> int:
    from clapcur.models.clap import Clap

    return sum(weight.numel() for weight in Clap.create(model, captions=["a"]).state_dict().values())


def _sample_rate(run: DryRun) -> int | None:
    """Return the sample rate of the models of a dry run, in Hz; None if it has no model."""
    checkpoints = (one for one in run.known.values() if one.kind == "checkpoint")
    first = next(checkpoints, None)
    return None if first is None else model_of(first).audio.front_end.sample_rate


class _Rates:
    """Time per item of each stage, from the last runs in this home; runs of the same experiment take precedence."""

    def __init__(self, home: Home, experiment: str, measured: Mapping[str, float]) -> None:
        self._last: dict[tuple[Any, ...], float] = {}
        self._measured = measured
        for artifact in home.store:
            record = artifact.record
            done = _amount_done(record)
            if done:
                seconds = record.seconds / done
                self._last[self._kind(record)] = seconds
                if record.experiment == experiment:
                    self._last["own", *self._kind(record)] = seconds

    def seconds(self, record: Record, size: int) -> float | None:
        """Return the estimated time of a stage for this many items; None if no similar stage has run here."""
        kind = self._kind(record)
        rate = self._last.get(("own", *kind), self._last.get(kind, self._measured.get(record.stage)))
        return 0.0 if size == 0 else None if rate is None else rate * size

    @staticmethod
    def _kind(record: Record) -> tuple[Any, ...]:
        config = record.config
        learning = str(config.get("frozen_towers")), config.get("adapt")
        return record.stage, config.get("what"), config.get("way"), bool(config.get("order")), *learning


def _amount_done(record: Record) -> int:
    """Return how many items a finished stage processed."""
    if record.stage == "train":
        return int(record.config["num_examples"])
    work = WORK.get(record.stage)
    return int(record.counts.get(work.done, 0) - record.counts.get("reused_clips", 0)) if work else 1
