"""Which addresses may be read, and opening those that are files.

The paths in a table often come from others. Unrestricted, they could make this machine read any file and contact any
host that it reaches. A table may therefore refer only to clips under *roots*: folders, and URLs of object stores. An
ingest has its roots in its config. `CLAPCUR_AUDIO_FOLDERS` applies to everything that a process reads: if it is set, no
URL is read, and a file outside these folders is reported as missing.
"""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from urllib.parse import unquote

from clapcur.audio.addresses import container_of, is_url
from clapcur.errors import DataError

VARIABLE = "CLAPCUR_AUDIO_FOLDERS"  # absolute folders, separated by colons as in PATH
# Protocols of fsspec that wrap other stores or read from this machine: each would bypass the roots.
NO_STORE = frozenset(
    "asyncwrapper asynclocal blockcache cached dask data dir file filecache generic git jlab jupyter libarchive local"
    " reference simplecache tar zip".split()
)


@dataclass(frozen=True)
class Roots:
    """Folders and URLs under which clips may be read."""

    folders: tuple[str, ...] = ()
    # with symbolic links resolved
    urls: tuple[str, ...] = ()

    @classmethod
    def of(cls, roots: Iterable[str]) -> "Roots":
        """Return the roots given in a config or in the environment.

        Raises
        ------
        ValueError
            A folder is relative, or a URL is not one of an object store.
        """
        folders, urls = [], []
        for root in roots:
            if is_url(root):
                if said := what_is_wrong_with(root):
                    raise ValueError(f"the root {root!r} cannot be used: {said}")
                urls.append(_comparable(root))
            elif os.path.isabs(root):
                folders.append(os.path.realpath(root))
            else:
                raise ValueError(f"a root must be an absolute folder or a URL such as s3://bucket/pool/, got {root!r}")
        return cls(tuple(folders), tuple(urls))

    def refusal(self, address: str) -> str:
        """Return why an absolute address may not be read; "" if it may."""
        container = container_of(address)
        if is_url(container):
            if said := what_is_wrong_with(container):
                return said
            url = _comparable(container)
            if any(url == root or url.startswith(root if root.endswith("/") else f"{root}/") for root in self.urls):
                return ""
            return "its URL is under none of the allowed roots; add its folder to `roots` if you trust it"
        if "\0" in container:
            return "its name has a NUL character, which is not allowed in file names"
        if self.holds(os.path.realpath(container) if self.folders != ("/",) else container):
            return ""
        return "it is in none of the allowed folders (`roots`)"

    def holds(self, path: str) -> bool:
        """Return whether a path with symbolic links resolved is in one of the folders."""
        return any(root == "/" or path == root or path.startswith(f"{root}/") for root in self.folders)


def what_is_wrong_with(url: str) -> str:
    """Return why a URL cannot be that of an object in a store; "" if it can."""
    scheme, _, rest = url.partition("://")
    if any(one < " " or one == "\x7f" for one in url):  # URL parsers drop them: .<tab>. would become ..
        return "its URL has control characters"
    if "::" in url:
        return "chained URLs are not supported; give the URL of the object itself"
    if scheme.lower() in NO_STORE:
        return f"{scheme.lower()}:// is not a supported object store" + (
            "; give only the path" if scheme.lower() in ("file", "local") else ""
        )
    if any(unquote(part) in (".", "..") for part in rest.replace("\\", "/").split("/")):
        return "its URL has . or .. as a path segment"
    return ""


def _comparable(url: str) -> str:
    """Return a URL with scheme and host in lower case and without a trailing /, for comparison."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host.lower()}{slash}{path}".rstrip("/") if rest else f"{scheme.lower()}://"


def confined_to() -> Roots | None:
    """Return the folders that `CLAPCUR_AUDIO_FOLDERS` confines this process to; None if it is not set.

    Raises
    ------
    DataError
        It contains something other than absolute folders.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        return None
    folders = [folder for folder in given.split(os.pathsep) if folder]
    if wrong := [folder for folder in folders if not os.path.isabs(folder)]:
        raise DataError(f"{VARIABLE} must name absolute folders, separated by {os.pathsep}, got {wrong[0]!r}")
    return Roots.of(folders)


def open_regular(path: str) -> FileIO:
    """Open a regular file, unbuffered, without waiting for a pipe or opening a device.

    Raises
    ------
    FileNotFoundError
        There is no such file. If this process is confined to folders, this error is also raised for a file that is
        elsewhere, is not a regular file or may not be read.
    OSError
        It is a folder, a pipe, a device or a socket, or may not be read.
    """
    if "\0" in path:  # every system call would raise ValueError
        raise FileNotFoundError(path)
    roots = confined_to()
    if roots is None:
        return _open_if_regular(path)
    if roots.holds(os.path.realpath(path)):
        with suppress(OSError):
            file = _open_if_regular(path)
            # A link may have changed since it was resolved: check the file that was opened.
            if roots.holds(os.readlink(f"/proc/self/fd/{file.fileno()}")):
                return file
            file.close()
    raise FileNotFoundError(path)


def _open_if_regular(path: str) -> FileIO:
    if stat.S_ISREG(os.stat(path).st_mode):
        file = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    raise OSError("not a file")
