"""A PostgreSQL of the tests' own, from the programs of this machine."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def binaries() -> Path | None:
    """Return the folder of initdb and pg_ctl, which Debian keeps out of the path."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


@contextmanager
def running_postgres() -> Iterator[Path]:
    """Start a server that listens on a socket in a temporary folder, as nobody where we are root; gives the folder.

    Its user clapcur has no password: ``postgresql://clapcur@/postgres?host=FOLDER``. Skips by name what is absent.
    """
    programs = binaries()
    if programs is None:
        pytest.skip("needs the PostgreSQL programs initdb and pg_ctl, which are absent")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("needs the package psycopg to reach PostgreSQL, which is not installed")
    folder = Path(tempfile.mkdtemp(prefix="clapcur-pg-", dir="/tmp"))
    if os.getuid() == 0:
        shutil.chown(folder, "nobody")
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    call(folder, programs / "initdb", "-D", folder / "data", "-U", "clapcur", "-A", "trust", "--no-sync", "-E", "UTF8")
    control = programs / "pg_ctl", "-D", folder / "data", "-w"
    start = (*control, "-l", folder / "log", "-o", options, "start")
    call(folder, *start)
    try:
        yield folder
    finally:
        call(folder, *control, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def restart(folder: Path) -> None:
    """Kill the server as a power cut does, and start it again."""
    programs = binaries()
    assert programs is not None
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    control = programs / "pg_ctl", "-D", folder / "data", "-w"
    call(folder, *control, "-m", "immediate", "stop")
    call(folder, *control, "-l", folder / "log", "-o", options, "start")


def call(folder: Path, *command: object) -> None:
    """Run a program in the server's folder, as nobody where we are root."""
    user = "nobody" if os.getuid() == 0 else None
    subprocess.run([*map(str, command)], cwd=folder, check=True, capture_output=True, timeout=60, user=user)
