"""What `import clapcur` offers: a model by every name that it has."""

import subprocess
import sys

import chain
import numpy as np
import pytest
from hugging_face_models import write_hugging_face
from tiny_clap import CAPTIONS, CONFIG

import clapcur
from clapcur.errors import ArtifactError, CheckpointError, DataError
from clapcur.models.clap import Clap
from clapcur.testing import write_tone


@pytest.fixture(scope="module")
def model():
    return Clap.create(CONFIG, CAPTIONS, seed=5).eval()


@pytest.fixture
def student(home, model):
    """Make a teacher and a student that became champion."""

    def write(work):
        model.save(work.path)

    teacher = chain.make(home, "checkpoint", "teacher", write)
    student = chain.make(home, "checkpoint", "student", write)
    chain.decision(home, teacher, teacher, student, promoted=True)
    return student


@pytest.fixture
def sound(tmp_path):
    return write_tone(tmp_path / "tone.wav", 900, seed=1)


def test_every_name_of_a_model_gives_it(student, model, sound, tmp_path, monkeypatch):
    """A name that works at the command line and not in Python sends people to look for folders."""
    model.save(tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    expected = model.embed_audio([sound])
    names = {
        student.id: student.id, student.id[:6]: student.id, "models:/clapcur-esc50@champion": student.id,
        "clapcur-esc50@champion": student.id, student.path: student.id, str(student.path): student.id,
        "exported": None, tmp_path / "exported": None,
    }  # fmt: skip
    for name, artifact_id in names.items():
        found = clapcur.load(name, device="cpu")
        assert np.array_equal(found.embed_audio([sound]), expected), name
        assert (found.id, found.training) == (artifact_id, False), name
    assert repr(clapcur.load(student.id)).startswith(f"Clap(id='{student.id}', audio='Cnn14 tiny'")


def test_a_model_of_another_project_is_loaded_from_its_folder_or_file(tmp_path, sound):
    """`adopt` must not be needed only to listen."""
    write_hugging_face(tmp_path / "clap")
    found = clapcur.load(tmp_path / "clap", device="cpu")
    assert found.embed_text(["rain"]).shape == (1, 24)
    (tmp_path / "noise.pth").write_bytes(b"RIFF" + bytes(100))
    with pytest.raises(CheckpointError, match="a sound file.*`clapcur adopt` has options"):
        clapcur.load(tmp_path / "noise.pth")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("0123456789ab", ArtifactError, "no artifact and no MLflow run has the id '0123456789ab'"),
        ("models:/nobody@champion", ArtifactError, "no registered model 'nobody'"),
        ("models:/clapcur-esc50@best", ArtifactError, "has no alias 'best'"),
        ("a/b/c", CheckpointError, "found no model 'a/b/c': it is not a file or folder"),
        ("my-student", CheckpointError, "found no model 'my-student'"),
        ("", CheckpointError, "the name of the model is empty"),
        ("hf:../secret", CheckpointError, "not a file, a folder or a valid name on the Hub"),
        ("nobody/nothing", CheckpointError, "model nobody/nothing not found.*HF_HUB_OFFLINE"),
    ],
)
def test_an_unknown_name_is_one_line(student, name, error, message):
    with pytest.raises(error, match=message) as raised:
        clapcur.load(name)
    assert "\n" not in str(raised.value)


def test_what_is_no_model_is_refused(home, student, tmp_path):
    """An id of something else, an empty folder, a folder that lost its weights."""
    pool = chain.manifest(home, "pool", clips=["a"])
    with pytest.raises(ArtifactError, match="expected a checkpoint, got the manifest"):
        clapcur.load(pool.id)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty"):
        clapcur.load(tmp_path / "empty")
    (student.path / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=student.id):
        clapcur.load(student.id)


def test_looking_up_an_id_creates_no_home(tmp_path, monkeypatch):
    """An empty home in the wrong folder would say that nothing was ever made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLAPCUR_HOME", raising=False)
    with pytest.raises(DataError, match="no clapcur home found at .*give home=... or set CLAPCUR_HOME"):
        clapcur.load("0123456789ab")
    assert list(tmp_path.iterdir()) == []


def test_the_module_lists_what_it_offers_and_imports_it_at_its_first_use():
    """Tab completion showed nothing, and `import clapcur` must not wait for torch."""
    program = (
        "import sys, clapcur; assert 'torch' not in sys.modules; assert {*clapcur.__all__} <= {*dir(clapcur)};"
        "assert 'torch' not in sys.modules; assert all(getattr(clapcur, name) for name in clapcur.__all__);"
        "assert 'torch' in sys.modules and 'prefect' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
