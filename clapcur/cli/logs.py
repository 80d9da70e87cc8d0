"""What a command says beside its result: ``--quiet``, ``--verbose``, and a log file in the home.

``HOME/logs/<date>-<command>.log`` has the command line, the versions, every log line with its time, and the traceback
of an error, whatever is shown on stderr. Passwords and tokens are hidden. The newest `KEPT` files are kept. A log file
that cannot be written never affects the command.
"""

import fcntl
import functools
import inspect
import logging
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clapcur import progress
from clapcur.redaction import redacted
from clapcur.store.home import is_locked

KEPT = 50  # log files of a home
MAX_BYTES = 5 * 2**20  # of a log file; then it becomes FILE.1, and the FILE.1 before it is deleted
NAME = re.compile(r"\d{8}T\d{6}-[a-z][a-z-]*(?:\.\d+)?\.log(?:\.1)?")  # no other file in the folder is ours to delete
NOT_LOGGED = ("doctor",)  # commands that promise to write nothing

Volume = Literal["quiet", "normal", "verbose"]
log = logging.getLogger("clapcur")


class StderrHandler(logging.Handler):
    """Writes to the current stderr, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line, unless it is about progress that a bar shows."""
        if record.name != progress.LOGGER or not progress.has_bar():
            print(redacted(self.format(record)), file=sys.stderr, flush=True)


class LogFile(RotatingFileHandler):
    """A log file: locked while the command runs, free of secrets, and silent when it cannot be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s", "%H:%M:%S"))

    def _open(self) -> Any:
        stream = super()._open()
        with suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return stream

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without secrets, also those in its traceback."""
        return redacted(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is the base class's
        """Write nothing more, for example to a full disk."""
        log.removeHandler(self)

    def close(self) -> None:
        """Close the file; what is not on the disk yet may be lost."""
        with suppress(OSError):
            super().close()


class CommandLog:
    """The log of one command: what stderr shows, and the log file once there is a home."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.path: Path | None = None
        self.volume: Volume = "normal"
        self._arguments, self._started = arguments, time.monotonic()
        self._command: str | None = None
        self._file: LogFile | None = None

    def ask(self, quiet: bool, verbose: bool) -> None:
        """Note which options were given, before or after the command's name."""
        is_quiet, is_verbose = quiet or self.volume == "quiet", verbose or self.volume == "verbose"
        if is_quiet and is_verbose:
            raise typer.BadParameter("give --quiet or --verbose, not both")
        self.volume = "quiet" if is_quiet else "verbose" if is_verbose else "normal"

    def begin(self, command: str, root: Path) -> None:
        """Show lines as the options ask for, and open the log file if the home exists.

        Parameters
        ----------
        command : str
            Name of the command, such as ``catalog rebuild``.
        root : Path
            The home, which may not exist.
        """
        self._command = command
        progress.show(self.volume != "quiet")
        show_lines(self.volume)
        if root.is_dir():
            self.open(root)

    def open(self, root: Path) -> None:
        """Open the log file in a home, unless it is open or the command writes nothing."""
        if self._file is not None or self._command is None or self._command in NOT_LOGGED:
            return
        folder = root / "logs"
        try:
            folder.mkdir(exist_ok=True)
            self._file = LogFile(_new_path(folder, self._command))
        except OSError:  # a read-only home, or a full disk
            return
        self.path = Path(self._file.baseFilename)
        log.addHandler(self._file)
        log.setLevel(logging.DEBUG)
        from clapcur import __version__

        self.write(logging.INFO, f"$ {shlex.join(['clapcur', *self._arguments])}")
        self.write(
            logging.INFO,
            f"clapcur {__version__}, Python {platform.python_version()}, {platform.platform()}, process {os.getpid()}, "
            f"started {time.strftime('%Y-%m-%dT%H:%M:%S%z')} in {Path.cwd()}, home {root.absolute()}",
        )
        _delete_old(folder)

    def write(self, level: int, text: str, error: BaseException | None = None) -> None:
        """Write a line, and the traceback of an error, to the log file only.

        Parameters
        ----------
        level : int
            As in `logging`.
        text : str
        error : Exception, optional
        """
        if self._file is not None:
            caught = None if error is None else (type(error), error, error.__traceback__)
            self._file.handle(logging.LogRecord("clapcur.command", level, __file__, 0, text, (), caught))

    @property
    def has_owner(self) -> bool:
        """Whether `new` made it, for a caller who ends it; else a command was called as a function of the app."""
        return bool(self._arguments)

    def end(self, code: int) -> None:
        """Write the exit code and close the file; the next command has a log of its own."""
        global _current
        if _current is self:
            _current = CommandLog(())
        self._command = None
        if self._file is not None:
            self.write(logging.INFO, f"exit code {code} after {time.monotonic() - self._started:.1f} s")
            log.removeHandler(self._file)
            self._file.close()
            self._file = None


_current = CommandLog(())


def new(arguments: Sequence[str]) -> CommandLog:
    """Return the log of a command that begins now."""
    global _current
    _current = CommandLog(arguments)
    return _current


def current() -> CommandLog:
    """Return the log of the command that runs."""
    return _current


def show_lines(volume: Volume = "normal") -> None:
    """Print log lines on stderr: errors only (``quiet``), messages, or everything with times (``verbose``)."""
    handler = next((one for one in log.handlers if isinstance(one, StderrHandler)), None)
    if handler is None:
        log.addHandler(handler := StderrHandler())
    levels = {"quiet": logging.ERROR, "normal": logging.INFO, "verbose": logging.DEBUG}
    handler.setLevel(levels[volume])
    is_timed = volume == "verbose"
    handler.setFormatter(
        logging.Formatter("%(asctime)s.%(msecs)03d %(message)s", "%H:%M:%S") if is_timed else logging.Formatter()
    )
    log.setLevel(min(logging.INFO, levels[volume]))
    log.propagate = False  # Prefect would print every line a second time


def chosen_home(root: Path | None) -> Path:
    """Return the folder of the home that ``--home`` or the environment gives; it may not exist."""
    return Path(root or os.environ.get("CLAPCUR_HOME") or ".clapcur").expanduser()


def _new_path(folder: Path, command: str) -> Path:
    """Return the name of a new file; the process's id tells apart two commands of one second."""
    name = f"{time.strftime('%Y%m%dT%H%M%S')}-{command.replace(' ', '-')}"
    path = folder / f"{name}.log"
    return folder / f"{name}.{os.getpid()}.log" if path.exists() else path


def _delete_old(folder: Path) -> None:
    """Delete all but the newest log files, except those of running commands."""
    files = sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))
    first = [path for path in files if path.suffix == ".log"]
    for path in first[:-KEPT]:
        with suppress(OSError):
            if not is_locked(path):
                path.with_name(f"{path.name}.1").unlink(missing_ok=True)
                path.unlink()


# -- the options

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result and errors.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also print debug lines, with times, and the traceback of an error.")
]


def logged(name: str, command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that also takes ``--quiet`` and ``--verbose``, and whose lines go to a log file.

    Parameters
    ----------
    name : str
        Name of the command, such as ``catalog rebuild``.
    command : callable
        The function whose arguments are those of the command.
    """

    @functools.wraps(command)
    def run(quiet: bool, verbose: bool, **values: Any) -> Any:
        this = current()
        this.ask(quiet, verbose)
        this.begin(name, chosen_home(values.get("home")))
        if this.has_owner:
            return command(**values)
        code = 1
        try:
            result = command(**values)
            code = 0
            return result
        finally:
            this.end(code)

    plain = inspect.signature(command)
    more = {"quiet": QuietOption, "verbose": VerboseOption}
    added = [
        inspect.Parameter(option, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=annotation)
        for option, annotation in more.items()
    ]
    run.__signature__ = plain.replace(parameters=[*plain.parameters.values(), *added])  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {**command.__annotations__, **more}
    return run
