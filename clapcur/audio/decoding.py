"""Decoding: a file to mono blocks, or the reason why it cannot be used.

Files are decoded forward, block by block, without seeking: a FLAC from a pipe, which has no stated length, is read like
any other, and memory does not grow with the file. An MP3 without a Xing header has no stated length: libsndfile
estimates one from the first frame and may stop early, which cannot be detected here. Neither can an Ogg stream without
an end-of-stream mark that was cut between two pages.

No decoded sample is NaN, infinite or so large that its spectrum would overflow.
"""

import math
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from clapcur.audio.containers import CHECKED, mp3_states_length, mpeg_start, what_is_cut_off, with_end_of_stream
from clapcur.audio.limits import TooLarge
from clapcur.audio.opening import open_address
from clapcur.downloads import HEAD_BYTES, not_downloaded
from clapcur.errors import DataError, printable

BLOCK_FRAMES = 2**16  # 1.5 s at 44.1 kHz: fits in the CPU cache, and memory does not grow with the file
BLOCK_SAMPLES = 2**19  # over all channels; libsndfile reads up to 1,024 channels
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX: the header states no length
MP3_SLACK_FRAMES = 2 * 1152  # ours: encoders differ in whether they count the header frame and padding
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000  # Hz, ours: below, seconds of a file become hours at 32 kHz
MAX_SAMPLE = 2.0**31  # 32-bit integers stored as floats; the power spectrum of 1e16 would overflow float32


class UnusableAudio(DataError):
    """A file that cannot be used: `reason` is one word for tables, `detail` explains it."""

    def __init__(self, path: Path | str, reason: str, detail: str) -> None:
        super().__init__(path, reason, detail)
        self.path, self.reason, self.detail = path, reason, detail

    def __str__(self) -> str:
        """Return one line that begins with the path."""
        return f"{printable(str(self.path))}: {self.reason.replace('_', ' ')}: {self.detail}"


def open_audio(path: Path | str) -> FileIO:
    """Open the non-empty regular file at an address (`clapcur.audio.addresses`), unbuffered."""
    try:
        file = open_address(os.fspath(path))
    except EOFError as error:
        raise UnusableAudio(path, "truncated", str(error)) from None
    except TooLarge as error:
        raise UnusableAudio(path, "too_large", str(error)) from None
    except FileNotFoundError:
        raise UnusableAudio(path, "missing", "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UnusableAudio(path, "unreadable", getattr(error, "strerror", None) or str(error)) from None
    if not os.fstat(file.fileno()).st_size:
        file.close()
        raise UnusableAudio(path, "empty", "0 bytes")
    return file


class _ForwardFile(soundfile.SoundFile):
    """A file that is only read forward: seeking after every block is slow, and fails if the length is unknown."""

    def seekable(self) -> bool:
        return False


def _open_sound(file: FileIO) -> soundfile.SoundFile:
    marked = with_end_of_stream(file.fileno())
    if marked is not None:
        return _ForwardFile(marked)
    file.seek(0)  # libsndfile takes the descriptor's position for the start of the file
    try:
        return _ForwardFile(file.fileno(), closefd=False)
    except soundfile.LibsndfileError:
        if not (start := mpeg_start(file.fileno())):
            raise
    file.seek(start)
    return _ForwardFile(file.fileno(), closefd=False)


class Decoder:
    """Iterates over a file's mono blocks; raises UnusableAudio for any defect."""

    def __init__(self, path: Path | str, file: FileIO) -> None:
        self._path, self._lack = path, what_is_cut_off(file.fileno())
        try:
            self._sound = _open_sound(file)
        except soundfile.LibsndfileError as error:
            what = not_downloaded(os.pread(file.fileno(), HEAD_BYTES, 0))
            detail = f"it is {what}" if what else self._lack or error.error_string
            raise UnusableAudio(path, "truncated" if self._lack and not what else "unreadable", detail) from None
        self.sample_rate, self.num_channels = self._sound.samplerate, self._sound.channels
        self.num_frames, self.peak = 0, 0.0
        self._check_kind()
        is_mp3 = self._sound.format == "MP3"
        is_stated = self._sound.frames != UNKNOWN_FRAMES and (not is_mp3 or mp3_states_length(file.fileno()))
        self._stated = self._sound.frames if is_stated else 0
        self._slack = MP3_SLACK_FRAMES if is_mp3 else 0

    def _check_kind(self) -> None:
        """Reject files that could not be checked or resampled."""
        kind, rate = self._sound.format, self.sample_rate
        if kind not in CHECKED:
            detail = f"a truncated {kind} file cannot be distinguished from a complete one; convert it to WAV or FLAC"
        elif not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
            detail = f"it states a sample rate of {rate} Hz, expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}"
        else:
            return
        self._sound.close()
        raise UnusableAudio(self._path, "unreadable" if kind not in CHECKED else "implausible_rate", detail)

    @property
    def duration_s(self) -> float:
        """Seconds decoded so far."""
        return self.num_frames / self.sample_rate

    @property
    def stated_frames(self) -> int | None:
        """The exact number of frames, if the file states it."""
        return self._stated if self._stated and not self._slack else None

    def close(self) -> None:
        """Close the file before its end."""
        self._sound.close()

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Yield blocks of shape (T,) with T up to `BLOCK_FRAMES`, once; a defect raises an error when it is reached.

        `peak` is the maximum magnitude of a sample so far, in any channel.
        """
        num_frames = min(BLOCK_FRAMES, BLOCK_SAMPLES // self.num_channels)
        with self._sound:
            stopped = ""
            while True:
                try:
                    block_TC = self._sound.read(num_frames, dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    stopped = f": {error.error_string}"
                    break
                if not len(block_TC):
                    break
                self.num_frames += len(block_TC)
                peak = max(float(block_TC.max()), -float(block_TC.min()))  # NaN if any sample is
                if not math.isfinite(peak):
                    raise UnusableAudio(self._path, "non_finite", "has NaN or infinite samples")
                if peak > MAX_SAMPLE:
                    detail = f"has a sample of {peak:.3g} times full scale; the maximum is {MAX_SAMPLE:.3g}"
                    raise UnusableAudio(self._path, "out_of_range", detail)
                self.peak = max(self.peak, peak)
                yield block_TC.mean(axis=1) if block_TC.shape[1] > 1 else block_TC[:, 0]
        if self._lack or stopped or self.num_frames < self._stated - self._slack:
            counted = f"decoding stops after {self.num_frames} of {self._stated or 'unknown'} frames{stopped}"
            raise UnusableAudio(self._path, "truncated", self._lack or counted)
        if not self.num_frames:
            raise UnusableAudio(self._path, "empty", "0 frames")
