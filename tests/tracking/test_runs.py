"""MLflow as a picture of the store: complete, never doubled, and never in the way."""

import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import chain
import pyarrow.parquet as pq
import pytest
from chain import CAMPAIGN, FIRST_MS

from clapcur import tracking
from clapcur.errors import ArtifactError
from clapcur.store import readable
from clapcur.store.artifacts import Key, Stage
from clapcur.store.catalog import Campaign, Catalog
from clapcur.store.home import Home
from clapcur.store.record import Outcome
from clapcur.store.runner import run
from clapcur.tracking import deliver, live, sync
from clapcur.tracking.runs import MlflowPage, connect

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
FORK = multiprocessing.get_context("fork")
NUM_ARTIFACTS = 13  # of the whole experiment
NUM_SMALL = 6  # of a teacher and its scores


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Make a teacher, its scores and MLflow's empty database once; all may be copied to any place."""
    home = Home.open(tmp_path_factory.mktemp("template") / "home")
    connect(home)
    return home, chain.teacher_only(home)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory, template):
    """Give a whole experiment that MLflow was told of once, to look at only."""
    home = Home.open(tmp_path_factory.mktemp("delivered") / "home")
    shutil.copy(template[0].root / "mlflow.db", home.root)
    made = chain.experiment(home)
    assert deliver(home) == (NUM_ARTIFACTS, 0)
    return home, made, client_of(home)


@pytest.fixture
def made(home, template):
    """Give a teacher and its scores that MLflow knows nothing of, in the home of the test."""
    shutil.copytree(template[0].root, home.root, dirs_exist_ok=True)
    return {name: home.store.find(artifact.id) for name, artifact in template[1].items()}


@pytest.fixture
def empty(home, template):
    """Give a home without artifacts, with MLflow's empty database."""
    shutil.copy(template[0].root / "mlflow.db", home.root)
    return home


@pytest.fixture(autouse=True)
def rested():
    """Forget that MLflow did not answer an earlier test."""
    tracking._rests_until.clear()


def client_of(home):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=home.mlflow_uri, registry_uri=home.mlflow_uri)


@pytest.fixture
def client(home):
    return client_of(home)


def runs(client, filter_string="", order_by=None):
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(everywhere, filter_string, order_by=order_by))


def run_of(client, artifact):
    (run,) = runs(client, f"tags.`clapcur.artifact` = '{artifact.id}'")
    return run


def rows(home):
    """Return MLflow's own tables, without what may change when a thing is said again."""
    tables = {
        "runs": "run_uuid, name, status, start_time, end_time, experiment_id",
        "logged_models": "model_id, name, status, source_run_id",
        "experiments": "experiment_id, name",
    } | dict.fromkeys(
        (
            "params", "metrics", "latest_metrics", "tags", "datasets", "inputs", "input_tags", "logged_model_metrics",
            "logged_model_tags", "logged_model_params",
        ),
        "*",
    )  # fmt: skip
    with closing(sqlite3.connect(home.root / "mlflow.db")) as db:
        return {
            name: sorted(map(repr, db.execute(f"SELECT {columns} FROM {name}"))) for name, columns in tables.items()
        }


def in_child(function):
    child = FORK.Process(target=function)
    child.start()
    child.join(60)
    return child.exitcode


def test_an_experiment_is_one_tree_of_runs_one_for_each_artifact(delivered):
    """Runs without a parent, or in another experiment, are runs that nobody finds."""
    home, made, client = delivered
    (experiment,) = [found for found in client.search_experiments() if found.name != "Default"]
    assert experiment.name == "esc50"
    assert experiment.artifact_location.startswith(home.mlflow_artifacts.as_uri())
    (parent,) = runs(client, "tags.`mlflow.parentRunId` IS NULL")
    assert (parent.info.run_name, parent.data.tags["clapcur.campaign"]) == ("compare esc50", CAMPAIGN.key)
    children = runs(client, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(run.data.tags["clapcur.artifact"] for run in children) == sorted(found.id for found in home.store)
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    record = made["student_scores"].record
    assert parent.info.end_time == int(record.finished * 1000)
    child = run_of(client, made["student_scores"])
    assert (child.info.start_time, child.info.end_time) == (int(record.started * 1000), parent.info.end_time)


def test_the_run_of_a_student_holds_config_curve_tags_and_inputs(delivered):
    """Whatever is missing here is looked up by hand in folders, for every comparison."""
    _, made, client = delivered
    run = run_of(client, made["student"])
    assert run.info.run_name == "ADS+SL seed 0"
    assert run.data.params == {"name": "ads+sl", "beta": "0.5", "towers.text": "minilm"}
    tags = run.data.tags
    assert (tags["strategy"], tags["soft_labels"], tags["seed"], tags["role"]) == ("ads", "true", "0", "student")
    assert tags["clapcur.in.init"] == made["teacher"].id
    assert tags["clapcur.key"] == made["student"].record.key_sha256
    assert tags["clapcur.uri"] == made["student"].uri
    curve = [(point.step, point.timestamp, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]
    assert curve[:3] == [(1, FIRST_MS + 1000, 1.0), (2, FIRST_MS + 2000, 0.5), (3, FIRST_MS + 3000, 1 / 3)]
    assert len(curve) == 3  # the final loss is the last point, which is there
    assert run.data.metrics["count.seen.improvement_set"] == 24
    inputs = {found.dataset.digest: [tag.value for tag in found.tags] for found in run.inputs.dataset_inputs}
    assert inputs == {
        made["set"].record.key_sha256[:32]: ["improvement_set"],
        made["teacher_pairs"].record.key_sha256[:32]: ["teacher_pairs"],
        made["pool"].record.key_sha256[:32]: ["pool"],
        made["evaluation"].record.key_sha256[:32]: ["evaluation"],
    }


def test_the_improvement_set_is_found_by_its_digest_with_its_thresholds_card_and_pairs(delivered):
    """The page of a set must answer which students were trained on it."""
    _, made, client = delivered
    digest = made["set"].record.key_sha256[:32]
    found = runs(client, f"dataset.digest = '{digest}'")
    assert {run.data.tags["clapcur.artifact"] for run in found} == {made["set"].id, made["student"].id}
    run = run_of(client, made["set"])
    assert (run.data.tags["caption_threshold"], run.data.tags["threshold.audio"]) == ("0.7", "0.41")
    assert run.data.metrics == {"threshold.audio": 0.41, "count.pairs": 3}
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {"card.json", "similarity.png", "pairs.parquet"}
    copied = client.download_artifacts(run.info.run_id, "pairs.parquet")
    assert Path(copied).read_bytes() == (made["set"].path / "pairs.parquet").read_bytes()


def test_a_dataset_leads_back_to_its_folder_in_the_store(delivered):
    """A digest without an address proves that something existed, and no more."""
    from mlflow.data import get_source
    from mlflow.data.dataset_source_registry import register_dataset_source

    from clapcur.tracking.dataset_source import ArtifactSource

    register_dataset_source(ArtifactSource)
    _, made, client = delivered
    (dataset,) = [found for found in run_of(client, made["set"]).inputs.dataset_inputs if found.dataset.name == "ads"]
    source = get_source(dataset)
    assert (source.load(), source.sha256) == (made["set"].path, made["set"].record.key_sha256)
    assert (dataset.dataset.digest, dataset.dataset.source_type) == (source.sha256[:32], "clapcur")


def test_a_dataset_that_was_edited_leads_to_no_other_folder(delivered, tmp_path):
    """Whoever may write to MLflow would choose which folder a script reads."""
    from clapcur.tracking.dataset_source import ArtifactSource

    _, made, _ = delivered
    for folder in (made["teacher"].path, tmp_path, tmp_path / "gone"):
        with pytest.raises(ArtifactError, match="is not the artifact with key"):
            ArtifactSource(str(folder), made["set"].record.key_sha256).load()


def test_checkpoints_sort_by_the_accuracy_that_was_measured_later(delivered):
    """The score lives in another run than the model: without this, every comparison is a join by hand."""
    _, made, client = delivered
    found = runs(client, "tags.`clapcur.kind` = 'checkpoint'", order_by=["metrics.accuracy DESC"])
    assert [(run.data.tags["row"], run.data.metrics["accuracy"]) for run in found] == [
        ("ads+sl", 0.75),
        ("teacher", 0.5),
    ]
    assert found[0].data.metrics["transductive"] == 0.8125
    dataset = {"dataset_name": "esc50 evaluation", "dataset_digest": made["evaluation"].record.key_sha256[:32]}
    experiment = found[0].info.experiment_id
    better = client.search_logged_models([experiment], "metrics.accuracy > 0.6", datasets=[dataset])
    assert [model.tags["clapcur.artifact"] for model in better] == [made["student"].id]
    other = {"dataset_name": "esc50 evaluation", "dataset_digest": "0" * 32}
    assert client.search_logged_models([experiment], "metrics.accuracy > 0.1", datasets=[other]) == []


def test_a_checkpoint_is_a_model_that_can_be_registered_while_its_weights_stay(delivered, monkeypatch):
    """A copy of every checkpoint in MLflow doubles the disk; a model that cannot be registered has no alias."""
    home, made, client = delivered
    run = run_of(client, made["student"])
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (str(model.status), model.source_run_id, output.step) == ("READY", run.info.run_id, 3)
    assert (model.tags["clapcur.uri"], model.params["beta"]) == (made["student"].uri, "0.5")
    files = [file.path for file in client.list_artifacts(run.info.run_id)]
    assert files == ["config.json"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", home.mlflow_uri)  # the registry looks for models there and nowhere else
    client.create_registered_model("clap")
    version = client.create_model_version("clap", f"models:/{model.model_id}", model_id=model.model_id)
    client.set_registered_model_alias("clap", "champion", version.version)
    assert client.get_model_version_by_alias("clap", "champion").run_id in (run.info.run_id, None)


def test_the_aliases_of_the_registered_model_follow_the_decisions(home, made, client):
    """A champion that a replay of old decisions moved back would be deployed."""
    teacher = made["teacher"]
    first, second = (chain.checkpoint(home, {"init": teacher}, row, ["teacher_pairs"]) for row in ("ads", "ads+sl"))
    chain.decision(home, teacher, teacher, first, promoted=True)
    chain.decision(home, teacher, first, second, promoted=False)
    for tell in (deliver, sync, lambda home: sync(home, rebuild=True)):
        assert tell(home).waiting == 0
        held = {
            alias: client.get_model_version_by_alias("clapcur-esc50", alias).tags["clapcur.artifact"]
            for alias in ("teacher", "champion", "challenger")
        }
        assert held == {"teacher": teacher.id, "champion": first.id, "challenger": second.id}
        assert len(client.search_model_versions("name = 'clapcur-esc50'")) == 3
    version = client.get_model_version_by_alias("clapcur-esc50", "champion")
    assert version.run_id == run_of(client, first).info.run_id
    assert version.tags["strategy"] == "ads"


def test_telling_everything_again_changes_nothing(delivered):
    """A replay after a crash would show every point twice and every run as two."""
    home, _, _ = delivered
    before = rows(home)
    assert deliver(home) == (0, 0)
    assert sync(home) == (0, 0)
    assert rows(home) == before
    assert sync(home, rebuild=True) == (NUM_ARTIFACTS, 0)
    assert rows(home) == before


def shown(client):
    return {
        run.data.tags["clapcur.artifact"]: (run.data.metrics, run.data.params, run.info.end_time)
        for run in runs(client, "tags.`clapcur.artifact` != ''")
    }


def test_an_mlflow_and_a_catalog_that_lost_their_databases_are_drawn_again(home, made, template, client):
    """MLflow's own garbage collection orphans lineage: it must not be the only copy of it."""
    deliver(home)
    before = shown(client)
    assert len(before) == NUM_SMALL
    for file in home.root.glob("catalog.db*"):
        file.unlink()
    with closing(sqlite3.connect(template[0].root / "mlflow.db")) as new:
        with closing(sqlite3.connect(home.root / "mlflow.db")) as db:
            new.backup(db)
    assert sync(home, rebuild=True) == (NUM_SMALL, 0)
    assert shown(client) == before


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def mlflow_down(monkeypatch):
    """Name an MLflow server that does not answer."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return monkeypatch


def test_mlflow_being_down_loses_nothing_and_warns_once(home, made, mlflow_down, caplog):
    """A tracking server that restarts must not cost a training, nor a minute at every stage."""
    assert deliver(home) == (0, NUM_SMALL)
    began = time.monotonic()
    assert deliver(home) == (0, NUM_SMALL)
    assert time.monotonic() - began < 0.5  # it is left alone for a while
    assert sync(home) == (0, NUM_SMALL)
    warnings = [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and record.name == "clapcur"
    ]
    assert len(warnings) == 1
    assert "does not respond" in warnings[0] and "clapcur sync" in warnings[0]
    mlflow_down.delenv("MLFLOW_TRACKING_URI")
    assert sync(home) == (NUM_SMALL, 0)
    assert len(runs(client_of(home))) == NUM_SMALL + 1


@pytest.mark.parametrize(
    ("method", "call"),
    [("create_run", 1), ("create_run", 2), ("log_batch", 1), ("create_logged_model", 1), ("log_outputs", 1)],
)
def test_a_kill_while_mlflow_is_told_doubles_nothing(home, made, client, method, call):
    """The run exists and nobody wrote down its id: the next delivery must find it (the first is the campaign's)."""

    def first():
        from mlflow import MlflowClient

        original, calls = getattr(MlflowClient, method), []

        def die(*args, **more):
            calls.append(original(*args, **more))
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return calls[-1]

        setattr(MlflowClient, method, die)
        deliver(home)

    assert in_child(first) == -signal.SIGKILL
    assert deliver(home).waiting == 0
    assert len(runs(client)) == NUM_SMALL + 1
    with closing(sqlite3.connect(home.root / "mlflow.db")) as db:
        (models, outputs) = (
            db.execute("SELECT count(*) FROM logged_models").fetchone()[0],
            db.execute("SELECT count(*) FROM inputs WHERE source_type = 'RUN_OUTPUT'").fetchone()[0],
        )
        doubled = db.execute(
            "SELECT run_uuid, key, step, count(*) FROM metrics GROUP BY 1, 2, 3 HAVING count(*) > 1"
        ).fetchall()
    assert (models, outputs, doubled) == (1, 1, [])


def test_processes_that_deliver_at_once_double_nothing(home, made, client):
    """Every stage of a parallel flow delivers: two that both find no run would both make one."""
    children = [FORK.Process(target=deliver, args=(home,)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert (deliver(home).waiting, len(runs(client))) == (0, NUM_SMALL + 1)


def test_what_mlflow_does_not_take_does_not_hold_up_the_rest(home, made, client, caplog):
    """One broken file at the head of the queue would blind the whole project."""
    (made["teacher"].path / "history.jsonl").write_text("not JSON\n")
    assert deliver(home) == (NUM_SMALL - 2, 2)  # the checkpoint, and the scores that need its last step
    assert f"MLflow rejected {made['teacher'].id}" in caplog.text
    assert run_of(client, made["evaluation"]).info.status == "FINISHED"


def test_a_reused_artifact_is_found_from_the_later_campaign_too(home, made, client):
    """A repeated experiment with one new row would show one row."""
    record = made["evaluation"].record
    again = Campaign("esc50", "compare again", "d" * 64)
    stage = Stage(record.stage, record.version, "manifest", lambda *args: Outcome())
    assert run(stage, record.config, {}, home, campaign=again) == made["evaluation"]
    assert deliver(home) == (NUM_SMALL + 1, 0)
    (found,) = runs(client, f"tags.`clapcur.used_by.{'d' * 12}` = 'compare again'")
    assert found.data.tags["clapcur.artifact"] == made["evaluation"].id
    parents = runs(client, "tags.`mlflow.parentRunId` IS NULL")
    assert {parent.info.run_name for parent in parents} == {"compare esc50", "compare again"}
    assert {parent.info.status for parent in parents} == {"FINISHED"}


def test_a_large_set_is_shown_by_a_sample_and_its_address(empty, client, monkeypatch):
    """A million pairs in MLflow are slow to open; no pairs at all are no lineage."""
    pairs = [(f"pool-{number}", "a dog barks", 0.5) for number in range(3)]
    pool = chain.manifest(empty, "pool", clips=[name for name, _, _ in pairs])
    made = chain.improvement_set(empty, pairs, {"pool": pool})
    monkeypatch.setattr("clapcur.tracking.runs.MAX_UPLOAD", 500)
    monkeypatch.setattr("clapcur.tracking.runs.SAMPLE_ROWS", 2)
    deliver(empty)
    run = run_of(client, made)
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {"card.json", "similarity.png", "pairs_sample.parquet"}
    with pq.ParquetFile(client.download_artifacts(run.info.run_id, "pairs_sample.parquet")) as sample:
        with pq.ParquetFile(made.path / "pairs.parquet") as whole:
            assert sample.read().to_pylist() == whole.read().to_pylist()[:2]
    assert run.data.tags["clapcur.pairs"] == f"2 of 3 pairs; all are in {made.path / 'pairs.parquet'}"


def test_any_name_and_any_size_is_spelled_as_mlflow_takes_it(empty, client):
    """One class called "dog's bark" would keep a whole experiment out of MLflow."""
    config = {
        "classes": {"dog's bark": 1, "a//b": 2, "../up": 3, "/root": 4, "": 5, "..": 6, "Tür": 7},
        "many": {f"key-{number:03}": number for number in range(250)},
        "long": "x" * 10_000,
        "nothing": None,
    }

    def write(work):
        lines = ({"step": step, "time_ms": FIRST_MS, "loss": 0.5, "per class": {"a+b": 0.25}} for step in range(1200))
        (work.path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        metrics = {"nan": float("nan"), "inf": float("inf"), "text": "no number", "accuracy": 0.5}
        return Outcome(counts={"not ok?": 3}, metrics=metrics)

    made = chain.make(empty, "checkpoint", "odd", write, {}, config, {"note": "y" * 9000, "where?": "here"}, None)
    assert deliver(empty) == (1, 0)
    run = run_of(client, made)
    assert client.get_experiment(run.info.experiment_id).name == "clapcur"
    params = run.data.params
    assert {name.removeprefix("classes."): value for name, value in params.items() if name.startswith("classes.")} == {
        "dog_s bark": "1", "a/b": "2", "../up": "3", "/root": "4", "": "5", "..": "6", "Tür": "7",
    }  # fmt: skip
    assert sum(name.startswith("many.") for name in params) == 250
    assert (len(params["long"]), params["nothing"], len(run.data.tags["note"])) == (6000, "null", 8000)
    assert run.data.tags["where_"] == "here"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1200
    assert run.data.metrics["per class.a_b"] == 0.25
    assert math.isnan(run.data.metrics.pop("nan"))
    assert run.data.metrics.keys() == {"loss", "per class.a_b", "accuracy", "count.not ok_"}


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def training(home, steps):
    """Return the key of a checkpoint and a function that makes it, told whom to tell its steps."""
    inputs = {"teacher_pairs": chain.manifest(home, "pairs", pairs=[("dog-1", "a dog barks")])}
    config = {"name": "teacher", "beta": 0.5, "towers": {"text": "minilm"}}
    key = Stage("train", "1", "checkpoint", lambda *args: Outcome()).key(config, inputs)
    return key, lambda on_step: chain.checkpoint(home, inputs, "teacher", ["teacher_pairs"], steps, on_step)


def test_curves_are_seen_while_the_training_runs_and_not_twice_afterwards(empty, client, monkeypatch):
    """Live points have other times than the history's: both together would be two curves."""
    monkeypatch.setattr("clapcur.tracking.curves.FLUSH_S", 0.05)
    key, begin = training(empty, 5)
    seen = []

    def watched(on_step):
        def tell(step, metrics):
            on_step(step, metrics)
            if step == 3:
                wait_for(
                    lambda: any(
                        "loss" in run.data.metrics and run.data.metrics["loss"] == 1 / 3 for run in runs(client)
                    )
                )
                seen.extend(
                    (run.info.status, run.data.params) for run in runs(client, "tags.`clapcur.kind` = 'checkpoint'")
                )

        return tell

    with live(empty, key, CAMPAIGN, {"role": "teacher", "row": "teacher"}) as on_step:
        artifact = begin(watched(on_step))
    assert artifact.id == key.id
    assert seen == [("RUNNING", {"name": "teacher", "beta": "0.5", "towers.text": "minilm"})]
    deliver(empty)
    run = run_of(client, artifact)
    assert run.info.status == "FINISHED"
    curve = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(step, 1 / step) for step in range(1, 6)]


def test_what_the_machine_does_is_measured_while_a_training_runs(empty, client, monkeypatch):
    """A GPU that waits for the disk is seen in no curve of the loss."""
    monkeypatch.setattr("clapcur.tracking.curves.FLUSH_S", 0.05)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    key, begin = training(empty, 5)

    def measured():
        return any("system/cpu_utilization_percentage" in run.data.metrics for run in runs(client))

    with live(empty, key, CAMPAIGN) as on_step:
        artifact = begin(lambda step, metrics: on_step(step, metrics) or step < 5 or wait_for(measured))
    deliver(empty)
    run = run_of(client, artifact)
    assert 0 < run.data.metrics["system/system_memory_usage_percentage"] < 100
    before = len(client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage"))
    time.sleep(0.5)
    assert len(client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


@pytest.mark.parametrize(("error", "status"), [(ValueError("nan"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_training_that_failed_is_shown_so_and_goes_on_in_the_same_run(empty, client, error, status):
    """A dead training that says RUNNING is waited for over the weekend."""
    key, begin = training(empty, 5)

    def fail(on_step):
        def tell(step, metrics):
            on_step(step, metrics)
            if step == 3:
                raise error

        return tell

    with pytest.raises(type(error)), live(empty, key, CAMPAIGN) as on_step:
        begin(fail(on_step))
    (run,) = runs(client, "tags.`clapcur.kind` = 'checkpoint'")
    assert run.info.status == status

    def is_running():
        return client.get_run(run.info.run_id).info.status == "RUNNING"

    with live(empty, key, CAMPAIGN) as on_step:
        begin(lambda step, metrics: on_step(step, metrics) or step < 5 or wait_for(is_running))
    deliver(empty)
    assert [found.info.run_id for found in runs(client, "tags.`clapcur.kind` = 'checkpoint'")] == [run.info.run_id]
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4, 5]


def test_a_finished_artifact_is_not_opened_again(home, made, client):
    """Every hit of the cache would turn a finished run into one that is running for ever."""
    deliver(home)
    before = rows(home)
    record = made["teacher"].record
    key = Key("checkpoint", record.stage, record.version, record.config, record.inputs)
    assert key.id == made["teacher"].id
    with live(home, key, CAMPAIGN):
        pass
    assert rows(home) == before


def test_a_training_neither_fails_nor_waits_where_mlflow_is_down(empty, mlflow_down):
    """Curves are a comfort; a step that waits four minutes for each of them is not."""
    key, begin = training(empty, 5)
    began = time.monotonic()
    with live(empty, key, CAMPAIGN) as on_step:
        artifact = begin(on_step)
    assert time.monotonic() - began < 10
    assert artifact.id == key.id


def test_sending_points_never_holds_up_the_loop():
    """A tracking call inside the step makes the GPU wait."""
    entered, release, sent = threading.Event(), threading.Event(), []

    def slow(points):
        entered.set()
        release.wait(30)
        sent.extend(points)

    with tracking.Live(slow, lambda status: None) as on_step:
        entered.wait(30)
        began = time.monotonic()
        for step in range(1000):
            on_step(step, {"loss": 1.0})
        assert time.monotonic() - began < 1
        release.set()
    assert [step for step, _, _ in sent] == list(range(1000))


def test_processes_that_meet_a_fresh_mlflow_leave_it_whole(home):
    """MLflow breaks its own new SQLite file for good when two processes make its tables."""
    children = [FORK.Process(target=connect, args=(home,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(100)
    assert [child.exitcode for child in children] == [0, 0]
    assert MlflowPage(home, Catalog.open(home)).client.search_experiments()[0].name == "Default"


@pytest.mark.parametrize("kept", [b"", b'{"step": 1, "time_ms": 1000}\n{"step": 2, "ti', b"\xff\n[1]\n{}\n"])
def test_a_damaged_file_of_times_costs_the_times_alone(tmp_path, kept):
    """No digest covers the times: steps would vanish from the curve, or one bit would keep MLflow from its run."""
    losses = "".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in (1, 2, 3))
    (tmp_path / "history.jsonl").write_text(losses)
    (tmp_path / "times.jsonl").write_bytes(kept)
    found = list(readable.history(tmp_path))
    assert [(step, figures["loss"]) for step, _, figures in found] == [(1, 1), (2, 1 / 2), (3, 1 / 3)]
    written_ms = int(1000 * (tmp_path / "history.jsonl").stat().st_mtime)
    assert [when for _, when, _ in found] == [1000 if b"1000" in kept else written_ms, written_ms, written_ms]
