"""Collecting: what of a store no kept model needs, and how it is removed.

Kept is what can be reached, from input to input, from: the checkpoints that an alias names (of every dataset); the
newest version of each pool, and what the next embedding or curation of it begins with; the newest decision about each
dataset; reports; what is younger than the grace; what the user names. Decisions, tombstones and reports stay
themselves, whatever becomes of what they tell of. The rest goes: whoever wants it again computes it again.

An artifact is removed record first, so that one which is half gone is no artifact. Its folder is then renamed, which
takes no time, leaves the catalog, and only then is emptied: after a crash the next collection continues.

An artifact whose record is damaged cannot say what it was made from; the catalog still knows. All of that is kept, and
so is the folder itself where something was made from it, or where it would be kept in any case: somebody may have a
copy of the record.
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

ALWAYS_KEPT = ("decision", "tombstone", "report")  # small, and what they say is said nowhere else
REMOVED = ".removed"  # end of the name of a folder that is on its way out

Records = Mapping[str, Record]  # by id


@dataclass(frozen=True)
class Choice:
    """What stays and what goes: id -> why."""

    keep: dict[str, str]
    remove: dict[str, str]


@dataclass(frozen=True)
class Item:
    """An artifact, or the folder of one that was never finished."""

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
    """What a collection keeps and removes, the largest first."""

    kept: list[Item]
    removed: list[Item]
    tainted: list[Item]
    # of what is kept: embeddings and Improvement-Sets that hold a clip which was taken down
    making: int
    # number of folders without a record that are too young to be removed: what they read is not known
    damaged: list[str]
    # ids whose record is damaged; what they were made from is kept
    since: float
    # Unix seconds at or above which everything is young


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
    """Choose among finished artifacts.

    Parameters
    ----------
    records : mapping
        Every record of the store, by id.
    standing : mapping of str to str
        Ids of checkpoints by the alias that names them, such as ``clapcur-esc50@champion``.
    named : collection of str
        Ids that the user wants to keep.
    reports : int, optional
        How many of the newest reports keep what they tell of; None for all.
    since : float
        Unix time in seconds; what was finished later stays, with its inputs.
    holding : collection of str
        Ids of embeddings and Improvement-Sets that must go unless a kept model was made from them.
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
    """Return what can be reached from input to input, with the reason of each; inputs that are lost are passed over."""
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
    """Return the newest version of each pool, and the newest of each kind of work on one of its versions.

    The next version is worked on as a change of that; without it a landing of ten clips would cost the whole pool.
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
    """Look at a home and choose what would be removed; nothing is.

    Parameters
    ----------
    home : Home
    named, reports
        See `choose`.
    grace_hours : float
        Whatever is younger is left alone, finished or not: somebody may be working with it.
    with_forgotten : bool
        Remove embeddings and Improvement-Sets that hold a clip with a tombstone, unless a kept model was made from
        them.
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
    """Return all that artifacts with a damaged record were made from, as the catalog knows it."""
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
    """Return the ids of embeddings and Improvement-Sets that hold a clip which was taken down."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (refused := forgotten(home)):
        return set()
    clips = set(refused)
    for name, record in records.items():
        if record.kind == "manifest":  # the same sound in another container has another id
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
    """Yield some columns of a Parquet table piece by piece; nothing where the table is lost."""
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
    """Yield folders without a record that can be read, and those whose removal was cut off."""
    for folder in sorted(store.root.glob("*/*")):
        if not folder.is_dir() or folder.parent.name == TOMBSTONE:  # half of one forgets its clip all the same
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
    """Return whether somebody may still be writing into an unfinished folder."""
    return not item.folder.name.endswith(REMOVED) and _last_change(item.folder) >= since


def _item(store: Store, record: Record, why: str) -> Item:
    folder = store.folder(record.kind, record.id)
    return Item(record.kind, record.id, label(record), why, folder, size_of(folder), record.finished)


def _size(item: Item) -> tuple[int, str]:
    return item.bytes, item.id


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    return sum(stat.st_size for stat in _stats(folder))


def _last_change(folder: Path) -> float:
    return max([folder.stat().st_mtime, *(stat.st_mtime for stat in _stats(folder))])


def _stats(folder: Path) -> Iterator[os.stat_result]:
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                yield os.lstat(os.path.join(parent, file))
            except FileNotFoundError:  # its maker moved it to its place
                continue


def collect(home: Home, chosen: Plan) -> list[Item]:
    """Remove what was chosen and return what has gone.

    What changed since it was chosen stays: a folder that is worked on again, an artifact that was made again, or from
    which something new was made.
    """
    catalog, store = Catalog.open(home), home.store
    catalog.catch_up(store)
    known = {item.id for item in (*chosen.kept, *chosen.removed)}
    newest_first = sorted(chosen.removed, key=lambda item: -(item.finished or float("inf")))
    return [item for item in newest_first if _remove(catalog, store, item, known, chosen.since)]


def _remove(catalog: Catalog, store: Store, item: Item, known: Collection[str], since: float) -> bool:
    """Remove one artifact, nobody else making it meanwhile; tell whether it has gone."""
    if item.folder.name.endswith(REMOVED):
        if not (store.folder(item.kind, item.id) / RECORD).exists():  # it was not made again
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
        if leaving.exists():  # of an earlier removal that was cut off
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
    """Return whether something was made from an artifact that was not there when the choice was made."""
    return any(edge.artifact_id not in known for edge in catalog.downstream(name))


def by_kind(items: Iterable[Item]) -> dict[str, tuple[int, int]]:
    """Return how many there are of each kind, and their bytes."""
    found: dict[str, tuple[int, int]] = {}
    for item in items:
        count, size = found.get(item.kind, (0, 0))
        found[item.kind] = count + 1, size + item.bytes
    return found
