"""Check an experiment before anything is trained.

Training a teacher takes hours, and many errors of a later stage can be found in the config and the manifests: a label
that is no class, pairs without captions, a hold-out without a pair, an unreachable threshold. `check_config` needs only
the config, `check_manifests` needs the ingested manifests. The stages repeat the same checks.
"""

import logging
from collections.abc import Mapping

from clapcur.data.class_names import check_class_names
from clapcur.data.manifest import Manifest
from clapcur.data.report_table import NOT_MEASURED
from clapcur.data.rows import FROM_POOL, SEARCHED, ImprovementSetName
from clapcur.errors import EmptySetError, ManifestError
from clapcur.experiments.captioning import Captioning
from clapcur.experiments.config import Experiment
from clapcur.methods.contamination import LEAST_DIFFERENT, known_to_differ, overlap
from clapcur.methods.thresholds import LEAST_SUPPORT, Threshold
from clapcur.models.text import find_text_source
from clapcur.stages import caption as caption_stage
from clapcur.stages import tag as tag_stage
from clapcur.stages.adopt import check_place
from clapcur.stages.curate import Curation
from clapcur.stages.embed import EmbedConfig
from clapcur.stages.evaluate import label_index
from clapcur.stages.report import ReportConfig, ReportRow
from clapcur.store.artifacts import Artifact

log = logging.getLogger("clapcur")


def check_config(experiment: Experiment) -> None:
    """Reject an experiment in which a later stage is sure to fail, before anything is ingested.

    Raises
    ------
    ValueError
        A stage would reject a setting.
    CheckpointError
        The checkpoint or a text model is missing.
    """
    from clapcur.methods.devices import pick_device

    if experiment.evaluation is None:
        log.warning(NOT_MEASURED.replace("was measured", "will be measured"))
    rows = tuple(ReportRow.of(row, seed) for row in experiment.rows for seed in experiment.seeds)
    ReportConfig(title=experiment.name, rows=rows, note=experiment.note)
    experiment.evaluate()
    EmbedConfig(what="audio", num_crops=experiment.num_crops)
    for name in experiment.improvement_sets:
        experiment.curate(name)
    trainings = [training for training in (experiment.teacher, experiment.student) if training is not None]
    for training in trainings:
        pick_device(training.device)
    if experiment.captioning is not None:
        _check_captioning(experiment.captioning)
    if experiment.checkpoint is not None:
        check_place(experiment.checkpoint)
    elif experiment.teacher is not None and experiment.teacher.model is None:
        raise ValueError("a teacher trained from scratch needs `teacher: {model: ...}`; or give `checkpoint`")
    for training in trainings:
        if training.model is not None and training.model.text.source != "bert-tiny":
            find_text_source(training.model.text.source)
    if experiment.teacher and experiment.student.model not in (None, experiment.teacher.model):
        raise ValueError("a student has the same model as its teacher: omit `student: {model: ...}`")


def _check_captioning(captioning: Captioning) -> None:
    """Reject missing files, which otherwise are first read after the first training."""
    tag_stage.stage_for(captioning.tags)
    caption_stage.stage_for(captioning.captions)
    if captioning.tagger is not None:
        captioning.tagger.check_place()


def check_manifests(experiment: Experiment, manifests: Mapping[str, Artifact]) -> None:
    """Reject manifests with which a later stage is sure to fail.

    Parameters
    ----------
    experiment : Experiment
    manifests : mapping
        By role: ``pairs`` and, if any, ``evaluation``, ``pool`` and ``captions``.

    Raises
    ------
    ManifestError
        A label is no class, or a manifest lacks the rows that its role needs.
    EmptySetError
        Nothing would be held out, selected or trained on, or a threshold asks for more than there is.
    """
    opened = {role: Manifest.open(artifact) for role, artifact in manifests.items()}
    _check_contents(experiment, opened)
    if "evaluation" in opened:
        _check_evaluation(experiment, opened["evaluation"])
    _check_held_out(experiment, opened["pairs"])
    if wanted := set(experiment.improvement_sets):
        _check_candidates(experiment, opened, wanted)
        _check_thresholds(experiment, opened, wanted)
        _check_evidence(experiment, opened, wanted)


def _check_contents(experiment: Experiment, opened: Mapping[str, Manifest]) -> None:
    for role, table, needs in (
        ("pairs", "pairs", "clips with captions: columns `path` and `caption`"),
        ("pool", "clips", "audio: a folder, or a table with the column `path`"),
        ("captions", "captions", "captions: a table with the column `caption`"),
        ("evaluation", "clips", "clips with labels: columns `path` and `label`"),
    ):
        if role in opened and not len(getattr(opened[role], table)):
            config = getattr(experiment, role)
            source = config.source if config else "generated"
            raise ManifestError(f"{role} ({source}) has no {table}; it needs {needs}")


def _check_evaluation(experiment: Experiment, evaluation: Manifest) -> None:
    label_index(evaluation.clips, check_class_names(experiment.class_names))
    if len(set(evaluation.groups.values())) < 2:
        raise ManifestError(
            f"all {len(evaluation.clips)} evaluation clips are cut from one recording, so no interval can be computed; "
            "give clips of several recordings, or fix the column recording_id"
        )


def _check_held_out(experiment: Experiment, pairs: Manifest) -> None:
    share = experiment.student.held_out
    is_held_out = pairs.pairs.clip_id.isin(pairs.held_out(share))
    num_held_out, num_kept = int(is_held_out.sum()), int((~is_held_out).sum())
    num_recordings = len({pairs.groups[clip] for clip in pairs.pairs.clip_id})
    of = f"of {len(pairs.pairs)} pairs from {num_recordings} recordings"
    trainings = [training for training in (experiment.teacher, experiment.student) if training is not None]
    if any(training.selection == "held_out" for training in trainings) and num_held_out < 2:
        raise EmptySetError(
            f"held_out {share:g} {of} holds out {num_held_out} pairs, but selecting weights needs at least 2; raise "
            "held_out, give more recordings, or use selection: last"
        )
    if not num_kept:
        raise EmptySetError(
            f"held_out {share:g} {of} leaves no pairs to train on; lower held_out, or give more recordings"
        )


def _check_candidates(experiment: Experiment, opened: Mapping[str, Manifest], wanted: set[ImprovementSetName]) -> None:
    """Reject an experiment in which no clip may enter a set: all are held out or overlap with the evaluation."""
    held_out = opened["pairs"].held_out(experiment.student.held_out)
    for role, strategies in (("pool", wanted & {*FROM_POOL}), ("pairs", wanted & {"ds"})):
        if not strategies:
            continue
        clips = opened[role].clips
        known = set(overlap(clips, opened["evaluation"].clips).reason_of()) if "evaluation" in opened else set()
        if not set(clips.clip_id) - known - held_out:
            raise EmptySetError(
                f"none of the {len(clips)} clips of {role} may enter a set: {len(known)} are evaluation clips or share "
                f"a recording with one, {len(set(clips.clip_id) & held_out - known)} are held out; give other clips"
            )


def _check_thresholds(experiment: Experiment, opened: Mapping[str, Manifest], wanted: set[ImprovementSetName]) -> None:
    """Reject a count that is larger than the number of candidates; for the default counts, only warn."""
    texts = set(opened["pairs"].captions.caption_id)
    if "captions" in opened and wanted & {*SEARCHED}:
        texts |= set(opened["captions"].captions.caption_id)
    if wanted & {"ds", "ads"}:
        threshold = experiment.curation.caption_threshold
        _check_count("caption_threshold", threshold, Curation.caption_threshold, len(texts), "captions")
    for strategy in sorted(wanted & {*SEARCHED}):
        most = len(opened["pool"].clips) * min(len(texts), experiment.curation.max_per_clip or len(texts))
        threshold = experiment.curate(strategy).audio_threshold
        name = "du_threshold" if strategy == "du" and experiment.du_threshold else "audio_threshold"
        _check_count(name, threshold, Curation.audio_threshold, most, "pairs of a pool clip and a caption")
    approximate = experiment.curation.approximate
    if approximate is not None and approximate.num_clusters > len(texts):
        raise EmptySetError(
            f"approximate has {approximate.num_clusters} clusters for only {len(texts)} captions; lower num_clusters, "
            "or "
            "omit approximate: exact search is fast enough for so few captions"
        )


def _check_count(name: str, threshold: Threshold, default: Threshold, most: int, what: str) -> None:
    if threshold.count is None or threshold.count <= most:
        return
    if threshold != default:
        raise EmptySetError(
            f"{name} has a count of {threshold.count:,}, but there are at most {most:,} {what}, so it would select all "
            "of them; lower the count"
        )
    log.warning(
        "%s: the default is %s, but there are at most %s %s, so all are used", name, threshold.count, most, what
    )


def _check_evidence(experiment: Experiment, opened: Mapping[str, Manifest], wanted: set[ImprovementSetName]) -> None:
    """Reject too few judged pairs for a threshold by precision, and too few clips to calibrate near duplicates."""
    pairs = opened["pairs"]
    searched = wanted & {*SEARCHED}
    if any(experiment.curate(strategy).audio_threshold.precision is not None for strategy in searched):
        texts = set(pairs.captions.caption_id).union(
            *(opened[role].captions.caption_id for role in ("captions",) if role in opened)
        )
        if experiment.curation.marks:
            clips = set(opened["pool"].clips.clip_id)
            support = sum(clip in clips and caption in texts for clip, caption, _ in experiment.curation.marks)
            what = "marked pairs from this pool and these captions"
        else:
            held_out = set(pairs.pairs.clip_id) & pairs.held_out(experiment.student.held_out)
            support, what = len(held_out) * len(texts), "held-out clips × captions"
        if support < LEAST_SUPPORT:
            raise EmptySetError(
                f"a threshold by precision needs at least {LEAST_SUPPORT} judged pairs, got {support} ({what}); raise "
                "held_out, or give the threshold by similarity or count"
            )
    if experiment.curation.near_duplicate == "calibrated":
        chosen, recordings = known_to_differ(pairs.clips)
        if len(chosen) < LEAST_DIFFERENT or len(set(recordings)) < 2:
            raise EmptySetError(
                f"near_duplicate: calibrated needs {LEAST_DIFFERENT} clips from several known recordings among the "
                f"pairs, got {len(chosen)} from {len(set(recordings))}; give near_duplicate as a similarity"
            )
