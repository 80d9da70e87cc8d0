"""Experiments: every row builds, files read as written, and nothing is silently ignored."""

import pytest

from clapcur.data.rows import PAPER_ROWS, Row
from clapcur.experiments.config import Experiment, experiment_from_file, starter
from clapcur.methods.thresholds import Threshold

FILE = """
pairs: pairs.csv
pool: {source: recordings, exclude: [bad.txt]}
evaluation: sub/labelled.csv
class_names: classes.txt
audio_threshold: {precision: 0.8}
student: {learning_rate: 0.25}
teacher: {model: {audio: {front_end: {sample_rate: 48000}}}}
seeds: [0, 1]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "classes.txt").write_text("# ours\ndog_bark\n\nrain\n")
    (tmp_path / "own.yaml").write_text(FILE)
    return tmp_path


def test_paths_in_a_file_are_relative_to_the_file(folder, monkeypatch):
    """A config that works only from its own folder fails on the worker."""
    monkeypatch.chdir("/")
    experiment = experiment_from_file(folder / "own.yaml")
    assert experiment.pairs.source == str(folder / "pairs.csv")
    assert experiment.evaluation.source == str(folder / "sub" / "labelled.csv")
    assert experiment.pool is not None and experiment.pool.exclude == (str(folder / "bad.txt"),)
    assert experiment.class_names == ("dog bark", "rain") and experiment.name == "own"


def test_what_a_file_gives_replaces_only_itself(folder):
    """A `student:` block that resets every other setting of the student would change more than it says."""
    defaults = starter(name="x", pairs=folder, evaluation=folder, class_names=folder / "classes.txt", pool=folder)
    experiment = experiment_from_file(folder / "own.yaml")
    assert experiment.student.learning_rate == 0.25
    assert experiment.student.num_examples == defaults.student.num_examples
    assert experiment.teacher.model is not None and defaults.teacher.model is not None
    assert experiment.teacher.model.audio.front_end.sample_rate == 48_000
    assert experiment.teacher.model.audio.front_end.hop_samples == defaults.teacher.model.audio.front_end.hop_samples
    assert experiment.curation.audio_threshold == Threshold(precision=0.8), "a threshold is replaced whole"
    assert experiment.captions is None


@pytest.mark.parametrize(
    "line, message",
    [
        ("studnet: {}", "unknown key 'studnet'; did you mean 'student'"),
        ("student: {learning_rat: 1}", "unknown key 'student.learning_rat'; did you mean 'learning_rate'"),
        ("audio_threshold: {similarity: 70}", "a percentage"),
        ("curation: {max_per_clip: 0}", "max_per_clip must be at least 1"),
        ("curation: {max_per_clp: 1}", "unknown key 'curation.max_per_clp'; did you mean 'max_per_clip'"),
        ("max_per_clp: 1", "unknown key 'max_per_clp'; did you mean 'curation.max_per_clip'"),
        ("curation: {audio_threshold: {count: 5}}", "audio_threshold is given twice, at the top level and in curation"),
        ("curation: [1]", "curation must be a mapping such as"),
        ("seeds: [1, 1]", "must be one or more distinct numbers"),
        ("pool: null", "need unpaired audio"),
        ("pairs: 5", "a source of clips or captions must be a path or a mapping with the key `source`, got 5"),
        ("pool: [recordings]", r"a path or a mapping with the key `source`, got \['recordings'\]"),
        ("checkpoint: true", "checkpoint must be a path or a mapping with the key `source`, got True"),
    ],
)
def test_mistakes_in_a_file_are_named_with_their_place(folder, line, message):
    """A misspelt key that is ignored trains something else than what was written."""
    kept = [text for text in FILE.splitlines() if not text.startswith(line.split(":")[0])]
    (folder / "own.yaml").write_text("\n".join([*kept, line]))
    with pytest.raises(ValueError, match=message):
        experiment_from_file(folder / "own.yaml")


@pytest.mark.parametrize("row", PAPER_ROWS, ids=lambda row: row.name)
def test_every_row_builds_with_one_budget(folder, row):
    """Rows of a comparison that see different numbers of examples compare budgets, not strategies."""
    experiment: Experiment = experiment_from_file(folder / "own.yaml")
    training = experiment.train_student(row, seed=3)
    assert (training.seed, training.num_examples) == (3, experiment.student.num_examples)
    assert (training.soft_labels is not None) == row.soft_labels
    if row.improvement_set:
        assert experiment.curate(row.improvement_set).held_out == training.held_out


def test_ds_which_searches_no_pool_is_curated_without_what_belongs_to_a_search(folder):
    """One config makes all three sets; DS refuses what only a search can do."""
    path = folder / "own.yaml"
    path.write_text(path.read_text() + "hubness: {method: csls}\ndistinct_clips: 0.98\ndistinct_captions: 0.97\n")
    experiment = experiment_from_file(path)
    du, ds = experiment.curate("du"), experiment.curate("ds")
    assert du.hubness is not None and (du.distinct_clips, du.distinct_captions) == (0.98, 0.97)
    assert ds.hubness is None and (ds.distinct_clips, ds.distinct_captions) == (None, 0.97)


def test_rows_that_contradict_their_name_are_refused():
    """`sl` without soft labels would be `continued` under another name."""
    with pytest.raises(ValueError, match="soft"):
        Row(strategy="sl")
    with pytest.raises(ValueError, match="no soft labels"):
        Row(strategy="teacher", soft_labels=True)


def test_one_thing_where_a_list_may_stand_is_a_list_of_one(folder):
    """A lone text is a sequence of letters, each of which was taken for a table."""
    lines = [line for line in FILE.splitlines() if not line.startswith("pool")]
    (folder / "own.yaml").write_text(
        "\n".join([*lines, "more_pairs: more.csv", "pool: {source: x, corpus: esc50, folds: 1.0, exclude: bad.txt}"])
    )
    experiment = experiment_from_file(folder / "own.yaml")
    assert [config.source for config in experiment.more_pairs] == [str(folder / "more.csv")]
    assert experiment.pool is not None
    assert (experiment.pool.folds, experiment.pool.exclude) == (("1",), (str(folder / "bad.txt"),))
