"""Spread the parts of one artifact over many workers: processes on this machine, or a Ray cluster.

The number of workers is not part of an experiment, so the environment sets it: ``CLAPCUR_FAN_OUT`` is ``none`` (the
default: this process), ``processes:4``, ``ray`` (the cluster named by ``RAY_ADDRESS``, else the CPUs and GPUs of this
machine) or ``ray:2`` (two CPUs of this machine). The workers must see the same store and the same audio at the same
paths. Finished parts are marked on disk, so a run that lost a worker continues with the missing parts on any worker.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner

from clapcur.store.artifacts import Spread, here

VARIABLE = "CLAPCUR_FAN_OUT"
SHARES_PER_WORKER = 4  # ours: few, so that each is long; several, so that the last one is not waited for long


@task(cache_policy=NO_CACHE, task_run_name="parts-{name}")
def make_parts(name: str, work: Callable[[Sequence[int]], Any], parts: Sequence[int]) -> Any:
    """Make a share of the parts in the process of this task.

    Parameters
    ----------
    name : str
        Name of the task run, such as ``0-to-7``.
    work : callable
        Makes the parts with the given indices.
    parts : sequence of int
        Indices of the parts in this share.
    """
    return work(parts)


def spread() -> Spread:
    """Return the way to spread parts that the environment names.

    Raises
    ------
    ValueError
        The value of `CLAPCUR_FAN_OUT` is unknown, or Ray is not installed.
    """
    setting = os.environ.get(VARIABLE) or "none"
    kind, _, number = setting.partition(":")
    if setting == "none":
        return here
    if kind not in ("processes", "ray") or (number and not (number.isdecimal() and int(number))):
        raise ValueError(f"{VARIABLE} must be none, processes:4, ray or ray:2 (with any number), got {setting!r}")
    num_workers = int(number) if number else None
    return _over_processes(num_workers or os.cpu_count() or 1) if kind == "processes" else _over_ray(num_workers)


def _over_processes(num_workers: int) -> Spread:
    def over_processes(work: Callable[[Sequence[int]], Any], parts: Sequence[int]) -> list[Any]:
        threads = max(1, (os.cpu_count() or 1) // num_workers)
        with ProcessPoolTaskRunner(num_workers, initializer=_limit_threads, initargs=(threads,)) as runner:
            return _make(runner, work, parts, num_workers)

    return over_processes


def _limit_threads(number: int) -> None:
    """Limit the threads of a worker; this must run before torch is imported, which reads the variable once."""
    os.environ["OMP_NUM_THREADS"] = str(number)


def _over_ray(num_cpus: int | None) -> Spread:
    if num_cpus and os.environ.get("RAY_ADDRESS"):
        raise ValueError(
            f"{VARIABLE}=ray:{num_cpus} starts a local cluster, but RAY_ADDRESS is set: use {VARIABLE}=ray"
        )
    try:
        import ray
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options
    except ImportError as error:
        raise ValueError(f"{VARIABLE} asks for Ray, which is not installed: pip install 'clapcur[ray]'") from error

    def over_ray(work: Callable[[Sequence[int]], Any], parts: Sequence[int]) -> list[Any]:
        here_only = {"num_cpus": num_cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        runner = RayTaskRunner("local", here_only) if num_cpus else RayTaskRunner()
        with ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():  # Ray leaves its own handler behind
                stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            stack.enter_context(runner)
            there = ray.cluster_resources()
            num_gpus = int(there.get("GPU", 0))
            if num_gpus:  # max_calls=0: otherwise each task is a new process, which loads the model again
                stack.enter_context(remote_options(num_gpus=1, max_calls=0))
            return _make(runner, work, parts, num_gpus or int(there["CPU"]))

    return over_ray


def _make(runner: TaskRunner[Any], work: Callable[[Sequence[int]], Any], parts: Sequence[int], num_workers: int) -> Any:
    """Submit the parts in shares of neighbours and return the results; raise the error of the first failed share."""
    num_shares = min(len(parts), SHARES_PER_WORKER * num_workers)
    cuts = [len(parts) * i // num_shares for i in range(num_shares + 1)]
    shares = [list(parts[start:end]) for start, end in pairwise(cuts)]
    futures: list[PrefectFuture[Any]] = [
        runner.submit(make_parts, {"name": f"{share[0]}-to-{share[-1]}", "work": work, "parts": share})
        for share in shares
    ]
    return [future.result() for future in futures]
