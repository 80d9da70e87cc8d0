"""Read text sentence by sentence: lines, JSON lines, Parquet, Hugging Face datasets, or folders of these.

Files are read as streams: a corpus of ten million sentences never has to fit in memory. Compressed files (.gz, .zst)
are decompressed while they are read.
"""

import gzip
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from clapcur.data.manifest import normalise_caption
from clapcur.errors import DataError
from clapcur.textfiles import numbered_lines

PACKED = (".gz", ".zst")
SUFFIXES = (".txt", ".jsonl", ".parquet", ".arrow")
COLUMNS = ("text", "caption", "sentence", "content")  # the first of these that a table has is its text column
LONGEST_LINE = 2**24  # bytes
BATCH_ROWS = 4096
TAG = re.compile(r"<[^<>]{1,200}>")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff]")
BULLET = re.compile(r"^\s*(?:[-*•–—>#]+|\(?\d{1,3}[.)])\s+")
END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")
ABBREVIATED = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|mr|mrs|ms|dr|prof|st|no|fig|approx|ca)|\b[A-Z])\.$", re.IGNORECASE
)


def files_of(source: Path) -> list[Path]:
    """Return the files of a corpus, sorted by path.

    Raises
    ------
    DataError
        The source does not exist, or contains no text file.
    """
    if source.is_file():
        if _suffix(source) not in SUFFIXES:
            raise DataError(
                f"{source}: expected a text file ({', '.join(SUFFIXES[:3])}, optionally followed by "
                f"{' or '.join(PACKED)}) or a folder of text files"
            )
        return [source]
    if not source.is_dir():
        raise DataError(f"the text {source} does not exist")
    found = sorted(path for path in source.rglob("*") if path.is_file() and _suffix(path) in SUFFIXES)
    if not found:
        raise DataError(f"the folder {source} holds no text file; expected one of {', '.join(SUFFIXES)}")
    return found


def sentences(source: Path, column: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield (where, sentence) of a corpus: cleaned, with white space and Unicode form normalised.

    Parameters
    ----------
    source : Path
        A file, a folder, or a folder that `datasets` saved.
    column : str, optional
        Text column of a table; by default the first of `COLUMNS` that it has.

    Raises
    ------
    DataError
        As for `files_of`; or a file is not UTF-8 (the message gives the line), is damaged, or has no such column.
    """
    for path in files_of(source):
        for where, text in _texts(path, column):
            for part in split(text):
                yield where, part


def split(text: str) -> Iterator[str]:
    """Yield the sentences of a text without markup and bullets."""
    for line in html.unescape(TAG.sub(" ", text)).splitlines():
        line = BULLET.sub("", CONTROL.sub(" ", line))
        waiting = ""
        for part in END.split(line):
            waiting = f"{waiting} {part}".strip()
            if not ABBREVIATED.search(waiting):
                if cleaned := normalise_caption(waiting).strip("\"'“”‘’ "):
                    yield cleaned
                waiting = ""
        if cleaned := normalise_caption(waiting).strip("\"'“”‘’ "):
            yield cleaned


def _suffix(path: Path) -> str:
    names = [suffix.lower() for suffix in path.suffixes]
    return names[-2] if len(names) > 1 and names[-1] in PACKED else names[-1] if names else ""


def _texts(path: Path, column: str | None) -> Iterator[tuple[str, str]]:
    kind = _suffix(path)
    if kind == ".txt":
        for number, line in _lines(path):
            yield f"{path}, line {number}", line
    elif kind == ".jsonl":
        for number, line in _lines(path):
            if line.strip():
                yield from _of_object(line, f"{path}, line {number}", column)
    else:
        for number, value in _cells(path, column):
            for text in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(text, str):
                    yield f"{path}, row {number}", text


def _of_object(line: str, where: str, column: str | None) -> Iterator[tuple[str, str]]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from None
    if isinstance(found, str):
        yield where, found
        return
    if not isinstance(found, dict):
        raise DataError(f"{where}: expected a JSON object or string, got {line[:80]}")
    name = _column(list(found), column, where)
    value = found[name]
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            yield where, text


def _column(names: list[str], column: str | None, where: str) -> str:
    if column is not None:
        if column not in names:
            raise DataError(f"{where} has no column {column!r}; its columns are {', '.join(names)}")
        return column
    for name in COLUMNS:
        if name in names:
            return name
    raise DataError(
        f"{where} has none of the columns {', '.join(COLUMNS)}; choose the text column among {', '.join(names)}"
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of a text file, decompressed."""
    if path.suffix.lower() not in PACKED:
        yield from numbered_lines(path)
        return
    is_gzip = path.suffix.lower() == ".gz"
    opened: Any = gzip.open(path) if is_gzip else pa.input_stream(str(path), compression="zstd")
    try:
        with opened as file:
            for number, line in enumerate(_raw_lines(file, path), 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    bad = line[error.start : error.start + 1]
                    raise DataError(
                        f"{path}, line {number}, is not UTF-8 (byte 0x{bad.hex()}: {error.reason}); save it as UTF-8"
                    ) from None
    except (EOFError, OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be unpacked; was it truncated? {error}") from error


def _raw_lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Yield lines of bytes; pyarrow's streams cannot be iterated by line."""
    rest = b""
    while block := file.read(2**20):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if len(rest) > LONGEST_LINE:
            raise DataError(f"{path} has a line of more than {LONGEST_LINE // 2**20} MiB; is it text?")
    if rest:
        yield rest


def _cells(path: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    """Yield (row, value) of the text column of a Parquet or Arrow file."""
    number = 0
    try:
        if _suffix(path) == ".parquet":
            with parquet.ParquetFile(path) as file:
                name = _column(file.schema_arrow.names, column, str(path))
                for batch in file.iter_batches(BATCH_ROWS, columns=[name]):
                    for value in batch.column(0).to_pylist():
                        number += 1
                        yield number, value
            return
        with pa.memory_map(str(path)) as source:
            try:
                batches: Any = pa.ipc.open_stream(source)
            except pa.ArrowInvalid:  # the Arrow file format, which `datasets` does not write
                opened = pa.ipc.open_file(source)
                batches = (opened.get_batch(index) for index in range(opened.num_record_batches))
            for batch in batches:
                name = _column(batch.schema.names, column, str(path))
                for value in batch.column(name).to_pylist():
                    number += 1
                    yield number, value
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read after row {number}: {error}") from error
