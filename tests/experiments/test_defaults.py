"""What an experiment does where nothing is said: chosen by measurement, so a change must be one as well."""

import dataclasses
import inspect

import pytest

from clapcur.experiments.captioning import Captioning
from clapcur.experiments.config import starter
from clapcur.flows.improve import improve
from clapcur.stages.tagger import TaggerConfig
from clapcur.testing import write_tones


@pytest.fixture
def experiment(tmp_path):
    write_tones(tmp_path)
    (tmp_path / "pool").mkdir()
    return starter(
        name="mine", pairs=tmp_path / "pairs.csv", evaluation=tmp_path / "labelled.csv", pool=str(tmp_path / "pool"),
        class_names=tmp_path / "classes.txt",
    )  # fmt: skip


def test_improve_learns_pseudo_labels():
    assert inspect.signature(improve.fn).parameters["strategy"].default == "pl"


def test_targets_are_softened_unless_a_tagger_has_a_say_in_the_labels(experiment):
    """A teacher that teaches its own opinion against the tagger's took half of the gain away."""
    tagger = TaggerConfig(source="yamnet.safetensors")
    with_tagger = dataclasses.replace(experiment, captioning=Captioning(tagger=tagger))
    by_teacher = dataclasses.replace(experiment, captioning=Captioning())
    assert experiment.softens("pl") and experiment.softens("ads") and by_teacher.softens("pl")
    assert not with_tagger.softens("pl") and with_tagger.softens("ads") and with_tagger.softens("tagcap")
