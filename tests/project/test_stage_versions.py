"""The rule of `stage_versions`, and that its tool keeps it."""

import ast

import pytest
import stage_versions
from source_tree import Module, longest_prefix
from stage_versions import (
    MODULES,
    STAGES,
    complaint,
    fingerprint,
    read_entries,
    record,
    sources_of,
    version_of,
    versions_in,
)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_changed_has_a_new_version_or_a_note(stage):
    """The store would hand out what the old code made, under an id that says the new code made it."""
    recorded = read_entries().get(stage)
    if said := complaint(stage, recorded, version_of(stage, MODULES), sources_of(stage, MODULES)):
        pytest.fail(said)


def test_every_module_with_a_stage_is_watched():
    """A new stage outside the list could change for ever under one version."""
    makers = {name for name, module in MODULES.items() if list(versions_in(module.tree))} - {"clapcur.testing"}
    assert {longest_prefix(name, dict.fromkeys(STAGES)) or name for name in makers} == set(STAGES)


SOURCE = (
    'VERSION = "3"\ndef f(x: int = 1) -> int:\n    return x + 1\nSTAGE = Stage("train", VERSION, "checkpoint", f)\n'
)


@pytest.mark.parametrize(
    ("source", "is_same"),
    [
        (SOURCE.replace("    return", '    """Add."""\n    # why\n    return'), True),
        (SOURCE.replace("x + 1", "(x\n        + 1)"), True),
        (SOURCE.replace("x + 1", "x + 2"), False),
        (SOURCE.replace("x: int = 1", "x: int = None"), False),
        (SOURCE.replace("x + 1", "'not a docstring'"), False),
    ],
)
def test_comments_and_layout_are_no_change_and_numbers_are(source, is_same):
    """Too coarse, a changed default passes; too fine, people note "unchanged" without looking."""
    assert (fingerprint(ast.parse(source)) == fingerprint(ast.parse(SOURCE))) is is_same


def test_the_fingerprint_is_the_same_on_every_python():
    """On another Python every stage would seem to have changed (the number was taken on 3.11, 3.12 and 3.13)."""
    source = SOURCE + "def g(a, /, *b, **c):\n    return f'{a!r:>4} and ' f'{c}' if a else None\n"
    assert fingerprint(ast.parse(source)) == "a95b17c62b3a7ed0f04e5d656f13315df9e656d9498eebdbbbbd4dc9f0aa13b9"


@pytest.mark.parametrize(
    "call", ['Stage("a", VERSION, "b", f)', 'Stage("a", "3", "b", f)', 'Stage(name="a", version="3")']
)
def test_the_version_is_read_however_it_is_written(call):
    """A version that is not found cannot be compared."""
    tree = ast.parse(f'VERSION = "3"\ndef make():\n    return {call}')
    assert version_of("m", {"m": Module("m", ast.parse("x = 1")), "m.inside": Module("m.inside", tree)}) == "3"


@pytest.mark.parametrize(
    "source",
    [
        "x = 1",
        "Stage('a', 3, 'b', f)",
        "Stage('a', str(x), 'b', f)",
        "Stage('a', '1', 'b', f); Stage('a', '2', 'b', f)",
    ],
)
def test_a_stage_without_one_readable_version_is_an_error(source):
    """An unreadable version compares equal to itself for ever."""
    with pytest.raises(ValueError, match="expected one Stage"):
        version_of("m", {"m": Module("m", ast.parse(source))})


def test_a_change_in_a_part_below_is_a_change_of_the_stage():
    """The loss moved into a file of its own, and from then on could change unseen."""
    text = {
        "clapcur.stages.train": "from clapcur.methods.losses import loss\nfrom clapcur.errors import DataError",
        "clapcur.methods.losses": "def f():\n    from clapcur.methods import metrics",
        "clapcur.methods.metrics": "x = 1",
        "clapcur.errors": "class DataError(Exception): ...",
    }
    modules = {name: Module(name, ast.parse(source)) for name, source in text.items()}
    before = sources_of("clapcur.stages.train", modules)
    assert list(before) == ["clapcur.methods.losses", "clapcur.methods.metrics", "clapcur.stages.train"]
    modules["clapcur.methods.metrics"] = Module("clapcur.methods.metrics", ast.parse("x = 2"))
    after = sources_of("clapcur.stages.train", modules)
    assert "clapcur.methods.metrics changed" in complaint(
        "clapcur.stages.train", {"version": "1", "sources": before}, "1", after
    )


def test_a_stage_passes_only_under_the_version_and_the_source_on_record():
    """A raised version that was never recorded would let every later change pass."""
    recorded = {"version": "1", "note": "", "sources": {"m": "a"}}
    assert complaint("m", recorded, "1", {"m": "a"}) is None
    assert "new here" in complaint("m", None, "1", {"m": "a"})
    assert "still has version 1, but m changed" in complaint("m", recorded, "1", {"m": "b"})
    assert "from version 1 to 2" in complaint("m", recorded, "2", {"m": "b"})


def test_the_tool_asks_for_a_new_version_or_a_note_and_keeps_old_notes(tmp_path, monkeypatch):
    """A tool that recorded whatever it found would make the rule a ritual."""
    modules = {"m": Module("m", ast.parse(SOURCE)), "n": Module("n", ast.parse(SOURCE))}
    monkeypatch.setattr(stage_versions, "RECORDED", tmp_path / "sources.json")
    monkeypatch.setattr(stage_versions, "STAGES", ("m", "n"))
    monkeypatch.setattr(stage_versions, "MODULES", modules)
    assert record(None) == 0
    first = read_entries()
    assert [first[stage]["note"] for stage in "mn"] == ["version 3", "version 3"]

    modules["m"] = Module("m", ast.parse(SOURCE.replace("x + 1", "1 + x")))
    assert record(None) == 1
    assert read_entries() == first
    assert record("addition commutes") == 0
    assert read_entries()["m"]["note"] == "addition commutes"
    assert read_entries()["m"]["sources"] == sources_of("m", modules)
    assert read_entries()["n"] == first["n"]

    modules["m"] = Module("m", ast.parse(SOURCE.replace("x + 1", "x + 2").replace('"3"', '"4"')))
    assert record(None) == 0
    assert (read_entries()["m"]["version"], read_entries()["m"]["note"]) == ("4", "version 4")
