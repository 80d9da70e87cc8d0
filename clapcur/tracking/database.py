"""MLflow's SQLite file: always whole, whenever whoever made it was killed.

MLflow makes its tables at the first use, in hundreds of steps that SQLite commits one by one; a process that is killed
among them leaves a file that MLflow refuses from then on. Hence the tables are made in a file aside, which is renamed
into place when it is whole. A half-made file, of an earlier clapcur or of another program, is moved aside and made
again, unless it holds runs: then a copy is brought up to date and takes its place, or nothing is touched.

    python -m clapcur.tracking.database      # prepares the file of the home, before `clapcur up` starts MLflow on it
"""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clapcur.errors import ArtifactError
from clapcur.store.artifacts import sync_folder
from clapcur.store.database import MIGRATES, file_of
from clapcur.store.home import Home, sqlite_url
from clapcur.tracking.moved import follow_home

if TYPE_CHECKING:
    import sqlalchemy as sa

MAGIC = b"SQLite format 3\0"  # begins every file of SQLite that holds anything
COMPANIONS = ("", "-journal", "-wal", "-shm")  # left beside another file, each would be replayed into that one
USED = {  # a row means that somebody has used the file; MLflow itself makes the experiment 0
    "runs": "SELECT 1 FROM runs LIMIT 1",
    "registered_models": "SELECT 1 FROM registered_models LIMIT 1",
    "experiments": "SELECT 1 FROM experiments WHERE experiment_id != 0 LIMIT 1",
}

_looked_into: dict[tuple[int, int], int] = {}  # a descriptor by device and inode
log = logging.getLogger("clapcur")


@contextmanager
def prepared(home: Home, uri: str) -> Iterator[None]:
    """Make the tables that MLflow expects at this address; inside the block nobody else makes any.

    Their addresses are those of this home, also where it was moved (`clapcur.tracking.moved`). What is behind a server
    is the server's concern. On other databases than SQLite a killed process leaves no half of the tables: MLflow makes
    them there in one transaction.

    Raises
    ------
    ArtifactError
        The file holds runs, but cannot be brought up to date.
    """
    if uri.startswith("http"):
        yield
        return
    from filelock import FileLock

    with FileLock(home.mlflow_lock), MIGRATES:
        if file := _file_behind(uri):
            make_whole(file)
        if url := _url_of(uri):
            with _engine(url) as engine:
                follow_home(engine, home)
        yield


def _file_behind(uri: str) -> Path | None:
    """Return the SQLite file of an address, however it is spelled; None for another database, or one in memory."""
    url = _url_of(uri)
    return file_of(url) if url is not None and url.get_backend_name() == "sqlite" else None


def _url_of(uri: str) -> "sa.URL | None":
    """Return the database of an address; None for one in memory, and for a folder, as MLflow once had them."""
    import sqlalchemy as sa

    try:
        url = sa.make_url(uri)
    except sa.exc.ArgumentError:
        return None
    return None if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:") else url


def make_whole(path: Path) -> None:
    """Make the file, make it again or bring it up to date, unless it is whole; the caller holds MLflow's lock."""
    new = path.with_name(f".{path.name}.new")
    _discard(new)  # of a maker that was killed
    if path.exists():
        if _is_whole(path):
            return
        if _holds_runs(path):
            _upgrade(path, new)
            return
        _move_aside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _engine(new) as engine:
        from mlflow.store.db.utils import _initialize_tables

        _initialize_tables(engine)
    _put_in_place(new, path)


def _is_whole(path: Path) -> bool:
    """Return whether all tables are there, at the newest step of this MLflow."""
    from mlflow.store.db.utils import _all_tables_exist, _get_latest_schema_revision

    if _rows(path, "alembic_version", "SELECT version_num FROM alembic_version") != [(_get_latest_schema_revision(),)]:
        return False
    with _engine(path) as engine:
        return bool(_all_tables_exist(engine))


def _holds_runs(path: Path) -> bool:
    """Return whether anything was ever written into the tables that are there."""
    return any(_rows(path, table, query) for table, query in USED.items())


def _rows(path: Path, table: str, query: str) -> list[tuple[Any, ...]]:
    """Return the answer to a query; nothing where its table is missing, or where the file is no database."""
    if not _is_sqlite(path):  # opening it, some versions of SQLite delete the journal beside it
        return []
    try:
        with closing(sqlite3.connect(path)) as db:  # SQLite itself takes back what was half written
            is_there = db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
            return db.execute(query).fetchall() if is_there else []
    except sqlite3.OperationalError:  # somebody holds it, or it may not be read: that says nothing of what is in it
        raise
    except sqlite3.DatabaseError:
        return []


def _is_sqlite(path: Path) -> bool:
    """Return whether a file begins as those of SQLite do.

    The file stays open, once for each in a process: to close it would take all locks off it that SQLite holds for
    this process, in the middle of what another thread writes.
    """
    place = os.stat(path)
    key = (place.st_dev, place.st_ino)
    if key not in _looked_into:
        _looked_into[key] = os.open(path, os.O_RDONLY)
    return os.pread(_looked_into[key], len(MAGIC), 0) == MAGIC


def _upgrade(path: Path, new: Path) -> None:
    """Bring a copy of a file with runs up to date, and put it in its place; the old one is kept beside it."""
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(new)) as copy:
        old.backup(copy)
    try:
        with _engine(new) as engine:
            from mlflow.store.db.utils import _upgrade_db

            _upgrade_db(engine)
        if not _is_whole(new):
            raise ArtifactError("tables are missing")
    except Exception as error:  # of MLflow, of Alembic, of SQLite: all mean that this file needs a person
        _discard(new)
        said = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{path} holds runs, but lacks tables that this MLflow version expects, and they could not be added: "
            f"{said}. "
            "Move the file away and run `clapcur sync --rebuild` to send every run of this home to a new one"
        ) from error
    kept = _move(path)
    _put_in_place(new, path)
    log.warning("MLflow's tables in %s were upgraded; the previous file is %s", path, kept.name)


def _move_aside(path: Path) -> None:
    is_empty = path.stat().st_size == 0
    kept = _move(path)
    if is_empty:
        _discard(kept)
        return
    log.warning(
        "MLflow's file %s was incomplete or damaged; it was moved to %s and replaced by a new one. If runs are missing "
        "in MLflow, send them again with `clapcur sync --rebuild`",
        path,
        kept.name,
    )


def _move(path: Path) -> Path:
    """Rename a file, with what SQLite keeps beside it, to a name that is free; return the new path."""
    number = 1
    while (kept := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    for end in reversed(COMPANIONS):  # the file itself last: a kill in between leaves what is still not whole
        part = path.with_name(path.name + end)
        if part.exists():
            part.rename(kept.with_name(kept.name + end))
    return kept


def _put_in_place(new: Path, path: Path) -> None:
    with open(new, "rb") as file:
        os.fsync(file.fileno())
    os.replace(new, path)
    sync_folder(path.parent)


def _discard(path: Path) -> None:
    for end in COMPANIONS:
        path.with_name(path.name + end).unlink(missing_ok=True)


@contextmanager
def _engine(place: "Path | sa.URL") -> "Iterator[sa.Engine]":
    """Open a file or another database as MLflow does, without a connection that outlives the block."""
    import sqlalchemy as sa

    url = sqlite_url(place.absolute(), "sqlite+pysqlite") if isinstance(place, Path) else place
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        yield engine
    finally:
        engine.dispose()


if __name__ == "__main__":
    here = Home.open()
    with prepared(here, here.mlflow_database):
        pass
