"""What is ingested and under which rules."""

import math

from clapcur.audio import ProbeRules
from clapcur.audio.access import Roots
from clapcur.config import added, frozen, machine

POOL = "pool:"  # begins a source that is not a place


@frozen
class Columns:
    """What the columns of a table are called.

    A name that is given must be there; a default name may be absent, and None says that the table has no such column,
    whatever it looks like.
    """

    path: str | None = "path"
    """Of the audio file, its URL or other address; in Parquet it may hold the audio itself."""
    caption: str | tuple[str, ...] | None = "caption"
    """One column or several (Clotho has five); a cell that is a list (JSONL, Parquet) is several captions."""
    label: str | None = "label"
    """The clip's class."""
    fold: str | None = "fold"
    """Of a cross-validation."""
    recording_id: str | None = "recording_id"
    """What the clip was cut from (Freesound or YouTube id): clips of one recording are never split."""


@frozen
class TextRules:
    """General text as a source of captions: which sentences are kept."""

    column: str | None = None
    """Of a table: the column with text; null: text, caption, sentence or content."""
    least_score: float = 0.5
    """A sentence is kept where it looks this much like a caption of a sound, from 0 to 1."""
    least_words: int = 3
    """Words of a sentence, at least."""
    most_words: int = 30
    """Words of a sentence, at most."""
    near_duplicate: float | None = 0.8
    """Share of common words and neighbours (Jaccard index) at or above which two sentences count as one; null: no such
    rule."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
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
    """.csv, .tsv, .jsonl, .parquet; .txt with one caption per line; .tar, or .parquet with audio bytes: shards; a
    folder of audio and shards, taken with all its sub-folders, or a URL of one, such as s3://bucket/pool; or, in an
    experiment, pool:NAME for the newest version of what landed under this name; with `corpus` the folder that holds the
    copy."""
    corpus: str | None = None
    """One of `clapcur.corpora`, such as esc50: its own lists name files, captions, labels, folds and recordings."""
    folds: tuple[str, ...] = ()
    """Of the corpus, or its official splits; empty: those that the corpus module names."""
    audio_folder: str | None = None
    """What relative paths in tables are relative to; None: the table's own folder."""
    columns: Columns = Columns()
    """Names of the columns of a table."""
    metadata: str | None = None
    """For a folder of files: a table that is joined to them by the path column."""
    text: TextRules | None = added(None)
    """The source is general text: .txt, .jsonl or .parquet, also packed (.gz, .zst), a folder of these, or a data set
    that Hugging Face's `datasets` saved. Its sentences are captions where they describe what can be heard. null: each
    line or cell is a caption."""
    rules: ProbeRules = ProbeRules()
    """Which readable files are still of no use."""
    exclude: tuple[str, ...] = ()
    """Lists of clips that must not enter: text (one clip id, path or recording id per line) or a table with such
    columns."""
    roots: tuple[str, ...] = machine(("/",))
    """Where a table may name clips: folders, and URLs such as s3://bucket/pool/; by default any file of this machine
    and no URL. The folder or URL of the source itself is always allowed."""
    max_bad_fraction: float = 0.1
    """Of the rows; more of them in quarantine is an error (ours)."""
    num_workers: int = machine(0)
    """Threads that probe; 0: one per CPU (libsndfile leaves the interpreter's lock)."""

    @property
    def landed_in(self) -> str | None:
        """The name of the pool that the source means, or None where it is a place."""
        return self.source.removeprefix(POOL) if self.source.startswith(POOL) else None

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not 0 <= self.max_bad_fraction <= 1 or math.isnan(self.max_bad_fraction):
            raise ValueError(f"max_bad_fraction is a share in [0, 1], got {self.max_bad_fraction}; a percentage?")
        others = {"audio_folder": self.audio_folder, "metadata": self.metadata}
        if self.corpus is not None and (given := [name for name, value in others.items() if value is not None]):
            raise ValueError(f"the corpus {self.corpus} knows its own files: leave out {', '.join(given)}")
        if self.corpus is not None and self.landed_in is not None:
            raise ValueError(f"a corpus is in a folder, {self.source} is a pool; land the corpus in it first")
        if self.text is not None and (self.corpus is not None or any(others.values())):
            raise ValueError("general text has no audio: leave out corpus, audio_folder and metadata")
        if self.folds and self.corpus is None:
            raise ValueError(f"folds are chosen of a corpus, got {', '.join(self.folds)} without `corpus`")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be 0 (one per CPU) or more, got {self.num_workers}")
        for name in ("exclude", "roots"):  # a text passes for a sequence of texts
            if isinstance(given := getattr(self, name), str):
                raise TypeError(f"{name} is a list of paths, got the text {given!r}")
        Roots.of(self.roots)
