"""Which addresses may be read, and opening those that are files.

The column of paths of a table is often somebody else's text. Without a rule, it makes this machine read any file and
ask any host that it reaches. So a table names clips under *roots* only: folders, and URLs of object stores. An ingest
has its roots in its config. `CLAPCUR_AUDIO_FOLDERS` holds for everything that a process reads: where it is set, no URL
is read, and a file outside of these folders is answered like one that does not exist.
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

VARIABLE = "CLAPCUR_AUDIO_FOLDERS"  # absolute, separated by colons as in PATH
# What fsspec builds on top of other stores, or reads from this machine: each would lead around the roots.
NO_STORE = frozenset(
    "asyncwrapper asynclocal blockcache cached dask data dir file filecache generic git jlab jupyter libarchive local"
    " reference simplecache tar zip".split()
)


@dataclass(frozen=True)
class Roots:
    """Folders and URLs under which clips may be read."""

    folders: tuple[str, ...] = ()
    # as they really are, without symbolic links
    urls: tuple[str, ...] = ()

    @classmethod
    def of(cls, roots: Iterable[str]) -> "Roots":
        """Return the roots that a config or the environment names.

        Raises
        ------
        ValueError
            A folder is relative, or a URL is not that of a store.
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
        """Return why an absolute address may not be read; "" where it may."""
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
        """Return whether a path without symbolic links is in one of the folders."""
        return any(root == "/" or path == root or path.startswith(f"{root}/") for root in self.folders)


def what_is_wrong_with(url: str) -> str:
    """Return why a URL is not that of an object in a store; "" where it may be one."""
    scheme, _, rest = url.partition("://")
    if any(one < " " or one == "\x7f" for one in url):  # readers of URLs drop them: .<tab>. would become ..
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
    """Return a URL with scheme and host in lower case, which they are compared in, and no / at its end."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host.lower()}{slash}{path}".rstrip("/") if rest else f"{scheme.lower()}://"


def confined_to() -> Roots | None:
    """Return the folders that `CLAPCUR_AUDIO_FOLDERS` confines this process to; None where it is not set.

    Raises
    ------
    DataError
        It names something else than absolute folders.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        return None
    folders = [folder for folder in given.split(os.pathsep) if folder]
    if wrong := [folder for folder in folders if not os.path.isabs(folder)]:
        raise DataError(f"{VARIABLE} must name absolute folders, separated by {os.pathsep}, got {wrong[0]!r}")
    return Roots.of(folders)


def open_regular(path: str) -> FileIO:
    """Open a regular file, unbuffered; a pipe is not waited for, and a device is not touched.

    Raises
    ------
    FileNotFoundError
        There is no such file. Where this process is confined to folders, the same answer is given for all that is
        elsewhere, is no regular file or may not be read.
    OSError
        It is a folder, a pipe, a device or a socket, or may not be read.
    """
    if "\0" in path:  # a ValueError of every call to the system
        raise FileNotFoundError(path)
    roots = confined_to()
    if roots is None:
        return _open_if_regular(path)
    if roots.holds(os.path.realpath(path)):
        with suppress(OSError):
            file = _open_if_regular(path)
            # A link may have changed since it was looked at: what counts is what was opened.
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
