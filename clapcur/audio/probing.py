"""Probing: a file to its hashes and facts, or to the problem with it."""

import hashlib
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from clapcur.audio.decoding import MAX_SAMPLE, Decoder, UnusableAudio, open_audio
from clapcur.config import frozen, machine

LONGEST_S = 24 * 3600.0  # ours; a model uses ten seconds of it, and a small file can state years of silence


@frozen
class ProbeRules:
    """Which readable files are still of no use."""

    min_duration_s: float = 0.05
    """Minimum duration of a clip, in seconds; project default: a few mel frames."""
    max_duration_s: float | None = None
    """Maximum duration of a clip, in seconds; None: 24 hours. Memory use does not grow with the duration."""
    silence_peak: float = 1e-5
    """A clip is silent if every sample, averaged over channels, is below this magnitude; project default: -100 dB of
    full scale."""
    max_peak: float = machine(100.0)
    """Maximum magnitude in any channel, where full scale is 1 (project default: +40 dB). A mix may exceed full scale
    slightly; integers stored as floats reach 128 and more. Not part of the signature; the rejected clips are, with
    their reason."""

    def __post_init__(self) -> None:
        """Reject limits that no clip could meet."""
        if not 0 <= self.min_duration_s < self.longest_s:
            raise ValueError(
                f"durations must be 0 <= min < max in s, got {self.min_duration_s} and {self.max_duration_s}"
            )
        if not 0 <= self.silence_peak < 1:
            raise ValueError(f"silence_peak must be in [0, 1) (full scale is 1), got {self.silence_peak}")
        if not 1 <= self.max_peak <= MAX_SAMPLE:
            raise ValueError(f"max_peak must be in [1, 2**31] (full scale is 1), got {self.max_peak}")

    @property
    def longest_s(self) -> float:
        """The maximum duration of a clip, in seconds."""
        return LONGEST_S if self.max_duration_s is None else self.max_duration_s


@dataclass(frozen=True)
class ClipInfo:
    """Hashes and facts of a usable file."""

    clip_id: str  # SHA-256 of the file's bytes
    pcm_sha256: str  # of the samples: mono, int16, at the file's own rate
    duration_s: float
    sample_rate: int  # Hz
    num_channels: int
    bytes: int


@dataclass(frozen=True)
class Problem:
    """Why a file cannot be used."""

    reason: str
    # missing, unreadable, empty, truncated, too_large, silent, non_finite, out_of_range, implausible_rate, too_short or
    # too_long
    detail: str


def probe(path: Path | str, rules: ProbeRules | None = None) -> ClipInfo | Problem:
    """Hash and check one file; a bad file returns a `Problem` instead of raising an exception.

    The hash of the samples, which are rounded to 16 bits, is the same for the same sound in WAV and in FLAC. It changes
    with lossy compression, and that of a lossy file may depend on the version of its decoder.
    """
    rules = rules or ProbeRules()
    try:
        with open_audio(path) as file:
            clip_id = hashlib.file_digest(file, "sha256").hexdigest()
            return _examine(path, file, clip_id, rules)
    except UnusableAudio as bad:
        return Problem(bad.reason, bad.detail)
    except OSError as error:  # a disk or a network that fails while the file is read
        return Problem("unreadable", error.strerror or str(error))


def _examine(path: Path | str, file: FileIO, clip_id: str, rules: ProbeRules) -> ClipInfo | Problem:
    decoder = Decoder(path, file)
    pcm, peak = hashlib.sha256(), 0.0
    for block in decoder:
        if decoder.duration_s > rules.longest_s:
            return Problem("too_long", f"longer than {rules.longest_s:g} s (max_duration_s)")
        if decoder.peak > rules.max_peak:
            detail = f"has a sample of {decoder.peak:.4g} times full scale, but max_peak is {rules.max_peak:g}"
            return Problem("out_of_range", f"{detail}; integers stored as floats?")
        peak = max(peak, float(np.abs(block).max()))
        pcm.update(np.clip(np.rint(block * 32768), -32768, 32767).astype("<i2").tobytes())
    if decoder.duration_s < rules.min_duration_s:
        return Problem("too_short", f"{decoder.duration_s:.4g} s, but min_duration_s is {rules.min_duration_s:g} s")
    if peak < rules.silence_peak:
        return Problem("silent", f"the loudest sample of the channels' mean is {peak:.2g} of full scale")
    return ClipInfo(
        clip_id=clip_id,
        pcm_sha256=pcm.hexdigest(),
        duration_s=decoder.duration_s,
        sample_rate=decoder.sample_rate,
        num_channels=decoder.num_channels,
        bytes=os.fstat(file.fileno()).st_size,
    )
