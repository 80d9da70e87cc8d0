"""Shared by all commands: options, opening the home, and printing results."""

import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clapcur.cli import logs
from clapcur.errors import DataError
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home
from clapcur.store.readable import count_name

if TYPE_CHECKING:
    from rich.console import RenderableType

log = logging.getLogger("clapcur")
UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))  # of an age
PIPED_WIDTH = 200  # columns if stdout is not a terminal, so that nothing is cut

RootsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--root",
        help="Where clips named in a table may be: a folder, or a URL such as s3://bucket/pool/; repeatable. "
        "Default: any local file, and no URL.",
    ),
]
HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="Folder with the store, the catalog and MLflow's files; default: CLAPCUR_HOME, or ./.clapcur."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")]


def open_home(root: Path | None, must_exist: bool = False) -> Home:
    """Return the home, and set up this process to use it and to log to stderr and the log file.

    Parameters
    ----------
    root : Path, optional
        Value of ``--home``.
    must_exist : bool
        Whether to fail if the home does not exist. For commands that only read: with an empty home in the wrong folder
        they would report that nothing was found.
    """
    chosen = logs.chosen_home(root)
    if must_exist and not chosen.is_dir():
        raise DataError(f"no clapcur home found at {chosen.absolute()}; give --home or set CLAPCUR_HOME")
    home = Home.open(chosen)
    for name, value in home.environment().items():
        os.environ.setdefault(name, value)
    os.environ["CLAPCUR_HOME"] = str(home.root)
    logs.show_lines(logs.current().volume)
    logs.current().open(home.root)
    log.debug("home %s, catalog %s, MLflow %s", home.root, home.database_url, home.mlflow_uri)
    return home


@contextmanager
def working() -> Iterator[None]:
    """Redirect anything that libraries print to stderr, so that stdout has only the result."""
    with redirect_stdout(sys.stderr):
        yield


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    print(json.dumps(value, ensure_ascii=False))


def show(*parts: "RenderableType", **options: Any) -> None:
    """Print text and tables for people."""
    from rich.console import Console

    piped = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    console = Console(width=piped, highlight=False, soft_wrap=True)
    for part in parts:
        console.print(part, **options)


def facts_table(rows: Mapping[str, Any]) -> "RenderableType":
    """Return a table of names and values."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name, style="dim"), Text(str(value)))
    return table


def columns_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()) -> "RenderableType":
    """Return a plain table.

    Parameters
    ----------
    columns : sequence of str
        Titles of the columns.
    rows : sequence of sequences
        Cells of each row, printed as plain text.
    right : sequence of str
        Titles of the columns that are aligned to the right.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def interval_text(interval: Sequence[float]) -> str:
    """Return an interval as readable text."""
    return " to ".join(f"{limit:.4g}" for limit in interval)


def show_artifact(artifact: Artifact, as_json: bool, **more: Any) -> None:
    """Print the result of a stage: its id first, to pass to the next command."""
    record = artifact.record
    known = {"id": artifact.id, "kind": artifact.kind, "uri": artifact.uri}
    if as_json:
        print_json(known | {"counts": record.counts, "metrics": record.metrics} | more)
        return
    numbers = {count_name(name): f"{value:,}" for name, value in record.counts.items()}
    numbers |= {name: f"{value:.4g}" for name, value in record.metrics.items()}
    show(facts_table({artifact.kind: artifact.id, "folder": artifact.uri} | numbers | more))


def show_quarantine(manifest: Artifact, num_named: int = 5) -> None:
    """Print the rows that an ingest could not use: their number by reason, and the first ones by name."""
    reasons = manifest.record.facts.get("quarantine", {})
    if not reasons:
        return
    import pandas as pd

    path = manifest.path / "quarantine.parquet"
    table = [(reason, f"{count:,}") for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
    show(columns_table(("in quarantine", "rows"), table, right=("rows",)))
    named = pd.read_parquet(path, columns=["path", "reason", "detail"]).head(num_named)
    show(columns_table(("first in quarantine", "reason", ""), list(named.itertuples(index=False, name=None))))
    show(f"all of them, with paths: {path}")


def age(finished: float) -> str:
    """Return the time since an artifact was finished (Unix seconds), in its largest unit."""
    seconds = max(0.0, time.time() - finished)
    length, unit = next(((length, unit) for length, unit in UNITS if seconds >= length), UNITS[-1])
    return f"{int(seconds // length)} {unit}"


def command_line(program: str, home: Home) -> str:
    """Return a shell command that runs a program of this environment on this home from the current folder."""
    if shutil.which(program) is None:
        there = str(Path(sys.executable).parent / program)
        program = min(there, os.path.relpath(there), key=len)
    is_default = home.root == Path(".clapcur").absolute()
    program = shlex.quote(program)
    return program if is_default else f"CLAPCUR_HOME={shlex.quote(str(home.root))} {program}"
