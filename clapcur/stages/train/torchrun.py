"""Ranks that torchrun started, on one machine or on several: the first runs the command, the others wait for its jobs.

    torchrun --nproc-per-node 4 --no-python clapcur train-student ... --processes 4

Every process must see the same store and the same sounds, at the same places. What the first is about to train it says
in torchrun's key-value store, as JSON; a command that trains nothing, or several models, is as good.
"""

import functools
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from clapcur.methods.devices import pick_device

OVER = "clapcur is over"
_numbers = itertools.count()  # of the trainings of this process


def is_launcher() -> bool:
    """Return whether torchrun started this process, together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Return which of torchrun's processes this is."""
    return int(os.environ["RANK"])


def size() -> int:
    """Return how many processes torchrun started, on all machines."""
    return int(os.environ["WORLD_SIZE"])


def device_of(name: str) -> torch.device:
    """Return the device of this process; "auto" and "cuda" are its GPU among those of its machine."""
    device = pick_device(name)
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.type == "cuda" else device


def announce(job: Mapping[str, Any]) -> dist.Store:
    """Tell the others what is trained next; return where all of them meet for it."""
    number, store = next(_numbers), _store()
    store.set(f"job {number}", json.dumps(job))
    return dist.PrefixStore(f"ranks {number}", store)


def jobs() -> Iterator[tuple[dict[str, Any], dist.Store]]:
    """Yield what the first process announces, and where all meet for it, until it is through."""
    store = _store()
    for number in _numbers:
        while not store.check([f"job {number}"]):
            if store.check([OVER]):
                return
            time.sleep(0.2)
        yield json.loads(store.get(f"job {number}")), dist.PrefixStore(f"ranks {number}", store)


@contextmanager
def leading() -> Iterator[None]:
    """Be the first process inside the block; the others end with it."""
    try:
        yield
    finally:
        _store().set(OVER, "")


@functools.cache
def _store() -> dist.Store:
    """Return torchrun's store, which its agent keeps, or else the first process."""
    is_ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and rank() == 0
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size(), is_master=is_ours)
