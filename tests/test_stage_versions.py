"""Stage versions: a stage whose source changed gets a new version, or a note that its results are what they were.

The version is part of an artifact's identity. A changed stage under the old version would hand out old artifacts as new
ones, and no later check could tell. `stage_sources.json` remembers the source that each version represents: the stage's
own module and what it reaches in the layers below. After a change, one of these::

    python tests/test_stage_versions.py                              # the version in STAGE was raised
    python tests/test_stage_versions.py --results-unchanged "why"    # the results are the same, and why
"""

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from layer_tools import layer_of
from source_tree import Module, longest_prefix, read_modules

RECORDED = Path(__file__).with_name("stage_sources.json")
MODULES = read_modules()
STAGES = tuple(name for name in MODULES if name.startswith("clapcur.stages.") and name.count(".") == 2)
REACHED = ("audio", "data", "corpora", "methods", "models")  # layers whose source is part of what a stage does
Entry = Mapping[str, Any]  # version, note, sources: SHA-256 by module


def fingerprint(tree: ast.Module) -> str:
    """Return the SHA-256 of what the source does: without comments, layout and docstrings, the same on every Python."""
    return hashlib.sha256(json.dumps(skeleton(tree)).encode()).hexdigest()


def skeleton(node: Any) -> Any:
    """Reduce a syntax tree to lists. `ast.dump` does not serve: Python 3.13 writes the same tree in another way."""
    if isinstance(node, list):
        return [skeleton(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if "body" in fields and isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        fields["body"] = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    kept = {name: value for name, value in fields.items() if name != "ctx" and value is not None and value != []}
    return [type(node).__name__, {name: skeleton(value) for name, value in sorted(kept.items())}]


def modules_of(stage: str, modules: Mapping[str, Module]) -> list[Module]:
    """Return the stage's module, and those inside it where it is a folder."""
    return [module for name, module in modules.items() if name == stage or name.startswith(f"{stage}.")]


def version_of(stage: str, modules: Mapping[str, Module]) -> str:
    """Return the version that the stage declares: ``Stage(name, version, ...)``, once."""
    found = {version for module in modules_of(stage, modules) for version in versions_in(module.tree)}
    if len(found) != 1 or not all(isinstance(version, str) for version in found):
        raise ValueError(f"expected one Stage(name, version, ...) with a string in {stage}, found {len(found)}")
    return found.pop()


def versions_in(tree: ast.Module) -> Iterator[Any]:
    """Yield the version of each call of `Stage`; an expression that is no constant as its source."""
    constants = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Stage":
            by_name = {item.arg: item.value for item in node.keywords}
            value = by_name.get("version") or node.args[1]
            value = constants.get(ast.unparse(value), value)
            yield value.value if isinstance(value, ast.Constant) else value


def sources_of(stage: str, modules: Mapping[str, Module]) -> dict[str, str]:
    """Return the fingerprints of the modules behind a stage: its own modules, and what they reach in lower layers."""
    reached, waiting = set(), [module.name for module in modules_of(stage, modules)]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        for item in modules[name].imports:
            target = longest_prefix(item.target, modules)
            if target and target not in reached and layer_of(item.target) in REACHED:
                waiting.append(target)
    return {name: fingerprint(modules[name].tree) for name in sorted(reached)}


def complaint(stage: str, recorded: Entry | None, version: str, sources: Mapping[str, str]) -> str | None:
    """Say what is wrong with a stage, and the ways out; None where all is well."""
    tool = "python tests/test_stage_versions.py"
    if recorded is None:
        return f"{stage} is new here: record it with `{tool}`"
    if version != recorded["version"]:
        return f"{stage} went from version {recorded['version']} to {version}: record what it represents with `{tool}`"
    old = recorded["sources"]
    changed = sorted(name for name in {*old, *sources} if old.get(name) != sources.get(name))
    if changed:
        return (
            f"{stage} still has version {version}, but {', '.join(changed)} changed: artifacts of the old source would "
            f"be taken for new ones. Raise the version in STAGE and run `{tool}`, or, where no result changes, run "
            f'`{tool} --results-unchanged "why"`'
        )
    return None


def read_entries() -> dict[str, Entry]:
    """Return what is on record, by stage."""
    return json.loads(RECORDED.read_text()) if RECORDED.exists() else {}


def record(results_unchanged: str | None) -> int:
    """Rewrite the entries of the stages that changed, if each has a new version or there is a note; the exit code."""
    recorded, entries = read_entries(), {}
    for stage in STAGES:
        version, sources, old = version_of(stage, MODULES), sources_of(stage, MODULES), recorded.get(stage)
        said = complaint(stage, old, version, sources)
        is_same_version = old is not None and version == old["version"]
        if said and is_same_version and not results_unchanged:
            print(said, file=sys.stderr)
            return 1
        note = old["note"] if old and not said else results_unchanged if is_same_version else f"version {version}"
        entries[stage] = {"version": version, "note": note, "sources": sources}
        print(f"{stage} {version}: {'recorded' if said else 'as it was'}")
    RECORDED.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    return 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_changed_has_a_new_version_or_a_note(stage):
    """The store would hand out what the old code made, under an id that says the new code made it."""
    recorded = read_entries().get(stage)
    if said := complaint(stage, recorded, version_of(stage, MODULES), sources_of(stage, MODULES)):
        pytest.fail(said)


def test_every_module_with_a_stage_is_watched():
    """A new stage outside the list could change for ever under one version."""
    makers = {name for name, module in MODULES.items() if list(versions_in(module.tree))}
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
    here = sys.modules[__name__]
    monkeypatch.setattr(here, "RECORDED", tmp_path / "sources.json")
    monkeypatch.setattr(here, "STAGES", ("m", "n"))
    monkeypatch.setattr(here, "MODULES", modules)
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results-unchanged", metavar="WHY", help="a note: why no result of the changed stages changed"
    )
    sys.exit(record(parser.parse_args().results_unchanged))
