"""The stress campaigns (`make stress`) can fail: each kind of fault that they look for is injected here, and found."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import chain
import numpy as np
import pandas as pd
import pytest
from source_tree import ROOT
from stress import __main__ as command_line
from stress import commands, files, homes, kills, store, tables
from stress.commands import Command, Ended
from stress.comparing import catalog_differences, mlflow_differences, store_differences
from stress.harness import Run
from stress.mutating import MUTATIONS, mutate

from clapcur.store.artifacts import Artifact, sha256_file
from clapcur.store.catalog import Catalog
from clapcur.store.database import ARTIFACT, EDGE, OUTBOX
from clapcur.store.home import Home
from clapcur.store.record import RECORD, record_digest

FINE = Ended(("ingest", "t.csv"), 0, "", "ingest pool -> manifest 0123456789ab (4 clips)\n", 1.0)


def campaign_of(folder: Path, seed: int = 1, only_step: int | None = None) -> Run:
    return Run("kills", seed, folder, time.monotonic() + 3600, only_step=only_step)


# --- the same seed is the same luck ----------------------------------------------------------------------------------


def mutated(seed: int) -> list[str]:
    run = campaign_of(Path(), seed)
    return [
        f"{name} {data.hex()}" for name, data in (mutate(bytes(range(200)), run.random(step)) for step in range(60))
    ]


def test_a_step_is_the_same_for_the_same_seed_in_every_process() -> None:
    """A failure that cannot be repeated cannot be mended."""
    here = mutated(1)
    program = "from test_stress import mutated; print(*mutated(1), sep='\\n')"
    path = os.pathsep.join(map(str, (ROOT / "tests", ROOT)))
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.splitlines() == here and mutated(2) != here
    assert len(set(here)) > 50, "each step has luck of its own"
    assert {line.rsplit(" ", 1)[0] for line in here} == set(MUTATIONS)
    assert all(line.rsplit(" ", 1)[1] != bytes(range(200)).hex() for line in here), "nothing was mutated"


def test_a_single_step_has_the_luck_that_it_has_among_all(tmp_path: Path) -> None:
    """Numbers that are drawn from one stream would be others when a step is repeated alone."""
    drawn: dict[int, list[float]] = {}
    for only in (None, 3):
        run = campaign_of(tmp_path, only_step=only)
        run.steps(range(6), lambda step, run=run: drawn.setdefault(step, []).append(run.random(step).random()))
    assert sorted(map(len, drawn.values())) == [1, 1, 1, 1, 1, 2] and drawn[3][0] == drawn[3][1]


# --- a home that is not what it should be ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Artifact]]:
    """Make a home with the artifacts of an experiment, whose MLflow has a run of each."""
    from mlflow import MlflowClient

    root = tmp_path_factory.mktemp("stress") / "home"
    home = Home.open(root)
    made = chain.experiment(home)
    client = MlflowClient(home.mlflow_uri, home.mlflow_uri)
    experiment = client.create_experiment("esc50", artifact_location=str(root / "mlflow"))
    with Catalog.open(home)._engine.begin() as db:
        for artifact in home.store:
            run = client.create_run(experiment, tags={"clapcur.artifact": artifact.id})
            client.log_metric(run.info.run_id, "loss", 0.5)
            client.set_terminated(run.info.run_id)
            db.execute(ARTIFACT.update().where(ARTIFACT.c.id == artifact.id).values(mlflow_run_id=run.info.run_id))
        db.execute(OUTBOX.delete())
    return root, made


@pytest.fixture
def other(reference: tuple[Path, dict[str, Artifact]], tmp_path: Path) -> Path:
    """Give a copy of that home, to do something to."""
    return Path(shutil.copytree(reference[0], tmp_path / "home"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a record, and make it true again of itself and of its files."""
    record = json.loads((folder / RECORD).read_text())
    change(record)
    for name in record["files"]:
        record["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    record["record_sha256"] = record_digest(record)
    (folder / RECORD).write_text(json.dumps(record))


def lose_a_clip(folder: Path) -> None:
    clips = pd.read_parquet(folder / "clips.parquet")
    clips.iloc[1:].to_parquet(folder / "clips.parquet", index=False)
    rewrite(folder, lambda record: record)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_equal_homes_are_equal_whenever_they_were_made(reference: Any, other: Path) -> None:
    """A comparison that cries for nothing is switched off; times, speeds and places may differ."""
    for path in other.glob(f"store/*/*/{RECORD}"):
        rewrite(path.parent, lambda record: record.update(finished=record["finished"] + 60, environment={"cpu": "x"}))
    assert store_differences(reference[0], other) == []
    assert catalog_differences(reference[0]) == []
    assert mlflow_differences(reference[0], other) == []


FAULTS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "bit flipped": ("set", lambda path: flip_a_bit(path / "pairs.parquet"), "pairs.parquet is not what its record"),
    "cut": ("teacher", lambda path: (path / "config.json").write_text(""), "config.json has other bytes"),
    "clip lost": ("pool", lose_a_clip, "clips.parquet has other bytes"),
    "file lost": ("set", lambda path: (path / "card.json").unlink(), "card.json is missing"),
    "file left over": ("pool", lambda path: (path / ".x.tmp").touch(), ".x.tmp was left over"),
    "other count": (
        "pool", lambda path: rewrite(path, lambda record: record["counts"].update(clips=1)), "counts.clips: ",
    ),
    "other metric": (
        "student_scores", lambda path: rewrite(path, lambda record: record["metrics"].update(accuracy=0.1)),
        "metrics.accuracy: ",
    ),
    "other input": (
        "student", lambda path: rewrite(path, lambda record: record["inputs"].update(init="0" * 12)), "inputs.init: ",
    ),
    "record altered": (
        "pool", lambda path: (path / RECORD).write_text((path / RECORD).read_text().replace('"1"', '"2"')), "digest",
    ),
    "no record": ("teacher", lambda path: (path / RECORD).unlink(), "it has no record"),
    "artifact lost": ("set", shutil.rmtree, "is missing"),
    "artifact too many": ("set", lambda path: shutil.copytree(path, path.with_name("f" * 12)), "is one too many"),
    "moved aside": ("set", lambda path: path.rename(path.with_name(f".{path.name}-1.aside")), ".aside is one too many"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_differs_is_found(reference: Any, other: Path, fault: str) -> None:
    """The campaigns would report that nothing was lost, whatever was."""
    which, inject, said = FAULTS[fault]
    artifact = reference[1][which]
    inject(other / "store" / artifact.kind / artifact.id)
    found = store_differences(reference[0], other)
    assert any(said in line for line in found), found
    assert all(artifact.kind in line for line in found), "nothing else is wrong"


def test_only_what_had_a_damaged_record_may_be_moved_aside(reference: Any, other: Path) -> None:
    artifact = reference[1]["set"]
    folder = other / "store" / artifact.kind / artifact.id
    shutil.copytree(folder, folder.with_name(f".{artifact.id}-0f.aside"))
    assert store_differences(reference[0], other, set_aside={artifact.id}) == []
    assert len(store_differences(reference[0], other, set_aside={reference[1]["pool"].id})) == 1


CATALOG_FAULTS = {
    "row lost": (lambda id: ARTIFACT.delete().where(ARTIFACT.c.id == id), "does not know"),
    "other time": (lambda id: ARTIFACT.update().where(ARTIFACT.c.id == id).values(finished=1.0), "another time"),
    "no run": (lambda id: ARTIFACT.update().where(ARTIFACT.c.id == id).values(mlflow_run_id=None), "no MLflow run"),
    "edges lost": (lambda id: EDGE.delete().where(EDGE.c.artifact_id == id), "lacks the edge"),
    "message waits": (
        lambda id: OUTBOX.insert().values(artifact_id=id, topic="run", payload={}),
        "1 messages to MLflow",
    ),
}


@pytest.mark.parametrize("fault", CATALOG_FAULTS)
def test_a_catalog_that_differs_from_its_store_is_found(reference: Any, other: Path, fault: str) -> None:
    spoil, said = CATALOG_FAULTS[fault]
    with Catalog.open(Home(other))._engine.begin() as db:
        db.execute(spoil(reference[1]["set"].id))
    found = catalog_differences(other)
    assert found and all(said in line for line in found), found


def test_an_mlflow_that_differs_is_found(reference: Any, other: Path) -> None:
    """People look at MLflow, not at the store."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{other}/mlflow.db", f"sqlite:///{other}/mlflow.db")
    ids = {name: artifact.id for name, artifact in reference[1].items()}
    runs = {run.data.tags["clapcur.artifact"]: run for run in client.search_runs(["1"])}
    client.delete_run(runs[ids["set"]].info.run_id)
    client.log_metric(runs[ids["student"]].info.run_id, "loss", 0.25)
    client.update_run(runs[ids["teacher"]].info.run_id, status="RUNNING")
    client.create_run("1", tags={"clapcur.artifact": ids["pool"]})
    found = "\n".join(mlflow_differences(reference[0], other))
    assert f"MLflow has no run of {ids['set']}" in found and f"MLflow has 2 runs of {ids['pool']}" in found
    assert f"{ids['student']}: metrics.loss: 0.5 -> 0.25" in found
    assert f"{ids['teacher']}: status: 'FINISHED' -> 'RUNNING'" in found


# --- commands that misbehave -----------------------------------------------------------------------------------------


def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> Command:
    """Start a program in the place of clapcur; returns when it has said that it is ready."""
    script = tmp_path / "clapcur"
    script.write_text(f"#!{sys.executable}\nimport os, signal, subprocess, sys, time\n{program}")
    script.chmod(0o755)
    monkeypatch.setattr(commands, "CLAPCUR", script)
    return Command(["ingest"], tmp_path / "home", tmp_path, is_program=True)


ORPHAN = "subprocess.Popen(['sleep', '300'], start_new_session={})\n"


@pytest.mark.parametrize("own_session", [False, True])
def test_a_process_that_outlives_its_command_is_found_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_session: bool
) -> None:
    """Killed commands whose workers stay fill the machine, and write into a store that others use."""
    command = started(tmp_path, monkeypatch, ORPHAN.format(own_session))
    monkeypatch.setattr(commands, "LEAVING_S", 0)
    assert command.wait(60).code == 0
    (line,) = command.left_behind()
    monkeypatch.setattr(commands, "LEAVING_S", 60)
    assert "sleep 300" in line and command.left_behind() == []


def test_a_command_that_hangs_is_ended_and_has_no_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert started(tmp_path, monkeypatch, "time.sleep(300)").wait(0.2).code is None


WAYS_TO_STOP = {
    "well": ("sys.exit(143)", []),
    "with another code": ("print('error: x', file=sys.stderr); sys.exit(1)", ["it ended with 1: error: x"]),
    "with a traceback": ("print('Traceback', file=sys.stderr); sys.exit(143)", ["it showed a traceback"]),
    "with an orphan": (f"{ORPHAN.format(False).strip()}; sys.exit(143)", ["it left behind: "]),
}


@pytest.mark.parametrize("how", WAYS_TO_STOP)
def test_a_command_that_takes_sigterm_badly_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    ending, said = WAYS_TO_STOP[how]
    monkeypatch.setattr(commands, "LEAVING_S", 0.2)
    program = f"def stop(*_):\n    {ending}\nsignal.signal(signal.SIGTERM, stop)\nopen('ready', 'w')\ntime.sleep(300)"
    command = started(tmp_path, monkeypatch, program)
    while not (tmp_path / "ready").exists():
        assert command.poll() is None
        time.sleep(0.01)
    assert command.signal(signal.SIGTERM)
    found = kills._faults(command, signal.SIGTERM)
    assert len(found) == len(said) and all(line.startswith(start) for line, start in zip(found, said, strict=True))


# --- what the campaigns judge ----------------------------------------------------------------------------------------


def test_a_sound_that_is_lost_or_has_no_unit_row_is_found(tmp_path: Path) -> None:
    """Every file is in, with a row, or in quarantine, with a reason; a third state is a clip silently lost."""
    mutations = dict.fromkeys(range(8), "cut") | {7: "untouched"}
    paths = {number: tmp_path / f"{number:05d}-wav-pcm_16-{how}.wav" for number, how in mutations.items()}
    for number, path in paths.items():
        path.write_bytes(bytes([number]))
    clip = {number: chain.hashlib.sha256(path.read_bytes()).hexdigest() for number, path in paths.items()}
    pd.DataFrame({"clip_id": [clip[number] for number in (0, 3, 4, 5, 6)]}).to_parquet(tmp_path / "clips.parquet")
    bad = pd.DataFrame({"path": [str(paths[number]) for number in (1, 6, 7)], "reason": "silent"})
    bad.to_parquet(tmp_path / "quarantine.parquet")
    pd.DataFrame({"id": [clip[number] for number in (0, 3, 4, 6)]}).to_parquet(tmp_path / "ids.parquet")
    np.save(tmp_path / "rows-00000.npy", np.array([[0.6, 0.8], [np.nan, 1], [0.5, 0], [1, 0]], np.float32))
    assert files._outcomes(paths, tmp_path, tmp_path) == {
        0: "in", 1: "in quarantine", 2: "it is in the manifest: False, and in quarantine: None",
        3: "its row has the length nan", 4: "its row has the length 0.5", 5: "it is in the manifest and has no row",
        6: "it is in the manifest: True, and in quarantine: silent",
        7: "it is in quarantine, as it was written: silent",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "err", "fault"),
    [
        (0, "", ""), (1, "error: the table is empty\n", ""), (None, "", "it hung"), (-11, "", "it died with -11"),
        (1, "Traceback (most recent call last):\n", "it showed a traceback"), (1, "", "expected one line of error"),
        (1, "error: a\nerror: b\n", "expected one line of error"), (1, f"error: {'x' * 3000}\n", "the line of error"),
    ],
)  # fmt: skip
def test_a_table_that_is_taken_badly_is_found(code: int | None, err: str, fault: str) -> None:
    found = tables._fault(Ended(("ingest", "t.csv"), code, "", err, 1.0))
    assert found.startswith(fault) and bool(found) == bool(fault)


def test_damaged_bytes_that_are_computed_with_are_found(reference: Any, other: Path, tmp_path: Path) -> None:
    """A command over a damaged artifact ends well and what it made differs; or it fails and does not say of what."""
    set_, student = (reference[1][name] for name in ("set", "student"))

    def used(ended: Ended) -> list[str]:
        return list(store._used(ended, other, reference[0], {set_.id}, {student.id}))

    assert used(FINE) == []
    flip_a_bit(other / "store" / student.kind / student.id / "model.safetensors")
    rewrite(other / "store" / student.kind / student.id, lambda record: record)
    assert [line.partition(": ")[0] for line in used(FINE)] == ["damaged bytes were used"]
    named = f"error: the improvement_set {set_.id} is damaged\n"
    assert used(Ended((), 1, "", named, 1.0)) == []
    for code, err in ((1, "error: index out of range\n"), (1, named + named), (1, f"{set_.id}\n"), (-11, named)):
        assert used(Ended((), code, "", err, 1.0)) == ["a command neither named the damage nor mended it"]


def test_an_artifact_that_two_commands_made_is_counted_twice() -> None:
    reused = Ended((), 0, "", "ingest pool -> manifest 0123456789ab (reused, 4 clips)\n", 1.0)
    assert homes._made(FINE) == ["manifest 0123456789ab"] and homes._made(reused) == []


# --- the program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["none", "reported", "raised"])
def test_a_failure_is_shown_with_how_to_repeat_it_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """A nightly run looks at the exit code alone; and who mends it needs the step and what was there."""

    def work(step: int, run: Run) -> None:
        if step == 2 and fault == "raised":
            raise RuntimeError("the step broke")
        if step == 2 and fault == "reported":
            run.fail(step, "a clip was lost", run.folder)

    stub = ModuleType("stress.stub")
    stub.campaign = lambda run, corpus: run.steps(range(5), lambda step: work(step, run))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stress.stub", stub)
    monkeypatch.setattr(command_line, "SHARES", {"stub": 1.0})
    monkeypatch.setattr(command_line, "make_corpus", lambda folder: folder)
    monkeypatch.setattr(sys, "argv", ["stress", "--seed", "7", "--folder", str(tmp_path / "all")])
    code = command_line.main()
    said = capsys.readouterr()
    assert "| stub | steps | 5 |" in said.out, "the other steps are done all the same"
    assert code == (0 if fault == "none" else 1) and (tmp_path / "all" / "stub").exists() == bool(code)
    assert f"| stub | **failures** | **{code}** |" in said.out
    assert ('make stress ARGS="--seed 7 --only stub --step 2"' in said.out) == bool(code)
    assert ("a clip was lost" in said.out, "the step broke" in said.out) == (fault == "reported", fault == "raised")
