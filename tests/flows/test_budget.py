"""--minutes: trainings as long as the time allows, from rates of earlier runs or of a short measurement."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from clapcur.errors import DataError
from clapcur.experiments.config import Experiment, experiment_from_file
from clapcur.flows import budget
from clapcur.flows.improve import improve
from clapcur.flows.plan import plan
from clapcur.store.artifacts import Stage
from clapcur.store.home import Home
from clapcur.store.record import Outcome
from clapcur.testing import rewrite_record, write_tone, write_tones


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    path = write_tones(tmp_path)
    for index in range(12):
        write_tone(tmp_path / f"pool/{index}.wav", 300 + 300 * index, seed=50 + index)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"pool": "pool"}))
    return path


def earlier_runs(example_s: float, item_s: float) -> None:
    """Leave records of a training and of embeddings with these rates, in seconds."""
    home = Home.open()
    configs = [("train", "checkpoint", {"num_examples": 100, "frozen_towers": []})]
    configs += [("embed", "embeddings", {"what": what}) for what in ("audio", "captions", "prompts")]
    for name, kind, settings in configs:
        stage = Stage(name, "1", kind, lambda *_: Outcome())
        made = home.store.commit(
            home.store.open(stage.key(settings, {})), Outcome(counts={"embedded": 100}), started=0.0
        )
        rate = example_s if name == "train" else item_s
        rewrite_record(made, started=made.record.finished - 100 * rate)


def longer(experiment: Experiment) -> Experiment:
    """Return the experiment with one more step of each training."""
    more = {
        name: dataclasses.replace(getattr(experiment, name), num_examples=getattr(experiment, name).num_examples + 8)
        for name in ("teacher", "student")
    }
    return dataclasses.replace(experiment, **more)


def test_the_trainings_take_the_time_that_the_rest_leaves(config: Path) -> None:
    """The ratio of teacher and student is kept, and one more step of each would be too long."""
    earlier_runs(example_s=0.5, item_s=0.25)
    chosen = budget.within(experiment_from_file(config), improve.fn, minutes=10)
    assert not chosen.is_measured
    made = plan(chosen.experiment, improve.fn)
    assert made.seconds <= chosen.seconds == pytest.approx(600)
    assert plan(longer(chosen.experiment), improve.fn).seconds > 600
    fixed_s = sum(step.seconds or 0.0 for step in made.steps if step.unit != "examples")
    share = (600 - fixed_s) / (0.5 * (24 + 16 + 16))  # one step more than the file says: 24 and, twice, 16 examples
    assert chosen.experiment.teacher.num_examples == 8 * int(share * 3)
    assert chosen.experiment.student.num_examples == 8 * int(share * 2)
    assert set(chosen.unknown) == {step.what for step in made.steps if step.seconds is None}
    given = yaml.safe_load(config.read_text())
    for name, values in yaml.safe_load(chosen.lines).items():
        given[name] |= values
    config.write_text(yaml.safe_dump(given))
    assert experiment_from_file(config) == chosen.experiment, "the lines that it prints are those of a config"


@pytest.mark.slow
def test_a_time_that_the_rest_already_takes_is_refused_by_its_name(config: Path) -> None:
    earlier_runs(example_s=0.5, item_s=10)
    with pytest.raises(
        DataError, match=r"--minutes 3 is too short: .* \(embed .* s\), and the trainings at least"
    ) as it:
        budget.within(experiment_from_file(config), improve.fn, minutes=3)
    (least,) = re.findall(r"give at least ([\d.]+)", str(it.value))
    enough = budget.within(experiment_from_file(config), improve.fn, minutes=float(least))
    assert enough.experiment.student.num_examples >= 8


@pytest.mark.slow
def test_a_new_home_measures_and_leaves_nothing(config: Path, answer: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = answer("improve", str(config), "--minutes", "5", "--dry-run", "--json")
    assert code == 0, err
    assert "going by a short measurement" in err
    (teacher,), (student,) = (
        re.findall(rf"^{name}: {{num_examples: (\d+)}}$", err, re.M) for name in ("teacher", "student")
    )
    assert int(teacher) > int(student) >= 8 and int(student) % 8 == 0
    assert f'"unit": "examples", "new": {teacher}' in out
    assert list(Home.open().store) == []
