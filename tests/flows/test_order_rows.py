"""Rows that are post-trained on the order of sounds: how they are spelled, made and reported."""

import dataclasses

import numpy as np
import pytest

from clapcur.data.order_scores import OrderScores, items_of
from clapcur.data.report_table import ReportTable
from clapcur.data.rows import PAPER_ROWS, Row
from clapcur.errors import DataError
from clapcur.experiments.config import experiment_from_file
from clapcur.flows.compare import compare
from clapcur.lineage import queries
from clapcur.stages.report import common_order
from clapcur.store.home import Home
from clapcur.testing import write_tones

POST_TRAINING = """
rows: [teacher, teminal, "DS+SL, TeminAL"]
order: {clips: labelled.csv, num_groups: 2}
post_training:
  stages: [b]
  compose: {num_groups: 4, num_held_out_groups: 1, held_out: 0.6, min_clip_s: 0.1, num_workers: 1}
  order_head: {hidden_size: 4}
  train: {num_examples: 12, batch_size: 6, selection: last, num_evaluations: 0, num_workers: 1}
"""


@pytest.fixture
def tones(tmp_path):
    """Write an experiment with rows of TeminAL; gives its file."""
    path = write_tones(tmp_path)
    lines = [line for line in path.read_text().splitlines() if "rows:" not in line]
    indent = " " * 8
    path.write_text("\n".join([*lines, *(indent + line for line in POST_TRAINING.strip().splitlines())]))
    return path


@pytest.mark.parametrize("row", [*PAPER_ROWS, *(row.post_trained for row in PAPER_ROWS)], ids=lambda row: row.name)
def test_a_row_is_read_back_from_its_name_and_its_label(row):
    """A tag that means another row compares the wrong students."""
    assert Row.parse(row.name) == row == Row.parse(row.label)
    assert "," not in row.name  # names are in lists with commas between


def test_a_post_trained_teacher_is_no_teacher():
    """Compared with itself, it would change by nothing."""
    row = Row.parse("teminal")
    assert row.is_student and not row.is_teacher and row.before == Row(strategy="teacher")
    assert Row.parse("ads+sl, teminal").before == Row(strategy="ads", soft_labels=True)


def test_a_file_names_rows_in_words_and_a_row_without_classes_composes_ds(tones):
    """Nobody labelled the sounds: they are named by the set that was curated for the row, or by DS."""
    experiment = experiment_from_file(tones)
    assert [row.label for row in experiment.rows] == ["teacher", "TeminAL", "DS+SL, TeminAL"]
    assert experiment.improvement_sets == ["ds"]
    assert experiment.order.clips.source == str(tones.parent / "labelled.csv")
    assert experiment.post_training.compose.num_groups == 4 and experiment.post_training.compose.unseen_couples == 0.25
    labelled = dataclasses.replace(experiment, single_sounds=experiment.evaluation, rows=(Row.parse("teminal"),))
    assert labelled.improvement_sets == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_comparison_shows_order_beside_accuracy_and_leads_to_the_sounds(tones, tmp_path, monkeypatch):
    """From the file to the table: each row post-trained from its own start, scored on one test of order."""
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    home = Home.open()
    made = compare.fn(experiment_from_file(tones))
    lines = {line.name: line for line in ReportTable.open(made).rows}
    assert list(lines) == ["teacher", "TeminAL", "DS+SL, TeminAL"]
    heard = {name: home.store.find(line.by_seed[0].order_scores) for name, line in lines.items()}
    for name, line in lines.items():
        scores = OrderScores.open(heard[name])
        assert line.order.score == pytest.approx(scores.tasks["order"].score) and line.order.chance == 0.5
        assert line.order.relations == pytest.approx(scores.relations)
    before, after = (items_of(heard[name], "order").score for name in ("teacher", "TeminAL"))
    assert lines["teacher"].order.vs_teacher is None
    assert lines["TeminAL"].order.vs_teacher.change == pytest.approx(float(np.mean(after - before)))
    assert lines["TeminAL"].vs_teacher is not None

    student = home.store.find(lines["DS+SL, TeminAL"].by_seed[0].checkpoint)
    start = home.store.find(student.record.inputs["init"])
    assert start.record.tags["row"] == "ds+sl" and student.record.tags["row"] == "ds+sl+teminal"
    composed = home.store.find(student.record.inputs["compositions"])
    assert composed.record.inputs["improvement_set"] == start.record.inputs["improvement_set"]
    assert any(pair["role"] == "compositions" for pair in queries.trace_pairs(home, student.id))

    page, table = ((made.path / name).read_text() for name in ("report.html", "table.md"))
    assert "order, %" in page and "post-trained on composed sounds, to learn their order" in page
    assert "| order | order vs teacher |" in table and "order: how often the caption" in table
    assert (made.path / "table.csv").read_text().splitlines()[0].endswith("order_vs_teacher_high")

    others = dataclasses.replace(experiment_from_file(tones).order, num_groups=1)
    other = compare.fn(dataclasses.replace(experiment_from_file(tones), rows=(Row.parse("teacher"),), order=others))
    (line,) = ReportTable.open(other).rows
    with pytest.raises(DataError, match="order was scored under 2 protocols"):
        common_order([heard["teacher"], home.store.find(line.by_seed[0].order_scores)])
