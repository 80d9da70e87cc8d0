"""The catalog: one truth in the store, one index of it, one maker for each artifact; on both databases."""

import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from catalog_tools import (
    a_record,
    catalog,  # noqa: F401  # a fixture
    enter,
    in_children,
    postgres,  # noqa: F401  # a fixture
    url,  # noqa: F401  # a fixture
)

from clapcur.errors import ArtifactError
from clapcur.store import leases
from clapcur.store.artifacts import Key, Store
from clapcur.store.catalog import Catalog, Edge
from clapcur.store.database import ARTIFACT, EDGE, LEASE, OUTBOX, connect
from clapcur.store.record import Outcome

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def dump(url, *tables):
    engine, _ = connect(url)
    with engine.begin() as db:
        return {t.name: sorted(map(repr, db.execute(sa.select(t)).all())) for t in tables or (ARTIFACT, EDGE, OUTBOX)}


def test_an_artifact_its_edges_and_its_message_are_entered_together(catalog, url):
    """An artifact without edges is made of nothing; one without a message is never seen in MLflow."""
    enter(catalog, a_record("b", {"pool": "a" * 12, "captions": "c" * 12}))
    engine, _ = connect(url)
    with engine.begin() as db:
        artifact = db.execute(sa.select(ARTIFACT)).one()._mapping
        edges = set(db.execute(sa.select(EDGE)).tuples())
    assert dict(artifact) == {
        "id": "b" * 12, "kind": "manifest", "stage": "ingest", "finished": 10.0, "seconds": 2.0, "bytes": 7,
        "tags": {"role": "pool"}, "mlflow_run_id": None,
    }  # fmt: skip
    assert edges == {("b" * 12, "pool", "a" * 12), ("b" * 12, "captions", "c" * 12)}
    (message,) = catalog.waiting()
    assert message[1:] == ("b" * 12, "record", {"campaign": None, "tags": {"role": "pool"}})


def test_what_cannot_be_entered_whole_is_not_entered_at_all(catalog, url):
    """A message that is missing is missing for good: the next run sees the artifact as known."""
    empty = dump(url)
    with pytest.raises((TypeError, sa.exc.StatementError), match="not JSON serializable"):
        catalog.index(a_record("a", {"pool": "c" * 12}), {"tags": object()})
    assert dump(url) == empty


def test_entering_the_same_record_again_changes_nothing(catalog, url):
    """A second message would be a second delivery, on every hit of the cache."""
    enter(catalog, a_record("a", {"pool": "c" * 12}))
    catalog.set_run("a" * 12, "run")
    catalog.mark(catalog.waiting()[0], delivered=True)
    before = dump(url)
    enter(catalog, a_record("a", {"pool": "c" * 12}))
    assert dump(url) == before


def test_a_recomputed_artifact_replaces_its_entry_and_is_told_again(catalog):
    """MLflow would continue showing the metrics of bytes that no longer exist."""
    enter(catalog, a_record("a"))
    catalog.set_run("a" * 12, "run")
    catalog.mark(catalog.waiting()[0], delivered=True)
    assert catalog.waiting() == []
    enter(catalog, a_record("a", finished=20.0))
    assert catalog.knows("a" * 12, 20.0) and not catalog.knows("a" * 12, 10.0)
    assert [message.topic for message in catalog.waiting()] == ["record"]
    assert catalog.run_of("a" * 12) == "run"


def store_of(tmp_path, *versions):
    store = Store(tmp_path / "store")
    for version in versions:
        key = Key("manifest", "ingest", version, {}, {"pool": "a" * 12})
        work = store.open(key)
        (work.path / "data").write_text(version)
        campaign = {"experiment": "esc50", "name": "n", "key": "k"}
        store.commit(work, Outcome(), 1.0, tags={"role": version}, campaign=campaign)
    return store


def test_a_rebuilt_catalog_is_the_one_that_was_lost(url, tmp_path):
    """The store is called the truth: whatever the rebuild forgets was never safe."""
    store = store_of(tmp_path, "1", "2", "3")
    catalog = Catalog(url)
    enter(catalog, *(artifact.record for artifact in store))
    before = dump(url)
    engine, writer = connect(url)
    with writer.begin() as db:
        for table in (ARTIFACT, EDGE, OUTBOX):
            db.execute(sa.delete(table))
    assert catalog.rebuild(store) == 3
    after = dump(url)
    assert (after["artifact"], after["edge"]) == (before["artifact"], before["edge"])
    campaigns = [message.payload["campaign"]["experiment"] for message in catalog.waiting()]
    assert campaigns == ["esc50"] * 3


def test_a_rebuild_keeps_runs_and_messages_and_drops_what_the_store_lacks(url, tmp_path):
    """Forgotten runs are doubled at the next delivery; kept corpses are named as inputs."""
    store = store_of(tmp_path, "1", "2")
    catalog = Catalog(url)
    enter(catalog, *(artifact.record for artifact in store), a_record("f", {"pool": "e" * 12}))
    first, second = store
    catalog.set_run(first.id, "run")
    catalog.mark(next(message for message in catalog.waiting() if message.artifact_id == first.id), delivered=True)
    catalog.rebuild(store)
    assert catalog.run_of(first.id) == "run"
    assert [message.artifact_id for message in catalog.waiting()] == [second.id]
    assert catalog.of_kind("manifest") == [first.id, second.id]
    assert catalog.downstream("e" * 12) == []


def test_catching_up_enters_only_what_is_missing(url, tmp_path):
    """A crash between record and catalog hides a finished artifact from `impact`."""
    store = store_of(tmp_path, "1", "2", "3")
    first, second, third = store
    catalog = Catalog(url)
    enter(catalog, first.record)
    assert (catalog.catch_up(store), catalog.catch_up(store)) == (2, 0)
    assert catalog.of_kind("manifest") == [first.id, second.id, third.id]


def closure(edges, start, near, far, roles=None):
    """Walk edge by edge: the slow, obvious way."""
    found, waiting = set(), set(start)
    while waiting:
        here = waiting.pop()
        for edge in edges:
            if getattr(edge, near) == here and edge not in found and (roles is None or edge.role in roles):
                found.add(edge)
                waiting.add(getattr(edge, far))
    return sorted(found)


def test_both_directions_reach_what_walking_edge_by_edge_reaches(catalog, rng):
    """A recursion that stops early leaves models out of a take-down."""
    names = [f"{number:012x}" for number in range(30)]
    edges = []
    for number, name in enumerate(names):
        below = rng.choice(number, size=min(number, 2), replace=False) if number else []
        roles = rng.choice(["init", "pool", "teacher"], size=len(below), replace=False)
        inputs = {str(role): names[index] for role, index in zip(roles, below, strict=True)}
        edges += [Edge(name, role, other) for role, other in inputs.items()]
        enter(catalog, a_record("0", inputs, id=name))
    for name in names:
        assert catalog.upstream(name) == closure(edges, [name], "artifact_id", "input_id")
        assert catalog.downstream(name) == closure(edges, [name], "input_id", "artifact_id")
    some, roles = names[:2], ["init", "teacher"]
    assert catalog.downstream(*some, roles=roles) == closure(edges, some, "input_id", "artifact_id", roles)
    assert catalog.downstream() == []


def test_names_of_people_find_one_artifact_or_say_what_is_wrong(catalog):
    """A wrong guess traces somebody else's model."""
    enter(catalog, a_record("0", id="abcd00000000"), a_record("0", id="abcd11111111"))
    catalog.set_run("abcd00000000", "f" * 32)
    assert catalog.resolve("abcd0") == "abcd00000000"
    assert catalog.resolve("f" * 32) == "abcd00000000"
    with pytest.raises(
        ArtifactError, match="'abcd' matches 2 ids, give more digits: manifest abcd00000000, manifest abcd1"
    ):
        catalog.resolve("abcd")
    with pytest.raises(ArtifactError, match="no artifact and no MLflow run has the id 'abce'"):
        catalog.resolve("abce")
    with pytest.raises(ArtifactError, match="no artifact"):
        catalog.resolve("____")  # a wildcard to LIKE
    with pytest.raises(ArtifactError, match="at least 4 digits"):
        catalog.resolve("abc")


def test_messages_wait_in_order_until_they_arrive_or_failed_too_often(catalog):
    """A message that never succeeds must not be tried at every step of every run."""
    enter(catalog, *(a_record(name) for name in "abc"))
    first, second, third = catalog.waiting()
    assert [message.artifact_id[0] for message in (first, second, third)] == ["a", "b", "c"]
    assert catalog.waiting(after=first.id) == [second, third]
    catalog.mark(first, delivered=True)
    for _ in range(5):
        assert second in catalog.waiting()
        catalog.mark(second, delivered=False)
    assert catalog.waiting() == [third]
    assert catalog.num_waiting() == 2
    catalog.requeue()
    assert catalog.waiting() == [second, third]
    catalog.requeue(everything=True)
    assert catalog.waiting() == [first, second, third]


def test_a_note_is_taken_once_for_each_topic(catalog):
    """A reuse is noted at every hit of the cache."""
    for topic in ("used by x", "used by x", "used by y"):
        catalog.note("a" * 12, topic, {"campaign": None})
    assert [message.topic for message in catalog.waiting()] == ["used by x", "used by y"]


def test_several_processes_may_open_a_new_catalog_at_once(url):
    """The first use of a fresh database is where tables are made twice, and the file is broken for good."""
    assert in_children(5, lambda number: enter(Catalog(url), a_record("abcde"[number], {"pool": "f" * 12}))) == [0] * 5
    assert len(Catalog(url).waiting()) == 5


def test_processes_that_enter_the_same_and_other_records_lose_and_double_none(url):
    """Readers that become writers fail on SQLite when another wrote in between; edges collide on PostgreSQL."""
    catalog = Catalog(url)
    records = [a_record(name, {"pool": "0" * 12, "captions": "1" * 12}) for name in "abcdef"]
    assert in_children(4, lambda number: [enter(Catalog(url), record) for record in records * 3]) == [0] * 4
    tables = dump(url)
    assert [len(tables[name]) for name in ("artifact", "edge", "outbox")] == [6, 12, 6]
    assert catalog.upstream("a" * 12) == [Edge("a" * 12, "captions", "1" * 12), Edge("a" * 12, "pool", "0" * 12)]


def test_the_second_waits_for_the_first_and_says_so(catalog, caplog):
    """Two makers of one artifact write into one folder."""
    order = []

    def second():
        with catalog.lease("x", "scores x") as lease:
            order.append(("second", lease.waited))

    with caplog.at_level(logging.INFO, "clapcur"), catalog.lease("x") as lease:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append(("first", lease.waited))
    thread.join(10)
    assert order == [("first", False), ("second", True)]
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"waiting for scores x, which is being computed by process {os.getpid()} on {platform.node()}"]


def test_a_lease_is_given_back_where_the_work_fails(catalog, url):
    """A failed stage would block its own repetition for a minute."""
    with pytest.raises(ZeroDivisionError), catalog.lease("x"):
        raise ZeroDivisionError
    assert dump(url, LEASE) == {"lease": []}


def test_a_lease_of_a_killed_process_is_taken_at_once(catalog, url):
    """After every kill -9, everybody would wait for the lease to run out."""

    def die(number):
        with Catalog(url).lease("x"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_children(1, die) == [-signal.SIGKILL]
    began = time.monotonic()
    with catalog.lease("x"):
        assert time.monotonic() - began < 0.1 * leases.LEASE_S


def test_a_zombie_and_a_reused_process_number_count_as_dead(catalog):
    """A parent that does not reap, or a busy machine, would keep a lease alive for ever."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    machine, pid, birth, token = leases._this_owner().split()
    assert not leases._is_gone(f"{machine} {pid} {birth} {token}")
    assert leases._is_gone(f"{machine} {pid} {int(birth) + 1} {token}")
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert leases._is_gone(f"{machine} {child.pid} {birth} {token}")
    child.wait()


def foreign_lease(url, name, until):
    _, writer = connect(url)
    with writer.begin() as db:
        db.execute(sa.delete(LEASE))
        db.execute(sa.insert(LEASE).values(name=name, owner="elsewhere/pid:[1] 1 1 0", until=until))


def test_a_lease_of_another_machine_is_taken_when_it_ran_out_and_not_before(catalog, url):
    """Whether that process lives cannot be seen from here: only the clock may be trusted."""
    foreign_lease(url, "x", time.time() + 0.8)
    began = time.monotonic()
    with catalog.lease("x") as lease:
        assert lease.waited
        assert time.monotonic() - began > 0.7


def test_who_works_on_keeps_the_lease_beyond_its_length(catalog, monkeypatch):
    """A training takes hours: without a heartbeat a second maker starts after a minute."""
    monkeypatch.setattr(leases, "LEASE_S", 0.4)
    monkeypatch.setattr(leases, "_is_gone", lambda owner: False)
    taken = []

    def second():
        with catalog.lease("x"):
            taken.append(time.monotonic())

    with catalog.lease("x"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(1.2)
        ended = time.monotonic()
    thread.join(10)
    assert taken[0] >= ended


def test_who_lost_the_lease_is_told(catalog, url, monkeypatch):
    """After a long sleep of the machine two processes would finish the same artifact."""
    monkeypatch.setattr(leases, "LEASE_S", 0.4)
    with catalog.lease("x") as lease:
        lease.check()
        foreign_lease(url, "x", time.time() + 60)
        time.sleep(0.5)
        with pytest.raises(ArtifactError, match="x: another process took over while this one was suspended"):
            lease.check()
    assert "elsewhere" in dump(url, LEASE)["lease"][0]
