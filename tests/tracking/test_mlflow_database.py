"""MLflow's SQLite file is whole whenever whoever made it was killed, and one that was left half made is made again."""

import itertools
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from clapcur.errors import ArtifactError
from clapcur.store.home import Home, sqlite_url
from clapcur.tracking import database
from clapcur.tracking.runs import connect

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.timeout(240),
]
FORK = multiprocessing.get_context("fork")


def die():
    """End as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(function, *, statement=0, file_operation=0):
    """Run a function in a child that is killed at its n-th SQL statement or renaming of a file; tell how it ended."""

    def work():
        seen = {"statements": 0, "files": 0}

        def at(what, number, before=lambda: None):
            seen[what] += 1
            if seen[what] == number:
                before()
                die()

        sa.event.listen(sa.engine.Engine, "before_cursor_execute", lambda *_: at("statements", statement))
        replace = os.replace
        os.replace = lambda *names: (at("files", file_operation), replace(*names), at("files", file_operation))
        function()

    child = FORK.Process(target=work)
    child.start()
    child.join(120)
    return child.exitcode


def names_in(home):
    """Return the files of MLflow in a home, the lock aside."""
    return sorted(path.name for path in home.root.iterdir() if "mlflow.db" in path.name)


def kept_as(name):
    """Return how a file that was moved aside may be called, with what SQLite keeps beside it."""
    return {name + end for end in database.COMPANIONS}


def is_usable(home):
    """Write a run and read it again, as every command does."""
    client = connect(home)
    run = client.create_run("0")
    return client.get_run(run.info.run_id).info.lifecycle_stage == "active"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Give a file as MLflow makes it, to be copied."""
    path = tmp_path_factory.mktemp("whole") / "mlflow.db"
    database.make_whole(path)
    return path


@pytest.fixture
def path(home, whole):
    """Give the file of the test's home, whole and empty."""
    found = home.root / "mlflow.db"
    found.write_bytes(whole.read_bytes())
    return found


def change(path, *statements):
    with closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)


def add_run(path):
    change(path, "INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'mine', 'active')")


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", [{"statement": n} for n in (1, 60, 700, 1600)] + [{"file_operation": n} for n in (1, 2)]
)
def test_a_kill_while_the_tables_are_made_leaves_a_file_that_is_made_again(home, point):
    """A kill in the first seconds broke the MLflow of a home for good, and nothing said so."""
    assert killed(lambda: connect(home), **point) == -signal.SIGKILL
    was_renamed = point == {"file_operation": 2}
    assert (home.root / "mlflow.db").exists() == was_renamed
    assert is_usable(home)
    assert names_in(home) == ["mlflow.db"]


@pytest.mark.slow
@pytest.mark.parametrize("statement", [60, 700, 1600])
def test_a_file_that_mlflow_itself_left_half_made_is_made_again(home, statement, caplog):
    """Homes that an earlier version broke, or another program that uses the file, must mend themselves."""

    def make_in_place():
        from mlflow.store.db.utils import _initialize_tables

        _initialize_tables(sa.create_engine(f"sqlite:///{home.root / 'mlflow.db'}"))

    assert killed(make_in_place, statement=statement) == -signal.SIGKILL
    assert is_usable(home)
    assert {"mlflow.db", "mlflow.db.old-1"} <= set(names_in(home)) <= {"mlflow.db", *kept_as("mlflow.db.old-1")}
    assert "mlflow.db.old-1 and replaced by a new one" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        ["DROP TABLE alembic_version"],
        ["DELETE FROM alembic_version"],
        ["UPDATE alembic_version SET version_num = '451aebb31d03'"],
        ["DROP TABLE latest_metrics"],
    ],
)
def test_a_file_without_runs_whose_tables_are_not_those_of_this_mlflow_is_replaced(path, whole, damage, monkeypatch):
    """What never held a run loses nothing; it is kept all the same, for whoever wants to look."""
    change(path, *damage)
    monkeypatch.setattr("mlflow.store.db.utils._initialize_tables", lambda engine: make_copy(whole, engine))
    database.make_whole(path)
    assert database._is_whole(path)
    assert not database._is_whole(path.with_name("mlflow.db.old-1"))


def make_copy(whole, engine):
    """Make the tables in no time."""
    Path(engine.url.database).write_bytes(whole.read_bytes())


@pytest.mark.parametrize("content", [b"", b"this is no database, and longer than its header of 100 bytes" * 3])
def test_what_is_no_database_is_kept_aside_unless_it_is_empty(path, whole, content, monkeypatch):
    """A truncated file makes MLflow fail at every command."""
    path.write_bytes(content)
    monkeypatch.setattr("mlflow.store.db.utils._initialize_tables", lambda engine: make_copy(whole, engine))
    database.make_whole(path)
    assert database._is_whole(path)
    kept = path.with_name("mlflow.db.old-1")
    assert kept.exists() == bool(content) and (not content or kept.read_bytes() == content)


@pytest.mark.parametrize("companion", ["-journal", "-wal"])
@pytest.mark.parametrize("content", [b"no database" * 30, b"SQLite format 2\0" * 30, b"SQLite"])
def test_a_journal_goes_with_the_file_that_it_belongs_to(path, whole, content, companion, monkeypatch):
    """SQLite replays a journal into whatever file has the name: it would write rubbish into the new one."""
    path.write_bytes(content)
    path.with_name(f"mlflow.db{companion}").write_bytes(b"pages of the old file")
    monkeypatch.setattr("mlflow.store.db.utils._initialize_tables", lambda engine: make_copy(whole, engine))
    database.make_whole(path)
    assert path.with_name("mlflow.db.old-1").read_bytes() == content
    assert path.with_name(f"mlflow.db.old-1{companion}").read_bytes() == b"pages of the old file"
    assert not path.with_name(f"mlflow.db{companion}").exists()


def test_sqlite_opens_no_file_that_is_none_of_its_own(path, monkeypatch):
    """Its versions differ in what they do then: some delete the journal."""
    path.write_bytes(b"no database" * 30)
    monkeypatch.setattr(database.sqlite3, "connect", lambda *_: pytest.fail("it was opened"))
    assert not database._is_whole(path) and not database._holds_runs(path)


def test_a_look_at_the_file_takes_no_lock_off_it(path):
    """POSIX drops all locks of a process on a file when it closes it once: what a thread writes would be torn."""
    add_run(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            assert database._is_whole(path) and database._holds_runs(path)
        other = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0.1).execute('BEGIN IMMEDIATE')"
        done = subprocess.run([sys.executable, "-I", "-c", other, path], capture_output=True, text=True)
    assert "database is locked" in done.stderr


def test_the_journal_of_an_empty_file_is_deleted_with_it(path, whole, monkeypatch):
    """Left beside the next file of that name, it would be replayed into it."""
    path.write_bytes(b"")
    path.with_name("mlflow.db-journal").write_bytes(b"pages")
    monkeypatch.setattr("mlflow.store.db.utils._initialize_tables", lambda engine: make_copy(whole, engine))
    database.make_whole(path)
    assert sorted(one.name for one in path.parent.iterdir()) == ["mlflow.db"]


def test_a_file_with_runs_is_brought_up_to_date_and_kept(path):
    """Runs that people annotated are never thrown away, only because MLflow is a newer one."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    add_run(path)
    with database._engine(path) as engine, engine.begin() as connection:
        config = _get_alembic_config(str(engine.url))
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    assert not database._is_whole(path)
    database.make_whole(path)
    assert database._is_whole(path)
    assert database._rows(path, "experiments", "SELECT name FROM experiments WHERE experiment_id = 7") == [("mine",)]
    assert not database._is_whole(path.with_name("mlflow.db.old-1"))


def test_a_file_with_runs_that_cannot_be_mended_is_left_as_it_is(path):
    """Moving it aside by itself would look as if all runs were lost."""
    add_run(path)
    change(path, "DROP TABLE alembic_version")
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match=r"mlflow\.db holds runs, but .*`clapcur sync --rebuild`"):
        database.make_whole(path)
    assert path.read_bytes() == before
    assert sorted(one.name for one in path.parent.iterdir()) == ["mlflow.db"]


def test_a_file_that_somebody_writes_just_now_is_not_taken_for_a_broken_one(path, monkeypatch):
    """A server that holds the lock for longer than we wait would lose its file under its feet."""
    connect_to = sqlite3.connect
    monkeypatch.setattr(database.sqlite3, "connect", lambda path: connect_to(path, timeout=0.1))
    with closing(connect_to(path)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            database.make_whole(path)
    assert path.exists()


@pytest.mark.parametrize("name", ["plain", "with space", "what?", "50%3F", "a#b"])
def test_the_file_is_found_behind_every_spelling_of_its_address(tmp_path, name):
    """A process that was given the address of an odd home, by its environment, would make tables that a kill breaks."""
    file = tmp_path / name / "mlflow.db"
    for dialect in ("sqlite", "sqlite+pysqlite"):
        assert database._file_behind(sqlite_url(file, dialect)) == file
    if "?" not in name:
        assert database._file_behind(f"sqlite:///{file}") == database._file_behind(f"sqlite+pysqlite:///{file}") == file
    for other in ("sqlite://", "sqlite:///:memory:", "postgresql://me@db/clapcur_mlflow", str(tmp_path), "./mlruns"):
        assert database._file_behind(other) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["with space", "what?"])
def test_a_kill_breaks_no_file_that_the_environment_names(tmp_path, monkeypatch, name):
    """Whoever comes after it would be told that MLflow's tables are out of date, for ever."""
    other = tmp_path / name / "mlflow.db"
    other.parent.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_url(other, "sqlite+pysqlite"))
    home = Home.open(tmp_path / "home")
    assert killed(lambda: connect(home), statement=700) == -signal.SIGKILL
    assert not other.exists()
    assert is_usable(home)
    assert [path.name for path in other.parent.iterdir()] == ["mlflow.db"]


def test_the_tables_of_catalog_and_mlflow_are_made_one_after_the_other(tmp_path, monkeypatch):
    """The curves of a new home's first training are sent by a thread: Alembic would mix up both migrations."""
    from alembic import command

    from clapcur.store.catalog import Catalog

    upgrade, busy = command.upgrade, threading.Lock()

    def alone(*arguments):
        assert busy.acquire(blocking=False), "two migrations at once"
        try:
            upgrade(*arguments)
        finally:
            busy.release()

    monkeypatch.setattr(command, "upgrade", alone)
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(connect, Home.open(tmp_path / "mlflow"))
        for number in itertools.takewhile(lambda _: not made.done(), itertools.count()):
            Catalog.open(Home.open(tmp_path / f"catalog{number}"))
        assert made.result().search_experiments()
