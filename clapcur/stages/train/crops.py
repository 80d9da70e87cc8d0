"""Crops of clips as batches of waveforms, decoded ahead of the step that needs them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from clapcur.audio import WaveformCache
from clapcur.data.compositions import Renderer
from clapcur.stages.train.sampling import Batch

T = TypeVar("T")
AHEAD = 4  # batches in flight: enough to hide decoding, few enough to stay small
DECODED = WaveformCache(0)  # one for the process: the next training of a comparison finds its clips decoded


class Waveforms:
    """Loads crops by clip id; threads suffice, for libsndfile and soxr leave the interpreter's lock.

    A clip whose file has vanished, or is another clip now, is an error that names it: a batch without it would be
    another batch, and the training could not be resumed or repeated.

    Parameters
    ----------
    paths : mapping
        clip_id -> address.
    sample_rate : int
        Hz, of the model.
    num_samples : int
        Length of a crop.
    cache_mib : int
        Memory for decoded waveforms, MiB, shared by all trainings of the process.
    num_workers : int
        Threads that decode ahead.
    short : {"repeat", "repeatpad", "pad"}
        How a clip that is shorter than a crop fills it, see `clapcur.audio.fit`.
    renderer : Renderer, optional
        Of composed items, which are loaded by their names like clips.
    """

    def __init__(
        self, paths: Mapping[str, str], *, sample_rate: int, num_samples: int, cache_mib: int, num_workers: int,
        short: Literal["repeat", "repeatpad", "pad"] = "repeat", renderer: Renderer | None = None,
    ):  # fmt: skip
        self.paths, self.sample_rate, self.num_samples, self.short = paths, sample_rate, num_samples, short
        self._renderer = renderer
        DECODED.max_bytes = max(DECODED.max_bytes, cache_mib * 2**20)
        self._pool = ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="decode")

    def load(self, clip_ids: list[str], offsets_B: NDArray[np.float64]) -> torch.Tensor:
        """Return crops, shape (B, num_samples), float32; `offsets_B` in [0, 1] places each in the slack of its clip."""
        crops = [self._crop(clip, offset) for clip, offset in zip(clip_ids, offsets_B, strict=True)]
        return torch.from_numpy(np.stack(crops))

    def _crop(self, clip_id: str, offset: float) -> NDArray[np.float32]:
        if self._renderer is not None and clip_id in self._renderer:
            return self._renderer.window(clip_id, self.sample_rate, self.num_samples)
        path = self.paths[clip_id]
        return DECODED.crop(path, self.sample_rate, self.num_samples, offset, self.short, clip_id)

    def ahead(self, batches: Iterable[Batch], prepare: Callable[[Batch], T]) -> Iterator[tuple[Batch, T]]:
        """Yield each batch with what `prepare` makes of it (such as by `load`), a few batches in advance."""
        waiting: deque[tuple[Batch, Future[T]]] = deque()
        for batch in batches:
            waiting.append((batch, self._pool.submit(prepare, batch)))
            if len(waiting) > AHEAD:
                ready, future = waiting.popleft()
                yield ready, future.result()
        for ready, future in waiting:
            yield ready, future.result()

    def __enter__(self) -> "Waveforms":
        """Start."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the threads; what is still queued is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
