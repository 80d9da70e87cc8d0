"""Compare an Improvement-Set with its previous version, or merge two sets, as sorted streams.

Both ``pairs.parquet`` files are sorted by clip and are read side by side as streams: memory holds a few row groups,
however many pairs there are.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clapcur.data.improvement_set import SCHEMA, Changes, ImprovementSet

CHANGES = pa.schema([("change", pa.string()), *SCHEMA])


def aligned(one: Iterator[pa.Table], other: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield pairs of tables that cover the same range of clips, each clip complete, in the order of ``clip_id``.

    Parameters
    ----------
    one, other : iterators of tables
        Sorted by ``clip_id``; a clip may be in several consecutive tables of its stream.
    """
    streams, ended = [one, other], [False, False]
    held: list[pa.Table | None] = [None, None]
    while True:
        for side, stream in enumerate(streams):
            while not ended[side] and _is_one_clip(held[side]):  # the last clip may continue in the next table
                block = next(stream, None)
                ended[side] = block is None
                held[side] = held[side] if block is None else _joined(held[side], block)
        first, second = held
        if first is None or second is None:  # this stream is empty
            present = first if first is not None else second
            if present is None:
                return
            held = [table if table is not None else present.schema.empty_table() for table in held]
            continue
        if all(ended):
            if len(first) or len(second):
                yield first, second
            return
        cut = min(_last_clip(table) for table, is_over in ((first, ended[0]), (second, ended[1])) if not is_over)
        counts = [int(pc.sum(pc.less(table["clip_id"], cut)).as_py() or 0) for table in (first, second)]
        yield first.slice(0, counts[0]), second.slice(0, counts[1])
        held = [first.slice(counts[0]), second.slice(counts[1])]


def merged(one: Iterator[pa.Table], other: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of two streams that have no clip in common as one sorted stream."""
    for first, second in aligned(one, other):
        both = _joined(first, second)
        yield both.take(pc.sort_indices(both["clip_id"])) if len(first) and len(second) else both  # the sort is stable


def write_changes(before: ImprovementSet, parent: str, after: ImprovementSet, path: Path) -> Changes:
    """Write the pairs that are in only one of two sets, and count them.

    Parameters
    ----------
    before : ImprovementSet
    parent : str
        Id of `before`.
    after : ImprovementSet
    path : Path
        Parquet file to write, with the columns of a set and ``change``, which is ``added`` or ``removed``.
    """
    counts: Counter[str] = Counter()
    classes = {"before": Counter[str](), "after": Counter[str]()}
    with ExitStack() as stack:
        writer = stack.enter_context(pq.ParquetWriter(path, CHANGES, compression="zstd"))
        for old, new in aligned(before.blocks(), after.blocks()):
            for when, table in (("before", old), ("after", new)):
                found = pc.value_counts(table["class"])
                classes[when].update(dict(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True)))
            removed, added = _without(old, new), _without(new, old)
            counts.update(added=len(added), removed=len(removed), kept=len(old) - len(removed))
            had, has = pc.unique(old["clip_id"]), pc.unique(new["clip_id"])
            kept = int(pc.sum(pc.is_in(had, value_set=has)).as_py() or 0)
            counts.update(clips_added=len(has) - kept, clips_removed=len(had) - kept)
            for change, table in (("removed", removed), ("added", added)):
                writer.write_table(table.add_column(0, "change", pa.array([change] * len(table), pa.string())))
    names = sorted(classes["before"].keys() | classes["after"].keys())
    per_class = {name: {when: count[name] for when, count in classes.items()} for name in names}
    wanted = ("added", "removed", "kept", "clips_added", "clips_removed")
    return Changes(parent=parent, **{name: counts[name] for name in wanted}, pairs_per_class=per_class)


def _without(table: pa.Table, other: pa.Table) -> pa.Table:
    """Return the pairs of a table that are not in another."""
    keys = [pc.binary_join_element_wise(t["clip_id"], t["caption_id"], " ") for t in (table, other)]
    return table.filter(pc.invert(pc.is_in(keys[0], value_set=keys[1])))


def _joined(one: pa.Table | None, other: pa.Table) -> pa.Table:
    return other if one is None else pa.concat_tables([one, other])


def _is_one_clip(table: pa.Table | None) -> bool:
    return table is None or not len(table) or table["clip_id"][0].equals(table["clip_id"][-1])


def _last_clip(table: pa.Table) -> str:
    return str(table["clip_id"][-1].as_py())
