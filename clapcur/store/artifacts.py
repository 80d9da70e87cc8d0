"""Artifacts: the results of stages, named by the hash of everything that produced them.

An artifact is a folder ``<store>/<kind>/<id>/`` with payload files and ``record.json``. The record is written last
and atomically: it marks the artifact as finished and is authoritative (inputs by role, config, counts, digests of every
payload file, versions, duration). A folder without a record is work in progress, never an artifact. The id is the
first 12 digits of the key's SHA-256; the record contains the whole digest, which is compared on every hit.

A folder whose record is damaged is not an artifact either: it is reported in a warning, skipped, and moved aside when
the artifact is recomputed. The payload is hashed when a process first uses an artifact (`damaged_files`,
`check_payload`), so that a flipped bit is found before it affects a computation.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clapcur.config import canonical, canonical_json, signature
from clapcur.errors import ArtifactError, DamagedArtifact
from clapcur.store.record import RECORD, Outcome, Record, checked_record, read_record, signed

WORK = "work"  # sub-folder of an unfinished artifact: parts and training state, deleted after the record is written
LOST = "lost.json"  # record of an artifact whose payload was damaged, until it is recomputed
ANCESTOR = "ancestor."  # prefix of the role of an indirect input: the stage reads it, but it is not shown
LOCATIONS = "locations.parquet"  # where clips are on this machine: replaceable, so not part of the payload's digests
HISTORY = "history.jsonl"  # of a training: one line of metrics per step
TIMES = "times.jsonl"  # time and speed of each step: they differ between equal runs, so not in the digests either
ASIDE = ".aside"  # suffix of a folder that was moved aside because its record is damaged
SETTLED_S = 2.0  # seconds; a file that changed more recently may change again under the same time stamp

log = logging.getLogger("clapcur")
_hashes: dict[tuple[int, ...], str] = {}  # of files that this process hashed, by device, inode, change time and size
_named: set[str] = set()  # damaged records that were reported in a warning


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its kind, its id (12 hexadecimal digits) and its folder."""

    kind: str
    id: str
    uri: str

    @property
    def path(self) -> Path:
        """The artifact's folder."""
        return Path(self.uri)

    @property
    def is_made(self) -> bool:
        """Whether the artifact is in the store; planned ones in a dry run are not (`clapcur.store.dry_run`)."""
        return True

    @property
    def record(self) -> Record:
        """The content of ``record.json``."""
        return read_record(self.path)


PLANNED: ContextVar[Mapping[str, Artifact]] = ContextVar("planned", default=MappingProxyType({}))  # by a dry run


@dataclass(frozen=True)
class Key:
    """What identifies an artifact: stage and version, resolved config, input ids by role."""

    kind: str
    stage: str
    version: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole key."""
        return signature(
            {
                "kind": self.kind,
                "stage": self.stage,
                "version": self.version,
                "config": self.config,
                "inputs": self.inputs,
            }
        )

    @property
    def id(self) -> str:
        """The artifact's name: the first 12 digits of `sha256`."""
        return self.sha256[:12]


@dataclass(frozen=True)
class Stage:
    """A function from artifacts to one artifact, with a version that is raised by hand when its results change."""

    name: str
    version: str
    kind: str
    compute: Callable[[Mapping[str, Artifact], Any, "Workspace"], Outcome]

    def key(self, config: Any, inputs: Mapping[str, Artifact]) -> Key:
        """Return the key of the artifact that this stage would compute."""
        ids = {role: artifact.id for role, artifact in sorted(inputs.items())}
        return Key(self.kind, self.name, self.version, canonical(config), ids)


Spread = Callable[[Callable[[Sequence[int]], Any], Sequence[int]], list[Any]]
"""Does work on parts by their numbers, all here or divided among workers: the answers of each share, in any order."""


def here(work: Callable[[Sequence[int]], Any], parts: Sequence[int]) -> list[Any]:
    """Process all parts in this process."""
    return [work(parts)]


@dataclass
class Workspace:
    """Where a stage writes: the artifact's own folder, before its record exists.

    A long stage writes numbered parts and marks each with `mark_done`; a restart finds the marks and repeats at most
    one part. `scratch` is deleted when the artifact is finished. Independent parts may be computed elsewhere: `spread`
    distributes them to workers that share the store.
    """

    path: Path
    key: Key
    on_step: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    spread: Spread = here
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        """A folder for parts and state that survive a kill and are deleted by the commit."""
        folder = self.path / WORK
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_done(self, part: str) -> bool:
        """Return whether this part was finished by an earlier, interrupted run."""
        return (self.scratch / f"{part}.done").exists()

    def mark_done(self, part: str) -> None:
        """Mark this part as complete and on disk."""
        write_atomic(self.scratch / f"{part}.done", b"")

    def unmark(self, part: str) -> None:
        """Mark this part as not done, so that it is recomputed."""
        (self.scratch / f"{part}.done").unlink(missing_ok=True)


NO_WRITE = {  # errors of a disk that accepts no more data
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the maximum file size is reached",
    errno.EROFS: "the disk is read-only",
}
NO_WRITE_TEXTS = {  # the same errors from libraries that keep only the message (SQLite, safetensors, PyTorch)
    "No space left on device": errno.ENOSPC, "os error 28": errno.ENOSPC, "database or disk is full": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT, "os error 122": errno.EDQUOT,
    "File too large": errno.EFBIG, "os error 27": errno.EFBIG,
    "Read-only file system": errno.EROFS, "os error 30": errno.EROFS, "readonly database": errno.EROFS,
}  # fmt: skip


def why_not_written(error: BaseException, folder: Path | None = None) -> str | None:
    """Explain why a write failed if the disk is the cause; return None for every other error.

    Missing permissions count only below `folder`: elsewhere the file may have been opened for reading.
    """
    if isinstance(error, OSError):
        if error.errno in NO_WRITE:
            return NO_WRITE[error.errno]
        if (
            error.errno in (errno.EACCES, errno.EPERM)
            and folder
            and isinstance(error.filename, (str, bytes, os.PathLike))
        ):
            is_below = Path(os.fsdecode(error.filename)).absolute().is_relative_to(folder.absolute())
            return "no write permission" if is_below else None
    return next((NO_WRITE[code] for text, code in NO_WRITE_TEXTS.items() if text in str(error)), None)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file atomically: readers see the old content or the new, even if the process is killed.

    Several processes, also on different machines, may write the same file at once: the last one to finish wins.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk it would keep occupying space
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable in case of a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_once(path: Path) -> str:
    """Return a file's SHA-256; the file is not read again if it has not changed since this process last hashed it."""
    now = path.stat()
    known = (now.st_dev, now.st_ino, now.st_ctime_ns, now.st_size)
    if known not in _hashes:
        found = sha256_file(path)
        if time.time() - now.st_ctime < SETTLED_S:
            return found
        _hashes[known] = found
    return _hashes[known]


def _name_damage(damage: DamagedArtifact) -> None:
    """Log a warning about a damaged artifact, once per process."""
    if str(damage) not in _named:
        _named.add(str(damage))
        log.warning("%s", damage)


def check_payload(folder: Path) -> None:
    """Compare the payload of an artifact with its record; a folder without a record is not checked.

    An unchanged file that this process has hashed before is not read again.

    Raises
    ------
    DamagedArtifact
        A file is missing or has changed, or the record is damaged.
    """
    if not (folder / RECORD).exists():
        return
    record = checked_record(folder)
    if damaged := damaged_files(folder, record):
        raise DamagedArtifact(
            f"the {record.kind} {record.id} is damaged: {', '.join(damaged)} in {folder} changed after it was "
            f"written; `clapcur verify {record.id}` shows how to recompute it"
        )


class Store:
    """A folder of artifacts. It is authoritative: the catalog and MLflow can be rebuilt from it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def folder(self, kind: str, artifact_id: str) -> Path:
        """Return the folder of an artifact with this id, whether or not it exists."""
        return self.root / kind / artifact_id

    def get(self, key: Key, verify: bool = False, discard: bool = True) -> Artifact | None:
        """Return the finished artifact of this key, or None if it must be (re)computed.

        Every payload file must exist with its recorded size and hash; a missing or changed file is a miss.

        Parameters
        ----------
        key : Key
        verify : bool
            Also hash files that this process has hashed before.
        discard : bool
            Remove the record of a damaged artifact, so that no other process takes it for finished; for a caller that
            is about to recompute it.
        """
        folder = self.folder(key.kind, key.id)
        if not (folder / RECORD).exists():
            return None
        try:
            record = read_record(folder)
            if record.key_sha256 != key.sha256:
                raise ArtifactError(
                    f"{folder} has a different key with the same first 12 digits; move it away and run again"
                )
            record = checked_record(folder)
        except DamagedArtifact as damage:
            _name_damage(damage)
            return None
        if damaged := damaged_files(folder, record, verify):
            if discard:
                log.warning("%s %s is damaged and is recomputed: %s", key.kind, key.id, ", ".join(damaged))
                write_atomic(folder / LOST, json.dumps({"files": damaged, "record": record.to_dict()}))
                (folder / RECORD).unlink()
            return None
        if discard:
            _tidy(folder)
        return Artifact(key.kind, key.id, str(folder))

    def find(self, artifact_id: str) -> Artifact:
        """Return the artifact whose id starts with `artifact_id` (at least 4 digits).

        Raises
        ------
        ArtifactError
            No artifact matches, or more than one.
        DamagedArtifact
            The record of the artifact is damaged.
        """
        if len(artifact_id) < 4:
            raise ArtifactError(f"expected at least 4 of the 12 digits of an artifact id, got {artifact_id!r}")
        if artifact_id in PLANNED.get():
            return PLANNED.get()[artifact_id]
        found = [path.parent for path in self.root.glob(f"*/{artifact_id}*/{RECORD}")]
        if len(found) != 1:
            names = ", ".join(f"{path.parent.name} {path.name}" for path in found) or "none"
            raise ArtifactError(
                f"expected one artifact whose id starts with {artifact_id!r} in {self.root}, found {names}"
            )
        read_record(found[0])
        return Artifact(found[0].parent.name, found[0].name, str(found[0]))

    def __iter__(self) -> Iterator[Artifact]:
        """Yield every finished artifact, in the order in which they were finished."""
        return self.of_kind("*")

    def of_kind(self, kind: str) -> Iterator[Artifact]:
        """Yield every finished artifact of a kind, in the order in which they were finished.

        An artifact whose record is damaged is reported in a warning and skipped.
        """
        found = []
        for path in self.root.glob(f"{kind}/*/{RECORD}"):
            if path.parent.name.startswith("."):  # being deleted, or set aside
                continue
            try:
                found.append((read_record(path.parent).finished, path.parent.name, path.parent))
            except DamagedArtifact as damage:
                _name_damage(damage)
        for _, name, folder in sorted(found):
            yield Artifact(folder.parent.name, name, str(folder))

    def damaged_records(self) -> dict[Path, str]:
        """Return the folders whose record is damaged, with what is wrong with each."""
        found = {}
        for path in sorted(self.root.glob(f"*/*/{RECORD}")):
            if not path.parent.name.startswith("."):
                try:
                    checked_record(path.parent)
                except DamagedArtifact as damage:
                    found[path.parent] = str(damage)
        return found

    def open(self, key: Key) -> Workspace:
        """Return the workspace in which an artifact is computed or resumed.

        A folder whose record is damaged is moved aside: its files cannot be distinguished from those of another run.
        """
        folder = self.folder(key.kind, key.id)
        try:
            if (folder / RECORD).exists():
                checked_record(folder)
        except DamagedArtifact:
            folder.rename(folder.with_name(f".{key.id}-{uuid.uuid4().hex[:8]}{ASIDE}"))
        folder.mkdir(parents=True, exist_ok=True)
        return Workspace(folder, key)

    def commit(
        self, work: Workspace, outcome: Outcome, started: float, *, tags: Mapping[str, Any] | None = None,
        campaign: Mapping[str, Any] | None = None,
    ) -> Artifact:  # fmt: skip
        """Finish an artifact: hash the payload, write the record, delete the scratch folder.

        Parameters
        ----------
        work : Workspace
        outcome : Outcome
        started : float
            Unix time in seconds at which the work began.
        tags, campaign : mapping, optional
            As in `Record`.
        """
        previous = _lost_files(work.path / LOST)
        _give_plain_modes(work.path)
        for leftover in work.path.rglob(".*.tmp"):  # from a process that was killed while writing
            leftover.unlink(missing_ok=True)
        files = {
            str(path.relative_to(work.path)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(work.path.rglob("*"))
            if path.is_file() and _is_payload(path.relative_to(work.path))
        }
        record = {
            "kind": work.key.kind,
            "id": work.key.id,
            "key_sha256": work.key.sha256,
            "stage": work.key.stage,
            "version": work.key.version,
            "config": work.key.config,
            "inputs": work.key.inputs,
            "started": started,
            "finished": time.time(),
            "counts": outcome.counts,
            "metrics": outcome.metrics,
            "tags": tags or {},
            "campaign": campaign,
            **outcome.facts,
            "environment": work.environment,
            "files": files,
        }
        if previous is not None:
            digests = {name: entry["sha256"] for name, entry in files.items()}
            record["recomputed"] = {"identical": digests == previous}
            if digests != previous:
                log.warning(
                    "%s %s was recomputed and differs from before in %s", work.key.kind, work.key.id,
                    ", ".join(sorted(name for name, _ in previous.items() ^ digests.items())),
                )  # fmt: skip
        for folder in {path.parent for path in work.path.rglob("*")} | {work.path}:
            sync_folder(folder)
        write_atomic(work.path / RECORD, json.dumps(signed(record), indent=1))
        _tidy(work.path)  # not earlier: a kill while hashing must not lose the work
        return Artifact(work.key.kind, work.key.id, str(work.path))


def _is_payload(path: Path) -> bool:
    """Return whether a file in an artifact's folder belongs to the payload (not scratch or a partly written file)."""
    return path.parts[0] not in (RECORD, LOCATIONS, TIMES, LOST, WORK) and not path.name.startswith(".")


def _lost_files(path: Path) -> dict[str, str] | None:
    """Return the digests that a damaged artifact had when it was intact; None if they are unknown."""
    try:
        files = json.loads(path.read_bytes())["record"]["files"]
        return {name: entry["sha256"] for name, entry in files.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _give_plain_modes(folder: Path) -> None:
    """Give all files the mode of a new file: files that a library wrote as temporary files have mode 0600."""
    probe = folder / f".{uuid.uuid4().hex[:12]}.tmp"
    with open(probe, "wb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def _tidy(folder: Path) -> None:
    """Remove files that are no longer needed from a finished artifact."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    (folder / LOST).unlink(missing_ok=True)


def damaged_files(folder: Path, record: Record, verify: bool = False) -> list[str]:
    """List the payload files that are missing, or whose size or hash differs from the record.

    Parameters
    ----------
    folder : Path
        Folder of the artifact.
    record : Record
    verify : bool
        Also hash files that this process has hashed before.

    Returns
    -------
    list of str
        Paths within the folder.

    Raises
    ------
    OSError
        A file cannot be read; after a disk failure (EIO), the file counts as damaged instead.
    """
    digest = sha256_file if verify else _sha256_once

    def is_damaged(name: str, entry: Mapping[str, Any]) -> bool:
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return True
        try:
            return digest(path) != entry["sha256"]
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return True

    return [name for name, entry in record.files.items() if is_damaged(name, entry)]


def explain_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> list[str]:
    """List the values in which two nested mappings differ, as ``path: ours -> theirs``.

    Parameters
    ----------
    ours, theirs : mapping
    path : str
        Prefix of every line: the name of what is compared.
    """
    lines = []
    for name in sorted(set(ours) | set(theirs)):
        here = f"{path}.{name}" if path else name
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += explain_difference(one, other, here)
        elif canonical_json(one) != canonical_json(other):
            lines.append(f"{here}: {one!r} -> {other!r}")
    return lines
