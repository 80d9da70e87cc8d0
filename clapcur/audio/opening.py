"""Opening: what is at an address as a descriptor, so that it is read like any file.

What is no file of its own comes as a file in memory (Linux's memfd): a descriptor like any other, so that libsndfile
reads it without Python's lock, and the checks of `clapcur.audio.containers` hold for it. A member of a tar costs one
read of its bytes, in whatever order. A cell of a Parquet file costs its row group, of which the last are kept: rows in
their order are read once, rows at random a group each.

A store is asked for nothing but the bytes of a clip. Of what is no file of its own, not more than
`clapcur.audio.limits` allows is read.
"""

import os
from collections.abc import Iterable, Iterator
from io import FileIO
from typing import BinaryIO

import pyarrow as pa

from clapcur.audio.access import open_regular
from clapcur.audio.addresses import CELL, MEMBER, is_url
from clapcur.audio.cells import read_cell
from clapcur.audio.limits import check_size
from clapcur.audio.stores import open_object

BLOCK_BYTES = 2**22  # of an object, in one request


def open_address(address: str) -> FileIO:
    """Open what is at an address: a descriptor at its start, unbuffered.

    Raises
    ------
    OSError
        There is no such file or object, or the store fails.
    EOFError
        The container ends before the clip does.
    ValueError
        The container is not what the address says, or the address cannot be one; TooLarge, a child of it: the clip
        is larger than the memory that it may take.
    DataError
        The store cannot be read at all, see `filesystem`.
    """
    if match := MEMBER.fullmatch(address):
        return _member(match["container"], int(match["first"]), int(match["last"]) + 1)
    if match := CELL.fullmatch(address):
        return _in_memory([read_cell(match["container"], int(match["row"]), match["column"])])
    if is_url(address):
        with open_object(address, whole=True) as source:
            return _in_memory(_blocks(source))
    return open_regular(address)


def _blocks(source: BinaryIO) -> Iterator[bytes]:
    """Yield a file in blocks, up to what one clip may take."""
    size = 0
    while block := source.read(BLOCK_BYTES):
        size += len(block)
        check_size(size)
        yield block


def _member(container: str, first: int, end: int) -> FileIO:
    size = end - first
    check_size(size)
    if is_url(container):
        with open_object(container) as object:
            object.seek(first)
            file = _in_memory([object.read(size) if size else b""])
    else:
        with open_regular(container) as source:
            file, there = _in_memory([]), 0
            while there < size and (sent := os.sendfile(file.fileno(), source.fileno(), first + there, size - there)):
                there += sent
        file.seek(0)
    if (there := os.fstat(file.fileno()).st_size) < size:
        file.close()
        raise EOFError(f"its container ends after {there} of its {size} bytes")
    return file


def _in_memory(blocks: Iterable[bytes | pa.Buffer]) -> FileIO:
    file = FileIO(os.memfd_create("clip"), "r+")
    try:
        for block in blocks:
            rest = memoryview(block)
            while len(rest):
                rest = rest[file.write(rest) :]
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file
