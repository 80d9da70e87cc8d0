"""Features of a frozen audio tower that are kept: the same rows and gradients as through the tower, in any batch."""

import dataclasses

import pytest
import torch
from tiny_clap import CAPTIONS, FRONT_END
from tiny_htsat import CONFIG as HTSAT
from tiny_yamnet import SMALL as YAMNET
from training_corpus import TEACHER, Corpus, weights

from clapcur.models.clap import Clap
from clapcur.models.config import AudioConfig, OrderHeadConfig
from clapcur.models.parts import let_learn
from clapcur.stages.train import features
from clapcur.stages.train.features import AudioFeatures, PooledCache, encode_heard, is_trunk_frozen, trunk_digest

CNN14 = dataclasses.replace(HTSAT, audio=AudioConfig(front_end=FRONT_END, width="tiny"), window_s=2.0)
TOWERS = pytest.mark.parametrize("config", [CNN14, HTSAT, YAMNET], ids=["cnn14", "htsat", "yamnet"])
HEADS = pytest.mark.parametrize("head", [None, OrderHeadConfig(hidden_size=8)], ids=["plain", "order-head"])
ROOM = 2**26


def make(config, head=None) -> Clap:
    """Return a model of which the projections, and the order head where there is one, learn."""
    model = Clap.create(config, CAPTIONS)
    if head is not None:
        model = model.with_order_head(head)
        torch.nn.init.normal_(model.audio.order_head.out.weight)
    let_learn(model.eval(), ["audio_projection", "text_projection", *(["order_head"] if head else [])])
    return model


def sounds(config, count=5) -> torch.Tensor:
    return torch.randn(count, config.num_samples, generator=torch.Generator().manual_seed(1))


@TOWERS
@HEADS
def test_kept_features_give_the_rows_and_gradients_of_the_tower(config, head):
    """A head that reads other frames than the tower's would learn something else."""
    model, waveform_BT = make(config, head), sounds(config)
    audio = AudioFeatures(model, is_trunk_frozen(model), PooledCache(ROOM))
    wanted = torch.randn(5, config.embedding_dim)
    found = []
    for encode in (model.encode_audio, audio.encode, audio.encode):  # computed, kept, and taken from the cache
        model.zero_grad()
        rows_BD = encode(waveform_BT)
        (rows_BD * wanted).sum().backward()
        found.append([rows_BD.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) > 1
    for through, kept, again in zip(*found, strict=True):
        torch.testing.assert_close(kept, through, rtol=1e-4, atol=1e-5)
        assert torch.equal(kept, again)


@TOWERS
def test_a_row_has_the_same_bits_in_every_batch(config):
    """A training that was resumed meets its clips in other company than the one that was not."""
    model, waveform_BT = make(config), sounds(config)
    together = AudioFeatures(model, True, PooledCache(ROOM)).encode(waveform_BT)
    later = AudioFeatures(model, True, PooledCache(ROOM))
    later.inputs(waveform_BT[3:])
    assert torch.equal(encode_heard(model, later.inputs(waveform_BT)), together)
    assert torch.equal(AudioFeatures(model, True, PooledCache(0)).encode(waveform_BT), together)


def test_a_full_cache_keeps_what_came_first_and_other_trunks_make_room():
    """A training hears its clips in turn: dropping the oldest row would drop each before it is heard again."""
    waveform_BT, first, second = sounds(CNN14), make(CNN14), make(CNN14)
    torch.nn.init.normal_(second.audio.conv_block1.conv1.weight)
    probe = PooledCache(ROOM)
    AudioFeatures(first, True, probe).inputs(waveform_BT[:1])
    size = probe.num_bytes
    cache = PooledCache(3 * size)
    audio = AudioFeatures(first, True, cache)
    audio.inputs(waveform_BT)
    passes = []
    first.front_end.register_forward_hook(lambda *_: passes.append(1))
    audio.inputs(waveform_BT)
    assert len(passes) == 2 and cache.num_bytes == 3 * size
    AudioFeatures(second, True, cache).inputs(waveform_BT[:3])
    assert cache.num_bytes == 3 * size
    audio.inputs(waveform_BT[:1])
    assert len(passes) == 3


def test_equal_trunks_share_their_features_whatever_their_heads_have_learned():
    """A teacher and its student hear a clip once; the fully connected layer of Cnn14 is of the head."""
    model, waveform_BT, cache = make(CNN14), sounds(CNN14), PooledCache(ROOM)
    student = make(CNN14)
    torch.nn.init.normal_(student.audio.fc1.weight)
    assert trunk_digest(model) == trunk_digest(student)
    AudioFeatures(model, True, cache).inputs(waveform_BT)
    passes = []
    student.front_end.register_forward_hook(lambda *_: passes.append(1))
    rows_BD = AudioFeatures(student, True, cache).encode(waveform_BT)
    assert passes == []
    torch.testing.assert_close(rows_BD, student.encode_audio(waveform_BT), rtol=1e-4, atol=1e-5)
    passes.clear()
    with_head = student.with_order_head()  # needs the frames too, and leaves them to those that do not
    assert AudioFeatures(with_head, True, cache).inputs(waveform_BT).frames_BCL is not None
    again = AudioFeatures(student, True, cache)
    assert again.inputs(waveform_BT).frames_BCL is None and torch.equal(again.encode(waveform_BT), rows_BD)
    assert passes == []


@pytest.mark.parametrize(("learns", "frozen"), [(["audio_last"], True), (["audio"], False), (["order_head"], True)])
def test_a_trunk_is_frozen_where_its_head_alone_learns(learns, frozen):
    """Features of a tower that learns are old after one step."""
    model = make(CNN14, OrderHeadConfig(hidden_size=8))
    let_learn(model, learns)
    assert is_trunk_frozen(model) is frozen


@pytest.mark.parametrize(("masks", "hears_once"), [(0, True), (1, False)])
def test_a_training_hears_a_clip_once_where_its_audio_tower_is_frozen_and_nothing_is_masked(
    tmp_path, monkeypatch, masks, hears_once
):
    """A mask is drawn anew each time; kept features would be those of the first draw."""
    monkeypatch.setattr(features.POOLED, "_rows", {})
    monkeypatch.setattr(features.POOLED, "num_bytes", 0)
    corpus = Corpus(tmp_path)
    config = dataclasses.replace(
        TEACHER, model=None, frozen_towers=("audio",), num_examples=8 * 20, time_masks=masks, selection="last"
    )
    teacher = corpus.teacher()
    made = corpus.run(config, {"teacher_pairs": corpus.pairs, "init": teacher})
    assert bool(features.POOLED.num_bytes) is hears_once
    before, after = weights(teacher), weights(made)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("audio."))
    assert any(not torch.equal(before[name], after[name]) for name in before)
