"""Hubs: captions (and clips) that are near almost everything, and two corrections.

In a high-dimensional space some rows are among the nearest neighbours of very many others [1]_. A hub fills an
Improvement-Set with uninformative pairs: every clip fits "a sound is heard". Both corrections subtract an offset,
measured on a reference sample of the pool, from the cosine of clip x and caption y:

- ``csls`` [2]_: half the mean cosine of x to its k nearest captions, and half that of y to its k nearest clips.
- ``inverted_softmax`` [3]_: tau log mean exp(cosine / tau) of y to the clips of the sample.

Offsets are centred, so that corrected similarities keep the average of the cosines and thresholds keep their scale.

References
----------
.. [1] Radovanovic et al. 2010, "Hubs in Space", JMLR 11.
.. [2] Conneau et al. 2018, "Word Translation without Parallel Data", arXiv:1710.04087, Eq. (1)-(2); here halved.
.. [3] Smith et al. 2017, "Offline bilingual word vectors, orthogonal transformations and the inverted softmax",
    arXiv:1702.03859, Eq. (9); here its logarithm, in units of a cosine.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from clapcur.config import frozen
from clapcur.methods.similarity import similar_pairs, top_k

Device = torch.device | str | None  # for the matrix products; None: the CPU


@frozen
class Hubness:
    """How similarities are corrected for hubs."""

    method: Literal["csls", "inverted_softmax"] = "csls"
    """The correction; see `clapcur.methods.hubness`."""
    neighbours: int = 10
    """CSLS: the number of neighbours k, as published."""
    temperature: float = 0.05
    """Inverted softmax: the temperature tau, in units of a cosine."""
    reference_clips: int = 5000
    """Number of random pool clips on which hubs are measured."""

    def __post_init__(self) -> None:
        """Reject values without a meaning."""
        if self.neighbours < 1 or self.reference_clips < 1:
            raise ValueError(
                f"neighbours and reference_clips must be at least 1, got {self.neighbours} and {self.reference_clips}"
            )
        if not self.temperature > 0:
            raise ValueError(f"the temperature must be positive, got {self.temperature:g}")


@dataclass(frozen=True)
class Correction:
    """The offsets that are subtracted from the cosines of these captions with any clip.

    Attributes
    ----------
    config : Hubness
    text_MD : array, shape (M, D)
        The captions.
    text_offset_M : array, shape (M,), float32
    centre : float
        Mean offset of the clips of the sample.
    """

    config: Hubness
    text_MD: NDArray[np.float32]
    text_offset_M: NDArray[np.float32]
    centre: float = 0.0
    device: Device = None

    @classmethod
    def measure(
        cls, config: Hubness, audio_SD: NDArray[np.float32], text_MD: NDArray[np.float32], device: Device = None
    ) -> "Correction":
        """Measure the offsets of captions over a sample of clips.

        Parameters
        ----------
        config : Hubness
        audio_SD : array, shape (S, D), float32
            Unit embeddings of the sample of clips.
        text_MD : array, shape (M, D), float32
            Unit embeddings of the captions.
        device : torch device, optional
            Where similarities are computed.
        """
        if config.method == "csls":
            text_offset_M = _mean_of_nearest(text_MD, audio_SD, config.neighbours, device) / np.float32(2)
            centre = float(_mean_of_nearest(audio_SD, text_MD, config.neighbours, device).mean() / 2)
        else:
            text_offset_M, centre = _soft_maximum(text_MD, audio_SD, config.temperature, device), 0.0
        return cls(
            config, text_MD, text_offset_M - text_offset_M.mean(dtype=np.float64).astype(np.float32), centre, device
        )

    def offsets(self, audio_ND: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the offsets of these clips and of the captions, shapes (N,) and (M,), for `similar_pairs`."""
        if self.config.method != "csls":
            return np.zeros(len(audio_ND), np.float32), self.text_offset_M
        audio_offset_N = _mean_of_nearest(audio_ND, self.text_MD, self.config.neighbours, self.device) / np.float32(2)
        return audio_offset_N - np.float32(self.centre), self.text_offset_M


def hub_statistics(
    audio_SD: NDArray[np.float32], text_MD: NDArray[np.float32], correction: Correction, k: int = 10
) -> dict[str, dict[str, float]]:
    """Measure how unevenly captions occur among the k nearest of each clip, before and after a correction.

    Parameters
    ----------
    audio_SD : array, shape (S, D), float32
        Unit embeddings of a sample of clips.
    text_MD : array, shape (M, D), float32
        Unit embeddings of the captions.
    correction : Correction
    k : int
        Number of captions per clip that count as near.

    Returns
    -------
    dict
        ``before`` and ``after``: ``skewness`` of the number of clips that a caption is near to (0 without hubs; the
        measure of [1]_), ``never`` (the share of captions that are near no clip) and ``largest`` (the share of clips
        that the most frequent caption is near).
    """
    k = min(k, len(text_MD))
    found = {}
    for when, offsets in (("before", None), ("after", correction.offsets(audio_SD))):
        blocks = similar_pairs(audio_SD, text_MD, -1.0, cap_per_clip=k, offsets=offsets, device=correction.device)
        texts = np.concatenate([np.empty(0, np.int64), *(block.text_index for block in blocks)])
        times_M = np.bincount(texts, minlength=len(text_MD))
        found[when] = {
            "skewness": float((((times_M - times_M.mean()) / (times_M.std() or 1.0)) ** 3).mean()),
            "never": float((times_M == 0).mean()),
            "largest": float(times_M.max() / len(audio_SD)),
        }
    return found


def _mean_of_nearest(
    rows_ND: NDArray[np.float32], others_MD: NDArray[np.float32], k: int, device: Device
) -> NDArray[np.float32]:
    if not len(rows_ND):
        return np.zeros(0, np.float32)
    similarity_NK, _ = top_k(rows_ND, others_MD, min(k, len(others_MD)), device=device)
    return similarity_NK.mean(axis=1, dtype=np.float64).astype(np.float32)


def _soft_maximum(
    rows_ND: NDArray[np.float32], others_MD: NDArray[np.float32], temperature: float, device: Device
) -> NDArray[np.float32]:
    others = torch.from_numpy(np.ascontiguousarray(others_MD)).to(device or "cpu").double()
    found = [torch.zeros(0, dtype=torch.float64)]
    for part in torch.from_numpy(np.ascontiguousarray(rows_ND)).split(1024):
        total = torch.logsumexp(part.to(others) @ others.T / temperature, dim=1)
        found.append(temperature * (total.cpu() - np.log(len(others))))
    return torch.cat(found).float().numpy()
