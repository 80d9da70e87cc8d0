"""Config files and seeds: what is refused before anything is made of it."""

import pytest

from clapcur.config import LARGEST_FILE, LARGEST_SEED, check_seed, read_mapping
from clapcur.corpora.synthetic.procedural import ProceduralConfig
from clapcur.data.class_names import prompts
from clapcur.errors import DataError
from clapcur.experiments.config import experiment_from_file
from clapcur.stages.evaluate import EvaluateConfig
from clapcur.stages.train import TrainConfig

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nseeds: [1]\nname: b\n", "line 3: the key 'name' occurs twice"),
        ("teacher:\n  seed: 1\n  'seed': 2\n", "line 3: the key 'seed' occurs twice"),
        ("rows: [{strategy: du, strategy: ds}]\n", "line 1: the key 'strategy' occurs twice"),
        (BOMB, "more than 100,000 values"),
        ("a: &a [*a]\n", "more than 100,000 values"),
        ("a: &a {b: *a}\n", "more than 100,000 values"),
        ("[" * 5000, "not valid YAML"),
        ("a: 2026-02-31\n", "not valid YAML"),
        ("? [a, {b: c}]\n: d\n", "not valid YAML"),
        ("name: \x07\n", "not valid YAML"),
        ("a: [b\n", "not valid YAML"),
        ("- a\n", "must hold a mapping, got list"),
        ("", "must hold a mapping, got NoneType"),
        ("x" * (LARGEST_FILE + 1), "has 1,048,577 bytes, but a config has at most 1,048,576"),
    ],
)
def test_a_config_that_is_none_is_one_line(tmp_path, text, said):
    """The last of two equal keys counts silently, and nine lines of aliases fill any memory."""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(DataError, match=said) as raised:
        read_mapping(tmp_path / "c.yaml")
    assert "\n" not in str(raised.value) and "c.yaml" in str(raised.value)


def test_aliases_and_merges_are_read(tmp_path):
    (tmp_path / "c.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n")
    assert read_mapping(tmp_path / "c.yaml")["b"] == {"x": 1, "y": 3}


def test_a_folder_and_an_absent_file_are_said(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        read_mapping(tmp_path)
    with pytest.raises(DataError, match="does not exist; create one with `clapcur init`"):
        read_mapping(tmp_path / "c.yaml")


@pytest.mark.parametrize("seed", [-1, 10**20, LARGEST_SEED + 1])
def test_a_seed_that_no_generator_takes_is_refused(seed, tmp_path):
    """It failed after the ingest, or in the middle of a training, with a traceback."""
    for make in (
        check_seed,
        lambda seed: TrainConfig(num_examples=64, seed=seed),
        lambda seed: EvaluateConfig(class_names=("a", "b"), seed=seed),
        lambda seed: ProceduralConfig(seed=seed),
    ):
        with pytest.raises(ValueError, match=f"seed must be a whole number from 0 to {LARGEST_SEED}, got {seed}"):
            make(seed)
    (tmp_path / "e.yaml").write_text(
        f"pairs: p.csv\nevaluation: e.csv\nclass_names: [a, b]\nseeds: [{seed}]\nrows: []\n"
    )
    with pytest.raises(ValueError, match="a seed must be a whole number"):
        experiment_from_file(tmp_path / "e.yaml")


def test_the_largest_seed_trains():
    check_seed(LARGEST_SEED)
    assert TrainConfig(num_examples=64, seed=LARGEST_SEED).seed == LARGEST_SEED


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("a {x} and {}", "a {x} and dog"),
        ("{}", "dog"),
        ("{{}}", "{dog}"),
        ("{0}: {}", "{0}: dog"),
        ("} {} {", "} dog {"),
    ],
)
def test_other_braces_of_a_prompt_are_text(template, prompt):
    assert prompts(["dog"], template) == (prompt,)


@pytest.mark.parametrize("template", ["", "{0}", "{name}", "{} {}", "a sound"])
def test_a_prompt_without_its_place_is_refused_with_the_config(template, tmp_path):
    """It was found after the teacher's training, where the prompts are embedded."""
    with pytest.raises(ValueError, match="the prompt must contain {} once"):
        EvaluateConfig(class_names=("a", "b"), prompt=template)
    (tmp_path / "e.yaml").write_text(
        f"pairs: p.csv\nevaluation: e.csv\nclass_names: [a, b]\nrows: []\nprompt: '{template}'\n"
    )
    with pytest.raises(ValueError, match="the prompt must contain {} once"):
        experiment_from_file(tmp_path / "e.yaml")
