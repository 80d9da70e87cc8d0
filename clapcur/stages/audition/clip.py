"""One clip, small enough for a page: its audio as MP3 and its spectrogram as PNG.

MP3 because every browser plays it, and because equal samples give equal bytes: libsndfile gives an Ogg stream a random
serial number.
"""

import functools
import io
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from clapcur.audio import load_crops

MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # Hz, MPEG-1, -2 and -2.5
COMPRESSION = 0.5  # of LAME's variable bit rate: about 40 kbit/s at 22.05 kHz
WIDTH, HEIGHT = 256, 64  # of a spectrogram, in pixels
WINDOW = 1024  # samples; 46 ms at 22.05 kHz
LOWEST_HZ = 50.0
RANGE_DB = 70.0  # below the loudest pixel; anything quieter is black
COLOURS = 64


def load_excerpt(
    path: Path | str, sample_rate: int, max_seconds: float, clip_id: str | None = None
) -> NDArray[np.float32]:
    """Return a clip as the page plays it: mono, and for a long clip its middle, as a model hears it.

    If samples exceed full scale, which MP3 would clip, the whole clip is attenuated.

    Parameters
    ----------
    path : Path or str
        A file or an address (`clapcur.audio.addresses`).
    sample_rate : int
        Sample rate of the result, in Hz.
    max_seconds : float
        Maximum duration of the excerpt, in s.
    clip_id : str, optional
        SHA-256 that the file's bytes must have.

    Returns
    -------
    NDArray, shape (T,), float32

    Raises
    ------
    UnusableAudio
        The file is missing, cannot be decoded, or is not the clip with this id.
    """
    crops, length = load_crops(path, sample_rate, int(max_seconds * sample_rate), [0.5], "pad", clip_id)
    waveform = crops[0][:length]
    return waveform / np.float32(max(1.0, float(np.abs(waveform).max())))


def as_mp3(waveform: NDArray[np.float32], sample_rate: int) -> bytes:
    """Return a mono waveform as MP3; the rate is one of `MP3_RATES`."""
    file = io.BytesIO()
    soundfile.write(
        file, waveform, sample_rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE",
        compression_level=COMPRESSION,
    )  # fmt: skip
    return file.getvalue()


def as_spectrogram(waveform: NDArray[np.float32], sample_rate: int) -> bytes:
    """Return the log-mel spectrogram of a waveform as PNG: time to the right, high frequencies at the top.

    The colours range from the loudest pixel down to `RANGE_DB` below it. A column shows the maximum power over several
    windows, so that a click between two columns is not lost.
    """
    from matplotlib import colormaps

    power_HW = _mel_filters(sample_rate) @ _power(waveform)
    level_HW = 10 * np.log10(power_HW / max(float(power_HW.max()), 1e-12) + 1e-12)
    index_HW = np.clip((level_HW / RANGE_DB + 1) * (COLOURS - 1), 0, COLOURS - 1).astype(np.uint8)
    palette_C3 = colormaps["magma"](np.linspace(0, 1, COLOURS))[:, :3]
    return _png(index_HW[::-1], np.rint(255 * palette_C3).astype(np.uint8))


def _power(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the power spectrum, shape (WINDOW / 2 + 1, WIDTH)."""
    padded = np.pad(waveform, WINDOW // 2)
    windows_per_column = max(1, -(-len(waveform) // (WIDTH * WINDOW // 2)))
    starts = np.linspace(0, len(padded) - WINDOW, WIDTH * windows_per_column).astype(np.int64)
    frames = padded[starts[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames)) ** 2
    return np.asarray(power.reshape(WIDTH, windows_per_column, -1).max(axis=1).T)


@functools.cache
def _mel_filters(sample_rate: int) -> NDArray[np.float64]:
    """Return triangular filters evenly spaced in mel (HTK), each with sum 1, shape (HEIGHT, WINDOW / 2 + 1)."""
    low, high = 2595 * np.log10(1 + np.array([LOWEST_HZ, sample_rate / 2]) / 700)
    edges = 700 * (10 ** (np.linspace(low, high, HEIGHT + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / sample_rate)
    width = np.maximum(np.diff(edges), sample_rate / WINDOW)  # low filters would be narrower than one bin
    rising = 1 - (edges[1:-1, None] - bins) / width[:-1, None]
    falling = 1 - (bins - edges[1:-1, None]) / width[1:, None]
    filters = np.clip(np.minimum(rising, falling), 0, 1)
    return np.asarray(filters / filters.sum(axis=1, keepdims=True))


def _png(index_HW: NDArray[np.uint8], palette_C3: NDArray[np.uint8]) -> bytes:
    """Return an image of palette indices as PNG, a third of the size of true colours."""
    from PIL import Image

    height, width = index_HW.shape
    image = Image.frombytes("P", (width, height), np.ascontiguousarray(index_HW).tobytes())
    image.putpalette(palette_C3.tobytes())
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()
