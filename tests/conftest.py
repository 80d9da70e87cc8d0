"""What holds for every test: a quiet environment of its own, one thread, and no way out of this machine."""

import atexit
import importlib.util
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from clapcur.store.home import Home

TESTS = Path(__file__).resolve().parent
# what an assertion compares is shown in the modules that tests share, too
pytest.register_assert_rewrite(
    *(path.stem for path in TESTS.glob("*.py") if not path.stem.startswith(("test_", "conftest")))
)
SHARED = TESTS.parents[1] / "shared" / "data"
MEMORY, ROOM = Path("/dev/shm"), 4 * 2**30  # bytes; ten times what was seen there during a run


def has_room(folder: Path) -> bool:
    """Return whether the tests can work there: it is writable, programs may be started from it, and there is space."""
    if not os.access(folder, os.W_OK):
        return False
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize >= ROOM and not found.f_flag & os.ST_NOEXEC


# In memory nobody waits for a disk: stores, catalogs, Prefect and MLflow all wait for every commit to reach it.
if "TMPDIR" not in os.environ and has_room(MEMORY):
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)
SCRATCH = Path(tempfile.mkdtemp(prefix="clapcur-tests-"))
JOURNAL = SCRATCH / "left-this-machine.txt"
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)

# Prefect, MLflow and transformers read their settings when they are imported, so all of this is before any of them.
for name in list(os.environ):
    if name.startswith(("CLAPCUR_", "MLFLOW_", "PREFECT_")) and not name.startswith("CLAPCUR_TEST_"):
        del os.environ[name]  # a developer's own servers and stores are no place for tests to write to
os.environ.update(
    # nothing calls home
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    MLFLOW_DISABLE_TELEMETRY="true",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    RAY_USAGE_STATS_ENABLED="0",
    # nothing chatters
    PREFECT_LOGGING_LEVEL="WARNING",
    PREFECT_LOGGING_INTERNAL_LEVEL="ERROR",
    PREFECT_LOGGING_TO_API_ENABLED="false",
    PREFECT_SERVER_LOGGING_LEVEL="CRITICAL",
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
    TOKENIZERS_PARALLELISM="false",
    # one event a transaction makes every other flow wait two seconds for SQLite
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE="50",
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE="50",
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL="1",
    # nothing is left behind, and nothing depends on the terminal
    PREFECT_HOME=str(SCRATCH / "prefect"),
    MPLBACKEND="Agg",
    COLUMNS="120",
    NO_COLOR="1",
    # read by offline/sitecustomize.py, here and in every Python process that a test starts
    CLAPCUR_TEST_JOURNAL=str(JOURNAL),
    PYTHONPATH=os.pathsep.join(filter(None, [str(TESTS / "offline"), os.environ.get("PYTHONPATH")])),
)
os.environ.pop("FORCE_COLOR", None)

# After a flow has run here, Prefect 3.8 lets every forked child wait at its end for a thread that only the parent has,
# so that it ends with 1. Which files run before which is the scheduler's choice.
os.register_at_fork(after_in_child=threading._threading_atexits.clear)  # type: ignore[attr-defined]

_guard = importlib.util.spec_from_file_location("clapcur_offline_guard", TESTS / "offline" / "sitecustomize.py")
assert _guard is not None and _guard.loader is not None
_guard.loader.exec_module(importlib.util.module_from_spec(_guard))


@pytest.fixture
def journal() -> Path:
    """Give the file that holds the refused ways out; what still is in it when a test ends fails that test."""
    JOURNAL.touch()
    return JOURNAL


@pytest.fixture(autouse=True)
def stays_on_this_machine(journal: Path) -> Iterator[None]:
    """Fail the test that tried to reach another machine, itself or by a process that it started."""
    yield
    if refused := journal.read_text():
        journal.write_text("")
        pytest.fail(f"no test may reach another machine, this one (or what was imported for it) tried:\n{refused}")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Let sums come out the same on every machine, and leave the cores to the other processes."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    """Give a seeded generator, new for each test."""
    return np.random.default_rng(20230501864)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Home":
    """Give an empty home in a temporary folder that the commands and child processes of the test use too."""
    from clapcur.store.home import Home

    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    return Home.open()


@pytest.fixture
def leaves_no_trace() -> Iterator[None]:
    """Undo what a command does to its process: environment and logging."""
    log, environment = logging.getLogger("clapcur"), dict(os.environ)
    handlers, level = list(log.handlers), log.level
    yield
    log.handlers[:], log.propagate = handlers, True
    log.setLevel(level)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str], leaves_no_trace: None) -> Callable[..., tuple[int, str, str]]:
    """Give a function that runs a command in this process and returns exit code, stdout and stderr.

    Seconds less than in a process of its own; flows need one all the same.
    """

    def call(*arguments: object) -> tuple[int, str, str]:
        from clapcur import cli

        code = cli.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Give a function from a name inside ``../shared/data`` to its path; it skips the test where that is absent."""

    def find(name: str = ".") -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"needs shared/data/{name} beside the checkout, which is absent")
        return SHARED / name

    return find


def pytest_configure() -> None:
    """Hear Ctrl-C: a shell starts what runs in its background deaf to it, and so would be all that the tests start."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their number: two workers must find one name for a test, whatever made the bytes."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with the longest tests first: a worker that meets them last works alone at the end.

    How long a test may take says how long it takes, roughly; files stay whole and their tests in order.
    """
    longest: dict[Path, float] = {}
    for item in items:
        marker = item.get_closest_marker("timeout")
        allowed = float(marker.args[0]) if marker else 10.0 if item.get_closest_marker("slow") else 0.0
        longest[item.path] = max(allowed, longest.get(item.path, 0.0))
    items.sort(key=lambda item: -longest[item.path])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip by name what this machine lacks."""
    for marker in item.iter_markers("shared_data"):
        for name in marker.args or (".",):
            if not (SHARED / name).exists():
                pytest.skip(f"needs shared/data/{name} beside the checkout, which is absent")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and there is none")


@pytest.fixture
def object_store() -> Iterator["AbstractFileSystem"]:
    """Give a store of objects in memory, empty; its URLs begin with memory://."""
    from fsspec.implementations.memory import MemoryFileSystem

    found = MemoryFileSystem()
    yield found
    found.rm("/", recursive=True)
