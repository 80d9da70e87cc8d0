"""Cells of Parquet files: a cell costs its row group, and the row groups that were read last are kept.

Rows in their order are read once; rows at random cost a group each, once the file is larger than what is kept. A file
that changes is seen by its stamp, an object that changes while the process lives is not.
"""

import bisect
import functools
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from io import FileIO
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from clapcur.audio.addresses import is_url
from clapcur.audio.stores import Stamp, filesystem, stamp

KEPT_BYTES = 2**28  # of row groups, by all threads together; always the last one
LARGEST_GROUP = 2**31  # bytes; ours: some writers put a whole file into one row group


def read_cell(container: str, row: int, column: str) -> pa.Buffer:
    """Return the bytes of one cell; rows count from 0 through the whole file.

    Raises
    ------
    OSError, EOFError, ValueError
        There is no such file, row, or column of bytes, or the row group is too large to be read as a whole.
    """
    version = None if is_url(container) else stamp(container)
    footer, ends = _footer(container, version)
    group = bisect.bisect_right(ends, row)
    if group == len(ends):
        raise EOFError(f"its container has {footer.num_rows} rows")
    size = _bytes_of(footer, group, column)
    if size > LARGEST_GROUP:
        raise ValueError(
            f"its row group of {size / 1e9:.1f} GB would be read as a whole; write the file with smaller ones, such as "
            "row_group_size=100"
        )
    values = GROUPS.get(
        (container, version, group, column), size, lambda: _read_group(container, footer, group, column)
    )
    value = values[row - ends[group]].as_buffer()  # counted from the end of the group
    if value is None:
        raise ValueError("the cell holds no bytes")
    return value


@functools.lru_cache(maxsize=256)
def _footer(container: str, version: Stamp | None) -> tuple[parquet.FileMetaData, list[int]]:
    """Return the footer of a Parquet file, and the row at which each of its groups ends."""
    footer = with_parquet(container, lambda file: file.metadata)
    return footer, list(
        itertools.accumulate(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    )


def _bytes_of(footer: parquet.FileMetaData, group: int, column: str) -> int:
    chunks = map(footer.row_group(group).column, range(footer.num_columns))
    sizes = [chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in (column, f"{column}.bytes")]
    if not sizes:
        raise ValueError(f"its container has no column {column!r} of bytes")
    return sum(sizes)


def _read_group(container: str, footer: parquet.FileMetaData, group: int, column: str) -> pa.ChunkedArray:
    def read(file: parquet.ParquetFile) -> pa.ChunkedArray:
        is_struct = pa.types.is_struct(file.schema_arrow.field(column).type)
        table = file.read_row_group(group, columns=[f"{column}.bytes" if is_struct else column])
        return table.flatten().column(0)

    return with_parquet(container, read, footer)


def with_parquet(container: str, action: Callable[[parquet.ParquetFile], Any], footer: Any = None) -> Any:
    """Do something with an open Parquet file, wherever it lies.

    Raises
    ------
    ValueError
        It is no Parquet file, or a cut one.
    """
    if is_url(container):
        store, path = filesystem(container)
        with store.open(path, "rb") as file:
            return action(parquet.ParquetFile(file, metadata=footer))
    with FileIO(container) as file, parquet.ParquetFile(file, metadata=footer) as opened:
        return action(opened)


class _RowGroups:
    """The row groups that were read last. Threads share one: that which asks first reads, the others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[Any, tuple[Future[pa.ChunkedArray], int]] = OrderedDict()

    def get(self, key: Any, size: int, read: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        """Return what `read` returns, or returned for this key not long ago; `size` is its bytes."""
        with self._lock:
            known = self._groups.get(key)
            future = known[0] if known else Future[pa.ChunkedArray]()
            self._groups[key] = (future, size)
            self._groups.move_to_end(key)
            while len(self._groups) > 1 and sum(bytes for _, bytes in self._groups.values()) > KEPT_BYTES:
                self._groups.popitem(last=False)
        if not known:
            try:
                future.set_result(read())
            except BaseException as error:
                with self._lock:
                    self._groups.pop(key, None)
                future.set_exception(error)
        return future.result()


GROUPS = _RowGroups()
