"""Containers of many clips -> the rows of their clips: tar shards in WebDataset's form, and Parquet with audio bytes.

In a tar, members whose names agree up to the first dot of the file name are one sample. In a sample, audio is a clip;
``.txt`` is its caption; ``.json`` is a record like a row of a table, with captions under ``caption`` or, as in LAION's
shards, ``text``; ``.cls`` is its label. If a sample has several clips, a description belongs to the clip with the same
name up to the last dot or, if there is none, to all clips. Other members are ignored.

If two members of a sample have the same name, it is unknown which description belongs to which clip. Such clips get no
description, and the quarantine names the member.

A row of a Parquet file is a clip if a column has audio: bytes, or a struct with ``bytes`` and ``path`` as written by
Hugging Face. If a row group has no bytes at all, the paths name files, relative to the Parquet file. The other columns
are read as in any table.
"""

import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from clapcur.audio import Problem, addresses
from clapcur.audio.cells import batches, with_parquet
from clapcur.audio.limits import CLIP, TEXT, TooLarge, limit, too_large
from clapcur.audio.stores import Stamp, open_container
from clapcur.errors import ManifestError
from clapcur.stages.ingest.config import Columns
from clapcur.stages.ingest.rows import AUDIO_SUFFIXES, Row, captions_of, name_of, placed, resolve, row_of

DESCRIPTIONS = (".json", ".txt", ".cls")  # in order of precedence; captions are all kept
REFUSED = (
    "compressed: reading one clip would require unpacking everything before it; unpack it to a .tar (gunzip, bunzip2, "
    "unxz or unzstd); compression saves little on audio"
)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # first bytes of gzip, bzip2, xz and Zstandard files


@dataclass
class Listing:
    """The contents of a tar."""

    clips: list[tuple[str, int, int]] = field(default_factory=list)
    # name, offset of the first byte, size
    texts: dict[str, str] = field(default_factory=dict)
    # texts of the members that describe clips, by name
    bad: list[tuple[str, str, str]] = field(default_factory=list)
    # name, reason, detail; the name is "" for the tar itself
    repeated: list[str] = field(default_factory=list)
    # names of which the tar has several of the members above

    @classmethod
    def from_json(cls, text: str) -> "Listing | None":
        """Return a listing from JSON; None if it is in the older form without `repeated`."""
        values = json.loads(text)
        if "repeated" not in values:
            return None
        clips, bad = ([tuple(item) for item in values[name]] for name in ("clips", "bad"))
        return cls(clips, values["texts"], bad, values["repeated"])


@dataclass
class Shard:
    """The rows of a container."""

    rows: list[Row] = field(default_factory=list)
    bad: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    # path, reason, detail, as in the quarantine
    without_file: int = 0
    # number of descriptions without a clip


Remember = Callable[[str, Stamp | None, Callable[[], Listing]], Listing]


def is_tar(path: str) -> bool:
    """Return whether a file name is that of a tar, compressed or not."""
    return path.lower().endswith((".tar", *COMPRESSED))


def read_tar(path: str, written: str, columns: Columns, remember: Remember, stamp: Stamp | None = None) -> Shard:
    """Return the rows of a tar.

    Parameters
    ----------
    path : str
        Absolute path or address.
    written : str
        The path as written in the source.
    columns : Columns
        Names of the values in a ``.json``.
    remember : callable
        Takes the path, its stamp and a function that lists the tar; returns the listing, cached if possible.
    stamp : Stamp or None
        Stamp of the tar, if known.
    """
    listing = remember(path, stamp, lambda: list_tar(path))
    shard = Shard()
    for name, reason, detail in listing.bad:
        shard.bad[f"{written}/{name}" if name else written, reason, detail] += 1
    samples: dict[str, dict[str, list[str]]] = {}
    for name in listing.texts:
        samples.setdefault(_key(name), {}).setdefault(_stem(name), []).append(name)
    used, repeated = set(), set(listing.repeated)
    for name, offset, size in listing.clips:
        sample = samples.get(_key(name), {})
        names = sample.get(_stem(name)) or [name for names in sample.values() for name in names]
        used.update(names)
        if names and (twice := sorted(repeated.intersection([name, *names]))):
            detail = f"more than one member is named {twice[0]}: the description of this clip is ambiguous"
            row = Row(problem=Problem("duplicate_name", detail))
        else:
            row = _described({name: listing.texts[name] for name in names}, columns, written)
        shard.rows.append(placed(row, addresses.member_address(written, offset, size, name)))
    shard.without_file = len(listing.texts.keys() - used)
    return shard


def list_tar(path: str) -> Listing:
    """List a tar without reading its audio; members after a damage are lost, which the listing reports."""
    listing = Listing()
    try:
        with open_container(path) as file:
            if file.read(8).startswith(MAGIC):
                listing.bad.append(("", "unreadable", REFUSED))
            elif path.lower().endswith(COMPRESSED):
                listing.bad.append(("", "unreadable", "not compressed, although its name says so; rename it to .tar"))
            else:
                _list(file, listing)
    except FileNotFoundError:
        listing.bad.append(("", "missing", "no such file"))
    except OSError as error:
        listing.bad.append(("", "unreadable", error.strerror or str(error)))
    return listing


class _Headers:
    """A file for `tarfile` that limits single reads, because a header that states a huge size would fill the memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= limit(TEXT):
            raise tarfile.ReadError(f"a header of {size:,} bytes; {TEXT} allows {limit(TEXT):,}")
        return self._file.read(size)


def _list(file: BinaryIO, listing: Listing) -> None:
    file.seek(0)
    lack, offset, room = "", -1, limit(CLIP)  # room: bytes left for all descriptions together
    names = Counter[str]()
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
            while member := tar.next():
                if tar.offset <= offset:
                    raise tarfile.ReadError("a member of negative size")
                offset = tar.offset
                name = member.name.encode("utf-8", "backslashreplace").decode()
                if not member.isdir() and _describes_or_is_audio(name):
                    names[name] += 1
                    room -= _take(file, member, name, listing, room)
                tar.members.clear()  # tarfile would keep all members in memory
            file.seek(tar.offset)
            if any(block := file.read(512)) or not block:
                lack = "it has no end-of-archive mark"
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, EOFError, RecursionError) as error:
        lack = str(error) or type(error).__name__  # tarfile raises other errors too for broken headers
    listing.repeated = [name for name, count in names.items() if count > 1]
    if lack:
        detail = f"{lack} after {len(listing.clips)} clips: the rest cannot be read"
        listing.bad.append(("", "truncated" if listing.clips else "unreadable", detail))
    elif not listing.clips and not listing.bad:
        listing.bad.append(("", "empty", "no member is audio"))


def _describes_or_is_audio(name: str) -> bool:
    return not PurePosixPath(name).name.startswith(".") and _suffix(name) in AUDIO_SUFFIXES | {*DESCRIPTIONS}


def _take(file: BinaryIO, member: tarfile.TarInfo, name: str, listing: Listing, room: int) -> int:
    """Add a member to a listing; return how many bytes of `room` its text takes."""
    if not member.isreg() or member.issparse():
        listing.bad.append((name, "unreadable", "a link or a sparse member of a tar"))
    elif _suffix(name) in AUDIO_SUFFIXES:
        if said := too_large(member.size):
            listing.bad.append((name, "too_large", said))
        else:
            listing.clips.append((name, member.offset_data, member.size))
    elif said := too_large(member.size, TEXT):
        listing.bad.append((name, "too_large", said))
    elif member.size > room:
        listing.bad.append((name, "too_large", f"the descriptions in its tar are larger than {CLIP} allows"))
    else:
        file.seek(member.offset_data)
        content = file.read(member.size)
        if len(content) < member.size:
            listing.bad.append((name, "truncated", f"its tar ends after {len(content)} of its {member.size} bytes"))
            return 0
        try:
            listing.texts[name] = content.decode("utf-8-sig")
            return len(content)
        except UnicodeDecodeError:
            listing.bad.append((name, "unreadable", "not UTF-8"))
    return 0


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _key(name: str) -> str:
    """Return the key that the members of a sample share."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _described(texts: dict[str, str], columns: Columns, written: str) -> Row:
    """Return the row of a clip that these members describe, without its path."""
    found = Row()
    for name, text in sorted(texts.items(), key=lambda item: DESCRIPTIONS.index(_suffix(item[0]))):
        where = f"{written}/{name}"
        if _suffix(name) == ".txt":
            captions, problem = captions_of({"caption": text}, "caption", where)
            row = Row(captions=captions, problem=problem)
        elif _suffix(name) == ".cls":
            row = Row(label=name_of(text.strip()))
        else:
            row = _of_json(text, columns, where)
        found = Row(
            "", tuple(dict.fromkeys(found.captions + row.captions)), found.label or row.label, found.fold or row.fold,
            found.recording_id or row.recording_id, found.problem or row.problem,
        )  # fmt: skip
    return found


def _of_json(text: str, columns: Columns, where: str) -> Row:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        return Row(problem=Problem("unreadable", f"its .json is not valid JSON ({error.msg} at character {error.pos})"))
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, lists in lists
        return Row(problem=Problem("unreadable", f"its .json cannot be read: {error}"))
    if not isinstance(record, dict):
        return Row(problem=Problem("unreadable", "its .json is not a JSON object"))
    names = (columns.caption,) if isinstance(columns.caption, str) else columns.caption or ()
    if columns.caption == Columns.caption:
        names = ("caption",) if "caption" in record else ("text",)
    present = tuple(name for name in names if name in record)
    return row_of(record, replace(columns, path=None, caption=present), where, 0)


def audio_column(schema: pa.Schema, columns: Columns) -> str | None:
    """Return the column of a Parquet file that has audio; None for a table of paths or captions.

    Raises
    ------
    ManifestError
        Several columns could have the audio.
    """
    kinds = dict(zip(schema.names, schema.types, strict=True))
    found = [name for name, kind in kinds.items() if _holds_bytes(kind)]
    if columns.path in found or columns.path in kinds:
        return columns.path if columns.path in found else None
    if len(found) > 1 and "audio" not in found:
        raise ManifestError(
            f"{' or '.join(found)} may be audio; choose the column, such as `columns: {{path: {found[0]}}}`"
        )
    return "audio" if "audio" in found else next(iter(found), None)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(item.name == "bytes" and _holds_bytes(item.type) for item in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_audio(path: str, columns: Columns) -> bool:
    """Return whether a Parquet file has a column of audio.

    Raises
    ------
    OSError, ValueError
        The file cannot be read.
    """
    return with_parquet(path, lambda file: audio_column(file.schema_arrow, columns)) is not None


def read_cells(path: str, written: str, columns: Columns) -> Shard:
    """Return the rows of a Parquet file with audio, without reading the audio.

    Parameters
    ----------
    path : str
        Address of the file.
    written : str
        The same as written in the source; part of the addresses in the rows.
    columns : Columns

    Returns
    -------
    Shard
        If the file cannot be read, its `bad` says so.

    Raises
    ------
    ManifestError
        The columns do not fit.
    """
    shard = Shard()

    def read(file: parquet.ParquetFile) -> None:
        for row in _cells(file, path, written, columns):
            shard.rows.append(row)

    try:
        with_parquet(path, read)
    except FileNotFoundError:
        shard.bad[written, "missing", "no such file"] += 1
    except (OSError, ValueError) as error:
        said = f"{str(error).splitlines()[0]} after {len(shard.rows)} rows: the rest cannot be read"
        shard.bad[written, "too_large" if isinstance(error, TooLarge) else "unreadable", said] += 1
    return shard


def _cells(file: parquet.ParquetFile, path: str, written: str, columns: Columns) -> Iterator[Row]:
    schema = file.schema_arrow
    audio = audio_column(schema, columns)
    if audio is None:
        raise ValueError("no column holds audio")
    known = resolve(replace(columns, path=None), [name for name in schema.names if name != audio], path)
    captions = (known.caption,) if isinstance(known.caption, str) else known.caption or ()
    wanted = {name for name in (*captions, known.label, known.fold, known.recording_id) if name}
    kind = schema.field(audio).type
    if pa.types.is_struct(kind) and "path" in [item.name for item in kind]:
        wanted.add(f"{audio}.path")
    without_bytes = chain(_are_without_bytes(file, audio), repeat(False))
    for number, (record, is_elsewhere) in enumerate(zip(_records(file, sorted(wanted)), without_bytes, strict=False)):
        if isinstance(record, Problem):
            name, row = "", Row(problem=record, line=number)
        else:
            name = str((record.get(audio) or {}).get("path") or "")
            row = row_of(record, known, f"{written}, row {number}", number)
        if name and is_elsewhere:  # a file next to the table, as before Hugging Face embeds audio
            yield placed(row, addresses.absolute(posixpath.dirname(path), name))
        else:
            yield placed(row, addresses.cell_address(written, number, audio, name))


def _are_without_bytes(file: parquet.ParquetFile, audio: str) -> Iterator[bool]:
    """Yield for each row whether its row group has no audio at all, according to the footer of the file."""
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        chunks = (group.column(place) for place in range(group.num_columns))
        found = [chunk for chunk in chunks if chunk.path_in_schema in (audio, f"{audio}.bytes")]
        known = [chunk.statistics for chunk in found if chunk.statistics is not None]
        is_empty = bool(known) and all(said.has_null_count and said.null_count == group.num_rows for said in known)
        yield from (is_empty for _ in range(group.num_rows))


def _records(file: parquet.ParquetFile, columns: list[str]) -> Iterator[dict[str, Any] | Problem]:
    if not columns:
        yield from ({} for _ in range(file.metadata.num_rows))
        return
    for batch in batches(file, columns):
        yield from _plain(batch)


def _plain(batch: pa.RecordBatch) -> list[dict[str, Any] | Problem]:
    """Return the rows of a batch as Python values, with a problem in place of each row that cannot be converted."""
    said = too_large(batch.nbytes, TEXT)
    if not said or batch.num_rows == 1:
        try:
            return [Problem("too_large", said)] if said else batch.to_pylist()
        except (ValueError, ArithmeticError, pa.ArrowException) as error:  # not UTF-8, a date after the year 9999
            if batch.num_rows == 1:
                return [Problem("unreadable", str(error))]
    return [value for row in range(batch.num_rows) for value in _plain(batch.slice(row, 1))]
