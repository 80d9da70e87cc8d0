"""`clapcur up` with real servers on embedded files: a run through a worker, one that is cancelled, and nothing left."""

import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from browser import chromium
from running_servers import (
    experiment,  # noqa: F401  # a fixture
    outside_of_tests,
    prefect,  # noqa: F401  # a fixture
    start,
    up,  # noqa: F401  # a fixture
    wait_until,
)

from clapcur.testing import write_tone
from clapcur.tracking import result_pages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def settled(prefect):
    """Wait until no run is under way: one that an earlier take-down began would also work on what lands next."""

    def is_idle(state):
        later = state.state_details.scheduled_time
        return state.is_final() or (state.is_scheduled() and later > datetime.now(UTC) + timedelta(seconds=5))

    wait_until(lambda: all(is_idle(run.state) for run in prefect.read_flow_runs()), 240, "the end of all runs")


def test_a_deployment_goes_through_the_worker_and_leaves_its_pages(up, prefect):
    """From the form to the table: flow run, artifacts in the store, runs in MLflow, and links both ways."""
    from mlflow import MlflowClient
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    from clapcur.store.catalog import Catalog

    _, home = up
    run_id = start(prefect, "improve", config="tiny.yaml", strategy="ads", soft_labels=True, seed=1)
    wait_until(lambda: prefect.read_flow_run(run_id).state.is_final(), 120, "the end of the run")
    run = prefect.read_flow_run(run_id)
    assert run.state.is_completed(), run.state.message
    assert run.name == "improve tiny ads+sl seed 1"
    (report,) = Catalog.open(home).of_kind("report")
    assert run.state.message == f"report {report}"

    pages = prefect.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id])))
    published = {page.key: page.data for page in pages if page.key}
    assert set(published) == {"tiny-report", "tiny-curate-ads-seed-1", "tiny-report-mlflow"}
    assert "| ADS+SL |" in published["tiny-report"]
    assert published["tiny-report-mlflow"].endswith(f"({result_pages(home)['tiny']})")
    assert "Improvement-Set" in published["tiny-curate-ads-seed-1"]

    client = MlflowClient(home.servers()["MLFLOW_TRACKING_URI"])
    (student,) = [name for name in Catalog.open(home).of_kind("checkpoint") if "ads+sl" in label(home, name)]
    shown = client.get_run(Catalog.open(home).run_of(student))
    assert shown.info.status == "FINISHED"
    assert shown.info.run_id in published["tiny-report"]
    maker = prefect.read_flow_run(shown.data.tags["prefect.flow_run_id"])
    assert maker.name in (run.name, "compare-tiny")
    assert shown.data.tags["prefect.flow_run_url"].endswith(f"/runs/flow-run/{maker.id}")
    assert shown.info.artifact_uri.startswith(home.mlflow_artifacts.as_uri())  # found without the server too
    comparison = client.get_run(shown.data.tags["mlflow.parentRunId"])
    assert f"/runs/flow-run/{run_id})" in comparison.data.tags["mlflow.note.content"]


COLUMN = r"""[...document.querySelectorAll('.ag-row [col-id="NAME"]')]
    .sort((a, b) => a.closest('.ag-row').getAttribute('row-index') - b.closest('.ag-row').getAttribute('row-index'))
    .map(cell => cell.innerText.trim().split(/\s*\n\s*/).pop())"""  # a name follows the colour of its run


def test_one_link_opens_all_models_best_first_with_their_accuracy(up):
    """A page that must be filtered and sorted by hand first is one that nobody reads."""
    from mlflow import MlflowClient

    _, home = up
    mlflow, page = home.servers()["MLFLOW_TRACKING_URI"], result_pages(home)["tiny"]
    client = MlflowClient(mlflow)
    (experiment,) = [one.experiment_id for one in client.search_experiments() if one.name == "tiny"]
    models = client.search_runs([experiment], "tags.`clapcur.kind` = 'checkpoint'")
    accuracy = {run.info.run_name: run.data.metrics["accuracy"] for run in models}
    assert set(accuracy) == {"teacher seed 1", "continued seed 1", "ADS+SL seed 1"}
    names, shown = (COLUMN.replace("NAME", name) for name in ("attributes.`Run Name`", "metrics.`accuracy`"))
    with chromium("--window-size=1600,1000") as browser:
        browser.open(mlflow.replace("//", f"//{home.login}@") + "/health")  # as typed into the browser's own box
        browser.open(page)
        browser.wait(f"{names}.length === {len(models)} && {shown}.length === {len(models)}")
        found = list(zip(browser.run(names), map(float, browser.run(shown)), strict=True))
    assert dict(found) == pytest.approx(accuracy, abs=1e-3)
    assert [accuracy[name] for name, _ in found] == sorted(accuracy.values(), reverse=True)


def label(home, name):
    """Return what an artifact was called."""
    from clapcur.store.readable import label

    return label(home.store.find(name).record)


def test_cancelling_stops_a_training_at_once_and_leaves_no_half_artifact(up, prefect):
    """A training that runs on in the background holds the GPU, and nobody sees it."""
    from prefect.states import Cancelling

    _, home = up
    run_id = start(prefect, "train-teacher", config="long.yaml")
    (work,) = wait_until(lambda: unfinished(home), 90, "the beginning of the training")
    time.sleep(4)  # into the loop, which saves its state when it is told to end
    before = prefect.read_flow_run(run_id)
    assert before.state.is_running(), before.state.message
    prefect.set_flow_run_state(run_id, Cancelling())
    wait_until(lambda: prefect.read_flow_run(run_id).state.is_final(), 45, "the end of the run")
    after = prefect.read_flow_run(run_id)
    assert after.state.is_cancelled(), after.state.message
    assert unfinished(home) == [work]


def unfinished(home):
    """Return the folders of checkpoints that are being made."""
    return [folder for folder in home.root.glob("store/checkpoint/*") if not (folder / "record.json").exists()]


def test_a_mistake_in_the_form_is_told_in_one_line(up, prefect):
    """The page shows the state's message: a traceback's last line is no help there."""
    run_id = start(prefect, "curate", config="absent.yaml")
    wait_until(lambda: prefect.read_flow_run(run_id).state.is_final(), 60, "the end of the run")
    state = prefect.read_flow_run(run_id).state
    assert state.is_failed()
    assert "absent.yaml does not exist; create one with `clapcur init`" in state.message


def test_registering_again_keeps_what_people_switched(up, prefect):
    """An upgrade that switches the weekly re-curation off again is noticed weeks later."""
    from prefect.client.schemas.schedules import IntervalSchedule

    _, home = up

    def schedules():
        return {one.slug or "own": one for one in prefect.read_deployment_by_name("recurate/recurate").schedules}

    recurate = prefect.read_deployment_by_name("recurate/recurate")
    weekly = schedules()["clapcur-every-week"]
    assert not weekly.active
    prefect.update_deployment_schedule(recurate.id, weekly.id, active=True)
    daily = IntervalSchedule(interval=timedelta(days=1))
    prefect.create_deployment_schedules(recurate.id, [(daily, False)])
    (watch,) = prefect.read_automations_by_name("clapcur: runs whose process is gone")

    environment = (
        outside_of_tests() | home.servers() | {"CLAPCUR_MODEL_POOL": "cpu", "PREFECT_SERVER_ANALYTICS_ENABLED": "0"}
    )
    again = [sys.executable, "-m", "clapcur.flows.register"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=90, env=environment)
    assert done.returncode == 0, done.stderr
    after = schedules()
    assert {name: one.active for name, one in after.items()} == {"clapcur-every-week": True, "own": False}
    assert after["own"].schedule.interval == timedelta(days=1)
    assert [one.id for one in prefect.read_automations_by_name(watch.name)] == [watch.id]
    (reconcile,) = prefect.read_deployment_by_name("reconcile/reconcile").schedules
    assert reconcile.active
    prefect.update_deployment_schedule(recurate.id, after["clapcur-every-week"].id, active=False)


def test_one_landing_after_another_on_embedded_files(up, experiment):
    from killing import one_landing_after_another

    one_landing_after_another(up[1], experiment)


def test_a_landing_whose_event_was_lost_is_found_by_the_schedule(up, prefect, experiment, monkeypatch):
    """An event that is sent while the server is away is never sent again: without the reconciler nobody would know."""
    from killing import ended, runs_of, said

    _, home = up
    settled(prefect)
    known = {run.id for run in runs_of(prefect, "recurate")}
    for seed in (108, 109):
        write_tone(experiment / "field" / f"{seed}.wav", (200, 3000)[seed % 2], seed=seed)
    with monkeypatch.context() as away:
        away.setattr(
            "killing.outside_of_tests", lambda: outside_of_tests() | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
        )
        landed = said(home, "land", experiment / "field", "--pool", "field")
    assert landed["counts"]["added"] == 2
    found = ended(prefect, start(prefect, "reconcile"))
    (run,) = [run for run in runs_of(prefect, "recurate") if run.id not in known]
    # the schedule itself may have come first
    assert found.state.message in (f"started {run.id}", "nothing to do")
    ended(prefect, run.id)


def test_ctrl_c_leaves_nothing_running(up):
    """Run last: the servers of this module end here."""
    import psutil

    process, home = up
    second = subprocess.run([*process.args[:4], "--home", str(home.root)], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert home.servers()["MLFLOW_TRACKING_URI"] in second.stderr
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 4
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert json.dumps(said).count("http://127.0.0.1:") == 2
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    assert home.servers() == {} and not home.servers_file.exists()
