"""Without an evaluation set everything is trained, nothing is measured, and everything that reports says so."""

import dataclasses
import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from clapcur.cli import app
from clapcur.config import signature
from clapcur.data.improvement_set import ImprovementSet
from clapcur.data.report_table import NOT_MEASURED, ReportTable
from clapcur.errors import DataError
from clapcur.experiments.config import experiment_from_file
from clapcur.flows import recurate as recuration
from clapcur.flows.compare import compare
from clapcur.flows.improve import improve
from clapcur.flows.plan import plan, plan_recuration
from clapcur.stages.ingest import IngestConfig
from clapcur.store.home import Home
from clapcur.testing import write_tone, write_tones

pytestmark = pytest.mark.usefixtures("leaves_no_trace")  # of the log that a command writes
KNOWN_SIGNATURE = "c8f539a9127fc236cc48c55db753b006fe9b0dca18bc6814e870fc3a858646d6"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an experiment with a pool and without an evaluation set."""
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    path = write_tones(tmp_path)
    for index in range(8):
        write_tone(tmp_path / f"pool/{index}.wav", (200, 3000)[index % 2], seed=50 + index)
    values = yaml.safe_load(path.read_text()) | {"pool": "pool", "evaluation": None}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_student_is_trained_and_nothing_says_that_it_is_better(config: Path) -> None:
    """An accuracy of 0, a best row or a recommended model would each look like a result."""
    result = CliRunner().invoke(app, ["improve", str(config), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["verdict"] == NOT_MEASURED and "clapcur label" in NOT_MEASURED
    home = Home.open()
    student = next(row for row in said["rows"] if row["strategy"] == "pl")
    assert [row["strategy"] for row in said["rows"]] == ["teacher", "continued", "pl"]
    assert all(row[name] is None for row in said["rows"] for name in ("accuracy", "interval", "transductive"))
    chosen = ImprovementSet.open(home.store.find(student["improvement_set"]))
    assert chosen.pairs(["clip_id"])["clip_id"].nunique() == 8

    (report,) = home.store.of_kind("report")
    table = ReportTable.open(report)
    assert table.verdict is None and table.best is None and not table.is_measured
    assert not list(home.store.of_kind("scores"))
    assert report.record.metrics == {} and report.record.facts["verdict"] == NOT_MEASURED
    assert list(pd.read_csv(report.path / "table.csv").columns) == ["name", "strategy", "soft_labels", "num_seeds"]
    page, markdown = (report.path / "report.html").read_text(), (report.path / "table.md").read_text()
    for text in (page.replace("&#34;", '"'), markdown):
        assert "nothing was measured" in text and student["checkpoint"] in text
        assert "accuracy" not in text and "transductive" not in text
    assert sorted(path.name for path in report.path.glob("*.png")) == []

    shown = CliRunner().invoke(app, ["improve", str(config)]).stdout
    assert "nothing was measured" in " ".join(shown.split())
    assert "Model to use" not in shown and "accuracy" not in shown and student["checkpoint"] in shown

    client = mlflow.MlflowClient(home.mlflow_uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`clapcur.artifact` = '{report.id}'")
    assert run.data.tags["mlflow.note.content"] == NOT_MEASURED
    assert not [name for name in run.data.metrics if "accuracy" in name]

    again = CliRunner().invoke(app, ["report", report.id]).stdout
    assert "nothing was measured" in " ".join(again.split())


def test_the_paths_are_enough(config: Path) -> None:
    """`--evaluation` can be left out; the plan has no evaluation and no scores, and says so."""
    folder = config.parent
    result = CliRunner().invoke(
        app,
        ["improve", "--pairs", str(folder / "pairs.csv"), "--pool", str(folder / "pool"), "--classes",
         str(folder / "classes.txt"), "--dry-run", "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    steps = {step["what"] for step in json.loads(result.stdout.splitlines()[-1])["steps"]}
    assert {"train teacher", "train pl+sl", "embed pool"} <= steps
    assert not [step for step in steps if "evaluat" in step]


def test_left_out_and_null_are_the_same(config: Path) -> None:
    values = yaml.safe_load(config.read_text())
    given = experiment_from_file(config)
    config.write_text(yaml.safe_dump({name: value for name, value in values.items() if name != "evaluation"}))
    assert experiment_from_file(config) == given and given.evaluation is None


def test_an_experiment_with_an_evaluation_set_keeps_its_id(config: Path) -> None:
    """Computed before the field became optional; MLflow finds the run of a campaign by it."""
    places = {"pairs": "pairs.csv", "pool": "pool", "evaluation": "labelled.csv"}
    sources = {name: IngestConfig(source=place) for name, place in places.items()}
    assert signature(dataclasses.replace(experiment_from_file(config), **sources)) == KNOWN_SIGNATURE


@pytest.mark.parametrize("flow", [compare, improve])
def test_every_flow_plans_without_it(config: Path, flow) -> None:
    steps = {step.what for step in plan(experiment_from_file(config), flow.fn).steps}
    assert "report" in " ".join(steps) and not [step for step in steps if "evaluat" in step]


def test_a_champion_needs_an_evaluation_set(config: Path) -> None:
    """A gate without scores would either fail late, after the training, or promote anything."""
    values = yaml.safe_load(config.read_text()) | {"pool": "pool:field"}
    config.write_text(yaml.safe_dump(values))
    experiment = experiment_from_file(config)
    for call in (plan_recuration, lambda one: recuration.bring_up_to_date(one, force=True)):
        with pytest.raises(DataError, match=r"tones has no evaluation set, but a champion is chosen by its accuracy"):
            call(experiment)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"order": {"num_groups": 4}}, "order is scored next to accuracy: give `evaluation`"),
        (
            {"student": {"num_examples": 8, "batch_size": 8, "selection": "reference"}},
            "selection: reference .*: give `evaluation`",
        ),
    ],
)
def test_what_needs_labels_asks_for_them(config: Path, change: dict, said: str) -> None:
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        experiment_from_file(config)
