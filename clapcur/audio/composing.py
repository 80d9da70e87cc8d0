"""Combine two sounds, one after the other or both at once, always to the same length and level.

Pure functions of waveforms, float32 of shape (T,). Nothing is random, so the same recipe gives the same bytes. If
length or level revealed how a clip was composed, a model would learn that instead of the order: every kind therefore
fills the whole length and has the same root mean square.
"""

import numpy as np
from numpy.typing import NDArray

FRAME_S = 0.02  # frame over which the level is measured to find silence
SILENT_DB = 40.0  # a frame this far below the loudest one is silent; ours
PAUSE_DB = 20.0  # a cut this far below the loudest cut of a clip is a pause; ours
FADE = 0.1  # of the shorter clip: CompA's cross-fade (arXiv 2310.08753)
EDGE_S = 0.005  # fade at both ends, to avoid clicks
LEVEL = 0.1  # root mean square of the result, -20 dB of full scale; ours

Waveform = NDArray[np.float32]


def audible_part(waveform: Waveform, sample_rate: int) -> tuple[float, float]:
    """Return the start and end of the audible part of a clip, in seconds, without the silence at both ends.

    Parameters
    ----------
    waveform : array, shape (T,)
    sample_rate : int
        Hz.

    Returns
    -------
    start_s, end_s : float
        Equal if the whole clip is silent.
    """
    size = max(1, round(FRAME_S * sample_rate))
    padded = np.pad(waveform.astype(np.float64), (0, -len(waveform) % size))
    power = np.square(padded).reshape(-1, size).mean(axis=1)
    if not power.any():
        return 0.0, 0.0
    heard = np.flatnonzero(power > power.max() * 10 ** (-SILENT_DB / 10))
    return heard[0] * size / sample_rate, min(len(waveform), (heard[-1] + 1) * size) / sample_rate


def sized(waveform: Waveform, num_samples: int, offset: float) -> Waveform:
    """Cut or repeat a clip to a length, and scale it to unit root mean square.

    Parameters
    ----------
    waveform : array, shape (T,)
        Not silent.
    num_samples : int
        Length that comes out.
    offset : float in [0, 1]
        Position of the cut within the slack of a longer clip; if there is a pause at that position, the loudest cut is
        used. A shorter clip is repeated from its start, with its copies cross-faded.
    """
    missing = num_samples - len(waveform)
    if missing <= 0:
        return _at_level(_cut(waveform, num_samples, int(offset * -missing)), 1.0)
    made = waveform
    while len(made) < num_samples:
        made = _faded_over(made, waveform, int(FADE * len(waveform)))
    return _at_level(made[:num_samples], 1.0)


def one_sound(one: Waveform, num_samples: int, offset: float, sample_rate: int) -> Waveform:
    """Return one sound for the whole length.

    Parameters
    ----------
    one : NDArray, shape (T,), float32
        Not silent.
    num_samples : int
        Length that comes out.
    offset : float in [0, 1]
        As for `sized`.
    sample_rate : int
        Hz.

    Returns
    -------
    NDArray, shape (num_samples,), float32
    """
    return _finished(sized(one, num_samples, offset), sample_rate)


def one_after_the_other(
    first: Waveform, second: Waveform, num_samples: int, offsets: tuple[float, float], sample_rate: int
) -> Waveform:
    """Return two sounds, each for half of the length, cross-faded.

    Parameters
    ----------
    first, second : NDArray, shape (T,), float32
        Not silent; each has its own length T.
    num_samples : int
        Length that comes out.
    offsets : (float, float)
        Of `first` and of `second`, as for `sized`.
    sample_rate : int
        Hz.

    Returns
    -------
    NDArray, shape (num_samples,), float32
    """
    fade = round(FADE * num_samples / 2)
    length = (num_samples + fade) // 2
    lengths = length, num_samples + fade - length
    before, after = sized(first, lengths[0], offsets[0]), sized(second, lengths[1], offsets[1])
    return _finished(_faded_over(before, after, fade), sample_rate)


def both_at_once(
    one: Waveform, other: Waveform, num_samples: int, offsets: tuple[float, float], sample_rate: int
) -> Waveform:
    """Return the sum of two sounds at equal level for the whole length; it does not depend on their order.

    Parameters
    ----------
    one, other : NDArray, shape (T,), float32
        Not silent; each has its own length T.
    num_samples : int
        Length that comes out.
    offsets : (float, float)
        Of `one` and of `other`, as for `sized`.
    sample_rate : int
        Hz.

    Returns
    -------
    NDArray, shape (num_samples,), float32
    """
    summed = sized(one, num_samples, offsets[0]) + sized(other, num_samples, offsets[1])
    return _finished(summed, sample_rate)


def _cut(waveform: Waveform, num_samples: int, start: int) -> Waveform:
    energy = np.concatenate([[0.0], np.cumsum(np.square(waveform, dtype=np.float64))])
    energy_of_cut = energy[num_samples:] - energy[:-num_samples]
    if energy_of_cut[start] < 10 ** (-PAUSE_DB / 10) * energy_of_cut.max():
        start = int(energy_of_cut.argmax())
    return waveform[start : start + num_samples]


def _faded_over(first: Waveform, second: Waveform, fade: int) -> Waveform:
    """Append one to the other with an equal-power cross-fade over `fade` samples."""
    if not fade:
        return np.concatenate([first, second])
    angle = (np.arange(fade, dtype=np.float32) + 0.5) * np.float32(np.pi / 2 / fade)
    middle = first[-fade:] * np.cos(angle) + second[:fade] * np.sin(angle)
    return np.concatenate([first[:-fade], middle, second[fade:]])


def _finished(waveform: Waveform, sample_rate: int) -> Waveform:
    made, edge = waveform.copy(), min(len(waveform) // 2, round(EDGE_S * sample_rate))
    if edge:
        ramp = (np.arange(edge, dtype=np.float32) + 0.5) / edge
        made[:edge] *= ramp
        made[-edge:] *= ramp[::-1]
    return _at_level(made, LEVEL)


def _at_level(waveform: Waveform, level: float) -> Waveform:
    """Return a waveform with this root mean square; silence stays silence."""
    power = float(np.square(waveform, dtype=np.float64).mean())
    gain = level / np.sqrt(power) if power > 0 else 0.0
    return (waveform * gain).astype(np.float32)
