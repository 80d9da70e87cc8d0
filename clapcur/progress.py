"""Progress of long work on stderr: a bar at a terminal, a line every few seconds in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LOG_EVERY_S = 15.0


class Advance(Protocol):
    """Report that `amount` more units are done; `note` is a short text shown after the bar."""

    def __call__(self, amount: int = 1, note: str = "") -> None: ...  # noqa: D102


@contextmanager
def progress(description: str, total: int | None, unit: str = "it", done: int = 0) -> Iterator[Advance]:
    """Show the progress of one piece of work.

    Parameters
    ----------
    description : str
        What is being done, such as ``embed pool``.
    total : int or None
        Total number of units; None if unknown.
    unit : str
        What is counted: clips, steps, tiles.
    done : int
        Units that an earlier, interrupted run has already finished.
    """
    if sys.stderr.isatty():
        yield from _bar(description, total, unit, done)
    else:
        yield from _lines(description, total, unit, done)


def _bar(description: str, total: int | None, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")

        def advance(amount: int = 1, note: str = "") -> None:
            bar.update(task, advance=amount, note=note or bar.tasks[0].fields["note"])

        yield advance


def _lines(description: str, total: int | None, unit: str, done: int) -> Iterator[Advance]:
    state = {"done": done, "said": time.monotonic()}

    def advance(amount: int = 1, note: str = "") -> None:
        state["done"] += amount
        if time.monotonic() - state["said"] >= LOG_EVERY_S:
            state["said"] = time.monotonic()
            of = "" if total is None else f" of {total:g}"
            print(f"{description}: {state['done']:g}{of} {unit} {note}".rstrip(), file=sys.stderr, flush=True)

    yield advance
