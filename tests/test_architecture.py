"""The house: which room each module stands in, and that imports point one way only.

``flows -> tasks -> clapcur``, and inside clapcur from the command down to the words. An import that runs the other way
works on the day it is written; it makes the science unusable without Prefect, the help slow and the stages a knot.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from source_tree import Import, Module, longest_prefix, read_modules

# From the ground up. An import points to the importer's own layer or to one above it in this table.
LAYERS = {
    "words": (
        "clapcur.__version__",
        "clapcur.artifacts",
        "clapcur.config",
        "clapcur.errors",
        "clapcur.home",
        "clapcur.pace",
        "clapcur.progress",
        "clapcur.sequences",
        "clapcur.strict_yaml",
        "clapcur.textfiles",
    ),
    "data": (
        "clapcur.audio",
        "clapcur.class_names",
        "clapcur.embeddings",
        "clapcur.forgotten",
        "clapcur.improvement_set",
        "clapcur.manifest",
        "clapcur.marks",
        "clapcur.recordings",
        "clapcur.set_versions",
        "clapcur.tables",
        "clapcur.watching",
    ),
    "parts": (
        "clapcur.contamination",
        "clapcur.corpora",
        "clapcur.devices",
        "clapcur.figures",
        "clapcur.hubness",
        "clapcur.losses",
        "clapcur.metrics",
        "clapcur.mixing",
        "clapcur.models",
        "clapcur.near_duplicates",
        "clapcur.similarity",
        "clapcur.thresholds",
        "clapcur.training_state",
        "clapcur.waveforms",
        "clapcur.windows",
    ),
    "stages": (
        "clapcur.adopt",
        "clapcur.audition",
        "clapcur.curate",
        "clapcur.embed",
        "clapcur.evaluate",
        "clapcur.gate",
        "clapcur.ingest",
        "clapcur.merge",
        "clapcur.pool",
        "clapcur.tombstone",
        "clapcur.train",
    ),
    "edges": (
        "clapcur.catalog",
        "clapcur.champions",
        "clapcur.collecting",
        "clapcur.database",
        "clapcur.guard",
        "clapcur.heartbeat",
        "clapcur.layering",
        "clapcur.leases",
        "clapcur.lineage",
        "clapcur.migrations",
        "clapcur.pools",
        "clapcur.preflight",
        "clapcur.processes",
        "clapcur.recipes",
        "clapcur.report",
        "clapcur.servers",
        "clapcur.serving",
        "clapcur.stage",
        "clapcur.takedowns",
        "clapcur.trace",
        "clapcur.trace_graph",
        "clapcur.verifying",
        "clapcur.wang2023",
        "clapcur.watchdog",
    ),
    "glue of tasks": ("tasks.common", "tasks.fan_out"),
    "tasks": ("tasks",),
    "flows": ("flows",),
    "command": ("clapcur.cli",),
}
ROOMS = {module: layer for layer, modules in LAYERS.items() for module in modules}
HEIGHT = {layer: height for height, layer in enumerate(LAYERS)}

STRANGERS = {"stages", "tasks"}  # stages meet in artifacts, tasks are called from flows: these never import each other
THIRD_PARTY = {
    "words": {"numpy"},
    "data": {"fsspec", "numpy", "pandas", "pyarrow", "scipy", "soundfile", "soxr"},
}  # other layers may use what they need
LAZY = {
    "clapcur.audio.stores": {"aiohttp"},  # sets how long a web server is waited for
    "clapcur.config": {"pydantic", "yaml"},  # read a config file and check its values, as Prefect checks its forms
    "clapcur.strict_yaml": {"yaml"},
    "clapcur.progress": {"rich"},  # draws the bar, at a terminal only
}  # may be imported inside functions
DOORS = {  # the only ways to these two
    "prefect": ("clapcur.cli", "clapcur.guard", "tasks", "flows"),
    "mlflow": ("clapcur.guard", "clapcur.lineage"),
}
SLOW = {"faiss", "matplotlib", "mlflow", "pandas", "prefect", "scipy", "torch", "torchaudio", "transformers"}

MODULES = read_modules()


def is_third_party(target: str) -> bool:
    """Tell whether this is neither ours nor the standard library's."""
    return target.split(".")[0] not in {"clapcur", "tasks", "flows", *sys.stdlib_module_names}


def complaints(module: str, imports: list[Import]) -> list[str]:
    """Say of each import that breaks a rule of the house which rule it is."""
    layer = ROOMS[room] if (room := longest_prefix(module, ROOMS)) else None
    if layer is None:
        return [f"{module} has no room: place it in LAYERS of {__file__} (and in the tree that the docs show)"]
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
        other_room = longest_prefix(item.target, ROOMS)
        if other_room is None:
            said.append(f"{place}, which has no room: import the module that defines it, or place it in LAYERS")
            continue
        other = ROOMS[other_room]
        if HEIGHT[other] > HEIGHT[layer]:
            said.append(f"{place}: {layer} stand below {other}, imports point down")
        elif other == layer and layer in STRANGERS and item.target.split(".")[:2] != module.split(".")[:2]:
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


def test_no_room_in_the_table_is_empty():
    """A room that names no module would guard nothing, after a rename for instance."""
    assert [room for room in ROOMS if room != "clapcur.__version__" and room not in MODULES] == []


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
    chains = imported_at_once("flows.deployed_pools")
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
        "clapcur.cli": "from clapcur.lineage.facts import flat",
        "clapcur.lineage": "import json\nimport mlflow",
        "clapcur.lineage.facts": "def f():\n    import torch",
    }
    monkeypatch.setattr(
        "test_architecture.MODULES", {name: Module(name, ast.parse(source)) for name, source in text.items()}
    )
    chains = imported_at_once("clapcur.cli")
    assert chains["mlflow"] == ["clapcur.cli", "clapcur.lineage", "mlflow"]
    assert "torch" not in chains


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("clapcur.artifacts", "import clapcur.manifest", "words stand below data"),
        ("clapcur.losses", "from clapcur import train", "parts stand below stages"),
        ("clapcur.curate", "from clapcur.stage import run", "stages stand below edges"),
        ("clapcur.curate", "def f():\n    from clapcur import embed", "stages never import each other"),
        ("clapcur.curate", "from .embed import STAGE", "stages never import each other"),
        ("clapcur.curate.augmented", "from ..embed import STAGE", "stages never import each other"),
        ("clapcur.report", "from clapcur.cli import main", "edges stand below command"),
        ("clapcur.report", "import flows.demo", "edges stand below flows"),
        ("tasks.train", "from tasks.embed import embed", "tasks never import each other"),
        ("tasks.train", "import flows", "tasks stand below flows"),
        ("tasks.common", "from tasks import train", "glue of tasks stand below tasks"),
        ("clapcur.train", "import prefect", "only clapcur.cli, clapcur.guard, tasks, flows may"),
        (
            "clapcur.train",
            "if TYPE_CHECKING:\n    from prefect import Task",
            "only clapcur.cli, clapcur.guard, tasks, flows may",
        ),
        ("clapcur.report", "def f():\n    import mlflow.data", "only clapcur.guard, clapcur.lineage may"),
        (
            "clapcur.report",
            "import importlib\nimportlib.import_module('mlflow')",
            "only clapcur.guard, clapcur.lineage may",
        ),
        ("flows.demo", "from mlflow import log_metric", "only clapcur.guard, clapcur.lineage may"),
        ("clapcur.errors", "import pandas", "words may use"),
        ("clapcur.config", "import pydantic", "words may use"),
        ("clapcur.manifest", "def f():\n    import torch", "data may use"),
        ("clapcur.losses", "from clapcur import load_model", "has no room"),
        ("clapcur.helpers", "import os", "has no room"),
    ],
)
def test_the_rules_see_an_import_that_breaks_them(module, source, complaint):
    """A checker that overlooks imports in functions, or relative ones, passes everything."""
    (said,) = complaints(module, Module(module, ast.parse(source)).imports)
    assert complaint in said


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("clapcur.curate", "from clapcur import similarity\nfrom clapcur.artifacts import Stage\nimport faiss"),
        ("clapcur.curate.augmented", "from .shared import ranks"),
        ("clapcur.artifacts", "from clapcur import __version__"),
        ("clapcur.config", "def f():\n    from pydantic import TypeAdapter"),
        ("clapcur.lineage", "import mlflow"),
        ("clapcur.cli", "def f():\n    import prefect\n    from flows.demo import demo"),
        ("flows.demo", "from flows.compare import compare\nfrom tasks import train\nfrom clapcur import recipes"),
        ("tasks.train", "from tasks.common import run_stage\nfrom prefect import task"),
    ],
)
def test_the_rules_let_pass_what_points_down(module, source):
    """Rules that complain of what is right get switched off."""
    assert complaints(module, Module(module, ast.parse(source)).imports) == []
