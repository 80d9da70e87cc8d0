"""A checkpoint served by MLflow's own command, from a CSV of paths to classes."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from building import write_tone
from chain import CAMPAIGN, make
from test_clap import CONFIG

from clapcur.errors import DataError
from clapcur.lineage import deliver
from clapcur.models.clap import Clap, load_model

CLASSES = ["low hum", "high whistle", "rain"]


@pytest.fixture
def checkpoint(home):
    """Make a checkpoint of fresh weights and scores of it, in the store and in MLflow."""
    model = Clap.create(CONFIG, captions=[f"the sound of {name}" for name in CLASSES], seed=3)

    def write(work):
        model.save(work.path)

    def scored(work):
        (work.path / "scores.json").write_text(json.dumps({"accuracy": 0.5}))
        return {"metrics": {"accuracy": 0.5}}

    made = make(home, "checkpoint", "student", write)
    protocol = {"class_names": CLASSES, "prompt": "this is {}"}
    make(home, "scores", "student", scored, {"checkpoint": made}, protocol)
    return made


@pytest.fixture
def files(tmp_path):
    return [str(write_tone(tmp_path / f"{hz}.wav", hz, seed=hz)) for hz in (200, 3000, 900)]


def loaded(checkpoint, folder):
    from clapcur.serving import _load_pyfunc, address

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


def test_what_cannot_be_answered_is_said(checkpoint, files, home, tmp_path):
    """A server that answers a KeyError sends people to its source."""
    with pytest.raises(DataError, match="expected a column 'path' of audio files, got the columns file"):
        loaded(checkpoint, tmp_path).predict(pd.DataFrame({"file": files}))
    never = make(home, "checkpoint", "unscored", lambda work: load_model(checkpoint.path).save(work.path))
    with pytest.raises(DataError, match="not scored yet.*class_names"):
        loaded(never, tmp_path).predict(pd.DataFrame({"path": files}))
    assert loaded(checkpoint, tmp_path).predict(pd.DataFrame({"path": []})).empty


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
