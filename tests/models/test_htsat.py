"""HTSAT as an audio tower of ours: in the same loop and by the same configs as Cnn14."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tiny_clap import CAPTIONS, FRONT_END
from tiny_htsat import CONFIG, TINY

from clapcur.models.clap import Clap, load_model
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, HtsatConfig
from clapcur.models.htsat import Htsat


@pytest.mark.parametrize("projection", ["residual", "mlp", "linear"])
def test_every_weight_learns_and_the_folder_gives_the_same_answer(projection, tmp_path):
    """A tower off the path of the gradient trains its projection alone, and the loss still falls."""
    config = dataclasses.replace(CONFIG, projection=projection)
    model = Clap.create(config, CAPTIONS).train()
    audio = model.encode_audio(torch.randn(3, config.num_samples))
    loss = F.cross_entropy(model.scale() * audio @ model.encode_text(CAPTIONS).T, torch.arange(3))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    model.eval().save(tmp_path)
    loaded = load_model(tmp_path, device="cpu")
    assert loaded.config == config
    waveform_BT = torch.randn(2, config.num_samples)
    with torch.inference_mode():
        assert torch.equal(loaded.encode_audio(waveform_BT), model.encode_audio(waveform_BT))
        torch.testing.assert_close(model.encode_audio(waveform_BT).norm(dim=1), torch.ones(2))


def test_positions_are_computed_and_not_stored():
    """An index of 64 x 64 in every block would be most names of a checkpoint, and none of what was learned."""
    tower = Htsat(TINY, 64)
    stored = set(tower.state_dict())
    learned = {name for name, _ in tower.named_parameters()}
    assert {name.split(".")[-1] for name in stored - learned} == {"running_mean", "running_var", "num_batches_tracked"}


def test_more_frames_than_the_picture_holds_are_refused():
    """The library says that "the wav size should be less than the swin input size", and names neither."""
    tower = Htsat(TINY, 64).eval()
    with torch.inference_mode():
        assert tower(torch.randn(2, 64, 64)).shape == (2, 16)
        assert tower(torch.randn(2, 20, 64)).shape == (2, 16)
    with pytest.raises(ValueError, match="at most 64 frames, got \\(2, 65, 64\\)"):
        tower(torch.randn(2, 65, 64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (1, 1, 1)}, "depths and num_heads must have the same length"),
        ({"num_heads": (3, 2)}, "got 8 channels and 3 heads in stage 0"),
        ({"picture": 60}, "picture must be a multiple of patch"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_a_tower_that_cannot_be_built_is_refused_by_its_config(fields, message):
    """The failure would come from a reshape in the middle of the third stage."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)


def test_a_front_end_that_does_not_fit_the_picture_is_refused():
    """Frames beyond the picture fail at the first batch, after hours of ingest."""
    with pytest.raises(ValueError, match="folds of num_mels 40"):
        AudioConfig(front_end=dataclasses.replace(FRONT_END, num_mels=40), htsat=TINY)
    with pytest.raises(ValueError, match="window_s 0.7 gives 71 frames, but HTSAT's picture holds at most 64"):
        dataclasses.replace(CONFIG, window_s=0.7)
    laion = FrontEndConfig(sample_rate=48000, hop_samples=480)
    default = ClapConfig(audio=AudioConfig(front_end=laion, htsat=HtsatConfig()), window_s=10.0)
    assert default.audio.front_end.num_frames(default.num_samples) == 1001  # of 1024: LAION's
    with pytest.raises(ValueError, match="projection must be one of residual, mlp, linear, got 'cubic'"):
        dataclasses.replace(CONFIG, projection="cubic")
    with pytest.raises(ValueError, match="short must be one of"):
        dataclasses.replace(CONFIG, short="zeros")


def test_the_config_of_a_tower_survives_its_file():
    """Depths come back from JSON as lists; a config that differs from itself is another model."""
    import json

    assert ClapConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    with pytest.raises(ValueError, match="unknown key 'audio.htsat.depth'; did you mean 'depths'"):
        ClapConfig.from_dict({"audio": {"htsat": {"depth": [1]}}})
