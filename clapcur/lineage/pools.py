"""Versions of a pool, clips that were taken down, and results of earlier versions.

Everything is read from records: a pool is the chain of manifests that `clapcur.stages.pool` made under its name.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clapcur.config import canonical
from clapcur.data.forgotten import are_forgotten, forgotten_names
from clapcur.data.manifest import Manifest
from clapcur.errors import ArtifactError, DataError
from clapcur.stages.pool import STAGE, PoolConfig, check_pool_name
from clapcur.store.artifacts import Artifact, Stage, write_atomic
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home
from clapcur.store.leases import Lease
from clapcur.store.record import Record

FOLLOWED = "followed.json"  # in the home: the experiments that are kept up to date

# roles of inputs that differ between the results of one version and of the next, by stage
OF_A_VERSION = {
    "embed": ("manifest", "previous"),
    "tag": ("manifest", "previous"),
    "curate": ("pool", "pool_embeddings", "generated", "generated_embeddings", "parent", "parent_pool"),
    "caption": ("pool", "tags", "pool_embeddings", "previous", "previous_tags"),
}
SAVED_WORK = ("previous", "previous_tags", "parent", "parent_pool")  # earlier results, which only save work
MADE_OF_POOL = ("pool", "manifest", "pool_embeddings", "audio_embeddings", "tags")  # roles behind generated captions


def turn(home: Home, name: str) -> AbstractContextManager[Lease]:
    """Hold the lease to make the next version of a pool, so that versions are a chain, never a tree."""
    return Catalog.open(home).lease(f"pool:{check_pool_name(name)}", f"the pool {name}")


def versions(home: Home, name: str) -> list[Artifact]:
    """Return the versions of a pool, oldest first; empty if nothing has landed."""
    check_pool_name(name)
    return [artifact for artifact in _versions(home) if artifact.record.config["name"] == name]


def names(home: Home) -> list[str]:
    """Return the names of all pools."""
    return sorted({artifact.record.config["name"] for artifact in _versions(home)})


def head(home: Home, name: str) -> Artifact:
    """Return the newest version of a pool.

    Raises
    ------
    DataError
        Nothing has landed in a pool of this name.
    """
    if found := versions(home, name):
        return found[-1]
    known = ", ".join(names(home)) or "none"
    raise DataError(
        f"no pool {name!r} in {home.root} (pools: {known}); create it with `clapcur land FOLDER --pool {name}`"
    )


def ancestors(home: Home, version: Artifact) -> list[Artifact]:
    """Return the versions that a version was made from, newest first; empty for a manifest that is not of a pool."""
    found = []
    while parent := version.record.inputs.get("parent"):
        version = home.store.find(parent)
        found.append(version)
    return found


def earlier(home: Home, manifest: Artifact) -> list[Artifact]:
    """Return the manifests that correspond to this one for earlier versions of its pool, newest first.

    They are the earlier versions of a pool, or captions that were generated for these in the same way. A manifest that
    is neither has none.
    """
    pool = manifest.record.inputs.get("pool")
    if pool is None:
        return ancestors(home, manifest)
    made = [one for version in ancestors(home, home.store.find(pool)) for one in _made_from(home, version, "pool")]
    return [one for one in made if one.kind == "manifest" and _is_alike(home, one, manifest)]


def _is_alike(home: Home, one: Artifact, other: Artifact) -> bool:
    """Return whether two artifacts were made in the same way, if need be from different versions of one pool."""
    if one.id == other.id:
        return True
    mine, theirs = one.record, other.record
    if mine.stage == theirs.stage == STAGE.name:
        return bool(mine.config["name"] == theirs.config["name"])
    if (mine.stage, mine.version, mine.config) != (theirs.stage, theirs.version, theirs.config):
        return False
    inputs = [
        {role: name for role, name in record.inputs.items() if role not in SAVED_WORK} for record in (mine, theirs)
    ]
    if inputs[0].keys() != inputs[1].keys():
        return False
    changed = [role for role, name in inputs[0].items() if inputs[1][role] != name]
    try:
        return all(
            role in MADE_OF_POOL and _is_alike(home, home.store.find(inputs[0][role]), home.store.find(inputs[1][role]))
            for role in changed
        )
    except ArtifactError:  # removed by `clapcur gc`, so that nothing is known of it
        return False


def forgotten(home: Home) -> frozenset[str]:
    """Return the names of everything that was taken down; see `clapcur.data.forgotten`."""
    return forgotten_names(home.store)


def next_version(home: Home, name: str, landing: Artifact | None) -> tuple[PoolConfig, dict[str, Artifact]] | None:
    """Return config and inputs of a pool's next version; None if nothing changes. Call this while holding `turn`.

    Parameters
    ----------
    home : Home
    name : str
        Name of the pool.
    landing : Artifact or None
        Manifest of new clips; None: only remove forgotten clips.
    """
    before = versions(home, name)
    inputs = ({"parent": before[-1]} if before else {}) | ({"landing": landing} if landing else {})
    if not inputs:
        return None
    refused = forgotten(home)
    known: set[str] = set()
    gone: set[str] = set()
    is_new = not before
    for role, artifact in inputs.items():
        clips = Manifest.open(artifact).clips
        is_refused = are_forgotten(clips, refused)
        gone |= set(clips.clip_id[is_refused])
        fresh = clips[~is_refused & ~clips.clip_id.isin(known) & ~clips.pcm_sha256.isin(known)]
        is_new |= bool(len(fresh)) if role == "landing" else bool(is_refused.any())
        known |= set(clips.clip_id) | set(clips.pcm_sha256)
    if not is_new:
        return None
    return PoolConfig(name=name, version=len(before) + 1, forgotten=tuple(sorted(gone))), inputs


def with_earlier(home: Home, stage: Stage, config: Any, inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Add the stage's result for an earlier version of the pool, so that the stage only processes new clips.

    The result of the most recent version is added. If the stage has already processed this version, the inputs of that
    result are added instead, so that work on other versions does not change its id.

    Parameters
    ----------
    home : Home
    stage : Stage
        One of the stages in `OF_A_VERSION`.
    config : object
        Config of the stage.
    inputs : mapping of str to Artifact
        By role.

    Returns
    -------
    dict of str to Artifact
        `inputs`, with the added ones.
    """
    role, *added = OF_A_VERSION[stage.name]
    if role not in inputs:
        return dict(inputs)
    before = earlier(home, inputs[role])
    if not before:
        return dict(inputs)
    for version in (inputs[role], *before):
        for made in _made_of(home, stage, config, inputs, role, version):
            if version.id == inputs[role].id:
                of_then = made.record.inputs
                return {**inputs, **{name: _of_then(home, made, name) for name in added if name in of_then}}
            if "previous" in added:
                return {**inputs, "previous": made}
            return {**inputs, "parent": made, "parent_pool": version}
    return dict(inputs)


def with_earlier_captions(home: Home, stage: Stage, config: Any, inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Add captions of this pool under other tags, or of an earlier version, so that only other clips are captioned.

    As in `with_earlier`, the result of the most recent version is added, or the inputs of the result that answers this
    very question.

    Parameters
    ----------
    home : Home
    stage : Stage
        `clapcur.stages.caption`.
    config : object
        Config of the stage.
    inputs : mapping of str to Artifact
        By role.

    Returns
    -------
    dict of str to Artifact
        `inputs`, with ``previous`` and ``previous_tags`` if there are any.
    """
    asked = {role: artifact.id for role, artifact in inputs.items()}
    pool, *before = [inputs["pool"], *ancestors(home, inputs["pool"])]
    of_version = {version.id: _made_of(home, stage, config, inputs, "pool", version) for version in (pool, *before)}
    for made in of_version[pool.id]:
        then = made.record.inputs
        if asked.items() <= then.items():
            added = [role for role in ("previous", "previous_tags") if role in then]
            return {**inputs, **{role: _of_then(home, made, role) for role in added}}
    for made in (made for results in of_version.values() for made in results):
        try:
            return {**inputs, "previous": made, "previous_tags": home.store.find(made.record.inputs["tags"])}
        except ArtifactError:  # without its tags, nobody knows what guided it
            continue
    return dict(inputs)


def _of_then(home: Home, made: Artifact, name: str) -> Artifact:
    """Return an input of an artifact; an input that only saved work may be missing, so its id is enough."""
    known = made.record.inputs[name]
    if name in ("previous", "previous_tags", "parent"):
        kind = "tags" if name == "previous_tags" else made.kind
        return Artifact(kind, known, str(home.store.folder(kind, known)))
    return home.store.find(known)


def _made_of(
    home: Home, stage: Stage, config: Any, inputs: Mapping[str, Artifact], role: str, version: Artifact
) -> list[Artifact]:
    """Return the stage's results for this version with the same config and other inputs, newest first."""
    changing = OF_A_VERSION[stage.name]
    wanted = {name: artifact.id for name, artifact in inputs.items() if name not in changing}
    found = []
    for edge in Catalog.open(home).downstream(version.id, roles=[role]):
        artifact = home.store.find(edge.artifact_id)
        record = artifact.record
        same = {name: value for name, value in record.inputs.items() if name not in changing} == wanted
        if (record.stage, record.version) == (stage.name, stage.version) and same:
            if record.config == canonical(config) and _of_captions_alike(home, record, inputs):
                found.append(artifact)
    return sorted(found, key=lambda artifact: -artifact.record.finished)


def _of_captions_alike(home: Home, record: Record, inputs: Mapping[str, Artifact]) -> bool:
    """Return whether the generated captions that a set was curated from, if any, were made as those of `inputs`."""
    if "generated" not in inputs:
        return True
    try:
        return _is_alike(home, home.store.find(record.inputs["generated"]), inputs["generated"])
    except ArtifactError:
        return False


def _made_from(home: Home, source: Artifact, role: str) -> list[Artifact]:
    """Return what was made directly from an artifact in this role, newest first."""
    edges = Catalog.open(home).downstream(source.id, roles=[role])
    found = [home.store.find(edge.artifact_id) for edge in edges if edge.input_id == source.id]
    return sorted(found, key=lambda artifact: -artifact.record.finished)


def _versions(home: Home) -> list[Artifact]:
    """Return the versions of all pools, in the order of their version numbers."""
    found = [artifact for artifact in home.store.of_kind("manifest") if artifact.record.stage == STAGE.name]
    return sorted(found, key=lambda artifact: artifact.record.config["version"])


@dataclass(frozen=True)
class News:
    """Changes to a pool since its last curation."""

    version: Artifact
    # the newest version
    curated: Artifact | None
    # the version that was curated last; equals `version` if nothing has changed since
    new_clips: int
    gone_clips: int
    hours: float
    # hours since the first landing that was not curated yet

    def due(self, min_new_clips: int, max_wait_hours: float) -> str:
        """Return why a curation is due; an empty string if it is not."""
        if self.curated is None:
            return "it was never curated"
        if self.gone_clips:
            return f"{self.gone_clips:,} clips were taken down"
        if self.new_clips >= min_new_clips:
            return f"{self.new_clips:,} new clips (threshold: {min_new_clips:,})"
        if self.new_clips and self.hours >= max_wait_hours:
            return f"{self.new_clips:,} new clips have waited {self.hours:.1f} h (maximum: {max_wait_hours:g} h)"
        return ""

    def missing(self, min_new_clips: int, max_wait_hours: float) -> str:
        """Return what a curation still waits for; an empty string if it is due."""
        if self.due(min_new_clips, max_wait_hours):
            return ""
        said = f"{self.new_clips:,} of {min_new_clips:,} new clips"
        if not self.new_clips:
            return said
        return f"{said}; due in {_duration(max_wait_hours - self.hours)} at the latest"


def _duration(hours: float) -> str:
    return f"{hours / 24:.0f} d" if hours >= 48 else f"{hours:.0f} h" if hours >= 2 else f"{hours * 60:.0f} min"


def news(home: Home, version: Artifact, curation: Any) -> News:
    """Return the changes to a pool since it was last curated with this config.

    Parameters
    ----------
    home : Home
    version : Artifact
        The newest version of the pool.
    curation : CurateConfig
        Config of the Improvement-Sets that count as a curation.
    """
    since: list[Artifact] = []
    curated = None
    for one in (version, *ancestors(home, version)):
        if _sets_of(home, one, curation):
            curated = one
            break
        since.append(one)
    now = set(Manifest.open(version).clips.clip_id)
    before = set(Manifest.open(curated).clips.clip_id) if curated else set()
    hours = (time.time() - since[-1].record.finished) / 3600 if since else 0.0
    return News(version, curated, len(now - before), len(before - now), hours)


def _sets_of(home: Home, version: Artifact, curation: Any) -> list[Artifact]:
    edges = Catalog.open(home).downstream(version.id, roles=["pool"])
    found = [home.store.find(edge.artifact_id) for edge in edges]
    return [one for one in found if one.kind == "improvement_set" and one.record.config == canonical(curation)]


def follow(home: Home, config: Path) -> None:
    """Add an experiment file to the list of followed experiments, whose students are updated with their pools."""
    paths = sorted({*followed(home), config.absolute()})
    entries = [{"path": str(path), "from_home": os.path.relpath(path, home.root)} for path in paths]
    write_atomic(home.root / FOLLOWED, json.dumps(entries, indent=1))


def followed(home: Home) -> list[Path]:
    """Return the files of the followed experiments, except missing ones.

    A file that is missing at its absolute path is looked up relative to the home, because both may have moved together.
    """
    path = home.root / FOLLOWED
    entries = json.loads(path.read_text()) if path.exists() else []
    found = set()
    for entry in entries:
        named = [entry] if isinstance(entry, str) else [entry["path"], entry["from_home"]]  # older: a path
        places = (Path(os.path.normpath(home.root / name)) for name in named)
        found.update([place for place in places if place.is_file()][:1])
    return sorted(found)
