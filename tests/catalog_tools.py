"""Records for a catalog, in SQLite and PostgreSQL."""

import multiprocessing
import time

import pytest
import sqlalchemy as sa
from postgres import running_postgres

from clapcur.store.catalog import Catalog, payload_of
from clapcur.store.database import connect
from clapcur.testing import record

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="session")
def postgres():
    with running_postgres() as folder:
        yield folder


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    host = request.getfixturevalue("postgres")
    server, schema = f"postgresql://clapcur@/postgres?host={host}", f"t{time.time_ns()}"
    _, writer = connect(server)
    with writer.begin() as db:
        db.execute(sa.text(f"CREATE SCHEMA {schema}"))
    return f"{server}&options=-csearch_path%3D{schema}"  # a database each would be a thousand files each


@pytest.fixture
def catalog(url):
    return Catalog(url)


def a_record(name, inputs=(), kind="manifest", finished=10.0, **more):
    said = {"id": name * 12, "stage": "ingest", "started": finished - 2.0, "finished": finished}
    files = {"a": {"bytes": 3}, "b": {"bytes": 4}}
    return record(kind, **{**said, "inputs": dict(inputs), "files": files, "tags": {"role": "pool"}, **more})


def enter(catalog, *records):
    for one in records:
        catalog.index(one, payload_of(one))


def in_children(count, function):
    """Run `function(number)` in processes of their own, at the same moment, and return their exit codes."""
    barrier = FORK.Barrier(count)

    def begin(number):
        barrier.wait(30)
        function(number)

    children = [FORK.Process(target=begin, args=(number,)) for number in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    return [child.exitcode for child in children]
