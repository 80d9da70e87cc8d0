"""Common parts of every search over two tables: loading rows to a device, checks, and the exact cosine."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NORM_TOLERANCE = 1e-3  # the norms of rows stored in float16 are off by up to 5e-4
SCORED_AT_ONCE = {"cpu": 2**17, "cuda": 2**27}  # numbers; on a CPU they fit in the cache, which is five times as fast

Rows = Tensor | NDArray[np.floating]


def exact_cosine(
    audio_ND: Tensor, audio_P: Tensor, text_MD: Tensor, text_P: Tensor, offset_P: Tensor | None = None
) -> Tensor:
    """Score single pairs: float64 sums, minus an optional float64 offset, rounded to float32.

    Parameters
    ----------
    audio_ND : Tensor, shape (N, D)
        Unit embeddings of clips.
    audio_P : Tensor, shape (P,), int64
        The clip of each pair.
    text_MD : Tensor, shape (M, D)
        Unit embeddings of captions.
    text_P : Tensor, shape (P,), int64
        The caption of each pair.
    offset_P : Tensor, shape (P,), float64, optional
        Subtracted from the similarity of each pair.
    """
    similarity_P = audio_ND.new_empty(len(audio_P))
    at_once = SCORED_AT_ONCE.get(audio_ND.device.type, 2**22) // max(1, audio_ND.shape[1])
    for part in slices(len(audio_P), max(1, at_once)):
        audio_PD = audio_ND[audio_P[part]].double()
        cosine_P = audio_PD.mul_(text_MD[text_P[part]]).sum(dim=1)
        similarity_P[part] = (cosine_P if offset_P is None else cosine_P - offset_P[part]).float()
    return similarity_P


def load_rows(rows_ND: Rows, rows: slice, device: torch.device | str | None) -> Tensor:
    """Return some rows of a table as float32 on a device.

    Parameters
    ----------
    rows_ND : array or embeddings, shape (N, D)
    rows : slice
    device : torch device or str, optional
        Default: the CPU.
    """
    if isinstance(rows_ND, Tensor):
        return rows_ND.detach()[rows].to(device=device or "cpu", dtype=torch.float32)
    part = np.ascontiguousarray(rows_ND[rows], dtype=np.float32)
    return torch.from_numpy(part if part.flags.writeable else part.copy()).to(device or "cpu")


def slices(num_rows: int, size: int) -> list[slice]:
    """Cut a range into consecutive slices of `size`; the last may be shorter."""
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def as_rows(rows_ND: Any) -> Rows:
    """Return an array or a tensor unchanged, and anything else (lists, a DataFrame) as an array."""
    if isinstance(rows_ND, (Tensor, np.ndarray)):
        return rows_ND
    return np.asarray(rows_ND)


def check_rows(rows_ND: Any, name: str) -> Rows:
    """Return the rows as an array or a tensor; raise ValueError unless they are a table of unit vectors."""
    rows_ND = as_rows(rows_ND)
    if rows_ND.ndim != 2:
        raise ValueError(f"{name} rows must have the shape (number, D), got {tuple(rows_ND.shape)}")
    device = rows_ND.device if isinstance(rows_ND, Tensor) else None
    for rows in slices(len(rows_ND), 65536):
        norms = load_rows(rows_ND, rows, device).norm(dim=1).cpu().numpy()
        if not np.all(np.abs(norms - 1) <= NORM_TOLERANCE):
            wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))
            raise ValueError(
                f"{name} rows must be unit vectors, row {rows.start + wrong[0]} has norm "
                f"{norms[wrong[0]]:.4g}; features instead of embeddings? Their products are not cosines, so "
                "thresholds would be wrong; divide each row by its norm"
            )
    return rows_ND


def check_dims(audio_ND: Rows, text_MD: Rows) -> None:
    """Raise ValueError if the rows of the two tables differ in length."""
    if len(audio_ND) and len(text_MD) and audio_ND.shape[1] != text_MD.shape[1]:
        raise ValueError(
            f"both sides must come from one model, got {audio_ND.shape[1]} and {text_MD.shape[1]} dimensions"
        )


def check_cosine(threshold: float) -> None:
    """Raise ValueError if a threshold cannot be a cosine."""
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be a cosine in [-1, 1], got {threshold:g}; a percentage?")


def check_positive(**values: int | None) -> None:
    """Raise ValueError if a number is below 1."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
