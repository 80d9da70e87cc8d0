"""A process that was asleep for longer than its lease: nothing is made twice, nothing fails, MLflow shows what is."""

import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import contextmanager

import chain
import pytest

from clapcur.errors import DataError, LeaseLostError
from clapcur.store import leases
from clapcur.store.artifacts import Stage, write_atomic
from clapcur.store.catalog import Catalog
from clapcur.store.record import Outcome, Record
from clapcur.store.runner import run
from clapcur.testing import record
from clapcur.tracking import deliver, live, sync
from clapcur.tracking.runs import MlflowPage, connect

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.slow,
]
FORK = multiprocessing.get_context("fork")
STEPS = 4
is_quiet = threading.Lock()  # held while a lease is renewed
alarm: list[int] = []  # a pipe, into which a byte is written before a sleeper is woken


@pytest.fixture(autouse=True)
def short_lease(monkeypatch):
    """Let a lease run out after a second, in the children too."""
    renew = leases.Lease.renew

    def renew_in_turn(lease):
        with is_quiet:
            return renew(lease)

    monkeypatch.setattr(leases, "LEASE_S", 1.0)
    monkeypatch.setattr(leases.Lease, "renew", renew_in_turn)


def stop():
    """Stop this process until `asleep` wakes it, not in the middle of a write: others would wait for SQLite's lock."""
    with is_quiet:
        os.kill(os.getpid(), signal.SIGSTOP)
        assert os.read(alarm[0], 1)  # a thread that is not the main one is stopped a moment later


def training(between):
    """Make a stage like a training: it tells its steps, keeps its state in the scratch, and calls `between(step)`."""

    def compute(inputs, config, work):
        state = work.scratch / "state.json"
        first = json.loads(state.read_text())["step"] if state.exists() else 0
        for step in range(first, STEPS):
            between(step)
            if step:
                json.loads(state.read_text())  # of the step before: gone where another process has finished
            write_atomic(state, json.dumps({"step": step}))
            work.on_step(step, {"loss": 1 / (step + 1)})
        (work.path / "history.jsonl").write_text("")
        return Outcome(counts={"pairs": 4})

    return Stage("train", "1", "checkpoint", compute)


def fall_asleep(step, slept=[]):  # noqa: B006  # once in each process
    if step == 2 and os.getpid() not in slept:
        slept.append(os.getpid())
        stop()


def in_a_child(work):
    """Run a function in a child and return its exit code: SQLite's connections must not be there when we fork."""
    child = FORK.Process(target=work)
    child.start()
    child.join(60)
    return child.exitcode


@contextmanager
def asleep(work):
    """Run a function in a child that stops itself; inside the block it sleeps. Gives its exit code, at the end."""
    alarm[:] = os.pipe()
    child = FORK.Process(target=work)
    child.start()
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"it ended instead, with {status}"
    code = []
    try:
        yield code
    finally:
        os.write(alarm[1], b".")
        os.kill(child.pid, signal.SIGCONT)
        child.join(60)
        code.append(child.exitcode)
        for end in alarm:
            os.close(end)


@pytest.mark.parametrize("when", ["between two steps", "in a step"])
def test_who_sleeps_takes_what_another_process_finished_meanwhile(home, when, tmp_path):
    """A laptop that was closed for a minute ended with an error about files of which its owner never heard."""
    found = tmp_path / "found.json"

    def work():
        stop = training(fall_asleep) if when == "in a step" else training(lambda step: None)

        def on_step(step, metrics):
            if when == "between two steps":
                fall_asleep(step)

        artifact = run(stop, {"n": 1}, {}, home, on_step=on_step)
        found.write_text(json.dumps([artifact.id, artifact.record.finished]))

    with asleep(work) as code:
        made = run(training(lambda step: None), {"n": 1}, {}, home)
    assert code == [0]
    assert json.loads(found.read_text()) == [made.id, made.record.finished]
    assert not (made.path / ".work").exists()


def test_who_sleeps_goes_on_where_the_other_process_failed(home, tmp_path):
    """The one that took over may die in its turn: somebody has to make the thing."""

    def fail(step):
        if step == 3:
            raise DataError("a clip went away")

    with asleep(lambda: run(training(fall_asleep), {"n": 1}, {}, home)) as code:
        with pytest.raises(DataError):
            run(training(fail), {"n": 1}, {}, home)
    assert code == [0]
    assert len(list(home.store)) == 1


def test_an_error_of_ones_own_is_not_taken_for_a_lost_lease(home):
    """Else a wrong input would be tried again for ever."""

    def fail(step):
        raise DataError("no such clip")

    with pytest.raises(DataError, match="no such clip"):
        run(training(fail), {"n": 1}, {}, home)


def test_a_lease_that_ran_out_while_nobody_wanted_it_is_kept(home):
    """Closing the laptop over lunch must not cost the morning's training."""
    with asleep(lambda: run(training(fall_asleep), {"n": 1}, {}, home)) as code:
        time.sleep(2.5 * leases.LEASE_S)
    assert code == [0]


def test_whoever_asks_first_after_a_sleep_hears_that_the_lease_is_lost(home):
    """The thread that renews it wakes up at the same moment, and may come later."""
    catalog = Catalog.open(home)

    def work():
        with Catalog.open(home).lease("x", "the pool x") as lease:
            stop()
            with pytest.raises(
                LeaseLostError, match="the pool x: another process took over while this one was suspended"
            ):
                lease.check()

    with asleep(work) as code, catalog.lease("x"):
        assert catalog.is_being_made("x")
    assert code == [0]
    assert not catalog.is_being_made("x")


def status_of(home, artifact_id):
    client = connect(home)
    return client.get_run(Catalog.open(home).run_of(artifact_id)).info.status


def train_with_curves(home, between):
    """Train as a task does."""
    stage = training(between)
    with live(home, stage.key({"n": 1}, {}), chain.CAMPAIGN) as on_step:
        artifact = run(stage, {"n": 1}, {}, home, campaign=chain.CAMPAIGN, on_step=on_step)
    deliver(home)
    return artifact


def test_a_run_that_another_process_finished_is_not_called_running_again(home):
    """Who woke up before it had opened its run called the finished one RUNNING, and left it so."""
    key = training(print).key({"n": 1}, {})
    with live(home, key, chain.CAMPAIGN) as on_step:
        made = train_with_curves(home, lambda step: None)
        on_step(1, {"loss": 0.5})
    assert status_of(home, made.id) == "FINISHED"


def test_a_run_that_is_finished_just_as_it_is_revived_ends_finished(home, monkeypatch):
    """Between the look at the store and the word to MLflow, the other process may finish."""
    key = training(print).key({"n": 1}, {})
    made = train_with_curves(home, lambda step: None)
    record = made.path / "record.json"
    aside = record.rename(record.with_suffix(".aside"))
    with live(home, key, chain.CAMPAIGN) as on_step:
        on_step(1, {"loss": 0.5})
        deadline = time.monotonic() + 30
        while status_of(home, made.id) != "RUNNING":
            assert time.monotonic() < deadline, "the run was not revived"
            time.sleep(0.05)
        aside.rename(record)
    assert status_of(home, made.id) == "FINISHED"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("said", ["RUNNING", "FAILED"])
def test_the_run_of_what_was_finished_stays_finished_whenever_its_first_maker_fell_asleep(
    home, said, moment, monkeypatch
):
    """What a process was about to say before it slept is out of date when it wakes up, and is said all the same."""
    from mlflow import MlflowClient

    monkeypatch.setattr("clapcur.tracking.curves.FLUSH_S", 0.05)
    assert in_a_child(lambda: connect(home)) == 0

    def fail_at(last, step):
        if step == last:
            raise DataError("a clip went away")

    if said == "RUNNING":  # is said of a run that an earlier try has ended
        assert in_a_child(lambda: train_with_curves(home, lambda step: fail_at(1, step))) == 1

    def work():
        slept = threading.Event()

        def sleep():
            stop()
            slept.set()

        def sleepy(change):
            def changed(client, run_id, status=None, *rest):
                is_here = status == said and not slept.is_set()
                if is_here and moment == "before":
                    sleep()
                change(client, run_id, status, *rest)
                if is_here and moment == "after":
                    sleep()

            return changed

        def between(step):
            if said == "FAILED":
                fail_at(3, step)
            assert step != 3 or slept.wait(60)

        for name in ("update_run", "set_terminated"):
            monkeypatch.setattr(MlflowClient, name, sleepy(getattr(MlflowClient, name)))
        train_with_curves(home, between)

    with asleep(work) as code:
        made = train_with_curves(home, lambda step: None)
        assert status_of(home, made.id) == "FINISHED"
    assert code == [1 if said == "FAILED" else 0]
    assert status_of(home, made.id) == "FINISHED"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("wrong", ["FAILED", "KILLED", "RUNNING"])
def test_sync_mends_the_run_of_a_finished_artifact(home, wrong):
    """What an earlier version, or a kill, left wrong must be right after the command that mends the page."""
    made = train_with_curves(home, lambda step: None)
    client = connect(home)
    client.update_run(Catalog.open(home).run_of(made.id), wrong)
    assert sync(home) == (0, 0)
    assert status_of(home, made.id) == "FINISHED"


@pytest.mark.timeout(240)
def test_sync_does_not_end_as_killed_what_is_finished_while_it_looks(home, monkeypatch):
    """Between the look at the store and that at the leases the training may end, and its process with it."""
    stage, catalog = training(lambda step: None), Catalog.open(home)
    begun = Record.planned(stage.key({"n": 1}, {}), started=time.time())
    MlflowPage(home, catalog).open_run(begun)

    def is_being_made(catalog, name):
        run(stage, {"n": 1}, {}, home)
        return False

    monkeypatch.setattr(Catalog, "is_being_made", is_being_made)
    sync(home)
    assert status_of(home, begun.id) == "FINISHED"


@pytest.mark.timeout(240)
def test_sync_ends_the_run_of_a_training_that_was_killed_and_leaves_one_that_runs(home):
    """MLflow would show it as running for ever; ending one that trains would be as wrong."""
    catalog, page = Catalog.open(home), MlflowPage(home, Catalog.open(home))
    begun = {name: record("checkpoint", stage="train", id=name * 12, started=time.time()) for name in "ab"}
    runs = {name: page.open_run(one).info.run_id for name, one in begun.items()}
    with catalog.lease("b" * 12):
        sync(home)
    client = connect(home)
    assert {name: client.get_run(run).info.status for name, run in runs.items()} == {"a": "KILLED", "b": "RUNNING"}
