"""Ways to spoil bytes, each with its own luck."""

import random
from collections.abc import Callable, Mapping

HEADER = 128  # bytes at the start in which formats keep their fields
FIELDS = (b"\x00\x00", b"\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\x7f\xff\xff\xff")
# what is put into a field: nothing, or the largest or smallest number, in either order of bytes


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """Flip one to eight bits anywhere."""
    spoiled = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Leave out the end."""
    return data[: rng.randrange(len(data))]


def cut_out(data: bytes, rng: random.Random) -> bytes:
    """Leave out a stretch in the middle."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, max(1, len(data) // 4)) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Put a few random bytes somewhere."""
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(rng.randint(1, 64)) + data[place:]


def spoil_header(data: bytes, rng: random.Random) -> bytes:
    """Put an extreme number into one to three fields of the header."""
    spoiled = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        field = rng.choice(FIELDS)
        place = rng.randrange(max(1, min(HEADER, len(spoiled)) - len(field)))
        spoiled[place : place + len(field)] = field
    return bytes(spoiled[: len(data)])


def zero(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a stretch with zeros, as a disk does that lost a block."""
    start = rng.randrange(len(data))
    length = min(len(data) - start, rng.choice((16, 512, 4096)))
    return data[:start] + bytes(length) + data[start + length :]


MUTATIONS: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "bits flipped": flip_bits,
    "cut": cut,
    "stretch left out": cut_out,
    "bytes inserted": insert,
    "header field": spoil_header,
    "zeros": zero,
}


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return the name of a mutation that changed something, and what it made."""
    while True:
        name = rng.choice(list(MUTATIONS))
        if (spoiled := MUTATIONS[name](data, rng)) != data:
            return name, spoiled
