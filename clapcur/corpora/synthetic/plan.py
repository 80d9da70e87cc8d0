"""The plan of the synthetic corpus of `procedural`: its config, its recordings, their names and random numbers.

File names and recording ids are hashes of the seed and of the origin of the clip: neither they nor their alphabetical
order, which is that of every table, reveal the class.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from clapcur.config import check_seed, frozen
from clapcur.corpora.synthetic.conditions import CLEAN, HARSH, Condition
from clapcur.corpora.synthetic.phrases import num_class_captions, num_other_captions
from clapcur.corpora.synthetic.sounds import CLASSES, DISTRACTORS

_STREAMS = ("teacher", "pool", "evaluation", "teacher captions", "captions", "garbage")


@frozen
class ProceduralConfig:
    """How large the corpus is, and how far its pool and evaluation set lie from the teacher's pairs."""

    seed: int = 0
    """Seed of every random number."""
    sample_rate: int = 16_000
    """Sample rate of all files, in Hz."""
    duration_s: float = 2.0
    """Length of every clip, in seconds."""
    teacher_clips_per_class: int = 10
    """Number of captioned clips per class."""
    captions_per_teacher_clip: int = 2
    """Number of captions per captioned clip."""
    pool_clips_per_class: int = 50
    """Number of pool clips per class, not counting leaked ones."""
    distractor_clips: int = 150
    """Number of pool clips that belong to no class."""
    evaluation_clips_per_class: int = 24
    """Number of labelled clips per class."""
    clips_per_recording: int = 2
    """Number of clips cut from each recording, in every set."""
    num_folds: int = 4
    """Number of folds of the evaluation set; each recording is in one of them."""
    leaked_clips: int = 6
    """Number of pool clips that share a recording with the evaluation set."""
    duplicate_clips: int = 2
    """Number of pool files that duplicate another one byte for byte."""
    captions_per_class: int = 12
    """Number of unpaired captions per class."""
    other_captions: int = 160
    """Number of unpaired captions that belong to no class."""
    clean: Condition = CLEAN
    """Recording conditions of the teacher's clips."""
    harsh: Condition = HARSH
    """Recording conditions of the pool and the evaluation set."""

    def __post_init__(self) -> None:
        """Reject sizes that no corpus can have."""
        check_seed(self.seed)
        recordings = {
            name: len(CLASSES) * -(-getattr(self, f"{name}_clips_per_class") // self.clips_per_recording)
            for name in ("pool", "evaluation")
            if self.clips_per_recording > 0
        }
        for name, low, high in (
            ("seed", 0, None),
            ("sample_rate", 16_000, None),
            ("duration_s", 1, 30),  # shorter clips could fall between two strokes of the bell
            ("teacher_clips_per_class", 1, None),
            ("captions_per_teacher_clip", 1, None),
            ("pool_clips_per_class", 1, None),
            ("evaluation_clips_per_class", 1, None),
            ("clips_per_recording", 1, None),
            ("distractor_clips", 0, None),
            ("num_folds", 1, None),
            ("captions_per_class", 0, num_class_captions()),
            ("other_captions", 0, num_other_captions()),
            ("leaked_clips", 0, recordings.get("evaluation")),
            ("duplicate_clips", 0, recordings.get("pool")),
        ):
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                bounds = f">= {low}" if high is None else f"in [{low}, {high}]"
                raise ValueError(f"{name} must be {bounds}, got {value}")


@dataclass(frozen=True)
class Recording:
    """One recording to generate, and the files that are cut from it."""

    split: str
    sound: str  # a key of CLASSES or DISTRACTORS
    number: int  # within the split and the sound
    recording_id: str
    files: tuple[tuple[str, int], ...]  # path relative to the corpus, and the section of the recording that it contains


def plan_recordings(config: ProceduralConfig) -> list[Recording]:
    """List every recording of the corpus."""
    sizes = [("teacher", name, config.teacher_clips_per_class) for name in CLASSES]
    sizes += [("evaluation", name, config.evaluation_clips_per_class) for name in CLASSES]
    sizes += [("pool", name, config.pool_clips_per_class) for name in CLASSES]
    for kind, name in enumerate(DISTRACTORS):
        sizes.append(("pool", name, len(range(kind, config.distractor_clips, len(DISTRACTORS)))))
    plan = []
    for split, sound, num_clips in sizes:
        for number, first in enumerate(range(0, num_clips, config.clips_per_recording)):
            recording_id = _hash(config, split, sound, number)
            stretches = range(min(config.clips_per_recording, num_clips - first))
            files = tuple((f"{split}/{_hash(config, recording_id, k)}.wav", k) for k in stretches)
            plan.append(Recording(split, sound, number, recording_id, files))
    plan.sort(key=lambda recording: recording.recording_id)  # any order except that of the classes
    _add_to_pool(plan, config, "evaluation", config.leaked_clips)
    _add_to_pool(plan, config, "pool", config.duplicate_clips)
    return plan


def files_in(plan: list[Recording], folder: str) -> list[tuple[str, Recording]]:
    """List the files of recordings in one folder of the corpus."""
    return [(path, recording) for recording in plan for path, _ in recording.files if path.startswith(f"{folder}/")]


def unusable_files(config: ProceduralConfig) -> list[tuple[str, str]]:
    """Return the unusable files of the pool, with a recording for each."""
    return [(f"pool/{_hash(config, 'unusable', k)}.wav", _hash(config, "spoilt", k)) for k in range(3)]


def generator(config: ProceduralConfig, stream: str, *numbers: int) -> np.random.Generator:
    """Return the random generator of one recording or of another stream; all streams are independent."""
    key = (_STREAMS.index(stream), *numbers)
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=key))


def _add_to_pool(plan: list[Recording], config: ProceduralConfig, split: str, num_clips: int) -> None:
    """Add one more file of the first recordings of a split to the pool: a new section (leak) or the same one (copy)."""
    chosen = [index for index, recording in enumerate(plan) if recording.split == split][:num_clips]
    for index in chosen:
        recording = plan[index]
        stretch = 0 if split == "pool" else len(recording.files)
        file = (f"pool/{_hash(config, recording.recording_id, 'more')}.wav", stretch)
        plan[index] = replace(recording, files=(*recording.files, file))


def _hash(config: ProceduralConfig, *parts: object) -> str:
    return hashlib.sha256("/".join(map(str, (config.seed, *parts))).encode()).hexdigest()[:12]
