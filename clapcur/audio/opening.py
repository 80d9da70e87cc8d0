"""Opening: what lies at an address as a descriptor, so that it is read like any file.

What is no file of its own comes as a file in memory (Linux's memfd): a descriptor like any other, so that libsndfile
reads it without Python's lock, and the checks of `clapcur.audio.containers` hold for it. A member of a tar costs one
read of its bytes, in whatever order. A cell of a Parquet file costs its row group, of which the last are kept: rows in
their order are read once, rows at random a group each.

A store is asked for nothing but the bytes of a clip.
"""

import os
from io import FileIO

import pyarrow as pa

from clapcur.audio.addresses import CELL, MEMBER, is_url
from clapcur.audio.cells import read_cell
from clapcur.audio.stores import filesystem


def open_address(address: str) -> FileIO:
    """Open what lies at an address: a descriptor at its start, unbuffered.

    Raises
    ------
    OSError
        There is no such file or object, or the store fails.
    EOFError
        The container ends before the clip does.
    ValueError
        The container is not what the address says, or the address cannot be one.
    DataError
        The store cannot be read at all, see `filesystem`.
    """
    if match := MEMBER.fullmatch(address):
        return _member(match["container"], int(match["first"]), int(match["last"]) + 1)
    if match := CELL.fullmatch(address):
        return _in_memory(read_cell(match["container"], int(match["row"]), match["column"]))
    if is_url(address):
        store, path = filesystem(address)
        return _in_memory(store.cat_file(path))
    return FileIO(address)


def _member(container: str, first: int, end: int) -> FileIO:
    size = end - first
    if is_url(container):
        store, path = filesystem(container)
        file = _in_memory(store.cat_file(path, first, end) if size else b"")
    else:
        with FileIO(container) as source:
            file, there = _in_memory(b""), 0
            while there < size and (sent := os.sendfile(file.fileno(), source.fileno(), first + there, size - there)):
                there += sent
        file.seek(0)
    if (there := os.fstat(file.fileno()).st_size) < size:
        file.close()
        raise EOFError(f"its container ends after {there} of its {size} bytes")
    return file


def _in_memory(content: bytes | pa.Buffer) -> FileIO:
    file = FileIO(os.memfd_create("clip"), "r+")
    rest = memoryview(content)
    while len(rest):
        rest = rest[file.write(rest) :]
    file.seek(0)
    return file
