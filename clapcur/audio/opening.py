"""Opening: an address to a file descriptor, so that any clip is read like a file.

A clip that is not a separate file is copied to a file in memory (Linux's memfd), so that libsndfile reads it without
the GIL and the checks of `clapcur.audio.containers` apply. A member of a tar takes one read of its bytes, in any order.
A cell of a Parquet file takes a read of its row group; see `clapcur.audio.cells`.

Only the bytes of the clip are requested from a store. For a clip that is not a separate file, no more than
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

BLOCK_BYTES = 2**22  # of an object per request


def open_address(address: str) -> FileIO:
    """Open the clip at an address, unbuffered and positioned at its start.

    Raises
    ------
    OSError
        There is no such file or object, or the store fails.
    EOFError
        The container ends before the clip does.
    ValueError
        The container does not match the address, or the address is invalid; TooLarge, a subclass: the clip exceeds the
        memory limit.
    DataError
        The store cannot be read at all, see `clapcur.audio.stores.filesystem`.
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
    """Yield a file in blocks, up to the size limit of a clip."""
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
