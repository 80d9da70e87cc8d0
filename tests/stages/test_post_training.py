"""Post-training on composed groups: the one loop, with other batches, another loss and another choice."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from composing import CLASSES, RATE, composed, improvement_set, sounds
from safetensors.torch import load_file
from training_corpus import MODEL, history, weights

from clapcur.data.compositions import KINDS, Compositions
from clapcur.data.manifest import Manifest, caption_id
from clapcur.errors import CheckpointError, EmptySetError, Interrupted
from clapcur.methods.temporal_losses import temporal_contrastive_loss, temporal_log_weights
from clapcur.models.clap import Clap, load_model
from clapcur.models.config import OrderHeadConfig, TextConfig
from clapcur.stages.compose import ComposeConfig
from clapcur.stages.train import STAGE, SoftLabels, TrainConfig, train
from clapcur.stages.train.config import OrderTraining
from clapcur.stages.train.sampling import GroupSource
from clapcur.store.artifacts import Stage, Store
from clapcur.store.record import Outcome

COMPOSE = ComposeConfig(duration_s=0.5, num_groups=60, num_held_out_groups=12, held_out=0.4, min_clip_s=0.2)
ORDER = TrainConfig(
    num_examples=24 * 4, batch_size=24, learning_rate=1e-3, order=OrderTraining(), selection="order",
    num_evaluations=2, replay_probability=0.0, num_workers=1, device="cpu", gradient_clip=0.5,
)  # fmt: skip


class Studio:
    """A store with sounds, what is composed of them, and a model that knows nothing."""

    def __init__(self, folder, compose=COMPOSE, text=MODEL.text):
        self.store = Store(folder / "store")
        self.clips = sounds(self.store, folder)
        self.compositions = composed(self.store, {"clips": self.clips}, compose)
        captions = Compositions.open(self.compositions).captions.caption.tolist()
        text = dataclasses.replace(text, vocab_size=120)
        self.init = self._checkpoint(Clap.create(dataclasses.replace(MODEL, text=text), captions))
        self.inputs = {"init": self.init, "compositions": self.compositions, "clips": self.clips}

    def _checkpoint(self, model):
        work = self.store.open(Stage("train", "0", "checkpoint", None).key({"name": "fresh"}, {}))
        model.eval().save(work.path)
        return self.store.commit(work, Outcome(), 0.0)

    def run(self, config=ORDER, inputs=None, on_step=None):
        inputs = inputs or self.inputs
        if on_step is None and (found := self.store.get(STAGE.key(config, inputs))):
            return found
        work = self.store.open(STAGE.key(config, inputs))
        if on_step:
            work.on_step = on_step
        outcome = train(inputs, config, work)
        return self.store.commit(work, outcome, 0.0)


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Studio:
    return Studio(tmp_path_factory.mktemp("studio"))


def test_a_batch_of_stage_b_is_whole_groups_in_three_ways_and_one_of_stage_a_singles_and_sequences(studio):
    """The loss finds the reversed pair by its group: a batch without it teaches no order."""
    compositions = Compositions.open(studio.compositions)
    drawn = GroupSource(compositions, stages=["b"], seed=0).draw(0, 24)
    kinds = [KINDS[code] for code in drawn.groups.kind_codes_N]
    assert kinds == ["forward", "reversed", "overlap"] * 8
    assert len(set(drawn.clip_ids)) == 24 and len(set(drawn.groups.group_codes_N.tolist())) == 8
    drawn = GroupSource(compositions, stages=["a"], seed=0).draw(0, 24)
    assert [len(events) for events in drawn.groups.events] == [1, 2] * 12
    assert {KINDS[code] for code in drawn.groups.kind_codes_N} == {"first", "second", "forward", "reversed"}
    text = dict(zip(compositions.captions.caption_id, compositions.captions.caption, strict=True))
    for caption, meaning in zip(drawn.caption_ids, drawn.groups.meanings, strict=True):
        assert caption in compositions.caption_ids[meaning]
        assert all(name in text[caption] for name in meaning[1:])


def test_the_last_group_of_a_batch_may_be_cut_and_no_batch_repeats_a_group(studio):
    """A batch of 64 is 21 groups of three and one pair: none of them may be dropped, and none met twice."""
    source = GroupSource(Compositions.open(studio.compositions), stages=["a", "b"], seed=1)
    batches = [source.draw(start, 25) for start in range(0, 250, 25)]
    assert {len(drawn.clip_ids) for drawn in batches} == {25}
    assert {drawn.groups.stage for drawn in batches} == {"a", "b"}
    for drawn in batches:
        assert len(set(drawn.clip_ids)) == 25
    again = GroupSource(Compositions.open(studio.compositions), stages=["a", "b"], seed=1).draw(75, 25)
    assert again.clip_ids == batches[3].clip_ids and again.caption_ids == batches[3].caption_ids


@pytest.mark.parametrize("alphas", [(1.0, 1.0), (0.5, 0.0)])
def test_the_loss_of_a_step_is_the_temporal_loss_of_its_batch(studio, alphas):
    """A weight that never reaches the logits trains plain InfoNCE under another name."""
    order = OrderTraining(alpha_same=alphas[0], alpha_cross=alphas[1])
    config = dataclasses.replace(ORDER, order=order, num_examples=24, num_evaluations=1, learns=("audio_projection",))
    first = history(studio.run(config))
    (loss,) = [row["loss"] for row in first if "loss" in row]
    from clapcur.audio import WaveformCache
    from clapcur.data.compositions import Renderer

    compositions = Compositions.open(studio.compositions)
    drawn = GroupSource(compositions, stages=["b"], seed=0).draw(0, 24)
    renderer = Renderer(compositions, Manifest.open(studio.clips).paths, WaveformCache(2**28))
    model = load_model(studio.init.path, "cpu")
    text = dict(zip(compositions.captions.caption_id, compositions.captions.caption, strict=True))
    waveforms = [renderer.window(name, RATE, model.config.num_samples) for name in drawn.clip_ids]
    model.audio_projection.train()  # as in the step: dropout is the same draw
    from clapcur.stages.train.step import draws_of

    torch.manual_seed(draws_of(0, 0, 0))
    with torch.no_grad():
        audio = model.encode_audio(torch.from_numpy(np.stack(waveforms)))
        rows = model.encode_text([text[caption] for caption in drawn.caption_ids])
    groups, kinds = (torch.from_numpy(codes) for codes in (drawn.groups.group_codes_N, drawn.groups.kind_codes_N))
    meanings = drawn.groups.meanings
    same = torch.tensor([[one == other for other in meanings] for one in meanings]).float()
    expected = temporal_contrastive_loss(
        audio, rows, model.scale(), target_NN=same / same.sum(dim=1, keepdim=True),
        log_weights_NN=temporal_log_weights(groups, kinds, alpha_same=alphas[0], alpha_cross=alphas[1]),
    )  # fmt: skip
    assert loss == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("stages", [("a",), ("b",), ("a", "b")])
def test_what_does_not_learn_stays_as_it_was_to_the_byte(studio, stages):
    """A batch norm in training mode changes its statistics though its weights are frozen."""
    learns = ("text_last", "text_projection", "audio_projection", "audio_last")
    order = OrderTraining(stages=stages, max_single_loss=1.0)
    config = dataclasses.replace(ORDER, learns=learns, order=order, selection="last", num_evaluations=1)
    before, after = weights(studio.init), weights(studio.run(config))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    prefixes = ("text.encoder.encoder.layer.0.", "text_projection.", "audio_projection.", "audio.fc1.")
    assert changed and all(name.startswith(prefixes) for name in changed)
    assert any("running_mean" in name for name in before)
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in changed), prefix


def test_with_everything_learning_batch_norms_do_change(studio):
    """The twin: the test above could not fail if the statistics never moved."""
    before, after = weights(studio.init), weights(studio.run(dataclasses.replace(ORDER, selection="last")))
    assert any("running_mean" in name and not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("learns", [(), ("audio_projection", "text_projection")])
def test_a_post_training_that_was_killed_ends_with_the_weights_of_one_that_was_not(tmp_path, studio, learns):
    """Captions, crops and the choice must be those of an unbroken run, with a frozen text tower too."""
    config = dataclasses.replace(ORDER, learns=learns, num_evaluations=4, replay_probability=0.5, num_examples=24 * 6)
    config = dataclasses.replace(config, soft_labels=SoftLabels(), hard_target="identical")
    whole = studio.run(config)
    other = Store(tmp_path / "store")
    work = other.open(STAGE.key(config, studio.inputs))
    stopping = dataclasses.replace(config, save_every_s=0.0)

    def stop(step, metrics):
        if step == 3 and "loss" in metrics:
            raise Interrupted("killed")

    work.on_step = stop
    with pytest.raises(Interrupted):
        train(studio.inputs, stopping, work)
    work = other.open(STAGE.key(config, studio.inputs))
    resumed = other.commit(work, train(studio.inputs, stopping, work), 0.0)
    first, second = weights(whole), load_file(resumed.path / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert history(whole) == history(resumed)


def test_the_weights_are_those_with_the_best_choice_that_keep_the_single_sounds(studio):
    """The last weights may hear order and have forgotten what a dog is."""
    made = studio.run(dataclasses.replace(ORDER, num_evaluations=4))
    rows = [row for row in history(made) if "held_out_choice" in row]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    for row in rows:
        expected = np.sqrt(100 * row["held_out_recall"] * max(0, 100 * row["held_out_order"] - 50))
        assert row["held_out_choice"] == pytest.approx(expected)
    kept = [row for row in rows if row["held_out_single"] >= rows[0]["held_out_single"] - 0.02]
    assert made.record.metrics["held_out_choice"] == pytest.approx(max(row["held_out_choice"] for row in kept))
    best = next(row for row in kept if row["held_out_choice"] == max(r["held_out_choice"] for r in kept))
    assert made.record.metrics["best_step"] == best["step"]
    strict = dataclasses.replace(ORDER, num_evaluations=4, learning_rate=0.3, order=OrderTraining(max_single_loss=0.0))
    ruined = studio.run(strict)
    assert ruined.record.metrics["best_step"] == 0 or min(
        row["held_out_single"] for row in history(ruined) if row["step"] == ruined.record.metrics["best_step"]
        and "held_out_single" in row
    ) >= history(ruined)[0]["held_out_single"]  # fmt: skip


def test_replay_is_of_the_single_sounds_or_of_what_is_given(studio):
    """Without replay the paper's own single-sound accuracy fell by 7 points."""
    config = dataclasses.replace(ORDER, replay_probability=0.5, num_examples=24 * 6, soft_labels=SoftLabels())
    counts = studio.run(config).record.counts
    assert counts["seen.single_sounds"] + counts["seen.compositions"] == 24 * 6 and counts["seen.single_sounds"] > 0
    clips = Manifest.open(studio.clips).clips
    compositions = Compositions.open(studio.compositions)
    names = compositions.captions[compositions.captions.connector == "sound"].set_index("one").caption
    rows = [(c.clip_id, names[c.label], c.label, 0.5) for c in clips.itertuples()]
    chosen = improvement_set(studio.store, studio.clips, rows)
    made = studio.run(config, {**studio.inputs, "replay": chosen})
    assert made.record.counts["seen.replay"] > 0
    held_out = compositions.sources[compositions.sources.split == "held_out"]
    assert made.record.counts["replay_pairs"] == len(clips) - len(held_out)
    assert caption_id(names["dog"]) in set(compositions.captions.caption_id)


def test_a_head_is_added_and_the_next_stage_goes_on_with_it(studio):
    """A after B: the second training must not add a second head, nor drop the first."""
    order = OrderTraining(stages=("a",), add_head=OrderHeadConfig(hidden_size=8), max_single_loss=1.0)
    config = dataclasses.replace(ORDER, order=order, selection="last")
    first = studio.run(config)
    assert load_model(first.path, "cpu").config.audio.order_head == OrderHeadConfig(hidden_size=8)
    later = dataclasses.replace(config, order=dataclasses.replace(order, stages=("b",)))
    second = studio.run(later, {**studio.inputs, "init": first})
    assert load_model(second.path, "cpu").config.audio.order_head == OrderHeadConfig(hidden_size=8)
    another = dataclasses.replace(order, add_head=OrderHeadConfig(hidden_size=9))
    with pytest.raises(CheckpointError, match="the order head of .* differs from add_head"):
        studio.run(dataclasses.replace(config, order=another), {**studio.inputs, "init": first})


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_order_is_learned_on_recordings_that_were_never_heard(tmp_path):
    """The point of it all, on tones: from chance to what the model is for."""
    studio = Studio(
        tmp_path, dataclasses.replace(COMPOSE, unseen_couples=0.0, num_groups=200, connectors=("before",)),
        TextConfig(hidden_size=64, num_layers=2, vocab_size=120),
    )  # fmt: skip
    order = OrderTraining(add_head=OrderHeadConfig(hidden_size=32), max_single_loss=1.0)
    config = dataclasses.replace(
        ORDER, order=order, num_examples=48 * 240, batch_size=48, learning_rate=1e-3, num_evaluations=4,
        gradient_clip=5.0,
    )  # fmt: skip
    rows = [row for row in history(studio.run(config)) if "held_out_order" in row]
    assert rows[0]["held_out_order"] == pytest.approx(0.5, abs=0.1)
    assert max(row["held_out_order"] for row in rows) > 0.7


def test_what_cannot_be_trained_on_is_said_in_one_line(studio):
    """Each names what is needed."""
    long = composed(studio.store, {"clips": studio.clips}, dataclasses.replace(COMPOSE, duration_s=2.0))
    with pytest.raises(
        CheckpointError, match=r"composed items are 2 s long, but the window of the checkpoint is 0.5 s"
    ):
        studio.run(inputs={**studio.inputs, "compositions": long})
    whole = composed(studio.store, {"clips": studio.clips}, dataclasses.replace(COMPOSE, held_out=0.0))
    with pytest.raises(EmptySetError, match="no held-out group to select a checkpoint with"):
        studio.run(inputs={**studio.inputs, "compositions": whole})
    test = composed(studio.store, {"clips": studio.clips}, dataclasses.replace(COMPOSE, held_out=1.0))
    with pytest.raises(EmptySetError, match="no training group"):
        studio.run(inputs={**studio.inputs, "compositions": test})
    with pytest.raises(ValueError, match="needs the inputs `compositions` and `init`"):
        studio.run(inputs={"clips": studio.clips})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": None}, "selection='order' needs a training on composed groups"),
        ({"selection": "held_out"}, "needs selection='order' or 'last', got selection='held_out'"),
        ({"num_evaluations": 0}, "selection='order' needs num_evaluations > 0"),
        ({"learns": ("ears",)}, "learns must list parts among .*'ears'"),
        ({"learns": ("text",), "frozen_towers": ("audio",)}, "either `learns` or `frozen_towers`, not both"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    """Found when the config is read."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ORDER, **changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": ()}, "stages must be a, b, or both, each once, got none"), ({"stages": ("a", "a")}, "each once, "
                                                                                                        "got a, a"),
        ({"alpha_same": -1.0}, "alpha_same must be a finite weight"), ({"softness": 2.0}, "softness must be in"),
        ({"max_single_loss": 5.0}, "max_single_loss must be in"),
    ],
)  # fmt: skip
def test_losses_without_a_meaning_are_refused(fields, message):
    """Found when the config is read."""
    with pytest.raises(ValueError, match=message):
        OrderTraining(**fields)


def test_a_training_without_order_keeps_its_id():
    """The fields of order must not send every teacher back to training."""
    from clapcur.config import canonical

    plain = canonical(dataclasses.replace(ORDER, order=None, selection="last"))
    assert "order" not in plain and "learns" not in plain
    assert canonical(ORDER)["order"]["alpha_same"] == 1
    assert json.dumps(plain) and CLASSES


def test_captions_name_the_sounds_as_they_are_heard_first_and_turn_them_round_later(studio):
    """Mixed from the start, "after" kept a text encoder from reading "before"."""
    compositions = Compositions.open(studio.compositions)
    connector = compositions.captions.set_index("caption_id").connector
    source = GroupSource(compositions, stages=["b"], seed=2, num_forward=24 * 5)
    batches = [source.draw(24 * number, 24) for number in range(10)]
    of_sequences = [
        {connector[caption] for caption, meaning in zip(drawn.caption_ids, drawn.groups.meanings, strict=True)
         if meaning[0] == "sequence"}
        for drawn in batches
    ]  # fmt: skip
    assert set.union(*of_sequences[:5]) == {"before", "then", "followed by"}
    assert set.union(*of_sequences[5:]) == {"before", "then", "followed by", "after", "preceded by"}
    plain = GroupSource(compositions, stages=["b"], seed=2)
    assert [plain.draw(24 * number, 24) for number in range(5, 10)][0].clip_ids == batches[5].clip_ids


def test_the_share_of_the_training_counts_without_replay(studio):
    """Half of the steps replay: counted with them, the first part would never end."""
    order = OrderTraining(forward_first=0.5)
    config = dataclasses.replace(ORDER, order=order, num_examples=24 * 8, replay_probability=0.5)
    from clapcur.stages.train.data import gather_data

    assert gather_data(studio.inputs, config).main._num_forward == 24 * 2


def test_the_held_out_order_is_the_mean_over_all_connectors_where_that_is_asked(studio):
    """A model chosen by "before" alone may not read "after" at all."""
    order = OrderTraining(choice_phrasings="all")
    made = studio.run(dataclasses.replace(ORDER, order=order, num_evaluations=1))
    told = next(row for row in history(made) if "held_out_order" in row)
    from clapcur.audio import WaveformCache
    from clapcur.data.composed_captions import CONNECTORS, phrase, reversed_meaning
    from clapcur.data.compositions import Group, Renderer, item_id

    compositions, model = Compositions.open(studio.compositions), load_model(studio.init.path, "cpu")
    renderer = Renderer(compositions, Manifest.open(studio.clips).paths, WaveformCache(2**28))
    right = []
    for group in Group.of(compositions.of_split("held_out")):
        for kind in ("forward", "reversed"):
            window = renderer.window(item_id(group.group_id, kind), RATE, model.config.num_samples)
            with torch.no_grad():
                audio = model.encode_audio(torch.from_numpy(window)[None])
            for connector in CONNECTORS["sequence"]:
                meaning = group.meaning(kind)
                texts = [phrase(one, connector, COMPOSE.prompt) for one in (meaning, reversed_meaning(meaning))]
                own, turned = (audio @ torch.from_numpy(model.embed_text(texts)).T)[0].tolist()
                right.append(0.5 if own == turned else own > turned)
    assert told["held_out_order"] == pytest.approx(np.mean(right), abs=1e-6)
