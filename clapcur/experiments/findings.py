"""What looks wrong with the inputs of an experiment, before anything is trained.

Nothing here ends an experiment: errors that would are those of `clapcur.experiments.preflight`. The checks read
manifests only, so that they take seconds.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clapcur.data.class_names import readable
from clapcur.data.manifest import Manifest
from clapcur.data.rows import GENERATED, SEARCHED
from clapcur.experiments.config import Experiment
from clapcur.methods.contamination import overlap
from clapcur.store.artifacts import Artifact

FEW_PAIRS = 1000  # for a teacher trained from nothing; with 550 no student beat it (docs/results/us8k-weak-teacher.md)
UNEVEN = 10.0  # clips of the most frequent class of an evaluation set per clip of the rarest; ours
SHOWN = 5  # names in a line
ROLES = ("pairs", "pool", "evaluation")


@dataclass(frozen=True)
class Finding:
    """One thing that looks wrong."""

    name: str
    """Name for programs, such as ``pairs_in_pool``."""
    count: int
    """How many clips, captions or classes it is about."""
    text: str
    """One line: what was found, with the count, and what to do."""


def findings(experiment: Experiment, manifests: Mapping[str, Artifact], sample_rate: int | None) -> list[Finding]:
    """Return what looks wrong with the inputs of an experiment, in a fixed order.

    Parameters
    ----------
    experiment : Experiment
    manifests : mapping of str to Artifact
        By role, as `clapcur.flows.steps.manifests_of` returns them; those that do not exist yet are skipped.
    sample_rate : int or None
        Sample rate of the model in Hz, if known.
    """
    opened = {role: Manifest.open(artifact) for role, artifact in manifests.items() if artifact.is_made}
    counts = {role: artifact.record.counts for role, artifact in manifests.items() if artifact.is_made}
    return [
        Finding(name, count, text)
        for checked in (
            _duplicates(counts), _shared(opened), _pairs(experiment, opened), _pool(experiment, opened),
            _evaluation(experiment, opened), _sample_rates(opened, sample_rate),
        )
        for name, count, text in checked
        if count
    ]  # fmt: skip


Found = Iterator[tuple[str, int, str]]  # as in `Finding`; a count of 0 is no finding


def _duplicates(counts: Mapping[str, Mapping[str, int]]) -> Found:
    for role in ROLES:
        number = counts.get(role, {}).get("duplicates", 0)
        yield (
            f"duplicates_in_{role}", number,
            f"{number:,} files of {role} have the same bytes as another of its files and are merged with it; nothing "
            "to do, unless you expected them to differ",
        )  # fmt: skip
        number = counts.get(role, {}).get("same_sound", 0)
        yield (
            f"same_sound_in_{role}", number,
            f"{number:,} clips of {role} have the same samples as another in a different file; keep one of each",
        )  # fmt: skip


def _shared(opened: Mapping[str, Manifest]) -> Found:
    def shared(one: str, other: str) -> Mapping[str, int]:
        return overlap(opened[one].clips, opened[other].clips).counts() if {one, other} <= opened.keys() else {}

    reasons = shared("pool", "evaluation")
    yield (
        "evaluation_in_pool", sum(reasons.values()),
        f"{sum(reasons.values()):,} clips of the pool are evaluation clips or share a recording with one "
        f"({_told(reasons)}); they enter no set",
    )  # fmt: skip
    reasons = shared("pairs", "evaluation")
    yield (
        "evaluation_in_pairs", sum(reasons.values()),
        f"{sum(reasons.values()):,} clips of the pairs are evaluation clips or share a recording with one "
        f"({_told(reasons)}): a teacher trained on them is contaminated; leave them out with `exclude`",
    )  # fmt: skip
    is_shared = "pairs" in opened and "pool" in opened
    known = set(opened["pairs"].clips.clip_id) | set(opened["pairs"].clips.pcm_sha256) if is_shared else set()
    clips = opened["pool"].clips if is_shared else None
    number = 0 if clips is None else int((clips.clip_id.isin(known) | clips.pcm_sha256.isin(known)).sum())
    yield (
        "pairs_in_pool", number,
        f"{number:,} clips of the pool are also in the pairs: a student learns nothing new from them; leave them out "
        "of the pool",
    )  # fmt: skip


def _pairs(experiment: Experiment, opened: Mapping[str, Manifest]) -> Found:
    if "pairs" not in opened:
        return
    pairs = opened["pairs"]
    trains = experiment.teacher is not None and experiment.checkpoint is None
    number = len(pairs.pairs)
    yield (
        "few_pairs", number if trains and number < FEW_PAIRS else 0,
        f"{number:,} pairs are few for a teacher trained from nothing (fewer than {FEW_PAIRS:,}); start from a "
        "pretrained model with `checkpoint`",
    )  # fmt: skip
    most = int(pairs.pairs.caption_id.value_counts().iloc[0]) if number else 0
    text = pairs.captions.set_index("caption_id").caption.get(pairs.pairs.caption_id.mode()[0], "") if number else ""
    yield (
        "equal_captions", most if len(pairs.captions) > 1 and most > number / 2 else 0,
        f"{most:,} of {number:,} pairs have the caption {text[:60]!r}, so they teach little else; is it the right "
        "column?",
    )  # fmt: skip
    captions = [*pairs.captions.caption, *(opened["captions"].captions.caption if "captions" in opened else ())]
    words = {word for caption in captions for word in _words(caption)}
    unheard = [name for name in map(readable, experiment.class_names) if not _is_mentioned(name, captions, words)]
    yield (
        "classes_without_caption", len(unheard),
        f"{len(unheard)} of {len(experiment.class_names)} classes are named in no caption ({_named(unheard)}); add "
        "captions that name them, or rename the classes as the captions do",
    )  # fmt: skip


def _pool(experiment: Experiment, opened: Mapping[str, Manifest]) -> Found:
    wanted = set(experiment.improvement_sets) & {*SEARCHED, *GENERATED}
    wants = [experiment.curate(name).audio_threshold.count or 0 for name in wanted]
    number, count = len(opened["pool"].clips) if "pool" in opened else 0, max(wants, default=0)
    yield (
        "small_pool", number if number < count else 0,
        f"the pool has {number:,} clips, fewer than the audio_threshold's count of {count:,}, so weak matches may be "
        "kept; lower the count, or add recordings",
    )  # fmt: skip


def _evaluation(experiment: Experiment, opened: Mapping[str, Manifest]) -> Found:
    if "evaluation" not in opened or not len(opened["evaluation"].clips):
        return
    sizes = opened["evaluation"].clips.label.map(readable).value_counts()
    names = list(map(readable, experiment.class_names))
    missing = [name for name in names if name not in sizes]
    yield (
        "classes_without_clip", len(missing),
        f"{len(missing)} of {len(names)} classes have no evaluation clip ({_named(missing)}); label some, or leave the "
        "classes out",
    )  # fmt: skip
    most, least = int(sizes.iloc[0]), int(sizes.iloc[-1])
    yield (
        "uneven_evaluation", len(sizes) if most >= UNEVEN * least else 0,
        f"the evaluation set has {most:,} clips of {sizes.index[0]} but {least:,} of {sizes.index[-1]}, so the "
        "accuracy is mostly that of frequent classes; label more of the rare ones",
    )  # fmt: skip


def _sample_rates(opened: Mapping[str, Manifest], sample_rate: int | None) -> Found:
    for role in ROLES if sample_rate is not None else ():
        rates = opened[role].clips.sample_rate if role in opened else ()
        low = [rate for rate in rates if rate < sample_rate]
        yield (
            f"low_sample_rate_in_{role}", len(low),
            f"{len(low):,} of {len(rates):,} clips of {role} have a sample rate below the model's {sample_rate:,} Hz, "
            f"from {min(low, default=0):,} Hz on: they lack the high frequencies that it knows; give the original "
            "recordings",
        )  # fmt: skip


def _is_mentioned(name: str, captions: list[str], words: set[str]) -> bool:
    """Return whether one caption has all words of a class name, in any order; a plural s does not matter."""
    wanted = set(_words(name))
    return wanted <= words and any(wanted <= set(_words(caption)) for caption in captions)


def _words(text: str) -> list[str]:
    return [word if len(word) < 4 else word.removesuffix("s") for word in re.findall(r"\w+", text.casefold())]


def _named(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _told(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} by {reason.replace('_', ' ')}" for reason, number in reasons.items() if number)
