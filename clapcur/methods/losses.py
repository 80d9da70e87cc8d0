"""Contrastive losses and their targets: pure functions of tensors, each with its equation number.

Shapes: N pairs in the batch (row i of the audio belongs to row i of the text), B of them per process if several share
a batch, D embedding. In every (N, N) matrix the rows are audio clips and the columns captions, except in a
text-to-audio target, whose rows are captions.

Everything is computed in at least float32, even under autocast: a float16 logit of 50 is only accurate to 0.03, and a
float16 target to 5e-4 (a trap in the reference code, which computes both under autocast).

References
----------
.. [1] Wang et al. 2023, "Unsupervised Improvement of Audio-Text Cross-Modal Representations",
    arXiv:2305.01864.
.. [2] Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
    arXiv:2103.00020.
.. [3] "Estimated correspondences", arXiv:2408.11641: targets from a teacher's cross-modal
    similarities.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from clapcur.sequences import list_of

HardForm = Literal["diagonal", "identical"]
SoftForm = Literal["paper", "row", "softmax", "cross_modal"]
ALL = slice(None)


def contrastive_loss(logits_NN: Tensor) -> Tensor:
    """Return the symmetric cross-entropy with the diagonal as the right answer, in nats.

    Parameters
    ----------
    logits_NN : Tensor, shape (N, N)
        Similarity times exp(logit_scale); rows audio, columns text.

    Returns
    -------
    Tensor, shape ()
        Mean of the audio-to-text and the text-to-audio cross-entropy, each a mean over N.

    Raises
    ------
    ValueError
        The logits are not a square matrix of at least one pair.

    Notes
    -----
    Eq. (1) of [1]_ is printed without its minus sign and as a sum over the batch; this is the mean that its code and
    CLIP [2]_ compute, so that the learning rate does not depend on the batch size.
    """
    logits_NN = _at_least_float32(_square(logits_NN, "logits"))
    diagonal_N = torch.arange(len(logits_NN), device=logits_NN.device)
    audio_to_text = F.cross_entropy(logits_NN, diagonal_N)
    text_to_audio = F.cross_entropy(logits_NN.T, diagonal_N)
    return (audio_to_text + text_to_audio) / 2  # Eq. (1)


def soft_contrastive_loss(logits_NN: Tensor, audio_to_text_NN: Tensor, text_to_audio_NN: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of the student's rows and columns from their targets, in nats.

    Parameters
    ----------
    logits_NN : Tensor, shape (N, N)
        Student similarity times exp(logit_scale); rows audio, columns text.
    audio_to_text_NN : Tensor, shape (N, N)
        Target of each clip over the captions: non-negative; its rows need not sum to 1.
    text_to_audio_NN : Tensor, shape (N, N)
        Target of each *caption* over the clips: row j belongs to column j of the logits.

    Returns
    -------
    Tensor, shape ()
        Mean of both directions, each summed over a row and averaged over N. A target of zero adds nothing. The minimum
        for a row whose target sums to s is s log s: 0 for a distribution.

    Raises
    ------
    ValueError
        Shapes differ, or a target is negative or NaN: the loss would be NaN, but the gradient would stay finite, so
        that training would continue towards a wrong target.

    Notes
    -----
    Eq. (5) of [1]_. With identity targets this equals `contrastive_loss`, in value and in gradient. A target row
    that sums to s scales that row's gradient by s: see `target_statistics`.
    """
    _square(logits_NN, "logits")
    for target_NN, direction in ((audio_to_text_NN, "audio-to-text"), (text_to_audio_NN, "text-to-audio")):
        if target_NN.shape != logits_NN.shape:
            raise ValueError(
                f"{direction} target must have the logits' shape {_shape(logits_NN)}, got {_shape(target_NN)}"
            )
        if not (target_NN >= 0).all():
            raise ValueError(
                f"{direction} target must be non-negative, its minimum is "
                f"{target_NN.min().item():g}: the loss would be NaN and its gradient not; "
                "clamp it, as soft_targets does"
            )
    return contrastive_loss_of_rows(logits_NN, logits_NN.T, audio_to_text_NN, text_to_audio_NN)


def contrastive_loss_of_rows(
    audio_logits_BN: Tensor, text_logits_BN: Tensor, audio_to_text_BN: Tensor, text_to_audio_BN: Tensor
) -> Tensor:
    """Return the contribution of B of the N pairs to `soft_contrastive_loss`, in nats; all contributions sum to it.

    Processes that share a batch compute B rows each, in both directions, and no (N, N) matrix. Values are not
    checked, because that would make the host wait for the device.

    Parameters
    ----------
    audio_logits_BN, text_logits_BN : Tensor, shape (B, N)
        B clips against all captions, and the captions of the same pairs against all clips.
    audio_to_text_BN, text_to_audio_BN : Tensor, shape (B, N)
        The same rows of the targets, non-negative.

    Returns
    -------
    Tensor, shape ()
        Mean of both directions, each summed over its rows and divided by N.
    """
    audio_to_text = _divergence(audio_logits_BN, audio_to_text_BN)
    text_to_audio = _divergence(text_logits_BN, text_to_audio_BN)
    return (audio_to_text + text_to_audio) / 2  # Eq. (5)


def hard_target(
    caption_ids: Iterable[Hashable], clip_ids: Iterable[Hashable], *, form: HardForm = "diagonal",
    device: torch.device | str = "cpu",
) -> Tensor:  # fmt: skip
    """Return the hard target of a batch of pairs, the same in both directions.

    Parameters
    ----------
    caption_ids, clip_ids : sequence, length N
        Caption and clip of each pair.
    form : {"diagonal", "identical"}
        ``diagonal``: the identity, as in [1]_. ``identical``: see `identical_target`.
    device : torch.device or str
        Device of the target.

    Returns
    -------
    Tensor, shape (N, N), float32
        Rows sum to 1.

    Raises
    ------
    ValueError
        The lengths differ, or the form is unknown.
    """
    caption_ids, clip_ids = list_of("caption_ids", caption_ids), list_of("clip_ids", clip_ids)
    if len(caption_ids) != len(clip_ids):
        raise ValueError(f"expected one caption per clip, got {len(caption_ids)} captions and {len(clip_ids)} clips")
    if form == "diagonal":
        return torch.eye(len(caption_ids), device=device)
    if form == "identical":
        return identical_target(_codes(caption_ids).to(device), _codes(clip_ids).to(device))
    raise ValueError(f"hard target must be one of {get_args(HardForm)}, got {form!r}")


def identical_target(caption_codes_N: Tensor, clip_codes_N: Tensor) -> Tensor:
    """Return the target in which pairs with the same caption, or the same clip, share the mass.

    With few distinct captions, the same caption occurs several times in a batch. With the diagonal as the target, a
    clip's own caption in another row would be a negative, and the two copies would repel each other.

    Parameters
    ----------
    caption_codes_N, clip_codes_N : Tensor, shape (N,), integer
        Equal codes are equal captions, or clips.

    Returns
    -------
    Tensor, shape (N, N), float32
        Row i is uniform over the pairs that share a caption or a clip with pair i. Without repeats: the identity. The
        unnormalised matrix is symmetric, so the same target serves both directions.

    Notes
    -----
    Ours; [1]_ uses the identity. Sharing is not transitive: if i and j have the same clip, and j and k the same
    caption, that implies nothing about the clip of i and the caption of k.
    """
    same_caption_NN = caption_codes_N[:, None] == caption_codes_N[None, :]
    same_clip_NN = clip_codes_N[:, None] == clip_codes_N[None, :]
    shared_NN = (same_caption_NN | same_clip_NN).float()
    return shared_NN / shared_NN.sum(dim=1, keepdim=True)


@torch.no_grad()
def soft_targets(
    form: SoftForm,
    audio_ND: Tensor,
    text_ND: Tensor,
    *,
    beta: float,
    temperature: float | None = None,
    hard: Tensor | None = None,
    rows: slice = ALL,
) -> tuple[Tensor, Tensor]:
    """Mix the hard target with the teacher's similarities: (1 - beta) * hard + beta * soft.

    Parameters
    ----------
    form : {"paper", "row", "softmax", "cross_modal"}
        What ``soft`` is; see the notes.
    audio_ND, text_ND : Tensor, shape (N, D)
        The teacher's embeddings of the batch's clips, as cropped for the student, and captions.
    beta : float in [0, 1]
        Weight of the soft target; 0 is the hard target.
    temperature : float > 0, in units of cosine
        For the forms ``softmax`` and ``cross_modal``; the other two do not use it.
    hard : Tensor, shape (N, N), optional
        Used in both directions; by default the identity.
    rows : slice
        The B pairs whose rows are returned; all by default.

    Returns
    -------
    audio_to_text_BN, text_to_audio_BN : Tensor, shape (B, N)
        Non-negative and without gradient. Rows of the first are clips, of the second captions.

    Raises
    ------
    ValueError
        Shapes differ, the form is unknown, beta is out of range, or a temperature is missing or not
        positive.

    Notes
    -----
    With A = audio-audio, T = text-text and C = audio-text cosines of the teacher, ``soft`` is

    ===========  ======================  ======================  =========
    form         audio to text           text to audio           rows
    ===========  ======================  ======================  =========
    paper        max(A, 0)               max(T, 0)               sum freely
    row          max(A, 0) / row sum     max(T, 0) / row sum     sum to 1
    softmax      softmax(A / tau)        softmax(T / tau)        sum to 1
    cross_modal  softmax(C / tau)        softmax(C.T / tau)      sum to 1
    ===========  ======================  ======================  =========

    ``paper`` is Eqs. (3)-(4) of [1]_ with one departure: negative cosines are clamped at 0. With
    the torch 1.10 that its code pins, a negative target adds nothing to the loss, which the clamp
    reproduces; since torch 1.13 it makes the loss NaN. The rows of ``paper`` are not distributions:
    with a mean off-diagonal cosine of 0.3 and beta 0.3 they sum to 6.7 in a batch of 64 and to 47
    in one of 512, and the diagonal keeps 15 % and 2 % of them. For a given beta, the softening
    therefore grows with the batch size, and so does the gradient. ``row`` and ``softmax`` (both ours)
    remove the second effect and reduce the first. ``cross_modal`` follows [3]_: it is the only one of
    the four in which the teacher can rate a clip's own caption as poor.
    """
    if form not in get_args(SoftForm):
        raise ValueError(f"soft target must be one of {get_args(SoftForm)}, got {form!r}")
    if audio_ND.ndim != 2 or audio_ND.shape != text_ND.shape:
        raise ValueError(
            f"expected one audio and one text row per pair, got shapes {_shape(audio_ND)} and {_shape(text_ND)}"
        )
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], got {beta:g}: the targets would be negative")
    with torch.autocast(audio_ND.device.type, enabled=False):
        # normalise again: the norms of rows from half-precision towers are off by up to 1e-3
        audio_ND = F.normalize(_at_least_float32(audio_ND), dim=1)
        text_ND = F.normalize(_at_least_float32(text_ND), dim=1)
        if form == "cross_modal":
            audio_to_text_BN = audio_ND[rows] @ text_ND.T
            text_to_audio_BN = audio_to_text_BN.T if rows == ALL else text_ND[rows] @ audio_ND.T
        else:
            audio_to_text_BN = audio_ND[rows] @ audio_ND.T  # Eq. (3)
            text_to_audio_BN = text_ND[rows] @ text_ND.T  # Eq. (4)
    num_pairs = len(audio_ND)
    if hard is None:
        hard = torch.eye(num_pairs, device=audio_ND.device)
    elif hard.shape != (num_pairs, num_pairs):
        raise ValueError(f"hard target must have the shape {(num_pairs, num_pairs)}, got {_shape(hard)}")
    hard_BN = hard[rows].to(audio_to_text_BN)  # device and dtype
    return (
        (1 - beta) * hard_BN + beta * _soften(form, audio_to_text_BN, temperature),
        (1 - beta) * hard_BN + beta * _soften(form, text_to_audio_BN, temperature),
    )


def target_statistics(target_BN: Tensor, rows: slice = ALL) -> dict[str, Tensor]:
    """Return how far a target is from a distribution on the right answer.

    Parameters
    ----------
    target_BN : Tensor, shape (B, N)
        One direction of a target, non-negative, without a row of zeros.
    rows : slice
        Which B of the N pairs these are; all by default.

    Returns
    -------
    dict of Tensor, shape ()
        ``row_sum``: mean sum of a row, the factor by which the target scales the gradient (1 for a
        distribution); ``diagonal_share``: mean share of a row's mass that its own pair keeps, in
        [0, 1].
    """
    if rows == ALL:
        _square(target_BN, "target")
    target_BN = _at_least_float32(target_BN)
    row_sum_B = target_BN.sum(dim=1)
    share_B = target_BN.diagonal(rows.start or 0) / row_sum_B
    return {"row_sum": row_sum_B.mean(), "diagonal_share": share_B.mean()}


def _soften(form: SoftForm, similarity_BN: Tensor, temperature: float | None) -> Tensor:
    if form == "paper":
        return similarity_BN.clamp(min=0)
    if form == "row":
        clamped_BN = similarity_BN.clamp(min=0)
        return clamped_BN / clamped_BN.sum(dim=1, keepdim=True)  # the sum is at least the diagonal's 1
    if temperature is None or not temperature > 0:
        raise ValueError(f"{form} targets need a temperature above 0, got {temperature}")
    return torch.softmax(similarity_BN / temperature, dim=1)


def _divergence(logits_BN: Tensor, target_BN: Tensor) -> Tensor:
    log_probability_BN = F.log_softmax(_at_least_float32(logits_BN), dim=1)
    # a logit of -inf excludes its pair; 0 * inf would be NaN
    log_probability_BN = log_probability_BN.masked_fill(torch.isneginf(logits_BN) & (target_BN == 0), 0.0)
    return F.kl_div(log_probability_BN, target_BN.to(log_probability_BN), reduction="sum") / logits_BN.shape[1]


def _codes(ids: Sequence[Hashable]) -> Tensor:
    first_seen: dict[Hashable, int] = {}
    return torch.tensor([first_seen.setdefault(name, len(first_seen)) for name in ids], dtype=torch.int64)


def _square(matrix_NN: Tensor, name: str) -> Tensor:
    if matrix_NN.ndim != 2 or matrix_NN.shape[0] != matrix_NN.shape[1] or not len(matrix_NN):
        raise ValueError(f"{name} must be a square matrix over the pairs of a batch, got shape {_shape(matrix_NN)}")
    return matrix_NN


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _shape(values: Tensor) -> tuple[int, ...]:
    return tuple(values.shape)
