"""The captioner: its logits against a plain computation, what tags do to them, and its folder."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import scipy.stats
import tiny_htsat
import tiny_yamnet
import torch
from safetensors.torch import load_file, save_file
from tiny_clap import CAPTIONS, CONFIG
from torch import nn
from transformers import BertLMHeadModel

from clapcur.config import from_dict
from clapcur.errors import CheckpointError
from clapcur.models.captioner import (
    APOSTROPHE,
    DESCRIPTION,
    IGNORED,
    Captioner,
    CaptionerConfig,
    Decoding,
    load_captioner,
)
from clapcur.models.clap import Clap
from clapcur.models.order_head import OrderHeadConfig, Pooled
from clapcur.models.tag_guided_bert import sinusoids
from clapcur.models.towers import for_inference, frames_of
from clapcur.testing import write_tone

SMALL = CaptionerConfig(hidden_size=32, num_heads=2, vocab_size=120, max_tokens=12)
CLASSES = ("dog", "rain", "siren")


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.create(SMALL, Clap.create(CONFIG, CAPTIONS), CAPTIONS, CLASSES, seed=3).eval()


@pytest.fixture(scope="module")
def frames(captioner):
    generator = torch.Generator().manual_seed(1)
    frames = captioner.frames(torch.randn((3, 1, 8000), generator=generator))
    captioner.decoder.standardise(frames.mean((0, 1)), 2 * frames.std((0, 1)) + 1e-5)
    return frames


def test_logits_equal_a_plain_decoder_with_summed_embeddings(captioner, frames):
    """Tags that reach only the first word, or audio that is never attended to, still give fluent captions."""
    plain = BertLMHeadModel(captioner.decoder.config).eval()
    own = captioner.decoder.state_dict()
    plain.load_state_dict({name: value for name, value in own.items() if name.startswith(("bert.", "cls."))})
    tokens_NS, _ = captioner.tokenize(CAPTIONS)
    tags_NK = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    linear, _, _, norm_after = captioner.decoder.audio_projection
    projected = ((frames - frames.mean((0, 1))) / (2 * frames.std((0, 1)) + 1e-5)) @ linear.weight.T
    heard = norm_after((projected + linear.bias).clamp(min=0)) + sinusoids(frames.shape[1], 32)
    words = own["bert.embeddings.word_embeddings.weight"][tokens_NS]
    shift = tags_NK @ own["tag_projection.weight"].T + own["tag_projection.bias"]
    summed = torch.stack([words[:, step] + shift for step in range(words.shape[1])], dim=1)
    with torch.no_grad():
        expected = plain(inputs_embeds=summed, encoder_hidden_states=heard, use_cache=False).logits
        found = captioner.logits(frames, tags_NK, tokens_NS)
    assert found.shape == (3, tokens_NS.shape[1], len(captioner.tokenizer))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_word_sees_no_later_word_but_audio_and_tags(captioner, frames):
    """A decoder that reads ahead has a small loss in training and says nothing sensible afterwards."""
    tokens_NS, _ = captioner.tokenize(CAPTIONS)
    later = tokens_NS.clone()
    later[:, 3:] = 40
    tags_NK = torch.zeros(3, 3)
    with torch.no_grad():
        before = captioner.logits(frames, tags_NK, tokens_NS)
        torch.testing.assert_close(captioner.logits(frames, tags_NK, later)[:, :3], before[:, :3])
        assert not torch.allclose(captioner.logits(frames, tags_NK, later)[:, 3:], before[:, 3:], atol=1e-3)
        assert not torch.allclose(captioner.logits(frames.flip(0), tags_NK, tokens_NS)[0], before[0], atol=1e-3)
        told = captioner.logits(frames, torch.eye(3), tokens_NS)
    assert (told - before).abs().amax(dim=2).min() > 1e-3, "the tags must reach every word"


def test_a_channel_that_never_changes_is_heard_as_nothing(captioner, frames):
    """Divided by a deviation of 0, or nearly 0, it would drown every other channel in another clip."""
    decoder = copy.deepcopy(captioner.decoder)
    decoder.standardise(frames.mean((0, 1)), torch.zeros(frames.shape[2]))
    assert torch.equal(decoder.heard(frames), decoder.heard(7 * frames + 1))


def test_sinusoids_are_those_of_the_paper():
    found = sinusoids(5, 6)
    for position in range(5):
        for pair in range(3):
            angle = torch.tensor(position / 10_000 ** (2 * pair / 6))
            torch.testing.assert_close(found[position, 2 * pair], angle.sin())
            torch.testing.assert_close(found[position, 2 * pair + 1], angle.cos())


def test_tokens_are_shifted_by_one_and_padding_is_ignored(captioner):
    """Padding among the targets teaches a captioner to say nothing."""
    tokens_NS, targets_NS = captioner.tokenize(["rain", "a dog barks"])
    ids = captioner.tokenizer
    assert tokens_NS[:, 0].tolist() == [ids.cls_token_id] * 2
    assert (targets_NS[0] == IGNORED).sum() == targets_NS.shape[1] - 2
    for tokens, targets in zip(tokens_NS, targets_NS, strict=True):
        known = targets[targets != IGNORED]
        assert known[-1] == ids.sep_token_id and torch.equal(tokens[1 : len(known)], known[:-1])
    with pytest.raises(TypeError, match="captions must be a list, got a single str"):
        captioner.tokenize("rain")


def greedy(captioner, frames, tags_NK) -> list[list[int]]:
    """Return the most probable next token, again and again, without any cache."""
    ids = captioner.tokenizer
    barred = [ids.pad_token_id, ids.unk_token_id, ids.cls_token_id, ids.mask_token_id]
    found = []
    for row in range(len(frames)):
        tokens = [ids.cls_token_id]
        while len(tokens) < captioner.config.max_tokens and tokens[-1] != ids.sep_token_id:
            with torch.no_grad():
                told = captioner.logits(frames[row : row + 1], tags_NK[row : row + 1], torch.tensor([tokens]))
            last = told[0, -1]
            last[barred + ([ids.sep_token_id] if len(tokens) == 1 else [])] = -torch.inf
            tokens.append(int(last.argmax()))
        found.append(tokens)
    return found


def test_generating_step_by_step_gives_the_words_of_a_slow_loop(captioner, frames):
    """A cache that is reused across clips, or drops the tags behind the first word, goes unnoticed in fluent text."""
    tags_NK = torch.eye(3)
    found = captioner.generate(frames, tags_NK, 1, Decoding(num_beams=1))
    slow = captioner.tokenizer.batch_decode(greedy(captioner, frames, tags_NK), skip_special_tokens=True)
    assert [one for (one,) in found] == slow


def test_a_seed_gives_the_same_captions_and_another_seed_others(captioner, frames):
    """A seed that is not passed on makes the artifact of a captioned pool another one every time."""
    sample = Decoding(way="sample", temperature=1.5)
    state = torch.random.get_rng_state()
    once, again, other = (captioner.generate(frames, torch.zeros(3, 3), 4, sample, seed) for seed in (5, 5, 6))
    assert once == again != other
    assert torch.equal(state, torch.random.get_rng_state()), "the generator of the caller was moved"
    assert [len(texts) for texts in once] == [4] * 3 and len(set(once[0])) > 1
    beams = captioner.generate(frames, torch.zeros(3, 3), 4)
    assert beams == captioner.generate(frames, torch.zeros(3, 3), 4, seed=9)
    assert all(len(set(texts)) == 4 for texts in beams), "a beam search gives no caption twice"


WAYS = (Decoding(), Decoding(way="sample", temperature=1.3))


@pytest.mark.parametrize("decoding", WAYS, ids=lambda decoding: decoding.way)
def test_captions_of_a_clip_do_not_depend_on_the_clips_beside_it(captioner, decoding):
    """A pool that grows shifts its batches: old clips would get other captions than before."""
    frames = captioner.frames(torch.randn((7, 1, 8000), generator=torch.Generator().manual_seed(4)))
    tags_NK = torch.eye(3)[[0, 1, 2, 0, 1, 2, 0]]
    names = list("abcdefg")

    def said(*rows):
        rows = list(rows)
        clips = [names[row] for row in rows]
        texts = captioner.generate(frames[rows], tags_NK[rows], 3, decoding, seed=2, clip_ids=clips)
        return dict(zip(clips, texts, strict=True))

    together = said(*range(7))
    assert said(6, 5, 4, 3, 2, 1, 0) == together and len({tuple(texts) for texts in together.values()}) >= 3
    alone = {clip: texts for row in range(7) for clip, texts in said(row).items()}
    assert alone == together and said(2, 5) == {name: together[name] for name in "cf"}


def test_more_captions_of_a_clip_begin_with_those_that_it_had(captioner, frames):
    sample = Decoding(way="sample")
    few, many = (captioner.generate(frames, torch.eye(3), number, sample, clip_ids=list("abc")) for number in (2, 5))
    assert few == [texts[:2] for texts in many]


@pytest.mark.parametrize("decoding", WAYS, ids=lambda decoding: decoding.way)
def test_clips_of_other_lengths_beside_a_clip_do_not_change_its_captions(captioner, decoding, tmp_path):
    """Padding that is heard, or positions that shift with the longest clip, show only in mixed batches."""
    seconds = (0.15, 2.1, 0.5, 1.0)
    paths = [write_tone(tmp_path / f"{s}.wav", 500 * (i + 1), seed=i, duration_s=s) for i, s in enumerate(seconds)]

    def said(batch_size):
        texts, start = [], 0
        for frames in captioner.hear(paths, batch_size, num_workers=1):
            names = [str(path) for path in paths[start : start + len(frames)]]
            texts += captioner.generate(frames, torch.zeros(len(frames), 3), 2, decoding, clip_ids=names)
            start += len(frames)
        return texts

    assert said(4) == said(1) == said(3)


def test_sampled_captions_have_the_probabilities_of_the_model(captioner, frames):
    """Noise of the wrong scale, or that tokens share, gives fluent captions of another distribution."""
    short = copy.copy(captioner)
    short.config = dataclasses.replace(SMALL, max_tokens=3)  # the start and two tokens
    ids, temperature = captioner.tokenizer, 0.4
    barred = [ids.pad_token_id, ids.unk_token_id, ids.cls_token_id, ids.mask_token_id]

    def log_probabilities(tokens_NS, more=()):
        count = len(tokens_NS)
        with torch.no_grad():
            logits_NV = captioner.logits(frames[:1].expand(count, -1, -1), torch.zeros(count, 3), tokens_NS)[:, -1]
        logits_NV[:, [*barred, *more]] = -torch.inf
        return (logits_NV.double() / temperature).log_softmax(dim=1)

    start = torch.tensor([[ids.cls_token_id]])
    first_V = log_probabilities(start, [ids.sep_token_id])[0]
    both = torch.stack([start.expand(len(first_V), 1)[:, 0], torch.arange(len(first_V))], dim=1)
    probability_VV = (first_V[:, None] + log_probabilities(both)).exp()
    expected = {}
    for first, second in torch.argwhere(probability_VV > 0).tolist():
        text = ids.decode([first, second], skip_special_tokens=True)
        expected[text] = expected.get(text, 0) + probability_VV[first, second].item()
    assert sum(expected.values()) == pytest.approx(1)
    number = 4000
    (texts,) = short.generate(frames[:1], torch.zeros(1, 3), number, Decoding(way="sample", temperature=temperature))
    ranked = sorted(expected, key=expected.get, reverse=True)
    place = dict(zip(ranked, np.floor(20 * np.cumsum([expected[text] for text in ranked]) * 0.9999), strict=True))
    groups = sorted(set(place.values()))
    observed = [sum(place[text] == group for text in texts) for group in groups]
    wanted = [number * sum(expected[text] for text in ranked if place[text] == group) for group in groups]
    assert len(groups) >= 15 and scipy.stats.chisquare(observed, wanted).pvalue > 0.01
    flat = [number * sum(place[text] == group for text in ranked) / len(ranked) for group in groups]
    assert scipy.stats.chisquare(observed, flat).pvalue < 1e-6, "the test must tell another distribution"


def test_a_low_temperature_is_close_to_the_most_probable_caption(captioner, frames):
    cold = captioner.generate(frames, torch.eye(3), 1, Decoding(way="sample", temperature=1e-4))
    assert cold == captioner.generate(frames, torch.eye(3), 1, Decoding(num_beams=1))


@pytest.mark.parametrize("config", [CONFIG, tiny_htsat.CONFIG, tiny_yamnet.SMALL], ids=["cnn14", "htsat", "yamnet"])
def test_every_tower_has_frames_whose_pooling_is_what_it_pooled(config):
    """Frames from another place of the tower than its features come from are not what the tower hears."""
    model = Clap.create(config, CAPTIONS).eval()
    logmel = model.front_end(torch.randn((2, 8000), generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        frames_BLC, pooled_BC = frames_of(model.audio, logmel), model.audio.trunk(logmel).features_BC
        told = frames_BLC.mean(1) + (frames_BLC.amax(1) if config is CONFIG else 0)
        torch.testing.assert_close(told, pooled_BC, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(frames_of(for_inference(model.audio), logmel), frames_BLC, rtol=1e-4, atol=1e-5)


class Deaf(nn.Module):
    """A tower that knows no frames."""

    def trunk(self, logmel_BLM):
        return Pooled(logmel_BLM.mean(dim=1), None)


def test_what_a_tower_without_frames_pooled_is_its_one_frame():
    logmel = torch.randn(2, 5, 4)
    torch.testing.assert_close(frames_of(Deaf(), logmel), logmel.mean(dim=1, keepdim=True))


def test_windows_of_a_clip_are_heard_one_after_the_other(captioner):
    """Frames of two windows that are mixed up, or averaged, lose what came first."""
    crops_NWT = torch.randn(2, 3, 8000)
    together = captioner.frames(crops_NWT)
    each = [captioner.frames(crops_NWT[:, [window]]) for window in range(3)]
    torch.testing.assert_close(together, torch.cat(each, dim=1), rtol=1e-4, atol=1e-5)


def test_a_captioner_hears_without_the_order_head_of_its_checkpoint():
    model = Clap.create(CONFIG, CAPTIONS)
    with_head = model.with_order_head(OrderHeadConfig(hidden_size=4))
    waveform = torch.randn(1, 1, 8000)
    heard = [Captioner.create(SMALL, one, CAPTIONS, CLASSES).frames(waveform) for one in (model, with_head)]
    torch.testing.assert_close(*heard)


def test_training_mode_leaves_the_tower_alone(captioner):
    """Batch norms that move in the frozen tower make the frames that were kept those of another tower."""
    try:
        captioner.train()
        assert captioner.decoder.training and not any(part.training for part in captioner.audio.modules())
        assert not any(weight.requires_grad for weight in captioner.audio.parameters())
    finally:
        captioner.eval()


def test_a_saved_captioner_says_the_same(captioner, frames, tmp_path):
    captioner.save(tmp_path)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["captioner.json", "model.safetensors", "text/tokenizer.json", "text/tokenizer_config.json"]
    loaded = load_captioner(tmp_path, "cpu")
    assert (loaded.config, loaded.hearing, loaded.class_names) == (SMALL, captioner.hearing, CLASSES)
    for decoding in (None, Decoding(way="sample")):
        expected = captioner.generate(frames, torch.eye(3), 3, decoding, seed=2)
        assert loaded.generate(frames, torch.eye(3), 3, decoding, seed=2) == expected
    waveform = torch.randn(1, 1, 8000)
    assert torch.equal(loaded.frames(waveform), captioner.frames(waveform))
    again = tmp_path / "again"
    captioner.tokenize(CAPTIONS)  # leaves padding behind in the tokenizer
    captioner.save(again)
    assert all((again / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def rewrite(folder, change):
    said = json.loads((folder / DESCRIPTION).read_text())
    change(said)
    (folder / DESCRIPTION).write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda at: (at / DESCRIPTION).unlink(), "is not a captioner: it has no captioner.json"),
        (lambda at: (at / DESCRIPTION).write_text("{"), "is not valid JSON"),
        (lambda at: (at / DESCRIPTION).write_text("[]"), "is not the description of a clapcur captioner"),
        (lambda at: rewrite(at, lambda said: said["captioner"].pop("dropout")), "a default might differ"),
        (lambda at: rewrite(at, lambda said: said["captioner"].update(widht=3)), "unknown key 'widht'"),
        (lambda at: rewrite(at, lambda said: said.pop("class_names")), "class_names"),
        (lambda at: rewrite(at, lambda said: said["class_names"].append("wind")), "of another shape"),
        (lambda at: (at / "model.safetensors").unlink(), "does not exist"),
        (lambda at: (at / "model.safetensors").write_bytes(b"x" * 100), "was the file truncated"),
        (lambda at: shutil.rmtree(at / "text"), "holds no tokenizer"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(captioner, tmp_path, damage, message):
    captioner.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message) as told:
        load_captioner(tmp_path, "cpu")
    assert "\n" not in str(told.value)


def test_a_weight_too_many_is_refused(captioner, tmp_path):
    captioner.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"decoder.more": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="unexpected: decoder.more"):
        load_captioner(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 30, "num_heads": 4}, "multiple of num_heads, got 30 and 4"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"max_tokens": 2}, "max_tokens must be at least 3"),
        ({"num_windows": 0}, "num_windows must be at least 1"),
    ],
)
def test_a_captioner_that_could_not_be_built_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        from_dict(CaptionerConfig, settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_beams": 0}, "num_beams must be at least 1"), ({"temperature": 0.0}, "temperature must be above 0")],
)
def test_a_decoding_without_a_meaning_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        from_dict(Decoding, settings)


def test_what_cannot_be_captioned_is_said_in_one_line(captioner, frames):
    with pytest.raises(ValueError, match=r"a tag vector of 3 classes for each of 3 clips, got shape \(3, 2\)"):
        captioner.generate(frames, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="an id for each of 3 clips, got 2"):
        captioner.generate(frames, torch.zeros(3, 3), clip_ids=["a", "b"])
    with pytest.raises(ValueError, match="num_captions must be at least 1, got 0"):
        captioner.generate(frames, torch.zeros(3, 3), 0)
    with pytest.raises(ValueError, match="distinct class names"):
        Captioner.create(SMALL, Clap.create(CONFIG, CAPTIONS), CAPTIONS, ("dog", "dog"))
    with pytest.raises(ValueError, match="learned from captions"):
        Captioner.create(SMALL, Clap.create(CONFIG, CAPTIONS), [], CLASSES)


@pytest.mark.parametrize(
    ("decoded", "expected"),
    [("a dog 's bark", "a dog's bark"), ("it ' s raining", "it's raining"), ("they say 'stop'", "they say 'stop'")],
)
def test_an_apostrophe_is_written_without_spaces(decoded, expected):
    """BERT's tokenizer takes it for a word of its own."""
    assert APOSTROPHE.sub("'", decoded) == expected
