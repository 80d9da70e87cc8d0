"""MLflow's SQLite file: always complete, even if the process that creates it is killed.

MLflow creates its tables at first use, in hundreds of steps that SQLite commits one by one. A process killed in between
leaves a file that MLflow then always rejects. Therefore the tables are created in a temporary file, which is renamed
when it is complete. An incomplete file, from an earlier clapcur or another program, is moved aside and re-created. If
it has runs, a copy is upgraded and replaces it; if the upgrade fails, the file is left unchanged.

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

MAGIC = b"SQLite format 3\0"  # first bytes of every non-empty SQLite file
COMPANIONS = ("", "-journal", "-wal", "-shm")  # left next to another file, they would be replayed into that file
USED = {  # a row means that the file was used; MLflow itself creates experiment 0
    "runs": "SELECT 1 FROM runs LIMIT 1",
    "registered_models": "SELECT 1 FROM registered_models LIMIT 1",
    "experiments": "SELECT 1 FROM experiments WHERE experiment_id != 0 LIMIT 1",
}

_looked_into: dict[tuple[int, int], int] = {}  # file descriptors by device and inode
log = logging.getLogger("clapcur")


@contextmanager
def prepared(home: Home, uri: str) -> Iterator[None]:
    """Create the tables that MLflow expects in the database at this URI, and hold the lock on them inside the block.

    If the home was moved, the URIs in the tables are updated (`clapcur.tracking.moved`). If the URI is that of a
    server, nothing is done. In databases other than SQLite, MLflow creates all tables in one transaction, so they are
    never incomplete.

    Raises
    ------
    ArtifactError
        The file has runs, but cannot be upgraded.
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
    """Return the SQLite file of a URI in any spelling; None for another database or one in memory."""
    url = _url_of(uri)
    return file_of(url) if url is not None and url.get_backend_name() == "sqlite" else None


def _url_of(uri: str) -> "sa.URL | None":
    """Return the database URL of a URI; None for a database in memory, and for a folder, as older MLflow used."""
    import sqlalchemy as sa

    try:
        url = sa.make_url(uri)
    except sa.exc.ArgumentError:
        return None
    return None if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:") else url


def make_whole(path: Path) -> None:
    """Create, re-create or upgrade the file unless it is complete; the caller holds MLflow's lock."""
    new = path.with_name(f".{path.name}.new")
    _discard(new)  # left by a killed process
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
    """Return whether all tables exist, at the latest schema revision of this MLflow."""
    from mlflow.store.db.utils import _all_tables_exist, _get_latest_schema_revision

    if _rows(path, "alembic_version", "SELECT version_num FROM alembic_version") != [(_get_latest_schema_revision(),)]:
        return False
    with _engine(path) as engine:
        return bool(_all_tables_exist(engine))


def _holds_runs(path: Path) -> bool:
    """Return whether the existing tables have any rows that a user wrote."""
    return any(_rows(path, table, query) for table, query in USED.items())


def _rows(path: Path, table: str, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query; empty if its table is missing or the file is no database."""
    if not _is_sqlite(path):  # some versions of SQLite delete the journal of a file when they open it
        return []
    try:
        with closing(sqlite3.connect(path)) as db:  # SQLite rolls back incomplete writes
            is_there = db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
            return db.execute(query).fetchall() if is_there else []
    except sqlite3.OperationalError:  # the file is locked or unreadable, so its content is unknown
        raise
    except sqlite3.DatabaseError:
        return []


def _is_sqlite(path: Path) -> bool:
    """Return whether a file starts with SQLite's header.

    Each file is opened once per process and stays open: closing it would release all locks that SQLite holds on it for
    this process, possibly while another thread writes.
    """
    place = os.stat(path)
    key = (place.st_dev, place.st_ino)
    if key not in _looked_into:
        _looked_into[key] = os.open(path, os.O_RDONLY)
    return os.pread(_looked_into[key], len(MAGIC), 0) == MAGIC


def _upgrade(path: Path, new: Path) -> None:
    """Upgrade a copy of a file with runs, and replace the file with it; the old file is kept under another name."""
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(new)) as copy:
        old.backup(copy)
    try:
        with _engine(new) as engine:
            from mlflow.store.db.utils import _upgrade_db

            _upgrade_db(engine)
        if not _is_whole(new):
            raise ArtifactError("tables are missing")
    except Exception as error:  # an error of MLflow, Alembic or SQLite: the user must repair this file
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
    """Rename a file and its SQLite companions to an unused name; return the new path."""
    number = 1
    while (kept := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    for end in reversed(COMPANIONS):  # the file itself last: after a kill in between, it still counts as incomplete
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
    """Open a file or another database as MLflow does; no connection outlives the block."""
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
