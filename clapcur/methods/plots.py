"""The figures of cards, scores and reports: small PNG files, drawn without a display.

matplotlib is imported when something is drawn: most commands and flow runs draw nothing.

Figures are supplementary. Their size is bounded: with too many classes, only the most informative are shown. Names are
drawn literally, never as TeX. A figure that cannot be drawn causes a warning, not the loss of the result that it shows.
"""

import functools
import logging
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import numpy as np
from numpy.typing import NDArray

from clapcur.data.improvement_set import Card

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clapcur.data.order_scores import TaskScore

INK, ACCENT, MUTED = "#222222", "#2a6f97", "#c9d6df"
NO_METADATA = {"Software": None}  # so that the same figure has the same bytes
MAX_CONFUSED = 40  # classes in a confusion matrix: more labels would be unreadable
MAX_BARS = 60  # classes in a figure with one line per class
MAX_LABEL = 40  # characters of a name
UNDRAWABLE = "\N{REPLACEMENT CHARACTER}"  # for characters that the font lacks, such as emoji

P = ParamSpec("P")
log = logging.getLogger("clapcur")


def side_picture(draw: Callable[P, None]) -> Callable[P, None]:
    """Decorate a function that draws to a file, its last argument: a failure logs a warning and leaves no file."""

    @functools.wraps(draw)
    def tried(*args: P.args, **kwargs: P.kwargs) -> None:
        path = kwargs.get("path", args[-1] if args else None)
        try:
            draw(*args, **kwargs)
        except Exception as error:  # fonts, libraries, memory: the result matters more than its figure
            assert isinstance(path, Path)
            path.unlink(missing_ok=True)
            log.warning(
                "the figure %s was not drawn: %s: %s", path.name, type(error).__name__, " ".join(f"{error}".split())
            )

    return tried


def label_text(name: str) -> str:
    """Return a name as a label: one line of drawable characters, truncated if it is too long."""
    plain = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in name)
    plain = " ".join("".join(c if _is_drawable(c) else UNDRAWABLE for c in plain).split())
    return plain if len(plain) <= MAX_LABEL else plain[: MAX_LABEL - 1] + "…"


def label_texts(names: Iterable[str]) -> list[str]:
    """Return names as labels."""
    return [label_text(name) for name in names]


@functools.cache
def _is_drawable(character: str) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties())).get_char_index(ord(character)) != 0


def new_figure(width_in: float, height_in: float) -> "Figure":
    """Return an empty figure with a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in))


def _save(figure: "Figure", path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata=NO_METADATA)


@side_picture
def similarity_figure(card: Card, path: Path) -> None:
    """Draw the histogram of the similarities of all candidate pairs, with the threshold.

    Parameters
    ----------
    card : Card
        Card of an Improvement-Set with a histogram.
    path : Path
        The PNG to write.
    """
    histogram, threshold = card.histogram, card.thresholds["audio"]
    assert histogram is not None
    edges, counts = np.array(histogram.edges), np.array(histogram.counts)
    used = np.flatnonzero(counts)
    figure = new_figure(6, 3)
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True, color=MUTED)
    axes.stairs(np.where(edges[:-1] >= threshold, counts, 0), edges, fill=True, color=ACCENT)
    axes.axvline(threshold, color=INK, linewidth=1)
    axes.set_xlim(edges[used[0]], edges[used[-1] + 1])
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.8)
    axes.set_xlabel("similarity of clip and caption")
    is_sample = histogram.clips < histogram.of_clips
    axes.set_ylabel(f"pairs of {histogram.clips:,} clips" if is_sample else "pairs")
    kept = f"{card.counts['pairs']:,} pairs at or above {threshold:.3f}"
    axes.set_title(f"{card.strategy.upper()}: {kept}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


@side_picture
def near_duplicate_figure(
    nearest_N: NDArray[np.float32], different_N: NDArray[np.float32] | None, threshold: float | None, path: Path
) -> None:
    """Draw the similarities of clips to evaluation clips, and those between clips that are known to differ.

    Parameters
    ----------
    nearest_N : array, shape (N,)
        Similarity of each candidate to its nearest evaluation clip.
    different_N : array or None
        The same among clips of different recordings, if the threshold was calibrated on them.
    threshold : float or None
        Similarity at or above which a clip counts as the same sound.
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
    title = "near duplicates were not checked"
    if threshold is not None:
        if threshold < 1:
            axes.axvline(1 - threshold, color=INK, linewidth=1)
        title = f"{int((nearest_N >= threshold).sum()):,} clips at or above {threshold:.4f}"
    axes.set_xscale("log")
    axes.set_xlim(edges[-1], edges[0])  # more similar clips are further to the right, as in the other figures
    axes.set_ylim(bottom=0)
    axes.set_xlabel("1 - audio similarity")
    axes.set_ylabel("clips")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


@side_picture
def class_coverage_figure(card: Card, path: Path) -> None:
    """Draw the number of clips of every class in an Improvement-Set, including empty classes.

    If there are too many classes, only those with the most clips are drawn.
    """
    coverage = card.class_coverage
    names = list(coverage)
    title = f"{card.strategy.upper()}: clips by class of their caption"
    if len(names) > MAX_BARS:
        num_empty = sum(not counts["clips"] for counts in coverage.values())
        title += f" (the largest {MAX_BARS} of {len(names):,}, {num_empty:,} have none)"
        names = sorted(names, key=lambda name: -coverage[name]["clips"])[:MAX_BARS]
    names = names[::-1]
    figure = new_figure(6, 0.6 + 0.22 * len(names))
    axes = figure.subplots()
    clips = [coverage[name]["clips"] for name in names]
    axes.set_yticks(range(len(names)), label_texts(names), parse_math=False)
    axes.barh(range(len(names)), clips, color=[ACCENT if count else "#b00020" for count in clips], height=0.7)
    for place, count in enumerate(clips):
        axes.text(count, place, f" {count}", va="center", fontsize=7, color=INK if count else "#b00020")
    axes.set_xlabel("clips")
    axes.tick_params(labelsize=8)
    axes.margins(y=0.01)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


@side_picture
def confusion_figure(
    confusion: Sequence[Sequence[int]] | NDArray[np.int64], class_names: Sequence[str], path: Path,
) -> None:  # fmt: skip
    """Draw a confusion matrix: rows are labels, columns are predictions, colour is the share of the row.

    If there are too many classes, only those with the most confusions are drawn.

    Parameters
    ----------
    confusion : array, shape (K, K), int64
        Clips by label and prediction.
    class_names : sequence of K str
    path : Path
        The PNG to write.
    """
    counts = np.asarray(confusion)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    shown = most_confused(counts, MAX_CONFUSED)
    counts, share = counts[np.ix_(shown, shown)], share[np.ix_(shown, shown)]
    names = label_texts(class_names[index] for index in shown)
    size = 1.6 + 0.32 * len(names)
    figure = new_figure(size, size)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    if len(names) <= 25:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[row, column] > 0.5 else INK
                axes.text(column, row, str(count), ha="center", va="center", fontsize=6, color=colour)
    axes.set_xlabel("nearest class prompt")
    axes.set_ylabel("label")
    if len(names) < len(class_names):
        axes.set_title(f"the {len(names)} most confused classes, of {len(class_names):,}", fontsize=10)
    _save(figure, path)


def most_confused(confusion: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return the indices, in order, of the up to `limit` classes with the most wrong clips in row and column."""
    right = np.diagonal(confusion)
    wrong = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * right
    return np.sort(np.argsort(-wrong, kind="stable")[:limit])


@side_picture
def order_figure(scores: Mapping[str, "TaskScore"], path: Path) -> None:
    """Draw how well a model recognises order: the score of each task with its interval, and a mark at chance.

    Parameters
    ----------
    scores : mapping of str to TaskScore
        By task.
    path : Path
        The PNG to write.
    """
    names = list(scores)[::-1]
    figure = new_figure(6, 0.8 + 0.28 * len(names))
    axes = figure.subplots()
    for place, name in enumerate(names):
        found = scores[name]
        axes.plot([100 * limit for limit in found.interval], [place, place], color=MUTED, linewidth=4)
        axes.plot(100 * found.score, place, "o", color=ACCENT)
        axes.plot(100 * found.chance, place, "|", color=INK, markersize=12)
    axes.set_yticks(range(len(names)), label_texts(names))
    axes.set_xlim(-2, 102)
    axes.set_xlabel("% correct; line: chance, bar: 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)
