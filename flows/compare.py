"""The grid: every strategy, with and without soft labels, at one sample budget, over seeds."""

from collections.abc import Mapping

from prefect import flow

from clapcur.config import signature
from clapcur.data.rows import Row
from clapcur.experiments import preflight
from clapcur.experiments.config import Experiment
from clapcur.stages.audition import AuditionConfig, audition_inputs
from clapcur.stages.embed import EmbedConfig
from clapcur.stages.ingest import IngestConfig
from clapcur.stages.merge import MergeConfig
from clapcur.stages.report import ReportConfig, ReportRow
from clapcur.stages.train import TrainConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.adopt import adopt
from clapcur.tasks.audition import audition
from clapcur.tasks.curate import curate
from clapcur.tasks.embed import embed
from clapcur.tasks.evaluate import evaluate
from clapcur.tasks.ingest import ingest
from clapcur.tasks.merge import merge
from clapcur.tasks.pool import grow
from clapcur.tasks.report import report
from clapcur.tasks.train import train

Manifests = Mapping[str, Artifact]


@flow(name="compare", flow_run_name="compare-{experiment.name}")
def compare(experiment: Experiment) -> Artifact:
    """Train a teacher and one student per row and seed, score all of them, and report.

    Returns
    -------
    Artifact
        The report; its inputs are the scores, from which every checkpoint, Improvement-Set and pair can be traced.
    """
    preflight.check_config(experiment)
    campaign = Campaign(experiment.name, f"compare {experiment.name}", signature(experiment))
    manifests = ingest_all(experiment, campaign)
    rows, scores = [], {}
    for seed in experiment.seeds:
        teacher = teacher_of(experiment, seed, manifests, campaign)
        sets = improvement_sets(experiment, manifests, teacher, seed, campaign)
        for row in experiment.rows:
            checkpoint = (
                teacher
                if row.strategy == "teacher"
                else student(experiment, row, seed, manifests, teacher, sets, campaign)
            )
            role = f"scores.{row.name}.seed{seed}"
            scores[role] = score(experiment, row, seed, manifests, checkpoint, campaign)
            rows.append(ReportRow(strategy=row.strategy, soft_labels=row.soft_labels, seed=seed, scores=role))
    return report(ReportConfig(title=experiment.name, rows=tuple(rows), note=experiment.note), scores, campaign)


def ingest_all(experiment: Experiment, campaign: Campaign) -> dict[str, Artifact]:
    """Return the manifests by role, once they fit the experiment.

    A pool that is named, not placed, is the newest version of what landed in it.
    """
    manifests = {}
    for role in ("pairs", "pool", "captions", "evaluation"):
        config: IngestConfig | None = getattr(experiment, role)
        if config is not None:
            name = config.landed_in
            manifests[role] = grow(name, campaign=campaign) if name else ingest(config, role, campaign)
    if experiment.more_pairs or experiment.share_of_pairs < 1:
        parts = [manifests["pairs"], *(ingest(config, "pairs", campaign) for config in experiment.more_pairs)]
        manifests["pairs"] = merge(MergeConfig(share=experiment.share_of_pairs), parts, "pairs", campaign)
    preflight.check_manifests(experiment, manifests)
    return manifests


def teacher_of(experiment: Experiment, seed: int, manifests: Manifests, campaign: Campaign) -> Artifact:
    """Train the teacher on its captioned clips; or take the checkpoint that it is, or starts from."""
    adopted, training, inputs = experiment.adopt(seed), experiment.train_teacher(seed), {}
    given = {"teacher_pairs": manifests["pairs"]}
    if adopted is not None:
        inputs["init"] = adopt(adopted, given if adopted.needs_captions else {}, campaign)
        if training is None:
            return inputs["init"]
    assert training is not None
    return train(training, inputs | given | selecting(training, manifests), Row(strategy="teacher"), campaign)


def selecting(training: TrainConfig, manifests: Manifests) -> dict[str, Artifact]:
    """Return what chooses the weights, where it is none of what is trained on."""
    return {"evaluation": manifests["evaluation"]} if training.selection == "reference" else {}


def improvement_sets(
    experiment: Experiment, manifests: Manifests, teacher: Artifact, seed: int, campaign: Campaign
) -> dict[str, Artifact]:
    """Embed everything with the teacher, then curate each set that a row needs, and make the page to hear it."""
    wanted = {row.improvement_set for row in experiment.rows if row.improvement_set}
    if "ads" in wanted and experiment.ads_replay == "ds":
        wanted.add("ds")
    if not wanted:
        return {}
    audio, captions = EmbedConfig(what="audio", num_crops=experiment.num_crops), EmbedConfig(what="captions")
    inputs = {"teacher_pairs": manifests["pairs"], "evaluation": manifests["evaluation"]}
    inputs["prompt_embeddings"] = embed(experiment.prompts(), {"checkpoint": teacher}, "prompts", campaign)
    for role, config, manifest in (
        ("teacher_clip_embeddings", audio, "pairs"),
        ("teacher_caption_embeddings", captions, "pairs"),
        ("evaluation_embeddings", audio, "evaluation"),
        ("pool_embeddings", audio, "pool"),
        ("caption_embeddings", captions, "captions"),
    ):
        if manifest in manifests:
            embedded = {"checkpoint": teacher, "manifest": manifests[manifest]}
            inputs[role] = embed(config, embedded, role.removesuffix("_embeddings"), campaign)
    inputs |= {role: manifests[role] for role in ("pool", "captions") if role in manifests}
    sets: dict[str, Artifact] = {}
    for name in sorted(wanted):
        sets[name] = curate(experiment.curate(name), inputs, seed, campaign)
        audition(AuditionConfig(seed=seed), audition_inputs(sets[name]), name, campaign)
    return sets


def student(
    experiment: Experiment, row: Row, seed: int, manifests: Manifests, teacher: Artifact, sets: Mapping[str, Artifact],
    campaign: Campaign,
) -> Artifact:  # fmt: skip
    """Train the student of one row, from the teacher's weights."""
    inputs = {"init": teacher, "teacher_pairs": manifests["pairs"]}
    if row.improvement_set is not None:
        inputs["improvement_set"] = sets[row.improvement_set]
        inputs |= {role: manifests[role] for role in ("pool", "captions") if role in manifests}
        if row.strategy == "ads" and experiment.ads_replay == "ds":
            inputs["replay"] = sets["ds"]
    training = experiment.train_student(row, seed)
    return train(training, inputs | selecting(training, manifests), row, campaign)


def score(
    experiment: Experiment, row: Row, seed: int, manifests: Manifests, checkpoint: Artifact, campaign: Campaign
) -> Artifact:
    """Embed the evaluation clips and the prompts with a checkpoint, and score it zero-shot."""
    audio = EmbedConfig(what="audio", num_crops=experiment.num_crops)
    clips = embed(audio, {"checkpoint": checkpoint, "manifest": manifests["evaluation"]}, "evaluation", campaign)
    prompts = embed(experiment.prompts(), {"checkpoint": checkpoint}, "prompts", campaign)
    inputs = {
        "checkpoint": checkpoint,
        "audio_embeddings": clips,
        "prompt_embeddings": prompts,
        "evaluation": manifests["evaluation"],
    }
    return evaluate(experiment.evaluate(), inputs, row, seed, campaign)
