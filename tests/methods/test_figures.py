"""Side pictures: bounded whatever they show, names as they stand, and never the loss of a result."""

import logging
import multiprocessing
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from clapcur.methods import plots
from clapcur.methods.plots import MAX_CONFUSED, class_coverage_figure, confusion_figure, label_text, most_confused
from clapcur.stages.report.html import accuracy_figure, as_markdown, per_class_figure
from clapcur.testing import card, report_line, report_table

SPAWN = multiprocessing.get_context("spawn")
MEMORY = 2**30  # bytes of addresses beside those that the libraries hold
ODD_NAMES = [
    "$", "$$", "cost $5 or $6", r"$\frac{1}$", r"$\undefined{x}$", r"a \$ b $ c", "_begins so", "line\nbreak\r\n", "\t",
    "", "nul\x00 and \x1b[31m", "emoji 🐶🎉", "עברית", "العربية", "\u202eoverride", "漢字", "x" * 5000, "\ud800",
    "%s {0} \\", "<b>&amp;|", "e\u0301",
]  # fmt: skip


def size_of(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def card_of(names, clips=lambda index: index):
    coverage = {name: {"pairs": clips(index), "clips": clips(index)} for index, name in enumerate(names)}
    return card(class_coverage=coverage)


def draw_all(folder, names):
    """Draw every figure that shows names."""
    rng = np.random.default_rng(1)
    confusion_figure(rng.integers(0, 9, (len(names), len(names))).tolist(), names, folder / "confusion.png")
    class_coverage_figure(card_of(names), folder / "class_coverage.png")
    accuracy_figure([report_line(name) for name in names], folder / "accuracy.png")
    per_class_figure(names[0], {name: tuple(rng.random(2)) for name in names}, folder / "per_class.png")
    return {path.name: size_of(path) for path in folder.glob("*.png")}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_never_read_as_tex_nor_stops_a_figure(tmp_path, name, caplog):
    """A class with two $ in its name cost the score of the whole evaluation."""
    assert len(draw_all(tmp_path, [name, "rain"])) == 4
    assert caplog.records == []


def test_a_name_with_dollars_is_drawn_as_it_stands(tmp_path):
    """What TeX makes of $x$ is an italic x: another name."""
    from matplotlib.text import Text

    drawn = {}
    for name in ("$x$", r"\$x\$"):
        seen, draw = [], Text.draw

        def note(self, renderer, draw=draw, seen=seen):
            seen.append((self.get_text(), self.get_parse_math()))
            draw(self, renderer)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Text, "draw", note)
            draw_all(tmp_path, [name, "rain"])
        drawn[name] = {math for text, math in seen if name in text}
    assert drawn == {"$x$": {False}, r"\$x\$": {False}}


def many(folder, pipe):
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    began = time.process_time()
    sizes = draw_all(folder, [f"class number {index} of a very long list of names" for index in range(1500)])
    pipe.send((sizes, time.process_time() - began))


def test_1500_classes_are_drawn_in_bounded_memory_and_pixels(tmp_path):
    """It took 21 GB and killed the process: never without a limit."""
    ours, theirs = SPAWN.Pipe(duplex=False)
    child = SPAWN.Process(target=many, args=(tmp_path, theirs))
    child.start()
    child.join(300)
    assert child.exitcode == 0
    sizes, _ = ours.recv()
    assert sorted(sizes) == ["accuracy.png", "class_coverage.png", "confusion.png", "per_class.png"]
    assert all(max(size) < 5000 for size in sizes.values()), sizes


def test_the_classes_that_are_confused_the_most_are_shown():
    """The first forty of an alphabet say nothing of where a model goes wrong."""
    counts = np.diag(np.full(100, 50))
    counts[70, 3], counts[12, 70] = 9, 4
    assert {3, 12, 70} <= set(most_confused(counts, 5).tolist())
    assert most_confused(counts, 5).tolist() == sorted(most_confused(counts, 5))
    assert most_confused(counts, 200).tolist() == list(range(100))


def test_a_figure_says_that_it_shows_some_classes_only(tmp_path, monkeypatch):
    """Forty classes that look like all of them hide the other thousand."""
    titles = []
    monkeypatch.setattr(
        plots,
        "_save",
        lambda figure, path: titles.append(figure.axes[0].get_title() + figure.axes[0].get_title("left")),
    )
    names = [f"class {index}" for index in range(100)]
    confusion_figure(np.ones((100, 100), int), names, tmp_path / "x.png")
    confusion_figure(np.ones((2, 2), int), names[:2], tmp_path / "x.png")
    class_coverage_figure(card_of(names, lambda index: index // 10), tmp_path / "x.png")
    assert titles[0] == f"the {MAX_CONFUSED} most confused classes, of 100"
    assert titles[1] == ""
    assert "the largest 60 of 100, 10 have none" in titles[2]


def test_a_figure_that_cannot_be_drawn_is_a_warning_and_leaves_no_file(tmp_path, monkeypatch, caplog):
    """A library that fails at a side picture took hours of scores with it."""

    def fail(figure, path):
        path.write_bytes(b"half a picture")
        raise MemoryError("cannot allocate")

    monkeypatch.setattr(plots, "_save", fail)
    with caplog.at_level(logging.WARNING, "clapcur"):
        confusion_figure([[1]], ["rain"], tmp_path / "confusion.png")
    assert [record.getMessage() for record in caplog.records] == [
        "the figure confusion.png was not drawn: MemoryError: cannot allocate"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("dog bark", "dog bark"), ("two\nlines", "two lines"), ("a\x00b", "a b"), ("x" * 60, "x" * 39 + "…"),
        ("🐶 dog", "\N{REPLACEMENT CHARACTER} dog"), ("Grüße, мир", "Grüße, мир"), ("$x$", "$x$"),
    ],
)  # fmt: skip
def test_a_label_is_one_line_that_the_font_can_draw(name, label):
    """A missing letter is a warning of matplotlib for each drawing, and a line break moves every other label."""
    assert label_text(name) == label


def test_a_markdown_table_keeps_its_columns_whatever_a_row_is_called():
    """A bar or a line break in a name moved all numbers one column to the right."""
    text = as_markdown(report_table([report_line("a|b\nc")]))
    assert "| a\\|b c | 50.0 |" in text
    assert all(line.startswith(("|", "- ")) or not line for line in text.splitlines())
