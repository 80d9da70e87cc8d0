"""Curate: embeddings -> Improvement-Set. Three strategies select pairs by similarity, two use generated captions.

================ =========================== ==========================================================================
DU               domain-unspecific           every (pool clip, caption) whose similarity reaches the audio threshold
DS               domain-specific             the training pairs whose caption is at the caption threshold to a prompt
ADS              augmented domain-specific   DU's rule with only the captions that reach the caption threshold
TagCap           generated captions          pool clips with the captions that were generated for them
TagCap ∩ classes near the classes            TagCap pairs whose caption reaches the caption threshold (ours)
================ =========================== ==========================================================================

Source: Wang et al. 2023 (arXiv 2305.01864), section 2.3, as implemented in its code. Differences: each pair keeps its
nearest class and all similarities (the reference drops them); similarities are float32, not float16 (whose spacing at
0.7 is 4.9e-4); evaluation clips, their source recordings and their near duplicates are excluded and counted; thresholds
can be set by count or by precision, because a cosine of 0.7 means something different for every teacher. Our own
options: caps, removal of duplicates in the pool, a correction of hubness, and clusters if an exact search is too slow.

When a pool has grown, the set of its earlier version is reused: only new clips are scored, and the result is the same
set as if all clips were scored. The card counts the changes.

Payload: ``pairs.parquet`` (see `clapcur.data.improvement_set`), ``card.json`` and the card's figures;
``changes.parquet`` relative to the earlier set, if there is one::

    config           the settings of a curation
    candidates       which captions and clips may enter
    taken_over       what is reused from an earlier version of the set
    calibration      a threshold by precision
    pool_join        clips of the pool against captions (DU, ADS)
    training_pairs   given pairs: the training pairs (DS), or generated ones (TagCap)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clapcur.data.class_names import check_class_names
from clapcur.data.improvement_set import CaptionCount, Card, Histogram, ImprovementSet, ImprovementSetWriter
from clapcur.data.manifest import Manifest
from clapcur.data.rows import GENERATED, SEARCHED
from clapcur.data.set_diff import write_changes
from clapcur.errors import EmptySetError
from clapcur.methods.devices import pick_device
from clapcur.methods.hubness import Correction, hub_statistics
from clapcur.methods.plots import class_coverage_figure, near_duplicate_figure, similarity_figure
from clapcur.stages.curate.calibration import calibrate, calibrate_on_marks
from clapcur.stages.curate.candidates import Captions, candidate_captions, candidate_clips, caption_thresholds
from clapcur.stages.curate.config import CurateConfig, Curation
from clapcur.stages.curate.pool_join import PoolJoin, Thresholds, sample_histogram
from clapcur.stages.curate.taken_over import TakenOver
from clapcur.stages.curate.training_pairs import write_given_pairs
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.record import Outcome

VERSION = "7"

__all__ = ["STAGE", "CurateConfig", "Curation", "curate"]


def curate(inputs: Mapping[str, Artifact], config: CurateConfig, work: Workspace) -> Outcome:
    """Write an Improvement-Set.

    Inputs by role: ``teacher_pairs`` with ``teacher_clip_embeddings`` and ``teacher_caption_embeddings``;
    ``prompt_embeddings``; for DU and ADS ``pool`` with ``pool_embeddings`` and, if there are unpaired captions,
    ``captions`` with ``caption_embeddings``; for TagCap ``pool`` with ``pool_embeddings`` and ``generated`` with
    ``generated_embeddings``; ``evaluation`` with ``evaluation_embeddings``, used only to exclude clips; ``parent``
    with ``parent_pool``, the set of an earlier version of the pool and that version.

    Raises
    ------
    EmptySetError
        No pair is left; the message names thresholds that would select some.
    """
    teacher_pairs = Manifest.open(inputs["teacher_pairs"])
    captions = candidate_captions(inputs, config)
    num_captions = len(captions.ids)
    thresholds: dict[str, float] = {}
    evidence: dict[str, Any] = {}
    if config.strategy in ("ds", "ads", "tagcap-classes"):
        least_M = caption_thresholds(captions, config)
        thresholds["caption"] = float(least_M.min())
        captions = captions.where(captions.class_similarity_M >= least_M)
    clip_ids, rows_ND, exclusions, guard = candidate_clips(inputs, config, teacher_pairs)
    with ImprovementSetWriter(work.path) as writer:
        if config.strategy not in SEARCHED:
            given = Manifest.open(inputs["generated"]) if config.strategy in GENERATED else teacher_pairs
            least = write_given_pairs(writer, given, clip_ids, rows_ND, captions, config, wrong_pairs(config))
            if least:
                thresholds["audio"] = min(least.values())
                evidence |= {"class_thresholds": least} if "" not in least else {}
        else:
            _write_pool_pairs(writer, inputs, config, teacher_pairs, captions, clip_ids, rows_ND, thresholds, evidence)
        if writer.num_pairs == 0:
            raise EmptySetError(_how_to_fill(config, thresholds, captions, evidence, num_captions, exclusions))
    text_of = dict(zip(captions.ids, captions.texts, strict=True))
    counts = writer.counts() | {
        "candidate_clips": len(clip_ids), "candidate_captions": len(captions.ids), "all_captions": num_captions,
    }  # fmt: skip
    if "parent" in inputs:
        before, parent = ImprovementSet.open(inputs["parent"]), inputs["parent"].id
        changes = write_changes(before, parent, ImprovementSet(work.path), work.path / "changes.parquet")
        evidence["changes"] = changes
        counts |= {"added": changes.added, "removed": changes.removed}
    card = Card(
        strategy=config.strategy,
        thresholds=thresholds,
        counts=counts,
        exclusions=exclusions,
        contamination=guard.as_json(),
        marked_wrong=len(wrong_pairs(config)),
        similarity=writer.similarity_summary(),
        class_coverage=writer.class_coverage(check_class_names(config.class_names)),
        top_captions=[CaptionCount(caption=text_of[i], pairs=n) for i, n in writer.per_caption.most_common(20)],
        **evidence,
    )
    card.write(work.path)
    class_coverage_figure(card, work.path / "class_coverage.png")
    if card.histogram is not None:
        similarity_figure(card, work.path / "similarity.png")
    if guard.candidates is not None and guard.candidates.nearest_N is not None:
        near_duplicate_figure(
            guard.candidates.nearest_N, guard.different_N, guard.candidates.threshold, work.path / "near_duplicates.png"
        )
    return Outcome(
        counts=counts | {f"excluded.{name}": count for name, count in exclusions.items()},
        metrics={f"threshold.{name}": value for name, value in thresholds.items()},
    )


def _write_pool_pairs(
    writer: ImprovementSetWriter, inputs: Mapping[str, Artifact], config: CurateConfig, teacher_pairs: Manifest,
    captions: Captions, clip_ids: NDArray[np.object_], rows_ND: NDArray[np.float32], thresholds: dict[str, float],
    evidence: dict[str, Any],
) -> None:  # fmt: skip
    """Write the pairs of the pool (DU, ADS); record the threshold and its evidence."""
    correction = None
    if config.hubness is not None and len(clip_ids) and len(captions.ids):
        sample_SD = rows_ND[: config.hubness.reference_clips]  # ids are hashes: a random sample
        correction = Correction.measure(config.hubness, sample_SD, captions.rows_MD, pick_device(config.device))
        evidence["hubness"] = hub_statistics(sample_SD, captions.rows_MD, correction)
    taken_over = TakenOver.open(inputs, config, VERSION, clip_ids)
    is_new_N = taken_over.is_new(clip_ids)
    some = slice(None) if is_new_N.all() else is_new_N
    wrong = wrong_pairs(config)
    join = PoolJoin(clip_ids[some], rows_ND[some], captions, config, taken_over, wrong, correction)
    histogram, num_counted = sample_histogram(rows_ND, captions.rows_MD, join.offsets, join.device)
    evidence["histogram"] = _coarse(histogram, num_counted, len(clip_ids))
    evidence["scored"] = {"new_clips": int(is_new_N.sum()), "clips_taken_over": int((~is_new_N).sum())}
    if config.audio_threshold.precision is not None:
        evidence["calibration"] = (
            calibrate_on_marks(config, clip_ids, rows_ND, captions, correction)
            if config.marks
            else calibrate(inputs, config, captions, teacher_pairs, correction)
        )
        least: Thresholds = evidence["calibration"]["similarity"]
    else:
        least = join.thresholds()
    if isinstance(least, dict):
        evidence["class_thresholds"] = least
    thresholds["audio"] = min(least.values()) if isinstance(least, dict) else least
    join.write(writer, least)
    if config.approximate is not None and not join.is_empty:
        evidence["approximate"] = join.recall(least, config.approximate.num_checked)


def wrong_pairs(config: CurateConfig) -> set[tuple[str, str]]:
    """Return the pairs (clip, caption) that people marked as wrong."""
    return {(clip, caption) for clip, caption, mark in config.marks if mark == "wrong"}


def _coarse(histogram: NDArray[np.int64], num_counted: int, num_clips: int, num_bins: int = 200) -> Histogram:
    """Return the histogram for the card, with bins over [-1, 1]."""
    return Histogram(
        clips=num_counted,
        of_clips=num_clips,
        edges=np.linspace(-1, 1, num_bins + 1).round(4).tolist(),
        counts=histogram.reshape(num_bins, -1).sum(axis=1).tolist(),
    )


def _how_to_fill(
    config: CurateConfig, thresholds: Mapping[str, float], captions: Captions, evidence: Mapping[str, Any],
    num_captions: int, exclusions: Mapping[str, int],
) -> str:  # fmt: skip
    """Return why the set is empty, and which threshold would select pairs."""
    name = config.strategy.upper()
    if not len(captions.ids):
        return (
            f"{name} kept 0 of {num_captions} captions at a caption threshold of {thresholds['caption']:.3f}; "
            "lower it, or give the caption threshold by count (such as count: 100)"
        )
    left_out = ", ".join(f"{count} as {reason.replace('_', ' ')}" for reason, count in exclusions.items() if count)
    histogram: Histogram | None = evidence.get("histogram")
    if histogram is None:
        what = "training" if config.strategy == "ds" else "generated"
        return (
            f"{name} found no {what} pair with one of {len(captions.ids)} captions outside the held-out recordings"
            + (f"; left out: {left_out}" if left_out else "")
        )
    counts = np.array(histogram.counts[::-1])
    edges = np.array(histogram.edges[:-1][::-1])
    of_sample = histogram.of_clips / max(1, histogram.clips)
    would = [
        f"{edges[index]:.2f} would give {round(total * of_sample)}"
        for index, total in enumerate(np.cumsum(counts))
        if total > 0 and counts[index] > 0
    ][:3]
    hint = f"; an audio threshold of {', '.join(would)} pairs" if would else f"; no clip is eligible: {left_out}"
    return f"{name} kept no pair at an audio threshold of {thresholds['audio']:.3f}{hint}"


STAGE = Stage("curate", VERSION, "improvement_set", curate)
