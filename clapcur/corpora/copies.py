"""A corpus as published, and a local copy of it: what should be there, what is, and what is missing.

A reader (one module per corpus) converts the corpus' own files to entries. It yields every clip that the corpus lists,
whether or not its file exists: `read_copy` compares both with what was published, and nothing is silently left out.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clapcur.data.class_names import class_list
from clapcur.data.tables import read_table, whole_number
from clapcur.errors import ManifestError

NUM_EXAMPLES = 3  # number of files listed in a message


@dataclass(frozen=True, slots=True)
class Entry:
    """One clip as its corpus describes it."""

    path: str
    # relative to the copy's folder
    captions: tuple[str, ...] = ()
    label: str = ""
    fold: str = ""
    # of the cross-validation, or the official split
    recording_id: str = ""
    # see `clapcur.data.recordings`


@dataclass(frozen=True)
class Corpus:
    """What is known about a corpus without having a copy."""

    name: str
    # used in configs
    title: str
    licence: str
    clips: Mapping[str, tuple[int, ...]]
    # published number of clips in each fold or official split; several numbers if there are several versions
    folds: tuple[str, ...]
    # folds or splits that are read by default
    layout: tuple[str, ...]
    # the files and folders that a copy must have; the folder that holds these is the source of an ingest
    recordings: str
    # what a recording id refers to
    departures: tuple[str, ...]
    # what differs from the reference's preparation, and what is unexpectedly the same
    read: Callable[[Path, Sequence[str]], Iterable[Entry]] = field(repr=False)
    # folder, folds -> entries
    classes: str = ""
    # name of the built-in list of its class names, if it has classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of its classes, in the paper's order; empty if it has no classes."""
        return class_list(self.classes) if self.classes else ()

    def expected(self, fold: str, listed: int) -> int:
        """Return the published number of clips of the version that a copy appears to have.

        Raises
        ------
        ManifestError
            The copy lists more clips than any version has.
        """
        versions = sorted(self.clips[fold])
        if listed > versions[-1]:
            raise ManifestError(
                f"{self.title} has {versions[-1]:,} clips in {fold}, but this copy lists {listed:,}; is it a different "
                "corpus, or are rows duplicated?"
            )
        return next(number for number in versions if number >= listed)


@dataclass(frozen=True)
class Copy:
    """The part of a corpus that a folder contains."""

    corpus: Corpus
    folder: Path
    entries: tuple[Entry, ...]
    # all clips in its lists
    missing: tuple[str, ...]
    # paths of entries whose file does not exist
    unlisted: Mapping[str, int]
    # number of published clips that are in no list of this copy, by fold

    @property
    def num_expected(self) -> int:
        """The published number of clips in the folds that were read."""
        return len(self.entries) + sum(self.unlisted.values())

    def __str__(self) -> str:
        """Summarise what is there and what is missing, with the names of the first missing files."""
        said = [f"{self.corpus.title} in {self.folder}: {self.num_expected:,} clips were published"]
        short = [f"{count:,} of {fold}" for fold, count in self.unlisted.items() if count]
        said.append(f"{', '.join(short)} are not listed" if short else "all are listed")
        if self.missing:
            names = ", ".join(self.missing[:NUM_EXAMPLES]) + (", ..." if len(self.missing) > NUM_EXAMPLES else "")
            said.append(f"{len(self.missing):,} files are missing: {names}")
        else:
            said.append("no listed file is missing")
        return "; ".join(said)


def read_copy(corpus: Corpus, folder: Path, folds: Sequence[str] = ()) -> Copy:
    """Read a local copy of a corpus.

    Parameters
    ----------
    corpus : Corpus
    folder : Path
        Folder with the files of `Corpus.layout`.
    folds : sequence of str
        Folds or splits to read; by default `Corpus.folds`.

    Raises
    ------
    ManifestError
        A fold is unknown, a list of the corpus is missing or invalid, or none of the audio files exists.
    """
    folds = tuple(whole_number(str(name).strip()) for name in folds)
    if unknown := [name for name in folds if name not in corpus.clips]:
        raise ManifestError(
            f"{corpus.title} has no fold or split {', '.join(map(repr, unknown))}; it has {', '.join(corpus.clips)}"
        )
    if not folder.is_dir():
        raise ManifestError(f"folder {folder} not found; it should hold {corpus.title}: {', '.join(corpus.layout)}")
    wanted = folds or corpus.folds
    entries = tuple(entry for entry in _known(corpus, folder, wanted) if entry.fold in wanted)
    listed = Counter(entry.fold for entry in entries)
    unlisted = {fold: corpus.expected(fold, listed[fold]) - listed[fold] for fold in wanted}
    missing = tuple(_missing(folder, (entry.path for entry in entries)))
    if entries and len(missing) == len(entries):
        raise ManifestError(
            f"{folder} holds no audio of {corpus.title}: {missing[0]} and {len(missing) - 1:,} others are missing; the "
            f"folder must hold {', '.join(corpus.layout)}"
        )
    return Copy(corpus, folder, entries, missing, unlisted)


def listing(
    corpus: str, path: Path, columns: Sequence[str], encoding: str = "utf-8-sig"
) -> Iterator[Mapping[str, str]]:
    """Return an iterator over the rows of one of the corpus' own tables.

    Parameters
    ----------
    corpus : str
        Name of the corpus, for error messages.
    path : Path
    columns : sequence of str
        Columns that the table must have.
    encoding : str
        As for `read_table`.

    Returns
    -------
    iterator of mappings
        Cells by column.

    Raises
    ------
    ManifestError
        The table lacks one of the columns, or cannot be read.
    """
    header, rows = read_table(path, encoding)
    if missing := [name for name in columns if name not in header]:
        raise ManifestError(
            f"{path} is not a table of {corpus}: it has no column {', '.join(missing)}; its columns are {header}"
        )
    return (row for _, row in rows)


def file_of(corpus: str, folder: Path, *candidates: str) -> Path:
    """Return the first candidate, relative to `folder`, that exists; raise ManifestError if none does."""
    for name in candidates:
        if (folder / name).exists():
            return folder / name
    raise ManifestError(
        f"{folder} is not a copy of {corpus}: it has no {' and no '.join(candidates)}; give the folder that holds it"
    )


def _known(corpus: Corpus, folder: Path, folds: Sequence[str]) -> Iterator[Entry]:
    """Yield the entries; raise ManifestError if one is in a fold that the corpus does not have."""
    for entry in corpus.read(folder, folds):
        if entry.fold not in corpus.clips:
            raise ManifestError(
                f"{folder} lists {entry.path} in fold {entry.fold!r}, but {corpus.title} has {', '.join(corpus.clips)}"
            )
        yield entry


def _missing(folder: Path, paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths that do not exist; each folder is listed once, since two million look-ups take minutes."""
    listings: dict[str, frozenset[str]] = {}
    for path in paths:
        parent, _, name = path.rpartition("/")
        if parent not in listings:
            try:
                listings[parent] = frozenset(os.listdir(folder / parent))
            except (FileNotFoundError, NotADirectoryError):
                listings[parent] = frozenset()
        if name not in listings[parent]:
            yield path
