"""Kappa against a published example, and against scikit-learn."""

import math

import numpy as np
import pytest

from clapcur.methods.agreement import cohen_kappa


def test_kappa_of_the_textbook():
    """20 times both yes, 15 both no, 5 yes and no, 10 no and yes: kappa 0.4."""
    one = ["yes"] * 20 + ["yes"] * 5 + ["no"] * 10 + ["no"] * 15
    other = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(one, other) == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed):
    reference = pytest.importorskip("sklearn.metrics").cohen_kappa_score
    rng = np.random.default_rng(seed)
    one = rng.choice(["right", "wrong", "unsure"][: 2 + seed % 2], 60)
    other = np.where(rng.random(60) < 0.7, one, rng.choice(["right", "wrong"], 60))
    assert cohen_kappa(one.tolist(), other.tolist()) == pytest.approx(reference(one, other))


def test_where_chance_alone_agrees_there_is_no_kappa():
    assert math.isnan(cohen_kappa(["right"] * 4, ["right"] * 4)) and math.isnan(cohen_kappa([], []))
    assert cohen_kappa(["right", "wrong"], ["wrong", "right"]) == pytest.approx(-1)
    with pytest.raises(ValueError, match="got 1 and 2 judgements"):
        cohen_kappa(["right"], ["right", "wrong"])
