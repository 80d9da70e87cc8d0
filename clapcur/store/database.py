"""The catalog's tables, on SQLite (one machine) or PostgreSQL (any number of machines).

SQLite writes next to its file even when it only reads. Where it cannot, in a read-only home, the catalog is a copy in
memory: it answers every query, but changes to it are lost.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa

from clapcur.errors import ArtifactError
from clapcur.store.home import open_to_read

HEAD = "0001"  # the newest migration in clapcur/store/migrations/versions, which must result in the tables below
VERSION = sa.table("catalog_version", sa.column("version_num"))  # not Alembic's default: MLflow may share the database
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 30_000  # how long a SQLite writer waits for another
SCHEMA_LOCK = 0x636C6170  # PostgreSQL advisory lock while the tables are created or changed: "clap"
MIGRATES = threading.Lock()  # Alembic has one context per process: two threads must not use it at once

TABLES = sa.MetaData()
ARTIFACT = sa.Table(
    "artifact",
    TABLES,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False, index=True),
    sa.Column("stage", sa.String(64), nullable=False),
    sa.Column("finished", sa.Double, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("mlflow_run_id", sa.String(64), index=True),
)
EDGE = sa.Table(
    "edge",
    TABLES,
    sa.Column("artifact_id", sa.String(12), primary_key=True),
    sa.Column("role", sa.String(200), primary_key=True),
    sa.Column("input_id", sa.String(12), nullable=False, index=True),
)
LEASE = sa.Table(
    "lease",
    TABLES,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(300), nullable=False),
    sa.Column("until", sa.Double, nullable=False),
)
OUTBOX = sa.Table(
    "outbox",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("artifact_id", sa.String(12), nullable=False),
    sa.Column("topic", sa.String(100), nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("delivered", sa.Double),
    sa.UniqueConstraint("artifact_id", "topic"),
)


def connect(url: str, peek: bool = False) -> tuple[sa.Engine, sa.Engine]:
    """Return an engine for reading and one for writing; missing tables are created and old ones migrated.

    A transaction of the writer takes SQLite's lock at its beginning: a transaction that first reads and then writes
    fails if another one wrote in between, whatever the timeout.

    Parameters
    ----------
    url : str
    peek : bool
        Whether to write nothing at all: SQLite's file is copied to memory, and PostgreSQL's tables must exist.

    Raises
    ------
    ArtifactError
        The tables were created by a newer clapcur, or cannot be migrated now.
    """
    if url.startswith("postgresql://"):
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    engine = sa.create_engine(url, poolclass=sa.NullPool)  # no connection stays open across a fork
    if engine.dialect.name == "sqlite":
        if is_read_only(file := file_of(engine.url)) or peek:
            engine = _copy_in_memory(file)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    writer = engine.execution_options(writes=True)
    if _version(engine) != HEAD:
        if peek and engine.dialect.name != "sqlite":
            engine.connect().close()  # if the server is down, this says so
            raise ArtifactError(
                f"the catalog {engine.url.render_as_string()} has no tables of this version of clapcur; "
                "the next command that writes creates or migrates them"
            )
        _bring_up_to_date(engine, writer)
    return engine, writer


def insert(db: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> Any:
    """Return an insert statement that supports ON CONFLICT, which has the same syntax in both databases.

    Parameters
    ----------
    db : Connection
        SQLAlchemy connection.
    table : Table
    row : mapping
        Values by column.
    """
    dialect: Any  # the dialect in use is already imported; importing the other would take a tenth of a second
    if db.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql as dialect
    else:
        from sqlalchemy.dialects import sqlite as dialect
    return dialect.insert(table).values(row)


def _version(engine: sa.Engine) -> str | None:
    """Return the schema version of the tables, in one query; None if there are no tables, or no version in them."""
    try:
        with engine.begin() as db:
            found: str | None = db.scalar(sa.select(VERSION.c.version_num))
    except sa.exc.DBAPIError:  # no such table; if the server is down, the next query fails too
        return None
    return found


def _bring_up_to_date(engine: sa.Engine, writer: sa.Engine) -> None:
    """Create or migrate the tables; other processes may do so at the same time."""
    if not engine.url.database and engine.dialect.name == "sqlite":  # in memory, so not shared
        with writer.begin() as db:
            _migrate(db)
    elif engine.dialect.name == "sqlite":
        with _first_user(file_of(engine.url)):
            with closing(engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA journal_mode=WAL")  # stored in the file
            with writer.begin() as db:
                _migrate(db)
    else:
        with writer.begin() as db:
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(SCHEMA_LOCK)))
            _migrate(db)


def _migrate(db: sa.Connection) -> None:
    """Run the missing migrations in the caller's transaction, all or none."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": db})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    steps = {step.revision for step in ScriptDirectory.from_config(config).walk_revisions()}
    tables = sa.inspect(db).get_table_names()
    there = db.scalar(sa.select(VERSION.c.version_num)) if VERSION.name in tables else None
    if there is not None and there not in steps:
        raise ArtifactError(
            f"the catalog {db.engine.url.render_as_string()} has schema version {there} of a newer clapcur; this "
            f"version supports up to {HEAD}. Update clapcur, or set CLAPCUR_DATABASE_URL to another catalog"
        )
    with MIGRATES:
        if there is None and OUTBOX.name in tables:  # created before there were migrations
            command.stamp(config, "0001")
        command.upgrade(config, HEAD)


def is_read_only(file: Path) -> bool:
    """Return whether this process cannot write to a SQLite file or to its folder."""
    if not file.parent.is_dir():
        return False  # it will be created later, or fail then
    return not os.access(file.parent, os.W_OK) or (file.exists() and not os.access(file, os.W_OK))


def file_of(url: sa.URL) -> Path:
    """Return the file of a SQLite database URL, plain or with a SQLite URI."""
    database = url.database or ""
    return Path(unquote(database.removeprefix("file:"))) if database.startswith("file:") else Path(database)


def _copy_in_memory(file: Path) -> sa.Engine:
    """Return an in-memory database with the content of a file; an empty one if the file cannot be read.

    Without its journal the file may be out of date; the store provides what is missing.
    """
    memory = sqlite3.connect(":memory:", check_same_thread=False)
    for ignores_journal in (False, True):
        with suppress(sqlite3.Error):
            with closing(open_to_read(file, ignores_journal)) as source:
                source.backup(memory)
            break
    return sa.create_engine("sqlite://", creator=lambda: memory, poolclass=sa.StaticPool)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin a transaction too late: `_begin_sqlite` does it
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA synchronous=NORMAL")  # lost transactions are restored from the store


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _first_user(database: Path) -> Iterator[None]:
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(f"{database.name}.lock")):
        yield
