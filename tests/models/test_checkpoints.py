"""Checkpoints of MS-CLAP, clap_curation, LAION-CLAP, BLAT and PANNs, under their own names, in and out.

The names are written out here, or come from the packages (`htsat_golden.json`, with the answers of their code); what a
file should answer is computed from its tensors without the code under test. `benchmarks/checkpoint_parity.py` compares
with the packages themselves.
"""

import argparse
import dataclasses
import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoint_families import (
    CONTAINERS,
    FAMILIES,
    GOLDEN,
    bert,
    cnn14,
    loaded,  # noqa: F401  # a fixture
    part,
    stored_filters,
    under,
    written,  # noqa: F401  # a fixture
)
from cnn14_reference import reference_features
from safetensors.torch import save_file
from tiny_checkpoints import CAPTIONS, bert_source, clip, from_shapes, write_clip
from torch import Tensor

from clapcur.errors import CheckpointError
from clapcur.models.checkpoints import load_checkpoint, save_checkpoint
from clapcur.models.clap import Clap
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, TextConfig
from clapcur.models.front_end import LogMel


def as_projected(tensors: dict[str, Tensor], rows: Tensor) -> Tensor:
    """Apply a projection by its formula: the residual one, the one of two layers, or one layer."""
    if "linear1.weight" in tensors:
        first = rows @ tensors["linear1.weight"].T
        both = first + F.gelu(first) @ tensors["linear2.weight"].T
        rows = F.layer_norm(both, (24,), tensors["layer_norm.weight"], tensors["layer_norm.bias"])
    elif "0.weight" in tensors:
        rows = (rows @ tensors["0.weight"].T + tensors["0.bias"]).clamp(min=0)
        rows = rows @ tensors["2.weight"].T + tensors["2.bias"]
    else:
        rows = rows @ tensors["weight"].T + tensors["bias"]
    return F.normalize(rows, dim=1)


# -- what the tensors of a file answer


@pytest.mark.parametrize(
    ("family", "tower", "projection", "rate", "seconds"),
    [
        ("msclap-2022", "audio_encoder.base.", "audio_encoder.projection.", 44100, 5),
        ("blat", "audio_encoder.", "audio_proj.", 32000, 10),
    ],
)
def test_a_cnn14_answers_as_the_network_written_out_with_the_files_tensors(
    loaded, written, tmp_path, family, tower, projection, rate, seconds
):
    """A layer under the wrong name keeps its random weights, and every embedding is noise of the right shape."""
    _, tensors = written(family)
    waves = [write_clip(tmp_path / f"{seed}.wav", seconds, rate, seed) for seed in range(3)]
    log_mel = LogMel(FrontEndConfig(sample_rate=rate))(torch.from_numpy(np.stack(waves)))
    with torch.inference_mode():
        features = reference_features(part(tensors, tower), log_mel)
        expected = as_projected(part(tensors, projection), features).numpy()
    assert np.ptp(expected @ expected.T) > 1e-3
    rows_ND = loaded(family).embed_audio([tmp_path / f"{seed}.wav" for seed in range(3)])
    np.testing.assert_allclose(rows_ND, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "projection", "rate", "seconds"),
    [("msclap-2023", "audio_encoder.projection.", 44100, 7), ("laion", "audio_projection.", 48000, 10)],
)
def test_an_htsat_answers_what_the_package_of_its_release_answered(
    loaded, written, tmp_path, family, projection, rate, seconds
):
    """Query, key and value in another order, or norms swapped, load silently."""
    model, (_, tensors) = loaded(family), written(family)
    expected = torch.tensor(GOLDEN[family.split("-")[0]]["features"])
    waves_NT = torch.from_numpy(np.stack([clip(seconds, rate, seed) for seed in range(2)]))
    with torch.inference_mode():
        features = model.audio(model.front_end(waves_NT))
    torch.testing.assert_close(F.normalize(features, dim=1), expected, rtol=0, atol=1e-5)
    paths = [tmp_path / f"{seed}.wav" for seed in range(2)]
    for seed, path in enumerate(paths):
        write_clip(path, seconds, rate, seed)
    rows = as_projected(part(tensors, projection), features)
    np.testing.assert_allclose(model.embed_audio(paths), rows.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "encoder", "projection"),
    [
        ("msclap-2022", "caption_encoder.base.", "caption_encoder.projection."),
        ("msclap-2023", "caption_encoder.base.", "caption_encoder.projection."),
        ("laion", "text_branch.", "text_projection."),
        ("blat", "text_encoder.model.", "text_proj."),
    ],
)
def test_captions_answer_as_the_encoder_of_the_family_fed_one_by_one(loaded, written, family, encoder, projection):
    """[CLS] in place of the pooler, or a caption read before its end, scores a few points less and says nothing."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    path, tensors = written(family)
    source = path.parent / "text"
    theirs = AutoModel.from_config(AutoConfig.from_pretrained(source)).eval()
    lacking, unknown = theirs.load_state_dict(part(tensors, encoder), strict=False)
    assert not lacking and all(name.endswith(("position_ids", "attn.bias", "masked_bias")) for name in unknown)
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = []
    with torch.inference_mode():
        for caption in CAPTIONS:
            text = f"{caption} <|endoftext|>" if family == "msclap-2023" else caption
            output = theirs(**tokenizer(text, return_tensors="pt"))
            hidden = output.last_hidden_state[0]
            rows.append(
                hidden[-1] if family == "msclap-2023" else output.pooler_output[0] if family == "laion" else hidden[0]
            )
        expected = as_projected(part(tensors, projection), torch.stack(rows)).numpy()
    assert np.ptp(expected @ expected.T) > 0.1
    np.testing.assert_allclose(loaded(family).embed_text(CAPTIONS), expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_taken_or_left_for_a_reason(written, family):
    """What is dropped silently is missed by nobody until the scores are compared."""
    path, tensors = written(family)
    model, report = load_checkpoint(path, text_source=path.parent / "text")
    assert (report.format, report.container) == (family, f"[{CONTAINERS[family]!r}]")
    assert report.mapped.keys() | report.ignored.keys() == tensors.keys()
    assert {name for ours in report.mapped.values() for name in ours.split()} == set(model.state_dict())
    assert (report.missing, report.unexpected, report.fresh, report.pickled) == ((), (), (), False)
    assert json.loads(json.dumps(report.to_dict()))["text"]["mean"] == report.text.mean
    scale = "logit_scale_a" if family == "laion" else "logit_scale"
    assert torch.equal(model.logit_scale, tensors[scale]) and report.mapped[scale] == "logit_scale"
    if family == "msclap-2022":
        assert report.ignored["audio_encoder.base.fc_audioset.bias"].startswith("head of 527")
        assert report.ignored["caption_encoder.base.embeddings.position_ids"].startswith("positions")


def test_the_front_ends_are_those_of_the_releases(loaded):
    """The yml of MS-CLAP 2023 names a band that its code never reads."""
    front_ends = {family: loaded(family).config.audio.front_end for family in FAMILIES}
    assert front_ends["msclap-2022"] == FrontEndConfig(sample_rate=44100)
    assert front_ends["msclap-2023"] == FrontEndConfig(sample_rate=44100, filter_rate=32000)
    assert front_ends["laion"] == FrontEndConfig(sample_rate=48000, hop_samples=480, int16=True)
    assert front_ends["blat"] == FrontEndConfig()
    windows = {family: (loaded(family).config.window_s, loaded(family).config.short) for family in FAMILIES}
    assert windows == {
        "msclap-2022": (5, "repeat"), "msclap-2023": (7, "repeat"), "laion": (10, "repeatpad"), "blat": (10, "repeat")
    }  # fmt: skip


# -- containers


@pytest.mark.parametrize("form", ["bare", "module", "speechbrain", "safetensors", "nested"])
def test_the_same_tensors_in_any_container_are_the_same_model(loaded, written, tmp_path, form):
    """clap_curation writes them bare into a folder, parallel training puts "module." before each name."""
    path, tensors = written("msclap-2022")
    target = tmp_path / "CKPT+2023" / "clap.ckpt" if form == "speechbrain" else tmp_path / "weights.pth"
    target.parent.mkdir(exist_ok=True)
    if form == "safetensors":
        target = target.with_suffix(".safetensors")
        save_file(tensors, target)
    elif form == "module":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, target)
    elif form == "nested":
        torch.save({"model": {"state_dict": tensors, "step": 1}, "loss": np.float64(1.5)}, target)
    else:
        torch.save(tensors, target)
        torch.save({"state": {}}, target.parent / "optimizer.ckpt")
    source = target.parent if form == "speechbrain" else target
    model, report = load_checkpoint(source, text_source=path.parent / "text")
    expected = loaded("msclap-2022").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert report.container == {
        "bare": "bare", "speechbrain": "bare", "safetensors": "safetensors",
        "module": "['state_dict'], module.", "nested": "['model']['state_dict']",
    }[form]  # fmt: skip


def test_a_file_that_could_run_code_is_opened_only_where_the_caller_says_so(written, tmp_path):
    """A checkpoint from a forum can delete a home directory when it is opened."""
    path, tensors = written("msclap-2022")
    torch.save({"model": tensors, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "with_args.pth")
    with pytest.raises(CheckpointError, match=r"could run any code.*argparse.*pickled=True"):
        load_checkpoint(tmp_path / "with_args.pth", text_source=path.parent / "text")
    _, report = load_checkpoint(tmp_path / "with_args.pth", text_source=path.parent / "text", pickled=True)
    assert report.pickled


def test_half_precision_is_loaded_as_float32(written, tmp_path):
    """A model in half precision trains in half precision, and its front end refuses to."""
    path, tensors = written("blat")
    torch.save({k: t.half() if t.is_floating_point() and "mels" not in k else t for k, t in tensors.items()},
               tmp_path / "half.pth")  # fmt: skip
    model, _ = load_checkpoint(tmp_path / "half.pth", text_source=path.parent / "text")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.weight": torch.zeros(2)}, "has an unknown format.*a.weight"),
        ({"epoch": 3, "optimizer": {"lr": 1.0}}, "no named tensors.*its keys are epoch, optimizer"),
        ([torch.zeros(2)], "must hold named tensors, got a list"),
    ],
)
def test_what_is_no_checkpoint_of_a_known_family_says_what_it_is(tmp_path, content, message):
    """Random weights under the user's file name would be the alternative."""
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_cut_off_is_an_error_of_ours(written, tmp_path, suffix):
    """A download that stopped half way must not end in the traceback of a parser."""
    path, tensors = written("blat")
    whole = path
    if suffix == ".safetensors":
        whole = tmp_path / "whole.safetensors"
        save_file(tensors, whole)
    content = whole.read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(tmp_path / f"cut{suffix}")


def test_a_page_saved_in_the_place_of_a_file_is_no_reason_to_allow_code(tmp_path):
    """The advice to open it with pickled=True would be the worst that could be given."""
    (tmp_path / "weights.pth").write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(CheckpointError, match="weights.pth is not a file saved by torch"):
        load_checkpoint(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="not a file saved by torch"):
        load_checkpoint(tmp_path / "weights.pth", pickled=True)


# -- what does not fit


def test_a_renamed_tensor_is_missing_and_unexpected_at_once(written, tmp_path):
    """The package of the release loads with strict=False, and hides this."""
    path, tensors = written("msclap-2023")
    wrong = dict(tensors)
    wrong["audio_encoder.base.htsat.layers.0.blocks.0.norm3.weight"] = wrong.pop(
        "audio_encoder.base.htsat.layers.0.blocks.0.norm2.weight"
    )
    torch.save({"model": wrong}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "x.pth", text_source=path.parent / "text")
    assert "missing: audio.model.audio_encoder.layers.0.blocks.0.layernorm_after.weight" in str(caught.value)
    assert "unexpected: audio.model.audio_encoder.layers.0.blocks.0.norm3.weight" in str(caught.value)


def test_another_text_encoder_than_the_files_is_named(written, tmp_path):
    """The vocabulary of another model gives each word the meaning of some other word."""
    path, _ = written("msclap-2022")
    bert_source(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 1}))
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight \(\d+, 16\), expected .*text_source"):
        load_checkpoint(path, text_source=tmp_path)
    with pytest.raises(CheckpointError, match="of bert-base-uncased cannot be loaded; give a folder.*as text_source"):
        load_checkpoint(path)
    bert_source(tmp_path / "short", positions=50)
    with pytest.raises(CheckpointError, match="max_tokens is 100, but bert supports at most 50"):
        load_checkpoint(path, text_source=tmp_path / "short")


def test_a_laion_clap_with_a_bert_is_told_from_one_with_a_roberta(written, tmp_path):
    """All names are the same; the tokenizer of the other gives each word another meaning."""
    path, tensors = written("laion")
    vocab = len(bert_source(tmp_path / "text"))
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("text_branch.")}
    torch.save({"state_dict": rest | from_shapes(under("text_branch.", bert(vocab, 2, 100)))}, tmp_path / "bert.pt")
    with pytest.raises(CheckpointError, match="those of bert-base-uncased cannot be loaded"):
        load_checkpoint(tmp_path / "bert.pt")
    with pytest.raises(CheckpointError, match="those of roberta-base cannot be loaded"):
        load_checkpoint(path)
    model, _ = load_checkpoint(tmp_path / "bert.pt", text_source=tmp_path / "text")
    assert (model.text.encoder.config.model_type, model.text.pooling) == ("bert", "pooler")
    save_checkpoint(model, tmp_path / "again.pt", "laion")
    again, _ = load_checkpoint(tmp_path / "again.pt", text_source=tmp_path / "text")
    assert np.array_equal(again.embed_text(CAPTIONS), model.embed_text(CAPTIONS))


def test_models_that_hear_otherwise_are_refused(written, tmp_path):
    """LAION-CLAP with fusion has all the names of one without it, and some more."""
    path, tensors = written("laion")
    torch.save({**tensors, "audio_branch.patch_embed.mel_conv2d.weight": torch.zeros(8, 1, 4, 12)}, tmp_path / "f.pt")
    with pytest.raises(CheckpointError, match="trained with fusion"):
        load_checkpoint(tmp_path / "f.pt", text_source=path.parent / "text")
    torch.save({**from_shapes(cnn14()), "pre_conv0.weight": torch.zeros(64, 1, 11)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="Wavegram"):
        load_checkpoint(tmp_path / "w.pt")
    torch.save(from_shapes(cnn14(first=12)), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"12 channels in its first block; expected one of \[8, 16, 64\]"):
        load_checkpoint(tmp_path / "w.pt")


# -- the filterbank


def test_filters_of_another_rate_in_a_file_need_a_choice_and_stand_in_the_report(written, tmp_path):
    """PANNs' filters of 32 kHz came into 44.1 kHz models by strict loading, and moved every band unnoticed."""
    path, tensors = written("msclap-2022")
    torch.save(
        {"model": {**tensors, "audio_encoder.base.logmel_extractor.melW": stored_filters(32000)}}, tmp_path / "x"
    )
    text = path.parent / "text"
    with pytest.raises(CheckpointError, match=r"of 32000 Hz, 50-14000 Hz \(heard as 69-19294 Hz\).*of 44100 Hz"):
        load_checkpoint(tmp_path / "x", text_source=text)
    by_config, said = load_checkpoint(tmp_path / "x", text_source=text, front_end="from_config")
    assert by_config.config.audio.front_end.filter_rate is None
    assert said.front_end == "from_config" and said.filters.largest_difference > 0.1
    by_file, said = load_checkpoint(tmp_path / "x", text_source=text, front_end="from_checkpoint")
    assert by_file.config.audio.front_end == FrontEndConfig(sample_rate=44100, filter_rate=32000)
    assert said.front_end == "from_checkpoint" and said.filters.stored.startswith("of 32000 Hz")
    torch.testing.assert_close(by_file.front_end.mel_filters, stored_filters(32000), rtol=0, atol=1e-7)
    wave_1T = torch.from_numpy(clip(5, 44100))[None]
    with torch.inference_mode():
        assert not torch.allclose(by_file.encode_audio(wave_1T), by_config.encode_audio(wave_1T), atol=1e-3)


def test_filters_that_agree_need_no_choice_and_strange_ones_none_but_the_config(written, tmp_path):
    """A question without a difference is answered without thought, the next time too."""
    path, tensors = written("msclap-2022")
    text = path.parent / "text"
    _, report = load_checkpoint(path, text_source=text)
    assert report.filters.largest_difference < 1e-5 and report.front_end == "from_config"
    _, report = load_checkpoint(path, text_source=text, front_end="from_checkpoint")
    assert report.front_end == "from_checkpoint"
    name = "audio_encoder.base.logmel_extractor.melW"
    torch.save({**tensors, name: stored_filters(44100).roll(3, 0)}, tmp_path / "rolled")
    for choice in (None, "from_checkpoint"):
        with pytest.raises(CheckpointError, match="filters that no config here describes"):
            load_checkpoint(tmp_path / "rolled", text_source=text, front_end=choice)
    load_checkpoint(tmp_path / "rolled", text_source=text, front_end="from_config")
    kernel = "audio_encoder.base.spectrogram_extractor.stft.conv_real.weight"
    torch.save({**tensors, kernel: torch.ones(513, 1, 1024)}, tmp_path / "boxcar")
    with pytest.raises(CheckpointError, match="must be a periodic Hann window of 1024"):
        load_checkpoint(tmp_path / "boxcar", text_source=text)
    torch.save({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / "none")
    with pytest.raises(CheckpointError, match="stores no filterbank"):
        load_checkpoint(tmp_path / "none", text_source=text, front_end="from_checkpoint")
    with pytest.raises(ValueError, match="front_end must be"):
        load_checkpoint(path, text_source=text, front_end="checkpoint")  # type: ignore[arg-type]


# -- PANNs: an audio tower


@pytest.fixture(scope="module")
def panns(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path_factory.mktemp("panns") / "Cnn14.pth"
    tensors = from_shapes(cnn14()) | {"logmel_extractor.melW": stored_filters(32000)}
    torch.save({"iteration": 1, "model": tensors}, path)
    return path, tensors


TEXT = TextConfig(hidden_size=16, vocab_size=100)


def test_panns_weights_are_the_audio_tower_of_a_model_that_is_fresh_otherwise(panns):
    """A text tower that depends on the state of a generator makes two equal runs start apart."""
    path, tensors = panns
    model, report = load_checkpoint(path, text=TEXT, captions=CAPTIONS, seed=3)
    assert model.config == ClapConfig(audio=AudioConfig(width="tiny"), text=TEXT)
    log_mel = LogMel(FrontEndConfig())(torch.from_numpy(clip(2, 32000))[None])
    with torch.inference_mode():
        torch.testing.assert_close(model.audio(log_mel), reference_features(tensors, log_mel), rtol=1e-4, atol=1e-4)
    assert set(report.mapped.values()) == {name for name in model.state_dict() if name.startswith("audio.")}
    assert set(report.fresh) == {name for name in model.state_dict() if not name.startswith("audio.")}
    assert set(report.ignored) == {"fc_audioset.weight", "fc_audioset.bias", "logmel_extractor.melW"}
    torch.manual_seed(1)
    again, _ = load_checkpoint(path, text=TEXT, captions=CAPTIONS, seed=3)
    other, _ = load_checkpoint(path, text=TEXT, captions=CAPTIONS, seed=4)
    states = [each.state_dict() for each in (model, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    name = "text_projection.linear1.weight"
    assert not torch.equal(states[0][name], states[2][name])


def test_panns_weights_in_a_model_of_another_rate_ask_whose_filters_to_hear_with(panns):
    """The trap of the reference code, with its name on it."""
    path, _ = panns
    config = ClapConfig(audio=AudioConfig(front_end=FrontEndConfig(sample_rate=44100), dropout=0.1), text=TEXT)
    with pytest.raises(CheckpointError, match="Choose front_end="):
        load_checkpoint(path, config=config, captions=CAPTIONS)
    model, _ = load_checkpoint(path, config=config, captions=CAPTIONS, front_end="from_checkpoint")
    assert model.config.audio.front_end == FrontEndConfig(sample_rate=44100, filter_rate=32000)
    assert (model.config.audio.width, model.config.audio.dropout) == ("tiny", 0.1)


def test_what_is_for_panns_is_refused_elsewhere(written, loaded, tmp_path):
    """A text config that is ignored looks like one that was used."""
    path, _ = written("blat")
    with pytest.raises(ValueError, match="text apply only to weights of PANNs or YAMNet, but this is blat"):
        load_checkpoint(path, text=TEXT, text_source=path.parent / "text")
    loaded("blat").save(tmp_path)
    with pytest.raises(ValueError, match="config, captions apply only to weights of PANNs or YAMNet"):
        load_checkpoint(tmp_path, config=ClapConfig(), captions=CAPTIONS)


# -- out again


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("family", ["msclap-2022", "msclap-2023", "laion"])
def test_out_and_in_again_is_the_same_model_to_the_bit(loaded, written, tmp_path, family, suffix):
    """A student that is given back must be the one that was scored."""
    model, (path, tensors) = loaded(family), written(family)
    target = tmp_path / f"student{suffix}"
    save_checkpoint(model, target, family.split("-")[0])  # type: ignore[arg-type]
    again, report = load_checkpoint(target, text_source=path.parent / "text")
    assert report.format == family and again.config == model.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    rate, seconds = model.config.audio.front_end.sample_rate, model.config.window_s
    write_clip(tmp_path / "clip.wav", seconds / 2.4, rate)
    before, after = (each.embed_audio([tmp_path / "clip.wav"]) for each in (model, again))
    np.testing.assert_allclose(after, before, atol=1e-5)
    np.testing.assert_allclose(again.embed_text(CAPTIONS), model.embed_text(CAPTIONS), atol=1e-5)
    if suffix == ".pth":  # every tensor of the release is there, those on the path with their values
        written_out = torch.load(target, weights_only=True)[CONTAINERS[family]]
        old = ("position_ids", "attn.bias", "masked_bias")
        assert {name for name in tensors if not name.endswith(old)} <= written_out.keys()
        for name in report.mapped:
            assert torch.equal(written_out[name], tensors[name])


def test_the_front_end_that_the_package_reads_from_its_file_is_written(loaded, tmp_path):
    """The package of MS-CLAP hears with the filters in the file: without them, with those of its yml."""
    model = loaded("msclap-2023")
    save_checkpoint(model, tmp_path / "x.pth", "msclap")
    tensors = part(torch.load(tmp_path / "x.pth", weights_only=True)["model"], "audio_encoder.base.htsat.")
    torch.testing.assert_close(tensors["logmel_extractor.melW"], stored_filters(32000), rtol=0, atol=1e-7)
    wave = torch.from_numpy(clip(0.2, 44100))[None, None]
    real, imag = (
        F.conv1d(wave, tensors[f"spectrogram_extractor.stft.conv_{kind}.weight"], stride=320)
        for kind in ("real", "imag")
    )
    window = torch.hann_window(1024)
    expected = torch.stft(wave[0], 1024, 320, window=window, center=False, return_complex=True)
    torch.testing.assert_close(real, expected.real, rtol=0, atol=1e-4)
    torch.testing.assert_close(imag, expected.imag, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "form", "message"),
    [
        ("msclap-2022", "hf", "its audio tower is a Cnn14, but this format needs an HTSAT; use clapcur or msclap"),
        ("msclap-2022", "laion", "its projections are 'residual', but this format needs 'mlp'; use clapcur or msclap"),
        ("laion", "msclap", "its projections are 'mlp', but this format needs 'residual'; use clapcur or laion or hf"),
        (
            "laion",
            "hf",
            "rounds waveforms to 16 bits.*does not .*ignore_int16=True.*use clapcur or laion or hf",
        ),
        ("blat", "msclap", "its projections are 'linear'.*use clapcur"),
    ],
)
def test_a_form_that_cannot_hold_a_model_says_why_and_which_can(loaded, tmp_path, family, form, message):
    """Half a model in a file is found out by whoever downloads it."""
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(loaded(family), tmp_path / "x", form)
    assert not (tmp_path / "x").exists()


def test_what_a_form_leaves_unsaid_must_be_what_its_package_assumes(loaded, tmp_path):
    """The file of a model with another window or hop would load, and hear something else."""
    model = loaded("msclap-2022")
    front_end = dataclasses.replace(model.config.audio.front_end, hop_samples=441)
    audio = dataclasses.replace(model.config.audio, front_end=front_end)
    changed = Clap(dataclasses.replace(model.config, audio=audio, window_s=6.0), model.text)
    with pytest.raises(CheckpointError, match=r"hop_samples 441 would become 320; window_s 6.0 would become 5.0"):
        save_checkpoint(changed, tmp_path / "x.pth", "msclap")
    with pytest.raises(ValueError, match="format must be one of clapcur, msclap, laion, hf, onnx, got 'pann'"):
        save_checkpoint(model, tmp_path / "x.pth", "pann")  # type: ignore[arg-type]


def test_a_laion_checkpoint_becomes_a_clapmodel_of_the_same_captions(loaded, tmp_path):
    """The conversion that the peers' issue lists ask about, with its one difference said aloud."""
    from transformers import ClapModel, ClapProcessor

    model = loaded("laion")
    save_checkpoint(model, tmp_path / "hf", "hf", ignore_int16=True)
    theirs, processor = (
        ClapModel.from_pretrained(tmp_path / "hf").eval(),
        ClapProcessor.from_pretrained(tmp_path / "hf"),
    )
    wave = clip(10, 48000)
    rounded = (np.clip(wave, -1, 1) * 32767.0).astype(np.int16).astype(np.float32) / 32767
    with torch.inference_mode():
        heard = theirs.get_audio_features(**processor(audio=[rounded], sampling_rate=48000, return_tensors="pt"))
        read = theirs.get_text_features(**processor.tokenizer(list(CAPTIONS), padding=True, return_tensors="pt"))
        ours = model.encode_audio(torch.from_numpy(wave)[None])
    torch.testing.assert_close(heard.pooler_output, ours, rtol=0, atol=1e-5)
    np.testing.assert_allclose(read.pooler_output.numpy(), model.embed_text(CAPTIONS), atol=1e-5)


def test_saving_as_clapcur_is_the_models_own_folder(loaded, tmp_path):
    """One function for all forms must not have a form of its own."""
    model = loaded("blat")
    save_checkpoint(model, tmp_path / "one")
    model.save(tmp_path / "two")
    for path in sorted((tmp_path / "two").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "one" / path.relative_to(tmp_path / "two")).read_bytes()


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 2213498217\n"


def zip_of(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # without the time of day, for it names the test
    return content.getvalue()


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("CLAP_weights_2022.pth", LFS_POINTER, "a Git LFS pointer, .* run `git lfs pull`"),
        ("model.safetensors", LFS_POINTER, "a Git LFS pointer, .* run `git lfs pull`"),
        ("x.pt", b"\n <!DOCTYPE html>\n<html><body>Not found</body></html>", "a web page"),
        ("x.safetensors", b"<html>" + b"x" * 5000, "a web page"),
        ("x.bin", b'{"error": "Invalid username or password."}', 'a text file that begins with \'{"error"'),
        ("x.wav", b"RIFF\x24\x00\x00\x00WAVEfmt ", "a sound file"),
        ("x.pth", b"OggS\x00\x02", "a sound file"),
        ("x.safetensors", b"fLaC\x00\x00\x00\x22", "a sound file"),
        ("x.pth", zip_of(readme="hello"), "a ZIP archive that was not saved by torch, with readme"),
        ("x.pth", zip_of(readme="hello")[:-30], "a truncated ZIP archive.*interrupted"),
        ("x.pth", b"\x1f\x8b\x08\x00", "a gzip archive: unpack it first"),
        ("x.pth", b"", r"empty \(0 bytes\)"),
        ("x.safetensors", b"", r"empty \(0 bytes\)"),
        ("x.safetensors", b"\x00" * 7, r"was it truncated\?"),
        ("x.safetensors", (4096).to_bytes(8, "little") + b'{"a":', "truncated within its header: it has 13 bytes"),
        ("x.safetensors", bytes(range(128, 256)), "does not begin with a safetensors header"),
        ("x.pkl", pickle.dumps(Harmful()), r"a pickle that calls posix.mkdir when it is opened"),
        ("x.pkl", pickle.dumps(Harmful(), protocol=2), r"a pickle that calls posix.mkdir when it is opened"),
        ("x.pth", bytes(range(128, 256)) * 4, "not a file saved by torch|torch cannot read the checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_told_by_what_it_is(tmp_path, monkeypatch, name, content, said):
    """A pointer of 130 bytes was said to be cut off, and a sound file to need pickled=True."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} .*{said}") as told:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing in the file was run"


def test_safetensors_are_read_whatever_the_file_is_called(tmp_path):
    """A name says less than the first nine bytes."""
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="has an unknown format.*a.weight"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": "{}", "readme.txt": "hello"}, "folder .* has no weights: .* it holds config.json, readme.txt"),
        ({"config.json": "{}", "model.safetensors": LFS_POINTER.decode()}, "model.safetensors .*a Git LFS pointer"),
        (
            {"model.safetensors.index.json": LFS_POINTER.decode()},
            "not an index of the parts of a model: a Git LFS pointer",
        ),
        ({"model.safetensors.index.json": '{"weight_map": 5}'}, "not an index of the parts of a model: 'int' object"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_told_by_what_it_lacks(tmp_path, files, said):
    """The advice to look at the Hub is no help for a folder that is there."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(tmp_path)
