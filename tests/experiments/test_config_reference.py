"""What the docs say of a config: every field has a text, and the page is made from it."""

import dataclasses
from pathlib import Path

import pytest
from source_tree import ROOT

from clapcur.config import describe
from clapcur.experiments.config import Experiment
from clapcur.experiments.reference import classes_of, page


@pytest.mark.parametrize("cls", classes_of(Experiment), ids=lambda cls: cls.__name__)
def test_every_field_of_a_config_says_what_it_is(cls):
    """74 of 182 fields could only be understood by reading the code that used them."""
    texts = describe(cls)
    assert [field.name for field in dataclasses.fields(cls) if field.name not in texts] == []
    assert [
        name for name, text in texts.items() if not (text[0].isupper() or text[0] in '{.`"') or text[-1] not in ".!"
    ] == []


def test_the_page_is_the_one_that_the_classes_make():
    """A page that is written by hand is wrong after the next change."""
    assert Path(ROOT, "docs/config.md").read_text() == page(), (
        "run python -m clapcur.experiments.reference > docs/config.md"
    )


def test_the_page_shows_the_defaults_of_a_file_and_not_those_of_the_classes():
    """Both differ: a file starts from thresholds by count and an even share for each class."""
    lines = reversed(page().splitlines())  # of a field that several classes have, the first one counts
    rows = {line.split(" | ")[0].strip("| `"): line for line in lines if line.startswith("| `")}
    assert "`{count: 2000}`" in rows["audio_threshold"] and "| true |" in rows["even_classes"]
    assert "| `25600` | `12800` |" in rows["num_examples"] and "required" in rows["pairs"]
