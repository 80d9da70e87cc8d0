"""Sounds in files and tar archives, for addresses."""

import io
import tarfile
from pathlib import Path

import numpy as np
import soundfile

from clapcur.audio.opening import open_address

RATE = 16_000


def sound(seed: int, kind: str = "FLAC", num_samples: int = 4000) -> bytes:
    """Return an encoded clip of noise."""
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).normal(0, 0.1, num_samples), RATE, format=kind)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def content(address: str) -> bytes:
    with open_address(address) as file:
        return file.read()
