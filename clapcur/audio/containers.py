"""What the bytes of a file promise: libsndfile reads the rest of a cut file without a word.

Only bytes are read here, at their places (`os.pread`), so that the descriptor's own position does not move.
"""

import os
from typing import Literal

UNKNOWN_BYTES = 0x7FFFF000  # what SoX states as the size of a WAV that it writes into a pipe; FFmpeg states more


def what_is_cut_off(descriptor: int) -> str | None:
    """Say what is missing at the end of a WAV, AIFF or Ogg file; None where nothing is, or another check must tell."""
    head = os.pread(descriptor, 12, 0)
    if head[:4] == b"OggS":
        return _ogg_lack(descriptor)
    if head[:4] in (b"RIFF", b"RF64", b"RIFX", b"FORM") and head[8:] in (b"WAVE", b"AIFF", b"AIFC"):
        return _chunk_lack(descriptor, "little" if head[:4] in (b"RIFF", b"RF64") else "big")
    return None


def mp3_states_length(descriptor: int) -> bool:
    """Tell whether an MP3 starts with a Xing or Info frame; without, its length is libsndfile's estimate."""
    head = os.pread(descriptor, 10, 0)
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:  # ID3v2.4, section 3.1: the size has 7 bits in each byte
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    first = os.pread(descriptor, 4096, start)
    return b"Xing" in first or b"Info" in first


def _chunk_lack(descriptor: int, order: Literal["little", "big"]) -> str | None:
    """Compare the size that the chunk of samples states with the bytes that follow it."""
    end, position, size_64 = os.fstat(descriptor).st_size, 12, 0
    while position + 8 <= end:
        head = os.pread(descriptor, 8 + 16, position)
        name, size = head[:4], int.from_bytes(head[4:8], order)
        if name == b"ds64":  # EBU Tech 3306: RIFF size, then the size of the samples, 64 bits each
            size_64 = int.from_bytes(head[16:24], order)
        if name in (b"data", b"SSND"):
            there = end - position - 8
            stated = size_64 or (size if size < UNKNOWN_BYTES else 0)
            return f"{stated} bytes of samples are stated, {there} are there" if stated > there else None
        position += 8 + size + size % 2
    return "it ends before the samples begin"


def _ogg_lack(descriptor: int) -> str | None:
    """Check that the last page is whole and marked as the end of its stream (RFC 3533, section 6)."""
    longest_page = 27 + 255 + 255 * 255
    tail = os.pread(descriptor, longest_page, max(0, os.fstat(descriptor).st_size - longest_page))
    page = tail[max(0, tail.rfind(b"OggS")) :]
    lacing = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) < 27 or len(lacing) < page[26] or len(page) < 27 + len(lacing) + sum(lacing):
        return "it ends inside an Ogg page"
    return None if page[5] & 4 else "its last Ogg page is not marked as the end"
