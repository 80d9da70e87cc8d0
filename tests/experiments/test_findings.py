"""What looks wrong with the inputs is told before anything is trained, each with its count, and nothing else is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from clapcur.cli import app
from clapcur.experiments.config import experiment_from_file
from clapcur.flows.compare import compare
from clapcur.flows.plan import plan
from clapcur.store.home import Home
from clapcur.testing import write_tone, write_tones

pytestmark = pytest.mark.usefixtures("leaves_no_trace")  # of the log that a command writes
USUAL = {"few_pairs": 16}  # of the small experiments here
Change = Callable[[Path], None]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    path = write_tones(tmp_path)
    for index in range(12):
        write_tone(tmp_path / f"pool/{index}.wav", 300 + 300 * index, seed=50 + index)
    values = yaml.safe_load(path.read_text()) | {"pool": "pool", "rows": ["teacher", "ads"]}
    path.write_text(yaml.safe_dump(values))
    return path


def found(config: Path) -> dict[str, int]:
    return {one.name: one.count for one in plan(experiment_from_file(config), compare.fn).findings}


def test_nothing_is_said_of_inputs_without_a_fault(config: Path) -> None:
    """A list that always says something is not read."""
    assert found(config) == USUAL


def append(folder: Path, table: str, *lines: str) -> None:
    (folder / table).write_text("\n".join([(folder / table).read_text().rstrip(), *lines]))


def copy(folder: Path, source: str, target: str) -> None:
    shutil.copy(folder / source, folder / target)


def set_caption(folder: Path) -> None:
    text = (folder / "pairs.csv").read_text()
    (folder / "pairs.csv").write_text(text.replace("the sound of a low hum", "audio", 7))
    text = (folder / "pairs.csv").read_text()
    (folder / "pairs.csv").write_text(text.replace("the sound of a high whistle", "audio", 7))


def low_rate(folder: Path) -> None:
    for name in ("a", "b"):
        write_tone(folder / f"pool/{name}.wav", 500, seed=ord(name), sample_rate=8000)


def uneven(folder: Path) -> None:
    for index in range(20):
        write_tone(folder / f"more/{index}.wav", 250, seed=900 + index)
    append(folder, "labelled.csv", *(f"more/{index}.wav,low hum" for index in range(20)))


def setting(**values: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / "tones.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: copy(folder, "pool/1.wav", "pool/again.wav"), {"duplicates_in_pool": 1}),
        (lambda folder: copy(folder, "pairs/3.wav", "pool/pair.wav"), {"pairs_in_pool": 1}),
        (lambda folder: copy(folder, "2.wav", "pool/test.wav"), {"evaluation_in_pool": 1}),
        (lambda folder: append(folder, "pairs.csv", "2.wav,the sound of a low hum,r"),
         {"evaluation_in_pairs": 1, "few_pairs": 17, "equal_captions": 9}),
        (lambda folder: append(folder, "classes.txt", "dog barks", "low"),
         {"classes_without_caption": 1, "classes_without_clip": 2}),
        (set_caption, {"equal_captions": 14}),
        (low_rate, {"low_sample_rate_in_pool": 2}),
        (uneven, {"uneven_evaluation": 2}),
        (setting(audio_threshold={"count": 20}), {"small_pool": 12}),
    ],
)  # fmt: skip
def test_each_fault_is_told_with_its_count(config: Path, change: Change, expected: dict[str, int]) -> None:
    change(config.parent)
    assert found(config) == USUAL | expected


def test_the_command_tells_them_and_leaves_nothing_behind(config: Path) -> None:
    """A plan that fills the store and MLflow is a run, and what it leaves looks like one."""
    copy(config.parent, "pairs/3.wav", "pool/pair.wav")
    result = CliRunner().invoke(app, ["plan", str(config)])
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "- 1 clips of the pool are also in the pairs: a student learns nothing new" in text
    assert "MiB are free" in text or "GiB are free" in text
    tried = CliRunner().invoke(app, ["improve", str(config), "--dry-run", "--json"])
    said = json.loads(tried.stdout)
    assert [one["name"] for one in said["findings"]] == ["pairs_in_pool", "few_pairs"]
    home = Home.open()
    assert list(home.store) == [] and not home.mlflow_file.exists()
    assert [path.name for path in home.root.iterdir() if path.name.startswith("plan-")] == []


def test_the_size_is_that_of_the_weights_and_of_the_embeddings(config: Path) -> None:
    """Counted by hand, with an upper limit for names and metadata."""
    setting(audio_threshold={"similarity": -1})(config.parent)
    experiment = experiment_from_file(config)
    before = plan(experiment, compare.fn)
    compare.fn(experiment)
    home = Home.open()
    kept = [
        file.stat().st_size for kind in ("checkpoint", "embeddings") for one in home.store.of_kind(kind)
        for file in one.path.rglob("*") if file.suffix in (".safetensors", ".npy", ".f32", ".bin")
    ]  # fmt: skip
    assert before.disk.written == pytest.approx(sum(kept), rel=0.1)
    assert before.disk.fits and before.disk.meanwhile > 0
    assert plan(experiment, compare.fn).disk.written == 0
