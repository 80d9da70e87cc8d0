"""The corpus of the demonstration: SYNTHETIC everyday sounds with captions; nothing in it was ever recorded.

It is made so that the method has something to do. The teacher's pairs come from a clean condition (little noise, dry
rooms, a narrow range of each sound), the pool and the evaluation set from a harsh one; the pool also holds sounds of
no class, exact duplicates, unusable files and a few clips cut from evaluation recordings. Scores on it say whether
the pipeline works, and nothing about real sounds.

Conventions: several clips are cut from one recording and share its `recording_id`. Paths in the tables are relative
to the folder of the corpus. File names are hashes and name no class. Every recording has its own random generator, so
that the bytes depend on the config alone and not on the number of threads.
"""

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from clapcur.config import canonical
from clapcur.corpora.synthetic.conditions import record
from clapcur.corpora.synthetic.phrases import class_captions, other_captions
from clapcur.corpora.synthetic.plan import (
    ProceduralConfig,
    Recording,
    files_in,
    generator,
    plan_recordings,
    unusable_files,
)
from clapcur.corpora.synthetic.sounds import CLASSES, DISTRACTORS, Scene, Waveform
from clapcur.errors import DataError

VERSION = 1  # of the bytes that a config makes: raise it when they change
MARKER = "corpus.json"
NOTICE = """These sounds are SYNTHETIC: computed by clapcur (clapcur/corpora/synthetic/procedural.py), never recorded.
Scores on them say whether the pipeline works, and nothing about real sounds. corpus.json holds the settings.
"""
SOUNDS = CLASSES | DISTRACTORS


@dataclass(frozen=True)
class Corpus:
    """Where the parts of a corpus lie; all paths are in one folder."""

    pairs: Path
    # CSV: path, caption, recording_id; the teacher's clips, one row a caption.
    pool: Path
    # Folder of WAV files; nothing says what they hold.
    pool_table: Path
    # CSV: path, recording_id of every file in the pool, for those who guard against leaks.
    captions: Path
    # CSV: caption; unpaired, of the classes and of other sounds.
    class_names: Path
    # Text file, one class name a line.
    evaluation: Path
    # CSV: path, label, recording_id, fold.

    @classmethod
    def at(cls, folder: Path) -> "Corpus":
        """Name the parts of the corpus in `folder`, whether they exist or not."""
        return cls(
            pairs=folder / "pairs.csv",
            pool=folder / "pool",
            pool_table=folder / "pool.csv",
            captions=folder / "captions.csv",
            class_names=folder / "class_names.txt",
            evaluation=folder / "evaluation.csv",
        )


def generate(
    folder: Path,
    config: ProceduralConfig,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    num_threads: int | None = None,
) -> Corpus:
    """Make the corpus in `folder`, or find it there.

    The folder appears at once and complete: until then the files are in a hidden folder beside it. A second call with
    an equal config returns at once.

    Parameters
    ----------
    folder : Path
        New, empty, or made by an earlier call.
    config : ProceduralConfig
        What to make.
    on_progress : callable, optional
        Called as ``on_progress(recordings_done, recordings_in_all)``.
    num_threads : int, optional
        By default one for each core. The files do not depend on it.

    Returns
    -------
    Corpus
        The paths of its parts.

    Raises
    ------
    DataError
        The folder holds something else, a corpus of another config, or one that has lost a part.
    """
    folder = Path(folder)
    if _found(folder, config):
        return Corpus.at(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(partial, config, on_progress, num_threads or os.cpu_count() or 1)
        partial.chmod(0o755)  # mkdtemp makes it private
        try:
            partial.rename(folder)
        except OSError:  # another call was quicker, or the folder has been filled meanwhile
            if not _found(folder, config):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Corpus.at(folder)


def _found(folder: Path, config: ProceduralConfig) -> bool:
    """Return whether `folder` already holds this corpus; raise where something else is in the way."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    advice = "delete it or choose another folder"
    try:
        marker = dict(json.loads((folder / MARKER).read_text()))
    except (OSError, ValueError, TypeError):
        raise DataError(f"{folder} is not empty and holds no complete corpus (no {MARKER}); {advice}") from None
    wanted = _marker(config)
    if marker != wanted:
        differing = sorted(key for key in marker.keys() | wanted.keys() if marker.get(key) != wanted.get(key))
        raise DataError(f"{folder} holds a corpus with different settings ({', '.join(differing)}); {advice}")
    if lost := [path.name for path in vars(Corpus.at(folder)).values() if not path.exists()]:
        raise DataError(f"the corpus in {folder} lacks {', '.join(lost)}; {advice}")
    return True


def _marker(config: ProceduralConfig) -> dict[str, object]:
    return {"synthetic": True, "version": VERSION, **canonical(config)}


def _write(
    folder: Path,
    config: ProceduralConfig,
    on_progress: Callable[[int, int], None] | None,
    num_threads: int,
) -> None:
    plan = plan_recordings(config)
    for split in ("teacher", "pool", "evaluation"):
        (folder / split).mkdir()
    threads = ThreadPoolExecutor(num_threads)
    try:
        finished = threads.map(lambda recording: _record(folder, recording, config), plan)
        for done, _ in enumerate(finished, start=1):
            if on_progress is not None:
                on_progress(done, len(plan))
    finally:
        threads.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the rest
    _spoil(folder, config)
    corpus = Corpus.at(folder)
    _table(corpus.pairs, ("path", "caption", "recording_id"), _pairs(plan, config))
    pool = [(path, recording.recording_id) for path, recording in files_in(plan, "pool")] + unusable_files(config)
    _table(corpus.pool_table, ("path", "recording_id"), pool)
    _table(corpus.captions, ("caption",), _captions(config))
    _table(corpus.evaluation, ("path", "label", "recording_id", "fold"), _evaluation(plan, config))
    corpus.class_names.write_text("\n".join(CLASSES) + "\n")
    (folder / "README.txt").write_text(NOTICE)
    (folder / MARKER).write_text(json.dumps(_marker(config), indent=1) + "\n")


def _record(folder: Path, recording: Recording, config: ProceduralConfig) -> None:
    """Make one recording and write its clips, each from somewhere in its own stretch."""
    rng = generator(config, recording.split, [*SOUNDS].index(recording.sound), recording.number)
    condition = config.clean if recording.split == "teacher" else config.harsh
    length = round(config.duration_s * config.sample_rate)
    slack = length // 4
    num_stretches = 1 + max(stretch for _, stretch in recording.files)
    scene = Scene(rng, (length + slack) * num_stretches, config.sample_rate, condition.spread)
    waveform = record(SOUNDS[recording.sound](scene), config.sample_rate, condition, rng)
    starts = [k * (length + slack) + int(rng.integers(slack + 1)) for k in range(num_stretches)]
    for path, stretch in recording.files:
        _write_wav(folder / path, waveform[starts[stretch] :][:length], config)


def _spoil(folder: Path, config: ProceduralConfig) -> None:
    """Add to the pool what real pools hold: an empty, a garbled and a silent file."""
    empty, garbled, silent = (folder / path for path, _ in unusable_files(config))
    empty.write_bytes(b"")
    garbled.write_bytes(generator(config, "garbage").bytes(4096))
    _write_wav(silent, np.zeros(round(config.duration_s * config.sample_rate)), config)


def _pairs(plan: list[Recording], config: ProceduralConfig) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for kind, name in enumerate(CLASSES):
        clips = [(path, recording) for path, recording in files_in(plan, "teacher") if recording.sound == name]
        clips *= config.captions_per_teacher_clip
        captions = class_captions(name, len(clips), generator(config, "teacher captions", kind))
        rows += [(path, text, r.recording_id) for (path, r), text in zip(clips, captions, strict=True)]
    return rows


def _captions(config: ProceduralConfig) -> list[tuple[str, ...]]:
    rng = generator(config, "captions")
    texts = [text for name in CLASSES for text in class_captions(name, config.captions_per_class, rng)]
    return [(text,) for text in texts + other_captions(config.other_captions, rng)]


def _evaluation(plan: list[Recording], config: ProceduralConfig) -> list[tuple[str, ...]]:
    return [
        (path, recording.sound, recording.recording_id, str(recording.number % config.num_folds + 1))
        for path, recording in files_in(plan, "evaluation")
    ]


def _write_wav(path: Path, waveform: Waveform, config: ProceduralConfig) -> None:
    soundfile.write(path, waveform, config.sample_rate, format="WAV", subtype="PCM_16")


def _table(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Write a CSV in alphabetical order, so that the order says nothing about the classes either."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *sorted(rows)])
