"""Reading cells of Parquet files: reading a cell reads its row group, and the most recent row groups are cached.

Reading rows in order reads each group once; reading at random reads a group per row if the file exceeds the cache. A
changed file is detected by its stamp; an object that changes while the process runs is not.
"""

import bisect
import functools
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from clapcur.audio.access import open_regular
from clapcur.audio.addresses import is_url
from clapcur.audio.limits import CLIP, TooLarge, check_size, limit
from clapcur.audio.stores import Stamp, asking, stamp

KEPT_BYTES = 2**28  # of cached row groups, for all threads together; the last group is always kept
MAX_BATCH_ROWS = 2**12  # ours


def read_cell(container: str, row: int, column: str) -> pa.Buffer:
    """Return the bytes of one cell.

    Parameters
    ----------
    container : str
        Address of the Parquet file.
    row : int
        Counts from 0 through the whole file.
    column : str
        Column of bytes, or of structs with a field ``bytes``.

    Returns
    -------
    pyarrow.Buffer

    Raises
    ------
    OSError, EOFError, ValueError
        There is no such file, row, or column of bytes; the cell contains no bytes; or the cell or its row group, which
        is read as a whole, is too large.
    """
    version = None if is_url(container) else stamp(container)
    footer, ends = _footer(container, version)
    group = bisect.bisect_right(ends, row)
    if group == len(ends):
        raise EOFError(f"its container has {footer.num_rows} rows")
    size = _bytes_of(footer, group, column)
    if size > _largest_group():
        raise TooLarge(_group_too_large(size))
    values = GROUPS.get(
        (container, version, group, column), size, lambda: _read_group(container, footer, group, column)
    )
    value = values[row - ends[group]].as_buffer()  # a negative index, from the end of the group
    if value is None:
        raise ValueError(
            "the cell holds no bytes; if it holds a path, embed the file (embed_external_files in the package "
            "datasets), or ingest a table with a column of paths"
        )
    check_size(value.size)
    return value


def _largest_group() -> int:
    return 2 * limit(CLIP)  # some writers put a whole file into one row group


def _group_too_large(size: int) -> str:
    return (
        f"its row group has {size / 1e9:.1f} GB, but at most {_largest_group() / 1e9:.1f} GB are allowed (twice "
        f"{CLIP}); rewrite the file with smaller row groups, such as row_group_size=100"
    )


@functools.lru_cache(maxsize=256)
def _footer(container: str, version: Stamp | None) -> tuple[parquet.FileMetaData, list[int]]:
    """Return the footer of a Parquet file, and the row at which each row group ends."""
    footer = with_parquet(container, lambda file: file.metadata)
    return footer, list(
        itertools.accumulate(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    )


def _bytes_of(footer: parquet.FileMetaData, group: int, column: str) -> int:
    sizes = _sizes(footer, group, [column])
    if not sizes:
        raise ValueError(f"its container has no column {column!r} of bytes")
    return sum(sizes)


def _sizes(footer: parquet.FileMetaData, group: int, columns: Sequence[str]) -> list[int]:
    """Return the uncompressed size in bytes of columns in a row group; for a struct, the sizes of all its fields."""
    chunks = map(footer.row_group(group).column, range(footer.num_columns))
    return [
        chunk.total_uncompressed_size
        for chunk in chunks
        if any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in columns)
    ]


def batches(
    file: parquet.ParquetFile, columns: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield rows in batches of bounded memory, whatever the cells contain.

    A value that is stored once may be in every row. A batch therefore has few enough rows to fit even if each row is
    as large as its row group.

    Parameters
    ----------
    file : ParquetFile
    columns : sequence of str
    groups : sequence of int, optional
        Numbers of the row groups; all by default.

    Yields
    ------
    RecordBatch
        At most `MAX_BATCH_ROWS` rows.

    Raises
    ------
    TooLarge
        The columns of a row group are larger, uncompressed, than is allowed.
    """
    for group in range(file.metadata.num_row_groups) if groups is None else groups:
        size = sum(_sizes(file.metadata, group, columns))
        if size > _largest_group():
            raise TooLarge(_group_too_large(size))
        rows = min(MAX_BATCH_ROWS, max(1, _largest_group() // max(1, size)))
        yield from file.iter_batches(rows, row_groups=[group], columns=list(columns))


def _read_group(container: str, footer: parquet.FileMetaData, group: int, column: str) -> pa.ChunkedArray:
    def read(file: parquet.ParquetFile) -> pa.ChunkedArray:
        is_struct = pa.types.is_struct(file.schema_arrow.field(column).type)
        arrays, size = [], 0
        for batch in batches(file, [f"{column}.bytes" if is_struct else column], [group]):
            size += batch.nbytes
            if size > _largest_group():
                raise TooLarge(_group_too_large(size))
            arrays.append(batch.column(0).flatten()[0] if is_struct else batch.column(0))
        return pa.chunked_array(arrays)

    return with_parquet(container, read, footer)


def with_parquet(container: str, action: Callable[[parquet.ParquetFile], Any], footer: Any = None) -> Any:
    """Apply a function to an open Parquet file, local or in an object store.

    Parameters
    ----------
    container : str
        Address of the file.
    action : callable
        Called with the open ParquetFile; its result is returned.
    footer : FileMetaData, optional
        Footer of the file, if known, so that it is not read again.

    Raises
    ------
    OSError
        There is no such file, or its store fails.
    ValueError
        The file is not Parquet, is truncated, or cannot be read by pyarrow.
    """
    try:
        if is_url(container):
            with asking(container) as (store, path), store.open(path, "rb") as file:
                return action(parquet.ParquetFile(file, metadata=footer))
        with open_regular(container) as file, parquet.ParquetFile(file, metadata=footer) as opened:
            return action(opened)
    except pa.ArrowException as error:  # some are neither ValueError nor OSError
        raise ValueError(str(error)) from None


class _RowGroups:
    """A cache of the most recent row groups, shared by threads: the first to ask reads, the others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[Any, tuple[Future[pa.ChunkedArray], int]] = OrderedDict()
        self._refused: dict[Any, str] = {}

    def get(self, key: Any, size: int, read: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        """Return the cached result for this key, or that of `read`; `size` is its size in bytes."""
        with self._lock:
            if key in self._refused:  # otherwise every row would decompress it again, up to the limit
                raise TooLarge(self._refused[key])
            known = self._groups.get(key)
            future = known[0] if known else Future[pa.ChunkedArray]()
            self._keep(key, future, known[1] if known else size)
        if not known:
            try:
                values = read()
            except BaseException as error:
                with self._lock:
                    self._groups.pop(key, None)
                    if isinstance(error, TooLarge):
                        self._refused[key] = str(error)
                future.set_exception(error)
            else:
                future.set_result(values)
                with self._lock:
                    if key in self._groups:  # a footer may state less than the actual size
                        self._keep(key, future, max(size, values.nbytes))
        return future.result()

    def _keep(self, key: Any, future: Future[pa.ChunkedArray], size: int) -> None:
        self._groups[key] = (future, size)
        self._groups.move_to_end(key)
        while len(self._groups) > 1 and sum(bytes for _, bytes in self._groups.values()) > KEPT_BYTES:
            self._groups.popitem(last=False)


GROUPS = _RowGroups()
