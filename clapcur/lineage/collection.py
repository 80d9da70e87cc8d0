"""Garbage collection: find the artifacts that no kept model needs, and remove them.

The collection keeps everything reachable, from input to input, from these roots: the checkpoints that have an alias (of
every dataset); the newest version of each pool, and the artifacts that its next embedding, tagging or curation
continues from; the newest decision about each dataset; reports; artifacts younger than the grace period; and artifacts
that the user names. Decisions, tombstones and reports are always kept, even if their inputs are not. Everything else is
removed, and can be recomputed.

The record of an artifact is removed first, so a half-removed artifact does not count as one. Its folder is then renamed
(which is instant), removed from the catalog, and only then deleted; after a crash the next collection continues.

The inputs of an artifact with a damaged record are taken from the catalog, and all of them are kept. Its folder is kept
too if anything was made from it or if its kind is always kept: the user may have a copy of the record.
"""

import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clapcur.config import canonical_json
from clapcur.data import champions
from clapcur.data.forgotten import KIND as TOMBSTONE
from clapcur.data.forgotten import are_forgotten
from clapcur.data.takedowns import SHORTCUTS
from clapcur.errors import ArtifactError, DamagedArtifact
from clapcur.lineage.pools import OF_A_VERSION, forgotten
from clapcur.store.artifacts import ASIDE, Store, sync_folder
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home
from clapcur.store.readable import label, model_name
from clapcur.store.record import RECORD, Record, read_record

ALWAYS_KEPT = ("decision", "tombstone", "report")  # small, and their content is stored nowhere else
REMOVED = ".removed"  # suffix of the name of a folder that is being removed

Records = Mapping[str, Record]  # by id


@dataclass(frozen=True)
class Choice:
    """Which artifacts to keep and to remove: id -> reason."""

    keep: dict[str, str]
    remove: dict[str, str]


@dataclass(frozen=True)
class Item:
    """An artifact, or the folder of an unfinished one."""

    kind: str
    id: str
    label: str
    why: str
    folder: Path
    bytes: int
    finished: float | None
    # Unix seconds; None without a record


@dataclass(frozen=True)
class Plan:
    """What a collection keeps and removes, largest first."""

    kept: list[Item]
    removed: list[Item]
    tainted: list[Item]
    # kept embeddings, tags, compositions and Improvement-Sets that have a clip which was taken down
    making: int
    # number of folders without a record that are too young to be removed; their inputs are unknown
    damaged: list[str]
    # ids whose record is damaged; their inputs are kept
    since: float
    # Unix seconds; anything finished or changed later is young


def choose(
    records: Records,
    standing: Mapping[str, str],
    *,
    named: Collection[str] = (),
    reports: int | None = None,
    since: float = float("inf"),
    holding: Collection[str] = (),
    needed: Mapping[str, str] | None = None,
) -> Choice:
    """Choose which finished artifacts to keep.

    Parameters
    ----------
    records : mapping
        Every record of the store, by id.
    standing : mapping of str to str
        Ids of checkpoints by the alias that names them, such as ``clapcur-esc50@champion``.
    named : collection of str
        Ids that the user wants to keep.
    reports : int, optional
        Number of newest reports whose inputs are kept; None: all.
    since : float
        Unix time in seconds; artifacts finished later are kept, with their inputs.
    holding : collection of str
        Ids of artifacts to remove unless a kept model was made from them.
    needed : mapping of str to str
        Ids that are kept for another reason, and that reason.
    """
    young = {name for name, record in records.items() if record.finished > since}
    roots = {
        **{name: "named with --keep" for name in named},
        **{name: alias for alias, name in standing.items()},
        **_pool_roots(records),
        **_newest_decisions(records),
        **_newest_reports(records, reports),
        **dict.fromkeys(young, "newer than the grace period"),
        **(needed or {}),
    }
    keep = _reach(records, roots)
    models = {name: "" for name in keep if records[name].kind == "checkpoint"}
    gone = set(holding) - _reach(records, models, without_shortcuts=True).keys() - set(named) - young
    if gone:
        keep = _reach(records, roots, closed=gone)
    for name, record in records.items():
        if record.kind in ALWAYS_KEPT:
            keep.setdefault(name, f"a {record.kind} is kept")
    remove = {name: "no kept artifact was made from it" for name in records if name not in keep}
    remove |= {name: "holds a clip that was taken down, and no kept model was made from it" for name in gone}
    return Choice(keep, remove)


def _reach(
    records: Records, roots: Mapping[str, str], *, closed: Collection[str] = (), without_shortcuts: bool = False
) -> dict[str, str]:
    """Return everything reachable from input to input, with the reason for each; missing inputs are skipped."""
    found: dict[str, str] = {}
    waiting = list(roots.items())
    while waiting:
        name, why = waiting.pop(0)
        if name in found or name in closed or name not in records:
            continue
        found[name] = why
        record = records[name]
        skipped = SHORTCUTS.get(record.kind, ()) if without_shortcuts else ()
        waiting += [
            (below, f"{role} of the {record.kind} {name}".replace("_", " "))
            for role, below in record.inputs.items()
            if role not in skipped
        ]
    return found


def _pool_roots(records: Records) -> dict[str, str]:
    """Return the newest version of each pool, and its newest result by stage and config.

    Work on the next version continues from these; without them a landing of ten clips would recompute the whole pool.
    """
    name_of = {name: record.config["name"] for name, record in records.items() if record.stage == "pool"}
    newest: dict[tuple[str, ...], str] = {}
    for name in sorted(name_of, key=lambda name: int(records[name].config["version"])):
        newest[name_of[name],] = name
    for name, record in _by_time(records):
        role = OF_A_VERSION.get(record.stage, ("",))[0]
        if pool := name_of.get(record.inputs.get(role, "")):
            newest[pool, record.stage, canonical_json(record.config)] = name
    return {
        name: f"the pool {pool} continues from it" if work else f"newest version of the pool {pool}"
        for (pool, *work), name in newest.items()
    }


def _newest_decisions(records: Records) -> dict[str, str]:
    newest = {record.config["dataset"]: name for name, record in _by_time(records) if record.kind == "decision"}
    return {name: f"newest decision about {dataset}" for dataset, name in newest.items()}


def _newest_reports(records: Records, count: int | None) -> dict[str, str]:
    made = [name for name, record in _by_time(records) if record.kind == "report"]
    return {name: "a report is kept" for name in (made if count is None else made[len(made) - min(count, len(made)) :])}


def _by_time(records: Records) -> list[tuple[str, Record]]:
    return sorted(records.items(), key=lambda item: (item[1].finished, item[0]))


def plan(
    home: Home,
    *,
    named: Collection[str] = (),
    reports: int | None = None,
    grace_hours: float = 24.0,
    with_forgotten: bool = False,
) -> Plan:
    """Choose what would be removed from a home, without removing it.

    Parameters
    ----------
    home : Home
    named, reports
        See `choose`.
    grace_hours : float
        Grace period in hours. Anything younger is left alone, finished or not, because it may be in use.
    with_forgotten : bool
        Whether to remove embeddings, tags, compositions and Improvement-Sets that have a clip with a tombstone, unless
        a kept model was made from them.
    """
    store, since = home.store, time.time() - 3600 * grace_hours
    records = {artifact.id: artifact.record for artifact in store}
    tainted = _holding_forgotten(home, records)
    damaged = {folder.name for folder in store.damaged_records()} - records.keys()
    choice = choose(
        records, _standing(home), named=named, reports=reports, since=since,
        holding=tainted if with_forgotten else (), needed=_below_damaged(home, damaged),
    )  # fmt: skip

    def items(reasons: Mapping[str, str]) -> list[Item]:
        return sorted((_item(store, records[name], why) for name, why in reasons.items()), key=_size, reverse=True)

    used = {below for record in records.values() for below in record.inputs.values()}
    unfinished = [
        item
        for item in _unfinished(store)
        if not (item.id in damaged and (item.id in used or item.kind in ALWAYS_KEPT))
    ]
    left = [item for item in unfinished if not _is_young(item, since)]
    kept = items(choice.keep)
    return Plan(
        kept=kept,
        removed=sorted(items(choice.remove) + left, key=_size, reverse=True),
        tainted=[item for item in kept if item.id in tainted],
        making=len(unfinished) - len(left),
        damaged=sorted(damaged),
        since=since,
    )


def _below_damaged(home: Home, damaged: Collection[str]) -> dict[str, str]:
    """Return everything that artifacts with a damaged record were made from, according to the catalog."""
    if not damaged:
        return {}
    catalog = Catalog.open(home)
    return {
        edge.input_id: f"input of {name}, whose record is damaged"
        for name in sorted(damaged)
        for edge in catalog.upstream(name)
    }


def _standing(home: Home) -> dict[str, str]:
    return {
        f"{model_name(dataset)}@{alias}": artifact.id
        for dataset in champions.datasets(home.store)
        for alias, artifact in champions.standing(home.store, dataset).items()
    }


def _holding_forgotten(home: Home, records: Records) -> set[str]:
    """Return the ids of embeddings, tags, compositions and Improvement-Sets that have a clip which was taken down."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (refused := forgotten(home)):
        return set()
    clips = set(refused)
    for name, record in records.items():
        if record.kind == "manifest":  # the same sound in another container has a different id
            columns = ("clip_id", "pcm_sha256", "recording_id")
            for batch in _batches(home.store.folder("manifest", name) / "clips.parquet", *columns):
                table = batch.to_pandas()
                clips.update(table.clip_id[are_forgotten(table, refused)])
    wanted = pa.array(sorted(clips))
    tables = {
        "embeddings": ("ids.parquet", "id"), "improvement_set": ("pairs.parquet", "clip_id"),
        "compositions": ("sources.parquet", "clip_id"), "tags": ("ids.parquet", "id"),
    }  # fmt: skip
    found = set()
    for name, record in records.items():
        file, column = tables.get(record.kind, ("", ""))
        path = home.store.folder(record.kind, name) / file
        if file and any(pc.any(pc.is_in(batch[column], wanted)).as_py() for batch in _batches(path, column)):
            found.add(name)
    return found


def _batches(path: Path, *columns: str) -> Iterator[Any]:
    """Yield some columns of a Parquet table in batches; nothing if the table is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DamagedArtifact(
            f"cannot read {path}: {error}; `clapcur verify {path.parent.name}` shows how to recompute it"
        ) from error


def _unfinished(store: Store) -> Iterator[Item]:
    """Yield folders without a readable record, and those whose removal was interrupted."""
    for folder in sorted(store.root.glob("*/*")):
        if not folder.is_dir() or folder.parent.name == TOMBSTONE:  # even an incomplete tombstone forgets its clip
            continue
        name, why = folder.name, "its deletion was interrupted"
        if name.endswith(REMOVED):
            name = name.removeprefix(".").removesuffix(REMOVED)
        elif name.endswith(ASIDE):
            why = "moved aside, because its record is damaged"
        elif _has_record(folder):
            continue
        else:
            why = f"unfinished, untouched for {(time.time() - _last_change(folder)) / 3600:,.0f} h"
        yield Item(folder.parent.name, name, "", why, folder, size_of(folder), None)


def _has_record(folder: Path) -> bool:
    try:
        read_record(folder)
    except ArtifactError:
        return False
    return True


def _is_young(item: Item, since: float) -> bool:
    """Return whether a process may still be writing to an unfinished folder."""
    return not item.folder.name.endswith(REMOVED) and _last_change(item.folder) >= since


def _item(store: Store, record: Record, why: str) -> Item:
    folder = store.folder(record.kind, record.id)
    return Item(record.kind, record.id, label(record), why, folder, size_of(folder), record.finished)


def _size(item: Item) -> tuple[int, str]:
    return item.bytes, item.id


def size_of(folder: Path) -> int:
    """Return the total size in bytes of all files below a folder; files that vanish meanwhile are skipped."""
    return sum(stat.st_size for stat in _stats(folder))


def _last_change(folder: Path) -> float:
    return max([folder.stat().st_mtime, *(stat.st_mtime for stat in _stats(folder))])


def _stats(folder: Path) -> Iterator[os.stat_result]:
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                yield os.lstat(os.path.join(parent, file))
            except FileNotFoundError:  # the stage moved it to its final place
                continue


def collect(home: Home, chosen: Plan) -> list[Item]:
    """Remove the chosen items and return those that were removed.

    Items that changed since they were chosen are kept: folders that are in use again, and artifacts that were rebuilt
    or from which something new was made.
    """
    catalog, store = Catalog.open(home), home.store
    catalog.catch_up(store)
    known = {item.id for item in (*chosen.kept, *chosen.removed)}
    newest_first = sorted(chosen.removed, key=lambda item: -(item.finished or float("inf")))
    return [item for item in newest_first if _remove(catalog, store, item, known, chosen.since)]


def _remove(catalog: Catalog, store: Store, item: Item, known: Collection[str], since: float) -> bool:
    """Remove one artifact while holding its lease; return whether it was removed."""
    if item.folder.name.endswith(REMOVED):
        if not (store.folder(item.kind, item.id) / RECORD).exists():  # it was not rebuilt
            catalog.remove(item.id)
        shutil.rmtree(item.folder)
        return True
    with catalog.lease(item.id, f"{item.kind} {item.id}") as lease:
        if not _is_as_chosen(item, since) or _is_used(catalog, item.id, known):
            return False
        lease.check()
        (item.folder / RECORD).unlink(missing_ok=True)
        sync_folder(item.folder)
        leaving = item.folder.with_name(f".{item.id}{REMOVED}")
        if leaving.exists():  # left by an interrupted removal
            shutil.rmtree(leaving)
        item.folder.rename(leaving)
        sync_folder(item.folder.parent)
        catalog.remove(item.id)
    shutil.rmtree(leaving)
    return True


def _is_as_chosen(item: Item, since: float) -> bool:
    if not item.folder.exists():
        return False
    try:
        return read_record(item.folder).finished == item.finished
    except ArtifactError:
        return item.finished is None and not _is_young(item, since)


def _is_used(catalog: Catalog, name: str, known: Collection[str]) -> bool:
    """Return whether an artifact is the input of another one that did not exist when the choice was made."""
    return any(edge.artifact_id not in known for edge in catalog.downstream(name))


def by_kind(items: Iterable[Item]) -> dict[str, tuple[int, int]]:
    """Return the number of items of each kind, and their total size in bytes."""
    found: dict[str, tuple[int, int]] = {}
    for item in items:
        count, size = found.get(item.kind, (0, 0))
        found[item.kind] = count + 1, size + item.bytes
    return found
