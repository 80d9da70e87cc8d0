"""The figures of cards, scores and reports: small PNG files, drawn without a display.

matplotlib is imported when something is drawn: most commands and flow runs draw nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, ACCENT, MUTED = "#222222", "#2a6f97", "#c9d6df"
NO_METADATA = {"Software": None}  # the same figure is the same bytes


def new_figure(width_in: float, height_in: float) -> "Figure":
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in))


def _save(figure: "Figure", path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata=NO_METADATA)


def similarity_figure(card: Mapping[str, Any], path: Path) -> None:
    """Draw how the similarities of all candidate pairs lie, and where the threshold cuts.

    Parameters
    ----------
    card : mapping
        With ``histogram`` (edges, counts), ``thresholds`` and ``counts`` of an Improvement-Set.
    path : Path
        The PNG to write.
    """
    edges, counts = np.array(card["histogram"]["edges"]), np.array(card["histogram"]["counts"])
    used = np.flatnonzero(counts)
    figure = new_figure(6, 3)
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True, color=MUTED)
    axes.stairs(np.where(edges[:-1] >= card["thresholds"]["audio"], counts, 0), edges, fill=True, color=ACCENT)
    axes.axvline(card["thresholds"]["audio"], color=INK, linewidth=1)
    axes.set_xlim(edges[used[0]], edges[used[-1] + 1])
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.8)
    axes.set_xlabel("similarity of clip and caption")
    histogram = card["histogram"]
    is_sample = histogram["clips"] < histogram["of_clips"]
    axes.set_ylabel(f"pairs of {histogram['clips']:,} clips" if is_sample else "pairs")
    kept = f"{card['counts']['pairs']:,} pairs at or above {card['thresholds']['audio']:.3f}"
    axes.set_title(f"{card['strategy'].upper()}: {kept}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def near_duplicate_figure(
    nearest_N: NDArray[np.float32], different_N: NDArray[np.float32] | None, threshold: float | None, path: Path
) -> None:
    """Draw how near clips come to evaluation clips, and how near clips come that are known to differ.

    Parameters
    ----------
    nearest_N : array, shape (N,)
        Similarity of each candidate to its nearest evaluation clip.
    different_N : array or None
        The same among clips of different recordings, where the threshold was found on them.
    threshold : float or None
        Similarity from which on a clip counts as the same sound.
    path : Path
        The PNG to write.
    """
    edges = np.geomspace(1e-6, 2, 64)
    figure = new_figure(6, 3)
    axes = figure.subplots()
    counts = np.histogram(np.clip(1 - nearest_N, 1e-6, 2), edges)[0]
    axes.stairs(counts, edges, fill=True, color=MUTED, label="to the nearest evaluation clip")
    if different_N is not None:
        counts = np.histogram(np.clip(1 - different_N, 1e-6, 2), edges)[0]
        axes.stairs(counts, edges, color=ACCENT, label="to the nearest clip of another recording")
    title = "near duplicates were not looked for"
    if threshold is not None:
        if threshold < 1:
            axes.axvline(1 - threshold, color=INK, linewidth=1)
        title = f"{int((nearest_N >= threshold).sum()):,} clips at or above {threshold:.4f}"
    axes.set_xscale("log")
    axes.set_xlim(edges[-1], edges[0])  # what is nearer stands further to the right, as in the other figures
    axes.set_ylim(bottom=0)
    axes.set_xlabel("1 - audio similarity")
    axes.set_ylabel("clips")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def class_coverage_figure(card: Mapping[str, Any], path: Path) -> None:
    """Draw the number of clips of every class in an Improvement-Set, empty classes included."""
    coverage = card["class_coverage"]
    names = list(coverage)[::-1]
    figure = new_figure(6, 0.6 + 0.22 * len(names))
    axes = figure.subplots()
    clips = [coverage[name]["clips"] for name in names]
    axes.barh(names, clips, color=[ACCENT if count else "#b00020" for count in clips], height=0.7)
    for place, count in enumerate(clips):
        axes.text(count, place, f" {count}", va="center", fontsize=7, color=INK if count else "#b00020")
    axes.set_xlabel("clips")
    axes.tick_params(labelsize=8)
    axes.margins(y=0.01)
    axes.set_title(f"{card['strategy'].upper()}: clips by class of their caption", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def confusion_figure(confusion: Sequence[Sequence[int]], class_names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix: rows are labels, columns predictions, colour the share of the row."""
    counts = np.array(confusion)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    size = 1.6 + 0.32 * len(class_names)
    figure = new_figure(size, size)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(class_names)), class_names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(class_names)), class_names, fontsize=8)
    if len(class_names) <= 25:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[row, column] > 0.5 else INK
                axes.text(column, row, str(count), ha="center", va="center", fontsize=6, color=colour)
    axes.set_xlabel("nearest class prompt")
    axes.set_ylabel("label")
    _save(figure, path)
