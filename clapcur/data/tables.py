"""Read tables from CSV, TSV, JSONL and Parquet files: a header, and rows with their line numbers.

The reader is strict where a lenient one would shift captions into the wrong column: a row with more or fewer cells than
the header is an error, and so is an unclosed quote. Files are UTF-8, or UTF-16 with a byte order mark, with any line
ends. The separator is that of the header (a comma, a semicolon or a tab) or of a first line ``sep=;`` from Excel. CSV
cells stay strings: ``007`` is not a number and ``NA`` is not a missing value.
"""

import csv
import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from clapcur.downloads import HEAD_BYTES, not_downloaded
from clapcur.errors import DataError, ManifestError
from clapcur.textfiles import encoding_of, not_decodable, numbered_lines

# 1000.0, and 1.00032e+05 with one digit before the point: how programs write a whole number stored as a float
FLOAT_NOTATION = re.compile(r"-?(\d+\.0*|\d(\.\d+)?[eE]\+?\d{1,2})")
SEP_LINE = re.compile(r'"?sep=(?P<separator>[,;\t|])"?', re.IGNORECASE)  # how Excel names the separator
SEPARATORS = ",;\t"
HEADER_LENGTH = 2**20  # characters
LONGEST_CELL = 2**24  # characters; a longer cell is due to an unclosed quote
Rows = Iterator[tuple[int, Mapping[str, Any]]]
RowsOrErrors = Iterator[tuple[int, Mapping[str, Any] | ManifestError]]

csv.field_size_limit(LONGEST_CELL)


def read_table(path: Path, encoding: str = "utf-8-sig") -> tuple[list[str], Rows]:
    """Return the column names of a table and an iterator over (line, row), which raises at the first invalid row.

    Parameters and errors are those of `read_tolerantly`.
    """
    header, rows = read_tolerantly(path, encoding)

    def whole() -> Rows:
        for line, row in rows:
            if isinstance(row, ManifestError):
                raise row
            yield line, row

    return header, whole()


def read_tolerantly(path: Path, encoding: str = "utf-8-sig") -> tuple[list[str], RowsOrErrors]:
    """Return the column names of a table and an iterator over (line, row), with an error in place of an invalid row.

    Parameters
    ----------
    path : Path
    encoding : str
        Encoding of a CSV or TSV file; some old corpora are not UTF-8.

    Raises
    ------
    ManifestError
        The file is missing, of an unknown format, or damaged as a whole; the last may be raised during iteration.
    """
    if not path.is_file():
        raise ManifestError(f"the table {path} does not exist")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ManifestError(f"{path}: expected a table ({', '.join(READERS)}), got {path.suffix or 'no extension'}")
    with open(path, "rb") as file:
        what = not_downloaded(file.read(HEAD_BYTES))
    if what:
        raise ManifestError(f"the table {path} is {what}")
    header, rows = reader(path, encoding)
    if repeated := sorted({name for name in header if name and header.count(name) > 1}):
        raise ManifestError(f"{path} has more than one column {', '.join(map(repr, repeated))}; rename all but one")
    return header, rows


def cell_text(value: Any, where: str, strip: bool = True) -> str:
    """Return a cell as text: "" for a missing value, 119028.0 (an id that pandas converted to a float) as 119028.

    Lone surrogates, which cannot be encoded as UTF-8, are escaped.

    Parameters
    ----------
    value : object
    where : str
        File and line, for the error message.
    strip : bool
        Remove white space at both ends.

    Raises
    ------
    ManifestError
        The value is a list, a tuple, a mapping or bytes.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (list, tuple, dict, bytes)):
        raise ManifestError(f"{where}: expected one value, got {reprlib.repr(value)}; only captions may be lists")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return text.strip() if strip else text


def whole_number(text: str) -> str:
    """Return a whole number in float notation, such as ``1000.0`` or ``1e+05``, as digits; any other text unchanged."""
    if FLOAT_NOTATION.fullmatch(text):
        number = Decimal(text)
        if number == number.to_integral_value():
            return f"{number:.0f}"
    return text


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line without its end) of a text file; raise ManifestError if it cannot be decoded."""
    try:
        yield from numbered_lines(path)
    except DataError as error:
        raise ManifestError(str(error)) from None


def _delimited(path: Path, delimiter: str, encoding: str) -> tuple[list[str], RowsOrErrors]:
    encoding = encoding_of(path, encoding)
    cells = _cells(path, *_separator(path, delimiter, encoding), encoding)
    _, header = next(cells, (0, None))
    if header is None:
        raise ManifestError(f"{path} is empty: the first line must name the columns")
    names = [name.strip() for name in header]

    def rows() -> RowsOrErrors:
        for line, values in cells:
            if len(values) == len(names):
                yield line, dict(zip(names, values, strict=True))
            else:
                yield (
                    line,
                    ManifestError(
                        f"{path}, line {line}: {len(values)} cells, but the header has {len(names)}; "
                        "a caption with a comma or a tab must be in double quotes"
                    ),
                )

    return names, rows()


def _separator(path: Path, usual: str, encoding: str) -> tuple[str, int]:
    """Return the separator of the cells, judged by the header, and the number of lines before the header."""
    with open(path, encoding=encoding, errors="replace") as file:
        first = file.readline(HEADER_LENGTH).rstrip("\n")
    if match := SEP_LINE.fullmatch(first):
        return match["separator"], 1
    return next((mark for mark in (usual, *SEPARATORS) if mark in first), usual), 0


def _cells(path: Path, delimiter: str, skipped: int, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its last line, cells) of each row that is not blank."""
    with open(path, encoding=encoding, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for number, cells in enumerate(reader):
                if number >= skipped and cells and (len(cells) == 1 or any(cells)):
                    yield reader.line_num, cells
        except csv.Error as error:
            raise ManifestError(
                f"{path}, line {reader.line_num}: {error}; is a quote unclosed or not doubled?"
            ) from None
        except UnicodeError as error:
            raise ManifestError(not_decodable(path, encoding, error)) from None


def _jsonl(path: Path) -> tuple[list[str], RowsOrErrors]:
    """Read the file twice: the columns are the keys of all lines."""
    names: dict[str, None] = {}
    first: ManifestError | None = None
    for _, row in _objects(path):
        if isinstance(row, ManifestError):
            first = first or row
        else:
            names |= dict.fromkeys(row)
    if first and not names:
        raise first
    return list(names), _objects(path)


def _objects(path: Path) -> RowsOrErrors:
    for number, line in text_lines(path):
        if line.strip():
            yield number, _object(line, f"{path}, line {number}")


def _object(line: str, where: str) -> Mapping[str, Any] | ManifestError:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return ManifestError(f"{where}: not JSON ({error.msg} at character {error.colno})")
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, deeply nested brackets
        return ManifestError(f"{where}: not JSON that can be read ({error})")
    return row if isinstance(row, dict) else ManifestError(f"{where}: expected a JSON object, got {line[:80]}")


def _parquet(path: Path) -> tuple[list[str], RowsOrErrors]:
    import pyarrow as pa
    from pyarrow import parquet

    from clapcur.audio.cells import batches

    try:
        file = parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ManifestError(f"{path} is not a Parquet file: {error}") from None

    def rows() -> RowsOrErrors:
        number = 0
        try:
            for batch in batches(file, file.schema_arrow.names):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (ValueError, ArithmeticError, pa.ArrowException) as error:  # not UTF-8, or a date after the year 9999
            raise ManifestError(f"{path} cannot be read after row {number}: {error}") from None

    return file.schema_arrow.names, rows()


READERS = {
    ".csv": lambda path, encoding: _delimited(path, ",", encoding),
    ".tsv": lambda path, encoding: _delimited(path, "\t", encoding),
    ".jsonl": lambda path, encoding: _jsonl(path),
    ".parquet": lambda path, encoding: _parquet(path),
}
