"""Where a clip lies, as one text: its address.

========================================================  ==========================================================
``/pool/dog.wav``                                         a file
``s3://bucket/dog.wav``                                   an object, in a store that fsspec knows by its protocol
``/pool/a.tar#bytes=1536-49663&name=dog.wav``             a member of an uncompressed tar: both ends count, as in HTTP
``/pool/a.parquet#row=17&column=audio&name=dog.wav``      a cell of a Parquet file: bytes, or a struct with ``bytes``
========================================================  ==========================================================

Containers may be objects too. A name is for people and for lists that name files; nothing is found by it.

What is no file of its own comes as a file in memory (Linux's memfd): a descriptor like any other, so that libsndfile
reads it without Python's lock, and the checks of `clapcur.audio.containers` hold for it. A member of a tar costs one
read of its bytes, in whatever order. A cell of a Parquet file costs its row group, of which the last are kept: rows in
their order are read once, rows at random a group each.

A store is asked for nothing but the bytes of a clip. An object that changes while the process lives may go unnoticed.
"""

import bisect
import functools
import io
import itertools
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from io import FileIO
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
from pyarrow import parquet

from clapcur.errors import DataError

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
MEMBER = re.compile(
    r"(?P<container>.+\.tar)#bytes=(?P<first>\d+)-(?P<last>\d+)(&name=(?P<name>.*))?", re.DOTALL | re.IGNORECASE
)
CELL = re.compile(
    r"(?P<container>.+\.parquet)#row=(?P<row>\d+)&column=(?P<column>[^&]+)(&name=(?P<name>.*))?",
    re.DOTALL | re.IGNORECASE,
)
KEPT_BYTES = 2**28  # of row groups, by all threads together; always the last one
BLOCK_BYTES = 2**22  # of an object that is listed
LARGEST_GROUP = 2**31  # bytes; ours: some writers put a whole file into one row group
WHEN_CHANGED = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")  # as stores call it

Stamp = tuple[int, int]  # size in bytes, what changes with the content


def member_address(container: str, offset: int, size: int, name: str) -> str:
    """Return the address of a member of a tar: `size` bytes from `offset` on."""
    return f"{container}#bytes={offset}-{offset + size - 1}&name={name}"


def cell_address(container: str, row: int, column: str, name: str = "") -> str:
    """Return the address of a cell of a Parquet file; rows count from 0 through the whole file."""
    return f"{container}#row={row}&column={column}" + (f"&name={name}" if name else "")


def is_url(address: str) -> bool:
    """Tell whether an address begins with a protocol."""
    return URL.match(address) is not None


def container_of(address: str) -> str:
    """Return the file or the object that an address is in: the address itself, but for members and cells."""
    match = MEMBER.fullmatch(address) or CELL.fullmatch(address)
    return match["container"] if match else address


def absolute(base: str, address: str) -> str:
    """Return an address that does not depend on the folder we are in; `base` is what relative ones are relative to."""
    container = container_of(address)
    rest = address[len(container) :]
    if is_url(container):
        return address
    if is_url(base):
        return f"{base.rstrip('/')}/{container}{rest}"
    return os.path.abspath(os.path.join(base, container)) + rest


def readable(address: str) -> str:
    """Return how people say where a clip is: a member as ``a.tar/dog.wav``, all others as they are."""
    match = MEMBER.fullmatch(address)
    return f"{match['container']}/{match['name']}" if match and match["name"] else address


def reading_order(address: str) -> tuple[str, int]:
    """Return a key that sorts addresses as they lie: a container is then read from its start to its end."""
    if match := MEMBER.fullmatch(address):
        return match["container"], int(match["first"])
    if match := CELL.fullmatch(address):
        return match["container"], int(match["row"])
    return address, 0


def stamp(address: str) -> Stamp | None:
    """Return what tells that a file, object or container is still the same; None where nothing does."""
    container = container_of(address)
    if is_url(container):
        store, path = filesystem(container)
        try:
            return stamp_of(store.info(path))
        except OSError:
            return None
    try:
        status = os.stat(container)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def stamp_of(info: Mapping[str, Any]) -> Stamp | None:
    """Return the stamp of an object by what its store says of it, in a listing or alone."""
    changed = next((info[name] for name in WHEN_CHANGED if info.get(name)), None)
    if changed is None or info.get("size") is None:
        return None
    number = int.from_bytes(str(changed).encode()) % (2**63 - 25)  # a prime, so that every character counts
    return int(info["size"]), number


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the store of a URL, and the path in it.

    S3 is read by the client that is part of pyarrow: it takes keys, region and endpoint from the usual places (AWS_*
    variables, ``~/.aws``, the machine's role). Everything else is fsspec's.

    Raises
    ------
    DataError
        The protocol is unknown, or its package is not installed.
    """
    if url.lower().startswith(("s3://", "s3a://")):
        store = _s3(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
        return store, url.split("://", 1)[1]
    try:
        found: tuple[fsspec.AbstractFileSystem, str] = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:  # "Install adlfs to access Azure Datalake", or an unknown protocol
        raise DataError(f"{url} cannot be read here: {error}") from None
    return found


@functools.cache
def _s3(endpoint: str | None) -> fsspec.AbstractFileSystem:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import S3FileSystem

    scheme, _, host = (endpoint or "").rpartition("://")
    return ArrowFSWrapper(S3FileSystem(endpoint_override=host or None, scheme=scheme or None))


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
        return _in_memory(_cell(match["container"], int(match["row"]), match["column"]))
    if is_url(address):
        store, path = filesystem(address)
        return _in_memory(store.cat_file(path))
    return FileIO(address)


def open_container(container: str) -> BinaryIO:
    """Open a tar to be listed: an object in blocks, each asked for when it is reached, so that none is read twice."""
    return io.BufferedReader(_Object(container), BLOCK_BYTES) if is_url(container) else open(container, "rb")


class _Object(io.RawIOBase):
    """An object of a store as a file of the standard library: stores differ in how much of one theirs are."""

    def __init__(self, url: str) -> None:
        store, path = filesystem(url)
        self._file = store.open(path, "rb")
        self._file.seek(0, io.SEEK_END)
        self._size = self._position = self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return int(self._position)

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:  # some refuse to go there
            return 0
        self._file.seek(self._position)
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


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


def _cell(container: str, row: int, column: str) -> pa.Buffer:
    version = None if is_url(container) else stamp(container)
    footer, ends = _footer(container, version)
    group = bisect.bisect_right(ends, row)
    if group == len(ends):
        raise EOFError(f"its container has {footer.num_rows} rows")
    size = _bytes_of(footer, group, column)
    if size > LARGEST_GROUP:
        raise ValueError(
            f"its row group of {size / 1e9:.1f} GB would be read as a whole; write the file with smaller ones, such as "
            "row_group_size=100"
        )
    values = GROUPS.get(
        (container, version, group, column), size, lambda: _read_group(container, footer, group, column)
    )
    value = values[row - ends[group]].as_buffer()  # counted from the end of the group
    if value is None:
        raise ValueError("the cell holds no bytes")
    return value


@functools.lru_cache(maxsize=256)
def _footer(container: str, version: Stamp | None) -> tuple[parquet.FileMetaData, list[int]]:
    """Return the footer of a Parquet file, and the row at which each of its groups ends."""
    footer = with_parquet(container, lambda file: file.metadata)
    return footer, list(
        itertools.accumulate(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    )


def _bytes_of(footer: parquet.FileMetaData, group: int, column: str) -> int:
    chunks = map(footer.row_group(group).column, range(footer.num_columns))
    sizes = [chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in (column, f"{column}.bytes")]
    if not sizes:
        raise ValueError(f"its container has no column {column!r} of bytes")
    return sum(sizes)


def _read_group(container: str, footer: parquet.FileMetaData, group: int, column: str) -> pa.ChunkedArray:
    def read(file: parquet.ParquetFile) -> pa.ChunkedArray:
        is_struct = pa.types.is_struct(file.schema_arrow.field(column).type)
        table = file.read_row_group(group, columns=[f"{column}.bytes" if is_struct else column])
        return table.flatten().column(0)

    return with_parquet(container, read, footer)


def with_parquet(container: str, action: Callable[[parquet.ParquetFile], Any], footer: Any = None) -> Any:
    """Do something with an open Parquet file, wherever it lies.

    Raises
    ------
    ValueError
        It is no Parquet file, or a cut one.
    """
    if is_url(container):
        store, path = filesystem(container)
        with store.open(path, "rb") as file:
            return action(parquet.ParquetFile(file, metadata=footer))
    with FileIO(container) as file, parquet.ParquetFile(file, metadata=footer) as opened:
        return action(opened)


class _RowGroups:
    """The row groups that were read last. Threads share one: that which asks first reads, the others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[Any, tuple[Future[pa.ChunkedArray], int]] = OrderedDict()

    def get(self, key: Any, size: int, read: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        """Return what `read` returns, or returned for this key not long ago; `size` is its bytes."""
        with self._lock:
            known = self._groups.get(key)
            future = known[0] if known else Future[pa.ChunkedArray]()
            self._groups[key] = (future, size)
            self._groups.move_to_end(key)
            while len(self._groups) > 1 and sum(bytes for _, bytes in self._groups.values()) > KEPT_BYTES:
                self._groups.popitem(last=False)
        if not known:
            try:
                future.set_result(read())
            except BaseException as error:
                with self._lock:
                    self._groups.pop(key, None)
                future.set_exception(error)
        return future.result()


GROUPS = _RowGroups()
