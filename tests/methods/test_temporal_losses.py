"""The losses of order: against the explicit sum, InfoNCE, and what must not change them."""

import math

import pytest
import torch
from loss_tools import unit_rows, value_and_gradient

from clapcur.methods.losses import contrastive_loss, contrastive_loss_of_rows
from clapcur.methods.temporal_losses import shared_event_target, temporal_contrastive_loss, temporal_log_weights

ALPHAS = [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.3, 2.0)]


def stacked(num_groups, num_kinds=3, dim=6, seed=0):
    """Rows of composed pairs, kind by kind, with their codes."""
    audio, text = (unit_rows(num_groups * num_kinds, dim, seed + side) for side in (0, 1))
    groups = torch.arange(num_groups).repeat(num_kinds)
    kinds = torch.arange(num_kinds).repeat_interleave(num_groups)
    return audio, text, groups, kinds


def explicit_sum(audio, text, groups, kinds, scale, alpha_same, alpha_cross):
    """TNCE anchor by anchor, as the paper writes it: a sum of exponentials, no matrix."""
    total = 0.0
    for queries, keys in ((audio, text), (text, audio)):
        for i, query in enumerate(queries):
            denominator = 0.0
            for j, key in enumerate(keys):
                if kinds[j] == kinds[i]:
                    alpha = 1.0
                else:
                    alpha = alpha_same if groups[j] == groups[i] else alpha_cross
                denominator += alpha * math.exp(scale * float(query @ key))
            total -= math.log(math.exp(scale * float(query @ keys[i])) / denominator)
    return total / (2 * len(audio))


@pytest.mark.parametrize("alphas", ALPHAS)
@pytest.mark.parametrize("num_groups", [1, 2, 5])
def test_the_block_form_equals_the_explicit_sum(num_groups, alphas):
    """A weight in the wrong block trains order against the wrong negatives, and the loss falls all the same."""
    audio, text, groups, kinds = stacked(num_groups)
    weights = temporal_log_weights(groups, kinds, alpha_same=alphas[0], alpha_cross=alphas[1]).double()
    loss = temporal_contrastive_loss(
        audio, text, 14.0, log_weights_NN=weights, target_NN=torch.eye(len(audio)).double()
    )
    # the weights are float32: log(0.3) is known to 6e-8
    assert loss.item() == pytest.approx(explicit_sum(audio, text, groups, kinds, 14.0, *alphas), rel=1e-7)


def test_weights_of_one_are_infonce_of_the_stacked_batch_in_value_and_gradient():
    """Otherwise the ablation with alpha 1 compares two losses."""
    audio, text, groups, kinds = stacked(4)
    weights = temporal_log_weights(groups, kinds).double()

    def ours(rows):
        return temporal_contrastive_loss(rows, text, 9.0, log_weights_NN=weights)

    torch.testing.assert_close(
        value_and_gradient(ours, audio),
        value_and_gradient(lambda rows: contrastive_loss(9.0 * rows @ text.T), audio),
        rtol=1e-9, atol=1e-12,
    )  # fmt: skip


def test_a_weight_of_zero_takes_a_negative_out_whatever_its_logit_and_leaves_the_gradient_finite():
    """log(1e-8) takes 18 off a logit of 100: the authors' mask hides nothing. And 0 * inf is NaN."""
    audio, text, groups, kinds = stacked(3)
    weights = temporal_log_weights(groups, kinds, alpha_same=0, alpha_cross=0)
    assert torch.isneginf(weights[kinds[:, None] != kinds[None, :]]).all()
    value, gradient = value_and_gradient(
        lambda rows: temporal_contrastive_loss(rows, text, 100.0, log_weights_NN=weights), audio
    )
    parts = [contrastive_loss(100.0 * audio[kinds == kind] @ text[kinds == kind].T) for kind in range(3)]
    assert value.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-6)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.parametrize("alphas", ALPHAS)
def test_the_order_of_the_pairs_does_not_matter(alphas):
    """Weights laid out for sorted blocks are wrong as soon as a sampler shuffles."""
    audio, text, groups, kinds = stacked(4)
    order = torch.randperm(len(audio), generator=torch.Generator().manual_seed(3))

    def loss(rows):
        weights = temporal_log_weights(groups[rows], kinds[rows], alpha_same=alphas[0], alpha_cross=alphas[1])
        return temporal_contrastive_loss(audio[rows], text[rows], 14.0, log_weights_NN=weights).item()

    assert loss(order) == pytest.approx(loss(torch.arange(len(audio))), rel=1e-9)


def test_a_last_batch_that_is_short_and_not_whole_groups_works():
    """The authors' matrix is made for the full batch, and an `except` hides that the last one fails."""
    audio, text, groups, kinds = stacked(3)
    rows = torch.tensor([0, 1, 3, 6])  # one whole group, and one pair of another
    weights = temporal_log_weights(groups[rows], kinds[rows], alpha_same=0.5, alpha_cross=0)
    loss = temporal_contrastive_loss(audio[rows], text[rows], 14.0, log_weights_NN=weights)
    expected = explicit_sum(audio[rows], text[rows], groups[rows], kinds[rows], 14.0, 0.5, 0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_shares_of_a_batch_add_up_to_the_loss_of_the_whole():
    """Processes compute rows each; weights of the wrong rows would train every rank on another loss."""
    audio, text, groups, kinds = stacked(4)
    weights = temporal_log_weights(groups, kinds, alpha_same=2, alpha_cross=0).double()
    logits, target = 14.0 * audio @ text.T, torch.eye(12, dtype=torch.float64)
    shares = [
        contrastive_loss_of_rows(
            logits[own] + weights[own], logits.T[own] + weights.T[own], target[own], target[own]
        )
        for own in (slice(0, 5), slice(5, 12))
    ]  # fmt: skip
    whole = temporal_contrastive_loss(audio, text, 14.0, log_weights_NN=weights, target_NN=target)
    assert sum(shares).item() == pytest.approx(whole.item(), rel=1e-9)


def test_stage_a_with_hard_targets_is_the_contrastive_loss_of_singles_and_couples():
    """2B x 2B, the diagonal right: the stage A of the paper."""
    audio, text, _, _ = stacked(3, num_kinds=2)
    events = [{"dog"}, {"cat"}, {"rain"}, {"dog", "cow"}, {"cat", "pig"}, {"rain", "bell"}]
    target = shared_event_target(torch.eye(6), events)
    assert torch.equal(target, torch.eye(6))
    loss = temporal_contrastive_loss(audio, text, 14.0, target_NN=target.double())
    assert loss.item() == pytest.approx(contrastive_loss(14.0 * audio @ text.T).item(), rel=1e-9)


def test_the_soft_target_of_stage_a_goes_by_the_events_that_two_pairs_share():
    """A target that lets any two pairs share makes "how many" unlearnable."""
    hard = torch.eye(4)
    target = shared_event_target(hard, [{"dog"}, {"dog", "cat"}, {"rain"}, {"dog"}], softness=0.5)
    row = torch.tensor([0.5, 0, 0, 0]) + 0.5 * torch.tensor([1, 0.5, 0, 1]) / 2.5
    torch.testing.assert_close(target[0], row)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(4))
    assert target[2].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: temporal_log_weights(torch.arange(3), torch.arange(2)), "a group and a kind for each pair"),
        (lambda: temporal_log_weights(torch.arange(2), torch.arange(2), alpha_same=-1), "alpha_same must be"),
        (lambda: temporal_log_weights(torch.arange(2), torch.arange(2), alpha_cross=math.nan), "alpha_cross must be"),
        (lambda: shared_event_target(torch.eye(2), [{"dog"}, set()]), "at least one event"),
        (lambda: shared_event_target(torch.eye(1), [{"dog"}], softness=1.5), r"softness must be in \[0, 1\], got 1.5"),
        (lambda: temporal_contrastive_loss(torch.ones(2, 3), torch.eye(3)[:2], 1.0), "audio rows must be unit"),
        (
            lambda: temporal_contrastive_loss(
                torch.eye(2), torch.eye(2), 1.0, log_weights_NN=torch.full((2, 2), -math.inf)
            ),
            "positive but its weight is 0",
        ),
        (
            lambda: temporal_contrastive_loss(torch.eye(2), torch.eye(2), 1.0, target_NN=torch.eye(3)),
            r"target must have the shape \(2, 2\)",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(call, message):
    """Logits of rows that are not unit reach a thousand, and nothing is masked there."""
    with pytest.raises(ValueError, match=message):
        call()
