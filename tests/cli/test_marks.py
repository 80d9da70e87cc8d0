"""marks: agreement and majority of several people, and Label Studio on both sides."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
import soundfile
from audition_tools import CLASSES, improvement_set

from clapcur.data.marks import COLUMNS, read_marks
from clapcur.store.catalog import Catalog

HEADER = "clip_id,caption_id,mark,similarity,class,caption,path\n"
VOTES = {  # clip -> marks of anna, ben, cleo
    "c1": ("right", "right", "right"), "c2": ("right", "wrong", "wrong"), "c3": ("wrong", "wrong", None),
    "c4": ("right", "wrong", None), "c5": (None, None, "right"), "c6": ("right", "right", "wrong"),
}  # fmt: skip


@pytest.fixture
def people(tmp_path):
    paths = []
    for index, name in enumerate(("anna", "ben", "cleo")):
        lines = [
            f'{clip},k,{said[index]},0.5,dog,"a dog, barking",/sounds/{clip}.wav\n'
            for clip, said in VOTES.items()
            if said[index]
        ]
        path = tmp_path / f"{name}.csv"
        path.write_text(HEADER + "".join(reversed(lines)))
        paths.append(path)
    return paths


def test_agreement_and_majority(answer, people, tmp_path):
    """A merged table that counts one person twice, or that decides ties, judges pairs that nobody agreed on."""
    merged = tmp_path / "merged.csv"
    code, out, err = answer("marks", *people, "--output", merged, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["people"]["anna"] == {"right": 4, "wrong": 1} and said["people"]["cleo"] == {"right": 2, "wrong": 2}
    by_pair = {(line["one"], line["other"]): line for line in said["agreement"]}
    # anna and ben: both right 2, both wrong 1, right and wrong 2 -> observed 3/5, expected 4/5*2/5 + 1/5*3/5 = 11/25
    assert by_pair["anna", "ben"] == {
        "one": "anna", "other": "ben", "pairs": 5, "agreement": pytest.approx(0.6),
        "kappa": pytest.approx((3 / 5 - 11 / 25) / (1 - 11 / 25)),
    }  # fmt: skip
    # anna and cleo: c1 agree, c2 and c6 not; anna is always right -> kappa 0
    assert by_pair["anna", "cleo"]["kappa"] == pytest.approx(0) and by_pair["anna", "cleo"]["pairs"] == 3
    # ben and cleo: c1 and c2 agree, c6 not -> (2/3 - 4/9) / (1 - 4/9)
    assert by_pair["ben", "cleo"]["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    assert said["kappa"] == pytest.approx(sum(line["kappa"] for line in said["agreement"]) / 3)
    assert {line["clip_id"]: (line["right"], line["wrong"], line["merged"]) for line in said["disagreements"]} == {
        "c2": (["anna"], ["ben", "cleo"], "wrong"), "c4": (["anna"], ["ben"], "left out"),
        "c6": (["anna", "ben"], ["cleo"], "right"),
    }  # fmt: skip
    assert [line["clip_id"] for line in said["ties"]] == ["c4"]
    table = read_marks(merged, with_texts=True)  # as curate --exclude-pairs does
    assert dict(zip(table.clip_id, table.mark, strict=True)) == {
        "c1": "right", "c2": "wrong", "c3": "wrong", "c5": "right", "c6": "right"
    }  # fmt: skip
    assert set(table.caption) == {"a dog, barking"} and table.similarity.tolist() == [0.5] * 5


def test_people_read_who_disagrees(answer, people):
    code, out, err = answer("marks", *people)
    assert code == 0, err
    assert "mean kappa of 3 of 3 pairs of people: 0.23" in out
    (line,) = [line for line in out.splitlines() if "c4.wav" in line]
    assert "a dog, barking" in line and "anna" in line and "ben" in line and "left out" in line


def test_what_would_count_wrong_is_refused(answer, people, tmp_path):
    anna, ben, _ = people
    code, _, err = answer("marks", anna, anna)
    assert code == 1 and "given twice" in err
    code, _, err = answer("marks", anna, ben, "--output", ben)
    assert code == 1 and "would overwrite" in err and read_marks(ben).mark.tolist().count("wrong") == 3
    code, _, err = answer("marks", anna, "--output", tmp_path / "merged.parquet")
    assert code == 2 and "must end with .csv" in err
    torn = tmp_path / "torn.csv"
    torn.write_text(anna.read_text() + "c1,k,wrong,0.5,dog,,\n")
    code, _, err = answer("marks", torn, ben)
    assert code == 1 and "(lines 6 and 7)" in err and len(err.splitlines()) == 1
    empty = tmp_path / "empty.csv"
    empty.write_text(HEADER)
    code, _, err = answer("marks", empty)
    assert code == 1 and "nobody marked a pair" in err
    code, out, err = answer("marks", empty, anna, "--json")
    assert code == 0 and json.loads(out)["agreement"][0]["kappa"] is None, err


# -- Label Studio


def annotation(mark, by, **more):
    """Return an annotation as Label Studio exports it."""
    result = {
        "id": "aBcDeFgHiJ", "type": "choices", "value": {"choices": [mark]}, "origin": "manual",
        "to_name": "audio", "from_name": "mark",
    }  # fmt: skip
    return {
        "id": 7, "completed_by": by, "result": [result], "was_cancelled": False, "ground_truth": False,
        "created_at": "2026-03-09T22:16:08.728353Z", "updated_at": "2026-03-09T22:16:08.728378Z", "lead_time": 4.288,
        "prediction": {}, "result_count": 0, "task": 1, "parent_prediction": None,
    } | more  # fmt: skip


def test_tasks_are_the_pairs_of_the_page_and_come_back_as_marks(answer, home, tmp_path):
    """An id or a choice that Label Studio does not hand back marks nothing."""
    source = improvement_set(home.store, tmp_path / "sounds", missing=1)
    Catalog.open(home).rebuild(home.store)
    folder = tmp_path / "tasks"
    code, out, err = answer("audition", source.id, "--num-pairs", 9, "--label-studio", folder)
    assert code == 0 and "tasks for Label Studio" in out, err
    tasks = json.loads((folder / "tasks.json").read_text())
    assert 0 < len(tasks) <= 9 and f"{len(tasks)} tasks" in out
    interface = ET.fromstring((folder / "config.xml").read_text())
    shown = {one.get("name"): one for one in interface.iter() if one.get("name")}
    for tag in ("audio", "caption"):
        assert shown[tag].get("value").removeprefix("$") in tasks[0]["data"]
    assert shown["mark"].get("toName") in shown
    assert [one.get("value") for one in shown["mark"]] == ["right", "wrong"]
    for task in tasks:
        prefix, _, place = task["data"]["audio"].partition("?d=")
        assert prefix == "/data/local-files/" and soundfile.info(folder / place).duration == pytest.approx(2, abs=0.12)
        assert task["data"]["caption"] in CLASSES.values() and -1 <= task["data"]["similarity"] <= 1

    marks = ["right", "wrong", "right"]
    for number, (task, mark) in enumerate(zip(tasks, marks, strict=False)):
        task |= {
            "id": number,
            "drafts": [],
            "predictions": [],
            "project": 1,
            "inner_id": number,
            "file_upload": "x.json",
        }
        task["annotations"] = [
            annotation(mark, {"id": 3, "email": "anna@example.org", "first_name": "", "last_name": ""}),
            annotation("right", 4),
            annotation("wrong", 5, was_cancelled=True),
        ]
    exported, merged = tmp_path / "export.json", tmp_path / "merged.csv"
    exported.write_text(json.dumps(tasks))
    code, out, err = answer("marks", exported, "--output", merged, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["people"] == {"4": {"right": 3, "wrong": 0}, "anna@example.org": {"right": 2, "wrong": 1}}
    assert [line["clip_id"] for line in said["ties"]] == [tasks[1]["data"]["clip_id"]]
    table = read_marks(merged)
    assert table.columns.tolist() == list(COLUMNS)
    wanted = {(task["data"]["clip_id"], task["data"]["caption_id"]) for task in (tasks[0], tasks[2])}
    assert set(zip(table.clip_id, table.caption_id, strict=True)) == wanted

    code, _, err = answer("audition", source.id, "--label-studio", folder)
    assert code == 1 and "already exists" in err


DATA = {"clip_id": "c1", "caption_id": "k", "similarity": 0.5, "class": "dog"}


@pytest.mark.parametrize(
    ("exported", "said"),
    [
        ("{", "is not JSON"),
        ([{"id": 1, "clip_id": "c1", "mark": "right", "annotator": 1}], "not as JSON-MIN"),
        ({"data": DATA}, "must be a list of tasks"),
        ([{"id": 8, "data": {"audio": "a.wav"}, "annotations": [annotation("right", 1)]}], "task 8 has no clip_id"),
        ([{"id": 8, "data": DATA, "annotations": [annotation("perhaps", 1)]}], r"task 8: expected one choice.*perhaps"),
        ([{"id": 8, "data": DATA | {"similarity": 70}, "annotations": [annotation("right", 1)]}], "cosine.*got 70"),
        ([{"id": 8, "data": DATA, "annotations": "right"}], "task 8: 'annotations' must be a list"),
        (
            [{"id": 8, "data": DATA, "annotations": [annotation("right", 1), annotation("wrong", 1)]}],
            "task 8: 1 marked this pair both right and wrong",
        ),
        ([{"id": 8, "data": DATA, "annotations": []}], "nobody marked a pair"),
    ],
)
def test_an_export_that_says_nothing_clear_is_refused(answer, tmp_path, exported, said):
    path = tmp_path / "export.json"
    path.write_text(exported if isinstance(exported, str) else json.dumps(exported))
    code, _, err = answer("marks", path)
    assert code == 1 and re.search(said, err) and len(err.splitlines()) == 1, err
