"""Detect truncated files from their bytes: libsndfile silently reads what is left of a truncated file.

Bytes are read at given positions (`os.pread`), so that the position of the descriptor does not change.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

# libsndfile's names of the containers whose truncated files are detected, here or by libsndfile. All others are
# rejected: IRCAM, PAF and PVF do not state a length; MAT, SDS, AVR, XI, ... are too rare to be worth a reader.
CHECKED = frozenset("WAV WAVEX RF64 AIFF SVX W64 CAF AU NIST VOC FLAC OGG MP3 HTK".split())

SOX_PIPE = 0x7FFFF000  # the size that SoX states in a WAV that it writes to a pipe; FFmpeg states more
JUNK_BYTES = 2**16  # maximum before an MPEG stream; libsndfile's decoder gives up there too
MPEG_RATES = (44_100, 48_000, 32_000)  # Hz, of MPEG-1; half of these in MPEG-2, a quarter in MPEG-2.5
MPEG_1_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # kbit/s, layer III
MPEG_2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


@dataclass(frozen=True)
class _Chunks:
    """Layout of a container: chunks with a name, a size and a body, one of which contains the samples."""

    first: int  # position of the first chunk
    samples: tuple[bytes, ...]  # possible names of the chunk of samples
    order: Literal["little", "big"] = "little"
    name_bytes: int = 4
    size_bytes: int = 4
    alignment: int = 2
    is_header_counted: bool = False

    @property
    def unknown(self) -> int:
        """The minimum size that means "until the end": a writer to a pipe does not know the size."""
        return SOX_PIPE if self.size_bytes == 4 else 2**63 - 1


WAVE = _Chunks(12, (b"data",))
WAVE_BIG = _Chunks(12, (b"data",), "big")  # RIFX
AIFF = _Chunks(12, (b"SSND", b"BODY"), "big")  # BODY in 8SVX and 16SV
CAF = _Chunks(8, (b"data",), "big", size_bytes=8, alignment=1)
W64 = _Chunks(
    40, (bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"),), name_bytes=16, size_bytes=8, alignment=8,
    is_header_counted=True,
)  # fmt: skip


class _Bytes:
    """The bytes of a file from a given position."""

    def __init__(self, descriptor: int, start: int) -> None:
        self._descriptor, self._start = descriptor, start
        self.size = os.fstat(descriptor).st_size - start

    def read(self, num_bytes: int, place: int) -> bytes:
        return os.pread(self._descriptor, num_bytes, self._start + place)


def _behind_id3(descriptor: int, start: int) -> int:
    """Return the end of an ID3 tag that begins at `start`; `start` if there is none."""
    head = os.pread(descriptor, 10, start)
    if head[:3] != b"ID3" or len(head) < 10:
        return start
    # ID3v2.4, section 3.1: the size has 7 bits in each byte
    return start + 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def what_is_cut_off(descriptor: int) -> str | None:
    """Return what is missing at the end of a file; None if nothing is, or if decoding will detect it."""
    file = _Bytes(descriptor, _behind_id3(descriptor, 0))
    head = file.read(16, 0)
    kind = head[8:12]
    if head[:4] == b"OggS":
        return _ogg_lack(descriptor)
    if head[:4] in (b"RIFF", b"RF64") and kind == b"WAVE":
        return _chunk_lack(file, WAVE)
    if head[:4] == b"RIFX" and kind == b"WAVE":
        return _chunk_lack(file, WAVE_BIG)
    if head[:4] == b"FORM" and kind in (b"AIFF", b"AIFC", b"8SVX", b"16SV"):
        return _chunk_lack(file, AIFF)
    if head[:4] == b"caff":
        return _chunk_lack(file, CAF)
    if head == bytes.fromhex("726966662e91cf11a5d628db04c10000"):  # "riff" as a GUID
        return _chunk_lack(file, W64)
    if head[:4] in (b".snd", b"dns."):
        return _au_lack(file, "big" if head[:4] == b".snd" else "little")
    if head[:8] == b"NIST_1A\n":
        return _nist_lack(file)
    if head == b"Creative Voice F":
        return _voc_lack(file)
    return None


def _lack(stated: int, there: int) -> str | None:
    return f"its header states {stated} bytes of samples, but it has {max(0, there)}" if stated > there else None


def _chunk_lack(file: _Bytes, layout: _Chunks) -> str | None:
    """Compare the stated size of the chunk of samples with the bytes that follow its header."""
    end, position, size_64 = file.size, layout.first, 0
    header = layout.name_bytes + layout.size_bytes
    while position + header <= end:
        head = file.read(header + 16, position)
        name, size = head[: layout.name_bytes], int.from_bytes(head[layout.name_bytes : header], layout.order)
        size -= header if layout.is_header_counted else 0
        if name == b"ds64":  # EBU Tech 3306: RIFF size, then the size of the samples, 64 bits each
            size_64 = int.from_bytes(head[16:24], layout.order)
        if name in layout.samples:
            return _lack(size_64 or (size if size < layout.unknown else 0), end - position - header)
        if size < 0:
            break
        position += header + size + -size % layout.alignment
    return "it ends before the samples begin"


def _au_lack(file: _Bytes, order: Literal["little", "big"]) -> str | None:
    """Compare the size that an AU file states with the bytes after its header; all ones mean "unknown"."""
    head = file.read(12, 0)
    start, size = (int.from_bytes(head[place : place + 4], order) for place in (4, 8))
    return _lack(size if size < SOX_PIPE else 0, file.size - start)


def _nist_lack(file: _Bytes) -> str | None:
    """Compare the number of samples in the text header of a NIST SPHERE file with the bytes after it."""
    lines = file.read(1024, 0).decode("latin-1").split("\n")
    fields = {name: value for name, _, value in (line.split(" ", 2) for line in lines[2:] if line.count(" ") > 1)}
    try:
        start = int(lines[1])
        num_bytes = int(fields["sample_count"]) * int(fields["channel_count"]) * int(fields["sample_n_bytes"])
    except (IndexError, KeyError, ValueError):
        return "its header has no sample_count, channel_count and sample_n_bytes"
    return _lack(num_bytes, file.size - start)


def _voc_lack(file: _Bytes) -> str | None:
    """Follow the blocks of a Creative Voice file, each with a type (0 marks the end) and three bytes of size."""
    end = file.size
    position = int.from_bytes(file.read(2, 20), "little")
    while head := file.read(4, position):
        if head[0] == 0:
            return None
        size = int.from_bytes(head[1:], "little")
        if said := _lack(size, end - position - 4):
            return said
        position += 4 + size
    return None


# -- Ogg


def _last_page(descriptor: int) -> tuple[int, bytes]:
    """Return the position of the last Ogg page, and the bytes from there (with data that taggers appended)."""
    longest_page = 27 + 255 + 255 * 255
    start = max(0, os.fstat(descriptor).st_size - longest_page)
    tail = os.pread(descriptor, longest_page, start)
    offset = max(0, tail.rfind(b"OggS"))
    return start + offset, tail[offset:]


def _ogg_lack(descriptor: int) -> str | None:
    """Check that the last page and the last packet on it are complete (RFC 3533, section 6).

    A file that ends between two pages counts as complete: interrupted recordings and streams end without an
    end-of-stream mark, and a page does not state whether another follows.
    """
    _, page = _last_page(descriptor)
    lacing = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) < 27 or len(lacing) < page[26] or len(page) < 27 + len(lacing) + sum(lacing):
        return "it ends inside an Ogg page"
    return "it ends inside an Ogg packet" if lacing[-1:] == b"\xff" else None


def with_end_of_stream(descriptor: int) -> io.RawIOBase | None:
    """Return an Ogg file with its last page marked as the end of the stream; None if it is marked, or is not Ogg.

    Without the mark, libsndfile does not return the last page of an Opus stream.
    """
    if os.pread(descriptor, 4, 0) != b"OggS":
        return None
    place, found = _last_page(descriptor)
    page = bytearray(found[: 27 + found[26] + sum(found[27 : 27 + found[26]])]) if len(found) > 26 else bytearray()
    if len(page) < 27 or page[5] & 4:
        return None
    page[5] |= 4
    page[22:26] = bytes(4)
    page[22:26] = _ogg_checksum(page).to_bytes(4, "little")
    return _Patched(descriptor, place, bytes(page[:27]))


def _ogg_checksum(page: bytes | bytearray) -> int:
    """Return the CRC of a page: polynomial 0x04c11db7, no reflection, initial value 0 (RFC 3533, section 6)."""
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


class _Patched(io.RawIOBase):
    """A file in which some bytes are replaced while reading."""

    def __init__(self, descriptor: int, place: int, patch: bytes) -> None:
        self._descriptor, self._place, self._patch, self._position = descriptor, place, patch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = os.fstat(self._descriptor).st_size
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = bytearray(os.pread(self._descriptor, len(buffer), self._position))
        start, end = self._place - self._position, self._place - self._position + len(self._patch)
        if start < len(content) and end > 0:
            into = slice(max(0, start), min(len(content), end))
            content[into] = self._patch[into.start - start : into.stop - start]
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


# -- MPEG


def mp3_states_length(descriptor: int) -> bool:
    """Return whether an MP3 starts with a Xing or Info frame; without one, its length is libsndfile's estimate."""
    start = mpeg_start(descriptor)
    first = os.pread(descriptor, 4096, _behind_id3(descriptor, 0) if start is None else start)
    return b"Xing" in first or b"Info" in first


def mpeg_start(descriptor: int) -> int | None:
    """Return the position of three consecutive MPEG layer III frames, after at most `JUNK_BYTES` of other bytes.

    libsndfile skips bytes before a stream only if the file name ends in .mp3.
    """
    start = _behind_id3(descriptor, 0)
    found = next(_mpeg_starts(os.pread(descriptor, JUNK_BYTES + 3 * 2**12, start)), None)
    return None if found is None else start + found


def _mpeg_starts(content: bytes) -> Iterator[int]:
    start = content.find(b"\xff")
    while 0 <= start < JUNK_BYTES:
        place = start
        for _ in range(3):
            size = _mpeg_frame_bytes(content[place : place + 4])
            if not size:
                break
            place += size
        else:
            yield start
        start = content.find(b"\xff", start + 1)


def _mpeg_frame_bytes(header: bytes) -> int:
    """Return the length of a layer III frame from its first four bytes; 0 if they are not its header (ISO 11172-3)."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # 11 bits of sync, then layer III is 01
        return 0
    version, rate, kbits = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if version == 1 or rate == 3 or kbits in (0, 15):
        return 0
    is_mpeg_1 = version == 3
    sample_rate = MPEG_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = (MPEG_1_KBITS if is_mpeg_1 else MPEG_2_KBITS)[kbits] * 1000
    return (144 if is_mpeg_1 else 72) * bits // sample_rate + (header[2] >> 1 & 1)
