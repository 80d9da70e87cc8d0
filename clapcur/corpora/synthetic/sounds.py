"""Everyday sounds computed from a few random parameters, one short function per sound.

Each synthesiser takes a `Scene` and returns one dry recording: float64, shape (scene.num_samples,), any level.
Parameters of the recording (the pitch of this dog, the pace of this walker) are drawn once at the top; those of an
event vary around them. The numbers are ours, set by ear and by spectrogram, and do not model a real source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import butter, lfilter, sosfilt

Waveform = NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """Duration, sample rate, variation and random generator of a recording."""

    rng: np.random.Generator
    num_samples: int
    sample_rate: int  # Hz
    spread: float  # in (0, 1]: the share of each parameter's range, around its middle, that is used

    def pick(self, low: float, high: float) -> float:
        """Draw a positive parameter, log-uniform over the middle `spread` of [low, high]."""
        position = 0.5 + self.spread * (self.rng.random() - 0.5)
        return float(low * (high / low) ** position)

    def vary(self, value: float, amount: float = 0.05) -> float:
        """Draw near `value`: a factor of about 1 +- `amount`."""
        return float(value * np.exp(amount * self.rng.standard_normal()))

    def ramp(self, duration_s: float) -> Waveform:
        """Return the time axis of an event of `duration_s`, from 0 to 1."""
        return np.linspace(0.0, 1.0, max(2, round(duration_s * self.sample_rate)))

    def seconds(self) -> Waveform:
        """Return the time axis of the whole recording, in s."""
        return np.arange(self.num_samples) / self.sample_rate

    def noise(self, num_samples: int | None = None) -> Waveform:
        """Draw white noise of unit variance, as long as the recording by default."""
        return self.rng.standard_normal(self.num_samples if num_samples is None else num_samples)

    def wander(self, rate_hz: float) -> Waveform:
        """Draw a slow curve with zero mean and unit variance that turns about `rate_hz` times per second."""
        num_knots = max(4, round(rate_hz * self.num_samples / self.sample_rate) + 2)
        knots = self.rng.standard_normal(num_knots)
        curve = np.interp(np.linspace(0, num_knots - 1, self.num_samples), range(num_knots), knots)
        return (curve - curve.mean()) / curve.std()

    def impulses(self, rate_hz: float) -> Waveform:
        """Draw impulses at random times, `rate_hz` per second, many faint and a few loud."""
        hit = self.rng.random(self.num_samples) < rate_hz / self.sample_rate
        signs = self.rng.choice((-1.0, 1.0), self.num_samples)
        sizes = np.minimum(self.rng.exponential(1.0, self.num_samples), 3.0) ** 2
        return hit * signs * sizes

    def tone(self, pitch_hz: ArrayLike, weights: ArrayLike, num_samples: int | None = None) -> Waveform:
        """Sum the harmonics of a pitch that may glide; those that would alias are left out.

        Parameters
        ----------
        pitch_hz : array_like, shape () or (T,)
            Hz.
        weights : array_like, shape (K,)
            Amplitudes of the harmonics, that of the fundamental first.
        num_samples : int, optional
            T; by default that of the scene.

        Returns
        -------
        NDArray, shape (T,)
        """
        length = self.num_samples if num_samples is None else num_samples
        pitch = np.broadcast_to(np.asarray(pitch_hz, float), (length,))
        phase = 2 * np.pi * np.cumsum(pitch) / self.sample_rate
        below = 0.45 * self.sample_rate / pitch.max()
        kept = enumerate(np.asarray(weights, float)[: max(1, int(below))], start=1)
        return np.sum([weight * np.sin(k * phase) for k, weight in kept], axis=0)

    def ring(self, x: Waveform, frequency_hz: float, decay_s: float) -> Waveform:
        """Pass a sound through a resonance.

        Parameters
        ----------
        x : NDArray, shape (T,)
        frequency_hz : float
            Hz; lowered where it is above 0.45 of the sample rate.
        decay_s : float
            Time in which the resonance decays by 60 dB, s.

        Returns
        -------
        NDArray, shape (T,)
        """
        radius = 10 ** (-3 / (decay_s * self.sample_rate))
        angle = 2 * np.pi * min(frequency_hz / self.sample_rate, 0.45)
        # Zeros at 0 Hz and Nyquist: the gain at the peak is 1, whatever the frequency.
        b = [(1 - radius**2) / 2, 0.0, -(1 - radius**2) / 2]
        return lfilter(b, [1.0, -2 * radius * np.cos(angle), radius**2], x)

    def band(self, x: Waveform, low_hz: float, high_hz: float) -> Waveform:
        """Keep the band between two frequencies (second-order Butterworth slopes).

        Parameters
        ----------
        x : NDArray, shape (T,)
        low_hz, high_hz : float
            Hz; the upper one is lowered where it is above 0.45 of the sample rate.

        Returns
        -------
        NDArray, shape (T,)
        """
        high_hz = min(high_hz, 0.45 * self.sample_rate)
        return sosfilt(butter(2, (low_hz, high_hz), "band", fs=self.sample_rate, output="sos"), x)

    def repeat(self, event: Callable[[], Waveform], period_s: float, jitter: float = 0.1) -> Waveform:
        """Place events one after another, each at its own level.

        Parameters
        ----------
        event : callable
            Returns a waveform, shape (T,), which may differ at each call.
        period_s : float
            Approximate time from the start of one event to the start of the next, s.
        jitter : float
            Standard deviation of the period, as a share of it.

        Returns
        -------
        NDArray, shape (num_samples,)
            As long as the scene.
        """
        out = np.zeros(self.num_samples)
        start = round(self.rng.random() * 0.5 * period_s * self.sample_rate)
        while start < self.num_samples:
            piece = event()[: self.num_samples - start] * self.vary(1.0, 0.2)
            out[start : start + len(piece)] += piece
            gap = period_s * np.clip(1 + jitter * self.rng.standard_normal(), 0.5, 1.5)
            start += max(1, round(gap * self.sample_rate))
        return out


def dog_bark(scene: Scene) -> Waveform:
    """Short voiced bursts whose pitch rises and falls, coloured by a muzzle."""
    pitch, length = scene.pick(250, 900), scene.pick(0.1, 0.3)
    muzzle, hoarse = scene.pick(600, 1700), scene.pick(0.1, 0.8)

    def bark() -> Waveform:
        t = scene.ramp(scene.vary(length))
        voice = scene.tone(scene.vary(pitch) * (0.65 + 0.5 * np.sin(np.pi * t**0.7)), 1 / np.arange(1, 9), len(t))
        voice += hoarse * scene.noise(len(t))
        return (scene.ring(voice, muzzle, 0.01) + 0.2 * voice) * np.minimum(1, 12 * t) * (1 - t) ** 1.5

    return scene.repeat(bark, scene.pick(0.35, 0.95), jitter=0.25)


def siren(scene: Scene) -> Waveform:
    """Wail: a loud tone that goes up and down, smoothly or in two steps."""
    turns = np.sin(2 * np.pi * scene.pick(0.3, 3.0) * scene.seconds() + scene.rng.uniform(0, 2 * np.pi))
    sharpness = scene.pick(0.7, 12)  # high: the two-tone horn of an ambulance
    swing = np.tanh(sharpness * turns) / np.tanh(sharpness)
    pitch = scene.pick(550, 1300) * scene.pick(1.15, 1.7) ** swing
    return scene.tone(pitch, 1 / np.arange(1, 7) ** scene.pick(0.8, 2.0))


def rain(scene: Scene) -> Waveform:
    """Hiss of countless drops, with some near ones heard one by one."""
    hiss = scene.band(scene.noise(), scene.pick(400, 2500), scene.pick(4500, 7500))
    drops = scene.ring(scene.impulses(scene.pick(40, 400)), scene.pick(1500, 5000), 0.006)
    return hiss + scene.pick(3, 40) * drops


def clock_tick(scene: Scene) -> Waveform:
    """Evenly spaced dry clicks, tick and tock."""
    pitches = [scene.pick(1800, 4500), scene.pick(1400, 3500)]
    decay = scene.pick(0.012, 0.06)

    def tick() -> Waveform:
        pitches.reverse()
        click = scene.noise(round(0.1 * scene.sample_rate)) * np.exp(-800 * scene.ramp(0.1) * 0.1)
        return scene.ring(click, pitches[0], decay) + 0.5 * scene.ring(click, 2.3 * pitches[0], decay)

    return scene.repeat(tick, scene.pick(0.22, 1.0), jitter=0.01)


def church_bell(scene: Scene) -> Waveform:
    """Slow strikes of a large bell: hum, prime, minor third, fifth, nominal and above."""
    prime, life = scene.pick(180, 700), scene.pick(0.8, 3.0)
    ratios = np.array([0.5, 1, 1.2, 1.5, 2, 2.5, 3, 4.1, 5.3])
    ratios *= np.exp(0.01 * scene.rng.standard_normal(len(ratios)))
    levels = np.array([0.5, 0.7, 0.8, 0.4, 1, 0.5, 0.5, 0.4, 0.25]) * scene.rng.uniform(0.5, 1.5, len(ratios))

    def strike() -> Waveform:
        t = scene.ramp(life) * life
        modes = zip(ratios, levels, strict=True)
        return np.sum([a * np.exp(-5 * r**0.6 * t / life) * np.sin(2 * np.pi * prime * r * t) for r, a in modes], 0)

    return scene.repeat(strike, scene.pick(0.6, 1.6), jitter=0.05)


def car_horn(scene: Scene) -> Waveform:
    """Honks of two buzzing tones about a third apart."""
    low = scene.pick(280, 620)
    weights = 1 / np.arange(1, 15) ** scene.pick(0.3, 1.2)
    chord = scene.tone(low, weights) + scene.tone(low * scene.pick(1.12, 1.35), weights)
    honk = scene.pick(0.2, 1.2)

    def gate() -> Waveform:
        t = scene.ramp(scene.vary(honk, 0.3)) * honk
        return np.minimum(1, np.minimum(t, t[-1] - t) / 0.015)

    return chord * scene.repeat(gate, honk + scene.pick(0.15, 0.6), jitter=0.15)


def engine_idling(scene: Scene) -> Waveform:
    """Uneven low firing pulses through an exhaust, with a mechanical rattle."""
    rate = scene.pick(14, 45) * (1 + 0.03 * scene.wander(3))
    phase = np.cumsum(rate) / scene.sample_rate
    firing = np.exp(-scene.pick(3, 12) * (phase % 1)) * scene.vary(1.0)
    exhaust = scene.ring(firing * (1 + 0.3 * scene.noise()), scene.pick(70, 260), 0.05)
    rattle = scene.band(scene.noise(), 500, scene.pick(1500, 5000)) * firing
    return exhaust + scene.pick(0.02, 0.25) * rattle


def crackling_fire(scene: Scene) -> Waveform:
    """Irregular snaps of burning wood over a soft roar."""
    snaps = scene.band(scene.impulses(scene.pick(8, 70)), scene.pick(500, 1500), scene.pick(4000, 7000))
    pops = scene.ring(scene.impulses(scene.pick(1, 6)), scene.pick(500, 1500), 0.015)
    roar = scene.band(scene.noise(), 60, scene.pick(250, 1200)) * (1 + 0.3 * scene.wander(4))
    hiss = scene.band(scene.noise(), 2000, 7000)
    return 3 * snaps + 6 * pops + scene.pick(0.05, 0.4) * roar + scene.pick(0.01, 0.12) * hiss


def door_knock(scene: Scene) -> Waveform:
    """Dull thumps on wood, a few in a row."""
    panel, decay, pace = scene.pick(130, 520), scene.pick(0.05, 0.16), scene.pick(0.13, 0.32)
    brightness, num_knocks = scene.pick(0.1, 0.8), scene.rng.integers(2, 5)

    def knock() -> Waveform:
        hit = scene.noise(round(pace * scene.sample_rate)) * np.exp(-400 * scene.ramp(pace) * pace)
        thump = scene.ring(hit, scene.vary(panel), decay) + brightness * scene.ring(hit, 2.7 * panel, decay / 2)
        return thump * scene.vary(1.0, 0.2)

    def visitor() -> Waveform:
        return np.concatenate([knock() for _ in range(num_knocks)])

    return scene.repeat(visitor, pace * num_knocks + scene.pick(0.15, 0.6))


def bird_chirp(scene: Scene) -> Waveform:
    """Trills of quick high whistles that sweep up or down."""
    pitch, length = scene.pick(2000, 5500), scene.pick(0.03, 0.14)
    sweep, trill = scene.pick(0.7, 1.4), scene.rng.integers(2, 8)

    def song() -> Waveform:
        t = scene.ramp(length)
        chirps = [
            scene.tone(scene.vary(pitch) * sweep ** (2 * t - 1), [1, 0.1], len(t)) * np.sin(np.pi * t) ** 2
            for _ in range(trill)
        ]
        return np.concatenate([np.pad(chirp, (0, len(t) // 3)) for chirp in chirps])

    return scene.repeat(song, 1.33 * length * trill + scene.pick(0.1, 0.6), jitter=0.3)


def footsteps(scene: Scene) -> Waveform:
    """Regular steps: the thump of the heel, then the scrape of the sole."""
    thud, scrape_low, scrape_level = scene.pick(70, 220), scene.pick(500, 2000), scene.pick(0.08, 0.7)
    decay, pace = scene.pick(0.03, 0.09), scene.pick(0.32, 0.8)

    def step() -> Waveform:
        t = scene.ramp(0.3) * 0.3
        heel = scene.ring(scene.noise(len(t)) * np.exp(-t / 0.01), scene.vary(thud), decay)
        roll = np.exp(-(((t - 0.09) / 0.035) ** 2)) + np.exp(-t / 0.012)
        return 3 * heel + scrape_level * roll * scene.band(scene.noise(len(t)), scrape_low, 3 * scrape_low)

    return scene.repeat(step, pace, jitter=0.04)


def phone_ringing(scene: Scene) -> Waveform:
    """Bursts of a hammered metal gong pair, or of an electronic trill."""
    t = scene.seconds()
    pitch, beat = scene.pick(700, 2000), 2 * np.pi * scene.pick(12, 30) * t
    if scene.rng.random() < 0.5:
        gongs = scene.tone(pitch, [1, 0.2, 0.3]) + scene.tone(1.26 * pitch, [0.8, 0.2, 0.3])
        ringer = gongs * (0.35 + 0.65 * np.abs(np.sin(beat / 2)))
    else:
        ringer = scene.tone(pitch * 1.2 ** np.sign(np.sin(beat)), [1, 0.3, 0.15])
    on, off = scene.pick(0.4, 1.2), scene.pick(0.2, 0.7)
    return ringer * scene.repeat(lambda: np.minimum(1, 60 * on * (1 - scene.ramp(on))), on + off, jitter=0)


def sea_waves(scene: Scene) -> Waveform:
    """Surf that swells, brightens as it breaks, and draws back."""
    period = scene.pick(1.8, 6.0)
    turns = scene.seconds() / period + 0.1 * scene.wander(0.5) + scene.rng.random()
    swell = (0.5 + 0.5 * np.sin(2 * np.pi * turns)) ** scene.pick(1, 3)
    low = scene.band(scene.noise(), 60, scene.pick(350, 1200))
    foam = scene.band(scene.noise(), 800, scene.pick(3000, 7000))
    return (0.25 + swell) * low + scene.pick(0.2, 0.9) * (0.05 + swell**2) * foam


def wind(scene: Scene) -> Waveform:
    """Gusts: low noise whose level wanders, with a whistle in a gap."""
    gusts = np.exp(0.35 * scene.wander(scene.pick(0.6, 3.0)))
    body = scene.band(scene.noise(), 40, scene.pick(200, 900))
    whistle = scene.ring(scene.noise(), scene.pick(350, 1300), scene.pick(0.01, 0.06))
    return gusts * body + scene.pick(0.3, 3.0) * gusts**2 * whistle


def frog_croak(scene: Scene) -> Waveform:
    """Croaks: a fast series of pulses ringing in a throat."""
    rate, throat, length = scene.pick(25, 90), scene.pick(350, 1600), scene.pick(0.12, 0.5)

    def croak() -> Waveform:
        t = scene.ramp(scene.vary(length, 0.1))
        phase = np.cumsum(scene.vary(rate) * (1 + 0.3 * t)) / scene.sample_rate
        pulses = np.exp(-25 * (phase % 1)) - 0.04
        voice = scene.ring(pulses, throat, 0.02) + 0.6 * scene.ring(pulses, 2.2 * throat, 0.015)
        return voice * np.sin(np.pi * t**0.6)

    return scene.repeat(croak, length + scene.pick(0.15, 0.6), jitter=0.2)


def keyboard_typing(scene: Scene) -> Waveform:
    """Uneven light clicks, each a key going down and coming up."""
    bright, body, travel = scene.pick(1500, 4500), scene.pick(300, 900), scene.pick(0.05, 0.12)

    def key() -> Waveform:
        t = scene.ramp(0.2) * 0.2
        envelope = np.exp(-t / 0.004) + 0.5 * (t > travel) * np.exp(-np.abs(t - travel) / 0.003)
        click = scene.noise(len(t)) * envelope
        return scene.band(click, scene.vary(bright) / 1.5, bright * 1.8) + 0.7 * scene.ring(click, body, 0.02)

    return scene.repeat(key, 1 / scene.pick(4, 12), jitter=0.5)


def babble(scene: Scene) -> Waveform:
    """Speech-like: a voice of wandering pitch through moving formants, in syllables."""
    voice = scene.tone(scene.pick(90, 240) * np.exp(0.15 * scene.wander(4)), 1 / np.arange(1, 25))
    syllables = np.maximum(0, np.sin(2 * np.pi * scene.pick(3, 6) * scene.seconds()) + 0.4 * scene.wander(3))
    vowels = [scene.ring(voice, scene.pick(*formant), 0.02) for formant in ((280, 800), (900, 2300), (2400, 3200))]
    mix = [np.exp(0.7 * scene.wander(5)) for _ in vowels]
    return syllables * np.sum([m * v for m, v in zip(mix, vowels, strict=True)], axis=0)


def chords(scene: Scene) -> Waveform:
    """Music-like: plucked triads from one scale."""
    root, weights = scene.pick(110, 440), 1 / np.arange(1, 7) ** scene.pick(1, 2)
    length = scene.pick(0.3, 0.9)

    def pluck() -> Waveform:
        t = scene.ramp(length)
        degree = scene.rng.choice((0, 2, 4, 5, 7, 9))
        notes = [scene.tone(root * 2 ** ((degree + step) / 12), weights, len(t)) for step in (0, 4, 7)]
        return np.sum(notes, axis=0) * np.exp(-4 * t) * (1 - t)

    return scene.repeat(pluck, length, jitter=0)


def noise_bursts(scene: Scene) -> Waveform:
    """Gated noise in a random band."""
    low, length = scene.pick(100, 2000), scene.pick(0.1, 0.8)
    hiss = scene.band(scene.noise(), low, scene.pick(2, 8) * low)
    return hiss * scene.repeat(lambda: np.ones(round(length * scene.sample_rate)), length + scene.pick(0.1, 0.5))


def sweeps(scene: Scene) -> Waveform:
    """Test-signal sweeps, up or down over octaves."""
    length, start, octaves = scene.pick(0.3, 1.5), scene.pick(200, 1500), scene.rng.uniform(-2, 2)

    def sweep() -> Waveform:
        t = scene.ramp(length)
        return scene.tone(start * 2 ** (octaves * t), [1], len(t)) * np.minimum(1, 20 * (1 - t))

    return scene.repeat(sweep, length + scene.pick(0.05, 0.4), jitter=0)


def beeps(scene: Scene) -> Waveform:
    """Pips of a machine: pure tones of one pitch."""
    pitch, length = scene.pick(400, 3000), scene.pick(0.05, 0.3)

    def pip() -> Waveform:
        t = scene.ramp(length)
        return scene.tone(pitch, [1, 0.2], len(t)) * np.minimum(1, 30 * np.minimum(t, 1 - t))

    return scene.repeat(pip, length + scene.pick(0.1, 0.6), jitter=0)


CLASSES: dict[str, Callable[[Scene], Waveform]] = {
    "dog bark": dog_bark,
    "siren": siren,
    "rain": rain,
    "clock tick": clock_tick,
    "church bell": church_bell,
    "car horn": car_horn,
    "engine idling": engine_idling,
    "crackling fire": crackling_fire,
    "door knock": door_knock,
    "bird chirp": bird_chirp,
    "footsteps": footsteps,
    "phone ringing": phone_ringing,
    "sea waves": sea_waves,
    "wind": wind,
    "frog croak": frog_croak,
    "keyboard typing": keyboard_typing,
}

DISTRACTORS: dict[str, Callable[[Scene], Waveform]] = {
    "babble": babble,
    "chords": chords,
    "noise bursts": noise_bursts,
    "sweeps": sweeps,
    "beeps": beeps,
}
