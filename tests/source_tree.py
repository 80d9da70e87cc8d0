"""The project's own source as data, read without importing it: modules, what each imports, and when."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("clapcur", "tasks", "flows")  # flows and tasks are installed, and imported, as parts of clapcur


@dataclass(frozen=True)
class Import:
    """One imported thing: its dotted name (with the name imported from a module as the last part) and its line."""

    target: str
    line: int
    when: Literal["import", "call", "typing"]
    # at the import of the module, at a call of one of its functions, or for the type checker only


@dataclass(frozen=True)
class Module:
    """A module of the project."""

    name: str
    tree: ast.Module
    is_package: bool = False

    @property
    def imports(self) -> list[Import]:
        """Everything that the module imports, inside functions too."""
        package = self.name if self.is_package else self.name.rpartition(".")[0]
        return list(_imports(self.tree, package, "import"))


def read_modules() -> dict[str, Module]:
    """Parse every module of the project's packages."""
    modules = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "clapcur" else ("clapcur", *parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules[name] = Module(name, ast.parse(path.read_text(), path), is_package)
    return modules


def longest_prefix(name: str, known: Mapping[str, object]) -> str | None:
    """Return the longest dotted prefix of `name`, or all of it, that is a key of `known`."""
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in known), None)


def _imports(node: ast.AST, package: str, when: Literal["import", "call", "typing"]) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, when) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
        base = ".".join(filter(None, [*above, node.module]))
        yield from (Import(f"{base}.{alias.name}", node.lineno, when) for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
        "importlib.import_module",
        "import_module",
        "__import__",
    ):
        if node.args and isinstance(node.args[0], ast.Constant):
            yield Import(str(node.args[0].value), node.lineno, when)
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.body:
            yield from _imports(child, package, "typing")
        for child in node.orelse:
            yield from _imports(child, package, when)
        return
    inside = "call" if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) else when
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, package, inside)
