"""One more process of a training: ``python -m clapcur.train.helper``, started by `clapcur.train.ranks.first_of`.

Its standard input says in one line of JSON what to do; when it ends, the first process is gone and so are we.
"""

import json
import os
import sys
import threading
from pathlib import Path

from clapcur.artifacts import Artifact
from clapcur.config import from_dict
from clapcur.train.config import TrainConfig
from clapcur.train.loop import assist
from clapcur.train.ranks import as_helper


def main() -> None:
    """Take part in the training until its last step, or until the first process ends."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_the_first, daemon=True).start()
    inputs = {role: Artifact(**artifact) for role, artifact in job["inputs"].items()}
    with as_helper(job) as ranks:
        assist(inputs, from_dict(TrainConfig, job["config"]), Path(job["state"]), ranks)


def _leave_with_the_first() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
