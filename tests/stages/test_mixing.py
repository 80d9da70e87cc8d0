"""Batches are a pure function of the seed and the step."""

import numpy as np
import pandas as pd
import pytest

from clapcur.errors import EmptySetError
from clapcur.stages.train.sampling import Mixture, PairSource


def source(name: str, num_pairs: int, **columns) -> PairSource:
    clips = [f"{name}-clip{i}" for i in range(num_pairs)]
    pairs = pd.DataFrame({"clip_id": clips, "caption_id": [f"{name}-caption{i}" for i in range(num_pairs)], **columns})
    return PairSource(pairs, name=name, seed=7, balance=next(iter(columns), None))


def mixture(probability: float, num_steps: int = 60, batch_size: int = 4) -> Mixture:
    return Mixture(
        source("main", 10), source("replay", 6), replay_probability=probability, batch_size=batch_size,
        num_steps=num_steps, seed=3,
    )  # fmt: skip


def test_every_pair_comes_once_per_epoch_across_batch_borders():
    """Batches that do not divide the set would drop or double pairs at every epoch's end."""
    rows = np.concatenate([source("main", 10).rows(start, 4) for start in range(0, 40, 4)])
    for epoch in range(4):
        assert sorted(rows[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:20])


def test_a_batch_does_not_depend_on_the_batches_asked_for_before():
    """A resumed training would see other pairs than an unbroken one."""
    straight = [mixture(0.5).batch(step) for step in range(60)]
    fresh = mixture(0.5)
    for step in (59, 3, 31, 0):
        assert fresh.batch(step).clip_ids == straight[step].clip_ids
        assert np.array_equal(fresh.batch(step).offsets_B, straight[step].offsets_B)


def test_replay_replaces_whole_batches_at_its_probability():
    """Replay that is drawn per pair, or the other way round, would change the paper's mix silently."""
    batches = [mixture(0.25, num_steps=400).batch(step) for step in range(400)]
    assert all(len({clip.split("-")[0] for clip in batch.clip_ids}) == 1 for batch in batches)
    share = np.mean([batch.source == "replay" for batch in batches])
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_examples_seen_counts_what_the_batches_hold():
    """The record would claim a coverage that never happened."""
    mix = mixture(0.5)
    counted = {"main": 0, "replay": 0}
    for step in range(60):
        counted[mix.batch(step).source] += 4
    assert mix.examples_seen(60) == counted


@pytest.mark.parametrize("probability, name", [(0.0, "main"), (1.0, "replay")])
def test_the_limits_of_the_replay_probability_use_one_source_only(probability, name):
    """A probability of 1 that still draws the main set, or of 0 that replays."""
    assert {mixture(probability).batch(step).source for step in range(60)} == {name}


def test_balance_draws_every_class_alike_however_few_pairs_it_has():
    """Without balance, the class with most pairs would fill the batches."""
    classes = ["common"] * 95 + ["rare"] * 5
    rows = source("main", 100, **{"class": classes}).rows(0, 2000)
    share = np.mean([classes[row] == "rare" for row in rows])
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 2000)


def test_an_empty_source_is_refused_by_its_name():
    """An empty Improvement-Set would loop for ever or train on nothing."""
    with pytest.raises(EmptySetError, match="improvement_set"):
        PairSource(pd.DataFrame({"clip_id": [], "caption_id": []}), name="improvement_set", seed=0)


@pytest.mark.parametrize(("num_crops", "places"), [(1, {0.5}), (2, {0.0, 1.0}), (5, {0.0, 0.25, 0.5, 0.75, 1.0})])
def test_few_crops_are_the_same_places_in_every_batch(num_crops, places):
    """A frozen tower keeps what it made of a crop; a place that never comes again would be kept for nothing."""
    some = Mixture(
        source("main", 10), None, replay_probability=0.0, batch_size=64, num_steps=4, seed=3, num_crops=num_crops
    )
    assert {offset for step in range(4) for offset in some.batch(step).offsets_B.tolist()} == places
