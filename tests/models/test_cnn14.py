"""Cnn14 against the names and size of the PANNs release, and against the same network written out."""

import pytest
import torch
import torch.nn.functional as F
from cnn14_reference import reference_features

from clapcur.models.cnn14 import Cnn14
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig

# Names in `Cnn14_mAP=0.431.pth` of PANNs, less its front end and its head fc_audioset.
PANNS_NAMES = (
    """
bn0.weight bn0.bias bn0.running_mean bn0.running_var bn0.num_batches_tracked
fc1.weight fc1.bias
""".split()
    + [
        f"conv_block{block}.{name}"
        for block in (1, 2, 3, 4, 5, 6)
        for name in """
    conv1.weight conv2.weight
    bn1.weight bn1.bias bn1.running_mean bn1.running_var bn1.num_batches_tracked
    bn2.weight bn2.bias bn2.running_mean bn2.running_var bn2.num_batches_tracked
    """.split()
    ]
)


@pytest.fixture(scope="module")
def full() -> Cnn14:
    torch.manual_seed(0)
    return Cnn14("full").eval()


@pytest.fixture
def tiny() -> Cnn14:
    torch.manual_seed(0)
    return Cnn14("tiny").eval()


def logmel(batch: int, frames: int, seed: int = 1) -> torch.Tensor:
    """Frames with the level and spread of real ones, in dB."""
    generator = torch.Generator().manual_seed(seed)
    return -30 + 15 * torch.randn(batch, frames, 64, generator=generator)


def unsettle(model: Cnn14) -> None:
    """Give every batch norm statistics and weights of its own: with 0 and 1 a swapped axis would not show."""
    for name, tensor in model.state_dict().items():
        if ".running" in name or name.startswith("bn0.running"):
            low, high = (0.5, 2.0) if name.endswith("var") else (-0.2, 0.2)
            tensor.uniform_(low, high)
        elif "bn" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    model.bn0.running_mean.uniform_(-40, -20)
    model.bn0.running_var.uniform_(100, 300)


def test_the_weights_have_the_names_and_number_of_the_panns_release(full):
    """A renamed layer would keep its random weights when PANNs' are loaded by name."""
    assert set(full.state_dict()) == set(PANNS_NAMES)
    assert len(PANNS_NAMES) == len(set(PANNS_NAMES)) == 79
    head = 2048 * 527 + 527  # fc_audioset
    assert sum(p.numel() for p in full.parameters()) + head == 80_753_615  # as PANNs states it
    assert full.conv_block6.conv2.weight.shape == (2048, 2048, 3, 3)
    assert full.fc1.weight.shape == (2048, 2048)


@pytest.mark.parametrize("frames", [32, 47, 101])
def test_features_equal_the_network_written_out_in_plain_tensors(tiny, frames):
    """A swapped axis or pooling still trains, only worse, and PANNs' weights would mean nothing in it."""
    unsettle(tiny)
    x = logmel(2, frames)
    with torch.inference_mode():
        expected = reference_features(tiny.state_dict(), x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(tiny(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_the_published_width_equals_the_network_written_out(full):
    """Parity at an eighth of the width would not show a layer that is wide by mistake."""
    unsettle(full)
    x = logmel(1, 35)
    with torch.inference_mode():
        expected = reference_features(full.state_dict(), x)
        torch.testing.assert_close(full(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("width", "channels"), [("full", 64), ("small", 16), ("tiny", 8)])
def test_each_width_scales_every_layer(width, channels):
    """A width that scales the blocks but not fc1 would hide most parameters in one layer."""
    with torch.device("meta"):
        model = Cnn14(width)
    blocks = [model.get_submodule(f"conv_block{i}") for i in range(1, 7)]
    assert [block.conv2.weight.shape[0] for block in blocks] == [channels * 2**i for i in range(6)]
    assert model.num_features == model.fc1.out_features == 32 * channels
    assert all(block.conv1.weight.shape[0] == block.conv2.weight.shape[0] for block in blocks)


def test_memory_layout_changes_no_feature(tiny):
    """A model trained in channels_last must answer the same where it is loaded without."""
    x = logmel(3, 64)
    with torch.inference_mode():
        plain = tiny(x)
        maps = []
        tiny.to(memory_format=torch.channels_last).conv_block3.register_forward_hook(lambda *a: maps.append(a[2]))
        torch.testing.assert_close(tiny(x), plain, rtol=1e-4, atol=1e-5)
    assert maps[0].is_contiguous(memory_format=torch.channels_last)  # the layout did reach the middle


def test_the_form_for_inference_gives_the_same_features_and_leaves_the_tower_as_it_was(tiny):
    """A norm folded with the wrong statistics moves every row a little, and no error is raised."""
    unsettle(tiny)
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    tiny.train()
    folded = tiny.folded()
    assert tiny.training and not folded.training
    assert [name for name, module in folded.named_modules() if isinstance(module, torch.nn.BatchNorm2d)] == ["bn0"]
    tiny.eval()
    x = logmel(3, 47)
    with torch.inference_mode():
        plain, given = F.normalize(tiny(x), dim=1), F.normalize(folded(x), dim=1)
        torch.testing.assert_close(given, plain, rtol=0, atol=1e-6)
    assert plain.std() > 1e-3
    after = tiny.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_dropout_acts_after_every_block_and_around_the_last_layer(tiny):
    """A rate that reaches no layer leaves a model without the regularisation that its config claims."""
    for name, parameter in tiny.named_parameters():
        if ".bias" in name:
            torch.nn.init.constant_(parameter, 1000.0 if name == "fc1.bias" else 10.0)  # no ReLU gives a 0
    inputs = [tiny.get_submodule(f"conv_block{i}").conv1 for i in range(2, 7)] + [tiny.fc1]
    zeros = []
    for layer in inputs:
        layer.register_forward_pre_hook(lambda module, given: zeros.append(float((given[0] == 0).float().mean())))

    def shares(block_dropout: float, dropout: float) -> list[float]:
        zeros.clear()
        tiny.block_dropout, tiny.dropout = block_dropout, dropout
        out = tiny(logmel(16, 32))
        return [*zeros, float((out == 0).float().mean())]

    tiny.train()
    for module in tiny.modules():
        module.momentum = 1.0  # running statistics are the last batch's
    assert shares(0.2, 0.0) == pytest.approx([0.2] * 5 + [0.2**2, 0], abs=0.02)  # fc1 hears both bands of block 6
    assert shares(0.0, 0.5) == pytest.approx([0] * 5 + [0.5, 0.5], abs=0.03)
    assert shares(0.0, 0.0) == [0.0] * 7
    tiny.eval()
    assert shares(0.2, 0.5) == [0.0] * 7


def test_no_gradient_is_lost_between_the_frames_and_the_features(tiny):
    """A detached tower trains its projection alone, and the loss still falls."""
    tiny.train()
    tiny(logmel(4, 64)).sum().backward()
    silent = [name for name, p in tiny.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_a_clip_of_32_frames_works_and_one_of_31_is_refused(tiny):
    """avg_pool2d fails on an empty map with a message about sizes, deep in the fifth block."""
    assert tiny(logmel(2, 32)).shape == (2, 256)
    with pytest.raises(ValueError, match="at least 32 frames, got \\(2, 31, 64\\)"):
        tiny(logmel(2, 31))


@pytest.mark.parametrize(("front_end", "least_s"), [({}, "0.31"), ({"n_fft": 16384, "hop_samples": 64}, "0.256")])
def test_a_window_too_short_is_refused_before_anything_is_built_and_the_least_one_works(front_end, least_s):
    """The failure would come at the first training step, after hours of ingest."""
    audio = AudioConfig(front_end=FrontEndConfig(**front_end), width="tiny")
    with pytest.raises(ValueError, match=f"at least {least_s} s, got 0.25"):
        ClapConfig(audio=audio, window_s=0.25)
    config = ClapConfig(audio=audio, window_s=float(least_s) + 1 / 32000)
    frames = audio.front_end.num_frames(config.num_samples)
    assert Cnn14("tiny")(logmel(2, frames)).shape == (2, 256)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": "huge"}, "width must be one of full, small, tiny, got 'huge'"),
        ({"block_dropout": 1.0}, "block_dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"front_end": FrontEndConfig(num_mels=24)}, "at least 32"),
    ],
)
def test_a_tower_that_cannot_be_built_is_refused_by_its_config(fields, message):
    """A rate of 1 silences every block: the model learns nothing and says nothing."""
    with pytest.raises(ValueError, match=message):
        AudioConfig(**fields)
