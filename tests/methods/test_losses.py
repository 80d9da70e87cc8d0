"""The losses against scipy, torch's own functions, hand-worked matrices and their limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_tools import unit_rows, value_and_gradient
from scipy.special import log_softmax, rel_entr

from clapcur.methods.losses import (
    contrastive_loss,
    contrastive_loss_of_rows,
    hard_target,
    identical_target,
    soft_contrastive_loss,
    soft_targets,
    target_statistics,
)

FORMS = ("paper", "row", "softmax", "cross_modal")


def random_logits(num_pairs, seed):
    """Logits of the usual size, 1 / 0.07 times a cosine."""
    return 14 * unit_rows(num_pairs, 6, seed) @ unit_rows(num_pairs, 6, seed + 1).T


def test_the_contrastive_loss_of_a_hand_worked_matrix():
    """A sum in place of a mean, or one direction counted twice, changes the learning rate."""
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    audio_to_text = (np.log(1 + np.exp(-2)) + np.log(1 + np.exp(-2))) / 2
    text_to_audio = (np.log(1 + np.exp(-1)) + np.log(1 + np.exp(-3))) / 2
    assert contrastive_loss(logits).item() == pytest.approx((audio_to_text + text_to_audio) / 2, rel=1e-12)


def test_equal_logits_cost_the_logarithm_of_the_batch():
    """A model that knows nothing must cost log N nats; anything else is a scaling error."""
    assert contrastive_loss(torch.zeros(32, 32)).item() == pytest.approx(np.log(32), rel=1e-6)


def test_the_contrastive_loss_treats_audio_and_text_alike():
    """A direction that is left out trains one tower only."""
    logits = random_logits(5, seed=0)
    assert contrastive_loss(logits).item() == pytest.approx(contrastive_loss(logits.T).item(), rel=1e-12)


@pytest.mark.parametrize("num_pairs", [1, 2, 7])
def test_soft_loss_with_hard_identity_is_the_contrastive_loss_in_value_and_gradient(num_pairs):
    """A beta of 0 that is not the hard loss makes a sweep of beta compare two losses."""
    logits = random_logits(num_pairs, seed=3)
    audio, text = unit_rows(num_pairs, 4, 5), unit_rows(num_pairs, 4, 6)
    for form in FORMS:
        targets = soft_targets(form, audio, text, beta=0, temperature=0.1)
        soft = value_and_gradient(lambda x, targets=targets: soft_contrastive_loss(x, *targets), logits)
        hard = value_and_gradient(contrastive_loss, logits)
        torch.testing.assert_close(soft, hard, rtol=1e-12, atol=1e-14)


@given(num_pairs=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_soft_loss_equals_an_independent_kullback_leibler_divergence(num_pairs, seed):
    """Targets over the wrong direction: the loss falls and the student learns the transpose."""
    logits = random_logits(num_pairs, seed)
    first, second = (torch.rand(num_pairs, num_pairs, dtype=torch.float64) for _ in range(2))
    expected = 0.0
    for matrix, target in ((logits.numpy(), first.numpy()), (logits.numpy().T, second.numpy())):
        probability = np.exp(log_softmax(matrix, axis=1))
        expected += rel_entr(target, probability).sum() / num_pairs / 2
    assert soft_contrastive_loss(logits, first, second).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_soft_loss_equals_torch_kl_div_in_value_and_gradient():
    """A loss that is not the reference's KLDivLoss("batchmean") does not reproduce the paper."""
    logits = random_logits(6, seed=11)
    targets = soft_targets("softmax", unit_rows(6, 4, 1), unit_rows(6, 4, 2), beta=0.3, temperature=0.2)

    def reference(x):
        criterion = torch.nn.KLDivLoss(reduction="batchmean")
        return (criterion(x.log_softmax(1), targets[0]) + criterion(x.T.log_softmax(1), targets[1])) / 2

    ours = value_and_gradient(lambda x: soft_contrastive_loss(x, *targets), logits)
    torch.testing.assert_close(ours, value_and_gradient(reference, logits), rtol=1e-12, atol=1e-14)


def test_the_gradient_is_the_row_sum_times_the_student_minus_the_target():
    """The row sum in the log must be the factor that the gradient really gets."""
    logits = random_logits(4, seed=21)
    target = torch.rand(4, 4, dtype=torch.float64)
    _, gradient = value_and_gradient(lambda x: soft_contrastive_loss(x, target, target), logits)
    rows = target.sum(1, keepdim=True) * logits.softmax(1) - target
    columns = target.sum(1, keepdim=True) * logits.T.softmax(1) - target
    torch.testing.assert_close(gradient, (rows + columns.T) / 8, rtol=1e-10, atol=1e-12)


def test_the_least_soft_loss_is_the_row_sum_times_its_logarithm():
    """A wrong floor in the docs makes a converged student look unconverged."""
    target = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    at_optimum = soft_contrastive_loss(target.log(), target, target).item()
    assert at_optimum == pytest.approx(1.6 * np.log(1.6), rel=1e-12)


def test_zero_targets_are_finite_in_value_and_gradient():
    """0 log 0 written out is NaN, and every clamped target has zeros."""
    logits = random_logits(3, seed=2)
    target = torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    value, gradient = value_and_gradient(lambda x: soft_contrastive_loss(x, target, target), logits)
    without_zeros = value_and_gradient(lambda x: soft_contrastive_loss(x, target + 1e-14, target + 1e-14), logits)
    torch.testing.assert_close((value, gradient), without_zeros, rtol=1e-9, atol=1e-11)


def test_one_negative_cosine_neither_kills_nor_bends_the_paper_form():
    """With torch >= 1.13 the loss is NaN, its gradient finite: training continues, elsewhere."""
    audio = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.6, 0.8]], dtype=torch.float64)
    text = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
    audio_to_text, text_to_audio = soft_targets("paper", audio, text, beta=0.3)
    expected = torch.tensor([[1.0, 0.18, 0.0], [0.18, 1.0, 0.084], [0.0, 0.084, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(audio_to_text, expected, rtol=1e-12, atol=1e-12)
    logits = random_logits(3, seed=8)

    def torch_1_10(
        x,
    ):  # a target that is not positive contributes nothing, in value and in gradient
        raw = 0.7 * torch.eye(3, dtype=torch.float64) + 0.3 * audio @ audio.T
        rows = torch.where(raw > 0, raw * (raw.clamp(min=1e-300).log() - x.log_softmax(1)), 0.0).sum() / 3
        columns = (torch.special.xlogy(text_to_audio, text_to_audio) - text_to_audio * x.T.log_softmax(1)).sum() / 3
        return (rows + columns) / 2

    ours = value_and_gradient(lambda x: soft_contrastive_loss(x, audio_to_text, text_to_audio), logits)
    torch.testing.assert_close(ours, value_and_gradient(torch_1_10, logits), rtol=1e-12, atol=1e-14)
    negative = 0.7 * torch.eye(3, dtype=torch.float64) + 0.3 * audio @ audio.T
    with pytest.raises(ValueError, match=r"audio-to-text target must be non-negative.*-0\.18:"):
        soft_contrastive_loss(logits, negative, text_to_audio)
    with pytest.raises(ValueError, match="text-to-audio target must be non-negative"):
        soft_contrastive_loss(logits, audio_to_text, text_to_audio.log())
    with pytest.raises(ValueError, match="audio-to-text target must be non-negative.*nan"):
        soft_contrastive_loss(logits, audio_to_text * torch.nan, text_to_audio)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_its_row_of_the_table(form):
    """Intra-modal similarities laid over the wrong direction: the loss still falls."""
    audio, text, beta, temperature = unit_rows(5, 3, 1), unit_rows(5, 3, 2), 0.4, 0.25
    within = [np.array([[float(x @ y) for y in rows] for x in rows]) for rows in (audio, text)]
    across = np.array([[float(x @ y) for y in text] for x in audio])
    for direction, target in enumerate(soft_targets(form, audio, text, beta=beta, temperature=temperature)):
        if form == "cross_modal":
            soft = np.exp(log_softmax((across, across.T)[direction] / temperature, axis=1))
        elif form == "softmax":
            soft = np.exp(log_softmax(within[direction] / temperature, axis=1))
        else:
            soft = np.maximum(within[direction], 0)
            soft = soft / soft.sum(1, keepdims=True) if form == "row" else soft
        np.testing.assert_allclose(target.numpy(), (1 - beta) * np.eye(5) + beta * soft, rtol=1e-12, atol=1e-12)
        if form != "paper":
            np.testing.assert_allclose(target.sum(1).numpy(), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("cosine", "num_pairs", "row_sum", "share_percent"),
    [
        (0.1, 64, 2.9, 35), (0.1, 128, 4.8, 21), (0.1, 512, 16.3, 6), (0.1, 2048, 62, 1.6),
        (0.3, 64, 6.7, 15), (0.3, 128, 12.4, 8), (0.3, 512, 47, 2), (0.3, 2048, 185, 0.5),
        (0.5, 64, 10.5, 10), (0.5, 128, 20, 5), (0.5, 512, 78, 1.3), (0.5, 2048, 308, 0.3),
    ],
)  # fmt: skip
def test_the_paper_form_softens_more_the_larger_the_batch(cosine, num_pairs, row_sum, share_percent):
    """A beta tuned in a small batch drowns the right answer in a large one, unseen."""
    target = torch.full((num_pairs, num_pairs), 0.3 * cosine).fill_diagonal_(1.0)
    statistics = {name: value.item() for name, value in target_statistics(target).items()}
    half_a_unit = {True: 0.5, False: 0.05}
    assert statistics["row_sum"] == pytest.approx(row_sum, abs=half_a_unit[row_sum == int(row_sum)] + 0.01)
    assert 100 * statistics["diagonal_share"] == pytest.approx(
        share_percent, abs=half_a_unit[share_percent == int(share_percent)] + 0.01
    )


def test_soft_targets_of_equicorrelated_rows_have_the_table_statistics():
    """The table above is of a made-up matrix; embeddings must lead to the same one."""
    num_pairs, cosine = 64, 0.3
    gram = torch.full((num_pairs, num_pairs), cosine, dtype=torch.float64).fill_diagonal_(1.0)
    rows = torch.linalg.cholesky(gram)
    audio_to_text, text_to_audio = soft_targets("paper", rows, rows, beta=0.3)
    for target in (audio_to_text, text_to_audio):
        found = {name: value.item() for name, value in target_statistics(target).items()}
        assert found == pytest.approx({"row_sum": 1 + 0.3 * 63 * 0.3, "diagonal_share": 1 / 6.67})


def test_repeated_captions_and_clips_share_the_mass():
    """The diagonal calls a clip's own caption a negative where it is in another row."""
    captions, clips = ["dog", "rain", "dog", "cat"], ["a", "b", "c", "b"]
    target = hard_target(captions, clips, form="identical")
    expected = [[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5], [0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]]
    torch.testing.assert_close(target, torch.tensor(expected))
    torch.testing.assert_close(hard_target(captions, clips), torch.eye(4))


def test_sharing_is_not_passed_on_from_pair_to_pair():
    """Chained sharing would declare a clip right for a caption that nobody gave it."""
    target = identical_target(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    torch.testing.assert_close(target, torch.tensor([[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 2, 1 / 2]]))


@given(
    codes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_pairs_changes_nothing(codes, seed):
    """A loss that depends on where a pair is in the batch makes a seed out of the sampler."""
    captions, clips = torch.tensor(codes).T
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    audio, text = unit_rows(len(codes), 4, seed), unit_rows(len(codes), 4, seed + 1)

    def loss(index):
        hard = identical_target(captions[index], clips[index])
        targets = soft_targets("row", audio[index], text[index], beta=0.3, hard=hard)
        return soft_contrastive_loss(10 * audio[index] @ text[index].T, *targets)

    assert loss(order).item() == pytest.approx(loss(torch.arange(len(codes))).item(), rel=1e-9, abs=1e-12)


def test_identical_without_repeats_is_the_diagonal():
    """Forms that differ elsewhere than on repeats make their comparison meaningless."""
    torch.testing.assert_close(hard_target(list("abc"), list("xyz"), form="identical"), torch.eye(3))


def test_soft_targets_blend_into_a_given_hard_target():
    """Softening that falls back to the diagonal undoes the sharing among identical captions."""
    audio = unit_rows(2, 3, 4)
    shared = torch.full((2, 2), 0.5, dtype=torch.float64)
    target, _ = soft_targets("row", audio, audio, beta=0.25, hard=shared)
    alone, _ = soft_targets("row", audio, audio, beta=1.0)
    torch.testing.assert_close(target, 0.75 * shared + 0.25 * alone)


def test_targets_carry_no_gradient_to_the_teacher():
    """A teacher that learns from its student agrees ever more: collapse without an error."""
    audio = unit_rows(3, 4, 0).requires_grad_()
    assert not any(target.requires_grad for target in soft_targets("paper", audio, audio, beta=0.3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    """Autocast hands over half-precision logits; a loss summed in them is mostly rounding."""
    logits = random_logits(8, seed=5).to(dtype)
    assert contrastive_loss(logits).dtype == torch.float32
    assert contrastive_loss(logits).item() == pytest.approx(contrastive_loss(logits.double()).item(), rel=1e-6)
    target = torch.eye(8)
    soft = soft_contrastive_loss(logits, target, target)
    assert soft.item() == pytest.approx(contrastive_loss(logits.double()).item(), rel=1e-6)


def test_autocast_does_not_quantise_the_targets():
    """The reference computes its targets under autocast: cosines rounded to 4e-3 in bfloat16."""
    audio, text = unit_rows(6, 16, 0).float(), unit_rows(6, 16, 1).float()
    plain = soft_targets("paper", audio, text, beta=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (audio @ audio.T).dtype == torch.bfloat16
        torch.testing.assert_close(soft_targets("paper", audio, text, beta=0.3), plain, rtol=0, atol=0)


def test_rows_of_half_precision_towers_are_made_unit_again():
    """A norm of 1.004 makes the diagonal larger than the hard target that it replaces."""
    audio = (1.004 * unit_rows(4, 8, 0)).to(torch.bfloat16)
    target, _ = soft_targets("paper", audio, audio, beta=1.0)
    torch.testing.assert_close(target.diagonal(), torch.ones(4), rtol=0, atol=1e-6)


def test_callers_mistakes_are_refused_with_what_came():
    """A shape that broadcasts, or a beta of 30, trains without complaint."""
    eye, rows = torch.eye(3), unit_rows(3, 4, 0)
    with pytest.raises(ValueError, match=r"logits must be a square matrix.*\(3, 4\)"):
        contrastive_loss(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"got shape \(0, 0\)"):
        contrastive_loss(torch.zeros(0, 0))
    with pytest.raises(ValueError, match=r"text-to-audio target must have the logits' shape \(3, 3\), got \(1, 3\)"):
        soft_contrastive_loss(eye, eye, eye[:1])
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\], got 30"):
        soft_targets("paper", rows, rows, beta=30)
    with pytest.raises(ValueError, match="soft target must be one of .*'cross_modal'.*got 'cross-modal'"):
        soft_targets("cross-modal", rows, rows, beta=0.3)
    with pytest.raises(ValueError, match=r"one audio and one text row per pair, got shapes \(3, 4\) and \(2, 4\)"):
        soft_targets("paper", rows, rows[:2], beta=0.3)
    for temperature in (None, 0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"cross_modal targets need a temperature above 0, got {temperature}"):
            soft_targets("cross_modal", rows, rows, beta=0.3, temperature=temperature)
    with pytest.raises(ValueError, match=r"hard target must have the shape \(3, 3\), got \(1, 3\)"):
        soft_targets("paper", rows, rows, beta=0.3, hard=eye[:1])
    with pytest.raises(ValueError, match="2 captions and 3 clips"):
        hard_target(list("ab"), list("abc"))
    with pytest.raises(ValueError, match="hard target must be one of .*got 'same'"):
        hard_target(list("abc"), list("abc"), form="same")


@pytest.mark.parametrize("form", FORMS)
def test_shares_of_a_batch_add_up_to_its_loss_and_targets(form):
    """A share that normalises over its own columns, or counts its own rows only, is another loss."""
    audio, text, their_audio, their_text = (unit_rows(7, 5, seed) for seed in range(4))
    logits = 9 * audio @ text.T
    whole = soft_targets(form, their_audio, their_text, beta=0.4, temperature=0.1)
    total, statistics = 0.0, []
    for rows in (slice(0, 2), slice(2, 7)):
        share = soft_targets(form, their_audio, their_text, beta=0.4, temperature=0.1, rows=rows)
        for part, side in zip(share, whole, strict=True):
            torch.testing.assert_close(part, side[rows])
        total += contrastive_loss_of_rows(logits[rows], logits.T[rows], *share).item()
        statistics.append(target_statistics(share[0], rows)["diagonal_share"].item())
    assert total == pytest.approx(soft_contrastive_loss(logits, *whole).item(), rel=1e-12)
    expected = target_statistics(whole[0])["diagonal_share"].item()
    assert (2 * statistics[0] + 5 * statistics[1]) / 7 == pytest.approx(expected, rel=1e-6)
