"""Keeps a test on this machine: each look-up or connection that would leave it is refused and written down.

A Python process loads a module of this name from PYTHONPATH when it starts, so the guard also holds in every command
that a test runs; `conftest.py` loads it for the tests themselves. What is written down fails the test, for telemetry
likes to swallow its own errors.
"""

import os
import socket
import sys
from ipaddress import ip_address
from typing import Any

JOURNAL = "CLAPCUR_TEST_JOURNAL"  # names the file that refusals are appended to
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")  # arguments: host, ...
SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")  # arguments: socket, address


def is_local(host: str) -> bool:
    """Return whether this name or address can only mean the machine we are on."""
    if host in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def stay_home(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse an audited socket call to another machine, as if the network were down."""
    if event in LOOKUPS:
        host = arguments[0]
    elif event in SENDS and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if not isinstance(host, str) or is_local(host):
        return
    if journal := os.environ.get(JOURNAL):
        with open(journal, "a") as file:
            file.write(f"{event} {host!r} by process {os.getpid()}: {' '.join(sys.argv)[:200]}\n")
    raise socket.gaierror(socket.EAI_FAIL, f"tests stay on this machine: {host!r} is another one")


sys.addaudithook(stay_home)
