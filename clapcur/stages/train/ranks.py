"""Processes that share a batch: what each computes of it, and what they tell each other.

Every process (a *rank*) has its own share of the pairs, of equal size, and its own device. Of the (N, N) logits it
computes its own rows against the embeddings of all (a *local loss* with a *gather with gradient*); the sum over the
ranks is the loss of the batch, and its gradient that of one process. Batch statistics are those of all ranks together.

The first rank is the process of the stage: it alone holds the lease, evaluates, writes and reports. It starts the
others on this machine (`clapcur.stages.train.helper`), and they end with it; or torchrun has started all of them, here
or on several machines (`clapcur.stages.train.torchrun`).

Shapes: N pairs in the batch, B of them this rank's, D embedding.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clapcur.errors import CheckpointError
from clapcur.methods.devices import pick_device
from clapcur.stages.train import torchrun

HOST = "127.0.0.1"
LOOPBACK = (HOST, "localhost", "::1")
PATIENCE = timedelta(minutes=30)  # what the others wait while the first evaluates
LEAVE_S = 20.0  # a helper that is through with its steps may take so long to end


class Ranks:
    """The place of a process among those that share a batch.

    Parameters
    ----------
    rank, size : int
        Which, of how many; 0 of 1 where it is alone, and then nothing is communicated.
    device : torch.device
        Of this rank.
    """

    def __init__(self, rank: int, size: int, device: torch.device):
        self.rank, self.size, self.device = rank, size, device

    def share(self, num_pairs: int) -> slice:
        """Return which pairs of a batch are this rank's."""
        each = num_pairs // self.size
        return slice(self.rank * each, (self.rank + 1) * each) if self.size > 1 else slice(None)

    def gather(self, rows_BD: Tensor) -> Tensor:
        """Return the rows of all ranks, shape (N, D); a gradient goes back to where each row came from."""
        return rows_BD if self.size == 1 else _Gather.apply(rows_BD, self.rank, self.size)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks, without gradient."""
        if self.size == 1:
            return values.detach()
        summed = values.detach().clone()
        dist.all_reduce(summed)
        return summed

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with gradients averaged over the ranks and batch norms that see the whole batch."""
        if self.size == 1:
            return module
        device_ids = None
        if self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            device_ids = [self.device.index]
        else:
            for part in module.modules():
                if type(part) is nn.BatchNorm2d:
                    part.__class__ = SharedBatchNorm
        # The batch norms keep the buffers equal; a weight that no gradient reaches is an error, which names it.
        return nn.parallel.DistributedDataParallel(module, device_ids, broadcast_buffers=False)


class _Gather(torch.autograd.Function):
    """Rows of all ranks; every rank's loss has a part in the gradient of every row.

    What torch.distributed.nn.functional has for it is deprecated, and its successor is private.
    """

    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, rank: int, size: int) -> Tensor:
        ctx.own = slice(rank * len(rows_BD), (rank + 1) * len(rows_BD))
        parts = [torch.empty_like(rows_BD) for _ in range(size)]
        dist.all_gather(parts, rows_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor, None, None]:
        total_ND = gradient_ND.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total_ND)
        return total_ND[ctx.own], None, None


class _Sum(torch.autograd.Function):
    """Sum over the ranks, of values and of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batch of all ranks, for devices that torch's SyncBatchNorm refuses (CPU)."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return normalised maps; the running statistics take a step on every rank alike."""
        if not self.training:
            return super().forward(x_BCHW)
        given = x_BCHW.dtype
        x_BCHW = x_BCHW.to(torch.promote_types(given, torch.float32))  # statistics are no matter for half precision
        size, count = dist.get_world_size(), x_BCHW.numel() // x_BCHW.shape[1] * dist.get_world_size()
        mean_C: Tensor = _Sum.apply(x_BCHW.mean(dim=(0, 2, 3))) / size
        centred_BCHW = x_BCHW - mean_C[:, None, None]
        variance_C: Tensor = _Sum.apply(centred_BCHW.square().mean(dim=(0, 2, 3))) / size
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * (count / (count - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale_C = torch.rsqrt(variance_C + self.eps) * self.weight
        return (centred_BCHW * scale_C[:, None, None] + self.bias[:, None, None]).to(given)


@contextmanager
def first_of(processes: int, device: str, job: Mapping[str, Any]) -> Iterator[Ranks]:
    """Be the first rank inside the block; the others are started with it and end with it.

    Parameters
    ----------
    processes : int
        1 starts nothing.
    device : str
        As `pick_device` takes it; "auto" and "cuda" give each rank a GPU of its own.
    job : mapping
        What the helpers are told, as JSON; see `clapcur.stages.train.helper`.

    Raises
    ------
    ValueError
        There are fewer GPUs than processes.
    CheckpointError
        Another rank died.
    """
    if processes > 1 and torchrun.is_launcher():
        if torchrun.size() != processes:
            raise ValueError(
                f"torchrun started {torchrun.size()} processes, but the config has processes: {processes}; use the "
                "same number"
            )
        meeting = torchrun.announce(job)
        with joined(0, processes, meeting, torchrun.device_of(device), torch.get_num_threads()) as ranks:
            yield ranks
        return
    own_device = _device_of(device, 0, processes)
    if processes == 1:
        yield Ranks(0, 1, own_device)
        return
    store = dist.TCPStore(HOST, 0, processes, is_master=True, timeout=PATIENCE, wait_for_workers=False)
    threads = torch.get_num_threads()
    shared_threads = max(1, threads // processes)
    helpers = []
    try:
        for rank in range(1, processes):
            helper = subprocess.Popen(
                [sys.executable, "-m", "clapcur.stages.train.helper"],
                stdin=subprocess.PIPE,
                start_new_session=True,
                text=True,
            )
            helpers.append(helper)
            place = {"rank": rank, "size": processes, "port": store.port, "threads": shared_threads, "device": device}
            assert helper.stdin is not None
            helper.stdin.write(json.dumps({**job, **place}) + "\n")
            helper.stdin.flush()  # it stays open: its end is how a helper learns that we are gone
        with ExitStack() as group:  # left after the error was looked into: leaving it ends the helpers too
            try:
                _wait_for(helpers, store)
                yield group.enter_context(joined(0, processes, store, own_device, shared_threads))
                with suppress(subprocess.TimeoutExpired):  # all steps are taken: a slow end costs nothing
                    for helper in helpers:
                        helper.wait(LEAVE_S)
            except RuntimeError as error:  # what a collective raises when somebody left
                if died := _death_among(helpers):
                    raise died from error
                raise
    finally:
        torch.set_num_threads(threads)
        for helper in helpers:  # all of them, before one is waited for
            helper.kill()
        for helper in helpers:
            helper.communicate()


@contextmanager
def joined(rank: int, size: int, store: dist.Store, device: torch.device, threads: int) -> Iterator[Ranks]:
    """Be one of the ranks inside the block, with as many threads on a CPU.

    Parameters
    ----------
    rank : int
        Of this process, from 0.
    size : int
        Number of ranks.
    store : torch.distributed.Store
        Where the ranks meet.
    device : torch.device
    threads : int

    Yields
    ------
    Ranks
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(threads)
        if os.environ.get("MASTER_ADDR", HOST) in LOOPBACK:  # all ranks are on this machine
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Ranks(rank, size, device)
    finally:
        dist.destroy_process_group()


def as_helper(place: Mapping[str, Any]) -> Any:
    """Be the rank that `first_of` started with these words; a context manager that gives `Ranks`."""
    rank, size = place["rank"], place["size"]
    store = dist.TCPStore(HOST, place["port"], size, is_master=False, timeout=PATIENCE)
    device = _device_of(place["device"], rank, size)
    store.set(f"{rank} is here", "")
    return joined(rank, size, store, device, place["threads"])


def _wait_for(helpers: Sequence["subprocess.Popen[str]"], store: dist.Store) -> None:
    """Return when all are there; RuntimeError where one died before, for which the rendezvous would wait for ever."""
    while not store.check([f"{rank} is here" for rank in range(1, len(helpers) + 1)]):
        if any(helper.poll() is not None for helper in helpers):
            raise RuntimeError("a process ended before it joined")
        time.sleep(0.05)


def _death_among(helpers: Sequence["subprocess.Popen[str]"]) -> CheckpointError | None:
    """Return the error that says which helper died; None where all live."""
    with suppress(subprocess.TimeoutExpired):
        helpers[0].wait(1.0)  # the exit of who left may take a moment
    died = [(rank, helper.returncode) for rank, helper in enumerate(helpers, 1) if helper.poll()]
    if not died:
        return None
    rank, code = died[0]
    return CheckpointError(
        f"training process {rank} of {len(helpers) + 1} died (exit {code}), see its error above; run the same command "
        "again to resume from the last saved state"
    )


def _device_of(name: str, rank: int, processes: int) -> torch.device:
    device = pick_device(name)
    if processes == 1 or device.type != "cuda":
        return device
    if device.index is not None or torch.cuda.device_count() < processes:
        raise ValueError(
            f"{processes} processes need one GPU each and device 'auto' or 'cuda', got {name!r} and "
            f"{torch.cuda.device_count()} GPUs"
        )
    return torch.device("cuda", rank)
