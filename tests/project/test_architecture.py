"""The layers: each is a folder of ``clapcur/``, and imports point one way only, from the bottom of this list up.

An import that runs the other way works on the day it is written; it makes the science unusable without Prefect, the
help slow and the stages a knot.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from layer_tools import FOLDERS, LAYERS, layer_of
from source_tree import ROOT, Import, Module, longest_prefix, read_modules

SHARED_BY_TASKS = ("clapcur.tasks.common", "clapcur.tasks.fan_out", "clapcur.tasks.pages")

STRANGERS = {"stages", "tasks"}  # stages meet in artifacts, tasks are called from flows: these never import each other
THIRD_PARTY = {
    "base": {"numpy"},
    "store": {"alembic", "filelock", "numpy", "sqlalchemy"},
    "audio": {"fsspec", "numpy", "pyarrow", "scipy", "soundfile", "soxr"},
    "data": {"fsspec", "numpy", "pandas", "pyarrow", "scipy", "soundfile", "soxr"},
}  # other layers may use what they need
LAZY = {
    "clapcur.audio.stores": {"aiohttp"},  # sets how long a web server is waited for
    "clapcur.config": {"pydantic", "yaml"},  # read a config file and check its values, as Prefect checks its forms
    "clapcur.store.payloads": {"pydantic"},  # checks what a file holds
    "clapcur.strict_yaml": {"yaml"},
    "clapcur.pages": {"jinja2"},
    "clapcur.progress": {"rich"},  # draws the bar, at a terminal only
}  # may be imported inside functions
DOORS = {  # the only ways to these two
    "prefect": ("clapcur.cli", "clapcur.servers", "clapcur.tasks", "clapcur.flows"),
    "mlflow": ("clapcur.servers.guard", "clapcur.tracking"),
}
SLOW = {"faiss", "matplotlib", "mlflow", "pandas", "prefect", "scipy", "torch", "torchaudio", "transformers"}

MODULES = read_modules()


def is_third_party(target: str) -> bool:
    """Return whether this is neither ours nor the standard library's."""
    return target.split(".")[0] not in {"clapcur", *sys.stdlib_module_names}


def complaints(module: str, imports: list[Import]) -> list[str]:
    """Return one line for each import that breaks a rule, with the rule."""
    layer = layer_of(module)
    if layer is None:
        return [f"{module} is in no layer: put it into a folder of FOLDERS in {__file__}"]
    said = []
    for item in imports:
        root, place = item.target.split(".")[0], f"{module}:{item.line} imports {item.target}"
        if is_third_party(item.target):
            allowed = THIRD_PARTY.get(layer)
            lazily = item.when != "import" and root in LAZY.get(module, ())
            if allowed is not None and root not in allowed and not lazily:
                said.append(f"{place}: {layer} may use the standard library and {', '.join(sorted(allowed))} only")
            if root in DOORS and not longest_prefix(module, dict.fromkeys(DOORS[root])):
                said.append(f"{place}: only {', '.join(DOORS[root])} may")
            continue
        if root in sys.stdlib_module_names:
            continue
        other = layer_of(item.target)
        if other is None:
            said.append(f"{place}, which is in no layer: import the module that defines it")
        elif LAYERS.index(other) > LAYERS.index(layer):
            said.append(f"{place}: {layer} is below {other}, imports point down")
        elif other == layer and layer in STRANGERS and item.target.split(".")[:3] != module.split(".")[:3]:
            if not item.target.startswith(SHARED_BY_TASKS) or module.startswith(SHARED_BY_TASKS):
                said.append(f"{place}: {layer} never import each other, put what they share into a layer below")
    return said


def imported_at_once(start: str) -> dict[str, list[str]]:
    """Return everything that importing `start` imports, each with the chain of modules that leads to it."""
    chains, waiting = {start: [start]}, [start]
    while waiting:
        name = waiting.pop(0)
        for item in MODULES[name].imports:
            if item.when != "import" or item.target.split(".")[0] in sys.stdlib_module_names:
                continue
            target = longest_prefix(item.target, MODULES) or item.target.split(".")[0]
            packages = [target.rsplit(".", count)[0] for count in range(target.count("."), 0, -1)]  # run before target
            for new in (*packages, target):
                if new not in chains:
                    chains[new] = [*chains[name], new]
                    waiting += [new] if new in MODULES else []
    return chains


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"clapcur"}))
def test_every_import_points_down(module):
    """One import upwards ties the science to the scheduler, and nobody sees it until they try to use one alone."""
    if said := complaints(module, MODULES[module].imports):
        pytest.fail("\n".join(said))


def test_the_list_is_the_folders():
    """A folder that is missing in the list has no rules; a name without a folder guards nothing."""
    folders = [path for path in (ROOT / "clapcur").iterdir() if path.is_dir() and any(path.glob("**/*.py"))]
    assert {folder.name for folder in folders} == set(FOLDERS)
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_importing_clapcur_imports_nothing():
    """The package's own file runs before every command: what it imports, `clapcur --help` waits for."""
    at_once = [item.target for item in MODULES["clapcur"].imports if item.when == "import"]
    assert [target for target in at_once if target.split(".")[0] != "typing"] == []


def test_the_command_line_imports_nothing_slow_before_a_command_runs():
    """One import at the top of one file far below makes every `--help` take seconds."""
    chains = imported_at_once("clapcur.cli")
    assert [" -> ".join(chain) for name, chain in chains.items() if name in SLOW] == []


def test_a_deployed_flow_imports_what_draws_filters_and_tracks_only_when_it_does():
    """Every flow run is a process of its own: what it never uses costs it a second each time, on every worker."""
    chains = imported_at_once("clapcur.flows.deployed_pools")
    needless = {"faiss", "matplotlib", "mlflow", "scipy", "transformers"}
    assert {"torch", "prefect"} <= chains.keys()
    assert [" -> ".join(chain) for name, chain in chains.items() if name in needless] == []


def test_no_module_needs_itself_to_be_imported():
    """A circle works from one end and fails from the other, depending on who is imported first."""
    graph = {
        name: {item.target for item in module.imports if item.when == "import"} for name, module in MODULES.items()
    }
    resolved = {
        name: {found for target in targets if (found := longest_prefix(target, MODULES)) and found != name}
        - {"clapcur"}
        for name, targets in graph.items()
    }
    try:
        TopologicalSorter(resolved).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_slow_import_is_seen_through_every_module_between(monkeypatch):
    """A walk that forgets that a package's own file runs first misses what is imported there."""
    text = {
        "clapcur.cli": "from clapcur.tracking.fields import flat",
        "clapcur.tracking": "import json\nimport mlflow",
        "clapcur.tracking.fields": "def f():\n    import torch",
    }
    monkeypatch.setattr(
        "test_architecture.MODULES", {name: Module(name, ast.parse(source)) for name, source in text.items()}
    )
    chains = imported_at_once("clapcur.cli")
    assert chains["mlflow"] == ["clapcur.cli", "clapcur.tracking", "mlflow"]
    assert "torch" not in chains


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("clapcur.store.artifacts", "import clapcur.data.manifest", "store is below data"),
        ("clapcur.methods.losses", "from clapcur.stages import train", "methods is below stages"),
        ("clapcur.stages.curate", "from clapcur.tracking import deliver", "stages is below tracking"),
        ("clapcur.stages.curate", "def f():\n    from clapcur.stages import embed", "stages never import each other"),
        ("clapcur.stages.curate", "from .embed import STAGE", "stages never import each other"),
        ("clapcur.stages.curate.augmented", "from ..embed import STAGE", "stages never import each other"),
        ("clapcur.stages.report", "from clapcur.cli import main", "stages is below cli"),
        ("clapcur.stages.report", "import clapcur.flows.demo", "stages is below flows"),
        ("clapcur.tasks.train", "from clapcur.tasks.embed import embed", "tasks never import each other"),
        ("clapcur.tasks.train", "import clapcur.flows", "tasks is below flows"),
        ("clapcur.tasks.common", "from clapcur.tasks import train", "tasks never import each other"),
        (
            "clapcur.stages.train",
            "import prefect",
            "only clapcur.cli, clapcur.servers, clapcur.tasks, clapcur.flows may",
        ),
        ("clapcur.stages.train", "if TYPE_CHECKING:\n    from prefect import Task", "clapcur.tasks, clapcur.flows may"),
        (
            "clapcur.stages.report",
            "def f():\n    import mlflow.data",
            "only clapcur.servers.guard, clapcur.tracking may",
        ),
        ("clapcur.stages.report", "import importlib\nimportlib.import_module('mlflow')", "clapcur.tracking may"),
        ("clapcur.flows.demo", "from mlflow import log_metric", "only clapcur.servers.guard, clapcur.tracking may"),
        ("clapcur.errors", "import pandas", "base may use"),
        ("clapcur.config", "import pydantic", "base may use"),
        ("clapcur.data.manifest", "def f():\n    import torch", "data may use"),
        ("clapcur.methods.losses", "from clapcur import load_model", "is in no layer"),
        ("clapcur.helpers", "import os", "is in no layer"),
    ],
)
def test_the_rules_see_an_import_that_breaks_them(module, source, complaint):
    """A checker that overlooks imports in functions, or relative ones, passes everything."""
    (said,) = complaints(module, Module(module, ast.parse(source)).imports)
    assert complaint in said


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "clapcur.stages.curate",
            "from clapcur.methods import similarity\nfrom clapcur.store.artifacts import Stage\nimport faiss",
        ),
        ("clapcur.stages.curate.augmented", "from .shared import ranks"),
        ("clapcur.store.artifacts", "from clapcur import __version__"),
        ("clapcur.config", "def f():\n    from pydantic import TypeAdapter"),
        ("clapcur.tracking", "import mlflow"),
        ("clapcur.cli", "def f():\n    import prefect\n    from clapcur.flows.demo import demo"),
        (
            "clapcur.flows.demo",
            "from clapcur.flows import compare\nfrom clapcur.tasks import train\nfrom clapcur.store import home",
        ),
        ("clapcur.tasks.train", "from clapcur.tasks.common import run_stage\nfrom prefect import task"),
    ],
)
def test_the_rules_let_pass_what_points_down(module, source):
    """Rules that complain of what is right get switched off."""
    assert complaints(module, Module(module, ast.parse(source)).imports) == []
