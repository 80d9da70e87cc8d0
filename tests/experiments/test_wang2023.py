"""The paper's tables as recipes: they say what its code does, and run on small copies of its corpora."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from corpus_copies import audioset, clotho, esc50, fsd50k, macs, tone, tut2017, urbansound8k, write_csv
from tiny_checkpoints import trained

from clapcur.data.class_names import readable
from clapcur.data.manifest import Manifest
from clapcur.errors import DataError
from clapcur.experiments import wang2023
from clapcur.experiments.config import Experiment, experiment_from_file
from clapcur.methods.thresholds import Threshold
from clapcur.models.cnn14 import Cnn14
from clapcur.models.config import TextConfig

ALL = [(recipe, dataset) for recipe in wang2023.RECIPES for dataset in wang2023.DOMAINS]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Write small copies of everything that the recipes name, and an audio tower in PANNs' form."""
    folder = tmp_path_factory.mktemp("data")
    rows = [(number, f"vid{number:08d}", 0, f"a thing sounds {number} times") for number in range(12)]
    write_csv(
        folder / "AUDIOCAPS/csv_files_v1/train.csv", [("audiocap_id", "youtube_id", "start_time", "caption"), *rows]
    )
    for number, video, *_ in rows:
        tone(folder / f"AUDIOCAPS/audio_32000Hz/train/{video}_0.wav", number + 20)
    for make, name in (
        (clotho, "CLOTHO_v2.1"), (macs, "MACS"), (fsd50k, "FSD50K"), (audioset, "audioset"), (esc50, "ESC-50"),
        (urbansound8k, "UrbanSound8K"), (tut2017, "TUT-2017"),
    ):  # fmt: skip
        (folder / name).mkdir()
        make(folder / name)
    torch.save({"model": dict(trained(Cnn14("tiny", 64)).state_dict())}, folder / wang2023.PANNS)
    return folder


@pytest.mark.parametrize(("recipe", "dataset"), ALL)
def test_every_recipe_says_what_the_papers_code_does(recipe, dataset, data, tmp_path, answer):
    """One threshold of another domain, and the column says something about nothing."""
    experiment = wang2023.experiment(recipe, dataset, data)
    # section 1.4 of the code's own yaml files: text-text for DS, audio-text for ADS
    wanted = {"esc50": (0.70, 0.70, 50), "us8k": (0.60, 0.70, 10), "tut17": (0.675, 0.65, 15)}[dataset]
    ds, ads = experiment.curate("ds"), experiment.curate("ads")
    found = (ds.caption_threshold.similarity, ads.audio_threshold.similarity, len(experiment.class_names))
    assert found == wanted
    assert experiment.curate("du").audio_threshold == Threshold(similarity=0.7)
    assert experiment.soft_labels.form == "paper" and experiment.soft_labels.beta == 0.3
    students = {row.name: experiment.train_student(row, 1) for row in experiment.rows}
    assert {training.num_examples for training in students.values()} == {2_560_000}, "one budget for all rows"
    if "ds" in students:
        assert (students["ds"].replay_probability, students["ads"].replay_probability) == (0.0, 0.5)
    assert set(wang2023.PUBLISHED[recipe][dataset]) | {"continued"} == set(students)
    assert experiment.adopt(2).partial and experiment.adopt(2).seed == 2
    (tmp_path / "again.yaml").unlink(missing_ok=True)
    code, _, err = answer("init", tmp_path / "again.yaml", "--recipe", recipe, "--dataset", dataset, "--data", data)
    assert code == 0, err
    assert experiment_from_file(tmp_path / "again.yaml") == experiment, "what is written is what would be run"


def test_what_is_missing_is_told_at_once_and_in_full(tmp_path, answer):
    """Two weeks of downloads, and the third corpus is asked for only then."""
    (tmp_path / "MACS").mkdir()
    (tmp_path / "fsd50k").mkdir()  # as `clapcur download` calls it
    missing = "AUDIOCAPS, CLOTHO_v2.1, ESC-50, audioset, Cnn14_mAP=0.431.pth"
    with pytest.raises(DataError, match=f"lacks {missing}; see docs/corpora.md"):
        wang2023.experiment("wang2023/table2", "esc50", tmp_path)
    with pytest.raises(ValueError, match="recipe must be one of wang2023/table2, wang2023/table3"):
        wang2023.experiment("wang2023/table4", "esc50", tmp_path)
    assert answer("compare", "--recipe", "wang2023/table2")[0] == 2


def test_our_figures_stand_beside_theirs_in_their_order():
    """A table in another order is compared row by row, and wrongly."""
    ours = {"ads+sl": (0.85, 0.01), "continued": (0.8, None), "teacher": (0.819, 0.0049)}
    lines = wang2023.beside("wang2023-table2-esc50", ours)
    assert [line[0] for line in lines] == ["teacher", "continued", "sl", "du", "du+sl", "ds", "ds+sl", "ads", "ads+sl"]
    assert lines[0] == ("teacher", "81.9 ± 0.5", "81.9 ± 0.9")
    assert lines[1] == ("continued", "80.0", "") and lines[2] == ("sl", "", "83.1 ± 1.2")
    assert lines[-1] == ("ads+sl", "85.0 ± 1.0", "85.1 ± 0.7")
    assert wang2023.beside("my-sounds", ours) == []


def tiny(experiment: Experiment) -> Experiment:
    """Return the recipe with towers, budgets and thresholds that small copies can fill."""
    few = {"num_examples": 16, "batch_size": 8, "num_evaluations": 2, "device": "cpu", "precision": "float32"}
    if experiment.student.selection == "held_out":
        few["selection"] = "last"
    adopted = experiment.checkpoint
    text = TextConfig(hidden_size=16, num_layers=1, vocab_size=120)
    whole = dataclasses.replace(adopted.model, text=text, embedding_dim=16, window_s=1.0)

    def short(ingest):
        return dataclasses.replace(ingest, max_bad_fraction=1.0)  # nearly all of what was published is absent

    return dataclasses.replace(
        experiment,
        pairs=short(experiment.pairs), more_pairs=tuple(map(short, experiment.more_pairs)),
        pool=short(experiment.pool), evaluation=short(experiment.evaluation),
        checkpoint=dataclasses.replace(adopted, model=whole, front_end=None),
        teacher=dataclasses.replace(experiment.teacher, **few), student=dataclasses.replace(experiment.student, **few),
        curation=dataclasses.replace(
            experiment.curation, audio_threshold=Threshold(similarity=-1), caption_threshold=Threshold(similarity=-1),
            near_duplicate=None,
        ),
        du_threshold=Threshold(similarity=-1), seeds=(0,),
        share_of_pairs=min(1.0, 5 * experiment.share_of_pairs),
    )  # fmt: skip


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    from clapcur.servers import heartbeat

    with prefect_test_harness(), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: heartbeat.EVERY_S}):
        yield


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("recipe", "dataset", "selection"),
    [("wang2023/table2", "esc50", "held_out"), ("wang2023/table3", "us8k", "reference"),
     ("wang2023/table3", "tut17", "held_out")],
)  # fmt: skip
def test_the_recipes_run_from_end_to_end(home, prefect, data, recipe, dataset, selection):
    """A recipe that nobody ever ran is a guess."""
    from clapcur.data.report_table import ReportTable
    from clapcur.flows.compare import compare

    experiment = tiny(wang2023.experiment(recipe, dataset, data, selection))
    rows = {line.row.name: line for line in ReportTable.open(compare(experiment)).rows}
    assert set(rows) == {row.name for row in experiment.rows}
    pairs = next(one for one in home.store.of_kind("manifest") if one.record.stage == "merge")
    if recipe == "wang2023/table2":
        captions = " ".join(Manifest.open(pairs).captions.caption)
        assert all(text in captions for text in ("sounds 3 times", "a bell", "cars", "A riff")), "of all four corpora"
    else:
        assert 0 < pairs.record.counts["clips"] < pairs.record.counts["of_clips"]
    teacher = home.store.find(rows["teacher"].by_seed[0].checkpoint)
    assert home.store.find(teacher.record.inputs["init"]).record.facts["format"] == "panns"
    history = [json.loads(line) for line in (teacher.path / "history.jsonl").read_text().splitlines()]
    tested = [point["test_accuracy"] for point in history if "test_accuracy" in point]
    assert bool(tested) == (selection == "reference") == ("evaluation" in teacher.record.inputs)
    (evaluation,) = [one for one in home.store.of_kind("manifest") if one.record.tags["role"] == "evaluation"]
    assert {readable(label) for label in Manifest.open(evaluation).clips.label} <= set(experiment.class_names)
    ads = [one for one in home.store.of_kind("improvement_set") if one.record.config["strategy"] == "ads"]
    pool = pd.read_parquet(ads[0].path / "pairs.parquet").clip_id
    assert set(pool) <= set(Manifest.open(home.store.find(ads[0].record.inputs["pool"])).clips.clip_id)
