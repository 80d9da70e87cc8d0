"""The two questions of lineage: what was this model made from, and what did this clip influence.

Answers come from records and Parquet files only; neither torch nor MLflow is imported. Pairs are sorted by clip id, so
row groups without the clip are never read.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from clapcur.data import champions
from clapcur.data.forgotten import are_forgotten
from clapcur.data.recordings import asked_as, known_as, recording_id, without_place
from clapcur.data.takedowns import NO_CAPTIONS
from clapcur.errors import ArtifactError, DamagedArtifact, DataError
from clapcur.store import readable
from clapcur.store.artifacts import LOCATIONS, Artifact, check_payload, sha256_file
from clapcur.store.catalog import Catalog, Edge
from clapcur.store.home import Home
from clapcur.store.readable import label
from clapcur.store.record import Record, read_record
from clapcur.tracking import registered_version

MIN_CLIP_DIGITS = 6
TRAINED_ON = ("improvement_set", "compositions", "replay", "teacher_pairs")  # roles whose pairs are trained on
TABLES = {"improvement_set": "pairs.parquet", "compositions": "sources.parquet"}  # tables that list the selected clips
INHERITED = (  # roles through which one model influences the next: as its start, its embeddings or its captions
    "init", "teacher", "checkpoint", "prompt_embeddings", "pool_embeddings", "caption_embeddings",
    "teacher_clip_embeddings", "teacher_caption_embeddings", "improvement_set", "replay", "compositions", "captioner",
    "generated", "teacher_pairs", "captions", "pairs", "tags",
)  # fmt: skip


def find(home: Home, name: str, kind: str | None = None) -> Artifact:
    """Return the artifact with this id, first digits of an id, MLflow run id or name of a registered model.

    Parameters
    ----------
    home : Home
    name : str
        A registered model is named with an alias, such as ``clapcur-esc50@champion``, or with a version, such as
        ``clapcur-esc50/3``.
    kind : str, optional
        Kind that the artifact must have.

    Raises
    ------
    ArtifactError
        The name refers to no artifact, to several, or to one that is not of `kind`.
    """
    found = _find(home, name)
    if kind is not None and found.kind != kind:
        wanted = {"tags": "tags", "improvement_set": "an improvement set"}.get(kind, f"a {kind}")
        raise ArtifactError(f"expected {wanted}, got the {found.kind} {found.id}".replace("_", " "))
    return found


def _find(home: Home, name: str) -> Artifact:
    if model := re.fullmatch(r"(?P<name>.+)(@(?P<alias>\w+)|/(?P<version>\d+))", name):
        return _registered(home, **model.groupdict())
    try:
        return home.store.find(Catalog.open(home).resolve(name))
    except ArtifactError as unknown:
        if isinstance(unknown, DamagedArtifact):
            raise
        try:
            return home.store.find(name)  # finished, but a crash prevented its entry in the catalog
        except DamagedArtifact:
            raise
        except ArtifactError:
            raise unknown from None


def _registered(home: Home, name: str, alias: str | None, version: str | None) -> Artifact:
    """Return the checkpoint of a registered model; aliases are in our records, version numbers only in MLflow."""
    if version:
        return home.store.find(registered_version(home, name, version))
    standing = _models(home)
    if name not in standing:
        raise ArtifactError(f"no registered model {name!r}; the models are {', '.join(sorted(standing)) or 'none'}")
    if alias not in standing[name]:
        raise ArtifactError(f"{name} has no alias {alias!r}; it has {', '.join(standing[name])}")
    return standing[name][alias]


def _models(home: Home) -> dict[str, dict[str, Artifact]]:
    """Return the checkpoints of every registered model, by model name and alias."""
    return {
        readable.model_name(dataset): standing
        for dataset in champions.datasets(home.store)
        if (standing := champions.standing(home.store, dataset))
    }


def trace(home: Home, name: str) -> dict[str, Any]:
    """Return the tree of everything that an artifact was made from.

    Returns
    -------
    dict
        ``id``, ``kind``, ``role`` (in the parent node), ``label``, ``uri``, ``summary`` (one line), ``counts``,
        ``metrics``, ``thresholds`` and ``inputs``, a list of such nodes. A node whose inputs are listed elsewhere in
        the tree has ``repeated`` true and no inputs here; a node without a record has ``lost`` true.
    """
    artifact = find(home, name)
    return _node(home, artifact.id, "", set())


def _node(home: Home, name: str, role: str, seen: set[str]) -> dict[str, Any]:
    try:
        artifact = home.store.find(name)
    except ArtifactError as error:
        known = Catalog.open(home).kinds([name])
        is_damaged = isinstance(error, DamagedArtifact)
        return {
            "id": name, "kind": known.get(name, "unknown"), "role": role, "lost": True,
            "summary": "its record is damaged" if is_damaged else "its record is not in the store", "inputs": [],
        }  # fmt: skip
    record = artifact.record
    node = {
        "id": name,
        "kind": artifact.kind,
        "role": role,
        "label": label(record),
        "uri": artifact.uri,
        "summary": _summary(record),
        "counts": record.counts,
        "metrics": record.metrics,
        "thresholds": readable.thresholds(record),
        "inputs": [],
    }
    if name in seen:
        return node | {"repeated": True}
    seen.add(name)
    inputs = sorted(readable.shown_inputs(record).items())
    return node | {"inputs": [_node(home, below, role, seen) for role, below in inputs]}


def _summary(record: Record) -> str:
    counts = [readable.in_words(name, value) for name, value in list(record.counts.items())[:3]]
    numbers = readable.thresholds(record) | {
        name: value
        for name, value in readable.metrics(record).items()
        if not name.startswith("count.") and "threshold" not in name
    }
    said = [f"{name} {value:.4g}" for name, value in numbers.items() if isinstance(value, float)]
    return ", ".join(counts + said)


def trace_pairs(home: Home, name: str) -> Iterator[dict[str, Any]]:
    """Yield every pair that a checkpoint was trained on, or that is in an Improvement-Set.

    Yields
    ------
    dict
        ``clip_id``, ``caption_id``, ``caption``, ``path`` (None if unknown on this machine), ``similarity``, ``class``
        and ``class_similarity`` (None for given pairs, which have no scores), ``recording_id`` (empty if unknown),
        ``source`` (artifact id) and ``role``.

    Raises
    ------
    ArtifactError
        The artifact is unknown, or its kind has no pairs.
    """
    artifact = find(home, name)
    if artifact.kind in ("improvement_set", "manifest", "compositions"):
        return _pairs_of(home, artifact, artifact.kind, frozenset())
    if artifact.kind == "checkpoint":
        return _pairs_behind(home, artifact)
    raise ArtifactError(
        f"expected a checkpoint, an Improvement-Set or a manifest, got the {artifact.kind} {artifact.id}"
    )


def _pairs_behind(home: Home, checkpoint: Artifact) -> Iterator[dict[str, Any]]:
    record = checkpoint.record
    inputs = {role: home.store.find(name) for role, name in record.inputs.items()}
    held_out = _held_out(inputs, record.config)
    for role in _roles_read(record):
        yield from _pairs_of(home, inputs[role], role, held_out)


def _roles_read(record: Record) -> list[str]:
    """Return the roles whose pairs the training used, according to its counts of examples."""
    given = [role for role in TRAINED_ON if role in record.inputs]
    counts = record.counts
    if any(f"seen.{role}" in counts for role in given):
        return [role for role in given if counts.get(f"seen.{role}", 0)]
    return [role for role in given if role != "teacher_pairs"] or given


def _held_out(inputs: Mapping[str, Artifact], config: Mapping[str, Any]) -> frozenset[str]:
    """Return the ids of the clips that the training held out."""
    fraction = config.get("held_out", 0)
    if not fraction or "teacher_pairs" not in inputs:
        return frozenset()
    from clapcur.data.manifest import Manifest

    return frozenset(Manifest.open(inputs["teacher_pairs"]).held_out(fraction))


def _pairs_of(home: Home, source: Artifact, role: str, held_out: frozenset[str]) -> Iterator[dict[str, Any]]:
    if source.kind == "compositions":
        yield from _sounds_of(home, source, role)
        return
    import pyarrow.parquet as pq

    from clapcur.data.manifest import read_locations

    if source.kind == "manifest":
        manifests = [source]
    else:
        below = (home.store.find(name) for name in set(source.record.inputs.values()))
        manifests = [artifact for artifact in below if artifact.kind == "manifest"]
    for artifact in {source, *manifests}:
        check_payload(artifact.path)
    captions = _lookup(manifests, "captions.parquet", "caption_id", "caption")
    recordings = _lookup(manifests, "clips.parquet", "clip_id", "recording_id")
    written = _written(manifests)
    paths: dict[str, str] = {}
    for manifest in manifests:
        if (manifest.path / LOCATIONS).exists():
            places = read_locations(manifest.path)
            paths |= zip(places.clip_id, places.path, strict=True)
    with pq.ParquetFile(source.path / "pairs.parquet") as file:
        for batch in file.iter_batches(8192):
            for pair in batch.to_pylist():
                if pair["clip_id"] not in held_out:
                    yield {
                        "clip_id": pair["clip_id"],
                        "caption_id": pair["caption_id"],
                        "caption": captions.get(pair["caption_id"]),
                        "path": paths.get(pair["clip_id"]),
                        "similarity": pair.get("similarity"),
                        "class": pair.get("class"),
                        "class_similarity": pair.get("class_similarity"),
                        "recording_id": recordings.get(pair["clip_id"], ""),
                        "source": source.id,
                        "role": role,
                        **written.get((pair["clip_id"], pair["caption_id"]), {}),
                    }


def _written(manifests: Iterable[Artifact]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return how each generated caption was made: way, tags of its clip, and verdict."""
    from clapcur.data.generated import KEPT, is_generated, read_generated

    found: dict[tuple[str, str], dict[str, Any]] = {}
    for artifact in manifests:
        if is_generated(artifact):
            table = read_generated(artifact)
            for row in table[table.verdict.isin(KEPT)].to_dict("records"):
                told = {name: row[name] for name in ("way", "tags", "verdict")}
                found[row["clip_id"], row["caption_id"]] = told | {"tags_from": artifact.record.inputs.get("tags")}
    return found


def _sounds_of(home: Home, source: Artifact, role: str) -> Iterator[dict[str, Any]]:
    """Yield both clips of every training group, with the caption of the forward order."""
    from clapcur.data.compositions import Compositions, Group

    composed = Compositions.open(source)
    paths: dict[str, str] = {}
    for name in set(source.record.inputs.values()):
        below = home.store.find(name)
        if below.kind == "manifest" and (below.path / LOCATIONS).exists():
            from clapcur.data.manifest import read_locations

            places = read_locations(below.path)
            paths |= zip(places.clip_id, places.path, strict=True)
    text = dict(zip(composed.captions.caption_id, composed.captions.caption, strict=True))
    similarity = dict(zip(composed.sources.clip_id, composed.sources.similarity, strict=True))
    for group in Group.of(composed.of_split("train")):
        caption = composed.caption_ids[group.meaning("forward")][0]
        for clip, name in ((group.clip_a, group.class_a), (group.clip_b, group.class_b)):
            known = float(similarity[clip])
            yield {
                "clip_id": clip, "caption_id": caption, "caption": text[caption], "path": paths.get(clip),
                "similarity": None if known != known else known, "class": name, "class_similarity": None,
                "source": source.id, "role": role, "group": group.group_id,
            }  # fmt: skip


def _lookup(manifests: Iterable[Artifact], name: str, key: str, value: str) -> dict[str, str]:
    import pyarrow.parquet as pq

    found: dict[str, str] = {}
    for manifest in manifests:
        if (manifest.path / name).exists():
            with pq.ParquetFile(manifest.path / name) as file:
                table = file.read(columns=[key, value])
            found |= zip(table[key].to_pylist(), table[value].to_pylist(), strict=True)
    return found


def impact(home: Home, clip: str) -> dict[str, Any]:
    """Return everything that one clip influenced.

    Parameters
    ----------
    home : Home
    clip : str
        A clip id, its first digits (at least 6), or the path or URL of an audio file. `clips_of_recording` finds the
        clips that were cut from one recording.

    Returns
    -------
    dict
        ``clip_id``, then lists of ``{"id", "label", "uri", "because"}``:

        - ``manifests`` that list the clip, and ``embeddings`` and ``tags`` of these; manifests of captions that such a
          model wrote, scored or chose, or that were written for a pool with the clip, by tags relative to the mean
          over all its clips; and manifests that such captions were merged into or retrieved for;
        - ``improvement_sets`` that have it or were measured on it, or that an influenced checkpoint curated;
        - ``compositions`` made from it or from such a set;
        - ``captioners`` that learned from it;
        - ``checkpoints`` trained on such a set or on given pairs with the clip, selected on it, or started from or
          taught by such a checkpoint;
        - ``scores`` of these checkpoints, and scores measured on the clip;
        - ``models``: registered models with an alias on such a checkpoint, as in ``clapcur-esc50@champion``.

        ``unread`` lists artifacts that could not be searched because their table is missing.

    Raises
    ------
    ArtifactError
        Several clip ids start with these digits.
    DataError
        The name is neither a file nor the start of a known clip id.
    """
    catalog = Catalog.open(home)
    catalog.catch_up(home.store)
    listing = _tables(home, catalog, "manifest", "clips.parquet")
    pairing = _tables(home, catalog, "manifest", "pairs.parquet")
    choosing = [table for kind, name in TABLES.items() for table in _tables(home, catalog, kind, name)]
    start = _start_of_id(clip)
    holds = {file: _clips_from(file, start) for file in (*listing, *pairing, *choosing)}
    clip_id = _clip_id(clip, start, set().union(*(holds[file] for file in (*listing, *choosing))))
    manifests, paired, sets = (
        [file.parent.name for file in files if clip_id in holds[file]] for files in (listing, pairing, choosing)
    )
    edges = catalog.downstream(*manifests, *sets)
    kinds = catalog.kinds({edge.artifact_id for edge in edges})
    held = dict.fromkeys(sets, "holds it") | _measured_on(home, edges, kinds, manifests, clip_id)
    trained = {
        edge.artifact_id: f"{'selected' if edge.role == 'evaluation' else 'trained'} on {edge.role} {edge.input_id}"
        for edge in edges
        if kinds.get(edge.artifact_id) == "checkpoint"
        and (
            edge.input_id in held
            or (edge.input_id in paired and edge.role == "teacher_pairs")
            or (edge.input_id in manifests and edge.role == "evaluation")
        )
    }
    captioners = _learned_from(edges, kinds, manifests)
    written = {
        edge.artifact_id: f"was written for the pool {edge.input_id}"
        for edge in edges
        if kinds.get(edge.artifact_id) == "manifest" and edge.role == "pool" and edge.input_id in manifests
    }
    further = _inheriting(catalog, {*trained, *captioners, *written})
    kinds |= catalog.kinds(further)
    captioners = {name: why for name, why in further.items() if kinds.get(name) == "captioner"} | captioners
    written = {name: why for name, why in further.items() if kinds.get(name) == "manifest"} | written
    checkpoints = {name: why for name, why in further.items() if kinds.get(name) == "checkpoint"} | trained
    held = {name: why for name, why in further.items() if kinds.get(name) in TABLES} | held
    measured = {
        edge.artifact_id: f"measured on {edge.input_id}"
        for edge in edges
        if edge.role == "evaluation" and edge.input_id in manifests
    } | {
        edge.artifact_id: f"measured on compositions {edge.input_id}"
        for edge in edges
        if edge.role == "compositions" and edge.input_id in held
    }
    scored = {
        edge.artifact_id: f"scores of {edge.input_id}"
        for edge in catalog.downstream(*checkpoints, roles=["checkpoint"])
        if edge.input_id in checkpoints
    }
    embedded = {
        edge.artifact_id: f"hears {edge.input_id}"
        for edge in edges
        if edge.role == "manifest" and edge.input_id in manifests
    }
    below = measured | scored | embedded
    kinds |= catalog.kinds([*checkpoints, *captioners, *below, *held])

    def listed(kind: str, reasons: Mapping[str, str]) -> list[dict[str, str]]:
        wanted = {name: why for name, why in reasons.items() if kinds.get(name, kind) == kind}
        return [_entry(home, kind, name, why) for name, why in sorted(wanted.items())]

    return {
        "clip_id": clip_id,
        "manifests": listed("manifest", written | dict.fromkeys(manifests, "lists it")),
        "embeddings": listed("embeddings", embedded),
        "tags": listed("tags", embedded),
        "improvement_sets": listed("improvement_set", held),
        "compositions": listed("compositions", held),
        "captioners": listed("captioner", captioners),
        "checkpoints": listed("checkpoint", checkpoints),
        "scores": listed("scores", measured | scored) + listed("order_scores", measured | scored),
        "models": [
            {"id": f"{name}@{alias}", "label": "in MLflow", "uri": standing.uri, "because": f"is {standing.id}"}
            for name, aliases in _models(home).items()
            for alias, standing in aliases.items()
            if standing.id in checkpoints
        ],
        "unread": sorted({file.parent.name for file in listing + choosing if not file.exists()}),
    }


def _learned_from(edges: Iterable[Edge], kinds: Mapping[str, str], manifests: Iterable[str]) -> dict[str, str]:
    """Return the captioners that learned from manifests, or from tags of them, whose thresholds are means over all."""
    heard = {edge.artifact_id for edge in edges if edge.role == "manifest" and edge.input_id in manifests}
    return {
        edge.artifact_id: f"learned from {edge.role} {edge.input_id}"
        for edge in edges
        if kinds.get(edge.artifact_id) == "captioner"
        and ((edge.role == "pairs" and edge.input_id in manifests) or (edge.role == "tags" and edge.input_id in heard))
    }


def _measured_on(
    home: Home, edges: Iterable[Edge], kinds: Mapping[str, str], manifests: Iterable[str], clip_id: str
) -> dict[str, str]:
    """Return the Improvement-Sets that a pool clip influenced without being in a pair: by hubness or by marks."""
    found = {}
    for edge in edges:
        if kinds.get(edge.artifact_id) == "improvement_set" and edge.role == "pool" and edge.input_id in manifests:
            try:
                config = home.store.find(edge.artifact_id).record.config
            except ArtifactError:
                continue
            if config.get("hubness"):
                found[edge.artifact_id] = "corrects for hubs in a pool that lists it"
            elif clip_id in {mark[0] for mark in config.get("marks", ())}:
                found[edge.artifact_id] = "was calibrated on marks of it"
    return found


def clips_named(home: Home, names: Set[str]) -> list[str]:
    """Return the ids of all clips in manifests that match one of these names (see `clapcur.data.forgotten`)."""
    import pandas as pd

    found: set[str] = set()
    for manifest in home.store.of_kind("manifest"):
        path = manifest.path / "clips.parquet"
        if path.exists():
            clips = pd.read_parquet(path, columns=["clip_id", "pcm_sha256", "recording_id"])
            found.update(clips.clip_id[are_forgotten(clips, names)])
    return sorted(found)


def clips_of_recording(home: Home, name: str) -> list[str]:
    """Return the ids of all clips that were cut from this recording, according to manifests; empty if it is unknown.

    An id without an origin (``100032``) matches the recordings of every origin.
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    wanted = recording_id(name)
    if not wanted:
        return []
    keys, bare, column = set(asked_as(wanted)), without_place(wanted), ds.field("recording_id")
    nearly = pc.ends_with(column, bare) | pc.match_substring(column, f"{bare}.0")  # the latter in older manifests
    found: set[str] = set()
    for manifest in home.store.of_kind("manifest"):
        clips = ds.dataset(manifest.path / "clips.parquet").to_table(columns=["clip_id", "recording_id"], filter=nearly)
        pairs = zip(clips["clip_id"].to_pylist(), clips["recording_id"].to_pylist(), strict=True)
        found.update(clip for clip, recording in pairs if keys & set(known_as(recording_id(recording))))
    return sorted(found)


def _inheriting(catalog: Catalog, starts: Set[str]) -> dict[str, str]:
    """Return what models, and manifests of captions that they shaped, influence, with the reason of each."""
    edges = catalog.downstream(*starts)
    kinds = catalog.kinds({name for edge in edges for name in (edge.artifact_id, edge.input_id)})
    from_input: dict[str, list[Edge]] = {}
    for edge in edges:
        of_manifests = kinds.get(edge.input_id) == kinds.get(edge.artifact_id) == "manifest"
        if edge.role not in NO_CAPTIONS if of_manifests else edge.role in INHERITED:
            from_input.setdefault(edge.input_id, []).append(edge)
    found: dict[str, str] = {}
    waiting = sorted(starts)
    while waiting:
        for edge in from_input.pop(waiting.pop(), ()):
            found[edge.artifact_id] = f"{edge.role} is {edge.input_id}"
            waiting.append(edge.artifact_id)
    return {name: why for name, why in found.items() if name not in starts}


def _entry(home: Home, kind: str, name: str, because: str) -> dict[str, str]:
    folder = home.store.folder(kind, name)
    try:
        said = label(read_record(folder))
    except ArtifactError:
        said = f"missing {kind}"
    return {"id": name, "label": said, "uri": str(folder), "because": because}


def _tables(home: Home, catalog: Catalog, kind: str, file: str) -> list[Path]:
    return [home.store.folder(kind, name) / file for name in catalog.of_kind(kind)]


def _start_of_id(clip: str) -> str:
    """Return the id of an audio file, or the first digits of an id in lower case."""
    if Path(clip).is_file():
        return sha256_file(Path(clip))
    if "://" in clip or "#" in clip:  # a URL or a part of a container, not an id; the decoder is imported only here
        from clapcur.audio.decoding import open_audio

        with open_audio(clip) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    clip = clip.strip()
    if re.fullmatch(r"[0-9A-Fa-f]+", clip):
        clip = clip.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_CLIP_DIGITS},64}}", clip):
        raise DataError(
            f"expected an audio file, a clip id or its first {MIN_CLIP_DIGITS} digits or more, got {clip!r}"
        )
    return clip


def _clip_id(clip: str, start: str, found: set[str]) -> str:
    """Return the only id found; a file that is in no table is identified by the hash of its bytes."""
    if len(found) > 1:
        names = ", ".join(name[:16] for name in sorted(found)[:5])
        raise ArtifactError(f"{clip!r} matches {len(found)} clip ids, give more digits: {names}")
    if not found and start == clip:
        raise DataError(f"no manifest and no Improvement-Set has a clip whose id starts with {clip}")
    return next(iter(found), start)


def _clips_from(file: Path, start: str) -> set[str]:
    """Return the ids in a sorted file that start with `start`, reading only row groups that can have any."""
    import pyarrow.parquet as pq

    found: set[str] = set()
    if not file.exists():
        return found
    with pq.ParquetFile(file) as table:
        place = table.schema_arrow.get_field_index("clip_id")
        for index in range(table.num_row_groups):
            bounds = table.metadata.row_group(index).column(place).statistics
            if bounds is not None and bounds.has_min_max and (bounds.max < start or bounds.min > f"{start}g"):
                continue  # g sorts after every digit of an id
            names = table.read_row_group(index, columns=["clip_id"])["clip_id"].to_pylist()
            found.update(name for name in names if name.startswith(start))
    return found
