"""One module per corpus: files on disk become entries with path, captions, label, fold and recording id.

A corpus module defines the layout of the files, the classes and folds, the licence, the expected number of clips, and
the differences from the reference's preparation. An ingest selects it: ``{source: data/ESC-50, corpus: esc50}``.
`procedural` generates synthetic sounds for the demo and for tests.
"""

from clapcur.corpora.audiocaps import AUDIOCAPS
from clapcur.corpora.audioset import AUDIOSET
from clapcur.corpora.clotho import CLOTHO
from clapcur.corpora.copies import Copy, Corpus, Entry, read_copy
from clapcur.corpora.esc50 import ESC50
from clapcur.corpora.fsd50k import FSD50K
from clapcur.corpora.macs import MACS
from clapcur.corpora.tut2017 import TUT2017
from clapcur.corpora.urbansound8k import URBANSOUND8K
from clapcur.errors import ManifestError

__all__ = ["CORPORA", "Copy", "Corpus", "Entry", "find_corpus", "read_copy"]

CORPORA = {corpus.name: corpus for corpus in (AUDIOCAPS, CLOTHO, MACS, FSD50K, AUDIOSET, ESC50, URBANSOUND8K, TUT2017)}


def find_corpus(name: str) -> Corpus:
    """Return the corpus with this name; raise ManifestError with the known names if there is none."""
    if name not in CORPORA:
        raise ManifestError(f"unknown corpus {name!r}; the corpora are {', '.join(CORPORA)}")
    return CORPORA[name]
