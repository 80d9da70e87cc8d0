"""Batches of clip windows on the device, decoded ahead of the audio tower.

Threads decode: libsndfile and soxr release the GIL, and each thread writes its waveform directly into the batch, which
is page-locked on a GPU machine. Processes are not faster (`benchmarks/embedding.py`) and would have to pass every
sample through a pipe.

Shapes: N clips, C crops of a clip, T samples.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clapcur.audio import UnusableAudio, load_crops
from clapcur.audio.arrays import Sound
from clapcur.audio.throughput import Pace

AHEAD = 3  # batches decoded while one is computed: enough to wait for a long file, with little memory

OnBad = Callable[[Any, UnusableAudio], None]


@dataclass(frozen=True)
class Window:
    """The crops of every clip: `offsets` are their positions, as in `clapcur.audio.fit`."""

    sample_rate: int
    num_samples: int
    offsets: Sequence[float]
    short: Literal["repeat", "repeatpad", "pad", "zeros"]


def read_ahead(
    batches: Iterable[Sequence[Any]], window: Window, *, num_workers: int = 0, pin: bool = False,
    pace: Pace | None = None, clip_ids: Mapping[Any, str] | None = None, on_bad: OnBad | None = None,
) -> Generator[Tensor]:  # fmt: skip
    """Decode batches of files in threads, a few batches ahead of the caller.

    Parameters
    ----------
    batches : iterable of sequences of paths and sounds
        Read one by one as they are needed.
    window : Window
    num_workers : int
        Number of decoding threads; 0 is one per CPU.
    pin : bool
        Put the batches in page-locked memory, from which a GPU can copy asynchronously.
    pace : Pace, optional
        Accumulates the seconds of audio and the time that the caller waited.
    clip_ids : mapping, optional
        path -> the SHA-256 that the bytes of the file must have.
    on_bad : callable, optional
        Called with the path and the error of a file that cannot be used, before its batch is yielded with silence in
        place of its crops. Without it, such a file raises an error.

    Yields
    ------
    Tensor, shape (N, C, T), float32
        The crops of a batch, in the order of its files.

    Raises
    ------
    clapcur.errors.DataError
        A file cannot be used and there is no `on_bad`; the earlier batches have been yielded.
    """
    pace = pace if pace is not None else Pace()
    decoding: deque[tuple[Sequence[Any], Tensor, list[Future[int]]]] = deque()

    def first() -> Tensor:
        paths, crops_NCT, futures = decoding.popleft()
        started, num_samples = time.monotonic(), 0
        for path, crops_CT, future in zip(paths, crops_NCT, futures, strict=True):
            try:
                num_samples += future.result()
            except UnusableAudio as error:
                if on_bad is None:
                    raise
                crops_CT.zero_()
                on_bad(path, error)
        pace.waiting_s += time.monotonic() - started
        pace.audio_s += num_samples / window.sample_rate
        return crops_NCT

    pool = ThreadPoolExecutor(num_workers or os.cpu_count(), thread_name_prefix="decode")
    try:
        for paths in batches:
            crops_NCT = torch.empty((len(paths), len(window.offsets), window.num_samples), pin_memory=pin)
            futures = [
                pool.submit(_decode, path, window, crops_CT, (clip_ids or {}).get(path))
                for path, crops_CT in zip(paths, crops_NCT, strict=True)
            ]
            decoding.append((paths, crops_NCT, futures))
            if len(decoding) > AHEAD:
                yield first()
        while decoding:
            yield first()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(path: Any, window: Window, crops_CT: Tensor, clip_id: str | None) -> int:
    """Write the crops of one file or sound; return its length in samples at the window's sample rate."""
    wanted = window.sample_rate, window.num_samples, window.offsets, window.short
    found = path.crops(*wanted) if isinstance(path, Sound) else load_crops(path, *wanted, clip_id)
    crops_CT.numpy()[:], num_samples = found
    return num_samples


def on_device(batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield the batches on a device; a GPU copies the next batch while it computes with the current one.

    This needs page-locked batches (`read_ahead` with ``pin``); with other batches, the copies do not overlap.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copying, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    ready: Tensor | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            coming = batch.to(device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(copying)
        if ready is not None:
            yield ready
        computing.wait_event(copied)
        coming.record_stream(computing)
        ready = coming
    if ready is not None:
        yield ready


def to_host(rows: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield rows on the CPU; a GPU gets the next batch before the rows of this one are awaited.

    At most two batches are in flight: otherwise they would pile up if the GPU is slower than the decoding.
    """
    under_way: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def first() -> Tensor:
        host_ND, done = under_way.popleft()
        if done is not None:
            done.synchronize()
        return host_ND

    for rows_ND in rows:
        if not rows_ND.is_cuda:
            yield rows_ND.cpu()
            continue
        done = torch.cuda.Event()
        host_ND = torch.empty(rows_ND.shape, dtype=rows_ND.dtype, pin_memory=True)
        host_ND.copy_(rows_ND, non_blocking=True)
        done.record(torch.cuda.current_stream(rows_ND.device))
        under_way.append((host_ND, done))
        if len(under_way) > 1:
            yield first()
    while under_way:
        yield first()
