"""Pseudo-labels: which of the given classes an unlabelled clip most likely is, by several kinds of evidence.

A student that learns the pairs of which its teacher is sure learns its teacher back. Evidence that the teacher did not
use corrects it where it is unsure: the tags of a model that was trained on other data, and the other clips of the same
recording. Independent evidence multiplies (a product of experts, Hinton 2002).

Shapes: N clips, K classes, T tags.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

TAG_TEMPERATURE = 0.05  # of the cosines of tag and class names; ours
LEAST_EVIDENCE = 1e-3  # what a class has of which no tag was heard; ours


def class_posterior(
    similarity_NK: NDArray[np.floating], logit_scale: float, evidence_NK: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Return the probability of each class, shape (N, K).

    Parameters
    ----------
    similarity_NK : NDArray, shape (N, K)
        Cosines of clips and class prompts, by the teacher.
    logit_scale : float
        What the teacher multiplies cosines with.
    evidence_NK : NDArray, shape (N, K), optional
        At least 0, up to a factor of each clip, such as `tag_evidence`.
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
    """Return how much a tagger hears of each class, shape (N, K), at least 0.

    The probabilities of a tagger are not comparable between tags, so each counts relative to its mean over the pool. A
    class is heard in the tags whose names are near to its own.

    Parameters
    ----------
    probability_NT : csr_array, shape (N, T)
        Most probabilities are 0.
    mean_T : NDArray, shape (T,)
        Mean probability of each tag over the pool.
    similarity_TK : NDArray, shape (T, K)
        Cosines of the names of tags and classes, as texts.
    temperature : float
        Of the softmax over tags; lower listens to the nearest tag alone.
    """
    from scipy.special import softmax

    weight_TK = softmax(np.asarray(similarity_TK, np.float64) / temperature, axis=0)
    weight_TK /= (np.asarray(mean_T, np.float64) + LEAST_EVIDENCE)[:, None]
    return np.asarray(probability_NT @ weight_TK)


def mean_of_groups(rows_NK: NDArray[np.float64], groups_N: NDArray[np.object_]) -> NDArray[np.float64]:
    """Return each row as the mean over the rows of its group, shape (N, K); rows of the group "" stay alone.

    Parameters
    ----------
    rows_NK : NDArray, shape (N, K)
    groups_N : NDArray, shape (N,)
        Such as the recording of each clip; "" where it is not known.
    """
    names, code_N = np.unique(groups_N.astype(str), return_inverse=True)
    sums_GK = np.zeros((len(names), rows_NK.shape[1]))
    np.add.at(sums_GK, code_N, rows_NK)
    means_NK = sums_GK[code_N] / np.bincount(code_N)[code_N][:, None]
    return np.where((groups_N.astype(str) == "")[:, None], rows_NK, means_NK)
