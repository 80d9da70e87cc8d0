"""`clapcur doctor`: every kind of broken home, server and installation has its line, and nothing is written."""

import importlib.metadata
import json
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections import namedtuple
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import sqlalchemy as sa
from command_runs import run
from doc_pages import TEXT
from source_tree import ROOT

from clapcur.cli import health
from clapcur.store.artifacts import write_atomic
from clapcur.store.catalog import Catalog
from clapcur.store.database import LEASE
from clapcur.store.home import Home
from clapcur.testing import commit


@pytest.fixture
def whole(home):
    """Make a home with two artifacts and a catalog that has them, both sent to MLflow."""
    for name in ("a", "b"):
        commit(home.store, "scores", name, lambda work: write_atomic(work.path / "scores.json", "{}"), {})
    catalog = Catalog.open(home)
    catalog.rebuild(home.store)
    for message in catalog.waiting():
        catalog.mark(message, delivered=True)
    return home


def lines(check):
    """Return the lines of a check by topic."""
    return {line.topic: line for line in check}


def files(folder):
    """Return everything below a folder: names, times and content."""
    return {path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


# -- the home


def test_a_whole_home_has_no_problem(whole):
    found = lines([*health.folder(whole), *health.store(whole), *health.catalog(whole), *health.moved(whole)])
    assert {line.status for topic, line in found.items() if topic != "disk"} == {"ok"}
    assert "2 artifacts have all their files" in found["payloads"].found
    assert "agrees with the store on 2 artifacts" in found["catalog"].found and "mode 0700" in found["home"].found


def test_a_missing_home_is_told_and_not_made(tmp_path):
    home = Home(tmp_path / "absent")
    found = lines([*health.folder(home), *health.size(home), *health.store(home), *health.catalog(home)])
    assert list(found) == ["home"] and found["home"].status == "warning" and "does not exist" in found["home"].found
    assert not home.root.exists()


def test_a_file_in_place_of_the_home_is_a_problem(tmp_path):
    (tmp_path / "home").touch()
    assert lines(health.folder(Home(tmp_path / "home")))["home"].status == "problem"


def test_a_read_only_home_is_a_problem(whole, monkeypatch):
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and may(path, mode))
    line = lines(health.folder(whole))["home"]
    assert line.status == "problem" and "read-only" in line.found


@pytest.mark.parametrize(("free", "status"), [(0.5, "problem"), (5, "warning"), (50, "ok")])
def test_the_free_space_is_judged(whole, monkeypatch, free, status):
    """A training of a day that ends with a full disk."""
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(int(free * 2**30)))
    line = lines(health.folder(whole))["disk"]
    assert (line.status, line.found) == (status, f"{free:.1f} GiB free")


@pytest.mark.parametrize("damage", ["lost", "longer"])
def test_a_payload_that_disagrees_with_its_record_is_named(whole, damage):
    artifact = next(iter(whole.store))
    path = artifact.path / "scores.json"
    path.unlink() if damage == "lost" else path.write_text("{  }")
    line = lines(health.store(whole))["payloads"]
    assert (
        line.status == "problem"
        and f"1 of 2 artifacts lack a file, or have one of another size: scores {artifact.id}" in line.found
    )
    assert "clapcur verify" in line.advice


def test_a_damaged_record_is_named(whole):
    artifact = next(iter(whole.store))
    (artifact.path / "record.json").write_text("{")
    found = lines(health.store(whole))
    assert found["records"].status == "problem" and artifact.id in found["records"].found
    assert f"clapcur verify {artifact.id}" in found["records"].advice
    assert lines(health.catalog(whole))["catalog"].status == "ok", "its entry is all that is known of it"


def test_a_catalog_behind_its_store_is_to_be_rebuilt(whole):
    new = commit(whole.store, "scores", "c", lambda work: write_atomic(work.path / "scores.json", "{}"), {})
    line = lines(health.catalog(whole))["catalog"]
    assert (
        line.status == "problem"
        and line.found == f"1 artifact of the store missing in it, 0 artifacts in it missing in the store: {new.id}"
    )
    assert line.advice == "run `clapcur catalog rebuild`"


def test_a_catalog_ahead_of_its_store_is_to_be_rebuilt(whole):
    gone = next(iter(whole.store))
    shutil.rmtree(gone.path)
    line = lines(health.catalog(whole))["catalog"]
    assert (
        line.status == "problem"
        and line.found == f"0 artifacts of the store missing in it, 1 artifact in it missing in the store: {gone.id}"
    )


def test_a_lost_catalog_is_to_be_rebuilt(whole):
    for path in whole.root.glob("catalog.db*"):
        path.unlink()
    line = lines(health.catalog(whole))["catalog"]
    assert (line.status, line.advice) == ("warning", "run `clapcur catalog rebuild`")
    assert not (whole.root / "catalog.db").exists()


def test_a_catalog_that_is_no_database_is_named(whole):
    for path in whole.root.glob("catalog.db*"):
        path.unlink()
    (whole.root / "catalog.db").write_bytes(b"no database" * 1000)
    line = lines(health.catalog(whole))["catalog"]
    assert line.status == "problem" and "file is not a database" in line.found and "move" in line.advice


def test_a_database_server_that_is_down_is_a_problem_without_its_password(whole, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("CLAPCUR_DATABASE_URL", f"postgresql://me:hunter2@127.0.0.1:{port}/db")
    line = lines(health.catalog(whole))["catalog"]
    assert line.status == "problem" and "does not answer" in line.found and "hunter2" not in line.found


def test_pending_records_and_stale_leases_are_counted(whole):
    catalog = Catalog.open(whole)
    catalog.requeue(everything=True)
    with closing(sqlite3.connect(whole.root / "catalog.db")) as db:
        db.execute(f"INSERT INTO {LEASE.name} VALUES ('0123456789ab', 'elsewhere/1 7 8 9', 1.0)")
        db.execute(f"INSERT INTO {LEASE.name} VALUES ('ab0123456789', 'elsewhere/1 7 8 9', 1e12)")
        db.commit()
    found = lines(health.catalog(whole))
    assert (found["outbox"].status, found["outbox"].advice) == ("warning", "run `clapcur sync`")
    assert found["outbox"].found == "not in MLflow yet: 2"
    assert found["leases"].status == "warning" and found["leases"].found.endswith("killed: 0123456789ab")


def test_a_moved_home_is_told(whole):
    """Its models load from where it was, if that still exists: then from the wrong home."""
    with closing(sqlite3.connect(whole.mlflow_file)) as db:
        db.execute("CREATE TABLE experiments (artifact_location TEXT)")
        db.execute("CREATE TABLE runs (artifact_uri TEXT)")
        db.execute("INSERT INTO experiments VALUES ('file:///before/home/mlflow-artifacts/1')")
        db.commit()
    line = lines(health.moved(whole))["moved home"]
    assert (line.status, line.advice) == ("warning", "run `clapcur sync`") and "/before/home" in line.found
    whole.mlflow_file.write_bytes(b"no database" * 1000)
    assert lines(health.moved(whole))["MLflow's file"].status == "problem"


def test_no_check_writes(whole):
    """A home on a backup must be the same afterwards, down to SQLite's journals."""
    sa.create_engine(whole.database_url).dispose()
    with closing(sqlite3.connect(whole.mlflow_file)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE experiments (artifact_location TEXT)")
        db.commit()
    before = files(whole.root)
    for check in (
        health.folder,
        health.size,
        health.store,
        health.catalog,
        health.moved,
        health.mlflow,
        health.prefect,
    ):
        list(check(whole))
    assert files(whole.root) == before


# -- the servers


@contextmanager
def serving(answers, login=None):
    """Serve JSON by path on loopback; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            known = login is None or self.headers["Authorization"] == f"Basic {login}"
            found = answers.get(self.path)
            self.send_response(401 if not known else 404 if found is None else 200)
            self.end_headers()
            self.wfile.write(found.encode() if found and known else b"")

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("server", "status"), [(None, "ok"), ("2.0.0", "warning")])
def test_a_server_of_another_version_is_told(home, monkeypatch, server, status):
    with serving({"/version": server or importlib.metadata.version("mlflow")}) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        line = lines(health.mlflow(home))["MLflow"]
    assert line.status == status and address in line.found


def test_a_server_that_is_down_or_rejects_the_login_is_a_problem(home, monkeypatch):
    with serving({"/version": "3"}, login="c29tZWJvZHk6ZWxzZQ==") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        line = lines(health.mlflow(home))["MLflow"]
    assert line.status == "problem" and "rejects the login (HTTP 401)" in line.found
    line = lines(health.mlflow(home))["MLflow"]
    assert line.status == "problem" and "refused" in line.found and "clapcur up" in line.advice


@pytest.mark.parametrize("state", ["ONLINE", "OFFLINE", None])
def test_workers_that_poll_are_counted(home, monkeypatch, state):
    """A flow started on the page waits for ever, and nothing says why."""
    workers = [] if state is None else [{"name": "cpu-1", "status": state}]
    answers = {
        "/api/admin/version": json.dumps(importlib.metadata.version("prefect")),
        "/api/work_pools/filter": json.dumps([{"name": "cpu"}]),
        "/api/work_pools/cpu/workers/filter": json.dumps(workers),
    }
    with serving(answers) as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        found = lines(health.prefect(home))
    assert found["Prefect"].status == "ok"
    if state == "ONLINE":
        assert (found["workers"].status, found["workers"].found) == ("ok", "polling: cpu-1 (cpu)")
    else:
        assert found["workers"].status == "warning" and "none is polling cpu" in found["workers"].found


def test_what_hangs_is_left_behind(home, monkeypatch):
    """A server that accepts and says nothing keeps most programs for minutes."""
    monkeypatch.setattr(health, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "no answer" in lines(health.mlflow(home))["MLflow"].found
    started = time.monotonic()
    finish = health._started("a disk", 0.2, lambda: iter([time.sleep(60)]))
    (line,) = finish()
    assert time.monotonic() - started < 30
    assert (line.topic, line.status, line.found) == ("a disk", "problem", "no answer within 0.2 s")


def test_a_check_that_fails_is_a_line():
    def check():
        yield health.Line("x", "ok", "1")
        raise RuntimeError("at postgresql://me:hunter2@h/d")

    first, last = health._started("x", 60, check)()
    assert first.status == "ok" and last.status == "problem"
    assert last.found == "RuntimeError: at postgresql://me:***@h/d"


# -- the installation and the environment


def test_versions_are_compared_with_the_ranges_of_the_package(monkeypatch):
    """Prefect's next minor version broke its server once; pip installs what another package asks for."""
    version = importlib.metadata.version
    wrong = {"prefect": "3.9.0", "numpy": "1.26.0"}

    def found(name):
        if name == "soxr":
            raise importlib.metadata.PackageNotFoundError(name)
        return wrong.get(name) or version(name)

    monkeypatch.setattr(importlib.metadata, "version", found)
    told = lines(health.versions())
    assert told["torch"].status == "ok" and told["python"].status == "ok"
    assert (told["prefect"].status, told["prefect"].found) == ("problem", "3.9.0, supported is ==3.8.*")
    assert told["prefect"].advice == "pip install 'prefect==3.8.*'"
    assert told["numpy"].status == "problem" and "pandas" not in told
    assert told["soxr"].status == "problem" and "not installed" in told["soxr"].found


def test_an_extra_that_is_incomplete_is_no_problem(monkeypatch):
    version = importlib.metadata.version

    def found(name):
        if name == "boto3":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", found)
    told = lines(health.extras())
    assert (told["extra s3"].status, told["extra s3"].found) == ("ok", "not installed: boto3")
    assert "clapcur[s3]" in told["extra s3"].advice and "extra dev" not in told


def test_variables_are_shown_without_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    monkeypatch.setenv("CLAPCUR_DATABASE_URL", "postgresql://me:hunter2@h/d")
    monkeypatch.setenv("CLAPCUR_FANOUT", "ray")
    told = lines(health.environment())
    assert told["HF_TOKEN"].found == "***" and told["CLAPCUR_DATABASE_URL"].found == "postgresql://me:***@h/d"
    assert (
        told["CLAPCUR_FANOUT"].status == "warning" and told["CLAPCUR_FANOUT"].advice == "did you mean CLAPCUR_FAN_OUT?"
    )


def test_the_variables_are_those_of_the_docs():
    page = TEXT[ROOT / "docs/environment.md"]
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `CLAPCUR_")] == list(
        health.VARIABLES
    )


def test_a_library_that_crashes_is_told(monkeypatch):
    """An import that ends with SIGILL takes the whole process with it."""
    assert "ended with -4" in health._probe("import os; os.kill(os.getpid(), 4)")
    assert health._probe("raise ImportError('libcudart.so.13 is missing')") == "ImportError: libcudart.so.13 is missing"


@pytest.mark.slow
def test_the_command_checks_everything_and_writes_nothing(whole):
    before = files(whole.root)
    done = run("doctor", "--json", "--home", whole.root)
    said = json.loads(done.stdout)
    topics = {line["topic"] for line in said["lines"]}
    assert {"python", "torch", "GPU", "CPU", "libsndfile", "home", "disk", "catalog", "MLflow", "Prefect"} <= topics
    problems = [line for line in said["lines"] if line["status"] == "problem"]
    assert done.returncode == bool(problems) and said["problems"] == len(problems)
    assert files(whole.root) == before
    next(iter(whole.store)).path.joinpath("scores.json").unlink()
    done = run("doctor", "--home", whole.root)
    assert done.returncode == 1 and "problem" in done.stdout and "clapcur verify --all" in done.stdout
