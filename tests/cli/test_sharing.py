"""Models to the Hugging Face Hub and back, by its own client, against a stand-in for the Hub on this machine."""

import json
import socket
import subprocess
import sys

import chain
import numpy as np
import pytest
import yaml
from hub_server import READ_ONLY, TOKEN, running_hub
from hugging_face_models import write_hugging_face
from huggingface_hub import constants
from tiny_clap import CAPTIONS, CONFIG

import clapcur
from clapcur.data.scores import ZERO_SHOT, Contamination, Protocol, ZeroShotScores
from clapcur.models.clap import Clap, load_model
from clapcur.stages.tombstone import STAGE as BURY
from clapcur.stages.tombstone import Tombstone
from clapcur.store.record import Outcome
from clapcur.store.runner import run as run_stage
from clapcur.testing import write_tone


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Run the Hub; the commands of the test have a token for it and a cache of their own."""
    with running_hub() as hub:
        for name, value in {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def here(hub, answer, tmp_path, monkeypatch):
    """Give a function that runs a command in this process, whose client of the Hub was told to stay offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return answer


@pytest.fixture
def student(home):
    """Make a student of a set, with scores."""
    model = Clap.create(CONFIG, CAPTIONS, seed=5)

    def write(work):
        model.save(work.path)
        return Outcome(counts={"seen.improvement_set": 24})

    made = chain.experiment(home)
    inputs = {"teacher": made["teacher"], "improvement_set": made["set"], "teacher_pairs": made["teacher_pairs"]}
    student = chain.make(home, "checkpoint", "real student", write, inputs, tags={"row": "ads+sl"})
    protocol = Protocol(task=ZERO_SHOT, crops=1, num_clips=400, num_recordings=40, prompt="{}", num_classes=10)
    scores = ZeroShotScores(
        protocol=protocol, accuracy=0.75, interval=(0.625, 0.875), transductive=0.8,
        contamination=Contamination(status="clean", num_clips=0, by_reason={}),
    )  # fmt: skip
    chain.make(home, "scores", "of it", lambda work: scores.write(work.path), {"checkpoint": student})
    return student


def run(*arguments):
    """Run a command in a process of its own, since the Hub's client reads its settings when it is imported."""
    command = [sys.executable, "-c", "from clapcur.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def refused(done, message):
    code, out, err = done
    assert code == 1 and out == "", err
    assert err.count("\n") == 1 and message in err, err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_model_comes_back_from_the_hub_as_it_was(hub, home, student, tmp_path):
    """Another tokenizer or another front end would load just as well."""
    done = run("push", student.id, "my-org/barks", "--license", "cc-by-4.0", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"url": f"{hub.url}/my-org/barks", "checkpoint": student.id}
    files = hub.files["my-org/barks"]
    assert {"README.md", "config.json", "model.safetensors"} <= set(files)
    assert all(name.startswith("text/") for name in set(files) - {"README.md", "config.json", "model.safetensors"})
    assert hub.commits["my-org/barks"][-1] == f"Upload {student.id}"

    program = "import sys, clapcur, numpy; numpy.save(sys.argv[1], clapcur.load(sys.argv[2]).embed_text(['a dog']))"
    expected = load_model(student.path, device="cpu").embed_text(["a dog"])
    subprocess.run([sys.executable, "-c", program, tmp_path / "rows.npy", "my-org/barks"], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "rows.npy"), expected, atol=1e-6)

    done = run("pull", "my-org/barks", "--json")
    assert done.returncode == 0, done.stderr
    pulled = clapcur.load(json.loads(done.stdout)["id"], device="cpu")
    sound = write_tone(tmp_path / "tone.wav", 900, seed=1)
    assert np.array_equal(pulled.embed_audio([sound]), load_model(student.path, "cpu").embed_audio([sound]))

    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["license"] == "cc-by-4.0" and metadata["library_name"] == "clapcur"
    assert "clapcur.load('hf:my-org/barks')" in card and "accuracy 0.750 [0.625, 0.875]" in card
    assert all(name in card for name in student.record.inputs.values()) and "caption threshold 0.7" in card
    assert str(tmp_path) not in card, "a path of this machine"


def test_a_version_is_added_to_a_repository_only_if_asked(hub, here, home, student):
    """The name of somebody's other model, and files that the new version no longer has."""
    push = ("push", student.id, "my-org/barks")
    assert here(*push)[0] == 0
    refused(here(*push), f"my-org/barks already exists at {hub.url}")
    hub.files["my-org/barks"] |= {"text/old.json": b"{}", "LICENSE": b"mine"}
    assert here(*push, "--update")[0] == 0
    assert "text/old.json" not in hub.files["my-org/barks"] and "LICENSE" in hub.files["my-org/barks"]
    assert len(hub.commits["my-org/barks"]) == 3


def test_a_model_of_a_forgotten_clip_is_not_uploaded(hub, here, home, student):
    run_stage(BURY, Tombstone(clip_id=chain.clip("pool-1"), pcm_sha256="", recording_id="", reason="asked"), {}, home)
    refused(here("push", student.id, "my-org/barks"), "was not uploaded: the Improvement-Set")
    assert hub.files == {}


def test_what_the_hub_refuses_is_one_line(hub, here, home, student, monkeypatch):
    """The client's own errors are pages of HTML, headers and advice about git."""
    push = ("push", student.id, "my-org/barks")
    refused(here("pull", "nobody/nothing"), f"there is no model nobody/nothing at {hub.url}, or it is private")
    refused(here("push", student.id, "a/b/c"), "'a/b/c' is not a valid name on the Hub")
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    refused(here(*push), "the token does not allow this for my-org/barks")
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    refused(here(*push), f"{hub.url} did not accept the token: log in with `hf auth login`")
    monkeypatch.delenv("HF_TOKEN")
    refused(here(*push), f"there is no token for {hub.url}: log in with")
    assert hub.files == {}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fails_commit = True
    then = "; the repository my-org/barks exists now, so run again with --update"
    refused(here(*push), f"the disk of the Hub is full{then}")


def test_a_private_model_needs_a_token(hub, here, home, student, monkeypatch):
    assert here("push", student.id, "my-org/secret", "--private")[0] == 0
    assert hub.private == {"my-org/secret"}
    monkeypatch.delenv("HF_TOKEN")
    refused(here("pull", "my-org/secret"), "or it is private; if it is private, log in with `hf auth login`")


def test_a_repository_without_a_model_is_refused(hub, here, home, tmp_path):
    """A data set, or one that somebody began to upload."""
    hub.files["my-org/empty"], hub.commits["my-org/empty"] = {"README.md": b"# hello"}, ["initial commit"]
    refused(here("pull", "my-org/empty"), "my-org/empty on the Hub has no config.json")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_model_of_another_project_is_pulled_too(hub, home, tmp_path):
    write_hugging_face(tmp_path / "clap")
    hub.commits["laion/tiny"] = ["initial commit"]
    hub.files["laion/tiny"] = {path.name: path.read_bytes() for path in (tmp_path / "clap").iterdir()}
    done = run("pull", "laion/tiny", "--json")
    assert done.returncode == 0, done.stderr
    found = clapcur.load(json.loads(done.stdout)["id"], device="cpu")
    expected = clapcur.load(tmp_path / "clap", device="cpu").embed_text(["rain"])
    np.testing.assert_allclose(found.embed_text(["rain"]), expected, atol=1e-6)


def test_without_a_network_it_ends_at_once(hub, here, home, student, monkeypatch):
    """The client tries for more than a minute."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nothing listens there
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        refused(here("push", student.id, "my-org/barks"), "cannot be reached")
        refused(here("pull", "my-org/barks"), "cannot be reached")


@pytest.mark.parametrize(("form", "card"), [("clapcur", "README.md"), ("adapter", "")])
def test_an_export_has_the_same_card(answer, home, student, tmp_path, form, card):
    """Whoever gets the folder alone has nothing else to go by."""
    code, _, err = answer("export", student.id, tmp_path / "barks", "--format", form, "--license", "mit")
    if not card:
        assert code == 1 and "has no adapters" in err and not (tmp_path / "barks.md").exists()
        return
    text = (tmp_path / "barks" / card).read_text()
    assert code == 0 and "license: mit" in text and "clapcur.load('barks')" in text
    assert "accuracy 0.750 [0.625, 0.875]" in text and student.record.inputs["improvement_set"] in text
    (tmp_path / "other.md").write_text("mine")
    code, _, err = answer("export", student.id, tmp_path / "other", "--format", "laion")
    assert code == 1 and "other.md already exists" in err
