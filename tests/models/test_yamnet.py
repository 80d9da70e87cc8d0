"""YAMNet: the published network with its real weights, against what TensorFlow Lite says of ten real sounds."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from conftest import SHARED
from safetensors.torch import load_file, save_file
from tiny_clap import CAPTIONS
from tiny_yamnet import SMALL

from clapcur.audio import load_crops
from clapcur.errors import CheckpointError, DataError
from clapcur.models.checkpoints import load_checkpoint, save_checkpoint
from clapcur.models.clap import Clap, load_model
from clapcur.models.config import (
    YAMNET_FRONT_END,
    AudioConfig,
    FrontEndConfig,
    HtsatConfig,
    OrderHeadConfig,
    TextConfig,
    YamnetConfig,
)
from clapcur.models.front_end import LogMel, mel_filters
from clapcur.models.parts import modules_of
from clapcur.models.taggers import Vocabulary, YamnetTagger
from clapcur.models.yamnet import SameConv, Yamnet

WEIGHTS = SHARED / "weights" / "yamnet"
needs_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"YAMNet's weights are not at {WEIGHTS}")


def as_8_bits(module, arguments):
    """Round the input of a layer to 8 bits between its extremes, as the interpreter of the golden values does."""
    (x,) = arguments
    sides = (-1, *[1] * (x.ndim - 1))
    low, high = (found.view(sides) for found in (x.flatten(1).amin(1).clamp(max=0), x.flatten(1).amax(1).clamp(min=0)))
    step = ((high - low) / 255).clamp(min=1e-12)
    zero = torch.round(-128 - low / step)
    return (((torch.round(x / step) + zero).clamp(-128, 127) - zero) * step,)


@needs_weights
def test_the_ten_sounds_get_the_tags_that_tensorflow_lite_gives_them():
    """Another padding, window or filterbank gives features that look as good, and tags that are not YAMNet's.

    The interpreter rounds activations to 8 bits, which silences steady noise: of the helicopter it says Vehicle with
    0.05, the float network with 0.78. With the same rounding all agree.
    """
    expected = json.loads((WEIGHTS / "expected_top5.json").read_text())
    tagger = YamnetTagger.load(WEIGHTS / "yamnet.safetensors")
    for layer in tagger.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_pre_hook(as_8_bits)
    vocabulary = Vocabulary.read(WEIGHTS / "class_map.csv")
    assert len(expected) == 10 and len(vocabulary.names) == len(vocabulary.mids) == 521
    for name, told in expected.items():
        num_samples = 15_600 + (told["frames"] - 1) * told["hop_samples"]
        crops, _ = load_crops(str(SHARED / "esc10" / "audio" / name), 16_000, num_samples, [0.0], "pad", name)
        frames = torch.from_numpy(crops[0]).unfold(0, 15_600, told["hop_samples"])
        probability_K = tagger.probabilities(frames).mean(dim=0).numpy()
        for index, value in told["top5"]:
            assert probability_K[index] == pytest.approx(value, abs=0.13), (name, vocabulary.names[index])
        sure = [(index, value) for index, value in told["top5"] if value > 0.3]
        assert set(probability_K.argsort()[::-1][: len(sure)].tolist()) == {index for index, _ in sure}, name
        for (first, more), (second, less) in itertools.combinations(sure, 2):
            assert more - less < 0.02 or probability_K[first] > probability_K[second], name


def test_a_clip_is_heard_in_patches_of_which_half_lies_over_the_next():
    """As published: the mean over patches that begin every 48 frames."""
    tagger = YamnetTagger(3, YamnetConfig(channels=2)).eval()
    waveform_BT = torch.randn(1, 16_000 * 2)
    frames = [waveform_BT[:, start : start + 15_600] for start in range(0, 16_000 * 2 - 15_600 + 1, 48 * 160)]
    each = torch.cat([tagger.probabilities(frame) for frame in frames])
    assert len(frames) == 3
    torch.testing.assert_close(tagger.probabilities(waveform_BT)[0], each.mean(dim=0))
    with pytest.raises(ValueError, match="a clip must fill a patch of 0.975 s, got 15000 samples"):
        tagger.probabilities(torch.randn(1, 15_000))


def test_files_that_are_no_tagger_are_refused(tmp_path):
    save_file({"layer1.conv.weight": torch.zeros(2, 1, 3, 3)}, tmp_path / "tower.safetensors")
    with pytest.raises(CheckpointError, match=r"is not a tagger: .* classifier.weight is missing"):
        YamnetTagger.load(tmp_path / "tower.safetensors")
    with pytest.raises(DataError, match="does not exist; download it with the tagger's weights"):
        Vocabulary.read(tmp_path / "none.csv")
    (tmp_path / "odd.csv").write_text("index,mid,display_name\n1,/m/a,A\n0,/m/b,B\n")
    with pytest.raises(DataError, match="must number its classes from 0, "):
        Vocabulary.read(tmp_path / "odd.csv")


@needs_weights
def test_the_weights_become_an_audio_tower_and_the_head_is_left_out_by_name():
    text = TextConfig(hidden_size=32, vocab_size=120)
    model, report = load_checkpoint(WEIGHTS / "yamnet.safetensors", text=text, captions=CAPTIONS)
    assert report.format == "yamnet" and set(report.ignored) == {"classifier.weight", "classifier.bias"}
    assert model.config.audio.yamnet == YamnetConfig() and model.config.audio.front_end == YAMNET_FRONT_END
    assert model.audio.num_features == 1024 and all(not name.startswith("audio.") for name in report.fresh)
    file = load_file(WEIGHTS / "yamnet.safetensors")
    tower = {name: value for name, value in file.items() if not name.startswith("classifier.")}
    assert all(torch.equal(model.audio.state_dict()[name], value) for name, value in tower.items())
    assert sum(value.numel() for value in tower.values()) == sum(p.numel() for p in model.audio.parameters())


def test_every_weight_learns_and_the_folder_gives_the_same_answer(tmp_path):
    model = Clap.create(SMALL, CAPTIONS).train()
    model.encode_audio(torch.randn(3, SMALL.num_samples)).sum().backward()
    named = [(name, p) for name, p in model.named_parameters() if name.startswith("audio.")]
    assert [name for name, p in named if p.grad is None or not p.grad.abs().sum() > 0] == []
    model.eval().save(tmp_path)
    loaded = load_model(tmp_path, device="cpu")
    waveform_BT = torch.randn(2, SMALL.num_samples)
    with torch.inference_mode():
        assert loaded.config == SMALL
        assert torch.equal(loaded.encode_audio(waveform_BT), model.encode_audio(waveform_BT))


@pytest.mark.parametrize("sides", [(4, 4), (5, 4), (4, 5), (7, 9), (1, 1)])
def test_padding_is_that_of_tensorflow(sides):
    """For a stride of 2 and an even side, TensorFlow pads at the end alone; torch's padding=1 pads both ends."""
    conv = SameConv(1, 1, stride=2)
    torch.nn.init.ones_(conv.weight)
    x = torch.randn(1, 1, *sides)
    starts = [[2 * i - (side % 2) for i in range(-(-side // 2))] for side in sides]  # of each window of three
    expected = [
        [sum(x[0, 0, r, c] for r in range(row, row + 3) for c in range(column, column + 3)
             if 0 <= r < sides[0] and 0 <= c < sides[1]) for column in starts[1]]
        for row in starts[0]
    ]  # fmt: skip
    torch.testing.assert_close(conv(x)[0, 0], torch.tensor(expected))


def test_frames_begin_at_the_first_sample_and_are_filled_up_with_zeros():
    front_end = LogMel(YAMNET_FRONT_END)
    waveform_T = torch.randn(15_600)
    logmel_LM = front_end(waveform_T[None])[0]
    assert len(logmel_LM) == 96 == YAMNET_FRONT_END.num_frames(15_600)
    window = np.hanning(401)[:-1]  # periodic
    frame = np.abs(np.fft.rfft(waveform_T[160:560].double().numpy() * window, 512))
    filters_FM = mel_filters(YAMNET_FRONT_END).numpy()
    np.testing.assert_allclose(logmel_LM[1], np.log(frame @ filters_FM + 1e-3), rtol=1e-4, atol=1e-4)
    assert filters_FM[0].max() == 0  # no band holds what is constant
    mel = 1127 * np.log1p(np.arange(257) * 16_000 / 512 / 700)
    edges = np.linspace(1127 * np.log1p(125 / 700), 1127 * np.log1p(7500 / 700), 66)
    third = np.interp(mel, edges[3:6], [0, 1, 0])
    np.testing.assert_allclose(filters_FM[:, 3], third, atol=1e-5)
    with pytest.raises(ValueError, match="at least 400 samples"):
        front_end(torch.randn(1, 399))


def test_the_last_layers_can_learn_alone_and_an_order_head_changes_nothing_at_first():
    model = Clap.create(SMALL, CAPTIONS).eval()
    assert [module for module in modules_of(model, "audio_last")] == [model.audio.layer13, model.audio.layer14]
    waveform_BT = torch.randn(2, SMALL.num_samples)
    with torch.inference_mode():
        headed = model.with_order_head(OrderHeadConfig(hidden_size=4)).eval()
        assert torch.equal(headed.encode_audio(waveform_BT), model.encode_audio(waveform_BT))
    whole = dataclasses.replace(SMALL, window_s=10.0)
    assert whole.hears_order_s == pytest.approx(3.15)


def test_the_receptive_field_is_what_the_config_says():
    """A cell that hears further would tell the order of sounds that the warning says it cannot."""
    tower = Yamnet(YamnetConfig(channels=2))
    for parameter in tower.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    logmel_BLM = torch.ones(1, 1024, 64, requires_grad=True)
    tower.maps(logmel_BLM)[0, :, 16].sum().backward()
    heard = logmel_BLM.grad[0].abs().sum(dim=1).nonzero()
    assert int(heard.max() - heard.min()) + 1 == 315


@pytest.mark.parametrize("form", ["msclap", "laion", "hf"])
def test_forms_of_other_projects_refuse_the_tower(form, tmp_path):
    with pytest.raises(CheckpointError, match="its audio tower is YAMNet; use clapcur"):
        save_checkpoint(Clap.create(SMALL, CAPTIONS), tmp_path / "x", form)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AudioConfig(htsat=HtsatConfig(), yamnet=YamnetConfig()), "give either htsat or yamnet, not both"),
        (lambda: YamnetConfig(channels=0), "channels must be at least 1"),
        (lambda: FrontEndConfig(frame_samples=400), "frame_samples needs style"),
        (lambda: dataclasses.replace(YAMNET_FRONT_END, frame_samples=600), "at most n_fft"),
        (lambda: dataclasses.replace(SMALL, window_s=0.02), "shorter than a frame of 400 samples"),
    ],
)
def test_what_could_not_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
