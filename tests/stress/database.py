"""PostgreSQL as the catalog, stopped in the middle of the chain's commands and started again.

A command may wait for the server or end with one line of error; typed again it finishes. Afterwards store, catalog and
MLflow are those of a chain that nobody disturbed.
"""

import importlib.util
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from stress.chain import STEPS, timed_chain
from stress.commands import PATIENCE_S, Command, run
from stress.comparing import catalog_differences, mlflow_differences, store_differences
from stress.harness import Run

ROUNDS = 3
AWAY_S = (0.2, 4.0)
MODES = ("immediate", "fast")  # a power cut, and an administrator


def campaign(context: Run, corpus: Path) -> None:
    """Run it."""
    programs = binaries()
    if programs is None:
        context.skipped = "the PostgreSQL programs initdb and pg_ctl are absent"
        return
    if importlib.util.find_spec("psycopg") is None:
        context.skipped = "the package psycopg is not installed"
        return
    reference = context.folder / "undisturbed"
    ids, timings = timed_chain(reference, corpus)
    run(["sync"], reference, corpus)

    def chain(number: int) -> None:
        home = context.folder / f"home-{number}" / "home"
        home.parent.mkdir()
        rng = context.random(number)
        with Server(programs) as server:
            more = {"CLAPCUR_DATABASE_URL": server.url}
            for step in STEPS:
                timing = timings[step.name]
                lasts_s = timing.before_s + timing.after_s + sum(one.seconds for one in timing.made)
                after_s, away_s, mode = rng.uniform(0, lasts_s), rng.uniform(*AWAY_S), rng.choice(MODES)
                command = Command(step.arguments(ids), home, corpus, more=more)
                time.sleep(after_s)
                server.stop(mode)
                back = threading.Timer(away_s, server.start)
                back.start()
                ended = command.wait(PATIENCE_S)
                back.join()
                context.count("stops of the server")
                told = f"{step.name}: PostgreSQL was stopped ({mode}) after {after_s:.2f} s for {away_s:.1f} s: "
                lines = [line for line in ended.err.splitlines() if line.startswith("error:")]
                if ended.code:
                    context.count("commands that failed with one line")
                if "Traceback" in ended.err or (ended.code and (ended.code != 1 or len(lines) != 1)):
                    context.fail(number, f"{told}{ended}\n{ended.err[-3000:]}", home)
                ended = run(step.arguments(ids), home, corpus, more=more)
                if ended.code:
                    context.fail(number, f"{told}typed again, {ended}\n{ended.err[-3000:]}", home)
                    return
            synced = run(["sync"], home, corpus, more=more)
            if synced.code:
                context.fail(number, str(synced), home)
            said = catalog_differences(home, server.url)
        for line in [*store_differences(reference, home), *said, *mlflow_differences(reference, home)]:
            context.fail(number, line, home)
        context.count("homes compared")
        context.drop(home.parent, number)

    context.steps(range(ROUNDS), chain)


class Server:
    """A PostgreSQL of its own, which listens on a socket in a temporary folder; as nobody where we are root."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="clapcur-pg-", dir="/tmp"))
        if os.getuid() == 0:
            shutil.chown(self._folder, "nobody")
        self._call("initdb", "-D", "data", "-U", "clapcur", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()

    @property
    def url(self) -> str:
        """As SQLAlchemy names it."""
        return f"postgresql+psycopg://clapcur@/postgres?host={self._folder}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-c listen_addresses= -c unix_socket_directories={self._folder}"
        self._call("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self, mode: str) -> None:
        """Stop it, in the mode of pg_ctl."""
        self._call("pg_ctl", "-D", "data", "-w", "-m", mode, "stop")

    def __enter__(self) -> "Server":
        """Give the running server."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop it and remove its files."""
        self.stop("immediate")
        shutil.rmtree(self._folder)

    def _call(self, program: str, *arguments: str) -> None:
        user = "nobody" if os.getuid() == 0 else None
        command = [self._programs / program, *arguments]
        subprocess.run(command, cwd=self._folder, check=True, capture_output=True, timeout=60, user=user)


def binaries() -> Path | None:
    """Return the folder of initdb and pg_ctl, which Debian keeps out of the path."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)
