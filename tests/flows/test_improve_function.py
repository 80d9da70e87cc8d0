"""`clapcur.improve`: what the command does, from Python, with paths or with lists."""

import os

import pandas as pd
import pytest

import clapcur
from clapcur.errors import DataError
from clapcur.testing import write_tones


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_student_from_a_file_with_its_verdict(tmp_path, monkeypatch):
    """The result of an hour of training is of no use if nobody can load it."""
    config = write_tones(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    found = clapcur.improve(config, strategy="ds", home="a home")
    assert dict(os.environ) == before, "the next call would use this home"
    assert found.verdict in repr(found) and found.verdict.startswith("DS")
    assert found.report == tmp_path / "a home/store/report" / found.report.parent.name / "report.html"
    assert found.report.is_file()
    assert found.table.index.tolist()[0] == "teacher" and len(found.table) == 3
    row = found.table.iloc[-1]
    assert row.low <= row.accuracy <= row.high and row.vs_teacher_low <= row.vs_teacher <= row.vs_teacher_high
    assert row.checkpoint == found.student.id and found.table.checkpoint.iloc[0] == found.teacher.id
    assert found.is_better == (row.vs_teacher_low > 0)
    student, teacher = found.student.load("cpu"), found.teacher.load("cpu")
    assert (student.id, teacher.id) == (found.student.id, found.teacher.id)
    assert student.embed_text(["a low hum"]).shape == (1, 16)
    assert clapcur.load(found.student.id, "cpu", home="a home").id == found.student.id

    again = clapcur.improve(config, strategy="ds", home="a home", seeds=[5])
    assert again.student == found.student and again.report == found.report


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_lists_give_the_student_of_the_same_tables(tmp_path, monkeypatch):
    """A list that is written with relative paths finds no file, and one in another order trains another student."""
    write_tones(tmp_path)
    monkeypatch.chdir(tmp_path)
    pairs, labelled = (pd.read_csv(tmp_path / name) for name in ("pairs.csv", "labelled.csv"))
    from clapcur.experiments import config as recipes

    brief = recipes.experiment_from_file(tmp_path / "tones.yaml")
    monkeypatch.setattr(recipes, "defaults", lambda: brief)  # towers of next to nothing
    options = {"strategy": "ds", "name": "tones", "home": tmp_path / "home", "seeds": (5,)}
    paths = clapcur.improve(pairs="pairs.csv", classes="classes.txt", evaluation="labelled.csv", **options)
    clips = zip(labelled.path, labelled.label, strict=True)
    lists = clapcur.improve(pairs=pairs, classes=["low hum", "high whistle"], evaluation=clips, **options)
    assert lists.student == paths.student and lists.verdict == paths.verdict


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "give an experiment file, or pairs, classes as well"),
        ({"checkpoint": "a.pt"}, ValueError, "or pool, classes as well"),
        ({"config": "a.yaml", "classes": ["a", "b"]}, ValueError, "give an experiment file or the other arguments"),
        ({"pairs": "no.csv", "classes": "esc50", "evaluation": "no.csv"}, DataError, "pairs no.csv does not exist"),
        ({"pairs": [], "classes": "esc50", "evaluation": [("a", "b")]}, DataError, "pairs is empty"),
        ({"pairs": ["a.wav"], "classes": "esc50", "evaluation": []}, ValueError, r"a list of \(path, caption\)"),
        (
            {"pairs": pd.DataFrame({"path": ["a"]}), "classes": "esc50", "evaluation": []},
            ValueError, "pairs must have the columns path, caption; it lacks caption",
        ),
        ({"pairs": [("a", "b")], "classes": ["dog"], "evaluation": [("a", "b")]}, DataError, "at least two class name"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(home, leaves_no_trace, tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as raised:
        clapcur.improve(**options)
    assert "\n" not in str(raised.value)
