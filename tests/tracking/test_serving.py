"""A checkpoint served by MLflow's own command, from a CSV of paths to classes."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from chain import CAMPAIGN, make
from tiny_clap import CONFIG

from clapcur.audio.access import open_regular
from clapcur.errors import DataError, printable
from clapcur.models.clap import Clap, load_model
from clapcur.store.record import Outcome
from clapcur.testing import write_tone
from clapcur.tracking import deliver

CLASSES = ["low hum", "high whistle", "rain"]


@pytest.fixture
def checkpoint(home):
    """Make a checkpoint of fresh weights and scores of it, in the store and in MLflow."""
    model = Clap.create(CONFIG, captions=[f"the sound of {name}" for name in CLASSES], seed=3)

    def write(work):
        model.save(work.path)

    def scored(work):
        (work.path / "scores.json").write_text(json.dumps({"accuracy": 0.5}))
        return Outcome(metrics={"accuracy": 0.5})

    made = make(home, "checkpoint", "student", write)
    protocol = {"class_names": CLASSES, "prompt": "this is {}"}
    make(home, "scores", "student", scored, {"checkpoint": made}, protocol)
    return made


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAPCUR_AUDIO_FOLDERS", str(tmp_path))
    return [str(write_tone(tmp_path / f"{hz}.wav", hz, seed=hz)) for hz in (200, 3000, 900)]


def loaded(checkpoint, folder):
    from clapcur.tracking.serving import _load_pyfunc, address

    path = folder / "checkpoint.json"
    path.write_text(address(checkpoint))
    return _load_pyfunc(str(path))


def test_a_row_gets_its_own_classes_or_those_of_the_last_score(checkpoint, files, tmp_path):
    """Rows that are answered group by group must come back in the order in which they were asked."""
    frame = pd.DataFrame({"path": files, "class_names": ["rain; siren", None, "siren ;rain"]}, index=[7, 3, 5])
    told = loaded(checkpoint, tmp_path).predict(frame)
    assert told.index.tolist() == [7, 3, 5] and told.path.tolist() == files
    model = load_model(checkpoint.path)
    for place, classes, prompt in ((0, ["rain", "siren"], "this is {}"), (1, CLASSES, "this is {}")):
        alone = model.classify([files[place]], classes, prompt).iloc[0]
        assert told.iloc[place]["class"] == alone["class"]
        assert np.allclose(
            told.iloc[place][["similarity", "probability"]].astype(float),
            alone[["similarity", "probability"]].astype(float), atol=1e-5,
        )  # fmt: skip
    asked = loaded(checkpoint, tmp_path).predict(frame[["path"]], {"class_names": ["siren", "bell"], "prompt": "a {}"})
    assert set(asked["class"]) <= {"siren", "bell"}
    one_text = loaded(checkpoint, tmp_path).predict(frame[["path"]], {"class_names": "siren; bell", "prompt": "a {}"})
    pd.testing.assert_frame_equal(one_text, asked)


def test_a_model_that_was_registered_before_the_module_moved_is_loaded():
    """The name of the loader is written into every registered model: without the old one, none of them loads."""
    import importlib

    from clapcur.tracking import serving

    assert importlib.import_module("clapcur.serving")._load_pyfunc is serving._load_pyfunc


def test_what_cannot_be_answered_is_said(checkpoint, files, home, tmp_path):
    """A server that answers a KeyError sends people to its source."""
    with pytest.raises(DataError, match="expected a column 'path' of audio files, got the columns file"):
        loaded(checkpoint, tmp_path).predict(pd.DataFrame({"file": files}))
    never = make(home, "checkpoint", "unscored", lambda work: load_model(checkpoint.path).save(work.path))
    with pytest.raises(DataError, match="not scored yet.*class_names"):
        loaded(never, tmp_path).predict(pd.DataFrame({"path": files}))
    assert loaded(checkpoint, tmp_path).predict(pd.DataFrame({"path": []})).empty


def answer_to(model, path):
    """Return what a served model says of a file that it does not read, without the file's name."""
    with pytest.raises(DataError) as caught:
        model.predict(pd.DataFrame({"path": [str(path)]}))
    return str(caught.value).replace(printable(str(path)), "")


def test_a_served_model_reads_nothing_outside_its_folders_and_does_not_tell_what_is_there(
    checkpoint, files, tmp_path, monkeypatch
):
    """Whoever may ask it could look through the server's disk, and through the network that the server is in."""
    model, served, outside = loaded(checkpoint, tmp_path), tmp_path / "served", tmp_path / "served2"
    for folder in (served, outside):
        folder.mkdir()
        write_tone(folder / "a.wav", 500, seed=1)
    monkeypatch.setenv("CLAPCUR_AUDIO_FOLDERS", f"{served}:{tmp_path}/elsewhere")
    (served / "in.wav").symlink_to("a.wav")
    (served / "out.wav").symlink_to(outside / "a.wav")
    (served / "folder").symlink_to(outside)
    (served / "device.wav").symlink_to("/dev/zero")
    os.mkfifo(served / "pipe.wav")
    for path in (served / "a.wav", served / "in.wav"):
        assert model.predict(pd.DataFrame({"path": [str(path)]})).path.tolist() == [str(path)]
    absent = answer_to(model, served / "gone.wav")
    assert "missing" in absent
    refused = [
        outside / "a.wav", outside / "gone.wav", served / "out.wav", served / "folder" / "a.wav", served / "device.wav",
        served / "pipe.wav", served, served / ".." / "served2" / "a.wav", "/proc/self/environ", "/dev/stdin",
        "/etc/passwd", "http://127.0.0.1:9/a.wav", "s3://bucket/a.wav", "memory://a.wav", "reference://a.wav",
        f"zip://a.wav::file://{outside}/a.zip", f"{outside}/a.tar#bytes=0-9&name=a.wav",
        f"{outside}/a.parquet#row=0&column=audio", "http://127.0.0.1:9/a.parquet#row=0&column=audio",
        served / "a.wav" / "b.wav", served / ("x" * 300),
    ]  # fmt: skip
    assert {path: answer_to(model, path) for path in refused} == dict.fromkeys(refused, absent)


def test_a_link_that_changes_after_it_was_looked_at_leads_nowhere(tmp_path, monkeypatch):
    """A check of the path alone is true for a moment, and the file is opened in the next."""
    (tmp_path / "served").mkdir()
    write_tone(tmp_path / "secret.wav", 500, seed=1)
    (tmp_path / "served" / "a.wav").symlink_to(tmp_path / "secret.wav")
    monkeypatch.setenv("CLAPCUR_AUDIO_FOLDERS", str(tmp_path / "served"))
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: path if str(path).endswith("a.wav") else real(path))
    with pytest.raises(FileNotFoundError):
        open_regular(str(tmp_path / "served" / "a.wav"))


@pytest.mark.parametrize(("value", "message"), [(None, "set CLAPCUR_AUDIO_FOLDERS"), ("pool", "absolute folders")])
def test_a_served_model_without_folders_reads_nothing(checkpoint, files, tmp_path, monkeypatch, value, message):
    if value is None:
        monkeypatch.delenv("CLAPCUR_AUDIO_FOLDERS")
    else:
        monkeypatch.setenv("CLAPCUR_AUDIO_FOLDERS", value)
    with pytest.raises(DataError, match=message):
        loaded(checkpoint, tmp_path).predict(pd.DataFrame({"path": files}))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_mlflows_own_command_classifies_a_csv_of_paths(checkpoint, files, home, tmp_path):
    """A model that only its own Python can load is no model to MLflow."""
    from mlflow import MlflowClient

    deliver(home)
    client = MlflowClient(home.mlflow_uri)
    (model,) = client.search_logged_models([client.get_experiment_by_name(CAMPAIGN.experiment).experiment_id])
    pd.DataFrame({"path": files}).to_csv(tmp_path / "clips.csv", index=False)
    environment = dict(os.environ) | home.environment() | {"MLFLOW_TRACKING_URI": home.mlflow_uri}
    command = ["models", "predict", "-m", f"models:/{model.model_id}", "-i", "clips.csv", "-t", "csv", "-o", "out.json"]
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", *command, "--env-manager", "local"],
        cwd=tmp_path, capture_output=True, text=True, timeout=170, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = pd.DataFrame(json.loads((tmp_path / "out.json").read_text())["predictions"])
    alone = load_model(checkpoint.path).classify(files, CLASSES, "this is {}")
    assert told.path.tolist() == files
    assert told["class"].tolist() == alone["class"].tolist()
    assert np.allclose(told.probability.astype(float), alone.probability.astype(float), atol=1e-5)
