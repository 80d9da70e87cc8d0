"""Run programs together: start them in order, restart those that die, and stop them in reverse order.

Each program has its own process group, so Ctrl-C reaches only us, and its child processes end with it. A watchdog
(`clapcur.servers.reaper`) learns of every group before its program runs, and ends all groups if we are killed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from clapcur.errors import ClapcurError
from clapcur.servers import reaper

LAST_LINES = 15  # of a log, shown after its process died
POLL_S = 0.1
MAX_RESTARTS = 3  # of one program within RESTART_PERIOD_S; after one more death we give up
RESTART_PERIOD_S = 600.0


class ProcessError(ClapcurError):
    """A process died, failed or did not become ready; `last_lines` has the last lines of its log."""

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(f"{message}; see {log}")
        self.last_lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]


@dataclass(frozen=True)
class Program:
    """A program to run.

    Attributes
    ----------
    name : str
        Name for people, and for the log file.
    command : sequence of str
    environment : mapping
        The complete environment of the process.
    is_ready : callable
        Returns whether the program is ready; called repeatedly until it is.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    is_ready: Callable[[], bool] = lambda: True


class Processes:
    """A context manager around running programs; on exit it stops them, the last started first.

    Parameters
    ----------
    logs : Path
        Folder of the log files, one per program.
    grace_s : float
        How long a program may take to end before it is killed, in seconds.
    """

    def __init__(self, logs: Path, grace_s: float = 20.0) -> None:
        self._logs, self._grace_s = logs, grace_s
        self._running: list[tuple[Program, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> "Processes":
        """Start the watchdog."""
        self._logs.mkdir(parents=True, exist_ok=True)
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__], stdin=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop everything; another Ctrl-C meanwhile kills the remaining programs at once."""
        self.stop()

    def log(self, program: Program) -> Path:
        """Return the path of a program's log."""
        return self._logs / f"{program.name.replace(' ', '-')}.log"

    def start(self, program: Program) -> "subprocess.Popen[bytes]":
        """Start a program in its own process group, of which the watchdog learns first."""
        process = self._launch(program)
        self._running.append((program, process))
        return process

    def _launch(self, program: Program) -> "subprocess.Popen[bytes]":
        assert self._watchdog.stdin is not None
        pipe = self._watchdog.stdin.fileno()
        with open(self.log(program), "ab") as log:
            return subprocess.Popen(
                program.command,
                env=dict(program.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: _tell(pipe),
            )

    def run(self, program: Program, timeout_s: float) -> None:
        """Run a program to its end while watching the others.

        Raises
        ------
        ProcessError
            The program failed or took longer than `timeout_s` seconds, or another program died.
        """
        process = self.start(program)
        deadline = time.monotonic() + timeout_s
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise ProcessError(f"{program.name} took more than {timeout_s:.0f} s", self.log(program))
            self.check(but=program)
            time.sleep(POLL_S)
        self._running.pop()
        reaper.tell(process.pid, signal.SIGKILL)  # child processes that it may have left behind
        if process.returncode:
            raise ProcessError(f"{program.name} failed (exit {process.returncode})", self.log(program))

    def wait_ready(self, timeout_s: float, *programs: Program) -> None:
        """Wait until these programs, by default all, are ready.

        Raises
        ------
        ProcessError
            A program died, or one was not ready after `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        waiting = list(programs) or [program for program, _ in self._running]
        while waiting := [program for program in waiting if not program.is_ready()]:
            self.check()
            if time.monotonic() > deadline:
                name = waiting[0].name
                raise ProcessError(f"{name} was not ready after {timeout_s:.0f} s", self.log(waiting[0]))
            time.sleep(POLL_S)

    def check(self, but: Program | None = None) -> None:
        """Raise ProcessError if any program other than `but` has died."""
        for program, process in self._running:
            if program is not but and process.poll() is not None:
                raise ProcessError(f"{program.name} died (exit {process.returncode})", self.log(program))

    def supervise(self, told: Callable[[str], None]) -> None:
        """Restart programs that die, and report each restart through `told`.

        Raises
        ------
        ProcessError
            One program died more than `MAX_RESTARTS` times within `RESTART_PERIOD_S`.
        """
        deaths: dict[str, list[float]] = {}
        while True:
            for place, (program, process) in enumerate(self._running):
                if process.poll() is None:
                    continue
                reaper.tell(process.pid, signal.SIGKILL)  # its child processes, which may hold the port
                now, before = time.monotonic(), deaths.setdefault(program.name, [])
                before[:] = [when for when in before if now - when < RESTART_PERIOD_S] + [now]
                if len(before) > MAX_RESTARTS:
                    raise ProcessError(
                        f"{program.name} died {len(before)} times (exit {process.returncode})", self.log(program)
                    )
                told(f"{program.name} died (exit {process.returncode}) and is restarted; see {self.log(program)}")
                self._running[place] = (program, self._launch(program))
            time.sleep(5 * POLL_S)

    def stop(self) -> None:
        """Stop all programs, the last started first, and the watchdog."""
        hurry: list[int] = []
        previous = {
            number: signal.signal(number, lambda *_: hurry.append(1)) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            while self._running:
                _, process = self._running[-1]
                reaper.tell(process.pid, signal.SIGTERM)
                deadline = time.monotonic() + self._grace_s
                # the children of its first process may outlive it
                while process.poll() is None or reaper.tell(process.pid, 0):
                    if hurry or time.monotonic() > deadline:
                        reaper.tell(process.pid, signal.SIGKILL)
                        process.wait()
                        break
                    time.sleep(POLL_S / 2)
                self._running.pop()
            self._watchdog.kill()  # its groups are gone, and their ids may soon be reused
            self._watchdog.wait()
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _tell(pipe: int) -> None:
    """Report our process group to the watchdog; runs between fork and exec."""
    os.write(pipe, f"{os.getpid()}\n".encode())
