"""A checkpoint that somebody else trained: a teacher like any other, and a student that goes back in its form."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import run
from hugging_face_models import write_hugging_face
from safetensors.torch import load_file, save_file
from tiny_checkpoints import trained, write_clip

from clapcur.audio import load_audio
from clapcur.errors import CheckpointError
from clapcur.experiments.config import experiment_from_file, starter
from clapcur.models.checkpoints import load_checkpoint
from clapcur.models.clap import load_model
from clapcur.models.cnn14 import Cnn14
from clapcur.models.config import ClapConfig, TextConfig
from clapcur.stages.adopt import AdoptConfig
from clapcur.stages.train import TrainConfig
from clapcur.testing import write_tones


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Write a tiny ClapModel as its library does."""
    folder = tmp_path_factory.mktemp("published") / "tiny-clap"
    write_hugging_face(folder)
    return folder


def adopted(home, **config):
    """Run the task."""
    from clapcur.tasks.adopt import adopt

    return adopt(AdoptConfig(**config), {})


def test_an_adopted_model_embeds_as_the_one_that_was_published(home, published, tmp_path):
    """What is between a file and the store must not move a row, or the teacher is another."""
    clip = tmp_path / "clip.wav"
    write_clip(clip, 3.0, 48_000)
    made = adopted(home, source=str(published))
    there, _ = load_checkpoint(published)
    ours = load_model(made.path, device="cpu")
    assert np.array_equal(ours.embed_audio([clip]), there.embed_audio([clip]))
    assert np.array_equal(ours.embed_text(["rain"]), there.embed_text(["rain"]))
    report = json.loads((made.path / "adopted.json").read_text())
    assert report["format"] == made.record.facts["format"] and not report["missing"]
    assert made.record.counts["taken_tensors"] == len(report["mapped"]) > 50
    assert made.record.tags["row"] == "teacher"


def test_what_is_adopted_is_known_by_its_content_and_not_by_its_place(home, published, tmp_path):
    """A checkpoint that was moved would be a new teacher, and all that it embedded would be embedded again."""
    made = adopted(home, source=str(published))
    moved = tmp_path / "elsewhere"
    shutil.copytree(published, moved)
    (moved / "README.md").write_text("another text")
    assert adopted(home, source=str(moved)) == made
    tensors = load_file(moved / "model.safetensors")
    tensors["logit_scale_a"] = tensors["logit_scale_a"] + 0.5
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    other = adopted(home, source=str(moved))
    assert other.id != made.id
    assert other.record.metrics["logit_scale"] == pytest.approx(made.record.metrics["logit_scale"] * np.exp(0.5))
    assert adopted(home, source=str(published), front_end="from_config").id != made.id


@pytest.mark.parametrize(
    ("place", "why"),
    [("nothing-here", "not found: it is not a file, a folder or a name on the Hub"), (".", "holds no checkpoint")],
)
def test_a_place_without_a_checkpoint_is_told_before_anything_is_made(home, tmp_path, monkeypatch, place, why):
    """Half an artifact of a typing mistake would be in the store for ever."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=why):
        adopted(home, source=place)
    assert list(home.root.glob("store/checkpoint/*")) == []


def test_a_lone_tower_is_no_teacher_before_it_was_trained(home, tmp_path):
    """A text tower of fresh weights says something to every clip, and all of it is noise."""
    from clapcur.data.rows import Row
    from clapcur.tasks.adopt import adopt
    from clapcur.tasks.ingest import ingest
    from clapcur.tasks.train import train

    weights = trained(Cnn14("tiny", 64)).state_dict()
    torch.save({"model": dict(weights)}, tmp_path / "Cnn14.pth")
    whole = ClapConfig(text=TextConfig(hidden_size=16, num_layers=1, vocab_size=100), embedding_dim=16, window_s=0.7)
    pairs = {"teacher_pairs": ingest(experiment_from_file(write_tones(tmp_path)).pairs, "pairs")}
    config = AdoptConfig(source=str(tmp_path / "Cnn14.pth"), model=whole)
    assert config.needs_captions
    with pytest.raises(
        CheckpointError, match=r"lacks \d+ weights of a complete model.*train it on captioned clips first"
    ):
        adopt(config, pairs)
    tower = adopt(dataclasses.replace(config, partial=True), pairs)
    assert torch.equal(load_model(tower.path, device="cpu").audio.fc1.weight, weights["fc1.weight"])
    assert tower.record.counts["fresh_tensors"] > 10
    few = TrainConfig(num_examples=16, batch_size=8, selection="last", num_evaluations=0, device="cpu")
    teacher = train(few, {"init": tower, **pairs}, Row(strategy="teacher"))
    assert teacher.record.tags["role"] == "teacher"
    assert not torch.equal(load_model(teacher.path, device="cpu").audio.fc1.weight, weights["fc1.weight"])


def with_checkpoint(folder: Path, *lines: str) -> Path:
    """Write the experiment of tones with these lines in the place of its teacher's training."""
    path = write_tones(folder)
    before, _, rest = path.read_text().partition("        teacher:\n")
    student = rest[rest.index("        student:") :]
    path.write_text("\n".join([before, *(f"        {line}" for line in lines), student]))
    return path


def test_an_experiment_names_a_checkpoint_instead_of_a_training(published, tmp_path, monkeypatch):
    """A default training in its place would make a teacher from nothing, and nobody would ask where theirs went."""
    given = experiment_from_file(with_checkpoint(tmp_path, f"checkpoint: {published}"))
    assert given.teacher is None and given.train_teacher(5) is None
    assert given.adopt(5) == AdoptConfig(source=str(published), seed=5)
    assert given.student.learning_rate == 1e-4, "the towers have learned much already"
    training = "teacher: {num_examples: 16, batch_size: 8}"
    on_from = experiment_from_file(with_checkpoint(tmp_path, f"checkpoint: {{source: {published}}}", training))
    assert on_from.teacher is not None and on_from.teacher.model is None
    assert on_from.adopt(5).partial
    monkeypatch.chdir(tmp_path)
    common = {
        "name": "x",
        "pairs": tmp_path / "pairs.csv",
        "evaluation": tmp_path / "labelled.csv",
        "class_names": tmp_path / "classes.txt",
        "rows": (),
    }
    assert starter(**common, checkpoint="laion/clap-htsat-unfused").checkpoint.source == "laion/clap-htsat-unfused"
    with pytest.raises(ValueError, match="no teacher: give `checkpoint`, or `teacher`"):
        experiment_from_file(with_checkpoint(tmp_path, "teacher: null"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_clap_model_becomes_a_student_and_goes_back_as_a_clap_model(home, published, tmp_path, answer):
    """Adopt, curate, train, score, export: the whole way, read again by transformers, which nobody here wrote."""
    from transformers import ClapModel, ClapProcessor

    done = run("compare", with_checkpoint(tmp_path, f"checkpoint: {published}"), "--json")
    assert done.returncode == 0, done.stderr
    first, last = (home.store.find(row["checkpoint"]) for row in json.loads(done.stdout)["rows"])
    assert (first.record.stage, last.record.stage, last.record.inputs["init"]) == ("adopt", "train", first.id)
    assert "adopt" in answer("trace", last.id)[1]
    given_back = ("export", last.id, tmp_path / "given-back", "--format", "hf")
    assert answer(*given_back)[0] == 0
    assert "already exists" in answer(*given_back)[2]
    clip, caption = tmp_path / "pairs" / "0.wav", "the sound of a low hum"
    model = ClapModel.from_pretrained(tmp_path / "given-back").eval()
    processor = ClapProcessor.from_pretrained(tmp_path / "given-back")
    with torch.inference_mode():
        heard = processor(audio=[load_audio(clip, 48_000)], sampling_rate=48_000, return_tensors="pt")
        audio = model.get_audio_features(**heard).pooler_output.numpy()
        text = model.get_text_features(**processor.tokenizer([caption], return_tensors="pt")).pooler_output.numpy()
    ours = load_model(last.path, device="cpu")
    assert np.allclose(ours.embed_audio([clip]), audio, atol=1e-5)
    assert np.allclose(ours.embed_text([caption]), text, atol=1e-5)
    assert not np.allclose(load_model(first.path, device="cpu").embed_text([caption]), text, atol=1e-5), "it learned"
