"""Object stores, read through fsspec: which store a URL means, and whether an object is still the same."""

import functools
import io
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import fsspec

from clapcur.audio.addresses import container_of, is_url
from clapcur.errors import DataError

BLOCK_BYTES = 2**22  # of an object that is listed
WHEN_CHANGED = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")  # as stores call it

Stamp = tuple[int, int]  # size in bytes, what changes with the content


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
