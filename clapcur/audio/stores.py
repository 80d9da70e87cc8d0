"""Object stores, read through fsspec: the store of a URL, and whether an object is unchanged.

A request to a server that does not respond takes seconds. After `MAX_TRIES` such requests in a row, the server is not
contacted for `REST_S` seconds, and every read from it fails at once.
"""

import functools
import io
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa

from clapcur.audio.access import confined_to, open_regular, what_is_wrong_with
from clapcur.audio.addresses import container_of, is_url
from clapcur.errors import ClapcurError, DataError

BLOCK_BYTES = 2**22  # of an object whose members are listed
TIMEOUT_S = 10.0  # ours; to connect, and between two packets
CLIP_TIMEOUT_S = 300.0  # ours; for one request over HTTP as a whole
MAX_TRIES, REST_S = 3, 60.0  # ours
WHEN_CHANGED = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")  # names used by stores

Stamp = tuple[int, int]  # size in bytes, and a number that changes with the content


def stamp(address: str) -> Stamp | None:
    """Return a stamp that stays the same while a file, object or container is unchanged; None if there is none."""
    container = container_of(address)
    if is_url(container):
        try:
            with asking(container) as (store, path):
                return stamp_of(store.info(path))
        except OSError:
            return None
    try:
        status = os.stat(container)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def stamp_of(info: Mapping[str, Any]) -> Stamp | None:
    """Return the stamp of an object from its metadata in the store."""
    changed = next((info[name] for name in WHEN_CHANGED if info.get(name)), None)
    if changed is None or info.get("size") is None:
        return None
    number = int.from_bytes(str(changed).encode()) % (2**63 - 25)  # a prime, so that every character counts
    return int(info["size"]), number


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the store of a URL, and the path in it.

    S3 is read by pyarrow's client, which takes keys, region and endpoint from the usual places (AWS_* variables,
    ``~/.aws``, the machine's role). All other stores are read by fsspec.

    Over HTTP, redirects are not followed: the server chooses the target, which may be a host that only this machine
    reaches. Bodies are not decompressed: a small response could fill the memory.

    Raises
    ------
    DataError
        The protocol is unknown or not that of an object store, or its package is not installed.
    """
    if said := what_is_wrong_with(url):
        raise DataError(f"{url} cannot be read: {said}")
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme in ("s3", "s3a"):
        return _s3(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")), rest
    try:
        options = _http_options() if is_http(url) else {}
        found: tuple[fsspec.AbstractFileSystem, str] = fsspec.url_to_fs(f"{scheme}://{rest}", **options)
    except (ImportError, ValueError) as error:  # "Install adlfs to access Azure Datalake", or an unknown protocol
        raise DataError(f"{url} cannot be read here: {error}") from None
    return found


@functools.cache
def _s3(endpoint: str | None) -> fsspec.AbstractFileSystem:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import S3FileSystem

    scheme, _, host = (endpoint or "").rpartition("://")
    return ArrowFSWrapper(
        S3FileSystem(
            endpoint_override=host or None, scheme=scheme or None, connect_timeout=TIMEOUT_S, request_timeout=TIMEOUT_S
        )
    )


def is_http(url: str) -> bool:
    """Return whether a URL is http or https."""
    return url.lower().startswith(("http://", "https://"))


def _http_options() -> dict[str, Any]:
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=CLIP_TIMEOUT_S, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
    return {"client_kwargs": {"timeout": timeout, "auto_decompress": False}, "max_redirects": 1}  # 1 allows none


class _Silent:
    """The servers that recently did not respond: how often in a row, and until when they are not contacted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}

    def check(self, server: str) -> None:
        """Raise ConnectionError for a server that is currently not contacted."""
        with self._lock:
            count, until = self._failures.get(server, (0, 0.0))
        if count >= MAX_TRIES and time.monotonic() < until:
            raise ConnectionError(f"{server} did not respond {count} times in a row; not retrying for a while")

    def note(self, server: str, answered: bool) -> None:
        """Record whether a server responded."""
        with self._lock:
            if answered:
                self._failures.pop(server, None)
            else:
                count, _ = self._failures.get(server, (0, 0.0))
                self._failures[server] = (count + 1, time.monotonic() + REST_S)


SILENT = _Silent()


@contextmanager
def asking(url: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """Yield the store of a URL and the path in it, and convert every failure of the store to an OSError.

    Raises
    ------
    OSError
        The store fails, or its server is currently not contacted; FileNotFoundError: there is no such object, or this
        process may only read files (`CLAPCUR_AUDIO_FOLDERS`).
    DataError
        See `filesystem`.
    """
    if confined_to() is not None:
        raise FileNotFoundError(url)
    store, path = filesystem(url)
    server = "/".join(url.split("/", 3)[:3])  # scheme and host, or bucket
    SILENT.check(server)
    try:
        yield store, path
    except Exception as error:
        # fsspec reports "not found" for any failure to get an object's size
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        SILENT.note(server, answered=not _is_silence(cause))
        if _is_silence(cause):
            raise ConnectionError(f"{server} does not respond ({type(cause).__name__})") from None
        if "TooManyRedirects" in _kinds(cause):
            raise OSError("the server redirects to another URL, which is not followed; give that URL instead") from None
        if isinstance(error, FileNotFoundError) and getattr(cause, "status", 404) != 404:
            raise OSError(f"{server} fails: {cause}") from None
        if isinstance(error, (OSError, ValueError, EOFError, ClapcurError, pa.ArrowException)):
            raise
        raise OSError(f"{server} fails: {type(error).__name__}: {error}") from error
    SILENT.note(server, answered=True)


def _is_silence(error: BaseException) -> bool:
    """Return whether a server did not respond at all; the stores' libraries have no common error for it."""
    return (
        isinstance(error, (TimeoutError, ConnectionError, socket.gaierror))
        or "ClientConnectionError" in _kinds(error)
        or "AWS Error NETWORK_CONNECTION" in str(error)
    )


def _kinds(error: BaseException) -> set[str]:
    """Return the names of an error's classes; aiohttp's are recognised by name, since it need not be installed."""
    return {kind.__name__ for kind in type(error).__mro__}


@contextmanager
def open_object(url: str, whole: bool = False) -> Iterator[Any]:
    """Open an object of a store; only the bytes that are read are requested.

    With `whole`, for reading from start to end, web servers that do not support range requests work too.
    """
    options: dict[str, Any] = {"cache_type": "none"}
    if whole and is_http(url):
        options["block_size"] = 0  # makes fsspec stream one response
    with asking(url) as (store, path), store.open(path, "rb", **options) as file:
        yield file


@contextmanager
def open_container(container: str) -> Iterator[BinaryIO]:
    """Open a tar for listing; an object is read in blocks as they are needed, none of them twice."""
    if not is_url(container):
        with io.BufferedReader(open_regular(container)) as file:
            yield file
        return
    with asking(container) as (store, path), io.BufferedReader(_Object(store, path), BLOCK_BYTES) as file:
        yield file


class _Object(io.RawIOBase):
    """An object of a store as a standard file: the file objects of stores differ in what they support."""

    def __init__(self, store: fsspec.AbstractFileSystem, path: str) -> None:
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
        if self._position >= self._size:  # some stores cannot seek there
            return 0
        self._file.seek(self._position)
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
