"""Sources of any form -> rows: file, captions, label."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from clapcur.audio import addresses
from clapcur.audio.access import Roots
from clapcur.audio.stores import Stamp, asking, stamp_of
from clapcur.corpora import find_corpus, read_copy
from clapcur.data.tables import read_tolerantly, text_lines
from clapcur.errors import ManifestError, printable
from clapcur.stages.ingest.config import Columns, IngestConfig
from clapcur.stages.ingest.rows import AUDIO_SUFFIXES, Row, caption_row, captions_of, hint, placed, resolve, row_of
from clapcur.stages.ingest.shards import Listing, Remember, holds_audio, is_tar, read_cells, read_tar
from clapcur.stages.ingest.spelling import Spelling

log = logging.getLogger("clapcur")


@dataclass
class Source:
    """The rows of a source, and the base of their relative paths."""

    rows: list[Row]
    base: str
    # a folder or a URL
    counts: dict[str, int] = field(default_factory=dict)
    bad: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    # (path, reason, detail) -> number of rows: clips that a corpus lacks, problems of shards, refused rows
    about: str = ""
    # what a corpus should have, and what the copy has
    num_refused: int = 0
    # rows whose files must not be read, or whose names cannot be stored; they are in `bad`, not in `rows`
    stamps: dict[str, Stamp] = field(default_factory=dict)
    # stamps of objects from the listing of their store, so that they need not be requested again

    def locate(self, path: str) -> str:
        """Return the absolute address of a path as written in the source."""
        return addresses.absolute(self.base, path)


def list_anew(path: str, stamp: Stamp | None, make: Callable[[], Listing]) -> Listing:
    """Return the listing of a tar, without caching it.

    Parameters
    ----------
    path : str
    stamp : Stamp or None
    make : callable
        Lists the tar.
    """
    return make()


def read_source(config: IngestConfig, remember: Remember = list_anew) -> Source:
    """Read all rows of a folder, a table, a shard or a URL.

    Parameters
    ----------
    config : IngestConfig
    remember : callable
        See `clapcur.stages.ingest.shards.read_tar`.

    Raises
    ------
    ManifestError
        The source does not exist, is empty, or its columns do not fit the config.
    """
    for place in (config.source, config.audio_folder or "", config.metadata or ""):
        if not addresses.is_utf8(place):
            raise ManifestError(f"the name of {printable(place)} is not UTF-8; rename it")
    if config.corpus is not None:
        source = _corpus(config.corpus, Path(config.source), config.folds)
        _admit(source, config.roots)
        return source
    source = _place(config)
    _admit(source, config.roots)
    _open_shards(source, config.columns, remember)
    if not source.rows and not source.bad:
        raise ManifestError(f"{config.source} has no rows")
    return source


def _place(config: IngestConfig) -> Source:
    """Return the rows of the source with each shard as one row."""
    path = Path(config.source)
    if addresses.is_url(config.source):
        return _store(config)
    if path.is_dir() and config.source:
        return _folder(path, config)
    if not path.is_file():
        lack = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise ManifestError(f"the source {str(path)!r} {lack}: expected a table or a folder of audio files")
    if config.metadata is not None:
        raise ManifestError(
            f"metadata needs a folder of audio files, but {path} is a file: add the columns to it instead"
        )
    if _is_shard(str(path), config.columns, where_broken=False):
        return Source([Row(path=path.name)], str(path.parent))
    base = config.audio_folder or str(path.parent)
    if path.suffix.lower() == ".txt":
        return Source([caption_row(text, number) for number, text in text_lines(path)], base)
    header, records = read_tolerantly(path)
    columns = resolve(config.columns, header, path)
    if columns.path is None and columns.caption is None:
        raise ManifestError(
            f"{path} must have a column {config.columns.path!r} or {config.columns.caption!r}; its columns are {header}"
            + hint(("path", "caption"), header)
            + _about_header(header)
        )
    spelling = Spelling(base)
    rows = [row_of(record, columns, f"{path}, line {line}", line) for line, record in records]
    rows = [placed(row, spelling.find(row.path)) if row.path else row for row in rows]
    _say(path, spelling)
    return Source(rows, base)


def _about_header(header: Sequence[str]) -> str:
    if any(PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES for name in header):
        return "; is that a row? The first line must name the columns, such as path,caption"
    return "; name them in `columns`"


def _say(table: Path, spelling: Spelling) -> None:
    for line in spelling.summary():
        log.warning("%s: %s", table, line)


def _admit(source: Source, roots: Sequence[str]) -> None:
    """Move rows to the quarantine if their files or objects must not be read, or their names cannot be stored."""
    allowed = Roots.of((*roots, source.base if addresses.is_url(source.base) else os.path.abspath(source.base)))
    rows = []
    for row in source.rows:
        place = source.locate(row.path) if row.path else ""
        if not addresses.is_utf8(place):
            detail = "the name of the file or of its folder is not UTF-8; rename it"
            source.bad[printable(row.path), "unreadable", detail] += 1
        elif place and (said := allowed.refusal(place)):
            source.bad[addresses.readable(row.path), "not_allowed", said] += 1
        else:
            rows.append(row)
    source.num_refused = len(source.rows) - len(rows)
    source.rows = rows


def _is_shard(path: str, columns: Columns, where_broken: bool) -> bool:
    """Return whether a file has many clips; for an unreadable Parquet file, return `where_broken`."""
    if not path.lower().endswith(".parquet"):
        return is_tar(path)
    try:
        return holds_audio(path, columns)
    except (OSError, ValueError):
        return where_broken


def _open_shards(source: Source, columns: Columns, remember: Remember) -> None:
    """Replace the row of each shard with the rows of its clips."""
    rows = []
    without_file = 0
    for row in source.rows:
        is_parquet = row.path.lower().endswith(".parquet")
        if not is_parquet and not is_tar(row.path):
            rows.append(row)
            continue
        if replace(row, path="", line=0) != Row():
            detail = (
                f"line {row.line} describes {row.path}, a shard of many clips; describe clips inside the shard instead"
            )
            source.bad[row.path, "described_shard", detail] += 1
            continue
        place = source.locate(row.path)
        if is_parquet:
            shard = read_cells(place, row.path, columns)
        else:
            shard = read_tar(place, row.path, columns, remember, source.stamps.get(place))
        rows += shard.rows
        source.bad += shard.bad
        without_file += shard.without_file
    source.rows = rows
    if without_file:
        source.counts = source.counts | {"without_file": without_file}


def _store(config: IngestConfig) -> Source:
    """List an object, or all objects under a URL; only the listing, and the footers of tables, are requested."""
    url = config.source.rstrip("/")
    if config.metadata is not None or config.audio_folder is not None:
        raise ManifestError(f"{url} is a URL: list its clips in a local table, with URLs in its path column")
    try:
        with asking(url) as (store, root):
            root = root.rstrip("/")
            info = store.info(root)
            is_one = info["type"] == "file"
            found = {root: info} if is_one else store.find(root, detail=True)
    except FileNotFoundError:
        raise ManifestError(f"the source {url} does not exist: expected a shard, or a folder of audio files") from None
    except OSError as error:
        raise ManifestError(f"{url} cannot be read: {error}") from None
    base = url.rpartition("/")[0] if is_one else url
    cut = len(root) - len(root.rpartition("/")[2]) if is_one else len(root) + 1
    source = Source([], base)
    for path, info in sorted(found.items()):
        name = path[cut:]
        if not any(part.startswith(".") for part in name.split("/")) and _is_audio(f"{base}/{name}", config.columns):
            source.rows.append(Row(path=name))
            if (stamp := stamp_of(info)) is not None:
                source.stamps[f"{base}/{name}"] = stamp
    if not source.rows:
        raise ManifestError(
            f"{url} holds no audio file and no shard; a table must be a local file, with URLs in its path column"
        )
    return source


def _is_audio(path: str, columns: Columns) -> bool:
    """Return whether a file in a folder is read, as one clip or as a shard."""
    return _has_audio_suffix(path) or _is_shard(path, columns, where_broken=True)


def _has_audio_suffix(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in AUDIO_SUFFIXES


def _folder(folder: Path, config: IngestConfig) -> Source:
    bad = Counter[tuple[str, str, str]]()
    files = sorted(_audio_files(folder, config.columns, bad))
    if not files and not bad:
        raise ManifestError(f"{folder} and its subfolders hold no audio file; for captions, give the file itself")
    if config.metadata is None:
        return Source([Row(path=file) for file in files], str(folder), bad=bad)
    if shards := [file for file in files if is_tar(file) or file.lower().endswith(".parquet")]:
        raise ManifestError(
            f"metadata describes single files, but {folder} holds the shard {shards[0]}: ingest shards separately"
        )
    table = Path(config.metadata)
    header, records = read_tolerantly(table)
    columns = resolve(config.columns, header, table)
    if columns.path is None:
        raise ManifestError(f"{table} must have a column of paths (`columns.path`); its columns are {header}")
    base, spelling = Path(config.audio_folder or folder), Spelling(str(config.audio_folder or folder))
    known: dict[str, list[Row]] = {}
    for line, record in records:
        row = row_of(record, columns, f"{table}, line {line}", line)
        known.setdefault(os.path.abspath(base / spelling.find(row.path)), []).append(row)
    _say(table, spelling)
    rows, without = [], 0
    for file in files:
        described = known.pop(os.path.abspath(folder / file), [])
        without += not described
        rows += [placed(row, file) for row in described] or [Row(path=file)]
    if without == len(files):
        first = min((row.path for described in known.values() for row in described), default="absent")
        raise ManifestError(
            f"no file of {folder} is in {table}: the first file is {files[0]!r}, the table's first path is "
            f"{first!r}; set `audio_folder` to the base folder of its paths"
        )
    return Source(rows, str(folder), {"without_metadata": without, "without_file": len(known)}, bad)


def _corpus(name: str, folder: Path, folds: Sequence[str]) -> Source:
    """Read a copy of a corpus; missing files have rows too, and their probes report them."""
    copy = read_copy(find_corpus(name), folder, folds)
    rows = []
    for line, entry in enumerate(copy.entries, 1):
        captions, problem = (
            captions_of({"caption": entry.captions}, "caption", entry.path) if entry.captions else ((), None)
        )
        rows.append(Row(entry.path, captions, entry.label, entry.fold, entry.recording_id, problem, line))
    unlisted = {fold: count for fold, count in copy.unlisted.items() if count}
    counts = {
        "published": copy.num_expected,
        "absent": len(copy.missing),
        "without_recording": sum(not entry.recording_id for entry in copy.entries),
    }
    bad = Counter({(fold, "not_listed", f"{count} clips of {fold}"): count for fold, count in unlisted.items()})
    return Source(rows, str(folder), counts, bad, str(copy))


def _audio_files(folder: Path, columns: Columns, bad: Counter[tuple[str, str, str]]) -> list[str]:
    """Return relative paths; links to folders are followed, and hidden files (such as macOS's ``._`` files) skipped.

    Unreadable folders, and folders that are named like an audio file but have none, are added to `bad`.
    """

    def unreadable(error: OSError) -> None:
        bad[relative(error.filename), "unreadable", error.strerror or str(error)] += 1

    def relative(path: str) -> str:
        return printable(os.path.relpath(path, folder))

    seen, found, named_as_sound = set(), [], []
    for root, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link to a parent would be an endless loop
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        named_as_sound += [os.path.join(root, name) for name in folders if _has_audio_suffix(name) or is_tar(name)]
        for name in names:
            if not name.startswith(".") and _is_audio(os.path.join(root, name), columns):
                found.append(Path(root, name).relative_to(folder).as_posix())
    if named_as_sound:
        holding = {str(above) for file in found for above in PurePosixPath(file).parents}
        for path in named_as_sound:
            if os.path.relpath(path, folder) not in holding:
                bad[relative(path), "unreadable", "a folder, not a file"] += 1
    return found
