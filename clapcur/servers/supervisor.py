"""Processes that run together: started in order, started again when one dies, stopped in order, and gone when we are.

Each has a process group of its own, so that Ctrl-C reaches us alone and whatever it starts ends with it. A watchdog
(`clapcur.servers.reaper`) learns every group before its program runs and ends them all should we be killed.
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

LAST_LINES = 15  # of a log, shown when its process died
POLL_S = 0.1
MAX_RESTARTS = 3  # of one program within RESTART_PERIOD_S; one more death is the end
RESTART_PERIOD_S = 600.0


class ProcessError(ClapcurError):
    """A process that should run ended, or did not get ready; `last_lines` are the last that it wrote."""

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(f"{message}; see {log}")
        self.last_lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]


@dataclass(frozen=True)
class Program:
    """What is to be run.

    Attributes
    ----------
    name : str
        For people, and of the log file.
    command : sequence of str
    environment : mapping
        The whole environment of the process.
    is_ready : callable
        Tells whether it does its work now; asked again and again until it does.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    is_ready: Callable[[], bool] = lambda: True


class Processes:
    """A context manager around running programs; at its end they are stopped, the last started first.

    Parameters
    ----------
    logs : Path
        Folder of the log files, one for each program.
    grace_s : float
        How long a program may take to end before it is killed.
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
        """Stop everything; a second Ctrl-C meanwhile kills what is left at once."""
        self.stop()

    def log(self, program: Program) -> Path:
        """Return where a program's output goes."""
        return self._logs / f"{program.name.replace(' ', '-')}.log"

    def start(self, program: Program) -> "subprocess.Popen[bytes]":
        """Start a program, in a process group of its own that the watchdog knows first."""
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
        """Run a program to its end while watching the others; ProcessError where it fails."""
        process = self.start(program)
        deadline = time.monotonic() + timeout_s
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise ProcessError(f"{program.name} took more than {timeout_s:.0f} s", self.log(program))
            self.check(but=program)
            time.sleep(POLL_S)
        self._running.pop()
        reaper.tell(process.pid, signal.SIGKILL)  # what it may have left behind
        if process.returncode:
            raise ProcessError(f"{program.name} failed (exit {process.returncode})", self.log(program))

    def wait_ready(self, timeout_s: float, *programs: Program) -> None:
        """Return when these programs, or all, are ready; ProcessError where one died or `timeout_s` passed."""
        deadline = time.monotonic() + timeout_s
        waiting = list(programs) or [program for program, _ in self._running]
        while waiting := [program for program in waiting if not program.is_ready()]:
            self.check()
            if time.monotonic() > deadline:
                name = waiting[0].name
                raise ProcessError(f"{name} was not ready after {timeout_s:.0f} s", self.log(waiting[0]))
            time.sleep(POLL_S)

    def check(self, but: Program | None = None) -> None:
        """Raise ProcessError where a program died."""
        for program, process in self._running:
            if program is not but and process.poll() is not None:
                raise ProcessError(f"{program.name} died (exit {process.returncode})", self.log(program))

    def supervise(self, told: Callable[[str], None]) -> None:
        """Start again what dies, and say so; ProcessError where one program dies again and again."""
        deaths: dict[str, list[float]] = {}
        while True:
            for place, (program, process) in enumerate(self._running):
                if process.poll() is None:
                    continue
                reaper.tell(process.pid, signal.SIGKILL)  # what it had started: it may hold the port
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
                # the group may outlive its first process: what that had started
                while process.poll() is None or reaper.tell(process.pid, 0):
                    if hurry or time.monotonic() > deadline:
                        reaper.tell(process.pid, signal.SIGKILL)
                        process.wait()
                        break
                    time.sleep(POLL_S / 2)
                self._running.pop()
            self._watchdog.kill()  # its groups are gone, and their numbers may be others' soon
            self._watchdog.wait()
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _tell(pipe: int) -> None:
    """Name our process group to the watchdog; runs between fork and exec."""
    os.write(pipe, f"{os.getpid()}\n".encode())
