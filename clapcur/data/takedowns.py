"""Check whether the lineage of an artifact contains a forgotten clip.

It does not matter *when* the clip was forgotten: a take-down may happen between any two steps of a run. The answer is
read from records and tables in the store at every call. It covers every way in which a clip can influence a model:

- the pairs of an Improvement-Set and of replay, and the teacher's own pairs, including held-out ones;
- the single sounds that compositions combine;
- the model whose embeddings a set was chosen from, and the models that a training started from or learned from;
- the pairs and the tags that a captioner learned from, and the models that scored or chose generated captions, and so
  these captions, also where a manifest was merged from them, a pool has them, or others were retrieved from them;
- listeners' marks on a clip, on which a threshold was calibrated; a hubness correction, measured on the pool; and the
  tags behind generated captions, which are relative to the mean over all clips of the pool;
- the evaluation clips that were used to select the weights.

Earlier versions of a pool, of its embeddings and of its sets are not followed: they only saved work, and the result is
the same without them. A part of the lineage that is lost or damaged counts as containing the clip.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from clapcur.data.forgotten import are_forgotten, forgotten_names
from clapcur.errors import ArtifactError, OutdatedError
from clapcur.store.artifacts import Artifact, Key, Store, check_payload
from clapcur.store.record import checked_record

SHORTCUTS = {"embeddings": ("previous",), "tags": ("previous",), "improvement_set": ("parent", "parent_pool")}
# Roles of inputs that only saved work: the result would be the same without them.
NO_CAPTIONS = ("pool", "evaluation", "previous", "previous_tags")
# roles of the inputs of a manifest that neither are nor shape its captions
EXCLUDING = ("evaluation", "evaluation_embeddings")  # roles in a curation that only exclude clips


def why_tainted(store: Store, artifact: Artifact | Key, names: Set[str] | None = None) -> str:
    """Explain how the lineage of an artifact contains a forgotten clip; empty if it contains none.

    Parameters
    ----------
    store : Store
    artifact : Artifact or Key
        For a key, its inputs are checked.
    names : set of str, optional
        What is forgotten (`clapcur.data.forgotten`); by default everything that has a tombstone now.
    """
    names = forgotten_names(store) if names is None else names
    if not names:
        return ""
    lineage = _Lineage(store, names)
    return lineage.why(artifact.kind, artifact.id, artifact if isinstance(artifact, Key) else None)


def all_tainted(store: Store, artifacts: Iterable[Artifact], names: Set[str]) -> dict[str, str]:
    """Return those of some artifacts whose lineage contains a forgotten clip: why, by id.

    Parameters
    ----------
    store : Store
    artifacts : iterable of Artifact
    names : set of str
        What is forgotten, or would be (`clapcur.data.forgotten`).
    """
    lineage = _Lineage(store, names)
    return {artifact.id: why for artifact in artifacts if (why := lineage.why(artifact.kind, artifact.id))}


def check_clean(store: Store, key: Key, is_written: bool) -> None:
    """Raise OutdatedError if an artifact that is being computed contains a clip that is forgotten by now.

    Parameters
    ----------
    store : Store
    key : Key
    is_written : bool
        Whether the payload is complete, so that the pairs of a set can be read.
    """
    if not (names := forgotten_names(store)):
        return
    if why := _Lineage(store, names).why(key.kind, key.id, key, is_written):
        raise OutdatedError(f"{key.stage} was stopped because {why}; run the same command again to leave out the clip")


class _Lineage:
    """A walk from an artifact to everything that influenced it; each part is checked once."""

    def __init__(self, store: Store, names: Set[str]) -> None:
        self._store, self._names = store, names
        self._answers: dict[str, str] = {}
        self._listed: dict[str, Set[str]] = {}

    def why(self, kind: str, name: str, key: Key | None = None, is_written: bool = True) -> str:
        """Explain how an artifact contains a forgotten clip; a key replaces a record that is not written yet."""
        if name not in self._answers:
            self._answers[name] = ""  # ends a cycle, which no valid store has
            try:
                self._answers[name] = next(self._reasons(kind, name, key, is_written), "")
            except (ArtifactError, OSError, ValueError, KeyError) as error:
                said = " ".join(str(error).split())
                self._answers[name] = f"its lineage cannot be checked: cannot read {kind} {name} ({said})"
        return self._answers[name]

    def _reasons(self, kind: str, name: str, key: Key | None, is_written: bool) -> Iterator[str]:
        folder = self._store.folder(kind, name)
        config, inputs = (key.config, key.inputs) if key else _said(folder)
        if kind == "improvement_set":
            yield from self._in_set(folder, config, inputs, is_written)
        if kind == "compositions" and is_written:
            yield from self._in_compositions(folder, inputs)
        skipped = SHORTCUTS.get(kind, ()) + (EXCLUDING if kind == "improvement_set" else ())
        for role, below in inputs.items():
            if role in skipped:
                continue
            artifact = self._store.find(below)
            if artifact.kind != "manifest":
                if why := self.why(artifact.kind, below):
                    yield why
                if kind == "captioner" and artifact.kind == "tags":
                    heard = self._store.find(artifact.record.inputs["manifest"])
                    if why := _told(self._listed_in(heard), f"the manifest {heard.id} of the tags {below}"):
                        yield why
            elif why := self._in_manifest(kind, role, config, artifact):
                yield why

    def _in_manifest(self, kind: str, role: str, config: Mapping[str, Any], manifest: Artifact) -> str:
        """Explain how a manifest in this role brings in a forgotten clip; clips that a pool only lists do not count."""
        hears_only = kind == "tags" or (kind == "embeddings" and config.get("what") == "audio")
        if not hears_only and role not in ("pool", "clips", "evaluation"):
            for model in self._models_behind(manifest):
                if why := self.why(model.kind, model.id):
                    return why
        if kind in ("embeddings", "tags") or role in ("pool", "captions", "clips"):
            is_measured = role == "pool" and kind == "improvement_set" and config.get("hubness")
            found = self._listed_in(manifest) if is_measured else set()
        elif role in ("teacher_pairs", "generated"):
            found = self._paired(manifest.path, self._listed_in(manifest)) | self._averaged_over(manifest)
        else:
            found = self._listed_in(manifest)
        return _told(found, f"the {role} {manifest.id}".replace("_", " "))

    def _models_behind(self, manifest: Artifact) -> Set[Artifact]:
        """Return what wrote, scored or chose the captions of a manifest, or of those that they were taken from."""
        found = set[Artifact]()
        for role, name in manifest.record.inputs.items():
            if role not in NO_CAPTIONS:
                below = self._store.find(name)
                found |= self._models_behind(below) if below.kind == "manifest" else {below}
        return found

    def _averaged_over(self, manifest: Artifact) -> Set[str]:
        """Return the forgotten clips of the pools behind a manifest's generated captions: tags depend on all clips."""
        found = set[str]()
        for role, name in manifest.record.inputs.items():
            if role == "pool":
                found |= self._listed_in(self._store.find(name))
            elif role not in NO_CAPTIONS and (below := self._store.find(name)).kind == "manifest":
                found |= self._averaged_over(below)
        return found

    def _in_set(
        self, folder: Path, config: Mapping[str, Any], inputs: Mapping[str, str], is_written: bool
    ) -> Iterator[str]:
        sources = [self._store.find(inputs[role]) for role in ("pool", "teacher_pairs") if role in inputs]
        listed = set().union(*(self._listed_in(manifest) for manifest in sources))
        heard = {mark[0] for mark in config.get("marks", ())}
        if why := _told(heard & listed, f"the audition of the Improvement-Set {folder.name}"):
            yield why
        if is_written:
            check_payload(folder)
            if why := _told(self._paired(folder, listed), f"the Improvement-Set {folder.name}"):
                yield why

    def _in_compositions(self, folder: Path, inputs: Mapping[str, str]) -> Iterator[str]:
        sources = [self._store.find(inputs[role]) for role in ("clips", "pool", "teacher_pairs") if role in inputs]
        listed = set().union(*(self._listed_in(manifest) for manifest in sources))
        check_payload(folder)
        found = self._paired(folder, listed, "sources.parquet")
        if why := _told(found, f"the recipe of the compositions {folder.name}"):
            yield why

    def _listed_in(self, manifest: Artifact) -> Set[str]:
        """Return the forgotten clips that a manifest lists, including other ids of the same sound or recording."""
        if manifest.id not in self._listed:
            import pandas as pd

            check_payload(manifest.path)
            wanted = ["clip_id", "pcm_sha256", "recording_id"]
            clips = pd.read_parquet(manifest.path / "clips.parquet", columns=wanted)
            self._listed[manifest.id] = set(clips.clip_id[are_forgotten(clips, self._names)])
        return self._listed[manifest.id]

    def _paired(self, folder: Path, listed: Set[str], table: str = "pairs.parquet") -> Set[str]:
        """Return the forgotten clips in a table of pairs; `listed` are those identified by their sound or recording."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        wanted, found = pa.array(sorted(listed | self._names), pa.string()), set[str]()
        with pq.ParquetFile(folder / table) as file:
            for batch in file.iter_batches(columns=["clip_id"]):
                clips = batch["clip_id"].cast(pa.string())
                found.update(clips.filter(pc.is_in(clips, wanted)).to_pylist())
        return found


def _said(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    record = checked_record(folder)
    return record.config, record.inputs


def _told(found: Set[str], where: str) -> str:
    if not found:
        return ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{where} holds the clip {min(found)[:12]}{more}, which was taken down"
