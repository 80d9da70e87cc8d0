"""Pseudo-labels: the most likely class of an unlabelled clip, from several kinds of evidence.

A student that learns only the pairs of which its teacher is confident reproduces its teacher. Evidence that the teacher
did not use corrects it where it is uncertain: the tags of a model that was trained on other data, and the other clips
of the same recording. Independent evidence is multiplied (a product of experts, Hinton 2002).

Shapes: N clips, K classes, T tags.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

TAG_TEMPERATURE = 0.05  # for the cosines of tag and class names; ours
LEAST_EVIDENCE = 1e-3  # evidence for a class without any detected tag; ours


def class_posterior(
    similarity_NK: NDArray[np.floating], logit_scale: float, evidence_NK: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Return the probability of each class, shape (N, K).

    Parameters
    ----------
    similarity_NK : NDArray, shape (N, K)
        Cosines of clips and class prompts, by the teacher.
    logit_scale : float
        The factor by which the teacher multiplies cosines.
    evidence_NK : NDArray, shape (N, K), optional
        Non-negative evidence, such as from `tag_evidence`; its scale per clip does not matter.
    """
    from scipy.special import log_softmax, softmax

    logits_NK = log_softmax(logit_scale * np.asarray(similarity_NK, np.float64), axis=1)
    if evidence_NK is not None:
        logits_NK = logits_NK + np.log(np.asarray(evidence_NK, np.float64) + LEAST_EVIDENCE)
    return np.asarray(softmax(logits_NK, axis=1))


def tag_evidence(
    probability_NT: "csr_array", mean_T: NDArray[np.floating], similarity_TK: NDArray[np.floating],
    temperature: float = TAG_TEMPERATURE,
) -> NDArray[np.float64]:  # fmt: skip
    """Return the evidence of a tagger for each class, non-negative, shape (N, K).

    A tagger's probabilities are not comparable between tags, so each is divided by its mean over the pool. The evidence
    for a class comes from the tags whose names are near its own.

    Parameters
    ----------
    probability_NT : csr_array, shape (N, T)
        Most probabilities are 0.
    mean_T : NDArray, shape (T,)
        Mean probability of each tag over the pool.
    similarity_TK : NDArray, shape (T, K)
        Cosines of the text embeddings of tag and class names.
    temperature : float
        Temperature of the softmax over tags; a lower value uses only the nearest tag.
    """
    from scipy.special import softmax

    weight_TK = softmax(np.asarray(similarity_TK, np.float64) / temperature, axis=0)
    weight_TK /= (np.asarray(mean_T, np.float64) + LEAST_EVIDENCE)[:, None]
    return np.asarray(probability_NT @ weight_TK)


def mean_of_groups(rows_NK: NDArray[np.float64], groups_N: NDArray[np.object_]) -> NDArray[np.float64]:
    """Replace each row by the mean over the rows of its group, shape (N, K); rows of the group "" are kept.

    Parameters
    ----------
    rows_NK : NDArray, shape (N, K)
    groups_N : NDArray, shape (N,)
        Such as the recording of each clip; "" if unknown.
    """
    names, code_N = np.unique(groups_N.astype(str), return_inverse=True)
    sums_GK = np.zeros((len(names), rows_NK.shape[1]))
    np.add.at(sums_GK, code_N, rows_NK)
    means_NK = sums_GK[code_N] / np.bincount(code_N)[code_N][:, None]
    return np.where((groups_N.astype(str) == "")[:, None], rows_NK, means_NK)
