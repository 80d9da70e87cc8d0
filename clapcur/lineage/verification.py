"""Verification: read everything in the store, and report files that are not as they were written.

A damaged artifact can be recomputed by its stage from its inputs. If the stage read something outside the store
(recordings, another project's checkpoint, a request to forget a clip), only a user who has that can provide it again.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clapcur.errors import ArtifactError, DamagedArtifact
from clapcur.progress import progress
from clapcur.store.artifacts import ASIDE, Artifact, Store, damaged_files
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home
from clapcur.store.readable import label
from clapcur.store.record import RECORD, Record, checked_record

SOURCES = {  # by stage: who can provide again what the stage read from outside the store
    "ingest": "a user with the original files: run `clapcur ingest`, or the experiment, on them again",
    "adopt": "a user with the adopted checkpoint file: run `clapcur adopt`, or the experiment, on it again",
    "forget": "a user who knows which clip was taken down: run `clapcur forget` on it again",
}
STAGES = {"tombstone": "forget", "manifest": "ingest"}


@dataclass(frozen=True)
class Damage:
    """The damage of one artifact, and how to repair it."""

    kind: str
    id: str
    label: str
    folder: Path
    files: tuple[str, ...]
    # payload files that are missing or changed; if the record is damaged, only its name
    why: str
    again: str
    # how the artifact can be recomputed
    by_whom: str
    # who must provide something for that; "" if the store has everything


def verify(home: Home, ids: Iterable[str] = ()) -> tuple[int, list[Damage]]:
    """Read every byte of artifacts, and compare them with their records.

    Parameters
    ----------
    home : Home
    ids : iterable of str
        Ids or their first digits; empty: the whole store.

    Returns
    -------
    int
        Number of artifacts that were read.
    list of Damage
    """
    folders = [_folder(home.store, name) for name in ids] or _finished(home.store)
    damages = []
    with progress("verify", len(folders), "artifacts") as advance:
        for folder in folders:
            if (found := _damage_of(folder)) is not None:
                damages.append(found)
            advance(1, folder.name)
    broken = {folder.name: (files, why, record) for folder, files, why, record in damages}
    mending = _Mending(home, {name: record for name, (_, _, record) in broken.items()})
    return len(folders), [
        Damage(
            folder.parent.name, folder.name, label(record) if record else "", folder, files, why,
            *mending.told(folder.parent.name, folder.name),
        )
        for folder, files, why, record in damages
    ]  # fmt: skip


def _finished(store: Store) -> list[Path]:
    paths = (path.parent for path in store.root.glob(f"*/*/{RECORD}"))
    return sorted(path for path in paths if not path.name.startswith(".") and not path.name.endswith(ASIDE))


def _folder(store: Store, name: str) -> Path:
    """Return the folder of an artifact, even if it is damaged."""
    if len(name) < 4:
        raise ArtifactError(f"expected at least 4 digits of an id, got {name!r}")
    found = [folder for folder in _finished(store) if folder.name.startswith(name)]
    if len(found) != 1:
        names = ", ".join(f"{folder.parent.name} {folder.name}" for folder in found) or "none"
        raise ArtifactError(f"expected one artifact whose id starts with {name!r} in {store.root}, found {names}")
    return found[0]


def _damage_of(folder: Path) -> tuple[Path, tuple[str, ...], str, Record | None] | None:
    try:
        record = checked_record(folder)
    except DamagedArtifact as damage:
        return folder, (RECORD,), str(damage).split("; the artifact is treated")[0], None
    files = damaged_files(folder, record, verify=True)
    if not files:
        return None
    missing = [name for name in files if not (folder / name).exists()]
    changed = [name for name in files if name not in missing]
    said = [f"{word}: {', '.join(names)}" for word, names in (("missing", missing), ("changed", changed)) if names]
    return folder, tuple(files), "; ".join(said), record


class _Mending:
    """How artifacts can be recomputed, given which ones are damaged.

    Parameters
    ----------
    home : Home
    broken : mapping of str to (record or None)
        Records of the damaged artifacts by id; None if the record itself is damaged.
    """

    def __init__(self, home: Home, broken: Mapping[str, Record | None]):
        self._home, self._broken = home, broken

    @cached_property
    def _catalog(self) -> Catalog:
        return Catalog.open(self._home)

    def told(self, kind: str, name: str) -> tuple[str, str]:
        """Return how an artifact can be recomputed, and who must provide something for that (empty: nobody)."""
        stage, inputs = self._made(kind, name)
        if stage in SOURCES:
            return f"only by {SOURCES[stage]}", SOURCES[stage].split(":")[0]
        below = list(dict.fromkeys(self._needed_first(name, inputs, set())))
        outside = [(other, told) for other, told in below if told]
        if outside:
            names = ", ".join(other for other, _ in outside)
            whom = "; ".join(dict.fromkeys(told for _, told in outside))
            return f"after {names}, which can be recomputed only by {whom}", whom.split(":")[0]
        if below:
            return f"by the next run that needs it, after {', '.join(other for other, _ in below)}", ""
        return "by the next run that needs it", ""

    def _made(self, kind: str, name: str) -> tuple[str, list[str]]:
        """Return the stage that made an artifact, and the ids of its inputs."""
        record = self._broken.get(name)
        if record is not None:
            return record.stage, sorted(record.inputs.values())
        inputs = [edge.input_id for edge in self._catalog.upstream(name) if edge.artifact_id == name]
        known = self._catalog.stage_of(name)
        return known or STAGES.get(kind, "" if inputs else "adopt" if kind == "checkpoint" else ""), inputs

    def _needed_first(self, name: str, inputs: Iterable[str], seen: set[str]) -> Iterator[tuple[str, str]]:
        """Yield the damaged or missing inputs, directly or indirectly, each with the user who must provide it."""
        for below in inputs:
            if below in seen or below == name:
                continue
            seen.add(below)
            artifact = self._present(below)
            if artifact is not None and below not in self._broken:
                continue
            kind = artifact.kind if artifact else self._catalog.kinds([below]).get(below, "")
            stage, further = self._made(kind, below)
            yield below, SOURCES.get(stage, "")
            yield from self._needed_first(name, further, seen)

    def _present(self, name: str) -> Artifact | None:
        try:
            return self._home.store.find(name)
        except ArtifactError:
            return None
