"""The training of a captioner: what it learns from audio and tags, and that it resumes exactly."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captioning_corpus import SHORT, THINGS, TRAINING, CaptionedTones
from safetensors.torch import load_file
from training_corpus import history

from clapcur.config import canonical
from clapcur.data.generated import read_generated
from clapcur.data.manifest import Manifest
from clapcur.errors import CheckpointError, DataError, EmptySetError, Interrupted
from clapcur.models.captioner import Captioner, load_captioner
from clapcur.models.clap import load_model
from clapcur.stages.caption import CaptionConfig, caption, stage_for
from clapcur.stages.captioner import STAGE, CaptionerTraining, batch_of, train_captioner, untagged_of
from clapcur.testing import clips_table, embeddings, manifest

ALL = dataclasses.replace(TRAINING, num_examples=SHORT)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> CaptionedTones:
    torch.set_num_threads(1)
    return CaptionedTones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def learned(corpus):
    """Return a trained captioner, the held-out and new clips, and their frames."""
    captioner = load_captioner(corpus.train().path, "cpu")
    clips = [clip for clip in Manifest.open(corpus.pool).clips.clip_id]
    clips += sorted(Manifest.open(corpus.pairs).held_out(TRAINING.held_out))
    return captioner, clips, torch.cat(list(captioner.hear([corpus.paths[clip] for clip in clips])))


def said(captioner, frames, tags) -> list[str]:
    return [texts[0] for texts in captioner.generate(frames, torch.tensor(np.array(tags), dtype=torch.float32))]


def test_a_captioner_names_the_tones_of_clips_that_it_never_heard(corpus, learned):
    """A decoder that ignores the audio says the most common caption of everything, with a good loss."""
    captioner, clips, frames = learned
    texts = said(captioner, frames, [[1.0, 0.0]] * len(clips))
    right = [corpus.tone[clip] in text for clip, text in zip(clips, texts, strict=True)]
    assert len(clips) >= 18 and np.mean(right) > 0.8, "chance is a third"


def test_another_tag_changes_the_caption(corpus, learned):
    """What a tagger is sure of must reach the caption, or the guidance is none."""
    captioner, clips, frames = learned
    for index, thing in enumerate(THINGS):
        texts = said(captioner, frames, [np.eye(2)[index]] * len(clips))
        assert np.mean([text.endswith(f"and a {thing.lower()}") for text in texts]) > 0.9


def test_a_clip_without_tags_is_still_captioned_by_its_sound(corpus, learned):
    """Half of the examples are without tags, so that a pool that nobody tagged gets captions too."""
    captioner, clips, frames = learned
    texts = said(captioner, frames, [[0.0, 0.0]] * len(clips))
    assert np.mean([corpus.tone[clip] in text for clip, text in zip(clips, texts, strict=True)]) > 0.8


def test_a_captioner_that_always_saw_tags_is_the_other_one(corpus):
    """An option that is never read would leave both equal."""
    always = corpus.train(dataclasses.replace(ALL, untagged=0.0))
    never = corpus.train(dataclasses.replace(ALL, untagged=1.0))
    last = {row["step"]: row for row in history(always) if "held_out_loss" in row}[12]
    assert last["held_out_loss"] == last["held_out_loss_tagged"] != last["held_out_loss_untagged"]
    weights = [load_file(made.path / "model.safetensors")["decoder.tag_projection.weight"] for made in (always, never)]
    assert not torch.equal(*weights)


def test_the_record_says_how_good_the_captions_are(corpus):
    record = corpus.train().record
    held_out = Manifest.open(corpus.pairs).held_out(TRAINING.held_out)
    assert record.counts["held_out_pairs"] == len(held_out) and record.counts["clips"] == 48
    assert record.counts["pairs"] == 48 - len(held_out) and record.counts["tagged_clips"] == 48
    figures = record.metrics
    assert 8 < figures["cider_d_tagged"] <= 10
    assert figures["cider_d_tagged"] > figures["cider_d_untagged"] + 0.5, "the tag tells what is not heard"
    assert 0 < figures["distinct_tagged"] <= 6 / len(held_out) and figures["words_tagged"] >= 6
    losses = [row["held_out_loss"] for row in history(corpus.train()) if "held_out_loss" in row]
    assert len(losses) == 4 and figures["held_out_loss"] == min(losses) < losses[0]


def test_held_out_clips_are_in_no_batch_and_choose_the_step(corpus):
    """A captioner that is chosen by its own training clips is the one that remembers them best."""
    config = dataclasses.replace(ALL, learning_rate=0.3, final_learning_rate=0.3, warmup=0.0, gradient_clip=1e9)
    made = corpus.train(config)
    rows = {row["step"]: row["held_out_loss"] for row in history(made) if "held_out_loss" in row}
    assert made.record.metrics["best_step"] == min(rows, key=rows.get)
    captioner = load_captioner(made.path, "cpu")
    held_out = sorted(Manifest.open(corpus.pairs).held_out(config.held_out))
    frames = torch.cat(list(captioner.hear([corpus.paths[clip] for clip in held_out])))
    tokens, targets = captioner.tokenize([f"a {corpus.tone[c]} and a {corpus.thing[c].lower()}" for c in held_out])
    losses = []
    for factor in (1.0, 0.0):
        tags = factor * torch.eye(2)[[THINGS.index(corpus.thing[clip]) for clip in held_out]]
        with torch.no_grad():
            logits = captioner.logits(frames, tags, tokens)
        each = [
            F.cross_entropy(one[known != -100], known[known != -100], label_smoothing=0.1)
            for one, known in zip(logits, targets, strict=True)
        ]
        losses.append(torch.stack(each).mean().item())  # all captions have as many tokens
    assert np.mean(losses) == pytest.approx(made.record.metrics["held_out_loss"], rel=1e-4)


def test_batches_take_every_pair_once_an_epoch_and_start_anywhere():
    """A resumed training that draws other batches is another training."""
    epoch = np.concatenate([batch_of(step, 12, 4, seed=1) for step in range(3)])
    assert sorted(epoch) == list(range(12))
    second = np.concatenate([batch_of(step, 12, 4, seed=1) for step in range(3, 6)])
    assert sorted(second) == list(range(12)) and second.tolist() != epoch.tolist()
    assert sorted(np.concatenate([batch_of(step, 10, 4, seed=1) for step in range(5)])) == sorted([*range(10)] * 2)
    assert batch_of(7, 5, 16, seed=2).tolist() != batch_of(7, 5, 16, seed=3).tolist()


def test_half_of_the_examples_are_without_tags():
    drawn = np.concatenate([untagged_of(step, 32, CaptionerTraining()) for step in range(100)])
    assert abs(drawn.mean() - 0.5) < 0.03
    assert not untagged_of(0, 32, CaptionerTraining(untagged=0.0)).any()


def test_the_learning_rate_rises_and_then_falls_by_the_same_factor_every_step():
    config = CaptionerTraining(num_examples=32 * 100, warmup=0.1)
    rates = [config.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(5e-5) and rates[9] == rates[10] == 5e-4 and rates[99] == pytest.approx(5e-5)
    np.testing.assert_allclose(np.diff(np.log(rates[10:])), np.log(1e-1) / 89)


def bits(made) -> dict[str, bytes]:
    return {name: (made.path / name).read_bytes() for name in made.record.files}


@pytest.mark.parametrize("how", ["killed", "told to stop"])
def test_an_interrupted_training_ends_with_the_bits_of_an_unbroken_one(corpus, how):
    """A state without moments or best weights resumes into another captioner, and nobody sees it."""
    dropout = dataclasses.replace(TRAINING.captioner, dropout=0.2)
    config = dataclasses.replace(ALL, captioner=dropout, save_every_s=0.0, seed=5)
    unbroken = corpus.train(config)
    key = dataclasses.replace(STAGE, version=how).key(config, corpus.inputs)
    work = corpus.store.open(key)

    def break_off(step, metrics):
        if step == 7 and "gradient_norm" in metrics:
            if how == "killed":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    work.on_step = break_off
    with pytest.raises(KeyboardInterrupt if how == "killed" else Interrupted):
        train_captioner(corpus.inputs, config, work)
    assert json.loads((work.scratch / "state.json").read_text())["step"] == (6 if how == "killed" else 7)
    again, steps = corpus.store.open(key), []
    again.on_step = lambda step, metrics: steps.append(step)
    resumed = corpus.store.commit(again, train_captioner(corpus.inputs, config, again), 0.0)
    assert min(steps) == (7 if how == "killed" else 8), "it must continue from the saved state"
    assert bits(resumed) == bits(unbroken) and len(bits(resumed)) == 5
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_clips_are_heard_once_even_by_a_run_that_was_killed(corpus, monkeypatch):
    """Hearing a corpus anew after every kill is most of the work."""
    monkeypatch.setattr("clapcur.stages.captioner.BLOCK", 20)
    heard, hear = [], Captioner.hear

    def note(self, paths, **options):
        if len(heard) == 2:
            raise KeyboardInterrupt
        heard.append(len(paths))
        return hear(self, paths, **options)

    config = dataclasses.replace(ALL, seed=6)
    work = corpus.store.open(STAGE.key(config, corpus.inputs))
    monkeypatch.setattr(Captioner, "hear", note)
    with pytest.raises(KeyboardInterrupt):
        train_captioner(corpus.inputs, config, work)
    heard.clear()
    train_captioner(corpus.inputs, config, work)
    assert heard == [8], "of 48 clips in blocks of 20, the first two blocks were done"


def test_the_tower_is_that_of_the_checkpoint(corpus):
    """A tower that learns along makes the frames that were kept those of another one."""
    own = load_file(corpus.train().path / "model.safetensors")
    tower = load_model(corpus.checkpoint.path, "cpu").audio.state_dict()
    assert all(torch.equal(own[f"audio.{name}"], weight) for name, weight in tower.items())


def test_the_same_seed_gives_the_same_captioner_and_another_seed_does_not(corpus):
    made = corpus.train(ALL)
    again = corpus.store.open(dataclasses.replace(STAGE, version="again").key(ALL, corpus.inputs))
    repeated = corpus.store.commit(again, train_captioner(corpus.inputs, ALL, again), 0.0)
    assert bits(repeated) == bits(made) != bits(corpus.train(dataclasses.replace(ALL, seed=1)))


def run(corpus, **inputs):
    inputs = corpus.inputs | inputs
    return train_captioner(inputs, ALL, corpus.store.open(STAGE.key(ALL, inputs)))


def test_inputs_that_do_not_fit_are_named_in_one_line(corpus, monkeypatch):
    with pytest.raises(EmptySetError, match="has no pairs to learn captions from"):
        run(corpus, pairs=corpus.pool)
    with pytest.raises(DataError, match="none of the 48 captioned clips .* tag this manifest"):
        run(corpus, tags=corpus.pool_tags)
    clip = next(iter(corpus.paths))
    one = manifest(corpus.store, "one", clips_table([clip]), [(clip, "a tone")], paths=corpus.paths)
    with pytest.raises(EmptySetError, match="held out; give more recordings, or change held_out"):
        run(corpus, pairs=one)
    missing = {name: path.with_name("gone.wav") if name == clip else path for name, path in corpus.paths.items()}
    pairs = [(name, "a tone") for name in list(corpus.paths)[:48]]
    lost = manifest(corpus.store, "lost", clips_table([name for name, _ in pairs]), pairs, paths=missing)
    with pytest.raises(DataError, match=r"gone\.wav") as told:
        run(corpus, pairs=lost)
    assert "\n" not in str(told.value)


def test_clips_that_nobody_tagged_are_left_out_and_counted(corpus):
    """The tagger could not hear them, which is not the same as hearing nothing in them."""
    clips = list(corpus.paths)[:50]
    more = corpus.manifest_of("more pairs", clips, captioned=True)
    made = corpus.train(ALL, corpus.inputs | {"pairs": more})
    assert (made.record.counts["clips"], made.record.counts["not_in_tags"]) == (48, 2)


def test_captions_that_are_too_long_are_counted(corpus, caplog):
    """Cut off in the middle, they teach a captioner to stop there."""
    short = dataclasses.replace(ALL, captioner=dataclasses.replace(ALL.captioner, max_tokens=5))
    assert corpus.train(short).record.counts["truncated_captions"] == 6
    assert "6 of 6 captions are longer than max_tokens (5)" in caplog.text
    assert "truncated_captions" not in corpus.train(ALL).record.counts


def test_a_loss_that_is_not_finite_stops_the_training(corpus, monkeypatch):
    """NaN weights that are saved are met again by every later run."""
    monkeypatch.setattr("clapcur.stages.captioner.F.cross_entropy", lambda logits, *_, **__: logits.sum() * torch.inf)
    with pytest.raises(CheckpointError, match="of step 0 is not finite; training stopped before"):
        run(corpus)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_examples": 10}, "at least one batch, and a batch one pair, got 10 and batch_size 32"),
        ({"untagged": 50.0}, r"untagged must be in \[0, 1\], got 50.0; a percentage"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
        ({"held_out": 0.0}, "held-out recordings choose the weights"),
        ({"final_learning_rate": 1.0}, "final_learning_rate <= learning_rate"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CaptionerTraining(**settings)


# -- captions for a pool


def captioned(corpus, config, name="", **inputs):
    """Caption the pool; another name is another run."""
    inputs = {"pool": corpus.pool, "tags": corpus.pool_tags, "captioner": corpus.train()} | inputs
    stage, identity = stage_for(config)
    key = dataclasses.replace(stage, version=name or stage.version).key(identity, inputs)
    work = corpus.store.open(key)
    return corpus.store.commit(work, caption(inputs, config, work), 0.0)


GENERATED = CaptionConfig(way="captioner", num_captions=1, device="cpu")


def test_a_pool_gets_captions_of_its_sounds_and_its_tags(corpus):
    """Captions of the wrong clip, or of no clip at all, read as well as those of the right one."""
    made = captioned(corpus, GENERATED)
    table, found = read_generated(made), Manifest.open(made)
    kept = table[table.verdict == "kept"].set_index("clip_id")
    assert set(kept.index) == set(Manifest.open(corpus.pool).clips.clip_id) == set(found.clips.clip_id)
    right = [
        row.caption == f"a {corpus.tone[clip]} and a {corpus.thing[clip].lower()}" for clip, row in kept.iterrows()
    ]
    assert np.mean(right) > 0.8
    assert set(table.way) == {"captioner"} and set(found.paths) == set(kept.index)
    assert made.record.inputs["captioner"] == corpus.train().id and made.record.inputs["tags"] == corpus.pool_tags.id
    assert made.record.counts["clips"] == 12 == made.record.counts["tagged_clips"]
    mentions = [corpus.thing[row.clip_id].lower() in row.caption for row in table.itertuples()]
    assert [verdict == "no_tag" for verdict in table.verdict] == [not said for said in mentions]


def test_captions_are_judged_by_a_checkpoint_as_those_of_other_ways(corpus):
    model = load_model(corpus.checkpoint.path, "cpu")
    clips = Manifest.open(corpus.pool).clips.clip_id.tolist()
    rows_ND = model.embed_audio([corpus.paths[clip] for clip in clips])
    given = {"checkpoint": corpus.checkpoint, "pool_embeddings": embeddings(corpus.store, "pool", clips, rows_ND)}
    table = read_generated(captioned(corpus, dataclasses.replace(GENERATED, num_captions=2), **given))
    cosine = [model.embed_text([row.caption])[0] @ rows_ND[clips.index(row.clip_id)] for row in table.itertuples()]
    np.testing.assert_allclose(table.similarity, cosine, atol=1e-5)
    allowed = table[~table.verdict.isin(["no_tag", "no_caption", "best"])]
    assert ((allowed.similarity < allowed.tag_similarity) == (allowed.verdict == "below_tag")).all()


def test_sampled_captions_follow_the_seed(corpus):
    config = dataclasses.replace(GENERATED, decoding="sample", temperature=2.0, mention_tag=False)
    once, again = (read_generated(captioned(corpus, config, name)) for name in ("", "again"))
    other = read_generated(captioned(corpus, dataclasses.replace(config, seed=1)))
    assert once.equals(again) and not once.equals(other)
    assert not once.duplicated(["clip_id", "caption"]).any(), "a caption that is drawn twice is one caption"


def test_a_captioning_that_was_killed_resumes_with_the_next_block(corpus, monkeypatch):
    """Generating is the slow part: of a million clips none may be captioned twice."""
    config = dataclasses.replace(GENERATED, decoding="sample", seed=3)
    monkeypatch.setattr("clapcur.stages.caption.generate.BLOCK", 4)
    unbroken = captioned(corpus, config, "unbroken")
    heard, hear = [], Captioner.hear

    def note(self, paths, *arguments, **options):
        if len(heard) == 2:
            raise KeyboardInterrupt
        heard.append(len(paths))
        return hear(self, paths, *arguments, **options)

    monkeypatch.setattr(Captioner, "hear", note)
    with pytest.raises(KeyboardInterrupt):
        captioned(corpus, config, "killed")
    heard.clear()
    assert bits(captioned(corpus, config, "killed")) == bits(unbroken)
    assert heard == [4], "of 12 clips in blocks of 4, the first two blocks were done"


def test_a_few_clips_that_cannot_be_heard_are_counted_and_many_are_an_error(corpus, monkeypatch):
    clips = Manifest.open(corpus.pool).clips.clip_id.tolist()
    paths = {clip: corpus.paths[clip] for clip in clips} | {clips[0]: corpus.paths[clips[0]].with_name("gone.wav")}
    pool = manifest(corpus.store, "one is gone", clips_table(clips), paths=paths)
    with pytest.raises(DataError, match=r"1 of 12 clips cannot be read; the first is .*gone\.wav") as told:
        captioned(corpus, GENERATED, pool=pool)
    assert "\n" not in str(told.value)
    monkeypatch.setattr("clapcur.stages.caption.generate.MAX_BAD", 0.1)
    made = captioned(corpus, GENERATED, "lenient", pool=pool)
    assert made.record.counts["not_heard"] == 1 and clips[0] not in set(read_generated(made).clip_id)


def test_a_captioner_and_tags_that_do_not_fit_are_named(corpus, caplog):
    with pytest.raises(DataError, match="no captioner to generate captions with"):
        work = corpus.store.open(stage_for(GENERATED)[0].key({}, {}))
        caption({"pool": corpus.pool, "tags": corpus.pool_tags}, GENERATED, work)
    with pytest.raises(DataError, match="knows none of the 2 classes of the tags, such as 'Flute'"):
        captioned(corpus, GENERATED, tags=corpus.tags_of("others", corpus.pool, ("Flute", "Organ")))
    loose = dataclasses.replace(GENERATED, mention_tag=False)
    made = captioned(corpus, loose, tags=corpus.tags_of("some others", corpus.pool, ("Dog", "Organ")))
    assert made.record.counts["unknown_classes"] == 1 and "1 of 2 classes of the tags are unknown" in caplog.text


def test_captions_of_older_versions_keep_their_ids():
    """A new field that is signed at its neutral value makes every artifact that exists another one."""
    new = {"decoding", "num_beams", "temperature"}
    assert not new & canonical(CaptionConfig()).keys()
    assert (
        new
        == canonical(CaptionConfig(decoding="sample", num_beams=4, temperature=0.5)).keys()
        - canonical(CaptionConfig()).keys()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_beams": 0}, "num_beams must be at least 1"), ({"temperature": 0.0}, "temperature must be above 0")],
)
def test_ways_to_decode_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CaptionConfig(**settings)
