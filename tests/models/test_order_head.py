"""The order-aware pooling: nothing changes when it is added, and it hears what the pooling forgot."""

import dataclasses

import pytest
import torch
from tiny_clap import CAPTIONS, FRONT_END
from tiny_htsat import CONFIG as HTSAT

from clapcur.config import added, canonical, frozen
from clapcur.errors import CheckpointError
from clapcur.models.checkpoints import save_checkpoint
from clapcur.models.clap import Clap, load_model
from clapcur.models.cnn14 import Cnn14
from clapcur.models.config import RECEPTIVE_FRAMES, AudioConfig, ClapConfig, FrontEndConfig, OrderHeadConfig
from clapcur.models.parts import let_learn

CNN14 = dataclasses.replace(HTSAT, audio=AudioConfig(front_end=FRONT_END, width="tiny"), window_s=2.0)
TOWERS = pytest.mark.parametrize("config", [CNN14, HTSAT], ids=["cnn14", "htsat"])


@TOWERS
def test_a_new_head_leaves_every_embedding_exactly_as_it_was(config, tmp_path):
    """What the checkpoint could do before, post-training must start from; not from nearly that."""
    model = Clap.create(config, CAPTIONS).eval()
    waveform = torch.randn(3, config.num_samples, generator=torch.Generator().manual_seed(1))
    with_head = model.with_order_head(OrderHeadConfig(hidden_size=8), seed=3)
    with torch.inference_mode():
        assert torch.equal(with_head.encode_audio(waveform), model.encode_audio(waveform))
        assert torch.equal(with_head.encode_text(CAPTIONS), model.encode_text(CAPTIONS))
    with_head.save(tmp_path)
    loaded = load_model(tmp_path, device="cpu")
    assert loaded.config.audio.order_head == OrderHeadConfig(hidden_size=8)
    with torch.inference_mode():
        assert torch.equal(loaded.encode_audio(waveform), model.encode_audio(waveform))
    with pytest.raises(ValueError, match="already has an order head"):
        with_head.with_order_head()


@TOWERS
def test_every_weight_of_the_head_learns_once_its_last_layer_has_moved(config):
    """A head that stays at zero adds nothing, and the loss falls all the same."""
    model = Clap.create(config, CAPTIONS).with_order_head(OrderHeadConfig(hidden_size=8)).train()
    let_learn(model, ["order_head"])
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    waveform, wanted = torch.randn(4, config.num_samples), torch.randn(4, config.embedding_dim)
    for _ in range(2):
        optimiser.zero_grad()
        (model.encode_audio(waveform) * wanted).sum().backward()
        optimiser.step()
    learned = dict(model.audio.order_head.named_parameters())
    assert [name for name, p in learned.items() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_head_tells_frames_from_the_same_frames_reversed():
    """The pooling of the tower gives both the same features, whatever is trained."""
    tower = Cnn14("tiny", order_head=OrderHeadConfig(hidden_size=8)).eval()
    torch.nn.init.normal_(tower.order_head.out.weight)
    frames = torch.randn(1, 256, 12)
    assert not torch.allclose(tower.order_head(frames), tower.order_head(frames.flip(2)), atol=1e-2)


def test_the_receptive_field_of_cnn14_is_as_long_as_is_said():
    """Preflight warns by this figure."""
    tower = Cnn14("tiny", num_mels=32).eval()
    for weight in (p for p in tower.parameters() if p.ndim == 4):
        torch.nn.init.constant_(weight, 1 / 9)  # positive, so that no ReLU hides an edge
    x = torch.ones(1, 1, 1024, 32, requires_grad=True)
    y = x
    for i in range(1, 7):
        y = tower.get_submodule(f"conv_block{i}")(y, pool=2 if i < 6 else 1)
    y[0, :, y.shape[2] // 2].sum().backward()
    assert int((x.grad.abs().sum(dim=(0, 1, 3)) > 0).sum()) == RECEPTIVE_FRAMES
    config = ClapConfig(audio=AudioConfig(front_end=FrontEndConfig(sample_rate=44_100)))
    assert config.hears_order_s == pytest.approx(2.06, abs=0.005)
    head = dataclasses.replace(config, audio=dataclasses.replace(config.audio, order_head=OrderHeadConfig()))
    assert head.hears_order_s == 5.0


@pytest.mark.parametrize("form", ["msclap", "laion", "hf"])
def test_forms_of_others_say_that_they_cannot_hold_the_head(form, tmp_path):
    """Written without it, the student would be another model."""
    model = Clap.create(CNN14, CAPTIONS).with_order_head()
    with pytest.raises(CheckpointError, match="cannot store the order head of the audio tower; use clapcur"):
        save_checkpoint(model, tmp_path / "out", form)


def test_a_field_that_was_added_keeps_the_ids_of_what_existed_before():
    """Every teacher would be trained again because a field exists that it does not use."""

    @frozen
    class Before:
        width: int = 3

    @frozen
    class After:
        width: int = 3
        head: int | None = added(None)

    assert canonical(After()) == canonical(Before())
    assert canonical(After(head=1)) == {"width": 3, "head": 1}
    assert "order_head" not in canonical(AudioConfig())
    assert canonical(AudioConfig(order_head=OrderHeadConfig()))["order_head"] == {"hidden_size": 128}


@pytest.mark.parametrize(
    ("parts", "learning"),
    [
        (["audio_last"], {"audio.fc1"}),
        (["text_last", "logit_scale"], {"text.encoder.encoder.layer.1", "logit_scale"}),
        (["audio_projection", "text_projection"], {"audio_projection", "text_projection"}),
    ],
)
def test_the_parts_that_learn_are_those_that_are_named(parts, learning):
    """A part that is frozen by a misspelled name trains nothing, and one too many forgets."""
    model = Clap.create(CNN14, CAPTIONS)
    let_learn(model, parts)
    found = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found and all(any(name.startswith(prefix) for prefix in learning) for name in found)
    assert {next(prefix for prefix in learning if name.startswith(prefix)) for name in found} == learning


def test_a_part_that_is_not_there_is_named():
    """The whole training would run and teach nothing."""
    model = Clap.create(CNN14, CAPTIONS)
    with pytest.raises(CheckpointError, match="no order head to train"):
        let_learn(model, ["order_head"])
    with pytest.raises(ValueError, match="a part must be one of .*'ears'"):
        let_learn(model, ["ears"])
