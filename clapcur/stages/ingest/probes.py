"""Probe every file once, in parallel, and cache the answers in a SQLite file between runs.

The cache is only a cache: an answer is valid for one path, size, modification time and set of rules, and a lost or
broken cache file only costs time. It is written every `CHUNK` clips, so a killed ingest resumes where it stopped.
"""

import dataclasses
import json
import os
import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from clapcur.audio import ClipInfo, ProbeRules, Problem, addresses, probe, stores
from clapcur.audio.stores import Stamp
from clapcur.config import signature
from clapcur.progress import progress
from clapcur.stages.ingest.shards import Listing

CHUNK = 256  # clips between two commits, about a second of work
VERSION = 2  # of the answers of `probe`; raise it when they change
PASSING = ("missing", "unreadable", "too_large")  # may change: a network comes back, a limit is raised
Answer = ClipInfo | Problem
T = TypeVar("T")


def probe_all(
    paths: Sequence[str],
    rules: ProbeRules,
    *,
    num_workers: int = 0,
    cache: Path | None = None,
    stamps: Mapping[str, Stamp] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Answer]:
    """Probe files.

    Parameters
    ----------
    paths : sequence of str
        Absolute addresses without duplicates; those in one container are adjacent.
    rules : ProbeRules
    num_workers : int
        Number of threads; 0: one per CPU.
    cache : Path or None
        SQLite file that caches answers; None: no cache.
    stamps : mapping or None
        Known stamps of containers.
    on_progress : callable or None
        Called with (done, total) after each chunk is on disk.

    Returns
    -------
    dict
        path -> ClipInfo or Problem.
    """
    answers: dict[str, Answer] = {}
    known_stamps: dict[str, Stamp | None] = dict(stamps or {})  # one request per container, not per clip

    def stamp_of(path: str) -> Stamp | None:
        container = addresses.container_of(path)
        if container not in known_stamps:
            known_stamps[container] = stores.stamp(container)
        return known_stamps[container]

    with (
        ProbeCache(cache, rules) as memory,
        ThreadPoolExecutor(num_workers or os.cpu_count(), thread_name_prefix="probe") as pool,
        progress("probe", len(paths), "clips") as advance,
    ):
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            taken = {path: stamp for path in chunk if (stamp := stamp_of(path)) is not None}  # before it is read
            known = memory.recall(taken)
            advance(len(known))
            todo = [path for path in chunk if path not in known]
            new = {}
            for path, answer in zip(todo, pool.map(partial(probe, rules=rules), todo), strict=True):
                new[path] = answer
                advance()
            memory.remember({path: (taken[path], new[path]) for path in new if path in taken and _lasts(new[path])})
            answers |= known | new
            if on_progress is not None:
                on_progress(len(answers), len(paths))
    return answers


def _lasts(answer: Answer) -> bool:
    """Return whether an answer depends only on the content of a file, and is valid until that changes."""
    return isinstance(answer, ClipInfo) or answer.reason not in PASSING


class ProbeCache:
    """Cache of answers by path, size, modification time and rules; inactive without a path or if SQLite fails."""

    def __init__(self, path: Path | None, rules: ProbeRules) -> None:
        self._path = path
        self._rules = signature(
            {"version": VERSION, "rules": dataclasses.asdict(rules)}
        )  # including rules that are not part of a manifest's identity
        self._connection: sqlite3.Connection | None = None
        if path is not None:
            self._attempt(lambda connection: None)

    def recall(self, stamps: Mapping[str, Stamp]) -> dict[str, Answer]:
        """Return the answers that are still valid for these files."""

        def read(connection: sqlite3.Connection) -> dict[str, Answer]:
            found: dict[str, Answer] = {}
            for path, stamp in stamps.items():
                row = connection.execute(
                    "SELECT size, mtime_ns, answer FROM probes WHERE path = ? AND rules = ?", (path, self._rules)
                ).fetchone()
                if row and row[:2] == stamp:
                    values = json.loads(row[2])
                    found[path] = Problem(**values) if "reason" in values else ClipInfo(**values)
            return found

        return self._attempt(read) or {}

    def remember(self, answers: Mapping[str, tuple[Stamp, Answer]]) -> None:
        """Store answers; they are on disk when this returns."""
        rows = [
            (path, self._rules, *stamp, json.dumps(dataclasses.asdict(answer)))
            for path, (stamp, answer) in answers.items()
        ]

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("REPLACE INTO probes VALUES (?, ?, ?, ?, ?)", rows)

        if rows:
            self._attempt(write)

    def listing(self, path: str, stamp: Stamp | None, make: Callable[[], Listing]) -> Listing:
        """Return the listing of a tar in an object store: cached if the object has not changed, else from `make`.

        Listing a tar in an object store reads most of it; on a disk, only the headers.

        Parameters
        ----------
        path : str
            Address of the tar.
        stamp : Stamp or None
            Stamp of the object; None: request it from the store.
        make : callable
            Lists the tar.

        Returns
        -------
        Listing
        """
        if not addresses.is_url(path) or (stamp := stamp or stores.stamp(path)) is None:
            return make()
        place = (path, *stamp)

        def read(connection: sqlite3.Connection) -> str | None:
            row = connection.execute(
                "SELECT listing FROM listings WHERE path = ? AND size = ? AND changed = ?", place
            ).fetchone()
            return None if row is None else str(row[0])

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.execute("REPLACE INTO listings VALUES (?, ?, ?, ?)", (*place, text))

        if (known := self._attempt(read)) and (remembered := Listing.from_json(known)):
            return remembered
        listing = make()
        if not any(reason in PASSING for _, reason, _ in listing.bad):
            text = json.dumps(dataclasses.asdict(listing))
            self._attempt(write)
        return listing

    def _attempt(self, action: Callable[[sqlite3.Connection], T]) -> T | None:
        """Run `action`; a broken file is deleted once, and any other failure disables the cache for this run."""
        for is_second in (False, True):
            if self._path is None:
                break
            try:
                self._connection = self._connection or self._connect(self._path)
                return action(self._connection)
            except (sqlite3.Error, OSError) as error:
                self._close()
                is_broken = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
                if is_broken and not is_second:
                    warnings.warn(f"{self._path} is damaged ({error}) and is rebuilt", stacklevel=2)
                    self._path.unlink(missing_ok=True)
                else:
                    warnings.warn(f"{self._path} cannot be used ({error}); files are probed again", stacklevel=2)
                    self._path = None
        return None

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=30)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS probes (path TEXT, rules TEXT, size INTEGER, mtime_ns INTEGER, answer TEXT, "
            "PRIMARY KEY (path, rules)) WITHOUT ROWID"
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS listings (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, listing TEXT)"
        )
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> "ProbeCache":
        """Return the cache."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        self._close()
