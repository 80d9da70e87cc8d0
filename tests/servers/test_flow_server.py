"""Prefect's server of one command: there when a flow runs, and gone with the command, however that ends."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from running_servers import outside_of_tests
from waiting import wait_until

from clapcur.store.home import Home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PATIENCE_S = 180  # a start makes tables, on a machine that has other things to do
GONE_S = 30  # the watchdog asks first, and kills after ten seconds

COMMAND = """
import sys, time
from clapcur.cli.console import open_home
open_home(None)
from prefect import flow
from clapcur.cli.experiments import run_flow

@flow
def at_work(seconds: float):
    print("at work", flush=True)
    time.sleep(seconds)
    return "done"

print(run_flow(at_work, float(sys.argv[1])))
"""


def start(home, seconds):
    """Start a command that runs a flow of so many seconds."""
    environment = outside_of_tests() | {"CLAPCUR_HOME": str(home.root)}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(seconds)], env=environment, stdout=subprocess.PIPE, text=True
    )


def end(command, number):
    """Send a signal to a command and wait until it has ended."""
    command.send_signal(number)
    command.communicate(timeout=60)
    assert command.returncode != 0


def processes_of(home, words=""):
    """Return the living processes that work for a home, of which the command line holds some words."""
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get("CLAPCUR_HOME") == str(home.root) and process.pid != os.getpid()
            if is_ours and process.status() != psutil.STATUS_ZOMBIE and words in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # another user's, or gone by now
            continue
    return found


def servers_of(home):
    """Return the servers of the commands in a home."""
    return processes_of(home, "clapcur.servers.guard:prefect")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Give a home that has run a flow before."""
    home = Home.open(tmp_path_factory.mktemp("prepared") / "home")
    command = start(home, 0)
    assert command.communicate(timeout=PATIENCE_S)[0].split() == ["at", "work", "done"]
    assert command.returncode == 0
    return home


def test_the_server_ends_with_a_command_that_is_done(prepared):
    """200 MB and an open API for each command that was ever run."""
    wait_until(lambda: not processes_of(prepared), GONE_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
def test_the_server_ends_with_a_command_that_is_killed_at_work(prepared, number):
    """Two of two killed commands left theirs, and three of five that were told to end."""
    command = start(prepared, 600)
    assert command.stdout is not None and command.stdout.readline() == "at work\n"
    assert len(servers_of(prepared)) == 1
    end(command, number)
    wait_until(lambda: not processes_of(prepared), GONE_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("moment", ["starts", "makes tables"])
def test_a_command_that_is_killed_while_its_server_starts_leaves_a_home_that_works(tmp_path, number, moment):
    """The next command would find half of Prefect's tables, a lock that nobody holds, and a server of nobody."""
    home = Home.open(tmp_path / "home")
    database = home.prefect_home / "prefect.db"
    command = start(home, 0)
    if moment == "starts":
        wait_until(lambda: servers_of(home), PATIENCE_S)
    else:
        wait_until(lambda: database.exists() and database.stat().st_size, PATIENCE_S)
    end(command, number)
    wait_until(lambda: not processes_of(home), GONE_S)
    again = start(home, 0)
    assert again.communicate(timeout=PATIENCE_S)[0].split() == ["at", "work", "done"]
    assert again.returncode == 0


def test_four_commands_at_once_work_in_a_new_home(tmp_path):
    """All four failed, for they made the same tables and gave up waiting for each other after 20 s."""
    home = Home.open(tmp_path / "home")
    commands = [start(home, 1) for _ in range(4)]
    deadline = time.monotonic() + 2 * PATIENCE_S
    said = [command.communicate(timeout=deadline - time.monotonic())[0].split() for command in commands]
    assert said == 4 * [["at", "work", "done"]]
    assert [command.returncode for command in commands] == [0, 0, 0, 0]
    wait_until(lambda: not processes_of(home), GONE_S)
