"""What to ingest, and by which rules."""

import math

from clapcur.audio import ProbeRules
from clapcur.audio.access import Roots
from clapcur.config import added, frozen, machine

POOL = "pool:"  # prefix of a source that is a pool, not a path or URL


@frozen
class Columns:
    """What the columns of a table are called.

    A name that is given must be there; a default name may be absent, and None says that the table has no such column,
    whatever it looks like.
    """

    path: str | None = "path"
    """Column with the path or URL of the audio file; in Parquet it may hold the audio itself."""
    caption: str | tuple[str, ...] | None = "caption"
    """Column of captions, or several (Clotho has five); a list in a cell (JSONL, Parquet) is several captions."""
    label: str | None = "label"
    """Column with the clip's class."""
    fold: str | None = "fold"
    """Column with the cross-validation fold."""
    recording_id: str | None = "recording_id"
    """Column with the source recording (Freesound or YouTube id); a split never separates clips of one recording."""


@frozen
class TextRules:
    """General text as a source of captions: which sentences are kept."""

    column: str | None = None
    """Text column of a table; null: text, caption, sentence or content."""
    least_score: float = 0.5
    """Minimum score of a sentence: how much it resembles an audio caption, from 0 to 1."""
    least_words: int = 3
    """Minimum number of words in a sentence."""
    most_words: int = 30
    """Maximum number of words in a sentence."""
    near_duplicate: float | None = 0.8
    """Jaccard index of words and word pairs at or above which two sentences count as duplicates; null: keep all."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        for name in ("least_score", "near_duplicate"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value:g}; a percentage?")
        if not 1 <= self.least_words <= self.most_words:
            raise ValueError(f"expected 1 <= least_words <= most_words, got {self.least_words} and {self.most_words}")


@frozen
class IngestConfig:
    """Where clips and captions come from, and what is left out."""

    source: str
    """One of: a table (.csv, .tsv, .jsonl, .parquet); a .txt with one caption per line; a shard (.tar, or .parquet with
    audio bytes); a folder of audio and shards, including subfolders, or its URL, such as s3://bucket/pool; in an
    experiment, pool:NAME for the newest version of that pool; with `corpus`, the folder of its copy."""
    corpus: str | None = None
    """A corpus in `clapcur.corpora`, such as esc50; its lists give files, captions, labels, folds and recordings."""
    folds: tuple[str, ...] = ()
    """Folds or official splits of the corpus; empty: the default of the corpus module."""
    audio_folder: str | None = None
    """Base folder of relative paths in tables; None: the table's own folder."""
    columns: Columns = Columns()
    """Names of the columns of a table."""
    metadata: str | None = None
    """For a folder of files: a table to join by the path column."""
    text: TextRules | None = added(None)
    """The source is general text: .txt, .jsonl or .parquet, optionally compressed (.gz, .zst), a folder of these, or a
    dataset saved by Hugging Face's `datasets`. Sentences that describe something audible become captions. null: each
    line or cell is a caption."""
    rules: ProbeRules = ProbeRules()
    """Rules for rejecting files that can be decoded."""
    exclude: tuple[str, ...] = ()
    """Lists of clips to exclude: text (one clip id, path or recording id per line) or a table with these columns."""
    roots: tuple[str, ...] = machine(("/",))
    """Where clips named in a table may be: folders, and URLs such as s3://bucket/pool/; default: any local file and no
    URL. The folder or URL of the source itself is always allowed."""
    max_bad_fraction: float = 0.1
    """Fail if more than this fraction of the rows is in quarantine (project default)."""
    num_workers: int = machine(0)
    """Number of threads that probe files; 0: one per CPU (libsndfile releases the GIL)."""

    @property
    def landed_in(self) -> str | None:
        """Name of the pool that the source refers to; None if it is a path or URL."""
        return self.source.removeprefix(POOL) if self.source.startswith(POOL) else None

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        if not 0 <= self.max_bad_fraction <= 1 or math.isnan(self.max_bad_fraction):
            raise ValueError(f"max_bad_fraction must be in [0, 1], got {self.max_bad_fraction}; a percentage?")
        others = {"audio_folder": self.audio_folder, "metadata": self.metadata}
        if self.corpus is not None and (given := [name for name, value in others.items() if value is not None]):
            raise ValueError(f"the corpus {self.corpus} lists its own files: omit {', '.join(given)}")
        if self.corpus is not None and self.landed_in is not None:
            raise ValueError(
                f"the source of a corpus must be a folder, got the pool {self.source}; land the corpus in the pool "
                "first"
            )
        if self.text is not None and (self.corpus is not None or any(others.values())):
            raise ValueError("general text has no audio: omit corpus, audio_folder and metadata")
        if self.folds and self.corpus is None:
            raise ValueError(f"folds need `corpus`, got {', '.join(self.folds)} without it")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be 0 (one per CPU) or more, got {self.num_workers}")
        for name in ("exclude", "roots"):  # a string is also a sequence of strings
            if isinstance(given := getattr(self, name), str):
                raise TypeError(f"{name} must be a list of paths, got the string {given!r}")
        Roots.of(self.roots)
