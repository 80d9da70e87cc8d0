"""A temporary Prefect server for one command, used if no permanent one runs; it ends with the command in any case.

Prefect would start a temporary server itself, but that one outlives a killed command, and its first start gives up
after 20 s if several commands create its tables at once. Ours is supervised (`clapcur.servers.supervisor`), and only
one process at a time creates the tables of a home. Prefect's clients find it where they look for their own.
"""

import atexit
import fcntl
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from clapcur.errors import ClapcurError
from clapcur.servers import guard, heartbeat
from clapcur.servers.local import HOST, answers
from clapcur.servers.supervisor import Processes, Program
from clapcur.store.home import Home

READY_S = 300.0  # the first start creates tables: ten seconds on an idle machine
PATIENCE_S = 1800.0  # how long a command waits while another one creates them
TOLD_AFTER_S = 2.0  # a longer wait is explained in the log

log = logging.getLogger("clapcur")


@contextmanager
def flows_allowed(home: Home) -> Iterator[None]:
    """Let this process run flows inside the block, with a server and, if needed, heartbeats.

    A permanent server would keep the run of a killed command as running, so the run sends it heartbeats. A temporary
    server gets none, because every flow would wait up to a second for the heartbeat thread. The shared lock shows other
    processes that flows are running.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with open(home.flows_lock, "a") as mark:
        fcntl.flock(mark, fcntl.LOCK_SH)
        ensure(home)
        every_s = heartbeat.EVERY_S if PREFECT_API_URL.value() else None
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: every_s}):
            yield


def ensure(home: Home) -> None:
    """Start the server unless one is configured or already started; it runs until the process ends.

    Raises
    ------
    ClapcurError
        The server did not become ready; the message names its log.
    """
    import prefect
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME

    server = SubprocessASGIServer()  # the one that Prefect's clients use, and start if it does not run yet
    if PREFECT_API_URL.value() or server.running:
        return
    database, stamp = (PREFECT_HOME.value() / name for name in ("prefect.db", f".tables-of-{prefect.__version__}"))
    are_made = database.exists() and stamp.exists()
    with nullcontext() if are_made else _turn(home):
        processes = Processes(home.root / "logs", grace_s=5.0).__enter__()
        atexit.register(processes.stop)
        server.port = _free_port()
        program = _program(server.port)
        server.server_process = processes.start(program)
        processes.wait_ready(READY_S, program)
        server.running = True
        stamp.touch()


@contextmanager
def _turn(home: Home) -> Iterator[None]:
    """Hold the lock under which Prefect's tables in this home are created."""
    from filelock import FileLock, Timeout

    lock = FileLock(home.prefect_lock)
    try:
        lock.acquire(timeout=TOLD_AFTER_S)
    except Timeout:
        log.info("waiting for another command to create Prefect's tables in %s", home.root)
        try:
            lock.acquire(timeout=PATIENCE_S)
        except Timeout:
            raise ClapcurError(
                f"another process has held {home.prefect_lock} for {PATIENCE_S / 60:.0f} min while starting Prefect "
                "for "
                "this home; stop it and run again"
            ) from None
    try:
        yield
    finally:
        lock.release()


def _program(port: int) -> Program:
    """Return the program that Prefect itself would start (the API without pages), behind the guard."""
    from prefect.settings import get_current_settings

    environment = os.environ | {
        guard.HOSTS: f"{HOST}:{port}",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port}",
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }
    environment |= get_current_settings().to_environment_variables(exclude_unset=True)
    command = [sys.executable, "-P", "-m", "uvicorn", "--factory", "clapcur.servers.guard:prefect"]
    command += ["--host", HOST, "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    url = f"http://{HOST}:{port}/api/health"
    return Program("prefect of a command", command, environment, lambda: answers(url))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
