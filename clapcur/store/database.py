"""The catalog's tables, on SQLite (one machine) or PostgreSQL (any number of machines).

SQLite writes beside its file even to read it. Where it cannot, in a home that is mounted or owned read-only, the
catalog is a copy in memory: it answers every question, and what is entered into it is entered nowhere.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import sqlalchemy as sa

from clapcur.errors import ArtifactError

HEAD = "0001"  # the newest step in clapcur/store/migrations/versions, which must lead to the tables below
VERSION = sa.table("catalog_version", sa.column("version_num"))  # not Alembic's own name: MLflow may live beside us
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 30_000  # how long a SQLite writer waits for another
SCHEMA_LOCK = 0x636C6170  # PostgreSQL advisory lock while the tables are made or changed: "clap"
MIGRATES = threading.Lock()  # Alembic has one context in a process: two threads that use it break each other's

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


def connect(url: str) -> tuple[sa.Engine, sa.Engine]:
    """Return an engine to read with and one to write with; tables that are missing or old are brought up to date.

    A transaction of the writer takes SQLite's lock at its beginning: one that reads first and
    writes later fails when another wrote in between, and no timeout helps.

    Raises
    ------
    ArtifactError
        The tables are those of a newer clapcur.
    """
    if url.startswith("postgresql://"):
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    engine = sa.create_engine(url, poolclass=sa.NullPool)  # nothing is open across a fork
    if engine.dialect.name == "sqlite":
        if is_read_only(file := file_of(engine.url)):
            engine = _copy_in_memory(file)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    writer = engine.execution_options(writes=True)
    if _version(engine) != HEAD:
        _bring_up_to_date(engine, writer)
    return engine, writer


def insert(db: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> Any:
    """Return an insert that knows ON CONFLICT, which both databases spell alike.

    Parameters
    ----------
    db : Connection
        Of SQLAlchemy.
    table : Table
    row : mapping
        Values by column.
    """
    dialect: Any  # the one that is used is there already, the other would take a tenth of a second to import
    if db.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql as dialect
    else:
        from sqlalchemy.dialects import sqlite as dialect
    return dialect.insert(table).values(row)


def _version(engine: sa.Engine) -> str | None:
    """Return the step at which the tables are, in one query; None where there are none, or none that say it."""
    try:
        with engine.begin() as db:
            found: str | None = db.scalar(sa.select(VERSION.c.version_num))
    except sa.exc.DBAPIError:  # no such table; a server that is down is met again by who asks next
        return None
    return found


def _bring_up_to_date(engine: sa.Engine, writer: sa.Engine) -> None:
    """Make or change the tables, whoever else does so at the same time."""
    if not engine.url.database and engine.dialect.name == "sqlite":  # in memory, and nobody else's
        with writer.begin() as db:
            _migrate(db)
    elif engine.dialect.name == "sqlite":
        with _first_user(file_of(engine.url)):
            with closing(engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA journal_mode=WAL")  # is kept in the file
            with writer.begin() as db:
                _migrate(db)
    else:
        with writer.begin() as db:
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(SCHEMA_LOCK)))
            _migrate(db)


def _migrate(db: sa.Connection) -> None:
    """Take the steps that are missing, all or none: the caller's transaction holds them."""
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
        if there is None and OUTBOX.name in tables:  # made before there were steps
            command.stamp(config, "0001")
        command.upgrade(config, HEAD)


def is_read_only(file: Path) -> bool:
    """Return whether a SQLite file, or the folder that it needs to write to, takes nothing from this process."""
    if not file.parent.is_dir():
        return False  # it is to be made; whether it can be is found out then
    return not os.access(file.parent, os.W_OK) or (file.exists() and not os.access(file, os.W_OK))


def file_of(url: sa.URL) -> Path:
    """Return the file behind the address of a SQLite database, plain or as a URI."""
    database = url.database or ""
    return Path(unquote(database.removeprefix("file:"))) if database.startswith("file:") else Path(database)


def _copy_in_memory(file: Path) -> sa.Engine:
    """Return a database in memory with the content of a file; an empty one where the file cannot be read.

    Without its journal the file is what it was at some moment; the store fills in what came since.
    """
    memory = sqlite3.connect(":memory:", check_same_thread=False)
    for how in ("mode=ro", "mode=ro&immutable=1"):  # the first one needs the journal's index, the second ignores both
        with suppress(sqlite3.Error):
            with closing(sqlite3.connect(f"file:{quote(os.fsencode(file))}?{how}", uri=True)) as source:
                source.backup(memory)
            break
    return sa.create_engine("sqlite://", creator=lambda: memory, poolclass=sa.StaticPool)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin too late: `_begin_sqlite` does it
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA synchronous=NORMAL")  # a lost tail is indexed again from the store


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _first_user(database: Path) -> Iterator[None]:
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(f"{database.name}.lock")):
        yield
