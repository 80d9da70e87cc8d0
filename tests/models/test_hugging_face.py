"""A ClapModel of transformers as teacher, and a student given back as a ClapModel; its own code is the reference."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from hugging_face_models import embedded, write_hugging_face
from safetensors.torch import load_file, save_file
from tiny_checkpoints import CAPTIONS, write_clip
from transformers import ClapModel

from clapcur.errors import CheckpointError
from clapcur.models.checkpoints import load_checkpoint, save_checkpoint, text_collapse
from clapcur.models.clap import Clap, load_model
from clapcur.models.config import HtsatConfig


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, ClapModel]:
    folder = tmp_path_factory.mktemp("published")
    return folder, write_hugging_face(folder)


@pytest.fixture(scope="module")
def ours(published) -> Clap:
    return load_checkpoint(published[0])[0]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[tuple[Path, np.ndarray]]:
    """One shorter than the window of 10 s, one that fits it three times and a bit, one as long."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / f"{seconds}.wav" for seconds in (0.7, 3.1, 10)]
    return [(path, write_clip(path, float(path.stem), 48000, seed)) for seed, path in enumerate(paths)]


def test_clips_and_captions_have_the_embeddings_that_the_library_computes(published, ours, clips):
    """One swapped layer, another padding or pooling, and a converted model is a worse one that nobody can explain."""
    audio_ND, text_MD = embedded(published[1], published[0], [wave for _, wave in clips])
    assert np.ptp(audio_ND @ audio_ND.T) > 1e-3 and np.ptp(text_MD @ text_MD.T) > 0.1
    np.testing.assert_allclose(ours.embed_audio([path for path, _ in clips]), audio_ND, atol=1e-5)
    np.testing.assert_allclose(ours.embed_text(CAPTIONS), text_MD, atol=1e-5)
    assert float(ours.scale().detach()) == pytest.approx(float(published[1].logit_scale_a.exp().detach()), rel=1e-6)


@pytest.mark.shared_data("golden/hf_clap")
def test_a_real_recording_has_the_embedding_that_the_library_computes(published, ours, shared_data, tmp_path):
    """A synthetic sound would not show a level or a pause that real ones have."""
    wave, rate = soundfile.read(shared_data("golden/hf_clap/1272-128104-0001.wav"), dtype="float32")
    assert rate == 16000
    soundfile.write(tmp_path / "48k.wav", wave, 48000, subtype="FLOAT")  # as fast as the library's own test plays it
    audio_1D, _ = embedded(published[1], published[0], [wave])
    np.testing.assert_allclose(ours.embed_audio([tmp_path / "48k.wav"]), audio_1D, atol=1e-5)


@pytest.mark.shared_data("golden/hf_clap")
def test_the_loaded_front_end_gives_the_rows_that_the_librarys_own_test_expects(ours, shared_data):
    """The front end could be right by itself and wrong in the config that a checkpoint is read into."""
    expected = json.loads(shared_data("golden/hf_clap/expected_logmel.json").read_text())["rows"]
    row = next(row for row in expected if row["pad"] == "repeatpad" and row["mel_scale"] == "slaney")
    clip, _ = soundfile.read(shared_data("golden/hf_clap/1272-128104-0001.wav"), dtype="float32")
    clip = np.trunc(clip * 32767).astype(np.int16).astype(np.float32) / 32767
    window = np.zeros(480000, np.float32)
    copies = np.tile(clip, 480000 // len(clip))
    window[: len(copies)] = copies
    log_mel = ours.front_end(torch.from_numpy(window)[None])[0]
    for frame in row["frames_matching"]:
        np.testing.assert_allclose(log_mel[frame].numpy(), row["values"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("padding", ["repeat", "pad"])
def test_short_clips_are_filled_as_the_folder_says(tmp_path, clips, padding):
    """Repetition in place of silence moves every short clip, and only those."""
    model = write_hugging_face(tmp_path, padding=padding)
    path, wave = clips[1]
    audio_1D, _ = embedded(model, tmp_path, [wave])
    np.testing.assert_allclose(load_checkpoint(tmp_path)[0].embed_audio([path]), audio_1D, atol=1e-5)


def test_the_sizes_are_those_of_the_folder(ours):
    """A default in the place of a read value fits the released sizes and no other."""
    assert ours.config.audio.htsat == HtsatConfig(
        channels=8, depths=(2, 1, 3, 1), num_heads=(1, 2, 2, 4), dropout=0.1, drop_path=0.0
    )
    assert (ours.config.window_s, ours.config.short, ours.config.projection) == (10.0, "repeatpad", "mlp")
    assert (ours.config.audio.front_end.sample_rate, ours.config.audio.front_end.f_min) == (48000, 50.0)
    assert (ours.config.text.pooling, ours.config.text.max_tokens, ours.config.embedding_dim) == ("pooler", 60, 24)


def test_a_caption_of_more_tokens_than_positions_is_cut_and_not_a_crash(ours):
    """RoBERTa counts its positions from behind the padding: two fewer than its config says."""
    assert np.isfinite(ours.embed_text(["rain " * 200])).all()


def test_nothing_of_the_file_is_lost_without_a_reason(published):
    """A dropped tensor is the difference between two models with one name."""
    model, report = load_checkpoint(published[0])
    stored = set(load_file(published[0] / "model.safetensors"))
    assert stored == report.mapped.keys() | report.ignored.keys() and not report.mapped.keys() & report.ignored.keys()
    assert {name for ours in report.mapped.values() for name in ours.split()} == set(model.state_dict())
    assert {name.split(".")[-1] for name in report.ignored} == {
        "relative_position_index", "position_ids", "token_type_ids", "logit_scale_t"
    }  # fmt: skip
    assert (report.format, report.missing, report.unexpected, report.fresh) == ("hf", (), (), ())
    assert json.loads(json.dumps(report.to_dict()))["front_end"] == "from_config"


@pytest.mark.parametrize("with_positions", [True, False])
def test_files_of_old_and_of_new_versions_of_the_library_load_alike(published, ours, tmp_path, with_positions):
    """The peers' checkpoints stopped loading the day position_ids left the state dict."""
    shutil.copytree(published[0], tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    weights = load_file(path)
    buffers = ("position_ids", "token_type_ids", "relative_position_index")
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(buffers)}
    if with_positions:
        weights["text_model.embeddings.position_ids"] = torch.arange(66)[None]
    save_file(weights, path, metadata={"format": "pt"})
    model, _ = load_checkpoint(tmp_path / "copy")
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_weights_as_torch_writes_them_and_in_parts_load_alike(published, ours, tmp_path):
    """Half of the folders on the Hub hold pytorch_model.bin, and large ones are cut in parts."""
    weights = load_file(published[0] / "model.safetensors")
    for form in ("bin", "parts"):
        shutil.copytree(published[0], tmp_path / form, ignore=shutil.ignore_patterns("model.safetensors"))
    torch.save(weights, tmp_path / "bin" / "pytorch_model.bin")
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for part, chosen in parts.items():
        save_file({name: weights[name] for name in chosen}, tmp_path / "parts" / part, metadata={"format": "pt"})
    index = {"weight_map": {name: part for part, chosen in parts.items() for name in chosen}}
    (tmp_path / "parts" / "model.safetensors.index.json").write_text(json.dumps(index))
    for form in ("bin", "parts"):
        model, _ = load_checkpoint(tmp_path / form)
        assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in model.state_dict().items())
    (tmp_path / "parts" / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks model-2.safetensors"):
        load_checkpoint(tmp_path / "parts")
    for outside in ("../bin/model.safetensors", str(published[0] / "model.safetensors")):
        (tmp_path / "parts" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": outside}}))
        with pytest.raises(CheckpointError, match="expected a file in the same folder"):
            load_checkpoint(tmp_path / "parts")


def test_the_file_in_the_folder_is_the_folder_and_alone_it_is_too_little(published, ours, tmp_path):
    """Weights without their config would have to be guessed at."""
    model, report = load_checkpoint(published[0] / "model.safetensors")
    assert model.config == ours.config and report.format == "hf"
    shutil.copy(published[0] / "model.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match="the weights of a ClapModel; give its folder"):
        load_checkpoint(tmp_path / "model.safetensors")


def test_a_missing_and_an_unknown_tensor_are_named(published, tmp_path):
    """With strict=False the model answers from the noise that it was made with."""
    shutil.copytree(published[0], tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    weights = load_file(path)
    del weights["audio_projection.linear2.bias"]
    weights["audio_model.audio_encoder.extra.weight"] = torch.zeros(3)
    weights["text_model.pooler.dense.bias"] = torch.zeros(15)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "copy")
    said = str(caught.value)
    assert "missing: audio_projection.linear2.bias" in said
    assert "unexpected: audio.model.audio_encoder.extra.weight" in said
    assert "text.encoder.pooler.dense.bias (15,), expected (16,)" in said and "text_source" in said


@pytest.mark.parametrize(
    ("audio", "extractor", "message"),
    [
        ({"enable_fusion": True, "fusion_type": "aff_2d"}, {}, "enable_fusion"),
        ({}, {"truncation": "fusion"}, "only models without fusion"),
        ({}, {"top_db": 80}, "top_db=80"),
        ({}, {"padding": "mirror"}, "'mirror', which is not supported"),
        ({"hidden_act": "relu"}, {}, "'hidden_act': 'relu'"),
    ],
)
def test_what_would_be_heard_in_another_way_is_refused(tmp_path, audio, extractor, message):
    """A model with fusion loads into one without it by name, and hears one spectrogram where it learned four."""
    write_hugging_face(tmp_path, audio=audio, **extractor)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_a_folder_without_its_feature_extractor_is_refused(published, tmp_path):
    """Rate and window by default would be a guess."""
    ignored = shutil.ignore_patterns("p*processor_config.json", "processor_config.json")
    shutil.copytree(published[0], tmp_path / "copy", ignore=ignored)
    with pytest.raises(CheckpointError, match="lacks the config or the feature extractor"):
        load_checkpoint(tmp_path / "copy")


def test_a_name_that_is_nowhere_says_where_it_was_looked_for():
    """A typo in a path becomes a name on the Hub."""
    with pytest.raises(CheckpointError, match="checkpoint nobody/clap.* not found: .*a name on the Hub"):
        load_checkpoint("nobody/clap")


def test_a_collapsed_text_tower_is_refused_and_measured(published, tmp_path):
    """One released ClapModel answers 2 % of ESC-50: each caption has the same embedding, and nothing says so."""
    shutil.copytree(published[0], tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    weights = load_file(path)
    weights["text_model.pooler.dense.weight"] *= 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"collapsed: the prompts of 8 different sounds have a mean cosine of 1\.0000"
    ):
        load_checkpoint(tmp_path / "copy")
    model, report = load_checkpoint(tmp_path / "copy", collapsed=True)
    assert report.text is not None and report.text.mean > 0.99
    rows_MD = model.embed_text(CAPTIONS).astype(np.float64)
    pairs = [rows_MD[i] @ rows_MD[j] for i in range(5) for j in range(5) if i != j]
    spread = text_collapse(model, CAPTIONS)
    assert (spread.mean, spread.least) == (pytest.approx(np.mean(pairs)), pytest.approx(min(pairs)))
    with pytest.raises(ValueError, match="at least two"):
        text_collapse(model, ["rain", "rain"])


def test_a_student_goes_back_into_the_library_with_equal_outputs(published, clips, tmp_path):
    """What is given back must answer in the user's own code as it did here, after a step of training."""
    student, _ = load_checkpoint(published[0])
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    student.train()
    wave_BT = torch.from_numpy(np.stack([np.resize(wave, 480000) for _, wave in clips]))
    with torch.no_grad():
        logmel = student.front_end(wave_BT)
    audio, text = student.encode_logmel(logmel), student.encode_text(CAPTIONS[:3])
    F.cross_entropy(student.scale() * audio @ text.T, torch.arange(3)).backward()
    silent = [name for name, p in student.named_parameters() if p.grad is None]
    assert silent == []
    optimiser.step()
    student.eval()
    assert not torch.equal(student.state_dict()["audio.model.audio_encoder.norm.bias"],
                           before["audio.model.audio_encoder.norm.bias"])  # fmt: skip

    save_checkpoint(student, tmp_path / "student", "hf")
    theirs, report = ClapModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    audio_ND, text_MD = embedded(theirs.eval(), tmp_path / "student", [wave for _, wave in clips])
    np.testing.assert_allclose(student.embed_audio([path for path, _ in clips]), audio_ND, atol=1e-5)
    np.testing.assert_allclose(student.embed_text(CAPTIONS), text_MD, atol=1e-5)
    assert torch.equal(theirs.logit_scale_a, student.logit_scale)

    again, _ = load_checkpoint(tmp_path / "student")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in student.state_dict().items())
    assert dataclasses.replace(again.config, text=student.config.text) == student.config


def test_a_loaded_teacher_is_a_folder_of_ours_from_then_on(ours, clips, tmp_path):
    """A teacher that needs its original folder again cannot be moved to the machine that trains."""
    ours.save(tmp_path / "ours")
    paths = [path for path, _ in clips]
    again = load_model(tmp_path / "ours", device="cpu")
    assert np.array_equal(again.embed_audio(paths), ours.embed_audio(paths))
    assert np.array_equal(again.embed_text(CAPTIONS), ours.embed_text(CAPTIONS))
    by_door, report = load_checkpoint(tmp_path / "ours")
    assert report.format == "clapcur" and by_door.config == ours.config
    assert set(report.mapped) == set(ours.state_dict())
