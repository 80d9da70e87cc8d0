"""The recording conditions of a sound: room, background, microphone and level, drawn once per recording."""

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

from clapcur.config import frozen

Waveform = NDArray[np.float64]  # mono, shape (T,)
Range = tuple[float, float]


@frozen
class Condition:
    """The ranges from which the parameters of a recording are drawn uniformly."""

    spread: float
    """Fraction of each sound parameter's range that is used, in (0, 1]."""
    snr_db: Range
    """Signal-to-noise ratio over the whole recording, in dB."""
    reverb_s: Range
    """Reverberation time (RT60), in seconds."""
    reverb_db: Range
    """Power of the reverberation relative to the direct sound, in dB."""
    colour_db: float
    """Standard deviation of the microphone's gain over frequency, in dB."""
    peak_db: Range
    """Peak of a recording, in dB relative to full scale."""

    def __post_init__(self) -> None:
        """Reject ranges that are reversed or impossible."""
        if not 0 < self.spread <= 1:
            raise ValueError(f"spread must be in (0, 1], got {self.spread}: sounds are not defined outside this range")
        for name in ("snr_db", "reverb_s", "reverb_db", "peak_db"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be (low, high), got {(low, high)}")
        if self.reverb_s[0] <= 0:
            raise ValueError(f"reverb_s must be > 0 s, got {self.reverb_s[0]}; for a dry room lower reverb_db")
        if self.colour_db < 0:
            raise ValueError(f"colour_db must be >= 0 dB, got {self.colour_db}")
        if self.peak_db[1] > 0:
            raise ValueError(f"peak_db must be <= 0 dB, got {self.peak_db[1]}: the samples would clip")


# Ours. Tuned so that a small teacher learns the clean clips and is right on about two thirds of the harsh ones.
CLEAN = Condition(
    spread=0.6, snr_db=(12, 30), reverb_s=(0.1, 0.4), reverb_db=(-20, -5), colour_db=3, peak_db=(-12, -1)
)  # fmt: skip
HARSH = Condition(
    spread=0.9, snr_db=(7, 23), reverb_s=(0.15, 0.6), reverb_db=(-16, -3), colour_db=4, peak_db=(-18, -1)
)  # fmt: skip


def record(sound: Waveform, sample_rate: int, condition: Condition, rng: np.random.Generator) -> Waveform:
    """Record a dry sound under a condition.

    Parameters
    ----------
    sound : ndarray, shape (T,)
        The dry sound, at any level except zero.
    sample_rate : int
        In Hz.
    condition : Condition
        Ranges of the parameters.
    rng : numpy Generator
        Source of the random parameters.

    Returns
    -------
    ndarray, shape (T,)
        The recording; its largest sample is in `condition.peak_db`.
    """
    wet = reverberate(sound, sample_rate, rng.uniform(*condition.reverb_s), rng.uniform(*condition.reverb_db), rng)
    noise = background(len(sound), sample_rate, rng)
    level = np.sqrt(np.mean(wet**2) / np.mean(noise**2)) * 10 ** (-rng.uniform(*condition.snr_db) / 20)
    heard = microphone(wet + level * noise, sample_rate, condition.colour_db, rng)
    return heard / np.abs(heard).max() * 10 ** (rng.uniform(*condition.peak_db) / 20)


def reverberate(x: Waveform, sample_rate: int, decay_s: float, wet_db: float, rng: np.random.Generator) -> Waveform:
    """Add a tail of exponentially decaying noise.

    Parameters
    ----------
    x : NDArray, shape (T,)
    sample_rate : int
        Hz.
    decay_s : float
        Time in which the tail decays by 60 dB, s.
    wet_db : float
        Power of the tail relative to the direct sound, dB.
    rng : numpy Generator

    Returns
    -------
    NDArray, shape (T,)
    """
    t = np.arange(1, round(decay_s * sample_rate)) / sample_rate
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / decay_s)
    tail *= 10 ** (wet_db / 20) / np.sqrt(np.sum(tail**2))
    size = next_fast_len(len(x) + len(t), real=True)
    return irfft(rfft(x, size) * rfft(np.concatenate([[1.0], tail]), size), size)[: len(x)]


def background(num_samples: int, sample_rate: int, rng: np.random.Generator) -> Waveform:
    """Return steady noise of a random colour, from white to brown, with some mains hum.

    Parameters
    ----------
    num_samples : int
    sample_rate : int
        Hz.
    rng : numpy Generator

    Returns
    -------
    NDArray, shape (num_samples,)
        The noise in it has unit variance.
    """
    size = next_fast_len(num_samples, real=True)
    frequency = np.maximum(rfftfreq(size, 1 / sample_rate), 30.0)
    bins = rng.standard_normal((2, len(frequency)))
    noise = irfft((bins[0] + 1j * bins[1]) * frequency ** -rng.uniform(0, 1), size)[:num_samples]
    hum = np.sin(2 * np.pi * rng.choice((50, 60, 100, 120)) * np.arange(num_samples) / sample_rate)
    return noise / noise.std() + rng.uniform(0, 0.7) * hum


def microphone(x: Waveform, sample_rate: int, colour_db: float, rng: np.random.Generator) -> Waveform:
    """Filter by a random gain curve, smooth over about an octave and a half, without changing the phase.

    Parameters
    ----------
    x : NDArray, shape (T,)
    sample_rate : int
        Hz.
    colour_db : float
        Standard deviation of the gain along frequency, dB.
    rng : numpy Generator

    Returns
    -------
    NDArray, shape (T,)
    """
    size = next_fast_len(len(x), real=True)
    octave = np.log2(np.maximum(rfftfreq(size, 1 / sample_rate), 60.0) / 60.0)
    knots = np.arange(0, octave[-1] + 1.5, 1.5)
    gain_db = np.interp(octave, knots, colour_db * rng.standard_normal(len(knots)))
    return irfft(rfft(x, size) * 10 ** (gain_db / 20), size)[: len(x)]
