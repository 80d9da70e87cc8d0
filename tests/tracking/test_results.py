"""The result of a comparison on MLflow's pages: what people see without opening a folder or typing a filter."""

import json
from collections.abc import Mapping

import chain
import pytest
from mlflow import MlflowClient

from clapcur.data import champions
from clapcur.data.report_table import Change, SeedScores
from clapcur.lineage.queries import find
from clapcur.stages.tombstone import STAGE as BURY
from clapcur.stages.tombstone import Tombstone
from clapcur.store import runner
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home
from clapcur.store.record import Outcome
from clapcur.testing import NOT_ON_RECORD, report_line, report_table
from clapcur.tracking import deliver, point_aliases, result_pages, sync
from clapcur.tracking.runs import connect

CLEARLY, HARDLY = Change(change=0.25, interval=(0.05, 0.4), num_seeds=1), Change(
    change=0.25, interval=(-0.05, 0.4), num_seeds=1
)  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Create MLflow's empty database once."""
    home = Home.open(tmp_path_factory.mktemp("template") / "home")
    connect(home)
    return home.root / "mlflow.db"


@pytest.fixture
def made(home, template) -> dict[str, Artifact]:
    (home.root / "mlflow.db").write_bytes(template.read_bytes())
    return chain.experiment(home)


@pytest.fixture
def client(home, made) -> MlflowClient:
    return MlflowClient(tracking_uri=home.mlflow_uri, registry_uri=home.mlflow_uri)


def report(home: Home, made: Mapping[str, Artifact], change: Change, number: int = 0) -> Artifact:
    """Make the report of the teacher and the student, with a change from the teacher."""

    def seeds(role: str, accuracy: float) -> list[SeedScores]:
        return [
            SeedScores(
                seed=0, accuracy=accuracy, interval=(accuracy - 0.125, accuracy + 0.125), transductive=accuracy,
                scores=made[f"{role}_scores"].id, checkpoint=made[role].id,
                improvement_set=made["set"].id if role == "student" else None, contamination=NOT_ON_RECORD,
            )
        ]  # fmt: skip

    table = report_table(
        [
            report_line("teacher", accuracy=0.5, by_seed=seeds("teacher", 0.5)),
            report_line("ADS+SL", accuracy=0.75, vs_teacher=change, by_seed=seeds("student", 0.75)),
        ]
    )

    def write(work):
        table.write(work.path)
        assert table.verdict is not None
        shown = f"**{table.verdict.text}**\n\n| | accuracy |\n|---|--:|\n| ADS+SL | 75.0 |\n"
        (work.path / "table.md").write_text(shown)
        (work.path / "report.html").write_text("<p>report</p>")
        return Outcome(facts={"verdict": table.verdict.text})

    roles = ("teacher", "student", "teacher_scores", "student_scores")
    tags = {"role": "report", "prefect.flow_run_url": "http://prefect:4200/runs/flow-run/5eed"}
    inputs = {role: made[role] for role in roles}
    return chain.make(home, "report", f"report {number}", write, inputs, tags=tags)


def parent(client):
    (run,) = client.search_runs(all_experiments(client), "tags.`clapcur.kind` = 'campaign'")
    return run


def all_experiments(client):
    return [experiment.experiment_id for experiment in client.search_experiments()]


def test_the_run_of_a_comparison_has_its_result(home, made, client):
    """The one run that people find first was empty: the verdict was in a child among fifty."""
    made_report = report(home, made, CLEARLY)
    assert deliver(home).waiting == 0
    run = parent(client)
    assert run.info.run_name == "compare esc50"
    assert run.data.metrics == {"accuracy/teacher": 0.5, "accuracy/ads_sl": 0.75, "vs_teacher/ads_sl": 0.25}
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"report.html", "table.md"}
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**ADS+SL is better than its teacher: +25.0 [+5.0, +40.0] points.")
    assert "| ADS+SL | 75.0 |" in note and "http://prefect:4200/runs/flow-run/5eed" in note
    experiment = run.info.experiment_id
    for link in (
        f"#/experiments/{experiment}/runs?viewStateShareKey=models",
        f"#/experiments/{experiment}/runs/{run.info.run_id}/artifacts/report.html",
        *(f"#/experiments/{experiment}/runs/{run_of(client, made[role])}" for role in ("teacher", "student", "set")),
    ):
        assert f"]({link})" in note
    assert run.data.tags["clapcur.report"] == made_report.id
    before = run.data
    assert sync(home, rebuild=True).waiting == 0
    assert parent(client).data.to_dictionary() == before.to_dictionary()
    assert len(client.get_metric_history(run.info.run_id, "accuracy/ads_sl")) == 1


def run_of(client, artifact):
    (run,) = client.search_runs(all_experiments(client), f"tags.`clapcur.artifact` = '{artifact.id}'")
    return run.info.run_id


def test_a_long_comparison_keeps_its_table_where_the_links_do_not_fit(home, made, client, monkeypatch):
    """MLflow refuses a tag of more than 8,000 characters: the run would have no description at all."""
    report(home, made, CLEARLY)
    deliver(home)
    whole = parent(client).data.tags["mlflow.note.content"]
    monkeypatch.setattr("clapcur.tracking.results.MAX_NOTE", len(whole) - 1)
    assert sync(home, rebuild=True).waiting == 0
    note = parent(client).data.tags["mlflow.note.content"]
    assert whole.startswith(note) and "| ADS+SL | 75.0 |" in note and "viewStateShareKey" in note
    assert "| row | seed |" in whole.removeprefix(note)


def test_one_run_per_model_and_set_is_seen_and_the_rest_is_out_of_the_way(home, made, client):
    """Of 52 runs of a comparison, 27 embedded something."""
    report(home, made, CLEARLY)
    deliver(home)
    seen = client.search_runs(all_experiments(client), "tags.`clapcur.detail` = 'false'")
    assert {run.info.run_name for run in seen} == {"compare esc50", "teacher seed 0", "ADS+SL seed 0", "ADS set seed 0"}
    hidden = client.search_runs(all_experiments(client), "tags.`clapcur.detail` = 'true'")
    names = {run.info.run_name for run in hidden}
    assert {"scores of teacher seed 0", "scores of ADS+SL seed 0", "embed evaluation"} <= names


def test_the_views_show_what_their_filter_finds(home, made, client):
    """A view that names a tag or a metric that no run has is an empty page."""
    report(home, made, CLEARLY)
    deliver(home)
    (experiment,) = [one for one in client.search_experiments() if one.name == "esc50"]
    assert "#/experiments/" in experiment.tags["mlflow.note.content"]
    found = {}
    for key, value in experiment.tags.items():
        if key.startswith("mlflow.sharedViewState."):
            state = json.loads(json.loads(value)["state"])
            order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"
            runs = client.search_runs([experiment.experiment_id], state["searchFilter"], order_by=[order])
            found[key.rpartition(".")[2]] = [run.info.run_name for run in runs]
            for column in state["selectedColumns"]:
                kind, name = column.replace("`", "").split(".", 1)
                assert kind == "attributes" or any(name in getattr(run.data, kind) for run in runs), column
    assert found["models"] == found["strategies"] == ["ADS+SL seed 0", "teacher seed 0"]
    assert len(found["overview"]) == 4


def test_what_people_wrote_about_an_experiment_stays(home, made, client):
    deliver(home)
    (experiment,) = [one for one in client.search_experiments() if one.name == "esc50"]
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "ours, since March")
    sync(home, rebuild=True)
    assert client.get_experiment(experiment.experiment_id).tags["mlflow.note.content"] == "ours, since March"


def test_the_student_that_won_is_registered_with_its_scores(home, made, client):
    """A model that is registered by hand is registered by few, and described by nobody."""
    made_report = report(home, made, CLEARLY)
    for tell in (deliver, lambda home: sync(home, rebuild=True)):
        tell(home)
        version = client.get_model_version_by_alias("clapcur-esc50", "recommended")
        assert version.tags["clapcur.artifact"] == made["student"].id
        assert (version.tags["accuracy"], version.tags["interval"]) == ("0.7500", "0.6250 to 0.8750")
        assert version.tags["vs_teacher"] == "+25.0 [+5.0, +40.0] points"
        assert version.tags["clapcur.report"] == made_report.id
        assert version.description.startswith("ADS+SL, seed 0: 75.0 % [62.5 %, 87.5 %]. ADS+SL is better")
        assert len(client.search_model_versions("name = 'clapcur-esc50'")) == 1
    told = client.get_registered_model("clapcur-esc50").description
    assert told.startswith("Students of esc50:") and "`clapcur-esc50@recommended`" in told and "75.0 %" in told
    assert find(home, "clapcur-esc50@recommended") == made["student"]


def test_a_teacher_that_was_not_beaten_leaves_nothing_registered(home, made, client):
    """Someone would deploy a student that is no better, because it has a version number."""
    report(home, made, HARDLY)
    assert deliver(home).waiting == 0
    assert client.search_registered_models() == []
    assert champions.standing(home.store, "esc50") == {}


def test_a_newer_comparison_without_a_winner_withdraws_the_recommendation(home, made, client):
    report(home, made, CLEARLY)
    deliver(home)
    report(home, made, HARDLY, number=1)
    deliver(home)
    model = client.get_registered_model("clapcur-esc50")
    assert model.aliases == {}
    assert "No version is recommended. ADS+SL is not better" in model.description


def test_a_clip_that_is_taken_down_withdraws_the_recommendation(home, made, client):
    """A model that learned from a forgotten clip would be deployed under the alias that everybody uses."""
    report(home, made, CLEARLY)
    deliver(home)
    stone = Tombstone(clip_id=chain.clip("pool-1"), pcm_sha256="", recording_id="", reason="asked")
    runner.run(BURY, stone, {}, home)
    point_aliases(home)
    model = client.get_registered_model("clapcur-esc50")
    assert model.aliases == {} and champions.standing(home.store, "esc50") == {}
    assert "was made from a clip that was taken down" in model.description


def test_where_a_gate_decides_the_champion_is_the_model_to_use(home, made, client):
    """Two aliases that both say "use me" are none."""
    report(home, made, CLEARLY)
    deliver(home)
    chain.decision(home, made["teacher"], made["teacher"], made["student"], promoted=True)
    deliver(home)
    model = client.get_registered_model("clapcur-esc50")
    assert set(model.aliases) == {"teacher", "champion", "challenger"}
    assert "`clapcur-esc50@champion`" in model.description and "promoted the challenger" in model.description


def test_no_url_is_made_up_where_no_server_is_known(home, made):
    """A link to a server that does not exist costs more trust than no link."""
    report(home, made, CLEARLY)
    deliver(home)
    assert result_pages(home) == {}
