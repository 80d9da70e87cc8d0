"""Stage versions: a stage whose source changed gets a new version, or a note that its results are what they were.

The version is part of an artifact's identity. A changed stage under the old version would hand out old artifacts as new
ones, and no later check could tell. `stage_sources.json` remembers the source that each version represents: the stage's
own module and what it reaches in the layers below. After a change, one of these::

    python tests/stage_versions.py                              # the version in STAGE was raised
    python tests/stage_versions.py --results-unchanged "why"    # the results are the same, and why
"""

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
    tool = "python tests/stage_versions.py"
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results-unchanged", metavar="WHY", help="a note: why no result of the changed stages changed"
    )
    sys.exit(record(parser.parse_args().results_unchanged))
