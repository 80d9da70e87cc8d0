"""Completion at a shell: what the protocol of bash, zsh and fish gets, and how fast."""

import os
import subprocess
import sys
import time

import pytest
from doc_pages import TEXT
from source_tree import ROOT

from clapcur import cli
from clapcur.store.artifacts import Stage, write_atomic
from clapcur.store.catalog import Catalog
from clapcur.store.record import Outcome
from clapcur.testing import commit

PROGRAM = "import sys; from clapcur.cli import main; {}main()"
HEAVY = ("torch", "sqlalchemy", "pandas", "mlflow", "prefect", "transformers", "pyarrow")


def completed(words, shell="fish", program=""):
    """Return what a shell is offered after these words, of which the last is incomplete."""
    environment = os.environ | {
        "_CLAPCUR_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")),
        "_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    command = [sys.executable, "-c", PROGRAM.format(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip().splitlines()


@pytest.fixture
def made(home):
    """Make a checkpoint, scores and a decision; gives their ids by kind."""
    stage = Stage("train", "1", "checkpoint", lambda inputs, config, work: Outcome())
    tags = {"row": "ads+sl", "seed": 3}
    checkpoint = home.store.commit(home.store.open(stage.key({}, {})), Outcome(), time.time(), tags=tags)
    gate = Stage("gate", "1", "decision", lambda inputs, config, work: Outcome())
    home.store.commit(home.store.open(gate.key({}, {})), Outcome(), time.time(), tags={"dataset": "esc50"})
    scores = commit(home.store, "scores", "s", lambda work: write_atomic(work.path / "scores.json", "{}"), {})
    Catalog.open(home).rebuild(home.store)
    return {"checkpoint": checkpoint.id, "scores": scores.id}


def test_ids_have_kind_and_label_beside_them(made):
    """Twelve digits alone tell nobody which model they are."""
    lines = dict(line.split("\t") for line in completed("clapcur show ") if "\t" in line)
    assert lines[made["checkpoint"]].startswith("checkpoint, train ads+sl, ")
    assert lines[made["scores"]].startswith("scores, ")
    assert lines["clapcur-esc50@champion"] == "registered model"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_an_argument_completes_only_what_it_takes(made, shell):
    """An id of another kind is an error one line later."""
    text = "\n".join(completed("clapcur evaluate ", shell))
    assert made["checkpoint"] in text and made["scores"] not in text
    text = "\n".join(completed(f"clapcur trace {made['scores'][:4]}", shell))
    assert made["scores"] in text and made["checkpoint"] not in text
    assert "clapcur-esc50@champion" in "\n".join(completed("clapcur trace clapcur-e", shell))


def test_options_and_a_home_on_the_line_are_completed_too(made, home, monkeypatch):
    monkeypatch.setenv("CLAPCUR_HOME", "/nowhere")
    assert completed("clapcur train-student --teacher ", "bash") == []
    line = f"clapcur train-student --home {home.root} --teacher "
    assert made["checkpoint"] in completed(line, "bash")


@pytest.mark.parametrize("state", ["absent", "no catalog", "damaged catalog"])
def test_a_broken_home_completes_what_its_folders_say(made, home, tmp_path, monkeypatch, state):
    """A traceback in the middle of a command line is worse than no completion."""
    if state == "absent":
        monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "absent"))
        assert completed("clapcur show ", "bash") == [] and not (tmp_path / "absent").exists()
        return
    for path in home.root.glob("catalog.db*"):
        path.unlink()
    if state == "damaged catalog":
        (home.root / "catalog.db").write_bytes(b"no database" * 1000)
    before = sorted(home.root.rglob("*"))
    assert set(made.values()) <= set(completed("clapcur show ", "bash"))
    assert sorted(home.root.rglob("*")) == before


def test_completion_imports_nothing_heavy(made):
    """It runs at every press of a key."""
    code = f"import atexit; atexit.register(lambda: print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)); "
    assert made["checkpoint"] in completed("clapcur show ", "bash")
    environment = os.environ | {"_CLAPCUR_COMPLETE": "complete_bash", "COMP_WORDS": "clapcur show ", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(code)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.strip() == "[]"


def test_the_table_of_verbs_names_commands_that_exist():
    """A verb that was renamed sends newcomers to an error."""
    page = TEXT[ROOT / "docs/verbs.md"]
    cells = [line.split(" | ")[1] for line in page.splitlines() if line.startswith("| ") and "clapcur |" not in line]
    named = {part.split(" ")[0] for cell in cells for part in cell.split("`")[1::2]}
    commands = {name for name, _, _ in cli.COMMANDS}
    assert {name for name in named if not name.startswith("--")} <= commands
    assert len(named) > 20
