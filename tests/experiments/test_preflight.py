"""What can be known before a training is said before it: no checkpoint is made, and the message says what to mend."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clapcur.data.rows import Row
from clapcur.errors import CheckpointError, ClapcurError, EmptySetError, ManifestError
from clapcur.experiments.config import Experiment, experiment_from_file
from clapcur.flows import steps
from clapcur.flows.compare import compare
from clapcur.methods.thresholds import Threshold
from clapcur.stages.audition import AuditionConfig
from clapcur.stages.curate import Curation
from clapcur.stages.curate.config import Approximate
from clapcur.stages.ingest import IngestConfig
from clapcur.store.home import Home
from clapcur.testing import changed, write_tone, write_tones

ROWS = (Row(strategy="teacher"), Row(strategy="ads", soft_labels=True))


class Trained(Exception):
    """A training began."""


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tones")
    write_tones(folder)
    for number in range(4):
        write_tone(folder / f"pool/{number}.wav", 500, seed=100 + number)
    return folder


@pytest.fixture
def experiment(tones: Path) -> Experiment:
    read = experiment_from_file(tones / "tones.yaml")
    return dataclasses.replace(read, pool=IngestConfig(source=str(tones / "pool")), rows=ROWS)


@pytest.fixture
def run(home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[[Experiment], None]:
    """Give a function that runs the flow until something is trained, without a Prefect server."""

    def begin(*_: Any) -> None:
        raise Trained

    monkeypatch.setattr(steps, "train", begin)

    def call(experiment: Experiment) -> None:
        try:
            compare.fn(experiment)
        finally:
            assert list(home.store.of_kind("checkpoint")) == []

    return call


def table(folder: Path, name: str, *lines: str) -> IngestConfig:
    (folder / name).write_text("\n".join(lines) + "\n")
    return IngestConfig(source=str(folder / name))


def test_an_experiment_without_a_fault_comes_to_its_training(run, experiment):
    with pytest.raises(Trained):
        run(experiment)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            ["low hum", "Dog Bark", "low hum", "high whistle"],
            r"1 of 4 clips have a label .*Dog Bark \(1\)",
        ),
        (["Low_Hum", "low hum", "low hum", "high whistle"], r"Low Hum \(1; did you mean 'low hum'\?\)"),
        (["low hum", "high wistle", "", "low hum"], r"\(no label\) \(1\), high wistle .*mean 'high whistle'"),
    ],
)
def test_a_label_that_is_no_class_stops_before_the_teacher(run, experiment, tones, labels, said):
    rows = [f"{number}.wav,{label}" for number, label in enumerate(labels)]
    with pytest.raises(ManifestError, match=said):
        run(dataclasses.replace(experiment, evaluation=table(tones, "wrong.csv", "path,label", *rows)))


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS])
def test_tables_that_lack_what_they_are_for_stop_before_the_teacher(run, experiment, tones, rows):
    experiment = dataclasses.replace(experiment, rows=rows)
    only_clips, only_texts = table(tones, "clips.csv", "path", "0.wav"), table(tones, "texts.csv", "caption", "rain")
    for role, given, said in (
        ("pairs", only_clips, "pairs .*has no pairs; it needs clips with captions"),
        ("pool", only_texts, "pool .*has no clips; it needs audio"),
        ("captions", only_clips, "captions .*has no captions; it needs captions"),
        ("evaluation", only_texts, "evaluation .*has no clips; it needs clips with labels"),
    ):
        with pytest.raises(ManifestError, match=said):
            run(dataclasses.replace(experiment, **{role: given}))


def test_evaluation_clips_of_one_recording_stop_before_the_teacher(run, experiment, tones):
    rows = ["path,label,recording_id", "0.wav,low hum,7", "1.wav,high whistle,7.0"]
    with pytest.raises(ManifestError, match="all 2 evaluation clips are cut from one recording"):
        run(dataclasses.replace(experiment, evaluation=table(tones, "one.csv", *rows)))


def test_a_hold_out_without_pairs_stops_before_the_teacher(run, experiment, tones):
    few = table(tones, "few.csv", "path,caption,recording_id", *(f"pairs/{n}.wav,a hum,one" for n in range(3)))
    selected = dataclasses.replace(experiment.student, selection="held_out", num_evaluations=1, held_out=0.01)
    assert experiment.teacher is not None
    teacher = dataclasses.replace(experiment.teacher, held_out=0.01)
    with pytest.raises(
        EmptySetError, match="held_out 0.01 of 3 pairs from 1 recordings holds out 0 pairs, .* at least 2"
    ):
        run(dataclasses.replace(experiment, pairs=few, student=selected, teacher=teacher))
    student, teacher = (dataclasses.replace(training, held_out=0.999) for training in (experiment.student, teacher))
    with pytest.raises(EmptySetError, match="leaves no pairs to train on"):
        run(dataclasses.replace(experiment, pairs=few, student=student, teacher=teacher))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"caption_threshold": Threshold(count=3)},
            "caption_threshold has a count of 3, .* at most 2 captions",
        ),
        (
            {"audio_threshold": Threshold(count=9)},
            "audio_threshold has a count of 9, .* at most 8 pairs",
        ),
        ({"audio_threshold": Threshold(count=5), "max_per_clip": 1}, "at most 4 pairs"),
        ({"rows": (Row(strategy="du"),), "du_threshold": Threshold(count=9)}, "du_threshold has a count of 9"),
        ({"approximate": Approximate(num_clusters=3, num_probes=1)}, "3 clusters for only 2 captions"),
        ({"near_duplicate": "calibrated"}, "needs 100 clips from several known recordings among the pairs, got 16"),
        ({"audio_threshold": Threshold(precision=0.8)}, "a threshold by precision needs at least 20 judged pairs, got"),
        (
            {"audio_threshold": Threshold(precision=0.8), "marks": (("a", "b", "right"),)},
            "got 0 .marked pairs from this pool",
        ),
    ],
)
def test_a_threshold_that_nothing_can_reach_stops_before_the_teacher(run, experiment, changes, said):
    with pytest.raises(EmptySetError, match=said):
        run(changed(experiment, **changes))


def test_the_default_counts_take_what_there_is(run, experiment, caplog):
    """A first try with a dozen sounds must not fail for a number that nobody gave."""
    with caplog.at_level(logging.WARNING, "clapcur"), pytest.raises(Trained):
        run(changed(experiment, caption_threshold=Curation.caption_threshold))
    assert "the default is 1000, but there are at most 2 captions, so all are used" in caplog.text


def test_a_pool_that_is_the_evaluation_stops_before_the_teacher(run, experiment):
    with pytest.raises(EmptySetError, match="none of the 4 clips of pool may enter a set: 4 are evaluation clips"):
        run(dataclasses.replace(experiment, pool=experiment.evaluation))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"num_crops": 0}, ValueError, "num_crops must be at least 1"),
        ({"max_per_clip": 0}, ValueError, "max_per_clip must be at least 1"),
        ({"near_duplicate": 70.0}, ValueError, "near_duplicate must be a cosine"),
        ({"distinct_clips": 98.0}, ValueError, "distinct_clips must be a cosine"),
        ({"caption_threshold": Threshold(precision=0.5)}, ValueError, "only audio_threshold can be given by precision"),
        ({"rows": (ROWS[0], *ROWS)}, ValueError, "each row must .* once; repeated: teacher"),
        ({"rows": ()}, ValueError, "at least one row"),
    ],
)
def test_a_setting_that_a_later_stage_refuses_stops_before_the_ingest(run, experiment, home, changes, error, said):
    with pytest.raises(error, match=said):
        run(changed(experiment, **changes))
    assert list(home.store.of_kind("manifest")) == []


def test_a_model_that_is_not_there_stops_before_the_ingest(run, experiment, tones, home):
    """Its text model was looked for after an hour of decoding, and a network that is not there for a minute more."""
    training = experiment.teacher
    assert training is not None and training.model is not None
    for source in ("nobody/no-text-model", str(tones / "nothing")):
        text = dataclasses.replace(training.model.text, source=source)
        teacher = dataclasses.replace(training, model=dataclasses.replace(training.model, text=text))
        with pytest.raises(
            CheckpointError, match=f"text model {source} not found: it is not a file, a folder"
        ) as raised:
            run(dataclasses.replace(experiment, teacher=teacher))
        assert "\n" not in str(raised.value)
    for line, said in (
        ("checkpoint: nobody/clap", "checkpoint nobody/clap not found"),
        ("checkpoint: {source: classes.txt, text_source: nobody/text}", "text model nobody/text not found"),
    ):
        lines = [text for text in (tones / "tones.yaml").read_text().splitlines() if text.strip()]
        indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
        (tones / "adopts.yaml").write_text("\n".join([*lines, indent + line]))
        with pytest.raises(ClapcurError, match=said):
            run(experiment_from_file(tones / "adopts.yaml"))
    with pytest.raises(ValueError, match="a student has the same model as its teacher"):
        other = dataclasses.replace(training.model, embedding_dim=32)
        run(dataclasses.replace(experiment, student=dataclasses.replace(experiment.student, model=other)))
    with pytest.raises(ValueError, match="device 'cuda:99' is not available|must be"):
        run(dataclasses.replace(experiment, student=dataclasses.replace(experiment.student, device="cuda:99")))
    assert list(home.store.of_kind("manifest")) == []


def test_an_audition_takes_every_seed_of_an_experiment():
    assert AuditionConfig(seed=2**62).seed == 2**62
