"""Every notebook in examples/ runs from its first cell to its last, on fewer sounds and with shorter trainings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import ROOT

PRINTED = {"first_student": "the student: train ads+sl, checkpoint", "use_and_share": "pairs of 12 audio clips"}
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SMALLER = """
import dataclasses
import matplotlib
matplotlib.use("agg")
from clapcur.corpora.synthetic import procedural
from clapcur.experiments import config as experiments

class Small(procedural.ProceduralConfig):
    def __new__(cls):
        return procedural_config(teacher_clips_per_class=4, pool_clips_per_class=4, distractor_clips=8,
                                 evaluation_clips_per_class=4, leaked_clips=2, captions_per_class=4, other_captions=20)

procedural_config, procedural.ProceduralConfig = procedural.ProceduralConfig, Small
whole = experiments.demo_experiment

def brief(corpus):
    experiment = whole(corpus)
    count = experiments.Threshold(count=20)
    return dataclasses.replace(
        experiment, curation=dataclasses.replace(experiment.curation, audio_threshold=count, caption_threshold=count),
        teacher=dataclasses.replace(experiment.teacher, num_examples=64),
        student=dataclasses.replace(experiment.student, num_examples=64),
    )

experiments.demo_experiment = brief
"""


def cells(path: Path, kind: str) -> list[str]:
    """Return the text of the cells of one kind."""
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    """A notebook that stopped working is found by the first person who tries the project."""
    program = "\n".join([SMALLER, *cells(path, "code")])
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", program], cwd=tmp_path,
        env=os.environ | {"CLAPCUR_HOME": str(tmp_path / "elsewhere")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert PRINTED[path.stem] in done.stdout
    assert not (tmp_path / "elsewhere").exists(), "what it makes is where it says"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_it_gave(path):
    """It is read before it is run: each cell that ends with a value has its output, and none has an error."""
    made = json.loads(path.read_text())["cells"]
    outputs = [output for cell in made for output in cell.get("outputs", ())]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    numbers = [cell["execution_count"] for cell in made if cell["cell_type"] == "code"]
    assert numbers == list(range(1, len(numbers) + 1)), "run all cells in their order, then save"


def test_each_has_something_to_print():
    assert {path.stem for path in NOTEBOOKS} == PRINTED.keys()
