"""Compose: single sounds -> groups of composed sounds, with captions. No audio is written.

The sounds are the labelled clips of a manifest or, without labels, the clips of an Improvement-Set; the class of such a
clip is that of its most similar caption. Held-out recordings are chosen before anything is paired, and some couples of
classes are kept out of training, so that order can be scored on couples that were never trained on.

Inputs by role: ``clips`` (a labelled manifest); or ``improvement_set`` with the manifests ``pool`` and
``teacher_pairs`` that it was curated from. Payload: see `clapcur.data.compositions`.

Source: TeminAL (arXiv 2408.09269), without its shortcuts: all items have one length, the split is by recording, and
captions are paraphrased.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from clapcur.audio import UnusableAudio, load_crops
from clapcur.audio.composing import audible_part
from clapcur.config import check_seed, frozen, machine, signature
from clapcur.data.class_names import PROMPT, check_class_names, check_prompt, readable
from clapcur.data.composed_captions import CONNECTORS, captions_of, meanings
from clapcur.data.compositions import GROUPS, READ_S, SOURCES, SPLITS, Compositions
from clapcur.data.improvement_set import ImprovementSet
from clapcur.data.manifest import Manifest, union
from clapcur.errors import EmptySetError, ManifestError
from clapcur.progress import progress
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.record import Outcome

LOOK_RATE = 16_000  # Hz at which silence is detected; ours
TRIES = 50  # draws per wanted group before giving up on new ones; ours
Couple = tuple[str, str]


@frozen
class ComposeConfig:
    """How single sounds are put together."""

    duration_s: float = 5.0
    """Length of every item, in seconds; at most the window of the model that will process them."""
    num_groups: int = 2000
    """Number of training groups; each has five items."""
    num_held_out_groups: int = 200
    """Number of groups held out from training, for selecting weights or for testing."""
    held_out: float = 0.2
    """Fraction of the source recordings that are held out; with 1 there is nothing to train on."""
    unseen_couples: float = 0.25
    """Fraction of the pairs of classes that occur in no training group."""
    class_names: tuple[str, ...] = ()
    """Classes to use; empty: all classes that the clips are labelled with."""
    most_per_class: int | None = None
    """Maximum number of clips per class from an Improvement-Set, the most similar first; None: all."""
    prompt: str = PROMPT
    """Caption prompt; {} is replaced by the described sounds."""
    connectors: tuple[str, ...] = ()
    """Connectors in captions of sequences, such as before and after; empty: all. A text tower without pretraining
    learns those that follow the order of the sounds (before, then, followed by) long before the others."""
    min_clip_s: float = 0.3
    """Minimum audible part of a clip, in seconds; other clips are left out."""
    max_bad_fraction: float = 0.1
    """Fail if more than this fraction of the clips cannot be used."""
    seed: int = 0
    """Seed of the pairs of classes, the clips and their excerpts."""
    num_workers: int = machine(2)
    """Number of threads that read the clips."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        check_seed(self.seed)
        check_prompt(self.prompt)
        if self.duration_s < 2 * self.min_clip_s or self.duration_s > READ_S:
            raise ValueError(
                f"duration_s must be between two clips of {self.min_clip_s:g} s and {READ_S:g} s, got "
                f"{self.duration_s:g}"
            )
        for name, most in (("held_out", 1), ("unseen_couples", 1), ("max_bad_fraction", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be a fraction in [0, 1], got {getattr(self, name):g}; a percentage?")
        for name in ("num_groups", "num_held_out_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if unknown := set(self.connectors) - CONNECTORS["sequence"].keys():
            raise ValueError(
                f"connectors must be among {', '.join(CONNECTORS['sequence'])}, got "
                f"{', '.join(map(repr, sorted(unknown)))}"
            )
        if self.min_clip_s <= 0:
            raise ValueError(f"min_clip_s must be positive, got {self.min_clip_s:g}")
        if self.class_names:
            check_class_names(self.class_names)


def compose(inputs: Mapping[str, Artifact], config: ComposeConfig, work: Workspace) -> Outcome:
    """Write compositions.

    Inputs by role: see `clapcur.stages.compose`.

    Raises
    ------
    ManifestError
        The clips have no labels, or a label is not among the class names.
    EmptySetError
        There are fewer than two classes, or too many clips cannot be used.
    """
    manifest, sounds = _sounds(inputs, config)
    sounds, left_out = _heard(sounds, manifest.paths, config)
    held_out = manifest.held_out(config.held_out) if config.held_out < 1 else set(sounds.clip_id)
    sounds["recording"] = sounds.clip_id.map(manifest.groups)
    sounds["split"] = np.where(sounds.clip_id.isin(held_out), "held_out", "train")
    sources = sounds.sort_values("clip_id", ignore_index=True)[SOURCES.names]
    unseen = unseen_couples(sorted(sources["class"].unique()), config.unseen_couples)
    wanted = {"train": config.num_groups, "held_out": config.num_held_out_groups}
    groups = [
        _groups(sources[sources.split == split], split, wanted[split], unseen, config.seed)
        for split in SPLITS
        if (config.held_out < 1 or split == "held_out") and (config.held_out > 0 or split == "train")
    ]
    composed = Compositions(
        config.duration_s, sources, pd.concat(groups, ignore_index=True)[GROUPS.names],
        captions_of(meanings(sorted(sources["class"].unique())), config.prompt, config.connectors),
    )  # fmt: skip
    composed.write(work.path, unseen, left_out)
    counts = {
        "groups": len(composed.groups),
        "clips": len(sources),
        "classes": len(composed.class_names),
        "training_groups": len(composed.of_split("train")),
        "held_out_groups": len(composed.of_split("held_out")),
        "unseen_couples": len(unseen),
    }
    reasons = Counter(reason for _, reason in left_out)
    return Outcome(counts=counts | {f"left_out.{reason}": number for reason, number in sorted(reasons.items())})


def _sounds(inputs: Mapping[str, Artifact], config: ComposeConfig) -> tuple[Manifest, pd.DataFrame]:
    """Return the manifest of the clips, and a table with their classes: clip_id, class, similarity."""
    if "improvement_set" in inputs:
        manifest = union([Manifest.open(inputs[role]) for role in ("pool", "teacher_pairs") if role in inputs])
        sounds = _of_set(inputs["improvement_set"], config)
    else:
        manifest = Manifest.open(inputs["clips"])
        labelled = manifest.clips[manifest.clips.label.fillna("") != ""]
        if labelled.empty:
            raise ManifestError(
                f"the manifest {inputs['clips'].id} has no labels; clips are composed by class: ingest them with a "
                "label column, or give an Improvement-Set"
            )
        sounds = pd.DataFrame({"clip_id": labelled.clip_id, "class": labelled.label, "similarity": np.nan})
    sounds["class"] = [readable(name) for name in sounds["class"]]
    names = set(check_class_names(config.class_names)) if config.class_names else set(sounds["class"])
    if unknown := sorted(set(sounds["class"]) - names):
        raise ManifestError(
            f"the clips are of {sounds['class'].nunique()} classes, but {len(names)} names were given; without a name: "
            f"{', '.join(map(repr, unknown[:5]))}{', ...' if len(unknown) > 5 else ''}; give a name for each, or none"
        )
    return manifest, sounds.reset_index(drop=True)


def _of_set(chosen: Artifact, config: ComposeConfig) -> pd.DataFrame:
    strategy = chosen.record.config.get("strategy")
    if strategy == "du":
        raise ManifestError(
            f"the Improvement-Set {chosen.id} is DU, whose pairs have no class; clips are composed by class: give a DS "
            "or ADS set"
        )
    pairs = ImprovementSet.open(chosen).pairs()
    best = pairs.sort_values(["similarity", "caption_id"], ascending=[False, True]).drop_duplicates("clip_id")
    if config.most_per_class is not None:
        best = best.groupby("class", sort=True).head(config.most_per_class)
    return best[["clip_id", "class", "similarity"]].copy()


def _heard(
    sounds: pd.DataFrame, paths: Mapping[str, str], config: ComposeConfig
) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Return the clips with start and end of their audible part, and the unusable clips with the reason."""

    def look(clip: str) -> tuple[float, float] | str:
        try:
            crops, length = load_crops(paths[clip], LOOK_RATE, round(READ_S * LOOK_RATE), [0.0], "pad", clip)
        except UnusableAudio as error:
            return error.reason
        start_s, end_s = audible_part(crops[0][:length], LOOK_RATE)
        return (start_s, end_s) if end_s - start_s >= config.min_clip_s else "too_short"

    clips, found = sounds.clip_id.tolist(), []
    with ThreadPoolExecutor(max(1, config.num_workers)) as pool, progress("look", len(clips), "clips") as advance:
        for answer in pool.map(look, clips):
            found.append(answer)
            advance(1)
    left_out = [(clip, answer) for clip, answer in zip(clips, found, strict=True) if isinstance(answer, str)]
    if len(left_out) > config.max_bad_fraction * len(clips):
        clip, reason = left_out[0]
        said = f"has less than {config.min_clip_s:g} s of audible sound" if reason == "too_short" else f"is {reason}"
        raise EmptySetError(
            f"{len(left_out)} of {len(clips)} clips cannot be composed; the first is {paths[clip]}, which {said} after "
            f"trimming silence. A clip needs at least {config.min_clip_s:g} s of sound: give longer clips, or raise "
            f"max_bad_fraction (now {config.max_bad_fraction:g})"
        )
    usable = np.array([not isinstance(answer, str) for answer in found], bool)
    places = np.array([answer for answer in found if not isinstance(answer, str)], np.float64).reshape(-1, 2)
    kept = sounds[usable].reset_index(drop=True)
    return kept.assign(start_s=places[:, 0], end_s=places[:, 1]), left_out


def unseen_couples(class_names: Sequence[str], share: float) -> set[Couple]:
    """Return the couples of classes that are kept out of training; they depend on the classes, not on the seed.

    Each class remains in at least one couple that is trained on.
    """
    couples = sorted(combinations(sorted(class_names), 2), key=lambda couple: signature(list(couple)))
    left = Counter(name for couple in couples for name in couple)
    chosen: set[Couple] = set()
    for couple in couples:
        if len(chosen) < round(share * len(couples)) and all(left[name] > 1 for name in couple):
            chosen.add(couple)
            left.subtract(couple)
    return chosen


def _groups(sources: pd.DataFrame, split: str, wanted: int, unseen: set[Couple], seed: int) -> pd.DataFrame:
    """Draw groups of one split: a couple of classes, uniformly, then a clip of each; no two groups have the same clips.

    Half of the held-out groups are of seen couples, half of unseen couples.
    """
    clips = {str(name): sources.clip_id.to_numpy()[rows] for name, rows in sources.groupby("class").indices.items()}
    recording = dict(zip(sources.clip_id, sources.recording, strict=True))
    couples = list(combinations(sorted(clips), 2))
    by_seen = [[couple for couple in couples if (couple in unseen) == wanted_unseen] for wanted_unseen in (False, True)]
    kinds = [found for found in (by_seen[:1] if split == "train" else by_seen) if found]
    if not kinds:
        named = ", ".join(map(repr, sorted(clips))) or "none"
        raise EmptySetError(
            "compositions need sounds of at least two classes, but the "
            f"{'training' if split == 'train' else 'held-out'} "
            f"clips have {len(clips)} ({named}); give more classes, or more recordings of each"
        )
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    found: dict[Couple, tuple[Any, ...]] = {}
    for _ in range(TRIES * wanted):
        if len(found) == wanted:
            break
        choices = kinds[len(found) % len(kinds)]
        couple = choices[rng.integers(len(choices))]
        a, b = (str(clips[name][rng.integers(len(clips[name]))]) for name in couple)
        offsets = rng.random(2).round(6).tolist()
        if recording[a] != recording[b] and (a, b) not in found:
            name = signature([a, b, *offsets])[:16]
            found[a, b] = (name, split, a, b, *couple, *offsets, couple in unseen)
    if not found:
        raise EmptySetError(
            f"no two {split.replace('_', ' ')} clips differ in class and recording; give more recordings"
        )
    return pd.DataFrame(list(found.values()), columns=GROUPS.names)


STAGE = Stage("compose", "1", "compositions", compose)
