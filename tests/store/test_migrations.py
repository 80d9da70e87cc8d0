"""The steps of the catalog's tables: from nothing, from before there were steps, and never from a newer clapcur."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from catalog_tools import (
    a_record,
    enter,
    in_children,
    postgres,  # noqa: F401  # a fixture
    url,  # noqa: F401  # a fixture
)

from clapcur.errors import ArtifactError
from clapcur.store import database
from clapcur.store.catalog import Catalog
from clapcur.store.database import HEAD, MIGRATIONS, TABLES, VERSION, connect

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def steps(folder: Path = MIGRATIONS) -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(folder))
    return ScriptDirectory.from_config(config)


@pytest.fixture
def queries():
    """Collect the statements that any engine sends."""
    sent: list[str] = []

    def note(connection, cursor, statement, *rest):
        if not statement.startswith("BEGIN"):
            sent.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


def before_steps(url):
    """Make the tables as clapcur did before there were steps, with an artifact inside."""
    _, writer = connect(url)
    enter(Catalog(url), a_record("a", {"pool": "b" * 12}))
    with writer.begin() as db:
        db.execute(sa.text(f"DROP TABLE {VERSION.name}"))


def version(url):
    engine, _ = connect(url)
    with engine.begin() as db:
        return db.scalar(sa.select(VERSION.c.version_num))


def set_version(url, number):
    _, writer = connect(url)
    with writer.begin() as db:
        db.execute(sa.update(VERSION).values(version_num=number))


def test_the_steps_are_one_line_and_the_program_knows_the_last():
    """A forgotten number: every connection takes the slow way, or none ever takes the step."""
    assert steps().get_heads() == [HEAD]
    assert steps().get_bases() == ["0001"]


def test_the_steps_lead_to_the_tables_that_the_program_uses(url):
    """A column that only the code has works in every test that makes its own tables, and nowhere else."""
    engine, _ = connect(url)
    with engine.begin() as db:
        context = MigrationContext.configure(db, opts={"version_table": VERSION.name, "compare_server_default": True})
        assert compare_metadata(context, TABLES) == []
        unique = sa.inspect(db).get_unique_constraints("outbox")
    assert [constraint["column_names"] for constraint in unique] == [["artifact_id", "topic"]]


def test_a_current_catalog_costs_one_query_and_no_alembic(url, queries):
    """The catalog is opened at every step of every run."""
    connect(url)
    queries.clear()
    connect(url)
    assert len(queries) == 1 and VERSION.name in queries[0]


def test_the_fast_way_does_not_import_alembic(tmp_path):
    address = f"sqlite:///{tmp_path / 'catalog.db'}"
    connect(address)
    look = (
        f"import sys; from clapcur.store.database import connect; connect({address!r}); print('alembic' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == "False"


def test_a_catalog_from_before_there_were_steps_is_stamped_and_keeps_its_content(url):
    """Making the tables again would fail, and dropping them would forget every MLflow run."""
    before_steps(url)
    catalog = Catalog(url)
    assert version(url) == HEAD
    assert catalog.of_kind("manifest") == ["a" * 12]
    assert [message.artifact_id for message in catalog.waiting()] == ["a" * 12]


def test_several_processes_may_stamp_an_old_catalog_at_once(url):
    before_steps(url)
    assert in_children(4, lambda number: connect(url)) == [0] * 4
    engine, _ = connect(url)
    with engine.begin() as db:
        assert db.execute(sa.select(VERSION)).all() == [(HEAD,)]


def test_several_processes_may_make_the_tables_at_once(url):
    """Two first users would each make half, or the second would fail on what the first has made."""
    assert in_children(4, lambda number: connect(url)) == [0] * 4
    engine, _ = connect(url)
    with engine.begin() as db:
        assert db.execute(sa.select(VERSION)).all() == [(HEAD,)]
        assert set(TABLES.tables) <= set(sa.inspect(db).get_table_names())


def test_a_catalog_of_a_newer_program_is_one_clear_error_and_is_left_as_it_is(url):
    """Writing into tables that mean something else by now breaks them for the newer program too."""
    connect(url)
    set_version(url, "9999")
    with pytest.raises(
        ArtifactError, match=f"schema version 9999 of a newer clapcur; this version supports up to {HEAD}"
    ) as told:
        connect(url)
    assert "\n" not in str(told.value)
    plain = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool)
    with plain.begin() as db:
        assert db.execute(sa.text(f"SELECT version_num FROM {VERSION.name}")).all() == [("9999",)]


def test_a_password_is_not_told(tmp_path, monkeypatch):
    """Errors land in logs, and on the pages of Prefect."""
    address = f"sqlite:///{tmp_path / 'catalog.db'}"
    connect(address)
    set_version(address, "9999")
    secret = sa.make_url("postgresql://me:secret@host/db")
    engine = sa.create_engine(address, poolclass=sa.NullPool)
    monkeypatch.setattr(engine, "url", secret)
    with pytest.raises(ArtifactError, match=r"postgresql://me:\*\*\*@host/db"), engine.begin() as db:
        database._migrate(db)


@pytest.fixture
def next_step(tmp_path, monkeypatch):
    """Give the program a further step, which adds a column; `fails` says whether it breaks in the middle."""

    def make(fails=False):
        folder = tmp_path / "100 % new" / "migrations"  # the sign means something in a config file
        shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / "0002_note.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n"
            'revision, down_revision = "0002", "0001"\n'
            "def upgrade():\n"
            '    with op.batch_alter_table("artifact") as table:\n'
            '        table.add_column(sa.Column("note", sa.Text))\n'
            + ('    raise RuntimeError("power cut")\n' if fails else "")
        )
        monkeypatch.setattr(database, "MIGRATIONS", folder)
        monkeypatch.setattr(database, "HEAD", "0002")

    return make


def columns(url):
    engine, _ = connect(url)
    with engine.begin() as db:
        return [column["name"] for column in sa.inspect(db).get_columns("artifact")]


@pytest.mark.parametrize("stamped", [True, False])
def test_an_old_catalog_takes_the_steps_that_are_missing(url, next_step, stamped):
    before_steps(url)
    if stamped:
        connect(url)
    next_step()
    assert in_children(3, lambda number: connect(url)) == [0] * 3
    assert "note" in columns(url)
    assert Catalog(url).of_kind("manifest") == ["a" * 12]


def test_a_step_that_breaks_leaves_the_tables_as_they_were(url, next_step, monkeypatch):
    """A half-taken step can be neither taken again nor left."""
    enter(Catalog(url), a_record("a"))
    next_step(fails=True)
    with pytest.raises(RuntimeError, match="power cut"):
        connect(url)
    monkeypatch.undo()
    assert version(url) == "0001"
    assert "note" not in columns(url)
    assert Catalog(url).of_kind("manifest") == ["a" * 12]
