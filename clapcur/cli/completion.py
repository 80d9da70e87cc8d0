"""Shell completion of artifacts: their ids and the names of registered models, each with a short description.

A shell asks at every press of a key, so only the catalog is read, without SQLAlchemy. If it is on a server or cannot
be read, the names of the store's folders are offered instead.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import typer

from clapcur.cli.console import age
from clapcur.cli.logs import chosen_home
from clapcur.store.home import Home, open_to_read
from clapcur.store.readable import label_of, model_name

SHOWN = 50  # the newest ones that match
ALIASES = ("champion", "challenger", "teacher")
ARTIFACTS = (
    "SELECT id, kind, stage, tags, finished FROM artifact "
    "WHERE substr(id, 1, ?) = ? AND (? = '' OR kind = ?) ORDER BY finished DESC LIMIT ?"
)
DECISIONS = "SELECT tags FROM artifact WHERE kind = 'decision'"

Choices = list[tuple[str, str]]


def artifacts(kind: str = "") -> Callable[[typer.Context, str], Choices]:
    """Return a function for typer that completes the artifacts of a kind; of all kinds by default."""

    def complete(ctx: typer.Context, incomplete: str) -> Choices:
        home = Home(chosen_home(ctx.params.get("home")).absolute())  # not opened: that would create it
        try:
            return _of_catalog(home.root / "catalog.db", kind, incomplete)
        except (sqlite3.Error, OSError, ValueError):
            return _of_folders(home.root / "store", kind, incomplete)

    return complete


def _of_catalog(file: Path, kind: str, begin: str) -> Choices:
    with closing(open_to_read(file)) as db:
        rows = db.execute(ARTIFACTS, (len(begin), begin, kind, kind, SHOWN)).fetchall()
        decided = [json.loads(tags) for (tags,) in db.execute(DECISIONS)] if kind in ("", "checkpoint") else []
    found = [
        (name, f"{made.replace('_', ' ')}, {label_of(stage, json.loads(tags))}, {age(finished)} old")
        for name, made, stage, tags, finished in rows
    ]
    return [*found, *_models((tags["dataset"] for tags in decided if "dataset" in tags), begin)]


def _models(datasets: Iterable[str], begin: str) -> Choices:
    names = [f"{model_name(dataset)}@{alias}" for dataset in dict.fromkeys(datasets) for alias in ALIASES]
    return [(name, "registered model") for name in names if name.startswith(begin)]


def _of_folders(store: Path, kind: str, begin: str) -> Choices:
    records = store.glob(f"{kind or '*'}/[0-9a-f]*/record.json")
    found = [(path.parent.name, path.parent.parent.name.replace("_", " ")) for path in records]
    return sorted(choice for choice in found if choice[0].startswith(begin))[:SHOWN]
