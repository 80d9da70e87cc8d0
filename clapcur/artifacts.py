"""Artifacts: what a stage makes, named by the hash of everything that made it.

An artifact is a folder ``<store>/<kind>/<id>/`` with payload files and ``record.json``. The record is written last
and atomically: it is the done mark and the truth (inputs by role, config, counts, digests of every payload file,
versions, duration). A folder without a record is work in progress, never an artifact. The id is the first 12 digits
of the key's SHA-256; the record keeps the whole key, which is compared on every hit.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clapcur.config import canonical, canonical_json, signature
from clapcur.errors import ArtifactError

RECORD = "record.json"
WORK = "work"  # sub-folder of an unfinished artifact: parts and training state, gone when the record is written
LOST = "lost.json"  # record of an artifact whose payload was damaged, until it is made again
LOCATIONS = "locations.parquet"  # where clips lie on this machine: replaceable, so not part of the payload's digests


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its kind, its id (12 hexadecimal digits) and the folder that holds it."""

    kind: str
    id: str
    uri: str

    @property
    def path(self) -> Path:
        """The artifact's folder."""
        return Path(self.uri)

    @property
    def record(self) -> dict[str, Any]:
        """The content of ``record.json``."""
        return read_record(self.path)


@dataclass(frozen=True)
class Key:
    """What an artifact is made from: stage and version, resolved config, input ids by role."""

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
        """The artifact's name for people and folders."""
        return self.sha256[:12]


@dataclass(frozen=True)
class Stage:
    """A function from artifacts to one artifact, with the version that is bumped by hand when its results change."""

    name: str
    version: str
    kind: str
    compute: Callable[[Mapping[str, Artifact], Any, "Workspace"], dict[str, Any]]

    def key(self, config: Any, inputs: Mapping[str, Artifact]) -> Key:
        """Return the identity of what this stage would make."""
        ids = {role: artifact.id for role, artifact in sorted(inputs.items())}
        return Key(self.kind, self.name, self.version, canonical(config), ids)


Spread = Callable[[Callable[[Sequence[int]], Any], Sequence[int]], list[Any]]
"""Does work on parts by their numbers, all here or divided among workers: the answers of each share, in any order."""


def here(work: Callable[[Sequence[int]], Any], parts: Sequence[int]) -> list[Any]:
    """Do the work on all parts in this process."""
    return [work(parts)]


@dataclass
class Workspace:
    """Where a stage writes: the artifact's own folder, before its record exists.

    A long stage writes numbered parts and marks each with `mark_done`; a restart finds the marks and re-does at most
    one part. Everything in `scratch` is gone when the artifact is finished. Parts that do not need each other may be
    made elsewhere: `spread` hands them out, to workers that see the same store.
    """

    path: Path
    key: Key
    on_step: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    spread: Spread = here
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        """A folder for parts and state that survive a kill and vanish with the commit."""
        folder = self.path / WORK
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_done(self, part: str) -> bool:
        """Tell whether this part was finished by an earlier, interrupted run."""
        return (self.scratch / f"{part}.done").exists()

    def mark_done(self, part: str) -> None:
        """Note that this part is complete and on disk."""
        write_atomic(self.scratch / f"{part}.done", b"")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a killed process, sees the old content or the new, never half of it.

    Two may write the same file at once, on two machines too: the last one to finish counts.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    with open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of the artifact in `folder`; ArtifactError if there is none."""
    try:
        return json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{folder} is not a finished artifact: it has no {RECORD}") from None


class Store:
    """A folder of artifacts. It is the truth; catalog and MLflow are made from it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def folder(self, kind: str, artifact_id: str) -> Path:
        """Return where an artifact of this name lies, or would lie."""
        return self.root / kind / artifact_id

    def get(self, key: Key, verify: bool = False) -> Artifact | None:
        """Return the finished artifact of this key, or None where it must be (re)computed.

        Every payload file must be there with its recorded size (`verify` re-hashes); lost bytes are a miss. The
        record of a damaged artifact is removed first, so that nobody else takes it for finished.
        """
        folder = self.folder(key.kind, key.id)
        if not (folder / RECORD).exists():
            return None
        record = read_record(folder)
        if record["key_sha256"] != key.sha256:
            raise ArtifactError(
                f"{folder} was made from another key that shares its first 12 digits; move it away and run again"
            )
        if damaged := damaged_files(folder, record, verify):
            write_atomic(folder / LOST, json.dumps({"files": damaged, "record": record}))
            (folder / RECORD).unlink()
            return None
        _tidy(folder)
        return Artifact(key.kind, key.id, str(folder))

    def find(self, artifact_id: str) -> Artifact:
        """Return the artifact whose id starts with `artifact_id` (at least 4 digits).

        Raises
        ------
        ArtifactError
            None, or more than one.
        """
        if len(artifact_id) < 4:
            raise ArtifactError(f"an artifact id has 12 digits, 4 at least are needed to find one, got {artifact_id!r}")
        found = [path.parent for path in self.root.glob(f"*/{artifact_id}*/{RECORD}")]
        if len(found) != 1:
            names = ", ".join(f"{path.parent.name} {path.name}" for path in found) or "none"
            raise ArtifactError(
                f"expected one artifact whose id starts with {artifact_id!r} in {self.root}, found {names}"
            )
        return Artifact(found[0].parent.name, found[0].name, str(found[0]))

    def __iter__(self) -> Iterator[Artifact]:
        """Yield every finished artifact, in the order in which they were made."""
        return self.of_kind("*")

    def of_kind(self, kind: str) -> Iterator[Artifact]:
        """Yield every finished artifact of a kind, in the order in which they were made."""
        folders = [path.parent for path in self.root.glob(f"{kind}/*/{RECORD}")]
        for folder in sorted(folders, key=lambda folder: (read_record(folder)["finished"], folder.name)):
            yield Artifact(folder.parent.name, folder.name, str(folder))

    def open(self, key: Key) -> Workspace:
        """Return the workspace of an artifact that is about to be made, or goes on being made."""
        folder = self.folder(key.kind, key.id)
        folder.mkdir(parents=True, exist_ok=True)
        return Workspace(folder, key)

    def commit(self, work: Workspace, outcome: Mapping[str, Any], started: float) -> Artifact:
        """Finish an artifact: digest the payload, write the record, drop the scratch.

        Parameters
        ----------
        work : Workspace
        outcome : mapping
            What the stage says of its result: ``counts``, ``metrics`` and whatever else belongs in the record.
        started : float
            Unix time in seconds at which the work began.
        """
        lost = work.path / LOST
        previous = json.loads(lost.read_text())["record"] if lost.exists() else None
        for leftover in work.path.rglob(".*.tmp"):  # of a process that was killed while it wrote
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
            **outcome,
            "environment": work.environment,
            "files": files,
        }
        if previous is not None:
            same = {name: entry["sha256"] for name, entry in previous["files"].items()} == {
                name: entry["sha256"] for name, entry in files.items()
            }
            record["recomputed"] = {"identical": same}
        for folder in {path.parent for path in work.path.rglob("*")} | {work.path}:
            sync_folder(folder)
        write_atomic(work.path / RECORD, json.dumps(record, indent=1))
        _tidy(work.path)  # not before: a kill while digesting must not cost the work
        return Artifact(work.key.kind, work.key.id, str(work.path))


def _is_payload(path: Path) -> bool:
    """Tell whether a file of an artifact's folder is what the stage made (and no scratch, no half-written file)."""
    return path.parts[0] not in (RECORD, LOCATIONS, LOST, WORK) and not path.name.startswith(".")


def _tidy(folder: Path) -> None:
    """Remove from a finished artifact what only its making needed."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    (folder / LOST).unlink(missing_ok=True)


def damaged_files(folder: Path, record: Mapping[str, Any], verify: bool = False) -> list[str]:
    """Name the payload files that are missing or have another size (with `verify`: another hash) than recorded."""

    def is_damaged(name: str, entry: Mapping[str, Any]) -> bool:
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return True
        return verify and sha256_file(path) != entry["sha256"]

    return [name for name, entry in record["files"].items() if is_damaged(name, entry)]


def explain_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> list[str]:
    """List the leaves in which two nested mappings differ, as ``path: ours -> theirs``."""
    lines = []
    for name in sorted(set(ours) | set(theirs)):
        here = f"{path}.{name}" if path else name
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += explain_difference(one, other, here)
        elif canonical_json(one) != canonical_json(other):
            lines.append(f"{here}: {one!r} -> {other!r}")
    return lines
