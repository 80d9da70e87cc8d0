"""One more process of a training: ``python -m clapcur.stages.train.helper``.

`clapcur.stages.train.ranks.first_of` starts it. Its standard input says in one line of JSON what to do; when it ends,
the first process is gone and so are we. A process that torchrun started (`attend`) is told by the first one through
torchrun's store.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clapcur.config import from_dict
from clapcur.stages.train import torchrun
from clapcur.stages.train.config import TrainConfig
from clapcur.stages.train.loop import assist
from clapcur.stages.train.ranks import Ranks, as_helper, joined
from clapcur.stages.train.step import NotFinite
from clapcur.store.artifacts import Artifact


def main() -> None:
    """Take part in the training until its last step, or until the first process ends."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_the_first, daemon=True).start()
    with as_helper(job) as ranks:
        _help(job, ranks)


def attend() -> None:
    """Take part in the trainings of torchrun's first process until it is through."""
    for job, meeting in torchrun.jobs():
        device, threads = torchrun.device_of(job["config"]["device"]), torch.get_num_threads()
        with joined(torchrun.rank(), torchrun.size(), meeting, device, threads) as ranks:
            _help(job, ranks)


def _help(job: Mapping[str, Any], ranks: Ranks) -> None:
    inputs = {role: Artifact(**artifact) for role, artifact in job["inputs"].items()}
    try:
        assist(inputs, from_dict(TrainConfig, job["config"]), Path(job["state"]), ranks)
    except NotFinite:  # the first process has met the same loss, says so, and ends the training
        return


def _leave_with_the_first() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
