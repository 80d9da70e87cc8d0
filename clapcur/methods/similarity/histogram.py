"""Counts of all pairs by similarity."""

import numpy as np
import torch
from numpy.typing import NDArray

from clapcur.methods.similarity.join import tile_on
from clapcur.methods.similarity.rows import Rows, check_dims, check_positive, check_rows, load_rows, slices
from clapcur.methods.similarity.screening import Screen


def similarity_histogram(
    audio_ND: Rows,
    text_MD: Rows,
    *,
    num_bins: int = 20_000,
    range: tuple[float, float] = (-1.0, 1.0),
    offsets: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    tile: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
) -> NDArray[np.int64]:
    """Count all N * M pairs by similarity.

    Parameters
    ----------
    audio_ND, text_MD : Rows, shapes (N, D) and (M, D)
        Unit rows.
    num_bins : int
        Equal bins; the default is 1e-4 wide.
    range : (float, float)
        Outer edges; values beyond them are counted in the outermost bins.
    offsets, tile, device
        As in `similar_pairs`.

    Returns
    -------
    array, shape (num_bins,), int64
        A bin includes its lower edge and excludes its upper one; the last bin includes both. Pairs within rounding
        (1e-6) of an edge may be counted on its other side: they are not scored again.
    """
    audio_ND = check_rows(audio_ND, "audio")
    text_MD = check_rows(text_MD, "text")
    check_dims(audio_ND, text_MD)
    text = load_rows(text_MD, slice(None), device)
    check_positive(num_bins=num_bins)
    num_clips, num_texts = tile_on(text.device, tile)
    counts = torch.zeros(num_bins, dtype=torch.int64, device=text.device)
    # float32: lower precisions have gaps wider than a bin
    offset_N, offset_M = (
        (None, None) if offsets is None else (torch.from_numpy(np.asarray(o)).to(text.device) for o in offsets)
    )
    screen = Screen(text, torch.float32, offset_M)
    for rows in slices(len(audio_ND), num_clips):
        own = None if offset_N is None else offset_N[rows]
        audio_RD, _ = screen.rows(load_rows(audio_ND, rows, device), own)
        for columns in slices(len(text), num_texts):
            place_RT = (screen.product(audio_RD, columns) - range[0]).mul_(num_bins / (range[1] - range[0]))
            bins_RT = place_RT.int().clamp_(0, num_bins - 1)
            counts += torch.bincount(bins_RT.flatten(), minlength=num_bins)
    return counts.cpu().numpy()


def threshold_for_count(counts: NDArray[np.int64], target: int, *, range: tuple[float, float] = (-1.0, 1.0)) -> float:
    """Return the highest threshold that at least a target number of pairs reach.

    Parameters
    ----------
    counts : array, shape (num_bins,), int64
        From `similarity_histogram`.
    target : int
        Number of pairs, at least 1.
    range : (float, float)
        The range of the histogram.

    Returns
    -------
    float
        The largest bin edge at or above which there are at least ``target`` pairs; the lowest edge if there are fewer.

    Raises
    ------
    ValueError
        The target is below 1.
    """
    check_positive(target=target)
    at_or_above = np.cumsum(np.asarray(counts)[::-1])[::-1]
    reached = np.flatnonzero(at_or_above >= target)
    edges = np.linspace(*range, len(counts) + 1, dtype=np.float32)
    return float(edges[reached[-1] if len(reached) else 0])
