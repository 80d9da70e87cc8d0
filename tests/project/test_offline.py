"""The guard of `tests/offline`: without these, a guard that sees nothing would look like a program that is quiet."""

import shutil
import socket
import subprocess
import sys

import pytest
from source_tree import ROOT

CONFTEST = ROOT / "tests" / "conftest.py"
pytest_plugins = ["pytester"]


def test_a_lookup_of_another_machine_is_refused_and_written_down(journal):
    """A library could swallow the refusal and the test would still pass."""
    with pytest.raises(socket.gaierror, match="stay on this machine"):
        socket.getaddrinfo("telemetry.example", 443)
    assert "getaddrinfo 'telemetry.example'" in journal.read_text()
    journal.write_text("")


def test_a_connection_to_an_address_is_refused_without_any_lookup(journal):
    """An address written as numbers needs no look-up, and would pass a guard that watches names only."""
    with socket.socket() as client, pytest.raises(socket.gaierror, match="192.0.2.1"):
        client.connect(("192.0.2.1", 443))
    assert "connect '192.0.2.1'" in journal.read_text()
    journal.write_text("")


def test_a_child_process_is_guarded_too(journal):
    """The commands run in processes of their own: telemetry there would go unseen."""
    child = (
        "import socket\ntry:\n    socket.getaddrinfo('telemetry.example', 443)\nexcept OSError:\n    print('swallowed')"
    )
    out = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout
    assert out == "swallowed\n"
    assert "'telemetry.example' by process" in journal.read_text()
    journal.write_text("")


def test_servers_on_this_machine_can_be_reached():
    """A guard that refused loopback would make every test of a server fail for the wrong reason."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
    assert socket.getaddrinfo("localhost", 80)


def test_the_test_that_left_the_machine_is_the_one_that_fails(pytester):
    """A refusal that is noted but fails nobody would never be read."""
    pytester.makeconftest(CONFTEST.read_text())
    shutil.copytree(CONFTEST.with_name("offline"), pytester.path / "offline")
    pytester.makepyfile(
        """
        import socket

        def test_swallows():
            try:
                socket.getaddrinfo("telemetry.example", 443)
            except OSError:
                pass

        def test_quiet():
            pass
        """
    )
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_swallows*", "*getaddrinfo 'telemetry.example'*"])
