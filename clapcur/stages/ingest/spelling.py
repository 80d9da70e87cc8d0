r"""Paths in tables that are spelled differently than on disk: written on Windows or a Mac, or by hand.

A path names the file with exactly that name. Only if there is none, the file is used whose path differs in leading or
trailing white space, ``\`` instead of ``/``, the Unicode form or the case of the suffix, provided it is the only one.
"""

import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from clapcur.audio import addresses


@dataclass
class Spelling:
    """Finds files by paths as written by people, relative to a folder."""

    base: str
    respelled: dict[str, str] = field(default_factory=dict)
    # as written -> as on disk
    near: dict[str, str] = field(default_factory=dict)
    # for files that were not found: as written -> a similar file
    _names: dict[str, frozenset[str]] = field(default_factory=dict)
    _by_spelling: dict[str, dict[tuple[str, str], list[str]]] = field(default_factory=dict)

    def find(self, written: str) -> str:
        """Return the path as it is on disk; if there is no such file, the written path without outer white space."""
        path = written.strip()
        if addresses.is_url(path) or addresses.is_url(self.base) or addresses.container_of(path) != path:
            return path
        for way in (written, path):
            if self._exists(way):
                return way
        found = self._walk(path.replace("\\", "/"))
        if found is None:
            return path
        self.respelled[path] = found
        return found

    def summary(self) -> list[str]:
        """Return lines for people about respelled and missing paths."""
        said = []
        for written, found in list(self.respelled.items())[:1]:
            number = len(self.respelled)
            said.append(f"{number} paths are spelled differently on disk, such as {written!r}, which is {found!r}")
        for written, found in list(self.near.items())[:1]:
            said.append(f"{len(self.near)} files are missing, such as {written!r}; did you mean {found!r}?")
        return said

    def _exists(self, path: str) -> bool:
        folder, name = os.path.split(os.path.join(self.base, path))
        return name in self._listing(folder) or name in ("", ".", "..")

    def _walk(self, path: str) -> str | None:
        """Return the path of a file with similarly spelled parts, matching one part after the other."""
        parts = PurePosixPath(path).parts
        found = PurePosixPath()
        for part in parts:
            folder = os.path.join(self.base, found)
            if not os.path.lexists(os.path.join(folder, part)):
                alike = self._alike(folder)
                same = alike.get(("same", _plain(part)), [])
                if len(same) != 1:
                    nearly = alike.get(("near", part.casefold()), [])
                    if len(nearly) == 1 and part == parts[-1]:
                        self.near[path] = str(found / nearly[0])
                    return None
                part = same[0]
            found /= part
        return str(found)

    def _alike(self, folder: str) -> dict[tuple[str, str], list[str]]:
        """Return the names in a folder by possible spellings, of the same file or of a similar one."""
        if folder not in self._by_spelling:
            found: dict[tuple[str, str], list[str]] = {}
            for name in sorted(self._listing(folder)):
                near = {name.casefold(), os.path.splitext(name)[0].casefold()}
                for way in (("same", _plain(name)), *(("near", text) for text in near)):
                    found.setdefault(way, []).append(name)
            self._by_spelling[folder] = found
        return self._by_spelling[folder]

    def _listing(self, folder: str) -> frozenset[str]:
        """Return the names in a folder, listed once, because checking a million files one by one takes minutes."""
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]


def _plain(name: str) -> str:
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name).strip())
    return stem + suffix.casefold()
