"""What the docs say of commands and variables: all of them are there, and each line is one that the parser takes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from doc_pages import TEXT
from page_pictures import MOST_BYTES, NAMES, SCHEMES, SIZES
from source_tree import ROOT
from typer.core import TyperGroup

from clapcur.cli import app

COMMAND = typer.main.get_command(app)


def lines_of(text: str) -> list[str]:
    """Return the commands in fenced blocks and between backticks, without comments, continued lines as one."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(
        r"`((?:\.venv/bin/)?clapcur [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()] + inline
    commands = (
        re.sub(r"\s+(#|→|   ).*", "", " ".join(line.split(" #")[0].split("   ")[0:1])).strip() for line in lines
    )
    return [line for line in commands if re.match(r"(\.venv/bin/)?clapcur [a-z-]+", line)]


COMMANDS = sorted({(path.relative_to(ROOT).as_posix(), line) for path, text in TEXT.items() for line in lines_of(text)})


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_in_the_docs_is_one_that_the_parser_takes(page, line):
    """An option that was renamed stays in the docs for ever, and is the first thing that a newcomer types."""
    name, *words = shlex.split(line)[1:]
    command = COMMAND.commands[name]
    if isinstance(command, TyperGroup):
        if not words:
            return  # a group is named
        name, *words = words
        command = command.commands[name]
    try:
        command.make_context(name, words)
    except typer.Exit:  # --help
        pass
    except typer.BadParameter as error:
        is_named_only = type(error).__name__ == "MissingParameter" and not words
        assert is_named_only or "does not exist" in str(error), f"{page}: {line}: {error}"


def commands_of(group: TyperGroup, above: str = "clapcur") -> list[str]:
    found = []
    for name, command in group.commands.items():
        found += commands_of(command, f"{above} {name}") if isinstance(command, TyperGroup) else [f"{above} {name}"]
    return found


@pytest.mark.parametrize("name", commands_of(COMMAND))
def test_every_command_is_in_the_docs(name):
    """What is not written down is found by nobody."""
    assert any(re.search(rf"{name}\b", text) for text in TEXT.values()), f"no page shows `{name}`"


def test_every_variable_is_in_the_docs():
    """Four were known only to whoever read the code."""
    sources = [*(ROOT / "clapcur").rglob("*.py"), *(ROOT / "flows").glob("*.py"), *(ROOT / "tasks").glob("*.py")]
    used = {name for path in sources for name in re.findall(r"CLAPCUR_[A-Z_]*[A-Z]", Path(path).read_text())}
    assert sorted(name for name in used if name not in TEXT[ROOT / "docs/environment.md"]) == []


def test_the_page_of_commands_is_the_one_that_the_commands_make(tmp_path):
    """`make docs` writes it."""
    program = Path(sys.executable).with_name("typer")
    made = [program, "clapcur.cli", "utils", "docs", "--name", "clapcur", "--title", "Every command"]
    subprocess.run([*made, "--output", tmp_path / "commands.md"], check=True, capture_output=True)
    assert (tmp_path / "commands.md").read_text() == TEXT[ROOT / "docs/commands.md"], "run make docs"


def test_the_pictures_of_the_pages_are_there_and_small():
    """A picture that was renamed leaves a hole in the page, and large ones make every clone slow."""
    folder = ROOT / "docs/images/pages"
    shown = set(re.findall(r"images/pages/([\w.-]+)", TEXT[ROOT / "docs/pages.md"]))
    wanted = {f"{name}-{width}-{scheme}.png" for name in NAMES for width in SIZES for scheme in SCHEMES}
    assert shown == wanted == {path.name for path in folder.iterdir()}
    assert [path.name for path in folder.iterdir() if path.stat().st_size > MOST_BYTES] == []
