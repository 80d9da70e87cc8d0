"""Metrics against scikit-learn, scipy, hand-worked cases, simulation and a published ranking."""

import csv
import inspect
import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clapcur.methods import metrics, similarity
from clapcur.methods.metrics import (
    accuracy,
    bootstrap_interval,
    confusion_matrix,
    macro_accuracy,
    mean_average_precision_at_k,
    paired_change,
    per_class_accuracy,
    predict,
    recall_at_k,
    similarity_from_ranking,
    transductive_diagnostics,
    transductive_posteriors,
)


def unit(rows):
    """Make rows unit vectors."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# -- classification ------------------------------------------------------------------------------


def test_a_clip_is_given_the_nearest_prompt_and_of_equal_ones_the_first():
    """Ties that are broken by rounding give another accuracy on another machine."""
    rng = np.random.default_rng(0)
    text = unit(rng.standard_normal((7, 512)))
    audio = unit(rng.standard_normal((40, 512)))
    assert list(predict(audio, text)) == [max(range(7), key=lambda k: a @ text[k]) for a in audio]
    text[3::2] = text[1]
    assert list(predict(text, text)) == [0, 1, 2, 1, 4, 1, 6]
    for num_clips in (1, 2, 3, 5, 17, 33, 101):  # the sums of a product depend on its shape
        near = unit(text[1] + 0.02 * rng.standard_normal((num_clips, 512)))
        assert set(predict(near, text)) == {1}


def test_classification_and_caption_selection_use_one_rule():
    """DS keeps captions by the class that evaluation would give them, or it curates for others."""
    rng = np.random.default_rng(1)
    rows, prompts = (unit(rng.standard_normal((n, 64))).astype(np.float32) for n in (200, 12))
    np.testing.assert_array_equal(predict(rows, prompts), similarity.best_class(rows, prompts)[0])


def test_a_model_that_finds_all_classes_equal_scores_chance():
    """An argmax over equal similarities that lands on the label reads as 100 %."""
    audio, text = np.tile(np.eye(4)[0], (30, 1)), np.tile(np.eye(4)[1], (10, 1))
    assert accuracy(predict(audio, text), np.repeat(np.arange(10), 3)) == pytest.approx(0.1)


@given(seed=st.integers(0, 999), num_clips=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_counts_and_class_accuracies_equal_scikit_learn(seed, num_clips):
    """A transposed confusion matrix looks as plausible as the right one."""
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(seed)
    label, predicted = rng.integers(4, size=(2, num_clips))
    expected = sklearn.confusion_matrix(label, predicted, labels=range(4))
    np.testing.assert_array_equal(confusion_matrix(predicted, label, 4), expected)
    assert accuracy(predicted, label) == pytest.approx(sklearn.accuracy_score(label, predicted))
    present = np.unique(label)
    recall = sklearn.recall_score(label, predicted, labels=present, average=None)
    per_class = per_class_accuracy(predicted, label, 4)
    np.testing.assert_allclose(per_class[present], recall)
    assert np.isnan(np.delete(per_class, present)).all()
    assert macro_accuracy(predicted, label, 4) == pytest.approx(recall.mean())


def test_a_class_without_clips_neither_counts_as_zero_nor_vanishes():
    """A zero for an absent class pulls the mean down; a shorter array shifts the names."""
    predicted, label = np.array([0, 0, 2]), np.array([0, 2, 2])
    np.testing.assert_array_equal(per_class_accuracy(predicted, label, 4), [1, np.nan, 0.5, np.nan])
    assert macro_accuracy(predicted, label, 4) == 0.75
    np.testing.assert_array_equal(confusion_matrix(predicted, label, 3), [[1, 0, 0], [0, 0, 0], [1, 0, 1]])


# -- intervals -----------------------------------------------------------------------------------


def clustered(rng, num_groups):
    """Clips of one recording are right together: 1 to 6 of them, two thirds right on average."""
    sizes = rng.integers(1, 7, num_groups)
    rate = rng.beta(0.4, 0.2, num_groups)
    groups = np.repeat(np.arange(num_groups), sizes)
    return (rng.random(len(groups)) < rate[groups]).astype(float), groups


def test_the_interval_holds_the_truth_as_often_as_it_says_and_one_of_clips_does_not():
    """Clips of one recording are no independent trials; if taken for such, it is too narrow."""
    rng = np.random.default_rng(0)
    truth, repetitions = 0.4 / 0.6, 250
    held, held_by_clips = 0, 0
    for seed in range(repetitions):
        correct, groups = clustered(rng, 60)
        limits = {"level": 0.9, "num_resamples": 200, "seed": seed}
        low, high = bootstrap_interval(correct, groups, **limits)
        held += low <= truth <= high
        low, high = bootstrap_interval(correct, np.arange(len(correct)), **limits)
        held_by_clips += low <= truth <= high
    assert 0.85 <= held / repetitions <= 0.95  # 0.9 with a standard error of 0.019
    assert held_by_clips / repetitions < 0.8


def test_the_interval_equals_that_of_scipy():
    """Groups counted once whatever their size would give the interval of another mean."""
    correct, groups = clustered(np.random.default_rng(3), 50)
    sums, sizes = np.bincount(groups, correct), np.bincount(groups)
    expected = stats.bootstrap(
        (sums, sizes),
        lambda s, n, axis=-1: s.sum(axis) / n.sum(axis),
        paired=True, vectorized=True, method="percentile", n_resamples=8000,
        confidence_level=0.8, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    ours = bootstrap_interval(correct, groups, level=0.8, num_resamples=8000)
    np.testing.assert_allclose(ours, expected, atol=0.005)
    assert ours[1] - ours[0] > 0.1


def test_the_interval_does_not_depend_on_the_order_or_the_names_of_the_groups():
    """A seeded interval that moves when a manifest is sorted cannot be reproduced."""
    correct, groups = clustered(np.random.default_rng(4), 30)
    order = np.random.default_rng(5).permutation(len(groups))
    names = np.array([f"recording-{group:03d}" for group in groups])
    plain = bootstrap_interval(correct, groups, seed=7)
    assert bootstrap_interval(correct[order], names[order], seed=7) == pytest.approx(plain, rel=1e-12)
    assert bootstrap_interval(correct, groups, seed=8) != plain


def test_a_paired_change_is_the_interval_of_the_differences_and_narrower_than_two():
    """Two separate intervals that overlap hide a change that every clip agrees on."""
    rng = np.random.default_rng(6)
    before, groups = clustered(rng, 80)
    after = np.where(rng.random(len(before)) < 0.1, 1, before)
    change, low, high = paired_change(before, after, groups)
    assert change == pytest.approx(after.mean() - before.mean()) and low < change < high
    assert (low, high) == bootstrap_interval(after - before, groups)
    one, two = bootstrap_interval(before, groups), bootstrap_interval(after, groups)
    assert low > 0 and one[1] > two[0]
    back = paired_change(after, before, groups)
    np.testing.assert_allclose(back, (-change, -high, -low), atol=1e-12)


def test_booleans_are_counted_and_subtracted_as_numbers():
    """Numpy refuses to subtract booleans, or takes it for an exclusive or."""
    correct = np.array([True, False, True, True])
    assert paired_change(correct, ~correct, [0, 1, 2, 3])[0] == -0.5
    assert paired_change(correct, correct, ["a", "b", "a", "b"]) == (0, 0, 0)


def test_the_resampling_of_a_whole_benchmark_takes_a_second_at_most():
    """An interval that takes a minute is left out of the report."""
    rng = np.random.default_rng(0)
    start = time.process_time()
    bootstrap_interval(rng.random(8732) < 0.75, rng.integers(1300, size=8732))
    assert time.process_time() - start < 1


# -- retrieval -----------------------------------------------------------------------------------


def test_retrieval_of_a_hand_worked_matrix_with_two_captions_per_clip():
    """Taking the diagonal for the truth calls all but one caption of a clip wrong."""
    similarity_AT = np.array(
        [
            [0.9, 0.2, 0.8, 0.1, 0.3, 0.0],  # a: captions at 0 and 1, places 1 and 4
            [0.7, 0.6, 0.5, 0.1, 0.9, 0.8],  # b: captions at 2 and 3, places 5 and 6
            [0.1, 0.2, 0.3, 0.9, 0.8, 0.7],  # c: captions at 4 and 5, places 2 and 3
        ]
    )
    relevant = np.repeat(np.eye(3, dtype=bool), 2, axis=1)
    recalls = [recall_at_k(similarity_AT, relevant, k) for k in range(1, 8)]
    np.testing.assert_allclose(recalls, [1 / 3, 2 / 3, 2 / 3, 2 / 3, 1, 1, 1])
    precisions = (1 / 1 + 2 / 4) / 2, (1 / 5 + 2 / 6) / 2, (1 / 2 + 2 / 3) / 2
    assert mean_average_precision_at_k(similarity_AT, relevant, 10) == pytest.approx(np.mean(precisions))
    # the first 3 places only: a has 1 of 2 there, b none, c both
    assert mean_average_precision_at_k(similarity_AT, relevant, 3) == pytest.approx(np.mean([1 / 2, 0, precisions[2]]))
    assert mean_average_precision_at_k(similarity_AT, relevant, 1) == pytest.approx(1 / 3)
    # text to audio, by column: places 1, 2 or 3 (0.2 twice), 2, 2 or 3 (0.1 twice), 2, 2
    text_to_audio = [recall_at_k(similarity_AT.T, relevant.T, k) for k in (1, 2, 3)]
    np.testing.assert_allclose(text_to_audio, [1 / 6, (1 + 1 / 2 + 1 + 1 / 2 + 1 + 1) / 6, 1])


def test_a_clip_that_stands_five_times_in_the_gallery_is_right_five_times():
    """AudioCaps lists a clip once per caption: with one copy as the truth R@1 fell to a fifth."""
    rng = np.random.default_rng(0)
    clip_ids = np.repeat(np.arange(20), 5)
    clips = unit(rng.standard_normal((20, 16)))
    captions = unit(clips[clip_ids] + 0.05 * rng.standard_normal((100, 16)))
    similarity_TA = captions @ clips[clip_ids].T
    similarity_TA = similarity_TA.round(9)  # copies are equally similar
    by_id = clip_ids[:, None] == clip_ids[None, :]
    assert recall_at_k(similarity_TA, by_id, 1) == 1
    assert mean_average_precision_at_k(similarity_TA, by_id, 10) == 1
    assert recall_at_k(similarity_TA, np.eye(100, dtype=bool), 1) == pytest.approx(1 / 5)


@given(
    similarity_row=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    bits=st.integers(1, 63),
    k=st.integers(1, 7),
)
@settings(max_examples=80, deadline=None)
def test_ties_score_the_mean_over_all_orders(similarity_row, bits, k):
    """A sort that leaves equal items where they stood rewards a gallery in the queries' order."""
    size = len(similarity_row)
    relevant = np.array([bits >> i & 1 for i in range(size)], bool)
    relevant[-1] |= not relevant.any()
    hits, precisions = [], []
    for order in itertools.permutations(range(size)):
        ranked = relevant[sorted(order, key=lambda i: -similarity_row[i])][:k]
        hits.append(ranked.any())
        precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
        precisions.append((precision * ranked).sum() / min(relevant.sum(), k))
    row = np.array([similarity_row], float), relevant[None]
    assert recall_at_k(*row, k) == pytest.approx(np.mean(hits), abs=1e-12)
    assert mean_average_precision_at_k(*row, k) == pytest.approx(np.mean(precisions), abs=1e-12)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_equal_similarities_give_chance(k):
    """A collapsed text tower that reads as a perfect retriever."""
    relevant = np.eye(50, dtype=bool)
    assert recall_at_k(np.zeros((50, 50)), relevant, k) == pytest.approx(k / 50)
    five_captions = np.repeat(np.eye(10, dtype=bool), 5, axis=1)
    chance = stats.hypergeom(50, 5, k).sf(0)
    assert recall_at_k(np.ones((10, 50)), five_captions, k) == pytest.approx(chance)


def test_average_precision_equals_scikit_learn(monkeypatch):
    """Precision at the wrong places still is between 0 and 1."""
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    monkeypatch.setattr(metrics, "QUERIES_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    similarity_QG, relevant = rng.random((30, 25)), rng.random((30, 25)) < 0.2
    relevant[:, 3] |= ~relevant.any(axis=1)
    rows = zip(relevant, similarity_QG, strict=True)
    expected = np.mean([sklearn.average_precision_score(r, s) for r, s in rows])
    assert mean_average_precision_at_k(similarity_QG, relevant, 25) == pytest.approx(expected)


def test_the_order_of_queries_and_gallery_does_not_matter():
    """A score that depends on how files are listed is not a score of the model."""
    rng = np.random.default_rng(1)
    similarity_QG = rng.integers(0, 5, (12, 9)).astype(float)
    relevant = rng.random((12, 9)) < 0.3
    relevant[:, 0] |= ~relevant.any(axis=1)
    shuffle = np.ix_(rng.permutation(12), rng.permutation(9))
    for metric in (recall_at_k, mean_average_precision_at_k):
        plain = metric(similarity_QG, relevant, 4)
        assert metric(similarity_QG[shuffle], relevant[shuffle], 4) == pytest.approx(plain)
        assert metric(2 * similarity_QG - 7, relevant, 4) == pytest.approx(plain)


def test_ranked_lists_become_similarities_that_rank_alike():
    """Lists read from the wrong end score nearly nothing; unlisted items must come last."""
    ranking = np.array([[3, 1], [0, 2]])
    order = np.argsort(-similarity_from_ranking(ranking, 4), axis=1, kind="stable")
    np.testing.assert_array_equal(order, [[3, 1, 0, 2], [0, 2, 1, 3]])
    relevant = np.array([[False, True, False, False], [False, False, False, True]])
    scores = [recall_at_k(similarity_from_ranking(ranking, 4), relevant, k) for k in (1, 2)]
    assert scores == [0, 0.5]


@pytest.mark.shared_data("golden/retrieval")
def test_a_published_ranking_has_its_published_scores(shared_data):
    """The definitions of a field are held by numbers that others computed."""
    folder = shared_data("golden/retrieval")
    with open(folder / "test.gt.csv", newline="", encoding="utf-8") as file:
        truth = list(csv.DictReader(file))
    with open(folder / "test.output.csv", newline="", encoding="utf-8") as file:
        output = list(csv.DictReader(file))
    clips = [row["file_name"] for row in truth]
    clip_of = {row[f"caption_{i}"]: row["file_name"] for row in truth for i in range(1, 6)}
    index = {clip: i for i, clip in enumerate(clips)}
    ranking = np.array([[index[row[f"file_name_{i}"]] for i in range(1, 11)] for row in output])
    target = np.array([index[clip_of[row["caption"]]] for row in output])
    expected = json.loads((folder / "expected.json").read_text())
    assert ranking.shape == (expected["queries"], 10) and len(clips) == expected["gallery"]
    similarity_QG = similarity_from_ranking(ranking, len(clips))
    relevant = target[:, None] == np.arange(len(clips))
    ours = {f"recall@{k}": recall_at_k(similarity_QG, relevant, k) for k in (1, 5, 10)}
    ours["mAP@10"] = mean_average_precision_at_k(similarity_QG, relevant, 10)
    assert ours == pytest.approx(expected["recomputed_here"], abs=5e-5)
    assert ours == pytest.approx(expected["published"], abs=5e-3)


# -- transduction --------------------------------------------------------------------------------


def clap_like(seed, num_classes=10, clips_per_class=20, dim=64, concentration=30.0, anchor_noise=1.0):
    """Von Mises-Fisher classes, text anchors that point roughly there, and a modality gap.

    Returns audio (N, D), text (K, D), labels (N,) and a logit scale that suits the cosines.
    """
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((num_classes, dim)))
    sizes = np.broadcast_to(clips_per_class, num_classes)
    audio = np.concatenate(
        [
            stats.vonmises_fisher(centre, concentration).rvs(size, random_state=rng).reshape(-1, dim)
            for centre, size in zip(centres, sizes, strict=True)
        ]
    )
    text = unit(centres + anchor_noise * unit(rng.standard_normal((num_classes, dim))))
    gap = 0.8 * unit(rng.standard_normal((2, dim)))
    label = np.repeat(np.arange(num_classes), sizes)
    return unit(audio + gap[0]), unit(text + gap[1]), label, 20.0


def scores(seed, **kwargs):
    """Inductive and transductive accuracy of one draw."""
    audio, text, label, scale = clap_like(seed, **kwargs)
    posterior = transductive_posteriors(audio, text, logit_scale=scale)
    return accuracy(predict(audio, text), label), accuracy(posterior.argmax(axis=1), label)


def test_the_batch_raises_accuracy_where_clusters_are_real_and_anchors_rough():
    """A transduction that changes nothing, or follows the noise, still returns posteriors."""
    pairs = np.array([scores(seed) for seed in range(6)])
    inductive, transductive = pairs.mean(axis=0)
    assert 0.55 < inductive < 0.7
    assert transductive > inductive + 0.1
    assert (pairs[:, 1] >= pairs[:, 0]).all()


@pytest.mark.parametrize(
    ("kwargs", "least_gain"),
    [
        ({"clips_per_class": [2, 5, 8, 12, 16, 20, 25, 30, 35, 40]}, 0.1),  # imbalance of 20:1
        ({"anchor_noise": 0.3, "concentration": 60.0}, 0.0),  # nearly perfect already
        ({"num_classes": 2, "clips_per_class": 30}, 0.0),
        ({"anchor_noise": 1000.0}, -0.05),  # prompts that say nothing: no gain, and no cure
    ],
)
def test_hard_batches_are_not_harmed(kwargs, least_gain):
    """An average gain that hides a loss on the batches that users have."""
    inductive, transductive = np.mean([scores(seed, **kwargs) for seed in range(4)], axis=0)
    assert transductive >= inductive + least_gain


def test_labels_can_enter_nowhere():
    """The vision code sizes its classes by the test labels; a hidden one would look like skill."""
    names = list(inspect.signature(transductive_posteriors).parameters)
    assert names == [
        "audio_ND", "text_KD", "logit_scale", "anchor", "num_confident", "num_rounds"
    ]  # fmt: skip


def test_classes_without_clips_stay_classes():
    """K comes from the prompts: a class of which the batch has no clip must not vanish."""
    audio, text, label, scale = clap_like(0, num_classes=12)
    present = label < 9
    posterior = transductive_posteriors(audio[present], text, logit_scale=scale)
    assert posterior.shape == (9 * 20, 12)
    inductive = accuracy(predict(audio[present], text), label[present])
    assert accuracy(posterior.argmax(axis=1), label[present]) > inductive


def inductive_posterior(audio, text, scale):
    """Zero-shot softmax."""
    logits = np.exp(scale * audio @ text.T)
    return logits / logits.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("case", ["alike", "alike in float32", "fewer clips than classes", "no rounds"])
def test_where_there_is_nothing_to_learn_the_zero_shot_posterior_stays(case):
    """Rounding noise made unit vectors is a cluster structure like any other."""
    audio, text, _, scale = clap_like(0)
    rounds = 0 if case == "no rounds" else 10
    if case.startswith("alike"):
        rounding = 1e-9 * np.random.default_rng(1).standard_normal((50, 64))
        audio = (audio[:1] + rounding).astype(np.float32 if "float32" in case else float)
    elif case == "fewer clips than classes":
        audio = audio[::25][:9]
    posterior = transductive_posteriors(audio, text, logit_scale=scale, num_rounds=rounds)
    expected = inductive_posterior(audio.astype(float), text, scale)
    np.testing.assert_allclose(posterior, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("logit_scale", "anchor"), [(20.0, 1.0), (2000.0, 0.0)])
def test_the_order_of_clips_and_classes_does_not_matter(logit_scale, anchor):
    """Posteriors that round to 1 tie, and a sort of ties follows the order of the files."""
    audio, text, _, _ = clap_like(1, clips_per_class=12)
    rng = np.random.default_rng(0)
    clips, classes = rng.permutation(len(audio)), rng.permutation(len(text))
    setting = {"logit_scale": logit_scale, "anchor": anchor, "num_rounds": 2}
    plain = transductive_posteriors(audio, text, **setting)
    mixed = transductive_posteriors(audio[clips], text[classes], **setting)
    np.testing.assert_allclose(mixed, plain[np.ix_(clips, classes)], rtol=1e-6, atol=1e-9)


def test_posteriors_are_distributions_and_repeat_exactly():
    """A refinement with a hidden seed gives a score that nobody can print twice."""
    audio, text, _, scale = clap_like(2)
    posterior = transductive_posteriors(audio, text, logit_scale=scale)
    np.testing.assert_allclose(posterior.sum(axis=1), 1, rtol=1e-12)
    assert (posterior >= 0).all()
    again = transductive_posteriors(audio, text, logit_scale=scale)
    np.testing.assert_array_equal(posterior, again)
    half = transductive_posteriors(audio.astype(np.float32), text.astype(np.float32), logit_scale=scale)
    assert (half.argmax(axis=1) == posterior.argmax(axis=1)).all()


@pytest.mark.parametrize("num_rounds", [1, 2, 3])
def test_rounds_equal_the_update_written_out_clip_by_clip(num_rounds):
    """A vectorised update with a transposed sum, or means that never move, still converges."""
    audio, text, _, scale = clap_like(3, num_classes=3, clips_per_class=6, dim=8)
    prior = inductive_posterior(audio, text, scale)
    centred = unit(audio - audio.mean(axis=0))
    means = [unit(centred[np.argsort(-prior[:, k])[:4]].sum(axis=0)[None])[0] for k in range(3)]
    eigenvalues = np.linalg.eigvalsh(centred.T @ centred)
    num_dims = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    expected = prior.copy()
    for _ in range(num_rounds):
        variance = 0.0
        for i, k in itertools.product(range(18), range(3)):
            variance += expected[i, k] * np.sum((centred[i] - means[k]) ** 2) / 18 / num_dims
        for i in range(18):
            density = [np.exp(-np.sum((centred[i] - mean) ** 2) / 2 / variance) for mean in means]
            expected[i] = prior[i] ** 0.5 * density
            expected[i] /= expected[i].sum()
        sums = [sum(expected[i, k] * centred[i] for i in range(18)) for k in range(3)]
        means = [total / np.linalg.norm(total) for total in sums]
    ours = transductive_posteriors(audio, text, logit_scale=scale, anchor=0.5, num_confident=4, num_rounds=num_rounds)
    np.testing.assert_allclose(ours, expected, rtol=1e-8)


def test_clips_that_are_equal_within_a_class_stay_finite():
    """A variance of zero, or below it by rounding, turns the whole batch into NaN."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        audio = unit(rng.standard_normal((4, 32)))
        posterior = transductive_posteriors(np.tile(audio, (5, 1)), audio, logit_scale=5000.0)
        np.testing.assert_array_equal(posterior, np.tile(np.eye(4), (5, 1)))


def test_diagnostics_tell_a_batch_that_cannot_carry_a_transduction():
    """A refined score without its batch size cannot be compared with another one."""
    sure = np.repeat(np.eye(4)[:3], 5, axis=0)
    assert transductive_diagnostics(sure) == {
        "clips_per_class": 3.75, "smallest_class": 0.0, "entropy": 0.0
    }  # fmt: skip
    unsure = transductive_diagnostics(np.full((8, 4), 0.25))
    assert unsure == pytest.approx({"clips_per_class": 2, "smallest_class": 2, "entropy": 1})
    assert transductive_diagnostics(np.ones((3, 1)))["entropy"] == 0


# -- mistakes of the caller ----------------------------------------------------------------------


def test_callers_mistakes_are_refused_with_what_came():
    """Arrays that broadcast, or labels of another class list, give a score without meaning."""
    rows, eye = np.eye(3), np.eye(3, dtype=bool)
    with pytest.raises(ValueError, match=r"predicted and label .*got shapes \(3,\) and \(1,\)"):
        accuracy(np.zeros(3, int), np.zeros(1, int))
    with pytest.raises(ValueError, match="one entry per clip"):
        accuracy(np.zeros(0, int), np.zeros(0, int))
    with pytest.raises(ValueError, match="label must be in 0 to 2, got 1 to 3"):
        confusion_matrix(np.array([0, 1]), np.array([1, 3]), 3)
    with pytest.raises(ValueError, match="predicted must be in 0 to 2, got -1 to 0"):
        confusion_matrix(np.array([0, -1]), np.array([1, 2]), 3)
    with pytest.raises(ValueError, match="audio rows must be unit vectors, row 1 has norm 2"):
        predict(np.diag([1.0, 2.0, 1.0]), rows)
    with pytest.raises(ValueError, match="text rows must be unit vectors, row 2 has norm nan"):
        predict(rows, np.diag([1, 1, np.nan]))
    with pytest.raises(ValueError, match=r"of one model, got shapes \(3, 3\) and \(2, 2\)"):
        predict(rows, np.eye(2))
    with pytest.raises(ValueError, match="at least one class prompt"):
        predict(rows, np.zeros((0, 3)))
    with pytest.raises(ValueError, match="between 0 and 1, got 95; a percentage"):
        bootstrap_interval([1, 0], [0, 1], level=95)
    with pytest.raises(ValueError, match="all 2 clips are from one"):
        bootstrap_interval([1, 0], ["a", "a"])
    with pytest.raises(ValueError, match="correct and groups"):
        bootstrap_interval([1, 0], [0, 1, 2])
    with pytest.raises(ValueError, match="num_resamples must be at least 1, got 0"):
        bootstrap_interval([1, 0], [0, 1], num_resamples=0)
    with pytest.raises(ValueError, match="before and after"):
        paired_change([1, 0], [1, 0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"1 of 3 have none; the first is \[1\]"):
        recall_at_k(rows, eye & [[True], [False], [True]], 1)
    with pytest.raises(ValueError, match="got NaN"):
        recall_at_k(np.full((3, 3), np.nan), eye, 1)
    with pytest.raises(ValueError, match=r"same shape .*got \(3, 3\) and \(2, 3\)"):
        mean_average_precision_at_k(rows, eye[:2], 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        recall_at_k(rows, eye, 0)
    with pytest.raises(ValueError, match="logit_scale must be above 0, got -2.6; its logarithm"):
        transductive_posteriors(rows, rows, logit_scale=-2.6)
    for name, least in (("anchor", 0), ("num_rounds", 0), ("num_confident", 1)):
        with pytest.raises(ValueError, match=f"{name} must be at least {least}, got -1"):
            transductive_posteriors(rows, rows, **{name: -1})
