"""The record of an artifact, ``record.json``: its inputs, config and environment, and its results.

It is written last and atomically, so that it also marks the artifact as finished. Since its second schema it contains
its schema version and a digest of its content.
"""

import errno
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clapcur.errors import ArtifactError, DamagedArtifact

if TYPE_CHECKING:
    from clapcur.store.artifacts import Key

RECORD = "record.json"
SCHEMA = 2  # version of the layout of a record
REQUIRED: Mapping[str, type | tuple[type, ...]] = {
    "kind": str, "id": str, "key_sha256": str, "stage": str, "version": str, "config": dict, "inputs": dict,
    "started": (int, float), "finished": (int, float), "files": dict,
}  # fmt: skip
OPTIONAL: Mapping[str, type | tuple[type, ...]] = {
    "counts": dict, "metrics": dict, "tags": dict, "environment": dict, "campaign": (dict, type(None)),
    "recomputed": dict,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage reports about its result; it is stored in the record."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """How many of what, such as clips and pairs."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Figures that are drawn and compared."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is said of this kind of artifact, as JSON, such as the ``quarantine`` of a manifest."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of ``record.json``."""

    kind: str
    id: str
    key_sha256: str
    stage: str
    version: str
    """Of the stage."""
    config: Mapping[str, Any]
    """Of the stage, in its canonical form."""
    inputs: Mapping[str, str]
    """Ids by role."""
    started: float = 0.0
    """Unix time, in seconds."""
    finished: float = 0.0
    """Unix time, in seconds."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Size (``bytes``) and ``sha256`` of every file of the payload, by its path in the folder."""
    counts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)
    """What the artifact is in the experiment that it was made for: role, row, seed."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions, platform and commit that it was made with."""
    campaign: Mapping[str, Any] | None = None
    """The experiment that it was made for, as `clapcur.store.catalog.Campaign` has it."""
    recomputed: Mapping[str, Any] | None = None
    """Whether it is what it was before it was made again (``identical``); None where it was made once."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else its stage says of it, such as the ``quarantine`` of a manifest."""

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Record":
        """Return a record from the content of its file."""
        own = {name: value for name, value in said.items() if name in NAMES}
        return cls(**own, facts={name: value for name, value in said.items() if name not in {*NAMES, *ABOUT_ITSELF}})

    @classmethod
    def planned(cls, key: "Key", **said: Any) -> "Record":
        """Return what is known of a record before the artifact is computed."""
        return cls(
            kind=key.kind, id=key.id, key_sha256=key.sha256, stage=key.stage, version=key.version, config=key.config,
            inputs=key.inputs, **said,
        )  # fmt: skip

    @property
    def experiment(self) -> str:
        """The name of the experiment that the artifact was computed for; empty if there was none."""
        return str((self.campaign or {}).get("experiment", ""))

    @property
    def seconds(self) -> float:
        """How long the computation took, in seconds."""
        return self.finished - self.started

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file, without schema and digest."""
        said = {name: getattr(self, name) for name in NAMES if getattr(self, name) is not None}
        return said | {"campaign": self.campaign} | dict(self.facts)


ABOUT_ITSELF = ("schema", "record_sha256")
NAMES = tuple(one.name for one in fields(Record) if one.name != "facts")


def read_record(folder: Path) -> Record:
    """Return the record of the artifact in `folder`.

    Raises
    ------
    ArtifactError
        There is no record.
    DamagedArtifact
        The record is not JSON, lacks a field, has a field of the wrong type, or belongs to another artifact.
    """
    return Record.of(_read(folder))


def checked_record(folder: Path) -> Record:
    """Return a record after comparing it with its digest; raises as `read_record` does."""
    said = _read(folder)
    if "record_sha256" in said:
        if said["record_sha256"] != record_digest(said):
            raise _damaged(folder / RECORD, "its digest does not match its content")
    elif "schema" in said:  # the oldest records have neither
        raise _damaged(folder / RECORD, "it has no digest")
    return Record.of(said)


def signed(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a record's file, with schema and digest; floats and keys are as JSON reads them back."""
    content = json.loads(json.dumps({"schema": SCHEMA, **said}))
    return {**content, "record_sha256": record_digest(content)}


def record_digest(said: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the content of a record, without the digest itself."""
    signed_part = {name: value for name, value in said.items() if name != "record_sha256"}
    return hashlib.sha256(json.dumps(signed_part, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        said = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{folder} is not a finished artifact: it has no {RECORD}") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not valid JSON, {error}") from None
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EISDIR):
            raise
        raise _damaged(path, f"it cannot be read, {error.strerror}") from error
    if why := _fault(said, folder):
        raise _damaged(path, why)
    return dict(said)


def _damaged(path: Path, why: str) -> DamagedArtifact:
    return DamagedArtifact(
        f"the record {path} is damaged: {why}; the artifact is treated as missing and is recomputed when it is needed "
        "(`clapcur verify --all` shows how)"
    )


def _fault(said: Any, folder: Path) -> str | None:
    """Return what is wrong with the fields of a record, or None."""
    if not isinstance(said, dict):
        return f"expected an object, got a {type(said).__name__}"
    for name, kind in REQUIRED.items():
        if name not in said:
            return f"it has no {name!r}"
        if not isinstance(said[name], kind):
            return f"{name!r} is {said[name]!r:.80}"
    for name, kind in OPTIONAL.items():
        if name in said and not isinstance(said[name], kind):
            return f"{name!r} is {said[name]!r:.80}"
    if said["id"] != folder.name or said["kind"] != folder.parent.name:
        return f"it belongs to the {said['kind']} {said['id']}"
    if not all(math.isfinite(said[name]) for name in ("started", "finished")):
        return "its times are not finite"
    if not all(isinstance(name, str) for name in said["inputs"].values()):
        return "an input is not an id"
    for name, entry in said["files"].items():
        if not (
            isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        ):
            return f"size and digest of {name} are {entry!r:.80}"
    for name, value in said.get("counts", {}).items():
        if not isinstance(value, (int, float)):
            return f"counts.{name} is {value!r:.80}"
    return None
