"""Ends the process groups of a parent that died, however it died.

Run as a script by `clapcur.servers.supervisor`; uses nothing but the standard library, for it starts before everything
else. Its standard input is a pipe whose only writers are the parent and, before they become other programs, its
children: each line is the id of a process group. The pipe ends when the parent does, and then so does every group.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable

GRACE_S = 10.0  # after so long a group that was asked to end is killed


def end(groups: Iterable[int], grace_s: float = GRACE_S) -> None:
    """Ask process groups to end, and kill what still lives after `grace_s` seconds."""
    left = [group for group in groups if tell(group, signal.SIGTERM)]
    deadline = time.monotonic() + grace_s
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [group for group in left if tell(group, 0)]
    for group in left:
        tell(group, signal.SIGKILL)


def tell(group: int, number: int) -> bool:
    """Send a signal to a process group (0: none), and whether anybody was there."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # the number is another user's by now
        return False
    return True


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end(int(line) for line in sys.stdin.readlines())
