"""A home that was moved or copied: every address in it leads into the place where it is now."""

import json
import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import chain
import numpy as np
import pandas as pd
import pytest
from tiny_clap import CONFIG

from clapcur.data.manifest import read_locations, write_locations
from clapcur.lineage import pools
from clapcur.models.clap import Clap, load_model
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home
from clapcur.testing import write_tone
from clapcur.tracking import deliver, sync
from clapcur.tracking.runs import connect

CLASSES = ["low hum", "high whistle"]
NEW_NAMES = ["new place", "what?", "50% Übung"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Make a home with a decided student of fresh weights, figures, a pool of sounds in the home, told to MLflow."""
    project = tmp_path_factory.mktemp("old place é")
    home = Home.open(project / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLAPCUR_HOME", str(home.root))
        made = chain.experiment(home)
        model = Clap.create(CONFIG, captions=CLASSES, seed=3)
        made["real"] = chain.make(home, "checkpoint", "real", lambda work: model.save(work.path))
        chain.scores(home, made["real"], made["evaluation"], "real", 0.9)
        chain.decision(home, made["teacher"], made["teacher"], made["real"], promoted=True)
        (project / "my.yaml").write_text("name: my\n")
        pools.follow(home, project / "my.yaml")
        deliver(home)
        for path in (home.root / "demo", project):
            write_tone(path / "a.wav", 500, seed=1)
        places = read_locations(made["pool"].path)
        places["path"] = [str(home.root / "demo/a.wav"), str(project / "a.wav"), "s3://bucket/a.wav"]
        write_locations(places, made["pool"].path)
    return project, {role: artifact.id for role, artifact in made.items()}


@pytest.fixture(params=NEW_NAMES)
def moved(original, tmp_path, request, monkeypatch):
    """Give a copy of the project in another place, as if it had been moved: the old one is out of reach."""
    project, made = original
    aside = project.with_name("aside")
    shutil.copytree(project, tmp_path / request.param / "deep")
    project.rename(aside)
    home = Home.open(tmp_path / request.param / "deep" / "home")
    monkeypatch.setenv("CLAPCUR_HOME", str(home.root))
    monkeypatch.setenv("CLAPCUR_AUDIO_FOLDERS", str(tmp_path))
    yield home, made
    aside.rename(project)


def test_a_registered_model_and_the_files_of_runs_are_found_after_sync(original, moved, tmp_path, monkeypatch):
    """Every registered version, and every link on a run's page, led into the old place."""
    import mlflow

    home, made = moved
    assert sync(home).waiting == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", home.mlflow_uri)
    mlflow.set_tracking_uri(home.mlflow_uri)
    mlflow.set_registry_uri(home.mlflow_uri)
    try:
        served = mlflow.pyfunc.load_model("models:/clapcur-esc50@champion")
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    sound = str(home.root.parent / "a.wav")
    told = served.predict(pd.DataFrame({"path": [sound], "class_names": ["; ".join(CLASSES)]}))
    alone = load_model(home.store.find(made["real"]).path).classify([sound], CLASSES, "the sound of {}")
    assert told["class"].tolist() == alone["class"].tolist() and np.allclose(told.similarity, alone.similarity)

    client = connect(home)
    run = Catalog.open(home).run_of(made["student_scores"])
    assert {file.path for file in client.list_artifacts(run)} >= {"confusion.png", "scores.json"}
    figure = Path(client.download_artifacts(run, "confusion.png"))
    assert figure.read_bytes() == b"\x89PNG confusion"
    sources = [one.dataset for one in client.get_run(Catalog.open(home).run_of(made["student"])).inputs.dataset_inputs]
    folders = {mlflow.data.get_source(one).load() for one in sources}
    assert {path.name for path in folders} >= {made["set"]} and all(path.is_relative_to(home.root) for path in folders)


def test_no_address_of_the_old_place_is_left(original, moved):
    """One that is left is found by the person whose run fails in half a year."""
    project, _ = original
    home, made = moved
    sync(home)
    old = [str(project), project.as_uri(), json.dumps(str(project))[1:-1]]
    with closing(sqlite3.connect(home.mlflow_file)) as db:
        dump = "\n".join(db.iterdump())
    with closing(sqlite3.connect(home.root / "catalog.db")) as db:
        dump += "\n".join(db.iterdump())
    assert [text for text in old if text in dump] == []
    for path in home.mlflow_artifacts.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(text.encode() in content for text in old), path
    locations = read_locations(home.store.find(made["pool"]).path).path.tolist()
    assert locations == [str(home.root / "demo/a.wav"), str(project / "a.wav"), "s3://bucket/a.wav"]
    assert pools.followed(home) == [home.root.parent / "my.yaml"]


def test_a_second_sync_has_nothing_to_rewrite(moved, caplog):
    home, _ = moved
    sync(home)
    assert "this home was in" in caplog.text
    caplog.clear()
    sync(home)
    assert [one.getMessage() for one in caplog.records if one.name.startswith("clapcur")] == []


def test_addresses_that_cannot_be_rewritten_are_no_success(moved, answer, monkeypatch):
    """Where nothing waited, `sync` exited with 0 though MLflow had not been spoken to."""
    from clapcur.tracking import moved as module

    home, _ = moved
    monkeypatch.setattr(module, "_move_models", fail)
    code, _, err = answer("sync")
    assert code == 1 and f"MLflow at {home.mlflow_uri} could not be updated" in err


def fail(*arguments):
    raise PermissionError(13, "no")


def test_commands_work_in_a_home_that_was_moved(moved, answer):
    home, made = moved
    for command in (
        ["trace", made["student"]], ["trace", "clapcur-esc50@champion"], ["trace", made["student"], "--pairs"],
        ["pairs", made["set"]], ["impact", chain.clip("pool-1")], ["verify", "--all"], ["gc"], ["sync"],
        ["sync", "--rebuild"], ["catalog", "rebuild"],
    ):  # fmt: skip
        code, _, err = answer(*command)
        assert code == 0, (command, err)


def test_a_copy_leads_to_itself_while_the_original_is_there(original, tmp_path, caplog):
    """A copy that is tried out would write into the home that it was copied from."""
    project, made = original
    shutil.copytree(project / "home", tmp_path / "copy")
    home = Home.open(tmp_path / "copy")
    before = (project / "home" / "mlflow.db").read_bytes()
    chain.checkpoint(home, {"teacher_pairs": home.store.find(made["teacher_pairs"])}, "du", ["teacher_pairs"])
    deliver(home)
    assert f"this home was in {project / 'home'} before" in caplog.text
    assert str(project) not in json.dumps([run.info.artifact_uri for run in runs_of(home)])
    assert (project / "home" / "mlflow.db").read_bytes() == before


def test_a_link_to_the_home_is_no_other_place(original, tmp_path, caplog):
    """A container that mounts the home elsewhere must not rewrite what the host wrote."""
    project, made = original
    (tmp_path / "link").symlink_to(project / "home")
    sync(Home.open(tmp_path / "link"))
    assert [one.getMessage() for one in caplog.records if one.name.startswith("clapcur")] == []


def test_another_home_that_keeps_its_runs_in_the_same_tables_stays_where_it_is(tmp_path, monkeypatch, caplog):
    """Two homes with one MLflow: each would take the other one's addresses for its own of before."""
    homes = [Home.open(tmp_path / name) for name in ("one", "two")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", homes[0].mlflow_database)
    for home in reversed(homes):
        chain.experiment(home)
        deliver(home)
    for home in homes:
        sync(home)
    said = [one for one in caplog.records if one.name.startswith("clapcur") and one.levelno >= logging.WARNING]
    assert [one.getMessage() for one in said] == []
    places = {one.info.artifact_uri.split("/mlflow-artifacts")[0] for one in runs_of(homes[0])}
    assert places == {home.root.as_uri() for home in homes[1:]}


def runs_of(home):
    client = connect(home)
    return client.search_runs([one.experiment_id for one in client.search_experiments()])


def test_an_experiment_is_followed_where_it_was_or_where_it_went_with_the_home(tmp_path):
    """A file of before names paths alone."""
    home = Home.open(tmp_path / "project" / "home")
    named = [tmp_path / "project" / "a.yaml", tmp_path / "far" / "b.yaml"]
    named[1].parent.mkdir()
    for path in named:
        path.write_text("")
        pools.follow(home, path)
    assert pools.followed(home) == sorted(named)
    (tmp_path / "project").rename(tmp_path / "moved")
    assert pools.followed(Home.open(tmp_path / "moved" / "home")) == sorted([tmp_path / "moved" / "a.yaml", named[1]])
    (tmp_path / "moved" / "home" / "followed.json").write_text(json.dumps([str(named[0]), str(named[1])]))
    assert pools.followed(Home.open(tmp_path / "moved" / "home")) == [named[1]]


def test_a_model_whose_home_is_gone_says_what_to_do(original, tmp_path, monkeypatch):
    """Where MLflow is a server its files stay as they are: the environment names the home."""
    from clapcur.errors import DataError
    from clapcur.tracking.serving import _load_pyfunc

    project, made = original
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"store": str(tmp_path / "gone/store"), "id": made["real"]}))
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"not found in .*gone/store or in .*other/store; .*clapcur sync"):
        _load_pyfunc(str(path))
    monkeypatch.setenv("CLAPCUR_HOME", str(project / "home"))
    monkeypatch.setenv("CLAPCUR_AUDIO_FOLDERS", str(tmp_path))
    assert _load_pyfunc(str(path)).predict(pd.DataFrame({"path": []})).empty
