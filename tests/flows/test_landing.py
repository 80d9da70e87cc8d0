"""Audio lands and must go again: versions of a pool, what is reused, the gate, take-downs."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
import soundfile
import sqlalchemy as sa
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Completed, Crashed, Failed, Running
from source_tree import ROOT

from clapcur.data import champions
from clapcur.data.inbox import Watch
from clapcur.data.manifest import Manifest
from clapcur.errors import DataError
from clapcur.experiments.config import Experiment, LandingRules, experiment_from_file
from clapcur.lineage import pools
from clapcur.stages import gate
from clapcur.stages.gate import GateConfig
from clapcur.stages.ingest import IngestConfig
from clapcur.stages.pool import STAGE, PoolConfig
from clapcur.stages.tombstone import STAGE as BURY
from clapcur.stages.tombstone import Tombstone
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home
from clapcur.store.runner import run
from clapcur.testing import clips_table, manifest, write_tone, write_tones


def grow(home: Home, name: str, landing: Artifact | None) -> Artifact:
    """Do what the task does, without Prefect."""
    following = pools.next_version(home, name, landing)
    return pools.head(home, name) if following is None else run(STAGE, *following, home)


def clips_of(version: Artifact) -> list[str]:
    return Manifest.open(version).clips.clip_id.tolist()


# -- versions


def test_a_landing_adds_what_is_new_and_nothing_twice(home):
    v1 = grow(home, "field", manifest(home.store, "first", clips_table(["a", "b"])))
    v2 = grow(home, "field", manifest(home.store, "second", clips_table(["b", "c"])))
    assert (clips_of(v1), clips_of(v2)) == (["a", "b"], ["a", "b", "c"])
    assert v2.record.inputs["parent"] == v1.id
    assert v2.record.counts == {"clips": 3, "added": 1, "forgotten": 0, "known": 1, "same_sound": 0}
    assert [one.id for one in pools.versions(home, "field")] == [v1.id, v2.id]
    assert [one.id for one in pools.ancestors(home, v2)] == [v1.id]


def test_a_landing_that_comes_twice_makes_no_version(home):
    landing = manifest(home.store, "first", clips_table(["a", "b"]))
    assert grow(home, "field", landing) == grow(home, "field", landing)
    assert len(pools.versions(home, "field")) == 1


def test_the_same_sound_in_another_container_is_not_new(home):
    v1 = grow(home, "field", manifest(home.store, "wav", clips_table(["a"], pcm_sha256=["one sound"])))
    flac = manifest(home.store, "flac", clips_table(["z"], pcm_sha256=["one sound"]))
    assert grow(home, "field", flac) == v1
    more = manifest(home.store, "more", clips_table(["y", "z"], pcm_sha256=["another", "one sound"]))
    v2 = grow(home, "field", more)
    assert clips_of(v2) == ["a", "y"] and v2.record.counts["same_sound"] == 1


def test_pools_do_not_mix(home):
    landing = manifest(home.store, "first", clips_table(["a"]))
    grow(home, "field", landing)
    grow(home, "city", manifest(home.store, "other", clips_table(["b"])))
    assert pools.names(home) == ["city", "field"]
    assert clips_of(pools.head(home, "city")) == ["b"]
    with pytest.raises(
        DataError, match=r"no pool 'sea' .*\(pools: city, field\); create it with `clapcur land FOLDER --pool sea`"
    ):
        pools.head(home, "sea")
    with pytest.raises(ValueError, match="a pool name must be"):
        PoolConfig(name="../field", version=1)


def test_a_forgotten_clip_leaves_and_does_not_come_back_in_another_container(home):
    landing = manifest(home.store, "first", clips_table(["a", "b"], pcm_sha256=["one", "other"]))
    grow(home, "field", landing)
    run(BURY, Tombstone(clip_id="a", pcm_sha256="one", reason="asked"), {}, home)
    v2 = grow(home, "field", None)
    assert clips_of(v2) == ["b"] and v2.record.counts["forgotten"] == 1
    assert grow(home, "field", landing) == v2
    assert grow(home, "field", manifest(home.store, "again", clips_table(["z"], pcm_sha256=["one"]))) == v2
    assert Manifest.open(v2).locations.clip_id.tolist() == ["b"]


def test_where_a_clip_lies_is_taken_from_the_newest_place(home):
    grow(home, "field", manifest(home.store, "first", clips_table(["a"]), paths={"a": Path("/old/a.wav")}))
    moved = manifest(home.store, "moved", clips_table(["a", "b"]), paths={"a": Path("/new/a.wav")})
    assert Manifest.open(grow(home, "field", moved)).paths["a"] == "/new/a.wav"


@pytest.mark.parametrize(
    ("new", "gone", "hours", "curated", "said"),
    [
        (0, 0, 0.0, False, "never curated"), (3, 0, 1.0, True, ""),
        (100, 0, 0.0, True, "100 new clips (threshold: 100)"),
        (3, 0, 200.0, True, "3 new clips have waited 200.0 h"), (0, 0, 999.0, True, ""), (0, 1, 0.0, True, "taken "
                                                                                                           "down"),
    ],
)  # fmt: skip
def test_fifty_drops_do_not_train_fifty_students(new, gone, hours, curated, said):
    version = Artifact("manifest", "0" * 12, "/nowhere")
    why = pools.News(version, version if curated else None, new, gone, hours).due(100, 168)
    assert said in why and bool(why) == bool(said)


@pytest.mark.parametrize(
    ("new", "hours", "said"),
    [
        (0, 999.0, "0 of 100 new clips"), (37, 72.0, "37 of 100 new clips; due in 4 d at the latest"),
        (1, 160.8, "1 of 100 new clips; due in 7 h at the latest"),
        (99, 167.5, "99 of 100 new clips; due in 30 min at the latest"), (100, 0.0, ""), (1, 168.0, ""),
    ],
)  # fmt: skip
def test_what_a_curation_waits_for_is_told_until_it_is_due(new, hours, said):
    version = Artifact("manifest", "0" * 12, "/nowhere")
    assert pools.News(version, version, new, 0, hours).missing(100, 168) == said


# -- the gate


def scored(home: Home, name: str, right: np.ndarray, groups: np.ndarray | None = None) -> Artifact:
    """Make scores in which these clips are right."""
    from clapcur.testing import commit

    table = pd.DataFrame(
        {
            "clip_id": [f"{i:03d}" for i in range(len(right))],
            "group": [f"{g}" for g in (np.arange(len(right)) if groups is None else groups)],
            "label": "dog",
            "predicted": np.where(right, "dog", "rain"),
        }
    )
    return commit(home.store, "scores", name, lambda work: table.to_parquet(work.path / "predictions.parquet"))


def decided(home: Home, before: np.ndarray, after: np.ndarray, name: str = "b", **config) -> Artifact:
    from clapcur.testing import commit

    def checkpoint(name):
        return commit(home.store, "checkpoint", name, lambda work: None)

    inputs = {
        "teacher": checkpoint("t"), "champion": checkpoint("a"), "challenger": checkpoint(name),
        "champion_scores": scored(home, f"sa{before.sum()}", before),
        "challenger_scores": scored(home, f"s{name}{after.sum()}", after),
    }  # fmt: skip
    return run(gate.STAGE, GateConfig(dataset="tones", **config), inputs, home)


def test_the_champion_moves_only_for_more_than_luck(home, rng):
    before = rng.random(400) < 0.5
    better = before | (rng.random(400) < 0.2)
    same = before.copy()
    same[np.flatnonzero(~before)[:2]] = True
    clear, unclear = decided(home, before, better, "b"), decided(home, before, same, "c")
    told = [json.loads((one.path / "decision.json").read_text()) for one in (clear, unclear)]
    assert [one["promoted"] for one in told] == [True, False]
    assert told[0]["interval"][0] > 0 >= told[1]["interval"][0]
    assert "is not above +0.0" in told[1]["why"]
    standing = champions.standing(home.store, "tones")
    assert standing["champion"].id == told[0]["challenger"] and standing["challenger"].id == told[1]["challenger"]
    assert champions.standing(home.store, "other") == {}


def test_scores_of_other_clips_are_not_compared(home):
    with pytest.raises(DataError, match="must be scored on the same clips, got 5 and 4 clips with 4 in common"):
        decided(home, np.ones(5, bool), np.ones(4, bool))


# -- files that are still being written


def test_a_file_counts_when_it_has_stopped_growing(tmp_path):
    watch = Watch(tmp_path, settle_s=10)
    path = tmp_path / "a.wav"
    path.write_bytes(b"1")
    (tmp_path / ".b.wav.part").write_bytes(b"1")
    assert watch.look(0.0) == set()
    path.write_bytes(b"12")
    assert watch.look(9.0) == set() and watch.look(12.0) == set()
    assert watch.look(19.0) == {path}
    path.write_bytes(b"123")
    assert watch.look(30.0) == set()
    path.unlink()
    assert watch.look(50.0) == set()
    with pytest.raises(DataError, match="cannot watch .*: it is not a folder"):
        Watch(tmp_path / "gone", 1).look(0)


def test_a_watcher_lands_a_file_that_is_complete_and_nothing_else(home, answer, tmp_path):
    """The watcher of the stack runs unseen: a landing of half a file would be heard by a student."""
    inbox = tmp_path / "inbox"
    write_tone(inbox / "100.wav", 200, seed=100)
    (inbox / ".101.wav.part").write_bytes(b"RIFF")
    (inbox / "notes.txt").write_text("no sound")
    code, out, err = answer("watch", inbox, "--pool", "field", "--settle", 0.05, "--every", 0.02, "--once")
    assert code == 0, err
    version = pools.head(home, "field")
    assert version.id in out and version.record.counts["added"] == 1
    assert [Path(path).name for path in Manifest.open(version).paths.values()] == ["100.wav"]


# -- which run a landing asks for


@pytest.mark.parametrize(
    ("ended", "wanted"),
    [
        ([], "0"), ([Failed], "1"), ([Crashed, Failed], "2"), ([Failed, Crashed, Failed], None),
        ([Completed], None), ([Running], None), ([Failed, Running], None), ([Failed, Cancelled], None),
    ],
)  # fmt: skip
def test_a_landing_is_tried_again_after_a_failure_and_not_for_ever(home, experiment, monkeypatch, ended, wanted):
    """One key for all tries, and a run that crashed is never made good; a new key each time, and it fails all night."""
    from clapcur.flows import reconcile

    class Server:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def read_flow_runs(self, flow_run_filter):
            asked.extend(flow_run_filter.idempotency_key.any_)
            return [FlowRun(flow_id=uuid4(), state=state()) for state in ended]

    asked = []
    monkeypatch.setattr(reconcile, "get_client", lambda sync_client: Server())
    assert reconcile.next_key(home, experiment) is None, "nothing has landed"
    version = grow(home, "field", manifest(home.store, "first", clips_table(["a", "b"])))
    stem = f"landing:{experiment.name}:{version.id}:"
    assert reconcile.next_key(home, experiment) == (wanted and stem + wanted)
    assert asked == [f"{stem}{attempt}" for attempt in range(3)]


# -- the whole way, with towers of next to nothing


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    """Run flows against a Prefect of this module's own."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    from clapcur.servers import heartbeat

    with prefect_test_harness(), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: heartbeat.EVERY_S}):
        yield


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    """Give an experiment whose pool is what landed as ``field``."""
    path = write_tones(tmp_path)
    rules = "on_landing: {min_new_clips: 2, max_wait_hours: 100, min_changed: 0, strategy: du, soft_labels: false}"
    text = path.read_text().replace("audio_threshold: {similarity: 0.7}", "audio_threshold: {similarity: -1}")
    path.write_text(f"{text}\n        pool: pool:field\n        {rules}\n")
    return experiment_from_file(path)


def drop(folder: Path, *seeds: int) -> IngestConfig:
    """Write new tones into a folder."""
    for seed in seeds:
        write_tone(folder / f"{seed}.wav", (200, 3000)[seed % 2], seed=seed)
    return IngestConfig(source=str(folder))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_landing_after_another(home, experiment, prefect, tmp_path):
    """Only what is new is embedded and scored, a repetition does nothing, and a forgotten clip is gone."""
    from clapcur.flows.forget import forget
    from clapcur.flows.land import land
    from clapcur.flows.plan import plan_recuration
    from clapcur.flows.recurate import recurate

    folder = tmp_path / "field"
    v1 = land(drop(folder, *range(100, 106)), "field")
    assert {step.what: (step.new, step.reused) for step in plan_recuration(experiment).steps}["embed pool"] == (6, 0)
    first = recurate(experiment)
    assert first.kind == "decision" and recurate(experiment) == first
    assert land(IngestConfig(source=str(folder)), "field") == v1

    v2 = land(drop(folder, 106), "field")
    assert recurate(experiment) == v2, "one new clip is too few"
    v3 = land(drop(folder, 107), "field")
    planned = plan_recuration(experiment)
    assert planned.due == "2 new clips (threshold: 2)"
    steps = {step.what: (step.new, step.reused) for step in planned.steps}
    assert steps["embed pool"] == steps["curate du"] == (2, 6)
    assert steps["train teacher"] == (0, experiment.teacher.num_examples), "the teacher is there already"
    second = recurate(experiment)
    assert second.kind == "decision" and second != first
    made = {kind: list(home.store.of_kind(kind)) for kind in ("embeddings", "improvement_set", "checkpoint")}
    of_v3 = [one.record for one in made["embeddings"] if one.record.inputs.get("manifest") == v3.id]
    assert [(one.counts["rows"], one.counts["embedded"]) for one in of_v3] == [(8, 2)]
    sets = made["improvement_set"]
    assert [one.record.inputs["pool"] for one in sets] == [v1.id, v3.id]
    assert sets[1].record.inputs["parent"] == sets[0].id
    card = json.loads((sets[1].path / "card.json").read_text())
    assert card["scored"] == {"new_clips": 2, "clips_taken_over": 6}

    gone = pd.read_parquet(sets[1].path / "pairs.parquet").clip_id.iloc[0]
    touched = forget([gone], "asked", [experiment])
    assert sets[1].id in {entry["id"] for entry in touched[0]["improvement_sets"]}
    v4 = pools.head(home, "field")
    assert clips_of(v4) == sorted(set(clips_of(v3)) - {gone})
    latest = list(home.store.of_kind("improvement_set"))[-1]
    assert latest.record.inputs["pool"] == v4.id
    assert gone not in set(pd.read_parquet(latest.path / "pairs.parquet").clip_id)
    assert land(IngestConfig(source=str(folder)), "field") == v4, "it is in the folder still and must not return"
    soundfile.write(folder / "again.flac", *soundfile.read(Manifest.open(v3).paths[gone], dtype="int16"))
    assert land(IngestConfig(source=str(folder)), "field") == v4, "nor in another container"


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (sa.exc.OperationalError("SELECT 1", {}, Exception("the server closed the connection")), 2),
        (ConnectionResetError("by peer"), 2),
        (sa.exc.OperationalError("INSERT", {}, Exception("database or disk is full")), 1),
        (DataError("no such file"), 1),
    ],
    ids=["database", "connection", "disk", "input"],
)
def test_a_task_is_tried_again_where_time_may_mend_it(prefect, monkeypatch, error, tries):
    """A database that restarts must not cost a night's run, and a wrong path must not be tried for minutes."""
    from prefect import flow

    from clapcur.tasks import tombstone

    called = []

    def run_stage(*arguments, **options):
        called.append(arguments)
        if len(called) == 1:
            raise error
        return "made"

    @flow
    def burying():
        task = tombstone.bury.task.with_options(retry_delay_seconds=0)
        return task(Tombstone(clip_id="a", pcm_sha256="b"))

    monkeypatch.setattr(tombstone, "run_stage", run_stage)
    if tries == 1:
        with pytest.raises(type(error)):
            burying()
    else:
        assert burying() == "made"
    assert len(called) == tries


def test_what_a_flow_only_plans_is_no_task_of_it(prefect):
    """A re-curation plans the captions of the newest version of a pool; its page would show work that is never done."""
    from prefect import flow
    from prefect.context import TaskRunContext

    from clapcur.store.dry_run import dry_run
    from clapcur.tasks.common import stage_task

    @stage_task("inside")
    def is_task() -> bool:
        return TaskRunContext.get() is not None

    @flow
    def planning() -> tuple[bool, bool]:
        with dry_run():
            planned = is_task()
        return planned, is_task()

    assert planning() == (False, True)


def test_every_task_is_tried_again_where_time_may_mend_it():
    """A new task without it would be the one that a night's run fails at."""
    from prefect import Task

    from clapcur.tasks.common import WAITS_S, may_pass

    modules = [import_module(f"tasks.{path.stem}") for path in (ROOT / "tasks").glob("*.py")]
    found = [getattr(one, "task", None) for module in modules for one in vars(module).values()]
    tasks = {one.name: one for one in found if isinstance(one, Task)}
    assert len(tasks) >= 13
    for task in tasks.values():
        assert task.retry_condition_fn is may_pass and task.retries == len(WAITS_S)
        assert task.retry_delay_seconds == list(WAITS_S)


def test_an_experiment_whose_pool_is_a_place_cannot_recurate(experiment):
    from dataclasses import replace

    from clapcur.flows.recurate import pool_name

    with pytest.raises(DataError, match="set `pool: pool:NAME` in the config"):
        pool_name(replace(experiment, pool=IngestConfig(source="recordings")))


@pytest.mark.parametrize("rules", [{"min_new_clips": 0}, {"min_changed": 2}, {"max_wait_hours": -1}])
def test_rules_without_a_meaning_are_refused(rules):
    with pytest.raises(ValueError, match=f"{next(iter(rules))} .* got"):
        LandingRules(**rules)
