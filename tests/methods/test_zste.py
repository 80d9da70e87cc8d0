"""ZSTE: chance is chance, ties are drawn, and what cannot hear or read order stays at 50 %."""

import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from composing import CLASSES, RATE, composed, sounds
from hypothesis import given, settings
from hypothesis import strategies as st

from clapcur.audio import WaveformCache
from clapcur.data.composed_captions import CONNECTORS
from clapcur.data.compositions import KINDS, Compositions, Renderer, item_id, meaning_of
from clapcur.data.manifest import Manifest
from clapcur.methods.zste import (
    TASKS,
    OrderTest,
    pigeonhole_interval,
    score_items,
    top_one_probability,
    top_set_probability,
    winoground,
)
from clapcur.store.artifacts import Store

NAMES = sorted(f"class{i}" for i in range(8))


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def groups_of(num_groups, names=NAMES, seed=0):
    """Return groups of couples of classes, as the stage writes them."""
    rng = np.random.default_rng(seed)
    couples = [sorted(rng.choice(names, 2, replace=False)) for _ in range(num_groups)]
    return pd.DataFrame(
        {"group_id": [f"g{i:03d}" for i in range(num_groups)], "class_a": [a for a, _ in couples],
         "class_b": [b for _, b in couples], "clip_a": "a", "clip_b": "b", "split": "held_out", "offset_a": 0.0,
         "offset_b": 0.0, "is_unseen": False}
    )  # fmt: skip


class Oracle:
    """Audio and text that know everything: a class in the first place, in the second, or in both."""

    def __init__(self, names=NAMES, reads=True):
        self.names, self.reads = list(names), reads

    def vector(self, meaning):
        relation, one, other = meaning
        made = np.zeros((3, len(self.names)))
        made[0, [self.names.index(name) for name in (one, other) if name]] = 1
        if relation == "sequence":
            made[1, self.names.index(one)] = made[2, self.names.index(other)] = 1
        elif relation == "overlap":
            made[1:, [self.names.index(one), self.names.index(other)]] = 0.4
        return made.ravel()

    def text(self, texts):
        return unit([self._read(text.removeprefix("this is a sound of ")) for text in texts])

    def _read(self, text):
        found = sorted((name for name in self.names if name in text.split()), key=text.split().index)
        for start, place in (("the first", 1), ("it begins", 1), ("the second", 2), ("it ends", 2)):
            if text.startswith(start):
                made = np.zeros((3, len(self.names)))
                made[0, self.names.index(found[0])], made[place, self.names.index(found[0])] = 0.5, 1
                return made.ravel()
        if len(found) == 1:
            return self.vector(("single", found[0], ""))
        if any(word in text for word in (" while ", " as ", " same time")):
            return self.vector(("overlap", *found))
        turned = self.reads and any(word in text for word in (" after ", " preceded by "))
        return self.vector(("sequence", *(found[::-1] if turned else found)))

    def audio(self, groups):
        return unit(
            [[self.vector(meaning_of(g.class_a, g.class_b, kind)) for kind in KINDS] for g in groups.itertuples()]
        )


def means(table):
    return table.groupby("task").score.mean().to_dict()


def test_a_model_that_knows_everything_is_always_right_and_drops_on_reversed_captions():
    """A task whose target is wrong gives a perfect model less than 1: so the authors' task 5."""
    groups, oracle = groups_of(30), Oracle()
    table = score_items(OrderTest(groups, oracle.audio(groups), NAMES, oracle.text))
    found = means(table)
    for task in (*TASKS, "order", "winoground.text", "winoground.audio", "winoground.group", "retrieval"):
        assert found[task] == pytest.approx(1.0), task
    assert found["retrieval.reversed"] == found["retrieval.replaced"] == 0.0
    assert set(table.task) == {*TASKS, "order", "winoground.text", "winoground.audio", "winoground.group", "retrieval",
                               "retrieval.reversed", "retrieval.replaced"}  # fmt: skip


def test_equal_similarities_score_chance_in_every_task():
    """The authors' right answer is at index 0: with equal similarities argmax gives 100 %."""
    groups = groups_of(20)
    same = unit(np.ones((20, 5, 4)))
    table = score_items(OrderTest(groups, same, NAMES, lambda texts: unit(np.ones((len(texts), 4)))))
    np.testing.assert_allclose(table.score, table.chance, rtol=1e-12)
    chance = table.groupby("task").chance.first()
    assert chance["single"] == 1 / 8 and chance["both.overlap"] == pytest.approx(1 / 28)
    assert chance["relation_distractors"] == 1 / 50 and chance["position"] == pytest.approx(1 / 120)


def bag_of_words(texts):
    """Return the sum of a vector a word; in the order of the sentence, so that sums differ in their last bits."""

    def word(name):
        return np.random.default_rng(list(name.encode())).standard_normal(64)

    return unit([np.sum([word(name) for name in text.split()], axis=0) for text in texts])


def test_a_bag_of_words_stays_at_chance_on_order_with_the_best_of_ears():
    """Negative control: text without order must gain nothing from ties, rounding or the place of the answer."""
    groups = groups_of(40)
    said = [" ".join(meaning_of(g.class_a, g.class_b, kind)) for g in groups.itertuples() for kind in KINDS]
    noise = 0.1 * np.random.default_rng(0).standard_normal((40, len(KINDS), 64))
    audio = unit(bag_of_words(said).reshape(noise.shape) + noise)
    found = means(score_items(OrderTest(groups, audio, NAMES, bag_of_words)))
    assert found["order"] == 0.5
    assert found["winoground.text"] == pytest.approx(0.25) and found["winoground.group"] <= 1 / 4
    assert found["relation"] <= 0.5  # two of the three are one to it
    assert found["retrieval"] == pytest.approx(found["retrieval.reversed"])
    assert found["single"] > 0.9  # it knows the classes all the same


class Heard:
    """Real rendered sounds as rows of means over frames: of the whole clip, or of its halves."""

    def __init__(self, folder):
        store = Store(folder / "store")
        clips = sounds(store, folder)
        self.compositions = Compositions.open(composed(store, {"clips": clips}))
        self.renderer = Renderer(self.compositions, Manifest.open(clips).paths, WaveformCache(2**28))

    def features(self, split, halves):
        groups = self.compositions.of_split(split)
        rows = []
        for group in groups.itertuples():
            for kind in KINDS:
                waveform = self.renderer.render(item_id(group.group_id, kind), RATE)
                frames = waveform[: len(waveform) // 400 * 400].reshape(-1, 400) * np.hanning(400)
                power = np.log(np.square(np.abs(np.fft.rfft(frames)))[:, ::4] + 1e-6)
                rows.append(np.concatenate([part.mean(axis=0) for part in np.array_split(power, halves)]))
        return groups, np.array(rows)


@pytest.fixture(scope="module")
def heard(tmp_path_factory) -> Heard:
    return Heard(tmp_path_factory.mktemp("heard"))


@pytest.mark.parametrize(("halves", "low", "high"), [(1, 0.42, 0.58), (2, 0.95, 1.0)])
def test_ears_that_take_the_mean_stay_at_chance_and_those_that_hear_two_halves_do_not(heard, halves, low, high):
    """Negative control with its twin: fitted to training groups with text that reads, on real rendered sounds.

    Above chance without an ear for order, something else than the order tells it.
    """
    oracle = Oracle(sorted(CLASSES))
    train, x = heard.features("train", halves)
    y = oracle.audio(train).reshape(len(x), -1)
    center, spread = x.mean(axis=0), x.std(axis=0) + 1e-3
    inputs = np.c_[(x - center) / spread, np.ones(len(x))]
    fitted = np.linalg.solve(inputs.T @ inputs + 10 * np.eye(inputs.shape[1]), inputs.T @ y)
    test, x = heard.features("held_out", halves)
    rows = unit(np.c_[(x - center) / spread, np.ones(len(x))] @ fitted).reshape(len(test), len(KINDS), -1)
    found = means(score_items(OrderTest(test, rows, sorted(CLASSES), oracle.text)))
    assert low <= found["order"] <= high
    assert found["single"] > 0.9


@given(seed=st.integers(0, 1000), num_right=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_shuffled_candidates_and_an_explicit_draw_give_the_same_score(seed, num_right):
    """Where candidates stand must not matter, and ties are what drawing them many times would give."""
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 3, (1, 5)) / 10
    target = np.isin(np.arange(5), rng.permutation(5)[:num_right])[None]
    order = rng.permutation(5)
    score = top_set_probability(similarity, target)
    assert score == pytest.approx(top_set_probability(similarity[:, order], target[:, order]))
    draws = [sorted(range(5), key=lambda i: (-similarity[0, i], d[i]))[:num_right] for d in permutations(range(5))]
    assert score[0] == pytest.approx(np.mean([target[0, drawn].all() for drawn in draws]))


def test_the_best_of_several_right_ones_is_drawn_among_equals():
    """Retrieval has several right sounds for a caption."""
    similarity = np.array([[0.9, 0.9, 0.1], [0.2, 0.9, 0.9]])
    right = np.array([[True, False, True], [False, True, True]])
    assert top_one_probability(similarity, right).tolist() == [0.5, 1.0]


def test_winoground_of_hand_worked_cases():
    """Text and audio mixed up give the same group score, so that nobody sees it."""
    cases = np.array([[[0.9, 0.1], [0.8, 0.95]], [[0.9, 0.1], [0.95, 0.96]], [[0.5, 0.5], [0.5, 0.5]]])
    found = winoground(cases)
    assert found["text"][:2].tolist() == pytest.approx([1, 1])
    assert found["audio"][:2].tolist() == pytest.approx([1, 0])
    assert [found[name][2] for name in ("text", "audio", "group")] == pytest.approx([1 / 4, 1 / 4, 1 / 6])


def test_an_interval_goes_by_recordings_and_not_by_items():
    """A thousand items of ten recordings are no thousand sounds."""
    rng = np.random.default_rng(0)
    quality = rng.random(10)
    recordings = np.array([rng.choice(10, 2, replace=False) for _ in range(1000)])
    score = quality[recordings].mean(axis=1)
    low, high = pigeonhole_interval(score, recordings, num_resamples=500)
    naive = 1.96 * score.std() / math.sqrt(1000)
    assert low < score.mean() < high and (high - low) / 2 > 3 * naive
    assert pigeonhole_interval(np.ones(5), np.arange(10).reshape(5, 2), num_resamples=50) == (1.0, 1.0)
    single = np.repeat(np.arange(10), 2).reshape(10, 2)
    low, high = pigeonhole_interval(quality, single, num_resamples=2000)
    assert (high - low) / 2 == pytest.approx(1.96 * quality.std() / math.sqrt(10), rel=0.2)


def test_every_connector_is_asked():
    """One connector is one word: reviewers' main complaint."""
    asked = []
    groups = groups_of(10)

    def text(texts):
        asked.extend(texts)
        return unit(np.ones((len(texts), 4)))

    score_items(OrderTest(groups, unit(np.ones((10, 5, 4))), NAMES, text))
    for connectors in (CONNECTORS["sequence"], CONNECTORS["overlap"]):
        for connector in connectors:
            assert any(f" {connector}" in said for said in asked), connector


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_set_probability(np.ones((2, 3)), np.ones((2, 2), bool)), "expected a target for each similarity"),
        (lambda: top_set_probability(np.full((1, 2), np.nan), np.ones((1, 2), bool)), "must be finite"),
        (lambda: top_set_probability(np.ones((1, 2)), np.zeros((1, 2), bool)), "at least one correct candidate"),
        (lambda: pigeonhole_interval(np.ones(2), np.ones((3, 2))), "recordings for each"),
        (lambda: pigeonhole_interval(np.ones(2), np.ones((2, 2)), level=95), "level must be in"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message):
    """NaN counts as a miss silently."""
    with pytest.raises(ValueError, match=message):
        call()
