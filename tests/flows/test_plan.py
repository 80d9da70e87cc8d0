"""A plan is a dry run of the flow's own steps: it names what will be made, to the id, and makes nothing of it."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from clapcur.cli import app
from clapcur.errors import ArtifactError, ManifestError
from clapcur.experiments.config import experiment_from_file
from clapcur.flows.compare import compare
from clapcur.flows.improve import improve
from clapcur.flows.plan import Step, plan
from clapcur.store.artifacts import Stage
from clapcur.store.dry_run import dry_run
from clapcur.store.home import Home
from clapcur.store.record import Outcome
from clapcur.testing import rewrite_record, write_tone, write_tones

pytestmark = pytest.mark.usefixtures("leaves_no_trace")  # of the log that a command writes
READ_BY_A_PLAN = {"ingest", "merge", "adopt", "tagger", "pool"}


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    """Give an experiment over two seeds, whose students learn from everything that rows can ask for."""
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    path = write_tones(tmp_path)
    for index in range(12):
        write_tone(tmp_path / f"pool/{index}.wav", 300 + 300 * index, seed=50 + index)
    changes = {
        "pool": "pool", "seeds": [5, 6], "captioning": {}, "order": {"num_groups": 4},
        "audio_threshold": {"similarity": -1}, "rows": ["teacher", "continued", "ds+sl", "ads+sl", "tagcap"],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return path


def stages(home: Home) -> set[str]:
    """Return the stages that left a result."""
    return {artifact.record.stage for artifact in home.store}


def test_a_plan_makes_nothing_and_names_everything(config):
    planned = plan(experiment_from_file(config), compare.fn)
    found = {step.what: step for step in planned.steps}
    assert stages(Home.open()) == set()
    assert found["train teacher"] == Step("train teacher", "examples", 2 * 16, 0, None)
    assert found["train ads+sl"] == Step("train ads+sl", "examples", 2 * 8, 0, None)
    assert found["embed pool"] == Step("embed pool", "clips", 2 * 12, 0, None)
    assert found["curate ds"] == Step("curate ds", "clips", 2 * 16, 0, None), "of the pairs, not of the pool"
    assert found["embed generated"] == Step("embed generated", "captions", 2 * 12, 0, None), "one for each clip"
    assert found["zste ads+sl"] == Step("zste ads+sl", "results", 2, 0, None)
    assert planned.num_reused == 0 and planned.seconds == 0
    assert set(planned.unknown) == set(found)


def test_outside_of_it_nothing_planned_is_found(config):
    with dry_run() as run:
        compare.fn(experiment_from_file(config))
        store = Home.open().store
        artifact = next(one for one in run.asked.values() if one.kind == "checkpoint")
        assert store.find(artifact.id) == artifact and not artifact.is_made
    with pytest.raises(ArtifactError, match="found none"):
        store.find(artifact.id)
    assert not artifact.path.exists()


def test_what_is_wrong_is_told(config):
    """A plan reads tables and sounds, as the flow does before its first training."""
    table = config.parent / "labelled.csv"
    table.write_text(table.read_text().replace("whistle", "whisstle"))
    with pytest.raises(ManifestError, match="did you mean"):
        plan(experiment_from_file(config), compare.fn)


def test_the_time_is_that_of_the_last_run_by_size(config):
    home = Home.open()
    config_of = {"num_examples": 100, "order": None, "frozen_towers": []}
    for name, seconds in (("old", 900.0), ("last", 50.0)):
        stage = Stage("train", "1", "checkpoint", lambda *_: Outcome())
        work = home.store.open(stage.key({**config_of, "name": name}, {}))
        made = home.store.commit(work, Outcome(), 0.0)
        rewrite_record(made, started=made.record.finished - seconds)
    found = {step.what: step.seconds for step in plan(experiment_from_file(config), compare.fn).steps}
    assert found["train teacher"] == pytest.approx(2 * 16 * 0.5, rel=1e-3)
    assert found["curate ads"] is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_is_planned_is_made_to_the_id(config):
    """An id is the hash of everything behind it: a plan that took other steps, or others' order, has others."""
    experiment = experiment_from_file(config)
    with dry_run() as run:
        report = compare.fn(experiment)
    assert compare.fn(experiment).id == report.id
    home = Home.open()
    made = {artifact.id for artifact in home.store if artifact.record.stage not in READ_BY_A_PLAN}
    assert made == set(run.asked)
    again = plan(experiment, compare.fn)
    assert again.num_reused == again.num_results == len(made) and again.seconds == 0
    longer = dataclasses.replace(experiment, student=dataclasses.replace(experiment.student, num_examples=16))
    found = {step.what: step for step in plan(longer, compare.fn).steps}
    assert found["train teacher"].new == 0 and found["curate ads"].reused == 24
    assert found["train continued"].new == 32 and found["train continued"].seconds > 0

    result = CliRunner().invoke(app, ["plan", str(config), "--json"])
    said = json.loads(result.stdout)
    assert (said["results"], said["reused"], said["due"]) == (len(made), len(made), None)


def test_every_command_that_trains_can_be_tried(config):
    """--dry-run shows the rows of that command."""
    for command, rows in (("improve", {"teacher", "continued", "pl+sl"}), ("compare", {"ds+sl", "ads+sl", "tagcap"})):
        result = CliRunner().invoke(app, [command, str(config), "--dry-run", "--json"])
        assert result.exit_code == 0, result.output
        found = {step["what"].removeprefix("train ") for step in json.loads(result.stdout)["steps"]}
        assert rows <= found
    assert "tagcap" not in {step.what for step in plan(experiment_from_file(config), improve.fn).steps}
    assert stages(Home.open()) == set()
    shown = CliRunner().invoke(app, ["improve", str(config), "--dry-run"]).stdout
    assert "0 of " in shown and "no time estimate: no similar step has run" in shown
    assert "pl+sl" in shown


def test_a_plan_leaves_no_run(config):
    """A comparison that was only planned would stand in MLflow as one that has no result."""
    for command in (["plan"], ["compare", "--dry-run"]):
        assert CliRunner().invoke(app, [command[0], str(config), *command[1:]]).exit_code == 0
    home = Home.open()
    assert not stages(home), "a plan writes no artifact"
    assert not list(home.root.rglob("mlflow.db")) and not list(home.root.rglob("prefect.db"))
