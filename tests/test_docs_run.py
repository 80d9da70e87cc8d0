"""The commands and the Python of the README run as they are written, one after another, in a folder of small sounds."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import write_tone, write_tones
from source_tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
NOT_RUN = {  # why not here
    "make demo": "takes minutes; what it runs is what `improve` and `compare` run",
    "make test": "would run this test",
    "clapcur improve --pairs": "trains for minutes; the same flow runs from the config",
    "clapcur improve --checkpoint": "needs a model from the Hugging Face Hub",
    "clapcur adopt": "needs Microsoft's file; tests/test_checkpoints.py reads files of that form",
    "clapcur export": "of a student whose teacher came from the Hub; tests/test_hugging_face.py does it",
    "clapcur up": "runs until Ctrl-C; tests/test_up.py",
}
TINY = """
teacher:
  num_examples: 16
  batch_size: 8
  num_evaluations: 0
  model:
    audio: {width: tiny, front_end: {sample_rate: 16000, n_fft: 512, hop_samples: 320, num_mels: 40, f_max: 7800}}
    text: {source: bert-tiny, hidden_size: 16, num_layers: 1, vocab_size: 100}
    embedding_dim: 16
    window_s: 0.7
student: {num_examples: 8, batch_size: 8, num_evaluations: 0}
rows: [{strategy: teacher}, {strategy: ads, soft_labels: true}]
near_duplicate: null
"""


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Return the command lines of the README in order, without their comments."""
    lines = [line for block in fenced("") for line in block.replace("\\\n", " ").splitlines()]
    found = [re.sub(r"\s{2,}#.*|\s#\s.*", "", line).strip() for line in lines]
    return [line for line in found if re.match(r"(\.venv/bin/)?(clapcur|make|mlflow|export) ", line)]


def reason_of(line: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if line.removeprefix(".venv/bin/").startswith(start)), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder of a user: the files that the README names."""
    folder = tmp_path_factory.mktemp("user")
    write_tones(folder)
    for name in ("pairs.csv", "labelled.csv", "classes.txt"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("low hum", "rain").replace("low_hum", "rain"))
    for month in (11, 12):
        for number in range(4):
            write_tone(
                folder / f"recordings/2026-{month}/{number}.wav", (200, 3000)[number % 2], seed=100 * month + number
            )
    shutil.copy(folder / "recordings/2026-11/0.wav", folder / "recording.wav")
    (folder / "clips.csv").write_text("path\nrecordings/2026-11/0.wav\nrecordings/2026-12/1.wav\n")
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(BIN)
    return folder


class Shell:
    """A user's shell: what one line exports holds for the next; names in capitals are those of what was made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("CLAPCUR_", "MLFLOW_"))}
        self.environment = outside | {"PATH": f"{BIN}:{os.environ['PATH']}", "PWD": str(folder)}

    def run(self, line: str) -> str:
        if line.startswith("export "):
            for name, value in re.findall(r"(\w+)=(\S+)", line):
                self.environment[name] = value.replace("$PWD", str(self.folder))
            return ""
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def filled(self, line: str) -> str:
        """Return a line with ids in place of STUDENT, SET, ID, OTHER and the clip that is forgotten."""
        if not re.search(r"\b(STUDENT|SET|ID|OTHER|9f3a01)\b", line):
            return line
        from clapcur.store.home import Home

        store = Home(self.folder / ".clapcur").store
        students = [one for one in store.of_kind("checkpoint") if "improvement_set" in one.record["inputs"]]
        chosen = store.find(students[-1].record["inputs"]["improvement_set"])
        from clapcur.data.improvement_set import ImprovementSet

        forgotten = ImprovementSet.open(chosen).pairs(["clip_id"]).clip_id[0]
        values = {
            "STUDENT": students[-1].id, "SET": chosen.id, "ID": students[-1].id, "OTHER": students[0].id,
            "9f3a01": forgotten[:8],
        }  # fmt: skip
        return re.sub(r"\b(STUDENT|SET|ID|OTHER|9f3a01)\b", lambda match: values[match[0]], line)


@pytest.fixture(scope="module")
def story(folder: Path) -> Iterator[dict[str, str]]:
    """Run the README from top to bottom; gives what each line printed."""
    shell, said = Shell(folder), {}
    for line in commands():
        if reason_of(line) is None:
            said[line] = shell.run(shell.filled(line))
        if "clapcur init" in line:  # as a user edits it
            config = folder / "my-sounds.yaml"
            config.write_text(config.read_text() + TINY)
        if "clapcur compare" in line:  # "Give the pool a name in the config"
            text = config.read_text()
            config.write_text(text.replace("pool: recordings/", "pool: pool:field"))
    yield said


def test_every_command_of_the_readme_runs_as_it_is_written(story: dict[str, str], folder: Path) -> None:
    """A command that fails is the first thing that a newcomer sees; `mlflow models predict` did."""
    assert len(story) > 15
    assert "promoted" in story["clapcur recurate my-sounds.yaml"].lower()
    predicted = next(text for line, text in story.items() if line.startswith("mlflow models predict"))
    assert predicted.count("recordings/2026-1") == 2 and re.search(r"rain|high.whistle", predicted)
    assert (folder / "tree.html").is_file()


def test_nothing_is_left_beside_what_was_asked_for(story: dict[str, str], folder: Path) -> None:
    """MLflow made a database of its own in the folder where it was called."""
    assert {path.name for path in folder.iterdir()} - {".venv", ".clapcur"} == {
        "pairs", "pairs.csv", "labelled.csv", "classes.txt", "tones.yaml", "0.wav", "1.wav", "2.wav", "3.wav",
        "recordings", "recording.wav", "clips.csv", "my-sounds.yaml", "tree.html",
    }  # fmt: skip


def test_the_reasons_are_of_lines_that_are_there() -> None:
    lines = [line.removeprefix(".venv/bin/") for line in commands()]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


def test_the_python_of_the_readme_runs(story: dict[str, str], folder: Path) -> None:
    (block,) = fenced("python")
    shell = Shell(folder)
    student = shell.filled("STUDENT")
    for name in ("dog.wav", "rain.flac"):
        write_tone(folder / "py" / name, 500, seed=len(name))
    code = block.replace(".clapcur/", "../.clapcur/").replace("<id>", student)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder / "py",
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
