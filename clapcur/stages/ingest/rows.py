"""Records of any form -> rows: file, captions, label."""

import ast
import difflib
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from clapcur.audio import Problem
from clapcur.data.manifest import normalise_caption
from clapcur.data.recordings import recording_id
from clapcur.data.tables import cell_text, whole_number
from clapcur.errors import ManifestError
from clapcur.stages.ingest.config import Columns

# Suffixes that libsndfile reads and, after the bar, suffixes that it does not, so that such files are quarantined.
AUDIO_SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc"
    " .m4a .mp4 .aac .wma .webm .amr".split()
)
PATH_LIKE = frozenset({"file", "filename", "filepath", "fname", "audio", "audiopath", "audiofile", "wav", "wavpath"})
NUMBERED_CAPTION = re.compile(r".*captions?[ _.-]?\d+", re.IGNORECASE)
LONGEST_CAPTION = 100_000  # characters; a longer text is no caption
NO_CAPTION = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>"})  # how tools write a missing text
QUOTED = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""")
LIST = re.compile(rf"\[\s*(?:{QUOTED.pattern})(?:(?:\s*,\s*|\s+)(?:{QUOTED.pattern}))*\s*,?\s*\]")
BEGINS_A_LIST = re.compile(r"""\[\s*['"].*(['"]\s*,?\s*\]|\.\.\.)$""", re.DOTALL)
NO_NAME = frozenset({"", "nan", "<na>", "nat", "null"})  # NA, none and unknown may be labels


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source: a file, captions, or both."""

    path: str = ""
    # as written in the source; "" if the row has only captions
    captions: tuple[str, ...] = ()
    # normalised
    label: str = ""
    fold: str = ""
    recording_id: str = ""
    problem: Problem | None = None
    # a problem of the row itself, such as no path or an empty caption
    line: int = 0


def placed(row: Row, path: str) -> Row:
    """Return a row with another path."""
    return replace(row, path=path)


def row_of(record: Mapping[str, Any] | ManifestError, columns: Columns, where: str, line: int) -> Row:
    """Return the row of a record.

    If a value that should be single is a list or an object, only the path is used. A record that could not be read
    becomes a row with only this problem.

    Parameters
    ----------
    record : mapping or ManifestError
        Cells by column, or the error if the record could not be read.
    columns : Columns
        The columns to read.
    where : str
        Position in the source, for people.
    line : int
        Number of the line.
    """
    if isinstance(record, ManifestError):
        return Row(problem=Problem("broken_row", str(record)), line=line)

    def text(column: str | None, strip: bool = True) -> str:
        return cell_text(record.get(column), f"{where}, column {column!r}", strip) if column else ""

    path = ""
    try:
        path = text(columns.path, strip=False)  # a file name may start with a space
        captions, problem = captions_of(record, columns.caption, where)
        if columns.path and not path.strip():
            path, captions, problem = "", (), Problem("missing", "the row gives no path")
        label, fold = name_of(text(columns.label)), name_of(text(columns.fold))
        return Row(path, captions, label, fold, recording_id(text(columns.recording_id)), problem, line)
    except ManifestError as error:
        return Row(path, problem=Problem("wrong_type", str(error)), line=line)


def name_of(text: str) -> str:
    """Return a normalised label or fold: ``1`` for ``1.0``, and "" for pandas' forms of a missing value."""
    return "" if text.casefold() in NO_NAME else whole_number(text)


def captions_of(
    record: Mapping[str, Any], column: str | tuple[str, ...] | None, where: str
) -> tuple[tuple[str, ...], Problem | None]:
    """Return the normalised captions of a record, and their problem, if any.

    A list gives several captions, even if it is written as text in a cell of a CSV. An empty caption among others is
    skipped.

    Parameters
    ----------
    record : mapping
        Cells by column.
    column : str, tuple of str or None
        Columns with captions.
    where : str
        Position in the source, for people.

    Raises
    ------
    ManifestError
        A caption is bytes, an object, or a list within a list.
    """
    names = (column,) if isinstance(column, str) else column or ()
    captions, num_empty, unread = [], 0, ""
    for name in names:
        cell = record.get(name)
        for value in cell if isinstance(cell, (list, tuple)) else [cell]:
            text = cell_text(value, f"{where}, column {name!r}")
            found = listed_texts(text)
            unread = unread or (text if found is None else "")
            for caption in map(normalise_caption, found or ()):
                if caption.casefold() in NO_CAPTION:
                    num_empty += 1
                else:
                    captions.append(caption)
    if unread:
        return (), Problem("unreadable_captions", f"a truncated or malformed list: {unread[:80]}")
    if any(len(caption) > LONGEST_CAPTION for caption in captions):
        return (), Problem("too_long", f"a caption of more than {LONGEST_CAPTION:,} characters; is a quote unclosed?")
    if num_empty and not captions:
        return (), Problem("empty_caption", f"{num_empty} of its captions")
    return tuple(captions), None


def listed_texts(text: str) -> list[str] | None:
    """Return the texts of a list that Python or numpy wrote into a cell, such as ``['a', 'b']``; else the text itself.

    None if the text looks like such a list but is not: truncated, or with items that are not texts.
    """
    if not BEGINS_A_LIST.match(text):
        return [text]
    if not LIST.fullmatch(text):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # a backslash before a letter is literal
        return [ast.literal_eval(item) for item in QUOTED.findall(text)]


def caption_row(line: str, number: int) -> Row:
    """Return the row of a line with one caption."""
    captions, problem = captions_of({"caption": line}, "caption", "")
    return Row(captions=captions, problem=problem, line=number)


def resolve(columns: Columns, header: Sequence[str], table: Path | str) -> Columns:
    """Return the columns, with None for default columns that the table does not have.

    Parameters
    ----------
    columns : Columns
        Columns as named in the config.
    header : sequence of str
        Columns of the table.
    table : Path or str
        The table, for the message.

    Raises
    ------
    ManifestError
        The table lacks a column that the config names, or spells a default column differently.
    """
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
            raise ManifestError(
                f"{table} has no column {names}; its columns are {list(header)}" + hint(missing, header)
            )
        if item.name == "caption" and (numbered := [name for name in header if NUMBERED_CAPTION.fullmatch(name)]):
            options = " ".join(f"--caption-column {shlex.quote(name)}" for name in numbered)
            raise ManifestError(
                f"{table} has no column {wanted!r}, but has {', '.join(numbered)}; set `columns: {{caption: "
                f"[{', '.join(numbered)}]}}`, or {options}, to use them, or `caption: null` to ignore them"
            )
        means_it = {_plain(wanted)} | (PATH_LIKE if item.name == "path" else set())
        same = [name for name in header if _plain(name) in means_it and name not in claimed]
        if same:  # otherwise 'Labels' would be dropped silently, and 'filename' with all the audio
            raise ManifestError(
                f"{table} has no column {wanted!r}, but has {same[0]!r}; set `columns: {{{item.name}: {same[0]}}}` to "
                f"use it, or `{item.name}: null` to ignore it"
            )
    return Columns(**found)


def _names(wanted: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (wanted,) if isinstance(wanted, str) else wanted or ()


def _plain(name: str) -> str:
    return name.casefold().replace("_", "").replace(" ", "").rstrip("s")


def hint(names: Sequence[str], header: Sequence[str]) -> str:
    """Return a question that suggests columns with similar names; "" if there are none."""
    near = dict.fromkeys(near for name in names for near in difflib.get_close_matches(name, header, n=1))
    return f"; did you mean {' and '.join(map(repr, near))}?" if near else ""
