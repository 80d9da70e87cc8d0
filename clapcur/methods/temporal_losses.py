"""Losses that teach the number of sounds in a clip, and their order: targets and weights of one contrastive loss.

Both are cross-entropies over the similarities of a stacked batch of composed pairs. They differ in

- stage A ("how many"): the target, in which pairs that share an event need not be negatives (`shared_event_target`);
- stage B ("in which order"): the weight of each negative, depending on its group and kind (`temporal_log_weights`).

A training adds the log weights to its logits and is otherwise unchanged; `temporal_contrastive_loss` does both.

Shapes: N pairs in the batch (row i of the audio belongs to row i of the text), D embedding.

References
----------
.. [1] Sinha et al. 2024, "Enhancing Audio-Language Models through Self-Supervised Post-Training with Text-Audio Pairs",
    arXiv:2408.09269.
.. [2] Bagad et al. 2023, "Test of Time: Instilling Video-Language Models with a Sense of Time", arXiv:2301.02074.
"""

import math
from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from clapcur.methods.losses import contrastive_loss_of_rows


def shared_event_target(hard_NN: Tensor, events: Sequence[AbstractSet[Hashable]], softness: float = 0.0) -> Tensor:
    """Return the target of stage A: each pair's own, with a share for pairs that have events in common.

    "A single dog" and "a dog and a cat" are in one batch by construction; with the diagonal as the only right answer,
    each would learn that the other's dog is wrong.

    Parameters
    ----------
    hard_NN : Tensor, shape (N, N)
        The hard target, such as from `clapcur.methods.losses.hard_target`.
    events : sequence of set, length N
        The classes that are heard in each pair; no set is empty.
    softness : float in [0, 1]
        Share of a row that depends on the events; 0 is the hard target.

    Returns
    -------
    Tensor, shape (N, N)
        (1 - softness) * hard + softness * the overlap |e_i & e_j| / |e_i | e_j|, with rows normalised to distributions.
        It serves both directions, as the overlap is symmetric before its rows are normalised.

    Raises
    ------
    ValueError
        Lengths differ, a pair has no event, or softness is out of range.

    Notes
    -----
    Ours. [1]_ uses the diagonal, even if two groups of a batch have the same classes.
    """
    if not 0 <= softness <= 1:
        raise ValueError(f"softness must be in [0, 1], got {softness:g}")
    if hard_NN.shape != (len(events), len(events)):
        raise ValueError(f"expected the events of each of {len(hard_NN)} pairs, got {len(events)}")
    if not all(events):
        raise ValueError("each pair must hold at least one event, got a pair with none")
    names = {name: index for index, name in enumerate(sorted(set().union(*events), key=repr))}
    held_NE = torch.zeros(len(events), max(1, len(names)))
    for row, found in enumerate(events):
        held_NE[row, [names[name] for name in found]] = 1
    common_NN = held_NE @ held_NE.T
    count_N = held_NE.sum(dim=1)
    overlap_NN = common_NN / (count_N[:, None] + count_N[None, :] - common_NN)
    overlap_NN /= overlap_NN.sum(dim=1, keepdim=True)
    return (1 - softness) * hard_NN + softness * overlap_NN.to(hard_NN)


def temporal_log_weights(
    group_codes_N: Tensor, kind_codes_N: Tensor, *, alpha_same: float = 1.0, alpha_cross: float = 1.0
) -> Tensor:
    """Return the logarithms of the weights that stage B gives each pair in the softmax.

    Parameters
    ----------
    group_codes_N : Tensor, shape (N,), integer
        Pairs of one group are composed from the same two clips.
    kind_codes_N : Tensor, shape (N,), integer
        How they are composed: forward, reversed, overlapping.
    alpha_same : float, at least 0
        Weight of a negative of the same group in another kind: the same sounds in another order.
    alpha_cross : float, at least 0
        Weight of a negative of another group in another kind.

    Returns
    -------
    Tensor, shape (N, N), float32
        0 between pairs of one kind, otherwise log(alpha): -inf for a weight of 0, which removes such a pair whatever
        its logit. Symmetric; the pairs may be in any order.

    Raises
    ------
    ValueError
        Shapes differ, or a weight is negative or not finite.

    Notes
    -----
    C_x of [1]_, which follows [2]_. Their code uses similarities of rows that are not normalised, for which log(1e-8)
    does not remove a pair; here the rows have unit norm and are multiplied by the scale of the model.
    """
    if group_codes_N.ndim != 1 or group_codes_N.shape != kind_codes_N.shape:
        raise ValueError(
            f"expected a group and a kind for each pair, got shapes {tuple(group_codes_N.shape)} and "
            f"{tuple(kind_codes_N.shape)}"
        )
    for name, alpha in (("alpha_same", alpha_same), ("alpha_cross", alpha_cross)):
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"{name} must be a finite weight of at least 0, got {alpha:g}")
    is_same_group_NN = group_codes_N[:, None] == group_codes_N[None, :]
    is_same_kind_NN = kind_codes_N[:, None] == kind_codes_N[None, :]
    weights_NN = torch.where(is_same_group_NN, alpha_same, alpha_cross).float()
    return weights_NN.masked_fill(is_same_kind_NN, 1.0).log()


def temporal_contrastive_loss(
    audio_ND: Tensor, text_ND: Tensor, scale: Tensor | float, *, log_weights_NN: Tensor | None = None,
    target_NN: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the weighted symmetric cross-entropy of composed pairs, in nats.

    Parameters
    ----------
    audio_ND, text_ND : Tensor, shape (N, D)
        Unit rows.
    scale : Tensor, shape (), or float
        The factor of the similarities: exp(logit_scale).
    log_weights_NN : Tensor, shape (N, N), optional
        As from `temporal_log_weights`; by default all 0.
    target_NN : Tensor, shape (N, N), optional
        Non-negative, the same in both directions; by default the identity. It must be 0 for pairs with a weight of 0.

    Returns
    -------
    Tensor, shape ()
        Mean of both directions, each a mean over N.

    Raises
    ------
    ValueError
        Shapes differ, rows do not have unit norm, or the target is positive for a pair that the weights remove.

    Notes
    -----
    With weights of 1 and the identity this is `contrastive_loss` of the stacked batch. [1]_ sums over anchors and
    directions and multiplies by 0.8; with a mean, the learning rate need not change with the batch size.
    """
    if audio_ND.ndim != 2 or audio_ND.shape != text_ND.shape or not len(audio_ND):
        raise ValueError(
            f"expected one audio and one text row per pair, got shapes {tuple(audio_ND.shape)} and "
            f"{tuple(text_ND.shape)}"
        )
    for name, rows_ND in (("audio", audio_ND), ("text", text_ND)):
        norm_N = torch.linalg.vector_norm(rows_ND.detach().float(), dim=1)
        if not torch.allclose(norm_N, torch.ones_like(norm_N), atol=1e-2):
            raise ValueError(
                f"{name} rows must be unit vectors, got norms from {norm_N.min():.3g} to {norm_N.max():.3g}"
            )
    num_pairs = len(audio_ND)
    target_NN = torch.eye(num_pairs, device=audio_ND.device) if target_NN is None else target_NN
    weights_NN = torch.zeros_like(target_NN) if log_weights_NN is None else log_weights_NN
    for name, matrix in (("target", target_NN), ("log_weights", weights_NN)):
        if matrix.shape != (num_pairs, num_pairs):
            raise ValueError(f"{name} must have the shape {(num_pairs, num_pairs)}, got {tuple(matrix.shape)}")
    if ((target_NN > 0) & torch.isneginf(weights_NN)).any():
        raise ValueError("the target of a pair is positive but its weight is 0: the loss would be infinite")
    logits_NN = scale * audio_ND @ text_ND.T
    return contrastive_loss_of_rows(logits_NN + weights_NN, logits_NN.T + weights_NN.T, target_NN, target_NN)
