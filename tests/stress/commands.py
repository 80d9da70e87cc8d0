"""clapcur as child processes: how they are started and killed, what they say and what they leave behind.

A stage's command is forked from a server that has imported torch, MLflow and Prefect once: four seconds less, so that
kills hit work and not imports. A whole command such as ``improve`` is a program of its own, as people start it.
"""

import atexit
import io
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

CLAPCUR = Path(sys.executable).parent / "clapcur"
PRELOADED = [
    "clapcur.tasks.ingest",
    "clapcur.tasks.train",
    "clapcur.tasks.embed",
    "clapcur.tasks.curate",
    "clapcur.tasks.evaluate",
    "clapcur.tasks.report",
    "clapcur.flows.plan",
    "clapcur.cli",
    "clapcur.tracking.runs",
    "clapcur.lineage.queries",
    "clapcur.lineage.collection",
    "clapcur.store.catalog",
    "mlflow",
    "transformers",
    "matplotlib.pyplot",
    "faiss",
    "pyarrow.parquet",
    "soundfile",
    "soxr",
    "yaml",
    "mlflow.tracking._tracking_service.client",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.data",
    "mlflow.system_metrics.system_metrics_monitor",
    "transformers.models.bert.modeling_bert",
]
QUIET = {
    "OMP_NUM_THREADS": "1",  # sums come out the same, and two commands share two cores
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
MARK = "CLAPCUR_STRESS_COMMAND"  # in the environment of a command and of all that it starts
PATIENCE_S = 180.0  # for a command of seconds; longer is a hang
LEAVING_S = 15.0  # for what a command has started, after its end

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PRELOADED)
_starting = threading.Lock()  # multiprocessing looks after all children whenever one is started


@dataclass(frozen=True)
class Ended:
    """What a command did."""

    arguments: tuple[str, ...]
    code: int | None
    # None: it hung and was killed
    out: str
    err: str
    seconds: float

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON on the last line of stdout."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def last_line(self) -> str:
        """The end of stderr, which says why it failed."""
        return (self.err.strip().splitlines() or ["nothing on stderr"])[-1]

    def __str__(self) -> str:
        """One line for a report."""
        return f"`clapcur {' '.join(self.arguments)}` ended with {self.code}: {self.last_line}"


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a command on this home: nothing of the developer's own servers and stores."""
    own = ("CLAPCUR_", "MLFLOW_", "PREFECT_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    kept = {name: value for name, value in os.environ.items() if name.startswith("CLAPCUR_TEST_")}
    return inherited | kept | QUIET | {"CLAPCUR_HOME": str(home)} | more


class Command:
    """A command that runs.

    Parameters
    ----------
    arguments : sequence of str
        Behind ``clapcur``.
    home, folder : Path
        ``CLAPCUR_HOME``, and where it is started.
    is_program : bool
        A program of its own instead of a fork.
    memory : int, optional
        Bytes of private memory that it may have beside what it starts with.
    more : mapping
        Further environment.
    many : sequence of commands
        Run these, one after another, in the place of one.
    """

    def __init__(
        self, arguments: Sequence[str], home: Path, folder: Path, *, is_program: bool = False,
        memory: int | None = None, more: Mapping[str, str] | None = None, many: Sequence[Sequence[str]] = (),
    ) -> None:  # fmt: skip
        self.arguments = tuple(map(str, arguments))
        self.started = time.monotonic()
        self._ended: float | None = None
        self._said = Path(tempfile.mkdtemp(prefix="said-", dir=home.parent))
        self._mark = self._said.name
        for name in ("out", "err"):
            (self._said / name).touch()  # a command may be killed before it opens them
        given = environment(home, **{MARK: self._mark}, **(more or {}))
        self._fork: ForkServerProcess | None = None
        self._program: subprocess.Popen[bytes] | None = None
        if is_program:
            with open(self._said / "out", "wb") as out, open(self._said / "err", "wb") as err:
                self._program = subprocess.Popen(
                    [CLAPCUR, *self.arguments], cwd=folder, env=given, stdout=out, stderr=err,
                    stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            self.pid = self._program.pid
            return
        with _starting:
            os.environ.update(QUIET)  # the server reads them once, before it imports anything
            task = (self.arguments, many, str(folder), given, str(self._said), memory)
            self._fork = _server.Process(target=_be_command, args=task)
            self._fork.start()
        self.pid = self._fork.pid or 0

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self._program is not None:
            code = self._program.poll()
        else:
            assert self._fork is not None
            with _starting:
                code = self._fork.exitcode
        if code is not None and self._ended is None:
            self._ended = time.monotonic()
        return code

    def signal(self, number: int, whole_group: bool = False) -> bool:
        """Send a signal to the command, or to it and all it has started; return whether it was still there."""
        if self.poll() is not None:
            return False
        try:
            os.killpg(self.pid, number) if whole_group else os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, patience_s: float = PATIENCE_S) -> Ended:
        """Wait for the end; a command that hangs is killed and has no exit code."""
        until = time.monotonic() + patience_s
        while (code := self.poll()) is None and time.monotonic() < until:
            time.sleep(0.005)
        if code is None:
            self.signal(signal.SIGKILL, whole_group=True)
            while self.poll() is None:
                time.sleep(0.005)
        out, err = ((self._said / name).read_text(errors="replace") for name in ("out", "err"))
        return Ended(self.arguments, code, out, err, (self._ended or time.monotonic()) - self.started)

    def told(self) -> list[list[Any]]:
        """Return what became of each of `many` commands: code, stdout, stderr and seconds."""
        return [json.loads(path.read_text()) for path in sorted(self._said.glob("*.json"))]

    def left_behind(self) -> list[str]:
        """Return the processes that have outlived the command, after some time to leave, and end them."""
        until = time.monotonic() + LEAVING_S
        while (found := self._relatives()) and time.monotonic() < until:
            time.sleep(0.1)
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return [f"{pid} {line}" for pid, line in found.items()]

    def _relatives(self) -> dict[int, str]:
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == self.pid:
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                state, session = fields[0], int(fields[3])
                is_ours = session == self.pid or f"{MARK}={self._mark}".encode() in (entry / "environ").read_bytes()
                if is_ours and state not in "ZX":
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(entry.name)] = line[:200]
            except OSError:  # it has ended meanwhile, or is somebody else's
                continue
        return found


def run(arguments: Sequence[str], home: Path, folder: Path, patience_s: float = PATIENCE_S, **options: Any) -> Ended:
    """Run a command to its end."""
    return Command(arguments, home, folder, **options).wait(patience_s)


def run_many(
    commands: Sequence[Sequence[str]], home: Path, folder: Path, patience_s: float = PATIENCE_S, **options: Any
) -> list[Ended]:
    """Run commands one after another in one process; those that it did not survive have one each, with its patience.

    Parameters
    ----------
    commands : sequence of commands
        Each as what stands behind ``clapcur``.
    """
    together = Command([], home, folder, many=commands, **options)
    ended = together.wait(patience_s)
    found = [Ended(tuple(command), *told) for command, told in zip(commands, together.told(), strict=False)]
    if len(found) == len(commands) and ended.code == 0:
        return found
    return [*found, *(run(command, home, folder, patience_s, **options) for command in commands[len(found) :])]


def _be_command(
    arguments: Sequence[str],
    many: Sequence[Sequence[str]],
    folder: str,
    given: Mapping[str, str],
    said: str,
    memory: int | None,
) -> None:
    """Become ``clapcur ARGUMENTS``, in a session of its own."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(given)
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(f"{said}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    if memory is not None:
        limit = _private_bytes() + memory
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        _run_in_turn(many, Path(said)) if many else _run_one(arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
        sys.stdout.flush()
        sys.stderr.flush()


def _run_one(arguments: Sequence[str]) -> None:
    from clapcur import cli

    sys.argv = ["clapcur", *arguments]
    cli.main()


def _run_in_turn(many: Sequence[Sequence[str]], said: Path) -> None:
    """Run commands as `main` does and write down what became of each."""
    from clapcur import cli

    for number, arguments in enumerate(many):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = cli.run(list(arguments))
            except BaseException:  # a traceback is what people would see
                traceback.print_exc()
                code = 1
        told = json.dumps([code, out.getvalue(), err.getvalue(), 0.0])
        (said / f"{number:05d}.json").write_text(told)


def _private_bytes() -> int:
    """Return what RLIMIT_DATA counts of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmData in /proc/self/status")
