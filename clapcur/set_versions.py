"""An Improvement-Set and the version before it: rows of two sorted files side by side, and what changed.

Both ``pairs.parquet`` are sorted by clip, so that they are read together as streams: memory holds a few row groups,
however many pairs there are.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clapcur.improvement_set import PAIRS, ROW_GROUP, SCHEMA

CHANGES = pa.schema([("change", pa.string()), *SCHEMA])


def pair_blocks(folder: Path) -> Iterator[pd.DataFrame]:
    """Yield the pairs of an Improvement-Set's folder in their order, a row group at a time."""
    with pq.ParquetFile(folder / PAIRS) as file:
        for batch in file.iter_batches(ROW_GROUP):
            yield batch.to_pandas()


def aligned(one: Iterator[pd.DataFrame], other: Iterator[pd.DataFrame]) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Yield rows of two streams that cover the same clips: every clip whole, in the order of ``clip_id``.

    Parameters
    ----------
    one, other : iterators of tables
        Sorted by ``clip_id``; a clip may lie in several consecutive tables of its stream.
    """
    streams = [one, other]
    held = [_empty(), _empty()]
    ended = [False, False]
    while True:
        for side, stream in enumerate(streams):
            while not ended[side] and _is_one_clip(held[side]):  # the last clip may go on in the next table
                block = next(stream, None)
                ended[side] = block is None
                held[side] = held[side] if block is None else _join(held[side], block)
        if all(ended):
            if len(held[0]) or len(held[1]):
                yield held[0], held[1]
            return
        cut = min(held[side].clip_id.iloc[-1] for side in (0, 1) if not ended[side])
        ready = [table.clip_id < cut for table in held]
        yield held[0][ready[0]], held[1][ready[1]]
        held = [table[~mask] for table, mask in zip(held, ready, strict=True)]


def merged(one: Iterator[pd.DataFrame], other: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Yield the rows of two streams without a common clip as one sorted stream."""
    for first, second in aligned(one, other):
        both = _join(first, second)
        yield both if first.empty or second.empty else both.sort_values("clip_id", kind="stable", ignore_index=True)


def write_changes(before: Path, after: Path, path: Path) -> dict[str, Any]:
    """Write the pairs that one set has and the other has not, and count them.

    Parameters
    ----------
    before, after : Path
        Folders of Improvement-Sets.
    path : Path
        Of a Parquet table with the columns of a set and ``change``, which is added or removed.

    Returns
    -------
    dict
        ``added``, ``removed`` and ``kept`` pairs; ``clips_added`` and ``clips_removed`` (clips that had no pair, or
        have none any more); ``pairs_per_class``, before and after for each class.
    """
    counts: Counter[str] = Counter()
    classes = {"before": Counter[str](), "after": Counter[str]()}
    with ExitStack() as stack:
        writer = stack.enter_context(pq.ParquetWriter(path, CHANGES, compression="zstd"))
        for old, new in aligned(pair_blocks(before), pair_blocks(after)):
            classes["before"].update(old["class"].tolist())
            classes["after"].update(new["class"].tolist())
            keys = [pd.MultiIndex.from_frame(table[["clip_id", "caption_id"]]) for table in (old, new)]
            removed, added = old[~keys[0].isin(keys[1])], new[~keys[1].isin(keys[0])]
            counts.update(added=len(added), removed=len(removed), kept=len(old) - len(removed))
            had, has = set(old.clip_id), set(new.clip_id)
            counts.update(clips_added=len(has - had), clips_removed=len(had - has))
            for change, table in (("removed", removed), ("added", added)):
                rows = table.assign(change=change)[CHANGES.names]
                writer.write_table(pa.Table.from_pandas(rows, schema=CHANGES, preserve_index=False))
    names = sorted(classes["before"].keys() | classes["after"].keys())
    per_class = {name: {when: count[name] for when, count in classes.items()} for name in names}
    wanted = ("added", "removed", "kept", "clips_added", "clips_removed")
    return {name: counts[name] for name in wanted} | {"pairs_per_class": per_class}


def _join(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    if one.empty:
        return other
    return one if other.empty else pd.concat([one, other], ignore_index=True)


def _is_one_clip(table: pd.DataFrame) -> bool:
    return table.empty or bool(table.clip_id.iloc[0] == table.clip_id.iloc[-1])


def _empty() -> pd.DataFrame:
    return SCHEMA.empty_table().to_pandas().astype({"similarity": np.float32})
