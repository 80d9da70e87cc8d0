"""Waveforms in memory, prepared exactly like those of files: mono, resampled, cut to the window, and checked.

An array has shape (T,) for mono or (T, C) for C channels, as `soundfile.read` returns it. Floats have full scale 1;
int16 and int32 are divided by 2**15 and 2**31, as libsndfile does. A file and the array that was read from it
therefore give the same embedding.
"""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from clapcur.audio.decoding import MAX_SAMPLE, MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, UnusableAudio
from clapcur.audio.loading import Short, fit
from clapcur.sequences import list_of

FULL_SCALE = {"int16": 2.0**15, "int32": 2.0**31}
MAX_CHANNELS = 1024  # libsndfile's limit


class Sound:
    """A waveform at its own sample rate, of a checked shape and type.

    Parameters
    ----------
    array : array_like, shape (T,) or (T, C)
        Floats with full scale 1, int16 or int32.
    sample_rate : int
        Hz.
    name : str
        What error messages and tables call it, such as ``clips[3]``.

    Raises
    ------
    TypeError
        The array has another type, or there is no whole sample rate.
    ValueError
        The array has another shape, or the sample rate is implausible.
    """

    def __init__(self, array: Any, sample_rate: Any, name: str) -> None:
        if isinstance(sample_rate, bool) or not hasattr(sample_rate, "__index__"):
            given = "no sample_rate" if sample_rate is None else f"the sample_rate {sample_rate!r}"
            raise TypeError(
                f"{name} is an array and needs a sample_rate in Hz, a whole number such as 48000; got {given}"
            )
        if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
            raise ValueError(
                f"the sample_rate of {name} must be {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz, got {sample_rate}"
            )
        self.array, self.sample_rate, self.name = _plain(array, name), int(sample_rate), name

    def __str__(self) -> str:
        """Return its name."""
        return self.name

    def crops(
        self, sample_rate: int, num_samples: int, offsets: Sequence[float], short: Short
    ) -> tuple[NDArray[np.float32], int]:
        """Return its crops, as `clapcur.audio.load_crops` returns those of a file.

        Parameters
        ----------
        sample_rate, num_samples, offsets, short
            As for `clapcur.audio.load_crops`.

        Returns
        -------
        NDArray, shape (C, num_samples), float32
        int
            Length of the whole sound in samples at `sample_rate`.

        Raises
        ------
        UnusableAudio
            It is empty, or has samples that are NaN, infinite or far beyond full scale.
        """
        waveform = self._mono()
        if self.sample_rate != sample_rate:
            waveform = soxr.resample(waveform, self.sample_rate, sample_rate, quality="HQ")
        if not len(waveform):
            raise UnusableAudio(self.name, "empty", f"no sample at {sample_rate} Hz")
        return np.stack([fit(waveform, num_samples, offset, short) for offset in offsets]), len(waveform)

    def _mono(self) -> NDArray[np.float32]:
        if not self.array.size:
            raise UnusableAudio(self.name, "empty", "0 samples")
        with np.errstate(over="ignore"):  # infinite then, which is reported below
            samples = np.ascontiguousarray(self.array, np.float32)
        if full_scale := FULL_SCALE.get(self.array.dtype.name):
            samples = samples * np.float32(1 / full_scale)
        peak = max(float(samples.max()), -float(samples.min()))  # NaN if any sample is
        if not math.isfinite(peak):
            raise UnusableAudio(self.name, "non_finite", "has NaN or infinite samples")
        if peak > MAX_SAMPLE:
            detail = f"has a sample of {peak:.3g} times full scale; the maximum is {MAX_SAMPLE:.3g}"
            raise UnusableAudio(self.name, "out_of_range", detail)
        if samples.ndim == 2:
            return samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
        return samples


def list_of_clips(name: str, values: Iterable[Any], sample_rate: Any = None) -> list[Any]:
    """Return clips in order, each a path or a `Sound`.

    Parameters
    ----------
    name : str
        Name of the argument, for messages.
    values : sequence of path, array, (array, int) or Sound
        An array has the rate `sample_rate`; a pair its own, as `soundfile.read` returns it.
    sample_rate : int, optional
        Hz.

    Raises
    ------
    TypeError
        The argument is not a list, an item is none of these, or an array has no sample rate.
    ValueError
        An array has a wrong shape or an implausible sample rate.
    """
    if getattr(values, "ndim", 1) != 1:
        raise TypeError(
            f"{name} must be a list of paths or arrays, got a single array of shape {tuple(values.shape)}: "  # type: ignore[attr-defined]
            f"wrap one clip in a list, [waveform]; a batch of mono clips is list(batch)"
        )
    return [_clip(f"{name}[{index}]", value, sample_rate) for index, value in enumerate(list_of(name, values))]


def _clip(name: str, value: Any, sample_rate: Any) -> Any:
    if isinstance(value, (str, os.PathLike, Sound)):
        return value
    if isinstance(value, tuple) and len(value) == 2 and _is_array(value[0]):
        return Sound(*value, name)
    if _is_array(value):
        return Sound(value, sample_rate, name)
    raise TypeError(
        f"{name} must be a path, an array or a pair of an array and its sample rate, got {_shown(value)}; a table with "
        "missing values, or a single waveform? Wrap one clip in a list"
    )


def _shown(value: Any) -> str:
    return f"{str(value)[:60]!r} ({type(value).__name__})"


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0


def _plain(array: Any, name: str) -> NDArray[Any]:
    """Return the array as numpy's, of shape (T,) or (T, C), with floats or 16 or 32-bit integers."""
    try:
        found = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} cannot be converted to a numpy array: {' '.join(str(error).split())}") from None
    if found.dtype.kind != "f" and found.dtype.name not in FULL_SCALE:
        raise TypeError(
            f"{name} must be floats with full scale 1, int16 or int32, got {found.dtype}; convert it, such as "
            "(array / full_scale).astype('float32')"
        )
    if found.ndim not in (1, 2):
        raise ValueError(f"{name} must have shape (T,) or (T, channels), got shape {found.shape}")
    if found.ndim == 2 and found.size and found.shape[1] > min(len(found), MAX_CHANNELS):
        raise ValueError(
            f"{name} must have shape (T,) or (T, channels), got shape {found.shape}; if its channels come first, pass "
            "its transpose, array.T"
        )
    return found
