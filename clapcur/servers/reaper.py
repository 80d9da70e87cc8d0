"""End the process groups of a parent process after it died for any reason.

`clapcur.servers.supervisor` runs this as a script. It uses the standard library only, because it starts before
everything else. Its standard input is a pipe, written only by the parent and, between fork and exec, by its children;
each line is the id of a process group. When the parent ends, the pipe closes, and the script ends every group.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable

GRACE_S = 10.0  # how long a group may take to end before it is killed


def end(groups: Iterable[int], grace_s: float = GRACE_S) -> None:
    """Terminate process groups, and kill those that are still alive after `grace_s` seconds."""
    left = [group for group in groups if tell(group, signal.SIGTERM)]
    deadline = time.monotonic() + grace_s
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [group for group in left if tell(group, 0)]
    for group in left:
        tell(group, signal.SIGKILL)


def tell(group: int, number: int) -> bool:
    """Send a signal to a process group (0: only check), and return whether the group exists."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # the id now belongs to another user's group
        return False
    return True


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end(int(line) for line in sys.stdin.readlines())
