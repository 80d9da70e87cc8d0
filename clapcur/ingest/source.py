"""From a source to its rows: which file, which captions, which label, whatever form they were written in."""

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from clapcur.audio import Problem
from clapcur.corpora import find_corpus, read_copy
from clapcur.errors import ManifestError
from clapcur.ingest.config import Columns, IngestConfig
from clapcur.manifest import normalise_caption
from clapcur.tables import cell_text, read_table, text_lines

# What libsndfile reads, and behind the bar what it does not: listed, so that such files are seen in the quarantine.
AUDIO_SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc"
    " .m4a .mp4 .aac .wma .webm .amr".split()
)
PATH_LIKE = frozenset({"file", "filename", "filepath", "fname", "audio", "audiopath", "audiofile", "wav", "wavpath"})
NO_CAPTION = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>"})  # how tools write a missing text


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source: a file, captions, or both."""

    path: str = ""
    # as it was written; "" where there are captions only
    captions: tuple[str, ...] = ()
    # normalised
    label: str = ""
    fold: str = ""
    recording_id: str = ""
    problem: Problem | None = None
    # of the row itself: no path, an empty caption
    line: int = 0


@dataclass
class Source:
    """All rows, and what their relative paths are relative to."""

    rows: list[Row]
    base: Path
    counts: dict[str, int] = field(default_factory=dict)
    bad: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    # path, reason, detail -> how many clips a corpus should have that no row names
    about: str = ""
    # what a corpus should have and the copy has

    def locate(self, path: str) -> str:
        """Return the absolute path of a path as it was written."""
        return os.path.abspath(self.base / path)


def read_source(config: IngestConfig) -> Source:
    """Read all rows of a folder or a table.

    Raises
    ------
    ManifestError
        There is no such source, it holds nothing, or its columns do not fit the config.
    """
    path = Path(config.source)
    if config.corpus is not None:
        return _corpus(config.corpus, path, config.folds)
    if path.is_dir() and config.source:
        return _folder(path, config)
    if not path.is_file():
        raise ManifestError(f"the source {str(path)!r} does not exist: expected a table or a folder of audio files")
    if config.metadata is not None:
        raise ManifestError(f"metadata is for a folder of audio files, {path} is a table: put the columns into it")
    if path.suffix.lower() == ".txt":
        rows = [_caption_row(text, number) for number, text in text_lines(path)]
    else:
        header, records = read_table(path)
        columns = _resolve(config.columns, header, path)
        if columns.path is None and columns.caption is None:
            raise ManifestError(
                f"{path} must have a column {config.columns.path!r} or {config.columns.caption!r}, it has {header}"
                + _hint(("path", "caption"), header)
                + "; name them in `columns`"
            )
        rows = [_row(record, columns, f"{path}, line {line}", line) for line, record in records]
    if not rows:
        raise ManifestError(f"{path} has no rows")
    return Source(rows, Path(config.audio_folder) if config.audio_folder else path.parent)


def _folder(folder: Path, config: IngestConfig) -> Source:
    files = sorted(_audio_files(folder))
    if not files:
        raise ManifestError(f"{folder} and its sub-folders hold no audio file; a file of captions must be named itself")
    if config.metadata is None:
        return Source([Row(path=file) for file in files], folder)
    table = Path(config.metadata)
    header, records = read_table(table)
    columns = _resolve(config.columns, header, table)
    if columns.path is None:
        raise ManifestError(f"{table} must have a column of paths (`columns.path`), it has {header}")
    base = Path(config.audio_folder or folder)
    known: dict[str, list[Row]] = {}
    for line, record in records:
        row = _row(record, columns, f"{table}, line {line}", line)
        known.setdefault(os.path.abspath(base / row.path), []).append(row)
    rows, without = [], 0
    for file in files:
        described = known.pop(os.path.abspath(folder / file), [])
        without += not described
        rows += [_at(row, file) for row in described] or [Row(path=file)]
    if without == len(files):
        first = min((row.path for described in known.values() for row in described), default="absent")
        raise ManifestError(
            f"no file of {folder} stands in {table}: the first file is {files[0]!r}, the table's first path is "
            f"{first!r}; set `audio_folder` to what its paths are relative to"
        )
    return Source(rows, folder, {"without_metadata": without, "without_file": len(known)})


def _corpus(name: str, folder: Path, folds: Sequence[str]) -> Source:
    """Read a copy of a corpus; a file that is not there stands in a row all the same, and its probe says so."""
    copy = read_copy(find_corpus(name), folder, folds)
    rows = []
    for line, entry in enumerate(copy.entries, 1):
        captions, problem = (
            _captions({"caption": entry.captions}, "caption", entry.path) if entry.captions else ((), None)
        )
        rows.append(Row(entry.path, captions, entry.label, entry.fold, entry.recording_id, problem, line))
    unlisted = {fold: count for fold, count in copy.unlisted.items() if count}
    counts = {
        "published": copy.num_expected,
        "absent": len(copy.missing),
        "without_recording": sum(not entry.recording_id for entry in copy.entries),
    }
    bad = Counter({(fold, "not_listed", f"{count} clips of {fold}"): count for fold, count in unlisted.items()})
    return Source(rows, folder, counts, bad, str(copy))


def _at(row: Row, path: str) -> Row:
    return Row(path, row.captions, row.label, row.fold, row.recording_id, row.problem, row.line)


def _audio_files(folder: Path) -> Iterator[str]:
    """Yield relative paths; links to folders are followed, hidden files (macOS puts its ``._`` files there) are not."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link to a parent would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES:
                yield Path(root, name).relative_to(folder).as_posix()


def _row(record: Mapping[str, Any], columns: Columns, where: str, line: int) -> Row:
    def text(column: str | None) -> str:
        return cell_text(record.get(column), f"{where}, column {column!r}") if column else ""

    captions, problem = _captions(record, columns.caption, where)
    path = text(columns.path)
    if columns.path and not path:
        captions, problem = (), Problem("missing", "the row names no file")
    return Row(path, captions, text(columns.label), text(columns.fold), text(columns.recording_id), problem, line)


def _captions(
    record: Mapping[str, Any], column: str | tuple[str, ...] | None, where: str
) -> tuple[tuple[str, ...], Problem | None]:
    names = (column,) if isinstance(column, str) else column or ()
    captions, num_empty = [], 0
    for name in names:
        cell = record.get(name)
        for value in cell if isinstance(cell, (list, tuple)) else [cell]:
            text = normalise_caption(cell_text(value, f"{where}, column {name!r}"))
            if text.casefold() in NO_CAPTION:
                num_empty += 1
            else:
                captions.append(text)
    return tuple(captions), Problem("empty_caption", f"{num_empty} of its captions") if num_empty else None


def _caption_row(line: str, number: int) -> Row:
    captions, problem = _captions({"caption": line}, "caption", "")
    return Row(captions=captions, problem=problem, line=number)


def _resolve(columns: Columns, header: Sequence[str], table: Path) -> Columns:
    """Return the columns with None for the defaults that the table does not have."""
    claimed = {name for item in fields(columns) for name in _names(getattr(columns, item.name))}
    found: dict[str, Any] = {}
    for item in fields(columns):
        wanted = getattr(columns, item.name)
        missing = [name for name in _names(wanted) if name not in header]
        found[item.name] = None if missing else wanted
        if not missing:
            continue
        if wanted != item.default:
            names = ", ".join(map(repr, missing))
            raise ManifestError(f"{table} has no column {names}, it has {list(header)}" + _hint(missing, header))
        means_it = {_plain(wanted)} | (PATH_LIKE if item.name == "path" else set())
        same = [name for name in header if _plain(name) in means_it and name not in claimed]
        if same:  # 'Labels' would be dropped without a word, and 'filename' with all the audio
            raise ManifestError(
                f"{table} has no column {wanted!r} but {same[0]!r}; say `columns: {{{item.name}: {same[0]}}}` to use "
                f"it or `{item.name}: null` to leave it"
            )
    return Columns(**found)


def _names(wanted: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (wanted,) if isinstance(wanted, str) else wanted or ()


def _plain(name: str) -> str:
    return name.casefold().replace("_", "").replace(" ", "").rstrip("s")


def _hint(names: Sequence[str], header: Sequence[str]) -> str:
    near = dict.fromkeys(near for name in names for near in difflib.get_close_matches(name, header, n=1))
    return f"; did you mean {' and '.join(map(repr, near))}?" if near else ""
