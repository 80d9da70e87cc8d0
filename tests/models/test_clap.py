"""The model as a whole: what it embeds, what it saves, and what it refuses."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_clap import CAPTIONS, CONFIG, RATE

from clapcur.errors import CheckpointError, DataError
from clapcur.methods.devices import pick_device, pick_precision
from clapcur.models.clap import Clap, load_model
from clapcur.models.config import ClapConfig, TextConfig
from clapcur.models.projections import Projection


def settled(seed: int = 0) -> Clap:
    """Make a model whose batch norms have met audio: with fresh statistics all clips are nearly one row."""
    model = Clap.create(CONFIG, CAPTIONS, seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in model.audio.modules():
            module.momentum = 1.0
        model.train().encode_audio(torch.randn(8, CONFIG.num_samples) * torch.logspace(-3, 0, 8)[:, None])
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Clap:
    return settled()


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    """Files shorter than the window, as long, one sample off, and longer."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    paths = []
    for index, num_samples in enumerate([800, 3000, 7999, 8000, 8001, 12345, 40000]):
        tone = np.sin(2 * np.pi * 300 * 2**index / RATE * np.arange(num_samples))
        envelope = np.linspace(0.05, 0.5, num_samples)
        paths.append(folder / f"{index}.wav")
        soundfile.write(paths[-1], envelope * tone + 0.01 * rng.standard_normal(num_samples), RATE, subtype="FLOAT")
    return paths


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def embed_waveforms(model: Clap, *waveforms: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model.encode_audio(torch.from_numpy(np.stack(waveforms)).float()).numpy()


# -- the parts


def test_the_projection_is_the_papers_formula():
    """A projection with a bias or with the dropout elsewhere trains, and released weights do not load into it."""
    torch.manual_seed(0)
    projection = Projection(6, 8, dropout=0.5).eval()
    projection.layer_norm.weight.data.uniform_(0.5, 2)
    projection.layer_norm.bias.data.uniform_(-1, 1)
    w1, w2 = projection.linear1.weight, projection.linear2.weight
    x = torch.randn(5, 6)
    e1 = x @ w1.T
    inner = e1 + (e1 / 2 * (1 + torch.erf(e1 / math.sqrt(2)))) @ w2.T  # GELU in its exact form
    normed = (inner - inner.mean(1, keepdim=True)) / (inner.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = normed * projection.layer_norm.weight + projection.layer_norm.bias
    torch.testing.assert_close(projection(x), expected, rtol=1e-5, atol=1e-5)
    assert set(projection.state_dict()) == {
        "linear1.weight", "linear2.weight", "layer_norm.weight", "layer_norm.bias"
    }  # fmt: skip  # the names in MS-CLAP's weights


def test_dropout_in_the_projection_spares_the_direct_path():
    """Dropout over the sum would also hide half of e1."""
    projection = Projection(6, 8, dropout=0.999999).train()
    x = torch.randn(5, 6)
    torch.testing.assert_close(projection(x), projection.layer_norm(projection.linear1(x)))


def test_encode_audio_is_front_end_tower_projection_and_unit_length(model):
    """A tower left out of the chain still gives unit vectors."""
    waveform_BT = torch.randn(3, CONFIG.num_samples)
    with torch.inference_mode():
        by_hand = model.audio_projection(model.audio(model.front_end(waveform_BT)))
        by_hand = by_hand / by_hand.square().sum(1, keepdim=True).sqrt()
        torch.testing.assert_close(model.encode_audio(waveform_BT), by_hand)
        torch.testing.assert_close(model.encode_logmel(model.front_end(waveform_BT)), by_hand)


def test_encode_text_takes_captions_tokens_or_kept_features(model):
    """A frozen text tower trains on kept features: they must be what the tower gives each time."""
    with torch.inference_mode():
        rows = model.encode_text(CAPTIONS)
        features = model.text_features(CAPTIONS)
        by_hand = model.text_projection(model.text.features(model.text.tokenize(CAPTIONS)))
        torch.testing.assert_close(rows, F.normalize(by_hand, dim=1))
        torch.testing.assert_close(model.encode_text(model.text.tokenize(CAPTIONS)), rows)
        torch.testing.assert_close(model.project_text(features), rows)
    assert features.shape == (3, 32)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))


def test_rows_are_unit_and_float32_under_autocast_and_near_those_without(model):
    """Rows normalised in bfloat16 have lengths off by up to 0.4 percent, and thresholds move with them."""
    waveform_BT = torch.randn(4, CONFIG.num_samples)
    with torch.inference_mode():
        audio, text = model.encode_audio(waveform_BT), model.encode_text(CAPTIONS)
        with torch.autocast("cpu", torch.bfloat16):
            audio_half, text_half = model.encode_audio(waveform_BT), model.encode_text(CAPTIONS)
    for rows, half in ((audio, audio_half), (text, text_half)):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half.norm(dim=1), torch.ones(len(half)), rtol=0, atol=1e-6)
        assert not torch.equal(half, rows)  # autocast reached the tower
        assert float((half * rows).sum(1).min()) > 0.99


def test_the_scale_starts_at_one_over_the_temperature_and_is_cut_at_100(model):
    """An unbounded scale makes every softmax a hard choice; the reference's clamp of the logits has no gradient."""
    fresh = Clap.create(CONFIG, CAPTIONS)
    assert float(fresh.scale().detach()) == pytest.approx(1 / 0.07, rel=1e-6)
    with torch.no_grad():
        fresh.logit_scale.fill_(9.0)
    parameter = fresh.logit_scale
    fresh.clamp_logit_scale_()
    assert fresh.logit_scale is parameter and parameter.requires_grad
    assert float(fresh.scale().detach()) == pytest.approx(100, rel=1e-5)
    with torch.no_grad():
        fresh.logit_scale.fill_(1.0)
    fresh.clamp_logit_scale_()
    assert float(fresh.logit_scale.detach()) == 1.0


def test_every_weight_learns_from_the_contrastive_loss():
    """A parameter off the path is saved, decayed and counted, and never learns."""
    model = Clap.create(CONFIG, CAPTIONS).train()
    audio = model.encode_audio(torch.randn(3, CONFIG.num_samples))
    loss = F.cross_entropy(model.scale() * audio @ model.encode_text(CAPTIONS).T, torch.arange(3))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


# -- creation


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    """Two "equal" runs would start apart, or the data order would change with the size of the model."""
    torch.manual_seed(5)
    untouched = torch.rand(3)
    torch.manual_seed(5)
    first = Clap.create(CONFIG, CAPTIONS, seed=1).state_dict()
    assert torch.equal(torch.rand(3), untouched)
    second = Clap.create(CONFIG, CAPTIONS[::-1], seed=1).state_dict()
    other = Clap.create(CONFIG, CAPTIONS, seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("audio.conv_block1.conv1.weight", "audio_projection.linear1.weight", "text_projection.linear2.weight"):
        assert not torch.equal(first[name], other[name])
    embeddings = "text.encoder.embeddings.word_embeddings.weight"
    assert not torch.equal(first[embeddings], other[embeddings])


# -- files


def test_a_file_gives_one_row_whatever_the_batch_and_its_neighbours(model, clips):
    """Random crops and batch statistics made the peers' embeddings of one file differ from call to call."""
    rows_ND = model.embed_audio(clips, batch_size=3)
    assert rows_ND.shape == (7, 24) and rows_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows_ND, axis=1), 1, atol=1e-6)
    assert np.ptp(rows_ND @ rows_ND.T) > 0.1  # the clips are told apart
    np.testing.assert_allclose(model.embed_audio(clips, batch_size=64), rows_ND, atol=1e-5)
    np.testing.assert_allclose(model.embed_audio(clips[::-1], batch_size=1)[::-1], rows_ND, atol=1e-5)
    twice = model.embed_audio([clips[0], clips[4], clips[0]])
    np.testing.assert_allclose(twice, rows_ND[[0, 4, 0]], atol=1e-5)
    assert np.array_equal(model.embed_audio(clips, batch_size=3), rows_ND)


def test_a_group_has_the_same_bytes_alone_and_among_others(model, clips):
    """A batch that reaches over two groups would make a shard depend on which others its worker makes."""
    groups = [clips[:3], [], clips[3:4], clips[4:]]
    together = list(model.embed_each(groups, num_crops=2, batch_size=4, num_workers=2))
    assert [len(rows) for rows in together] == [3, 0, 1, 3]
    for group, rows_ND in zip(groups, together, strict=True):
        assert np.array_equal(next(model.embed_each([group], num_crops=2, batch_size=4)), rows_ND)
    np.testing.assert_allclose(np.concatenate(together), model.embed_audio(clips, num_crops=2), atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_gives_the_rows_of_the_cpu(clips, folder):
    """Batches under way to and from the GPU could meet the wrong rows."""
    there, here = load_model(folder, device="cuda"), load_model(folder, device="cpu")
    groups = [clips * 20, clips[::-1]]
    for rows_ND, expected_ND in zip(there.embed_each(groups), here.embed_each(groups), strict=True):
        np.testing.assert_allclose(rows_ND, expected_ND, atol=1e-3)


def test_short_clips_are_repeated_and_long_ones_heard_at_their_centre(model, clips):
    """Zeros at training and repetition at evaluation cost the reference points that nobody could explain."""
    windows = [np.resize(read(path), 8000) for path in clips[:4]]
    windows += [read(clips[4])[:8000], read(clips[5])[2172:10172], read(clips[6])[16000:24000]]
    np.testing.assert_allclose(model.embed_audio(clips), embed_waveforms(model, *windows), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_several_crops_are_spread_from_start_to_end_averaged_and_unit_again(model, clips, batch_size):
    """Crops of one clip mixed with those of its neighbour would average two sounds."""
    rows_ND = model.embed_audio(clips, num_crops=3, batch_size=batch_size)
    for path, row in zip(clips, rows_ND, strict=True):
        wave = read(path)
        slack = max(0, len(wave) - 8000)
        crops = [np.resize(wave[start : start + 8000], 8000) for start in (0, slack // 2, slack)]
        mean = embed_waveforms(model, *crops).mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


def test_stereo_is_the_mean_of_its_channels_and_other_rates_are_resampled(model, clips, tmp_path):
    """A peer reads stereo as one long signal: twice the length, and another embedding."""
    left, right = read(clips[6]), read(clips[6])[::-1]
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "mean.wav", (left + right) / 2, RATE, subtype="FLOAT")
    stereo, mean = model.embed_audio([tmp_path / "stereo.wav", tmp_path / "mean.wav"])
    np.testing.assert_allclose(stereo, mean, atol=1e-5)

    time_s = np.arange(48000) / 48000
    soundfile.write(tmp_path / "48k.wav", 0.3 * np.sin(2 * np.pi * 440 * time_s), 48000, subtype="FLOAT")
    soundfile.write(tmp_path / "16k.wav", 0.3 * np.sin(2 * np.pi * 440 * time_s[::3]), RATE, subtype="FLOAT")
    fast, slow = model.embed_audio([tmp_path / "48k.wav", tmp_path / "16k.wav"])
    assert float(fast @ slow) > 0.999


def test_embedding_leaves_every_module_in_the_mode_it_had(model, clips):
    """Set back to training as a whole, a frozen tower in evaluation mode would have its dropout on again."""
    model.train()
    model.text.eval()
    try:
        rows_ND = model.embed_audio(clips[:2])
        assert model.training and model.audio.bn0.training and not model.text.training
        with pytest.raises(DataError):
            model.embed_audio([clips[0], clips[0].with_name("gone.wav")])
        assert model.training and not model.text.training
        text_MD = model.embed_text(CAPTIONS)
    finally:
        model.eval()
    np.testing.assert_allclose(rows_ND, model.embed_audio(clips[:2]), atol=1e-6)
    np.testing.assert_allclose(text_MD, model.embed_text(CAPTIONS, batch_size=1), atol=1e-5)
    assert torch.is_grad_enabled()


def test_nothing_in_gives_no_rows_of_the_right_width(model):
    """An empty folder ends as a table of no rows, and not as a crash in the next stage."""
    assert model.embed_audio([]).shape == (0, 24)
    assert model.embed_text([]).shape == (0, 24)
    assert model.classify([], ["dog", "rain"]).columns.tolist()[-2:] == ["dog", "rain"]


def test_what_cannot_be_embedded_is_refused(model, clips, tmp_path):
    """A single path is a list of letters, each of them a missing file."""
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    with pytest.raises(DataError, match="empty.wav"):
        model.embed_audio([clips[0], tmp_path / "empty.wav"])
    with pytest.raises(TypeError, match="wrap it in a list"):
        model.embed_audio(str(clips[0]))
    with pytest.raises(TypeError, match="wrap it in a list"):
        model.embed_text("a dog barks")
    with pytest.raises(ValueError, match="at least 1"):
        model.embed_audio(clips, num_crops=0)
    with pytest.raises(ValueError, match="at least 1"):
        model.embed_text(CAPTIONS, batch_size=0)


# -- classes


def test_classify_is_the_softmax_of_scaled_cosines_with_prompts(model, clips):
    """Underscores in a prompt are word pieces of their own; without the scale every class is as probable."""
    names = ["dog", "engine_idling", "cafe/restaurant"]
    answer = model.classify(clips, names)
    prompts = ["this is a sound of dog", "this is a sound of engine idling", "this is a sound of cafe restaurant"]
    similarity_NK = (model.embed_audio(clips) @ model.embed_text(prompts).T).astype(np.float64)
    shares = np.exp(similarity_NK / 0.07)
    shares /= shares.sum(axis=1, keepdims=True)
    assert answer.columns.tolist() == [
        "path", "class", "similarity", "probability", "dog", "engine idling", "cafe restaurant"
    ]  # fmt: skip
    assert answer.path.tolist() == [str(path) for path in clips]
    assert answer["class"].tolist() == [names[best] for best in similarity_NK.argmax(axis=1)]
    np.testing.assert_allclose(answer.similarity, similarity_NK.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(answer.iloc[:, 4:], shares, atol=1e-4)
    np.testing.assert_allclose(answer.probability, shares.max(axis=1), atol=1e-4)


def test_the_order_of_classes_changes_nothing_but_the_columns(model, clips):
    """An answer that hangs on the order of names is an index without its list."""
    first = model.classify(clips, ["dog", "rain", "siren"], prompt="{} falls")
    second = model.classify(clips, ["siren", "dog", "rain"], prompt="{} falls")
    assert first["class"].tolist() == second["class"].tolist()
    np.testing.assert_allclose(first.siren, second.siren, atol=1e-5)


def test_transductive_probabilities_come_from_all_files_together(model, clips):
    """The option could be ignored and every answer would still look fine."""
    metrics = pytest.importorskip("clapcur.methods.metrics")
    names = ["dog", "rain", "siren"]
    answer = model.classify(clips, names, transductive=True)
    text_KD = model.embed_text([f"this is a sound of {name}" for name in names])
    scale = float(model.scale().detach())
    expected_NK = metrics.transductive_posteriors(model.embed_audio(clips), text_KD, logit_scale=scale)
    np.testing.assert_allclose(answer[names], expected_NK, atol=1e-6)
    assert answer["class"].tolist() == [names[best] for best in expected_NK.argmax(axis=1)]
    similarity_NK = model.embed_audio(clips) @ text_KD.T
    np.testing.assert_allclose(answer.similarity, similarity_NK[np.arange(7), expected_NK.argmax(axis=1)], atol=1e-5)
    assert not np.allclose(answer[names], model.classify(clips, names)[names])


def test_a_class_named_like_a_column_keeps_its_own(model, clips):
    """A class called "path" would take the place of the files."""
    answer = model.classify(clips[:1], ["path", "rain"])
    assert answer.columns.tolist() == ["path", "class", "similarity", "probability", "path (class)", "rain"]
    assert answer.path[0] == str(clips[0])


@pytest.mark.parametrize("names", [[], ["gun_shot", "gun shot"]])
def test_classes_that_are_no_choice_are_refused(model, clips, names):
    """Two names with one prompt share a tie that argmax gives to the first."""
    with pytest.raises(ValueError, match="class names must be distinct"):
        model.classify(clips, names)


def test_a_prompt_without_a_place_for_the_name_is_refused(model, clips):
    """All classes would have the same embedding, and the first would always win."""
    with pytest.raises(ValueError, match="prompt must contain"):
        model.classify(clips, ["dog", "rain"], prompt="this is a sound")


# -- folders


@pytest.fixture
def folder(model, tmp_path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_answers_the_same_in_evaluation_mode(model, clips, folder):
    """A tokenizer, a buffer or a mode that is lost on the way changes answers and raises nothing."""
    torch.manual_seed(3)
    untouched = torch.rand(2)
    torch.manual_seed(3)
    loaded = load_model(folder, device="cpu")
    assert torch.equal(torch.rand(2), untouched)
    assert loaded.config == CONFIG
    assert not any(module.training for module in loaded.modules())
    assert np.array_equal(loaded.embed_audio(clips), model.embed_audio(clips))
    assert np.array_equal(loaded.embed_text(CAPTIONS), model.embed_text(CAPTIONS))
    assert {name: tensor.dtype for name, tensor in loaded.state_dict().items()} == {
        name: tensor.dtype for name, tensor in model.state_dict().items()
    }


def test_saving_twice_gives_the_same_bytes_without_pickle_or_machine_paths(model, clips, folder, tmp_path):
    """A run that resumes must end in the bytes of one that never stopped."""
    loaded = load_model(folder)
    loaded.embed_text(CAPTIONS)
    loaded.save(tmp_path / "again")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [
        "config.json",
        "model.safetensors",
        "text/config.json",
        "text/tokenizer.json",
        "text/tokenizer_config.json",
    ]
    assert [str(name) for name in files] == names
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert str(tmp_path).encode() not in (folder / name).read_bytes()


def test_a_saved_model_needs_neither_its_text_model_nor_the_folder_it_was_in(tmp_path, clips):
    """A checkpoint that looks up its text model again loads other weights, or none, on the next machine."""
    source = Clap.create(CONFIG, CAPTIONS, seed=7)
    source.text.save(tmp_path / "text")
    source.text.encoder.save_pretrained(tmp_path / "text")
    config = dataclasses.replace(CONFIG, text=TextConfig(source=str(tmp_path / "text"), max_tokens=20))
    model = Clap.create(config).eval()
    torch.testing.assert_close(
        model.state_dict()["text.encoder.embeddings.word_embeddings.weight"],
        source.state_dict()["text.encoder.embeddings.word_embeddings.weight"],
    )
    model.save(tmp_path / "model")
    rows_MD = model.embed_text(CAPTIONS)
    shutil.rmtree(tmp_path / "text")
    shutil.move(tmp_path / "model", tmp_path / "elsewhere")
    assert np.array_equal(load_model(tmp_path / "elsewhere").embed_text(CAPTIONS), rows_MD)


def test_a_model_in_bfloat16_answers_nearly_the_same_and_is_stored_in_float32(model, clips, folder):
    """A precision that is asked for and not used makes the wrong entry in the record."""
    half = load_model(folder, precision="bfloat16")
    for exact, rounded in (
        (model.embed_audio(clips), half.embed_audio(clips)),
        (model.embed_text(CAPTIONS), half.embed_text(CAPTIONS)),
    ):
        assert rounded.dtype == np.float32
        assert not np.array_equal(exact, rounded)
        assert float((exact * rounded).sum(axis=1).min()) > 0.99
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="got 'float16'"):
        load_model(folder, precision="float16")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "text/config.json", "text/tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    """A model without its tokenizer would meet the vocabulary of another one."""
    (folder / name).unlink()
    words = {"text/config.json": "holds no text encoder and tokenizer", "text/tokenizer.json": "has no vocabulary"}
    expected = words.get(name, name)
    with pytest.raises(CheckpointError, match=expected):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "text/config.json", "text/tokenizer.json"])
def test_a_file_cut_off_is_an_error_of_ours(folder, name):
    """A copy that stopped half way must not end in the traceback of a parser."""
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError):
        load_model(folder)


def test_weights_that_do_not_fit_are_listed(folder):
    """With strict=False a model answers from the noise it was made with."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["audio.fc1.bias"]
    weights["audio.fc_audioset.bias"] = torch.zeros(527)
    weights["text_projection.linear1.weight"] = torch.zeros(24, 33)
    weights["audio.bn0.weight"] = weights["audio.bn0.weight"].half()
    save_file(weights, path)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "missing: audio.fc1.bias" in message
    assert "unexpected: audio.fc_audioset.bias" in message
    assert "text_projection.linear1.weight (float32 (24, 33), expected float32 (24, 32))" in message
    assert "audio.bn0.weight (float16 (64,), expected float32 (64,))" in message


def test_weights_of_another_model_are_counted_where_they_are_many(folder):
    """A message with four hundred names hides its first line."""
    path = folder / "model.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match=r"missing: audio\.bn0\.bias.* and \d+ more; unexpected: module\.audio"):
        load_model(folder)


def test_a_config_with_keys_too_many_or_too_few_is_refused(folder):
    """A default in place of what the file lacks is a guess at the front end the weights were trained with."""
    path = folder / "config.json"
    original = json.loads(path.read_text())

    def write(change) -> None:
        values = json.loads(json.dumps(original))
        change(values)
        path.write_text(json.dumps(values))

    write(lambda values: values["model"]["audio"]["front_end"].pop("mel_scale"))
    with pytest.raises(CheckpointError, match="lacks audio.front_end.mel_scale"):
        load_model(folder)
    write(lambda values: values["model"]["audio"].update(widht="tiny"))
    with pytest.raises(CheckpointError, match="unknown key 'audio.widht'; did you mean 'width'"):
        load_model(folder)
    write(lambda values: values["model"]["audio"]["front_end"].update(f_max=9000))
    with pytest.raises(CheckpointError, match="set f_max to 8000 or less"):
        load_model(folder)
    write(lambda values: values.pop("format"))
    with pytest.raises(CheckpointError, match="not the config of a clapcur model"):
        load_model(folder)
    write(lambda values: values.pop("model"))
    with pytest.raises(CheckpointError, match="config.json"):
        load_model(folder)


def test_a_folder_of_the_first_format_loads_as_what_it_was(folder, model, clips):
    """Keys that came later would lock people out of their own models, or be in them as guesses."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["format"] = "clapcur.clap/1"
    for name in ("short", "projection"):
        del values["model"][name]
    del values["model"]["audio"]["htsat"], values["model"]["text"]["suffix"]
    for name in ("filter_rate", "int16"):
        del values["model"]["audio"]["front_end"][name]
    path.write_text(json.dumps(values))
    loaded = load_model(folder)
    assert loaded.config == CONFIG
    assert np.array_equal(loaded.embed_audio(clips), model.embed_audio(clips))
    values["format"] = "clapcur.clap/2"
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="lacks audio.front_end.filter_rate, audio.front_end.int16, audio.htsat"):
        load_model(folder)


def test_a_config_survives_its_file():
    """A field that is not written comes back as its default."""
    assert ClapConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    with pytest.raises(ValueError, match="unknown key 'embeding_dim'; did you mean 'embedding_dim'"):
        ClapConfig.from_dict({"embeding_dim": 3})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"initial_temperature": 0.007}, "initial_temperature must be at least 0.01, got 0.007"),
        ({"initial_temperature": float("nan")}, "initial_temperature"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"projection_dropout": 1.0}, "projection_dropout"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(fields, message):
    """The paper's 0.007 is above the limit of the scale: the first step would change it unseen."""
    with pytest.raises(ValueError, match=message):
        ClapConfig(**fields)


def test_a_device_that_is_not_there_is_refused():
    """Falling back to the CPU silently turns hours into days."""
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="device 'cuda:99' is not available"):
        pick_device("cuda:99")
    with pytest.raises(ValueError, match="got 'gpu'"):
        pick_device("gpu")


@pytest.mark.parametrize(
    ("able", "asked", "expected", "warns"),
    [
        ({"avx2": True, "amx_bf16": False}, "auto", torch.float32, False),
        ({"avx2": True, "amx_bf16": False}, "bfloat16", torch.bfloat16, True),
        ({"avx2": True, "amx_bf16": False}, "float32", torch.float32, False),
        ({"avx512_bf16": True}, "auto", torch.bfloat16, False),
        ({"amx_bf16": True}, "bfloat16", torch.bfloat16, False),
        ({"amx_bf16": True}, "float32", torch.float32, False),
        ({"sve": True, "sve_bf16": True}, "auto", torch.bfloat16, False),
    ],
)
def test_bfloat16_is_chosen_where_the_cpu_has_it_and_warned_of_elsewhere(
    able, asked, expected, warns, monkeypatch, caplog
):
    """Emulated, a step takes ten to forty times as long: a demo of four minutes took half an hour."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert pick_precision(asked, torch.device("cpu")) == expected
    assert ("no bfloat16 instructions" in caplog.text) == warns


# -- real sound


@pytest.mark.shared_data("esc10")
def test_real_files_of_any_length_and_format_are_embedded(model, shared_data):
    """Noise in tests would not show a decoder or a level that real recordings need."""
    files = sorted((shared_data("esc10") / "audio").glob("*.ogg"))[:6]
    rows_ND = model.embed_audio(files, num_crops=2)
    np.testing.assert_allclose(np.linalg.norm(rows_ND, axis=1), 1, atol=1e-6)
    similarity_NN = rows_ND @ rows_ND.T
    assert similarity_NN[~np.eye(6, dtype=bool)].max() < 0.9999  # six sounds, six rows
