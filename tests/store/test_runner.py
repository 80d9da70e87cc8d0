"""One stage, once: whatever happens at whatever moment, nothing is lost, nothing is made twice."""

import errno
import logging
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import SafetensorError

from clapcur.errors import ArtifactError, DamagedArtifact
from clapcur.store import runner as stage_module
from clapcur.store.artifacts import Artifact, Stage, Store, Workspace, write_atomic
from clapcur.store.catalog import Campaign, Catalog
from clapcur.store.readable import in_words, summary
from clapcur.store.record import Outcome
from clapcur.store.runner import environment, run
from clapcur.testing import record

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
FORK = multiprocessing.get_context("fork")
CAMPAIGN = Campaign("esc50", "compare esc50", "c" * 64)


@pytest.fixture
def calls(tmp_path):
    """Count across processes what the stage below does."""
    path = tmp_path / "calls.txt"
    path.touch()
    return path


def two_parts(calls, between=lambda: None):
    """Make a stage that writes two parts, and calls `between` them."""

    def compute(inputs, config, work):
        for part in (0, 1):
            if not work.is_done(f"part-{part}"):
                with open(calls, "a") as file:
                    file.write(f"{part}\n")
                write_atomic(work.path / f"part-{part}.txt", f"{part} of {config['n']}")
                work.mark_done(f"part-{part}")
            if part == 0:
                between()
        return Outcome(counts={"pairs": 1234}, metrics={"loss": 0.5})

    return Stage("curate", "1", "improvement_set", compute)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(function):
    child = FORK.Process(target=function)
    child.start()
    child.join(60)
    return child.exitcode


def messages(home):
    return [(message.artifact_id, message.topic) for message in Catalog.open(home).waiting()]


def test_a_second_run_reuses_without_computing(home, calls):
    """A cache that misses is only slow; nobody would look for it."""
    stage = two_parts(calls)
    assert run(stage, {"n": 3}, {}, home) == run(stage, {"n": 3.0}, {}, home)
    assert calls.read_text() == "0\n1\n"
    run(stage, {"n": 4}, {}, home)
    assert calls.read_text() == "0\n1\n" * 2


def test_a_hit_is_quick_and_imports_nothing_heavy(home, calls):
    """A flow asks for dozens of artifacts that exist: a second each would be minutes of nothing."""
    run(two_parts(calls), {"n": 3}, {}, home)
    script = (
        "import sys, time\n"
        "from clapcur.store.artifacts import Stage\n"
        "from clapcur.store.home import Home\n"
        "from clapcur.store.runner import run\n"
        "stage, took = Stage('curate', '1', 'improvement_set', None), []\n"
        "for _ in range(20):\n"
        "    began = time.perf_counter()\n"
        "    run(stage, {'n': 3}, {}, Home.open())\n"
        "    took.append(time.perf_counter() - began)\n"
        "print(min(took), *(sys.modules.keys() & {'torch', 'pandas', 'numpy', 'pyarrow', 'mlflow', 'prefect'}))\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert float(said[0]) < 0.02
    assert said[1:] == []


def kill_at_commit():
    Store.commit = lambda *_, **__: kill()


def kill_at_record():
    replace = os.replace
    os.replace = lambda source, target: kill() if target.name == "record.json" else replace(source, target)


def kill_at_index():
    Catalog.index = lambda *args: kill()


@pytest.mark.parametrize(
    ("sabotage", "expected"),
    [
        pytest.param(None, "0\n1\n", id="between two parts"),
        pytest.param(kill_at_commit, "0\n1\n", id="after the payload, before the record"),
        pytest.param(kill_at_record, None, id="while the record is written"),
        pytest.param(kill_at_index, "0\n1\n", id="after the record, before the catalog"),
    ],
)
def test_a_kill_at_any_moment_loses_nothing_and_doubles_nothing(home, calls, sabotage, expected):
    """A kill -9 runs no clean-up: what it leaves behind is what the next run must understand."""

    def first():
        if sabotage:
            sabotage()
        run(two_parts(calls, between=lambda: None if sabotage else kill()), {"n": 3}, {}, home)

    assert in_child(first) == -signal.SIGKILL
    began = time.monotonic()
    artifact = run(two_parts(calls), {"n": 3}, {}, home)
    assert time.monotonic() - began < 10  # the dead process's lease is not waited for
    expected = expected or calls.read_text()
    assert calls.read_text() == expected
    assert {path.name: path.read_text() for path in artifact.path.glob("*.txt")} == {
        "part-0.txt": "0 of 3",
        "part-1.txt": "1 of 3",
    }
    assert messages(home) == [(artifact.id, "record")]
    assert [found.id for found in home.store] == [artifact.id]
    assert run(two_parts(calls), {"n": 3}, {}, home) == artifact
    assert calls.read_text() == expected


def test_a_stage_that_fails_leaves_no_record_and_goes_on_where_it_stopped(home, calls):
    """A record of a failure would be reused as a result."""

    def fail():
        raise ValueError("no such class")

    with pytest.raises(ValueError, match="no such class"):
        run(two_parts(calls, between=fail), {"n": 3}, {}, home)
    assert list(home.store) == []
    assert messages(home) == []
    run(two_parts(calls), {"n": 3}, {}, home)
    assert calls.read_text() == "0\n1\n"


@pytest.mark.parametrize("lost", ["part-0.txt", "part-1.txt"])
def test_lost_bytes_are_made_again_and_told_again(home, calls, lost):
    """A hit on a dead path fails in the next stage, far from its cause."""
    first = run(two_parts(calls), {"n": 3}, {}, home)
    catalog = Catalog.open(home)
    catalog.mark(catalog.waiting()[0], delivered=True)
    (first.path / lost).unlink()
    again = run(two_parts(calls), {"n": 3}, {}, home)
    assert (again.path / lost).exists()
    assert again.record.recomputed == {"identical": True}
    assert messages(home) == [(again.id, "record")]


def test_flipped_bytes_are_found_before_they_are_reused(home, calls):
    """The size is right and the content is not: only reading tells."""
    first = run(two_parts(calls), {"n": 3}, {}, home)
    (first.path / "part-0.txt").write_text("9 of 9")
    again = run(two_parts(calls), {"n": 3}, {}, home)
    assert (again.path / "part-0.txt").read_text() == "0 of 3"
    assert again.record.recomputed == {"identical": True}


def test_a_damaged_input_is_named_before_anything_is_computed_with_it(home, calls):
    """A command that is given an id looks it up and asks no stage whether its bytes are still those."""
    pool = run(two_parts(calls), {"n": 3}, {}, home)
    (pool.path / "part-0.txt").write_text("9 of 9")
    stage = Stage("curate", "1", "scores", lambda inputs, config, work: pytest.fail("computed"))
    with pytest.raises(DamagedArtifact, match=f"improvement_set {pool.id} is damaged: part-0.txt"):
        run(stage, {}, {"pool": pool}, home)


def test_a_damaged_record_is_made_again_and_the_folder_moved_aside(home, calls):
    """A stage that met half a record stopped, in this run and in every later one."""
    first = run(two_parts(calls), {"n": 3}, {}, home)
    (first.path / "record.json").write_text("{")
    again = run(two_parts(calls), {"n": 3}, {}, home)
    assert again == first
    assert calls.read_text() == "0\n1\n" * 2
    assert [found.id for found in home.store] == [again.id]


def test_processes_that_want_the_same_artifact_make_it_once(home, calls):
    """Two trainings of one student in one folder give neither."""
    barrier = FORK.Barrier(3)
    done = FORK.SimpleQueue()

    def want():
        barrier.wait(30)
        stage = two_parts(calls, between=lambda: time.sleep(0.3))
        done.put(run(stage, {"n": 3}, {}, home).id)

    children = [FORK.Process(target=want) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert calls.read_text() == "0\n1\n"
    assert len({done.get() for _ in children}) == 1
    assert len(messages(home)) == 1


def test_who_lost_the_lease_does_not_finish_the_artifact(home, calls, monkeypatch):
    """The record would be put over the half-written payload of the process that took over."""
    stage = two_parts(calls)

    def take_over():
        monkeypatch.setattr("clapcur.store.leases.Lease.check", refuse)

    def refuse(lease):
        raise ArtifactError("another one took over")

    with pytest.raises(ArtifactError, match="took over"):
        run(two_parts(calls, between=take_over), {"n": 3}, {}, home)
    assert home.store.get(stage.key({"n": 3}, {})) is None


def fill_text(path):
    with open("/dev/full", "w") as file:
        file.write("x")


def fill_quota(path):
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def fill_weights(path):
    # what save_file says on a full file system; to /dev/full it would not write but rename over it
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def fill_file_size(path):
    raise OSError(errno.EFBIG, "File too large", str(path / "x"))


def fill_read_only(path):
    raise OSError(errno.EROFS, "Read-only file system", str(path / "x"))


@pytest.mark.parametrize(
    ("fill", "said"), [(fill_file_size, "the maximum file size is reached"), (fill_read_only, "the disk is read-only")]
)
def test_whatever_keeps_a_disk_from_taking_more_is_named(home, fill, said):
    """A limit of the shell or a mount that fell back to reading ended in a traceback out of a library."""
    stage = Stage("curate", "1", "improvement_set", lambda inputs, config, work: fill(work.path))
    with pytest.raises(ArtifactError, match=f"{said}: .*improvement_set"):
        run(stage, {}, {}, home)
    assert list(home.store) == []


def test_no_permission_to_write_is_named_and_none_to_read_a_source_stays_what_it_is(home, tmp_path):
    """A recording that may not be read is nobody's full disk."""

    def stage(place):
        def fail(inputs, config, work):
            raise PermissionError(errno.EACCES, "Permission denied", str(place or work.path / "x"))

        return Stage("curate", "1", "improvement_set", fail)

    with pytest.raises(ArtifactError, match="no write permission: .*improvement_set"):
        run(stage(None), {}, {}, home)
    with pytest.raises(PermissionError):
        run(stage(home.root.parent / "recording.wav"), {}, {}, home)


@pytest.mark.parametrize("fill", [fill_text, fill_quota, fill_weights])
def test_a_full_disk_is_named_with_the_place_and_what_to_do(home, fill, tmp_path):
    """A traceback out of a Parquet writer after nine hours does not say that the work is kept."""

    def compute(inputs, config, work):
        work.mark_done("part-0")
        try:
            fill(tmp_path)
        except OSError as error:
            raise RuntimeError("the shard could not be written") from error
        return Outcome()

    with pytest.raises(
        ArtifactError,
        match="(the disk is full|quota is used up): .*improvement_set.*run the same command again to resume",
    ):
        run(Stage("curate", "1", "improvement_set", compute), {}, {}, home)
    (work,) = (home.root / "store" / "improvement_set").iterdir()
    assert (work / "work" / "part-0.done").exists()


def test_a_full_disk_at_the_record_is_named_too(home, calls, monkeypatch):
    """The last write is the one that meets the last free block."""

    def commit(self, work, outcome, started, **said):
        fill_text(work.path)

    monkeypatch.setattr(Store, "commit", commit)
    with pytest.raises(ArtifactError, match="the disk is full"):
        run(two_parts(calls), {"n": 3}, {}, home)


def test_other_errors_of_the_operating_system_stay_what_they_are(home):
    """A missing file that is called a full disk sends people to delete things."""

    def compute(inputs, config, work):
        return open(work.path / "missing").read()

    with pytest.raises(FileNotFoundError):
        run(Stage("curate", "1", "improvement_set", compute), {}, {}, home)


def test_tags_and_campaign_are_in_the_record_and_not_in_the_id(home, calls):
    """In the id they would retrain a student for a new title; out of the record they are lost with the catalog."""
    stage = two_parts(calls)
    tags = {"strategy": "ads", "soft_labels": True, "seed": 0}
    artifact = run(stage, {"n": 3}, {}, home, tags=tags, campaign=CAMPAIGN)
    assert artifact.id == stage.key({"n": 3}, {}).id
    assert artifact.record.tags == tags
    assert artifact.record.campaign == {"experiment": "esc50", "name": "compare esc50", "key": "c" * 64}
    (message,) = Catalog.open(home).waiting()
    assert message.payload == {"tags": tags, "campaign": artifact.record.campaign}


def test_a_campaign_that_reuses_a_result_is_noted_once(home, calls):
    """A repeated experiment would show only the rows that changed."""
    artifact = run(two_parts(calls), {"n": 3}, {}, home, campaign=CAMPAIGN)
    other = Campaign("esc50", "another", "d" * 64)
    for campaign in (CAMPAIGN, other, other, None):
        run(two_parts(calls), {"n": 3}, {}, home, campaign=campaign)
    assert messages(home) == [(artifact.id, "record"), (artifact.id, f"used by {'d' * 64}")]


def test_a_stage_sees_its_inputs_its_listener_and_its_environment(home):
    """A curve that goes nowhere is noticed when the training is over."""
    heard = []

    def compute(inputs, config, work: Workspace):
        work.on_step(7, {"loss": 0.25})
        work.environment["device"] = "cpu"
        (work.path / "pool.txt").write_text(inputs["pool"].id)
        return Outcome()

    pool = Artifact("manifest", "a" * 12, "/nowhere")
    stage = Stage("train", "1", "checkpoint", compute)
    artifact = run(stage, {}, {"pool": pool}, home, on_step=lambda step, metrics: heard.append((step, metrics)))
    assert heard == [(7, {"loss": 0.25})]
    assert artifact.record.inputs == {"pool": "a" * 12}
    said = artifact.record.environment
    assert (said["device"], said["python"]) == ("cpu", platform.python_version())
    assert said["versions"]["numpy"] == np.__version__
    assert "device" not in environment()  # one stage's device is not the next one's
    assert (artifact.record.counts, artifact.record.metrics) == ({}, {})


def test_the_commit_of_a_checkout_is_recorded_and_marked_where_files_differ(tmp_path):
    """A clean commit on a changed checkout names code that never ran."""

    def git(*command):
        config = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(["git", *config, *command], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert stage_module._commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    git("tag", "v1")
    assert stage_module._commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "code.py").write_text("2")
    assert stage_module._commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("teacher_pairs_pairs", "189 pairs"),
        ("improvement_set_pairs", "189 pairs of the Improvement-Set"),
        ("training_groups", "189 training groups"),
        ("clips", "189 clips"),
        ("seen.teacher_pairs", "189 teacher pairs seen"),
    ],
)
def test_counts_are_said_in_words(name, words):
    """People read "288 teacher_pairs_pairs" behind every training."""
    assert in_words(name, 189) == words


def test_each_stage_says_in_one_line_what_it_made(home, calls, caplog):
    """A flow of forty stages is followed in its log, or not at all."""
    with caplog.at_level(logging.INFO, "clapcur"):
        for _ in range(2):
            artifact = run(two_parts(calls), {"n": 3}, {}, home, tags={"strategy": "ads"})
    first, second = (record.getMessage() for record in caplog.records)
    took = artifact.record.finished - artifact.record.started
    assert first == f"curate ads -> improvement set {artifact.id} (made, 1,234 pairs, {took:.1f} s)"
    assert second == f"curate ads -> improvement set {artifact.id} (reused, 1,234 pairs)"


def test_the_line_of_scores_shows_the_accuracy():
    """The number that everybody waits for should not need a second command."""
    scores = record(
        "scores", id="a" * 12, stage="evaluate", started=1.0, finished=3.5, counts={"clips": 400},
        metrics={"accuracy": 0.82345}, tags={"row": "ads+sl", "strategy": "ads"},
    )  # fmt: skip
    assert summary(scores) == f"evaluate ads+sl -> scores {'a' * 12} (made, accuracy 0.823, 400 clips, 2.5 s)"
