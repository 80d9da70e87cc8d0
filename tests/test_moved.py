"""A home that was moved or copied works where it is now: models, files of old runs, data sets, clips."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import chain
import pytest
from building import clips_table, manifest

from clapcur.data.manifest import Manifest
from clapcur.errors import DataError
from clapcur.models.clap import Clap
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, TextConfig
from clapcur.store.home import Home
from clapcur.tracking import deliver, sync
from clapcur.tracking.dataset_source import ArtifactSource
from clapcur.tracking.moved import readdress


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a home whose MLflow knows a teacher, a student that is champion, and their scores."""
    home = Home.open(tmp_path_factory.mktemp("first") / "home")
    made = chain.experiment(home)
    chain.decision(home, made["teacher"], made["teacher"], made["student"], promoted=True)
    inside = home.root / "sounds" / "a.wav"
    manifest(
        home.store, "inside", clips_table(["1" * 64, "2" * 64]), paths={"1" * 64: inside, "2" * 64: Path("/b.wav")}
    )
    assert deliver(home).waiting == 0
    return home.root


@pytest.fixture(params=["plain", "with space", "odd ? # % é"])
def moved(request: pytest.FixtureRequest, original: Path, tmp_path: Path) -> Home:
    """Give the home, copied to another place, and the first one gone; all of it was said to MLflow again."""
    shutil.copytree(original, tmp_path / request.param / "home")
    aside = original.rename(tmp_path / "aside")
    request.addfinalizer(lambda: aside.rename(original))
    home = Home.open(tmp_path / request.param / "home")
    assert sync(home).waiting == 0
    return home


def everything(path: Path) -> str:
    """Return all that a SQLite file holds, as text."""
    with closing(sqlite3.connect(path)) as db:
        return "\n".join(db.iterdump())


def test_nothing_names_the_old_place(original: Path, moved: Home) -> None:
    old = str(original)
    assert old not in everything(moved.mlflow_file) and old not in everything(moved.root / "catalog.db")
    texts = [path for path in moved.root.rglob("*") if path.is_file() and path.suffix in (".json", ".yaml", "")]
    assert [path for path in texts if old.encode() in path.read_bytes()] == []


def test_old_runs_models_and_data_sets_are_found(moved: Home) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=moved.mlflow_uri, registry_uri=moved.mlflow_uri)
    version = client.get_model_version_by_alias("clapcur-esc50", "champion")
    files = {file.path for file in client.list_artifacts(version.run_id)}
    assert "config.json" in files
    run = client.get_run(version.run_id)
    sources = [ArtifactSource.from_json(entry.dataset.source) for entry in run.inputs.dataset_inputs]
    assert sources and all(source.load().is_relative_to(moved.root) for source in sources)
    assert Path(run.data.tags["clapcur.uri"]).is_dir()


def test_the_clips_in_the_home_are_found_and_others_are_where_they_were(moved: Home) -> None:
    places = [Manifest.open(one).paths for one in moved.store.of_kind("manifest") if one.record["stage"] == "test"]
    assert {clip: str(path) for clip, path in places[0].items()} == {
        "1" * 64: str(moved.root / "sounds" / "a.wav"), "2" * 64: "/b.wav",
    }  # fmt: skip


def test_a_second_move_and_a_second_sync_change_what_they_must(moved: Home, tmp_path: Path) -> None:
    before = everything(moved.mlflow_file)
    sync(moved)
    assert everything(moved.mlflow_file) == before
    again = Home.open(moved.root.rename(tmp_path / "again"))
    assert sync(again).waiting == 0
    assert str(moved.root) not in everything(again.mlflow_file)


def test_a_link_to_the_home_is_no_other_place(original: Path, tmp_path: Path) -> None:
    """A container that mounts the home elsewhere must not rewrite what the host wrote."""
    (tmp_path / "link").symlink_to(original)
    before = everything(original / "mlflow.db")
    assert readdress(Home(tmp_path / "link")) == []
    assert everything(original / "mlflow.db") == before


def test_a_registered_model_answers_from_the_new_place(tmp_path: Path) -> None:
    """The version held the absolute place of the store: `models:/...` failed with a missing file."""
    import mlflow.pyfunc

    from clapcur.tracking.serving import _load_pyfunc

    home = Home.open(tmp_path / "first")
    front_end = FrontEndConfig(sample_rate=16_000, n_fft=512, hop_samples=320, num_mels=40, f_max=7800.0)
    config = ClapConfig(
        audio=AudioConfig(front_end=front_end, width="tiny"),
        text=TextConfig(hidden_size=32, num_layers=1, num_heads=2, vocab_size=60),
        embedding_dim=32,
        window_s=1.0,
    )
    model = Clap.create(config, ["a dog barks", "rain falls"])
    made = chain.make(home, "checkpoint", "teacher", lambda work: model.save(work.path))
    chain.decision(home, made, made, made, promoted=False)
    assert deliver(home).waiting == 0
    (address,) = home.mlflow_artifacts.glob("*/models/*/artifacts/data/*.json")
    here = Home.open(home.root.rename(tmp_path / "second"))
    with pytest.raises(DataError, match="`clapcur sync --home PLACE` writes the new place"):
        _load_pyfunc(str(here.root / address.relative_to(home.root)))
    sync(here)
    mlflow.set_tracking_uri(here.mlflow_uri)
    mlflow.set_registry_uri(here.mlflow_uri)
    try:
        assert mlflow.pyfunc.load_model("models:/clapcur-esc50@champion") is not None
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    assert json.loads((here.root / address.relative_to(home.root)).read_text())["store"] == str(here.root / "store")
