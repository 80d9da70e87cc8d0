"""Pseudo-labels: evidence multiplies, tags count relative to their mean, and a recording has one opinion."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from clapcur.methods.pseudo_labels import LEAST_EVIDENCE, class_posterior, mean_of_groups, tag_evidence


def test_without_other_evidence_the_posterior_is_the_zero_shot_softmax(rng):
    similarity_NK = rng.uniform(-1, 1, (20, 4))
    odds_NK = np.exp(14.0 * similarity_NK)
    expected = odds_NK / odds_NK.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(class_posterior(similarity_NK, 14.0), expected, rtol=1e-9)


def test_evidence_multiplies_and_its_scale_within_a_clip_does_not_matter(rng):
    """A product of experts: two that are half sure are surer together, and a sure one overrules one that is not."""
    similarity_NK, evidence_NK = rng.uniform(-1, 1, (20, 4)), rng.uniform(1, 9, (20, 4))
    alone = class_posterior(similarity_NK, 3.0)
    product = alone * (evidence_NK + LEAST_EVIDENCE)
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(class_posterior(similarity_NK, 3.0, evidence_NK), expected, rtol=1e-9)
    silent = class_posterior(similarity_NK, 3.0, np.zeros((20, 4)))  # a clip in which no tag was heard
    np.testing.assert_allclose(silent, alone, rtol=1e-9)


def test_a_tag_counts_relative_to_its_mean_and_for_the_class_whose_name_is_near():
    """Speech is heard in half of all clips and says little; a siren at a tenth says much."""
    probability_NT = csr_array(np.array([[0.5, 0.1], [0.5, 0.0], [0.6, 0.0]]))
    mean_T = np.array([0.5, 0.01])
    similarity_TK = np.array([[0.9, 0.1], [0.1, 0.9]])  # tag 0 is class 0 by name, tag 1 is class 1
    evidence_NK = tag_evidence(probability_NT, mean_T, similarity_TK, temperature=0.01)
    slow = [[p / (m + LEAST_EVIDENCE) for p, m in zip(row, mean_T, strict=True)] for row in probability_NT.toarray()]
    np.testing.assert_allclose(evidence_NK, slow, rtol=1e-6, atol=1e-12)
    assert evidence_NK[0].argmax() == 1 and evidence_NK[1].argmax() == 0


def test_a_warm_temperature_listens_to_every_tag_alike():
    probability_NT = csr_array(np.array([[0.2, 0.4]]))
    evidence_NK = tag_evidence(probability_NT, np.zeros(2), np.array([[0.9, 0.1], [0.1, 0.9]]), temperature=1e9)
    np.testing.assert_allclose(evidence_NK, [[300.0, 300.0]], rtol=1e-6)


def test_the_clips_of_a_recording_share_their_mean_and_unknown_recordings_stay_alone(rng):
    rows_NK = rng.random((5, 3))
    groups_N = np.array(["a", "", "a", "b", ""], object)
    found = mean_of_groups(rows_NK, groups_N)
    np.testing.assert_allclose(found[0], (rows_NK[0] + rows_NK[2]) / 2)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found[[1, 3, 4]], rows_NK[[1, 3, 4]])


@pytest.mark.parametrize("order", [[4, 2, 0, 1, 3], [1, 0, 3, 2, 4]])
def test_the_order_of_the_clips_does_not_matter(rng, order):
    rows_NK, groups_N = rng.random((5, 3)), np.array(["a", "", "a", "b", "b"], object)
    np.testing.assert_allclose(
        mean_of_groups(rows_NK[order], groups_N[order]), mean_of_groups(rows_NK, groups_N)[order]
    )
