"""Object stores, read through fsspec: which store a URL means, and whether an object is still the same.

A server that does not answer costs seconds each time. After `MAX_TRIES` in a row it is left alone for `REST_S` seconds,
and all that it holds is answered at once with the reason.
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

BLOCK_BYTES = 2**22  # of an object that is listed
TIMEOUT_S = 10.0  # ours; to connect, and between two packets
CLIP_TIMEOUT_S = 300.0  # ours; for one request over HTTP as a whole
MAX_TRIES, REST_S = 3, 60.0  # ours
WHEN_CHANGED = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")  # as stores call it

Stamp = tuple[int, int]  # size in bytes, what changes with the content


def stamp(address: str) -> Stamp | None:
    """Return what tells that a file, object or container is still the same; None where nothing does."""
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

    Over HTTP no redirect is followed: where it leads to is the server's choice, and may be a host that only this
    machine reaches. Nor is a body unpacked, which may be small on the wire and fill the memory.

    Raises
    ------
    DataError
        The protocol is unknown or none of a store, or its package is not installed.
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
    """Return whether a URL is one of the web."""
    return url.lower().startswith(("http://", "https://"))


def _http_options() -> dict[str, Any]:
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=CLIP_TIMEOUT_S, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
    return {"client_kwargs": {"timeout": timeout, "auto_decompress": False}, "max_redirects": 1}  # 1 allows none


class _Silent:
    """The servers that did not answer lately: how often in a row, and until when they are left alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}

    def check(self, server: str) -> None:
        """Raise ConnectionError for a server that is left alone."""
        with self._lock:
            count, until = self._failures.get(server, (0, 0.0))
        if count >= MAX_TRIES and time.monotonic() < until:
            raise ConnectionError(f"{server} did not respond {count} times in a row; not retrying for a while")

    def note(self, server: str, answered: bool) -> None:
        """Take down whether a server answered."""
        with self._lock:
            if answered:
                self._failures.pop(server, None)
            else:
                count, _ = self._failures.get(server, (0, 0.0))
                self._failures[server] = (count + 1, time.monotonic() + REST_S)


SILENT = _Silent()


@contextmanager
def asking(url: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """Give the store of a URL and the path in it, and make every failure of the store an OSError.

    Raises
    ------
    OSError
        The store fails, or its server is left alone; FileNotFoundError: it has no such object, or this process reads
        files alone (`CLAPCUR_AUDIO_FOLDERS`).
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
        # fsspec says "not found" of whatever went wrong when an object's size was asked for
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
    """Return whether a server did not answer at all; the libraries of stores have no common error for it."""
    return (
        isinstance(error, (TimeoutError, ConnectionError, socket.gaierror))
        or "ClientConnectionError" in _kinds(error)
        or "AWS Error NETWORK_CONNECTION" in str(error)
    )


def _kinds(error: BaseException) -> set[str]:
    """Return the names of an error's classes: those of aiohttp, which need not be installed, are known by them."""
    return {kind.__name__ for kind in type(error).__mro__}


@contextmanager
def open_object(url: str, whole: bool = False) -> Iterator[Any]:
    """Open an object of a store; what is read is asked for when it is read, and nothing else is.

    Read as a `whole`, from its start to its end, it comes from web servers too that send no parts of files.
    """
    options: dict[str, Any] = {"cache_type": "none"}
    if whole and is_http(url):
        options["block_size"] = 0  # fsspec's word for one answer that is read as it comes
    with asking(url) as (store, path), store.open(path, "rb", **options) as file:
        yield file


@contextmanager
def open_container(container: str) -> Iterator[BinaryIO]:
    """Open a tar to be listed: an object in blocks, each asked for when it is reached, so that none is read twice."""
    if not is_url(container):
        with io.BufferedReader(open_regular(container)) as file:
            yield file
        return
    with asking(container) as (store, path), io.BufferedReader(_Object(store, path), BLOCK_BYTES) as file:
        yield file


class _Object(io.RawIOBase):
    """An object of a store as a file of the standard library: stores differ in how much of one theirs are."""

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
