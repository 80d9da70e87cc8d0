"""Progress of long work: a bar at a terminal, a log line every few seconds elsewhere and in log files.

A line says what is done, how far, how fast, and how long it still takes, for example
``train ads+sl seed 0: 400 of 1,250 steps (32 %), 3.1 steps/s, 4 min 34 s left, loss 1.32``.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

LOG_EVERY_S = 15.0
LOGGER = "clapcur.progress"

log = logging.getLogger(LOGGER)
_task: ContextVar[str] = ContextVar("task", default="")
_is_shown = True
_bars: "list[Progress]" = []  # a terminal can show one at a time
_lock = threading.Lock()


class Advance(Protocol):
    """Report that `amount` more units are done; `note` is a short text shown after the bar."""

    def __call__(self, amount: int = 1, note: str = "") -> None: ...  # noqa: D102


def show(is_shown: bool) -> None:
    """Show progress on stderr, or only in a log file."""
    global _is_shown
    _is_shown = is_shown


def has_bar() -> bool:
    """Return whether progress is shown as a bar, so that its log lines need not be shown too."""
    return _is_shown and sys.stderr.isatty()


@contextmanager
def task(name: str) -> Iterator[None]:
    """Name the artifact whose progress is shown inside the block, such as ``train ads+sl seed 0``."""
    token = _task.set(name)
    try:
        yield
    finally:
        _task.reset(token)


@contextmanager
def progress(description: str, total: int | None, unit: str = "it", done: int = 0) -> Iterator[Advance]:
    """Show the progress of one piece of work.

    Parameters
    ----------
    description : str
        What is being done, such as ``probe``. Inside a `task` its name is shown too.
    total : int or None
        Total number of units; None if unknown.
    unit : str
        What is counted: clips, steps, tiles.
    done : int
        Units that an earlier, interrupted run has already finished.
    """
    name = _task.get()
    if name:
        description = name if name.startswith(description.split()[0]) else f"{name}: {description}"
    with ExitStack() as stack:
        bar = stack.enter_context(_bar(description, total, unit, done)) if has_bar() else None
        now, started = done, time.monotonic()
        said, last_note = started, ""

        def advance(amount: int = 1, note: str = "") -> None:
            nonlocal now, said, last_note
            now, last_note = now + amount, note or last_note
            if bar is not None:
                bar(amount, note)
            if time.monotonic() - said >= LOG_EVERY_S:
                said = time.monotonic()
                _say(line(description, total, unit, now, now - done, said - started, last_note))

        yield advance


def line(description: str, total: int | None, unit: str, now: int, new: int, seconds: float, note: str = "") -> str:
    """Return how far some work is as a line for a log.

    Parameters
    ----------
    description : str
    total : int or None
        Units in all; None if unknown.
    unit : str
        What is counted.
    now, new : int
        Units that are done, and those of them that this run has done.
    seconds : float
        Time that this run has taken.
    note : str
        Further text, such as the loss.
    """
    rate = new / seconds if seconds > 0 else 0.0
    said = [f"{now:,} {unit}" if total is None else f"{now:,} of {total:,} {unit} ({100 * now / max(total, 1):.0f} %)"]
    if rate > 0:
        said.append(f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s per {unit.removesuffix('s')}")
        if total is not None:
            said.append(f"{duration((total - now) / rate)} left")
    return f"{description}: {', '.join(said + [note] * bool(note))}"


def duration(seconds: float) -> str:
    """Return a time in its two largest units: ``4 min 34 s``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds))
    for length, unit, below, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // below} {small}"
    return f"{whole} s"


def _say(text: str) -> None:
    if log.hasHandlers():
        log.info(text)
    elif _is_shown and not has_bar():  # a library call without logging, or a worker process
        print(text, file=sys.stderr, flush=True)


@contextmanager
def _bar(description: str, total: int | None, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with _lock:
        if not _bars:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"), TimeRemainingColumn(), TextColumn("left"),
                TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            _bars.append(Progress(*columns, console=Console(stderr=True), transient=True))
            _bars[0].start()
        bar = _bars[0]
        row = bar.add_task(escape(description), total=total, completed=done, unit=unit, note="")

    shown = ""

    def advance(amount: int = 1, note: str = "") -> None:
        nonlocal shown
        shown = escape(note) if note else shown
        bar.update(row, advance=amount, note=shown)

    try:
        yield advance
    finally:
        with _lock:
            bar.remove_task(row)
            if not bar.tasks:
                bar.stop()
                _bars.clear()
