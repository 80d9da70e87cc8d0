"""The catalog's tables, on SQLite (one machine) or PostgreSQL (any number of machines)."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

BUSY_TIMEOUT_MS = 30_000  # how long a SQLite writer waits for another
SCHEMA_LOCK = 0x636C6170  # PostgreSQL advisory lock while the tables are made: "clap"

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
    """Return an engine to read with and one to write with; missing tables are made.

    A transaction of the writer takes SQLite's lock at its beginning: one that reads first and
    writes later fails when another wrote in between, and no timeout helps.
    """
    if url.startswith("postgresql://"):
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    engine = sa.create_engine(url, poolclass=sa.NullPool)  # nothing is open across a fork
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    writer = engine.execution_options(writes=True)
    if not sa.inspect(engine).has_table(OUTBOX.name):
        _make_tables(engine, writer)
    return engine, writer


def insert(db: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> Any:
    """Return an insert that knows ON CONFLICT, which both databases spell alike."""
    dialect: Any = postgresql if db.dialect.name == "postgresql" else sqlite
    return dialect.insert(table).values(row)


def _make_tables(engine: sa.Engine, writer: sa.Engine) -> None:
    """Make the tables, whoever else does so at the same time."""
    if engine.dialect.name == "sqlite":
        with _first_user(Path(engine.url.database or "")):
            with closing(engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA journal_mode=WAL")  # is kept in the file
            with writer.begin() as db:
                TABLES.create_all(db)
    else:
        with writer.begin() as db:
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(SCHEMA_LOCK)))
            TABLES.create_all(db)


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
