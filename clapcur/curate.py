"""Curate: embeddings -> Improvement-Set. Three strategies over one exact similarity join.

==== =========================== ===========================================================================
DU   domain-unspecific           every (pool clip, caption) whose similarity reaches the audio threshold
DS   domain-specific             the training pairs whose caption reaches the caption threshold to a class prompt
ADS  augmented domain-specific   DU's rule with only the captions that reach the caption threshold
==== =========================== ===========================================================================

Source: Wang et al. 2023 (arXiv 2305.01864), section 2.3, as its code does it. Departures: the class that won and
every similarity are kept with each pair (the reference drops them); similarities are float32, not float16 (whose
spacing at 0.7 is 4.9e-4); evaluation clips, their source recordings and their near-duplicates are excluded and
counted; thresholds can be set by count or by precision, for a cosine of 0.7 means another thing to every teacher.

When a pool has grown, the set of its earlier version is taken over: only clips that are new are scored, and the
result is the set that scoring all of them would give. What changed is counted in the card.

Payload: ``pairs.parquet`` (see `clapcur.improvement_set`), ``card.json`` and the card's figures; ``histogram.npz`` with
the similarities of all pairs that were scored; ``changes.parquet`` against the earlier set, where there is one.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.artifacts import Artifact, Stage, Workspace, write_atomic
from clapcur.class_names import PROMPT, check_class_names
from clapcur.config import canonical, frozen
from clapcur.contamination import NearDuplicate, Overlap, check_near_duplicate, near_duplicate_threshold, overlap
from clapcur.embeddings import EmbeddingTable
from clapcur.errors import EmptySetError
from clapcur.figures import class_coverage_figure, near_duplicate_figure, similarity_figure
from clapcur.improvement_set import SCHEMA, ImprovementSetWriter
from clapcur.manifest import Manifest
from clapcur.marks import Mark
from clapcur.progress import progress
from clapcur.set_versions import merged, pair_blocks, write_changes
from clapcur.similarity import (
    best_class,
    caption_floor,
    similar_pairs,
    similarity_histogram,
    threshold_for_count,
)
from clapcur.thresholds import Threshold, nth_largest, precision_threshold

HISTOGRAM_BINS = 20_000  # over [-1, 1]: thresholds by count are good to 1e-4
OF_CLASS = "class "  # begins the name of a histogram of one class


@frozen
class CurateConfig:
    """Which pairs become the Improvement-Set."""

    strategy: Literal["du", "ds", "ads"]
    class_names: tuple[str, ...]
    # the classes of the domain
    prompt: str = PROMPT
    # {} is the place of the class name
    audio_threshold: Threshold = Threshold(similarity=0.7)
    # clip against caption: DU and ADS
    caption_threshold: Threshold = Threshold(similarity=0.7)
    # caption against class prompts: DS and ADS
    even_classes: bool = False
    # thresholds by count hold for each class apart, with an even share of the count: one threshold for all leaves out
    # the classes on which a weak teacher is less sure; thresholds by similarity or precision are not touched
    max_per_clip: int | None = None
    # best captions of a clip
    max_per_caption: int | None = None
    # best clips of a caption: keeps hubs from filling the set
    held_out: float = 0.1
    # share of the source recordings of the teacher pairs that never trains and that calibrates precision
    near_duplicate: NearDuplicate = 0.9999
    # audio similarity to an evaluation clip from which on a clip counts as the same sound; "calibrated": found on the
    # teacher's clips of different recordings; None: do not look
    marks: tuple[Mark, ...] = ()
    # what people heard (`clapcur.marks`): wrong pairs do not enter, and a precision is calibrated on all judged

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        check_class_names(self.class_names)
        check_near_duplicate(self.near_duplicate)
        if self.caption_threshold.precision is not None:
            raise ValueError(
                "only the audio threshold can be given by precision; give caption_threshold by similarity or count"
            )
        for name in ("max_per_clip", "max_per_caption"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or left out for no cap, got {value}")


@dataclass(frozen=True)
class Captions:
    """Captions with their unit rows and the class whose prompt is nearest."""

    ids: NDArray[np.object_]
    texts: NDArray[np.object_]
    rows_MD: NDArray[np.float32]
    classes: NDArray[np.object_]
    class_similarity_M: NDArray[np.float32]

    def where(self, keep_M: NDArray[np.bool_]) -> "Captions":
        """Return the captions for which the mask is true."""
        return Captions(*(getattr(self, name)[keep_M] for name in self.__dataclass_fields__))


def curate(inputs: Mapping[str, Artifact], config: CurateConfig, work: Workspace) -> dict[str, Any]:
    """Write an Improvement-Set.

    Inputs by role: ``teacher_pairs`` with ``teacher_clip_embeddings`` and ``teacher_caption_embeddings``;
    ``prompt_embeddings``; for DU and ADS ``pool`` with ``pool_embeddings`` and, where there are unpaired captions,
    ``captions`` with ``caption_embeddings``; ``evaluation`` with ``evaluation_embeddings`` only ever exclude;
    ``parent`` with ``parent_pool``, the set of an earlier version of the pool and that version.

    Raises
    ------
    EmptySetError
        No pair is left; the message names thresholds that would give some.
    """
    teacher_pairs = Manifest.open(inputs["teacher_pairs"])
    captions = _candidate_captions(inputs, config)
    num_captions = len(captions.ids)
    wrong = {(clip, caption) for clip, caption, mark in config.marks if mark == "wrong"}
    thresholds: dict[str, float] = {}
    evidence: dict[str, Any] = {}
    if config.strategy in ("ds", "ads"):
        least_M = _caption_thresholds(captions, config)
        thresholds["caption"] = float(least_M.min())
        captions = captions.where(captions.class_similarity_M >= least_M)
    clip_ids, rows_ND, exclusions, guard = _candidate_clips(inputs, config, teacher_pairs)
    with ImprovementSetWriter(work.path) as writer:
        if config.strategy == "ds":
            _write_training_pairs(writer, teacher_pairs, clip_ids, rows_ND, captions, wrong)
        else:
            taken_over = TakenOver.open(inputs, config, clip_ids)
            is_new_N = taken_over.is_new(clip_ids)
            join = _Join(clip_ids[is_new_N], rows_ND[is_new_N], captions, config, taken_over, wrong)
            evidence["histogram"] = _coarse(join.histograms()["all"])
            evidence["scored"] = {"new_clips": int(is_new_N.sum()), "clips_taken_over": int((~is_new_N).sum())}
            if config.audio_threshold.precision is not None:
                evidence["calibration"] = (
                    _calibrate_on_marks(config, clip_ids, rows_ND, captions)
                    if config.marks
                    else _calibrate(inputs, config, captions, teacher_pairs)
                )
                least: dict[str, float] | float = evidence["calibration"]["similarity"]
            else:
                least = join.thresholds()
            if isinstance(least, dict):
                evidence["class_thresholds"] = least
            thresholds["audio"] = min(least.values()) if isinstance(least, dict) else least
            join.write(writer, least)
            np.savez_compressed(work.path / "histogram.npz", allow_pickle=False, **join.histograms())
        if writer.num_pairs == 0:
            raise EmptySetError(_how_to_fill(config, thresholds, captions, evidence, num_captions, exclusions))
    text_of = dict(zip(captions.ids, captions.texts, strict=True))
    counts = writer.counts() | {
        "candidate_clips": len(clip_ids), "candidate_captions": len(captions.ids), "all_captions": num_captions,
    }  # fmt: skip
    if "parent" in inputs:
        changes = write_changes(inputs["parent"].path, work.path, work.path / "changes.parquet")
        evidence["changes"] = {"parent": inputs["parent"].id, **changes}
        counts |= {name: changes[name] for name in ("added", "removed")}
    card = {
        "strategy": config.strategy,
        "thresholds": thresholds,
        "counts": counts,
        "exclusions": exclusions,
        "contamination": guard.as_json(),
        "marked_wrong": len(wrong),
        "similarity": writer.similarity_summary(),
        "class_coverage": writer.class_coverage(check_class_names(config.class_names)),
        "top_captions": [{"caption": text_of[i], "pairs": n} for i, n in writer.per_caption.most_common(20)],
        **evidence,
    }
    write_atomic(work.path / "card.json", json.dumps(card, indent=1))
    class_coverage_figure(card, work.path / "class_coverage.png")
    if "histogram" in card:
        similarity_figure(card, work.path / "similarity.png")
    if guard.candidates is not None and guard.candidates.nearest_N is not None:
        near_duplicate_figure(
            guard.candidates.nearest_N, guard.different_N, guard.candidates.threshold, work.path / "near_duplicates.png"
        )
    return {
        "counts": counts | {f"excluded.{name}": count for name, count in exclusions.items()},
        "metrics": {f"threshold.{name}": value for name, value in thresholds.items()},
    }


def _candidate_captions(inputs: Mapping[str, Artifact], config: CurateConfig) -> Captions:
    """Return the captions to choose from, with their classes: the teacher's and, but for DS, the unpaired ones."""
    sources = [("teacher_pairs", "teacher_caption_embeddings")]
    if "captions" in inputs and config.strategy != "ds":
        sources.append(("captions", "caption_embeddings"))
    rows: dict[str, NDArray[np.float32]] = {}
    texts: dict[str, str] = {}
    for manifest_role, embeddings_role in sources:
        table = EmbeddingTable.open(inputs[embeddings_role])
        rows |= dict(zip(table.ids, table.rows_ND, strict=True))
        captions = Manifest.open(inputs[manifest_role]).captions
        texts |= dict(zip(captions.caption_id, captions.caption, strict=True))
    ids = sorted(rows)
    rows_MD = np.stack([rows[name] for name in ids])
    prompts = EmbeddingTable.open(inputs["prompt_embeddings"])
    class_index_M, class_similarity_M = best_class(rows_MD, prompts.rows_ND)
    names = np.array(check_class_names(config.class_names), object)
    ids_M, texts_M = np.array(ids, object), np.array([texts[name] for name in ids], object)
    return Captions(ids_M, texts_M, rows_MD, names[class_index_M], class_similarity_M)


def _candidate_clips(
    inputs: Mapping[str, Artifact], config: CurateConfig, teacher_pairs: Manifest
) -> tuple[NDArray[np.object_], NDArray[np.float32], dict[str, int], "Guard"]:
    """Return the clips that may enter, sorted by id, their rows, how many were excluded for what reason, and why."""
    is_ds = config.strategy == "ds"
    clips = teacher_pairs.clips if is_ds else Manifest.open(inputs["pool"]).clips
    table = EmbeddingTable.open(inputs["teacher_clip_embeddings" if is_ds else "pool_embeddings"])
    clips = clips.sort_values("clip_id", ignore_index=True)
    rows_ND = table.select(clips.clip_id.tolist())
    reasons: dict[str, NDArray[np.bool_]] = {
        "held_out": clips.clip_id.isin(teacher_pairs.held_out(config.held_out)).to_numpy()
    }
    guard = _guard(inputs, config, clips, rows_ND, teacher_pairs)
    if guard.candidates is not None:
        for reason in guard.candidates.checked:
            reasons[f"evaluation_{reason}"] = clips.clip_id.isin(guard.candidates.clips(reason)).to_numpy()
    keep = np.ones(len(clips), bool)
    counts = {}
    for reason, applies in reasons.items():  # a clip counts for the first reason that applies
        counts[reason] = int((keep & applies).sum())
        keep &= ~applies
    return clips.clip_id.to_numpy(object)[keep], rows_ND[keep], counts, guard


@dataclass(frozen=True)
class Guard:
    """What the evaluation clips have to do with the candidates and with the teacher's own pairs."""

    candidates: Overlap | None = None
    # None: there is no evaluation to keep away from
    teacher_pairs: Overlap | None = None
    # these are not excluded, for the teacher has learned from them; the scores of its clips say so
    different_N: NDArray[np.float32] | None = None
    # similarities of teacher clips to the nearest that is known to differ, where the threshold was found on them

    def as_json(self) -> dict[str, Any]:
        """Return what the card keeps of it."""
        both = {"candidates": self.candidates, "teacher_pairs": self.teacher_pairs}
        return {name: found.as_json() for name, found in both.items() if found is not None}


def _guard(
    inputs: Mapping[str, Artifact], config: CurateConfig, clips: pd.DataFrame, rows_ND: NDArray[np.float32],
    teacher_pairs: Manifest,
) -> Guard:  # fmt: skip
    """Compare the candidates, and the teacher's pairs, with the evaluation clips."""
    if "evaluation" not in inputs:
        return Guard()
    evaluation = Manifest.open(inputs["evaluation"]).clips
    looks = config.near_duplicate is not None and "evaluation_embeddings" in inputs
    teacher_rows, rows_MD, threshold, different_N = None, None, None, None
    if looks:
        table = EmbeddingTable.open(inputs["teacher_clip_embeddings"])
        teacher_rows = table.select(teacher_pairs.clips.clip_id.tolist())
        rows_MD = EmbeddingTable.open(inputs["evaluation_embeddings"]).select(evaluation.clip_id.tolist())
        threshold, different_N = near_duplicate_threshold(config.near_duplicate, teacher_pairs.clips, teacher_rows)
    return Guard(
        overlap(clips, evaluation, rows_ND if looks else None, rows_MD, threshold),
        overlap(teacher_pairs.clips, evaluation, teacher_rows, rows_MD, threshold),
        different_N,
    )


def _caption_thresholds(captions: Captions, config: CurateConfig) -> NDArray[np.float32]:
    """Return the threshold that holds for each caption: one for all, or one for each class."""
    threshold = config.caption_threshold
    if threshold.similarity is not None:
        return np.full(len(captions.ids), threshold.similarity, np.float32)
    assert threshold.count is not None
    if not config.even_classes:
        return np.full(len(captions.ids), nth_largest(captions.class_similarity_M, threshold.count), np.float32)
    share = _share(threshold.count, config)
    own = {
        name: nth_largest(captions.class_similarity_M[captions.classes == name], share)
        for name in np.unique(captions.classes)
    }
    return np.array([own[name] for name in captions.classes], np.float32)


def _share(count: int, config: CurateConfig) -> int:
    return max(1, count // len(config.class_names))


def _calibrate(
    inputs: Mapping[str, Artifact], config: CurateConfig, captions: Captions, teacher_pairs: Manifest
) -> dict[str, float]:
    """Return the threshold that reaches the wanted precision on held-out pairs, and its evidence."""
    target = config.audio_threshold.precision
    assert target is not None
    scores, agrees = _held_out_agreement(inputs, config, captions, teacher_pairs)
    return {"target": target, "held_out_pairs": len(scores), **precision_threshold(scores, agrees, target)}


def _calibrate_on_marks(
    config: CurateConfig, clip_ids: NDArray[np.object_], rows_ND: NDArray[np.float32], captions: Captions
) -> dict[str, float]:
    """Return the threshold that reaches the wanted precision on the pairs that people judged, and its evidence.

    An audition hears more of the pairs at the border of a set than of others: the whole set is rather better.
    """
    target = config.audio_threshold.precision
    assert target is not None
    clip = {name: index for index, name in enumerate(clip_ids)}
    text = {name: index for index, name in enumerate(captions.ids)}
    known = [mark for mark in config.marks if mark[0] in clip and mark[1] in text]
    if not known:
        raise EmptySetError(
            f"none of the {len(config.marks)} marked pairs is of this pool and these captions; mark pairs of a set "
            "that was curated from them, or leave the marks out"
        )
    audio_PD = rows_ND[[clip[name] for name, _, _ in known]]
    text_PD = captions.rows_MD[[text[name] for _, name, _ in known]]
    scores = np.einsum("pd,pd->p", audio_PD, text_PD).astype(np.float32)
    agrees = np.array([mark == "right" for _, _, mark in known])
    return {"target": target, "marked_pairs": len(known), **precision_threshold(scores, agrees, target)}


def _held_out_agreement(
    inputs: Mapping[str, Artifact], config: CurateConfig, captions: Captions, teacher_pairs: Manifest
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Score every held-out clip against every candidate caption, and tell whether their classes agree.

    The class of a held-out clip is that of its own caption's nearest prompt: no label is read. The pool may be harder
    than the held-out pairs, so the precision is that of the teacher's own domain.
    """
    pairs = teacher_pairs.pairs[teacher_pairs.pairs.clip_id.isin(teacher_pairs.held_out(config.held_out))]
    pairs = pairs.drop_duplicates("clip_id")
    if pairs.empty:
        raise EmptySetError("a threshold by precision needs held-out pairs; raise held_out or give a similarity")
    prompts = EmbeddingTable.open(inputs["prompt_embeddings"]).rows_ND
    own_rows = EmbeddingTable.open(inputs["teacher_caption_embeddings"]).select(pairs.caption_id.tolist())
    own_class, _ = best_class(own_rows, prompts)
    names = np.array(check_class_names(config.class_names), object)
    audio = EmbeddingTable.open(inputs["teacher_clip_embeddings"]).select(pairs.clip_id.tolist())
    similarity = audio @ captions.rows_MD.T
    return similarity.ravel(), (names[own_class][:, None] == captions.classes[None, :]).ravel()


@dataclass(frozen=True)
class TakenOver:
    """What the set of an earlier version of the pool gives to this one (DU and ADS)."""

    folder: Path | None
    # of the earlier set; None: nothing is taken over
    scored: frozenset[str] = frozenset()
    # clips that were candidates then

    @classmethod
    def open(cls, inputs: Mapping[str, Artifact], config: CurateConfig, clip_ids: NDArray[np.object_]) -> "TakenOver":
        """Return what can be taken over, which may be nothing.

        The earlier set must have been made by this version of the stage from the same config and the same other
        inputs. A clip that left makes room for pairs which the earlier set did not keep, and with a cap per caption a
        new clip takes the place of another: then all clips are scored again.
        """
        if "parent" not in inputs or config.max_per_caption is not None:
            return cls(None)
        parent, changing = inputs["parent"], ("pool", "pool_embeddings", "parent", "parent_pool")
        record = parent.record
        others = {role: artifact.id for role, artifact in inputs.items() if role not in changing}
        same = {role: name for role, name in record["inputs"].items() if role not in changing} == others
        before = set(Manifest.open(inputs["parent_pool"]).clips.clip_id)
        left = before - set(Manifest.open(inputs["pool"]).clips.clip_id)
        if not same or left or (record["version"], record["config"]) != (STAGE.version, canonical(config)):
            return cls(None)
        return cls(parent.path, frozenset(before & set(clip_ids)))

    def is_new(self, clip_ids: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Tell for each clip whether it must be scored."""
        return np.array([name not in self.scored for name in clip_ids], bool)

    def histograms(self) -> dict[str, NDArray[np.int64]]:
        """Return the similarities of all pairs that were scored then, by class where they were needed by class."""
        if self.folder is None:
            return {}
        with np.load(self.folder / "histogram.npz") as file:
            return dict(file)

    def blocks(self) -> Iterator[pd.DataFrame]:
        """Yield the pairs of then."""
        return pair_blocks(self.folder) if self.folder else iter(())


class _Join:
    """Clips against captions: the thresholds, and the pairs that reach them and that the caps leave.

    The order is: the cap per caption, the cap per clip, the thresholds. A threshold by count is found on what the caps
    leave; were the thresholds of the classes applied before the caps, a pair that falls out would free a place for the
    next caption of its clip, and more pairs than asked for would be kept.
    """

    def __init__(
        self, clip_ids: NDArray[np.object_], rows_ND: NDArray[np.float32], captions: Captions, config: CurateConfig,
        taken_over: TakenOver, wrong: Set[tuple[str, str]],
    ) -> None:  # fmt: skip
        self.wrong = pd.MultiIndex.from_tuples(sorted(wrong), names=["clip_id", "caption_id"]) if wrong else None
        self.clip_ids, self.rows_ND, self.captions, self.config = clip_ids, rows_ND, captions, config
        self.taken_over = taken_over
        self.by_class = config.even_classes and config.audio_threshold.count is not None
        self.is_capped = config.max_per_clip is not None or config.max_per_caption is not None
        self.floor_M: NDArray[np.float32] | None = None
        if config.max_per_caption and len(rows_ND):
            self.floor_M = caption_floor(rows_ND, captions.rows_MD, config.max_per_caption)
        self._histograms: dict[str, NDArray[np.int64]] = {}

    def histograms(self) -> dict[str, NDArray[np.int64]]:
        """Count all pairs by similarity: ``all``, and those of each class where its threshold is found from the counts.

        Clips whose pairs are taken over are counted as they were then.
        """
        if not self._histograms:
            wanted = {"all": np.ones(len(self.captions.ids), bool)}
            if self.by_class and not self.is_capped:
                names = np.unique(self.captions.classes)
                wanted |= {f"{OF_CLASS}{name}": self.captions.classes == name for name in names}
            before = self.taken_over.histograms()
            for name, of_name in wanted.items():
                rows_MD = self.captions.rows_MD[of_name]
                counts = similarity_histogram(self.rows_ND, rows_MD, num_bins=HISTOGRAM_BINS)
                self._histograms[name] = counts + before.get(name, 0)
        return self._histograms

    def thresholds(self) -> dict[str, float] | float:
        """Return the given similarity, or what keeps the given number of pairs: one for all, or one for each class."""
        threshold = self.config.audio_threshold
        if threshold.similarity is not None:
            return threshold.similarity
        assert threshold.count is not None
        if not len(self.captions.ids):
            return 1.0
        share = _share(threshold.count, self.config)
        if not self.is_capped:
            if not self.by_class:
                return threshold_for_count(self.histograms()["all"], threshold.count)
            return {
                name.removeprefix(OF_CLASS): threshold_for_count(counts, share)
                for name, counts in self.histograms().items()
                if name.startswith(OF_CLASS)
            }
        blocks = [*self.blocks(-1.0), *(block[["similarity", "class"]] for block in self.taken_over.blocks())]
        similarity = np.concatenate([np.empty(0, np.float32), *(block.similarity for block in blocks)])
        if not self.by_class:
            return nth_largest(similarity, threshold.count)
        classes = np.concatenate([np.empty(0, object), *(block["class"] for block in blocks)])
        names = np.unique(self.captions.classes)
        return {str(name): nth_largest(similarity[classes == name], share) for name in names}

    def blocks(self, threshold: float, on_clips: Callable[[int], None] | None = None) -> Iterator[pd.DataFrame]:
        """Yield the pairs of the clips that are scored, sorted by clip, as the columns of an Improvement-Set."""
        captions, done = self.captions, 0
        if not len(captions.ids) or not len(self.clip_ids):
            return
        cap = self.config.max_per_clip
        found = similar_pairs(self.rows_ND, captions.rows_MD, threshold, cap_per_clip=cap, caption_floor_M=self.floor_M)
        for block in found:
            clip, text = block.audio_index, block.text_index
            columns = (
                self.clip_ids[clip], captions.ids[text], block.similarity, captions.classes[text],
                captions.class_similarity_M[text], block.rank,
            )  # fmt: skip
            pairs = pd.DataFrame(dict(zip(SCHEMA.names, columns, strict=True)))
            if self.wrong is not None:
                pairs = pairs[~pd.MultiIndex.from_frame(pairs[["clip_id", "caption_id"]]).isin(self.wrong)]
            yield pairs
            if on_clips is not None:
                on_clips(int(clip[-1]) + 1 - done)
                done = int(clip[-1]) + 1

    def write(self, writer: ImprovementSetWriter, least: Mapping[str, float] | float) -> None:
        """Write the pairs that reach their threshold, those taken over among them."""
        lowest = min(least.values()) if isinstance(least, Mapping) else least
        with progress(f"curate {self.config.strategy}", len(self.clip_ids), "clips") as advance:
            for pairs in merged(self.taken_over.blocks(), self.blocks(lowest, advance)):
                own = pairs["class"].map(least).astype(np.float32) if isinstance(least, Mapping) else np.float32(least)
                kept = pairs[pairs.similarity >= own]
                writer.add(*(kept[name].to_numpy() for name in SCHEMA.names))


def _write_training_pairs(
    writer: ImprovementSetWriter, teacher_pairs: Manifest, clip_ids: NDArray[np.object_],
    rows_ND: NDArray[np.float32], captions: Captions, wrong: Set[tuple[str, str]],
) -> None:  # fmt: skip
    """Write the training pairs of the eligible clips whose caption was kept (DS)."""
    pairs = teacher_pairs.pairs
    pairs = pairs[pairs.clip_id.isin(clip_ids) & pairs.caption_id.isin(captions.ids)]
    is_wrong = [pair in wrong for pair in zip(pairs.clip_id, pairs.caption_id, strict=True)]
    pairs = pairs[~np.array(is_wrong, bool)]
    clip = np.searchsorted(clip_ids.astype(str), pairs.clip_id.to_numpy(str))
    text = np.searchsorted(captions.ids.astype(str), pairs.caption_id.to_numpy(str))
    similarity = np.einsum("pd,pd->p", rows_ND[clip], captions.rows_MD[text]).astype(np.float32)
    order = np.lexsort((text, -similarity, clip))
    clip, text, similarity = clip[order], text[order], similarity[order]
    first_of_clip = np.searchsorted(clip, clip, side="left")
    rank = (np.arange(len(clip)) - first_of_clip).astype(np.int32)
    writer.add(
        clip_ids[clip], captions.ids[text], similarity, captions.classes[text], captions.class_similarity_M[text], rank
    )


def _coarse(histogram: NDArray[np.int64], num_bins: int = 200) -> dict[str, list[float]]:
    """Return a histogram for the card: bin edges over [-1, 1] and counts."""
    return {
        "edges": np.linspace(-1, 1, num_bins + 1).round(4).tolist(),
        "counts": histogram.reshape(num_bins, -1).sum(axis=1).tolist(),
    }


def _how_to_fill(
    config: CurateConfig, thresholds: Mapping[str, float], captions: Captions, evidence: Mapping[str, Any],
    num_captions: int, exclusions: Mapping[str, int],
) -> str:  # fmt: skip
    """Say why the set is empty and which threshold would give pairs."""
    name = config.strategy.upper()
    if not len(captions.ids):
        return (
            f"{name} kept none of {num_captions} captions at a caption threshold of {thresholds['caption']:.3f}; "
            "give the caption threshold by count (such as count: 100), or lower it"
        )
    left_out = ", ".join(f"{count} as {reason.replace('_', ' ')}" for reason, count in exclusions.items() if count)
    if "histogram" not in evidence:
        return (
            f"{name} found no training pair, outside the held-out recordings, with one of {len(captions.ids)} captions"
            + (f"; left out: {left_out}" if left_out else "")
        )
    counts = np.array(evidence["histogram"]["counts"][::-1])
    edges = np.array(evidence["histogram"]["edges"][:-1][::-1])
    would = [
        f"{edges[index]:.2f} would give {int(total)}"
        for index, total in enumerate(np.cumsum(counts))
        if total > 0 and counts[index] > 0
    ][:3]
    hint = f"; an audio threshold of {', '.join(would)} pairs" if would else f"; no clip is eligible: {left_out}"
    return f"{name} kept no pair at an audio threshold of {thresholds['audio']:.3f}{hint}"


STAGE = Stage("curate", "5", "improvement_set", curate)
