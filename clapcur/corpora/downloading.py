"""Download a corpus with the package that has its URLs and checksums: aac-datasets or soundata.

Both are extras (``pip install 'clapcur[corpora]'``). Corpora that neither package has are read from your own copy:
AudioSet, whose audio is not published, and TUT Acoustic Scenes 2017. AudioCaps needs yt-dlp and ffmpeg.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clapcur.corpora import find_corpus
from clapcur.errors import DataError

AAC_SUBSETS = {
    "audiocaps": {"train": "train", "val": "val", "test": "test"},
    "clotho": {"development": "dev", "validation": "val", "evaluation": "eval"},
    "macs": {"full": "full"},
}
AAC_FOLDERS = {"audiocaps": "AUDIOCAPS", "clotho": "CLOTHO_v2.1", "macs": "MACS"}
SOUNDATA = ("esc50", "fsd50k", "urbansound8k")


def download(name: str, folder: Path, folds: tuple[str, ...] = ()) -> Path:
    """Download a corpus, check it against the publisher's checksums, and return the source for an ingest.

    Parameters
    ----------
    name : str
        Name of the corpus.
    folder : Path
        Folder of all corpora, created if missing. Existing files are not downloaded again.
    folds : tuple of str
        Splits, for corpora that are downloaded by split (AudioCaps, Clotho); by default `Corpus.folds`.

    Returns
    -------
    Path
        The folder of the copy, for ``source`` in the config, next to ``corpus``.

    Raises
    ------
    DataError
        The extra is not installed, no package downloads this corpus, or the files differ from the published ones.
    """
    corpus = find_corpus(name)
    if name not in (*AAC_SUBSETS, *SOUNDATA):
        raise DataError(
            f"{corpus.title} cannot be downloaded automatically: make a copy with {', '.join(corpus.layout)} and give "
            "its folder as `source`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if name in SOUNDATA:
        return _soundata(name, folder / name)
    fetch: Callable[..., None]
    with _names_that_torchaudio_lost():
        fetch = getattr(_package(f"aac_datasets.datasets.functional.{name}"), f"download_{name}_dataset")
    for fold in folds or corpus.folds:
        fetch(root=folder, subset=AAC_SUBSETS[name][fold], verbose=1)
    return folder / AAC_FOLDERS[name]


def _soundata(name: str, home: Path) -> Path:
    dataset = _package("soundata").initialize(name, data_home=str(home))
    dataset.download()
    missing, invalid = dataset.validate(verbose=False)
    if bad := [path for kind in (*missing.values(), *invalid.values()) for paths in kind.values() for path in paths]:
        raise DataError(
            f"{len(bad)} files of {find_corpus(name).title} are missing or differ from the published ones: "
            f"{', '.join(map(str, bad[:3]))}; delete them and download again"
        )
    return home


def _package(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise DataError(f"{package} is not installed; run `pip install 'clapcur[corpora]'`") from None


@contextmanager
def _names_that_torchaudio_lost() -> Iterator[None]:
    """Make aac-datasets 0.7 importable: its annotations use a class that newer versions of torchaudio do not have."""
    import torchaudio

    is_lost = not hasattr(torchaudio, "AudioMetaData")
    if is_lost:
        torchaudio.AudioMetaData = object
    try:
        yield
    finally:
        if is_lost:
            del torchaudio.AudioMetaData
