"""Loading: a file to a waveform at a rate and of a length."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import numpy as np
import soxr
from numpy.typing import NDArray

from clapcur.audio.decoding import Decoder, UnusableAudio, open_audio


def load_audio(path: Path | str, sample_rate: int) -> NDArray[np.float32]:
    """Decode a file to a mono waveform at `sample_rate`.

    Parameters
    ----------
    path : path
        Any format that libsndfile reads.
    sample_rate : int
        Hz; other rates are resampled with soxr, quality HQ.

    Returns
    -------
    NDArray, shape (T,), float32

    Raises
    ------
    UnusableAudio
        A DataError: missing, unreadable, empty, truncated, or with NaN or infinite samples.
    """
    with open_audio(path) as file:
        decoder = Decoder(path, file)
        blocks = list(decoder)
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if decoder.sample_rate != sample_rate:
        waveform = soxr.resample(waveform, decoder.sample_rate, sample_rate, quality="HQ")
    if not len(waveform):
        raise UnusableAudio(path, "empty", f"not one sample at {sample_rate} Hz")
    return np.ascontiguousarray(waveform, dtype=np.float32)


def fit(
    waveform: NDArray[np.float32],
    num_samples: int,
    offset: float = 0.5,
    short: Literal["repeat", "repeatpad", "pad", "zeros"] = "repeat",
) -> NDArray[np.float32]:
    """Cut or extend a waveform to `num_samples`; nothing here is random.

    Parameters
    ----------
    waveform : NDArray, shape (T,)
    num_samples : int
        Length that comes out.
    offset : float in [0, 1]
        Where in the slack of ``|T - num_samples|`` samples: of a long clip the place of the crop (0 its start, 0.5 its
        centre, 1 its end), of a short one among zeros the place of the clip.
    short : {"repeat", "repeatpad", "pad", "zeros"}
        A shorter clip is tiled from its start and then cut; tiled as often as it fits whole, then zeros; set at the
        start, then zeros; or set among zeros where `offset` says.

    Returns
    -------
    NDArray, shape (num_samples,)
        A copy.

    Raises
    ------
    ValueError
        An empty or two-dimensional waveform, an offset outside [0, 1], an unknown `short`.
    """
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(f"expected a mono waveform of shape (T,) with T > 0, got shape {waveform.shape}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if not 0 <= offset <= 1:
        raise ValueError(f"offset must lie in [0, 1], as a share of the slack, got {offset}")
    if short not in ("repeat", "repeatpad", "pad", "zeros"):
        raise ValueError(f"short must be 'repeat', 'repeatpad', 'pad' or 'zeros', got {short!r}")
    start = int(offset * abs(len(waveform) - num_samples))
    if len(waveform) >= num_samples:
        return waveform[start : start + num_samples].copy()
    if short == "repeat":
        return np.resize(waveform, num_samples)  # fills by repetition
    padded = np.zeros(num_samples, waveform.dtype)
    if short != "zeros":
        copies = np.tile(waveform, num_samples // len(waveform) if short == "repeatpad" else 1)
        padded[: len(copies)] = copies
        return padded
    padded[start : start + len(waveform)] = waveform
    return padded


class WaveformCache:
    """Keeps decoded waveforms while they fit, so that a training loop decodes each clip once.

    Threads may share one. Arrays are read-only, whether they come from the cache or from the file; a file that changes
    while the cache lives goes unnoticed.

    Parameters
    ----------
    max_bytes : int
        Memory for waveforms; the longest unused go first. 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._waveforms: OrderedDict[tuple[str, int], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, path: Path | str, sample_rate: int) -> NDArray[np.float32]:
        """Return what `load_audio` returns; decoding happens outside the lock."""
        key = (str(path), sample_rate)
        with self._lock:
            if key in self._waveforms:
                self._waveforms.move_to_end(key)
                return self._waveforms[key]
        waveform = load_audio(path, sample_rate)
        waveform.flags.writeable = False
        with self._lock:
            if key not in self._waveforms and waveform.nbytes <= self.max_bytes:
                self._waveforms[key] = waveform
                self.num_bytes += waveform.nbytes
                while self.num_bytes > self.max_bytes:
                    _, oldest = self._waveforms.popitem(last=False)
                    self.num_bytes -= oldest.nbytes
        return waveform
