"""ls, show and classify: what there is, and what a model says of files."""

import csv
import io
import json
import time

import chain
import pytest
from tiny_clap import CONFIG

from clapcur.cli.looking import age
from clapcur.lineage.collection import size_of
from clapcur.models.clap import Clap
from clapcur.testing import write_tone

CLASSES = ["low hum", "high whistle", "rain"]


@pytest.fixture
def made(home):
    return chain.experiment(home)


@pytest.fixture
def model(tmp_path):
    Clap.create(CONFIG, captions=CLASSES, seed=1).eval().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sounds(tmp_path):
    for name, frequency_hz in (("b", 300), ("a", 4000), ("deep/c", 900)):
        write_tone(tmp_path / f"sounds/{name}.wav", frequency_hz, seed=1)
    (tmp_path / "sounds/notes.txt").write_text("no sound")
    return tmp_path / "sounds"


def test_ls_lists_every_artifact_with_its_size_the_newest_first(answer, home, made):
    code, out, err = answer("ls", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert {row["id"] for row in rows} == {one.id for one in home.store}
    assert [row["finished"] for row in rows] == sorted((row["finished"] for row in rows), reverse=True)
    for row in rows:
        assert row["bytes"] == size_of(home.store.find(row["id"]).path) > 0
    only = json.loads(answer("ls", "checkpoints", "--json")[1])
    assert {row["id"] for row in only} == {one.id for one in home.store.of_kind("checkpoint")}
    code, out, _ = answer("ls", "improvement-set")
    assert code == 0 and made["set"].id in out
    code, out, _ = answer("ls", "--limit", 1)
    assert code == 0 and f"{len(rows) - 1} older artifacts are not shown; use --limit {len(rows)} to show all" in out


def test_ls_of_a_kind_that_is_not_there_names_those_that_are(answer, made):
    code, _, err = answer("ls", "sonnets")
    assert code == 1 and "this home has no artifact of kind 'sonnet'; it has" in err and "checkpoint" in err


@pytest.mark.parametrize(
    ("seconds", "said"), [(3, "3 s"), (150, "2 min"), (7300, "2 h"), (200_000, "2 d"), (-5, "0 s")]
)
def test_ages_are_in_their_largest_unit(seconds, said):
    assert age(time.time() - seconds) == said


def test_show_gives_the_record_of_an_artifact(answer, home, made):
    student = made["student"]
    code, out, err = answer("show", student.id[:6], "--json")
    assert code == 0, err
    assert json.loads(out) == student.record.to_dict() | {"folder": str(student.path)}
    code, out, _ = answer("show", student.id)
    assert code == 0 and student.id in out
    assert all(name in out for name in student.record.inputs.values())


def test_classify_gives_what_the_model_gives(answer, model, sounds):
    """From a folder, all audio in it and nothing else; the columns are probabilities of every class."""
    expected = Clap.create(CONFIG, captions=CLASSES, seed=1).eval()
    files = [sounds / "a.wav", sounds / "b.wav", sounds / "deep/c.wav"]
    table = expected.classify(files, CLASSES)
    options = ["--model", model, "--classes", ",".join(CLASSES)]
    code, out, err = answer("classify", sounds, *options, "--json")
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["path"] for row in found] == [str(path) for path in files]
    assert [row["class"] for row in found] == table["class"].tolist()
    for row, (_, told) in zip(found, table.iterrows(), strict=True):
        assert row["probabilities"] == pytest.approx({name: told[name] for name in CLASSES}, abs=1e-6)
    rows = list(csv.DictReader(io.StringIO(answer("classify", sounds, *options, "--csv")[1])))
    assert [row["class"] for row in rows] == table["class"].tolist()
    assert float(rows[0]["rain"]) == pytest.approx(table["rain"][0], abs=1e-6)
    code, out, _ = answer("classify", sounds / "a.wav", *options)
    best = table["class"][0]
    assert code == 0 and f"{best} {100 * table[best][0]:.0f} %" in out


def test_classify_says_what_is_wrong_in_one_line(answer, home, model, sounds, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((tmp_path / "empty", "--model", model, "--classes", "a,b"), "holds no audio file; supported are"),
        ((sounds, "--model", "5be7d1", "--classes", "a,b"), "5be7d1"),
        ((sounds, "--model", model, "--classes", "a,b", "--csv", "--json"), "give --csv or --json, not both"),
        ((sounds / "notes.txt", "--model", model, "--classes", "a,b"), "notes.txt"),
    ):
        code, out, err = answer("classify", *arguments)
        assert code in (1, 2) and message in err and len(err.strip().splitlines()) == 1, (arguments, err)


def test_every_command_is_in_one_section_of_the_help(answer):
    """A command that is in no section is in no help."""
    from clapcur.cli import COMMANDS, SECTIONS

    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted([*(name for name, *_ in COMMANDS), "catalog"])
    code, out, _ = answer("--help")
    assert code == 0 and all(f"{title}:" in out for title in SECTIONS)
