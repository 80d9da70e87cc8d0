"""The command as a process of its own."""

import subprocess
import sys


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, as people do."""
    command = [sys.executable, "-c", "from clapcur.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
