"""Loading: a file to a waveform at a sample rate, or to crops of a given length.

A clip is identified by the SHA-256 of its bytes, and a file can be replaced after it was ingested. A caller that knows
the id therefore passes it: the bytes are hashed when they are read, and a file that now contains another clip is
rejected.
"""

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import closing
from io import FileIO
from pathlib import Path
from typing import Literal

import numpy as np
import soxr
from numpy.typing import NDArray

from clapcur.audio.addresses import container_of, is_url
from clapcur.audio.decoding import Decoder, UnusableAudio, open_audio
from clapcur.audio.stores import Stamp, stamp

WHOLE_SAMPLES = 2**24  # 64 MiB, ours: a longer clip is never entirely in memory; 9 minutes at 32 kHz
SHA256 = re.compile("[0-9a-f]{64}")
Short = Literal["repeat", "repeatpad", "pad", "zeros"]


def load_audio(path: Path | str, sample_rate: int) -> NDArray[np.float32]:
    """Decode a file to a mono waveform at `sample_rate`; for long files use `load_crops`.

    Parameters
    ----------
    path : path
        Any format that libsndfile reads and whose truncated files are detected.
    sample_rate : int
        Hz; other rates are resampled with soxr, quality HQ.

    Returns
    -------
    NDArray, shape (T,), float32

    Raises
    ------
    UnusableAudio
        A DataError: the file is missing, unreadable, empty, truncated, or too large for the memory limits, has an
        implausible sample rate, or has samples that are NaN, infinite or far beyond full scale.
    """
    with open_audio(path) as file:
        waveform = _decode(path, file, sample_rate)
    assert isinstance(waveform, np.ndarray)
    return waveform


def load_crops(
    path: Path | str,
    sample_rate: int,
    num_samples: int,
    offsets: Sequence[float],
    short: Short = "repeat",
    clip_id: str | None = None,
    is_checked: bool = False,
    cache: "WaveformCache | None" = None,
) -> tuple[NDArray[np.float32], int]:
    """Return the crops that `fit` cuts from the result of `load_audio`, bit for bit, with bounded memory.

    Parameters
    ----------
    path, sample_rate
        As for `load_audio`.
    num_samples, offsets, short
        As for `fit`, with one offset per crop.
    clip_id : str, optional
        The SHA-256 that the file's bytes must have. Other ids, as in manifests written by hand, are not compared.
    is_checked : bool
        The file is known to have this id.
    cache : WaveformCache, optional
        Keeps the waveform if the whole clip was decoded.

    Returns
    -------
    NDArray, shape (C, num_samples), float32
    int
        Length of the whole clip in samples at `sample_rate`.

    Raises
    ------
    UnusableAudio
        As for `load_audio`; or the file now contains another clip.
    """
    try:
        with open_audio(path) as file:
            if clip_id is not None and not is_checked:
                _check_bytes(path, file, clip_id)
            trusted = clip_id is not None and SHA256.fullmatch(clip_id) is not None
            found = _decode(path, file, sample_rate, max(WHOLE_SAMPLES, num_samples), trusted)
            if isinstance(found, int):
                return _crops_of_long(path, file, sample_rate, num_samples, offsets, found), found
    except OSError as error:  # a disk or a network that fails while the file is read
        raise UnusableAudio(path, "unreadable", error.strerror or str(error)) from error
    if cache is not None:
        cache.keep(path, sample_rate, found)
    return np.stack([fit(found, num_samples, offset, short) for offset in offsets]), len(found)


def _check_bytes(path: Path | str, file: FileIO, clip_id: str) -> None:
    """Reject a file that is not the clip with this id."""
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != clip_id and SHA256.fullmatch(clip_id):
        detail = f"it was clip {clip_id[:12]} when it was ingested, but is {found[:12]} now"
        raise UnusableAudio(path, "changed", f"{detail}; restore the file, or ingest again")


def _decode(
    path: Path | str, file: FileIO, sample_rate: int, most: float = np.inf, trusted: bool = False
) -> NDArray[np.float32] | int:
    """Return the waveform of a file; if it has more than `most` samples, only their number at `sample_rate`.

    The stated length of a file is used if its bytes are `trusted`: the file was complete when it was probed.
    """
    decoder = Decoder(path, file)
    rates = decoder.sample_rate, sample_rate
    most_frames = most * min(1.0, decoder.sample_rate / sample_rate)  # limits the decoded and the resampled length
    if trusted and (stated := decoder.stated_frames) and stated > most_frames:
        decoder.close()
        return resampled_length(stated, *rates)
    blocks: list[NDArray[np.float32]] = []
    for block in decoder:
        if decoder.num_frames <= most_frames:
            blocks.append(block)
        else:
            blocks.clear()
    if decoder.num_frames > most_frames:
        return resampled_length(decoder.num_frames, *rates)
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if decoder.sample_rate != sample_rate:
        waveform = soxr.resample(waveform, *rates, quality="HQ")
    if not len(waveform):
        raise UnusableAudio(path, "empty", f"no sample at {sample_rate} Hz")
    return np.ascontiguousarray(waveform, dtype=np.float32)


def resampled_length(num_frames: int, rate: int, new_rate: int) -> int:
    """Return the number of samples that soxr produces: the exact number, rounded half up.

    Parameters
    ----------
    num_frames : int
        Length of the clip at `rate`, in samples.
    rate, new_rate : int
        Sample rates before and after, in Hz.
    """
    return (2 * num_frames * new_rate + rate) // (2 * rate)


def _crops_of_long(
    path: Path | str, file: FileIO, sample_rate: int, num_samples: int, offsets: Sequence[float], length: int
) -> NDArray[np.float32]:
    """Decode a clip of `length` samples up to the end of its last crop.

    Decoding begins at the start of the clip, not near the crop, so that the resampler gives the same bits as for the
    whole clip.
    """
    starts = [int(offset * (length - num_samples)) for offset in offsets]
    crops_CT = np.zeros((len(starts), num_samples), np.float32)
    position, end = 0, max(starts) + num_samples
    with closing(_resampled(path, file, sample_rate)) as blocks:
        for block in blocks:
            for crop, start in zip(crops_CT, starts, strict=True):
                first, last = max(start, position), min(start + num_samples, position + len(block))
                if first < last:
                    crop[first - start : last - start] = block[first - position : last - position]
            position += len(block)
            if position >= end:
                break
    assert position >= end, f"{path} has {position} samples, {length} were counted"
    return crops_CT


def _resampled(path: Path | str, file: FileIO, sample_rate: int) -> Generator[NDArray[np.float32]]:
    """Yield the resampled blocks of a file; concatenated, they equal the result of `load_audio`."""
    decoder = Decoder(path, file)
    if decoder.sample_rate == sample_rate:
        yield from decoder
        return
    stream = soxr.ResampleStream(decoder.sample_rate, sample_rate, 1, dtype="float32", quality="HQ")
    for block in decoder:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def fit(
    waveform: NDArray[np.float32],
    num_samples: int,
    offset: float = 0.5,
    short: Short = "repeat",
) -> NDArray[np.float32]:
    """Cut or extend a waveform to `num_samples`, deterministically.

    Parameters
    ----------
    waveform : NDArray, shape (T,)
    num_samples : int
        Length that comes out.
    offset : float in [0, 1]
        Position within the slack of ``|T - num_samples|`` samples: for a long clip that of the crop (0 start, 0.5
        centre, 1 end), for a short clip with "zeros" that of the clip.
    short : {"repeat", "repeatpad", "pad", "zeros"}
        How to extend a shorter clip: tile it and cut the last copy; tile only whole copies, then add zeros; put it at
        the start, then add zeros; or put it among zeros at `offset`.

    Returns
    -------
    NDArray, shape (num_samples,)
        A copy.

    Raises
    ------
    ValueError
        The waveform is empty or not one-dimensional, `num_samples` is below 1, `offset` is outside [0, 1], or `short`
        is unknown.
    """
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(f"expected a mono waveform of shape (T,) with T > 0, got shape {waveform.shape}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if not 0 <= offset <= 1:
        raise ValueError(f"offset must be in [0, 1], as a fraction of the slack, got {offset}")
    if short not in ("repeat", "repeatpad", "pad", "zeros"):
        raise ValueError(f"short must be 'repeat', 'repeatpad', 'pad' or 'zeros', got {short!r}")
    start = int(offset * abs(len(waveform) - num_samples))
    if len(waveform) >= num_samples:
        return waveform[start : start + num_samples].copy()
    if short == "repeat":
        return np.resize(waveform, num_samples)  # repeats the waveform
    padded = np.zeros(num_samples, waveform.dtype)
    if short != "zeros":
        copies = np.tile(waveform, num_samples // len(waveform) if short == "repeatpad" else 1)
        padded[: len(copies)] = copies
        return padded
    padded[start : start + len(waveform)] = waveform
    return padded


class WaveformCache:
    """Keeps decoded waveforms while they fit, so that a training loop decodes each clip once.

    Threads may share a cache. The bytes of a clip are hashed when it is first read, and again if the size or time of
    its file (or container) has changed; the bytes of an object are hashed at every read.

    Parameters
    ----------
    max_bytes : int
        Memory for waveforms; the least recently used are dropped first. 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._waveforms: OrderedDict[tuple[str, int], NDArray[np.float32]] = OrderedDict()
        self._checked: dict[str, Stamp] = {}
        self._lock = threading.Lock()

    def crop(
        self, path: Path | str, sample_rate: int, num_samples: int, offset: float, short: Short = "repeat",
        clip_id: str | None = None,
    ) -> NDArray[np.float32]:  # fmt: skip
        """Return one crop, as `load_crops` does; the lock is not held while decoding.

        Parameters
        ----------
        path : Path or str
            As for `load_audio`.
        sample_rate : int
            Hz.
        num_samples : int
            Length that comes out.
        offset : float in [0, 1]
            As for `fit`.
        short : {"repeat", "repeatpad", "pad", "zeros"}
            As for `fit`.
        clip_id : str, optional
            As for `load_crops`.

        Returns
        -------
        NDArray, shape (num_samples,), float32

        Raises
        ------
        UnusableAudio
            As `load_crops`.
        ValueError
            As `fit`.
        """
        key = (str(path), sample_rate)
        with self._lock:
            waveform = self._waveforms.get(key)
            if waveform is not None:
                self._waveforms.move_to_end(key)
        if waveform is not None:
            return fit(waveform, num_samples, offset, short)
        now = None if clip_id is None or is_url(container_of(str(path))) else stamp(str(path))
        is_checked = now is not None and self._checked.get(str(clip_id)) == now
        crops, _ = load_crops(path, sample_rate, num_samples, [offset], short, clip_id, is_checked, self)
        if now is not None:
            self._checked[str(clip_id)] = now
        return crops[0]

    def keep(self, path: Path | str, sample_rate: int, waveform: NDArray[np.float32]) -> None:
        """Keep a waveform unless it is larger than the cache.

        Parameters
        ----------
        path : Path or str
        sample_rate : int
            Hz.
        waveform : NDArray, shape (T,), float32
            The whole clip at this rate; it is not copied.
        """
        key = (str(path), sample_rate)
        with self._lock:
            if key not in self._waveforms and waveform.nbytes <= self.max_bytes:
                self._waveforms[key] = waveform
                self.num_bytes += waveform.nbytes
                while self.num_bytes > self.max_bytes:
                    _, oldest = self._waveforms.popitem(last=False)
                    self.num_bytes -= oldest.nbytes
