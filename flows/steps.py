"""The steps of flows and commands: from the manifests of an experiment to the scores of its rows.

Inside a flow every stage of a step is a task of that flow; outside a flow the stages are plain calls. A parameter
`campaign` is the campaign that the MLflow runs of a step belong to, and `manifests` is a mapping as returned by
`ingest_all`.
"""

from collections.abc import Mapping

from clapcur.config import from_dict
from clapcur.data.class_names import PROMPT, prompts
from clapcur.data.embeddings import EmbeddingTable
from clapcur.data.forgotten import are_forgotten
from clapcur.data.generated import refresh_locations
from clapcur.data.manifest import Manifest
from clapcur.data.rows import GENERATED, TAGGED, Row
from clapcur.experiments import preflight
from clapcur.experiments.config import Experiment
from clapcur.experiments.order import OrderEvaluation, PostTraining, warn_of_deaf_tower
from clapcur.lineage import pools
from clapcur.models.config import ClapConfig
from clapcur.models.folder import read_config
from clapcur.stages.audition import AuditionConfig
from clapcur.stages.embed import EmbedConfig
from clapcur.stages.evaluate import EvaluateConfig
from clapcur.stages.ingest import IngestConfig
from clapcur.stages.merge import MergeConfig
from clapcur.stages.train import TrainConfig
from clapcur.stages.zste import ZsteConfig
from clapcur.store import dry_run
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.adopt import adopt
from clapcur.tasks.audition import audition
from clapcur.tasks.caption import caption
from clapcur.tasks.captioner import train_captioner
from clapcur.tasks.compose import compose
from clapcur.tasks.curate import curate
from clapcur.tasks.embed import embed
from clapcur.tasks.evaluate import evaluate
from clapcur.tasks.ingest import ingest
from clapcur.tasks.merge import merge
from clapcur.tasks.pool import grow
from clapcur.tasks.pseudo_label import pseudo_label
from clapcur.tasks.tag import adopt_tagger, tag
from clapcur.tasks.train import train
from clapcur.tasks.zste import zste

Manifests = Mapping[str, Artifact]  # by role: pairs, pool, captions, evaluation

CANDIDATES = (  # embeddings that a curation compares: role of the table, what is embedded, and role of its manifest
    ("teacher_clip_embeddings", "audio", "pairs"),
    ("teacher_caption_embeddings", "captions", "pairs"),
    ("evaluation_embeddings", "audio", "evaluation"),
    ("pool_embeddings", "audio", "pool"),
    ("caption_embeddings", "captions", "captions"),
)


def manifests_of(
    experiment: Experiment, campaign: Campaign | None = None, keep_pairs: bool = False
) -> dict[str, Artifact]:
    """Ingest what an experiment trains and evaluates on, and return the manifests by the roles of `Manifests`.

    For a named pool, the manifest is its newest version. Nothing is checked.

    Parameters
    ----------
    experiment : Experiment
    campaign : Campaign, optional
    keep_pairs : bool
        For an experiment without pairs: whether to keep the pairs that were first generated for the pool, instead of
        generating them for its newest version; see `kept_captions`.
    """
    manifests: dict[str, Artifact] = {}
    for role in ("pairs", "pool", "captions", "evaluation"):
        config: IngestConfig | None = getattr(experiment, role)
        if config is not None:
            name = config.landed_in
            manifests[role] = grow(name, campaign=campaign) if name else ingest(config, role, campaign)
    if experiment.captioning is not None and experiment.captioning.tagger is not None:
        adopt_tagger(experiment.captioning.tagger, campaign)  # unfit classes must fail before any training
    if experiment.pairs is None:
        kept = kept_captions(experiment, manifests) if keep_pairs else None
        manifests["pairs"] = kept or first_captions(experiment, manifests, campaign)
    if experiment.more_pairs or experiment.share_of_pairs < 1:
        parts = [manifests["pairs"], *(ingest(config, "pairs", campaign) for config in experiment.more_pairs)]
        manifests["pairs"] = merge(MergeConfig(share=experiment.share_of_pairs), parts, "pairs", campaign)
    return manifests


def ingest_all(experiment: Experiment, campaign: Campaign, keep_pairs: bool = False) -> dict[str, Artifact]:
    """Ingest everything that an experiment names, check that it fits, and return the manifests by role.

    In addition to the roles of `Manifests` there are ``single_sounds`` and ``order``, if the experiment sets them.

    Parameters
    ----------
    experiment : Experiment
    campaign : Campaign
    keep_pairs : bool
        As in `manifests_of`.
    """
    manifests = manifests_of(experiment, campaign, keep_pairs)
    if manifests["pairs"].is_made:
        preflight.check_manifests(experiment, manifests)
    if experiment.single_sounds is not None:
        manifests["single_sounds"] = ingest(experiment.single_sounds, "single_sounds", campaign)
    if experiment.order is not None:
        clips = experiment.order.clips
        manifests["order"] = manifests["evaluation"] if clips is None else ingest(clips, "order", campaign)
    return manifests


def first_captions(experiment: Experiment, manifests: Manifests, campaign: Campaign | None = None) -> Artifact:
    """Return the pool with generated captions, as pairs for a teacher.

    No model scores the captions against the clips. If there is neither a tagger nor a table of tags, the checkpoint,
    which is the teacher, tags the clips.

    Parameters
    ----------
    experiment : Experiment
        An experiment with `captioning`.
    manifests : mapping of str to Artifact
        By role: ``pool`` and, if any, ``evaluation``, whose clips get no captions.
    campaign : Campaign, optional
    """
    settings, pool = experiment.captioning, manifests["pool"]
    assert settings is not None
    heard = None
    if settings.needs_teacher:
        adopted = experiment.adopt(experiment.seeds[0])
        assert adopted is not None  # an experiment without a tagger, a table or a checkpoint is rejected
        teacher = adopt(adopted, {}, campaign)
        heard = heard_by(experiment, teacher, pool, "pool", campaign)
    tags = tagged(experiment, pool, campaign, heard)
    given = {"pool": pool, "tags": tags} | {role: manifests[role] for role in ("evaluation",) if role in manifests}
    return caption(settings.without_model(), given, "pairs", campaign)


def kept_captions(experiment: Experiment, manifests: Manifests) -> Artifact | None:
    """Return the pairs that were first generated for an earlier version of the pool; None if there are none.

    A student and the champion can be compared only if both come from one teacher, and a teacher of generated captions
    is another one for every version of the pool. So its first pairs are kept until they would be generated in another
    way, or a clip of the pool behind them is taken down: tags are relative to the mean over all clips.

    Parameters
    ----------
    experiment : Experiment
        An experiment with `captioning`.
    manifests : mapping of str to Artifact
        By role: ``pool`` and, if any, ``evaluation``.
    """
    home = Home.open()
    with dry_run.dry_run():
        found = pools.earlier(home, first_captions(experiment, manifests))
    taken_down = pools.forgotten(home)
    for kept in reversed(found):
        pool = Manifest.open(home.store.find(kept.record.inputs["pool"]))
        if not are_forgotten(pool.clips, taken_down).any():
            if dry_run.current() is None:
                refresh_locations(kept, manifests["pool"])
            return kept
    return None


def heard_by(
    experiment: Experiment, teacher: Artifact, clips: Artifact, role: str, campaign: Campaign | None = None
) -> dict[str, Artifact]:
    """Embed clips and class prompts with a teacher; return the inputs by which it tags the clips, by role.

    Parameters
    ----------
    experiment : Experiment
    teacher : Artifact
    clips : Artifact
        Manifest.
    role : str
        What the clips are for.
    campaign : Campaign, optional
    """
    config = EmbedConfig(what="audio", num_crops=experiment.num_crops)
    return {
        "checkpoint": teacher,
        "audio_embeddings": embed(config, {"checkpoint": teacher, "manifest": clips}, role, campaign),
        "prompt_embeddings": embed_prompts(teacher, prompts(experiment.class_names, experiment.prompt), campaign),
    }


def tagged(
    experiment: Experiment,
    pool: Artifact,
    campaign: Campaign | None = None,
    heard: Mapping[str, Artifact] | None = None,
    role: str = "pool",
) -> Artifact:
    """Return the tags of a pool, or of other clips.

    Parameters
    ----------
    experiment : Experiment
    pool : Artifact
    campaign : Campaign, optional
    heard : mapping, optional
        Inputs for a teacher that tags, by role: ``checkpoint``, ``audio_embeddings`` and ``prompt_embeddings``.
    role : str
        What the clips are for.
    """
    settings = experiment.captioning
    assert settings is not None
    config = settings.tagging(experiment.class_names, experiment.prompt)
    inputs = {"manifest": pool}
    if settings.tagger is not None:
        inputs["tagger"] = adopt_tagger(settings.tagger, campaign)
    elif settings.needs_teacher:
        assert heard is not None
        inputs |= heard
    return tag(config, inputs, role, campaign)


def generated(
    experiment: Experiment, teacher: Artifact, inputs: Mapping[str, Artifact], campaign: Campaign | None = None
) -> dict[str, Artifact]:
    """Return generated captions for the pool and their embeddings, by their roles in a curation.

    Parameters
    ----------
    experiment : Experiment
    teacher : Artifact
        Checkpoint that scores captions against clips.
    inputs : mapping
        Inputs of the curation, as `candidates` returns them.
    campaign : Campaign, optional
    """
    settings = experiment.captioning
    assert settings is not None
    audio, prompts_of = inputs["pool_embeddings"], inputs["prompt_embeddings"]
    heard = {"checkpoint": teacher, "audio_embeddings": audio, "prompt_embeddings": prompts_of}
    tags = tagged(experiment, inputs["pool"], campaign, heard)
    given = {"pool": inputs["pool"], "tags": tags, "checkpoint": teacher, "pool_embeddings": audio}
    if settings.captions.way == "retrieve":
        has_own = "captions" in inputs
        given["captions"] = inputs["captions" if has_own else "teacher_pairs"]
        given["caption_embeddings"] = inputs["caption_embeddings" if has_own else "teacher_caption_embeddings"]
    if settings.captions.way == "captioner":
        given["captioner"] = captioner_of(experiment, teacher, inputs, campaign)
    return with_embeddings(teacher, caption(settings.captions, given, "generated", campaign), campaign)


def captioner_of(
    experiment: Experiment, teacher: Artifact, inputs: Mapping[str, Artifact], campaign: Campaign | None = None
) -> Artifact:
    """Train a captioner on the teacher's pairs, which are tagged as the pool is; return it.

    Parameters
    ----------
    experiment : Experiment
    teacher : Artifact
        Its audio tower hears.
    inputs : mapping
        ``teacher_pairs``; for example those of the curation, as `candidates` returns them.
    campaign : Campaign, optional
    """
    settings, pairs = experiment.captioning, inputs["teacher_pairs"]
    assert settings is not None
    heard = heard_by(experiment, teacher, pairs, "pairs", campaign) if settings.needs_teacher else None
    tags = tagged(experiment, pairs, campaign, heard, "pairs")
    given = {"checkpoint": teacher, "pairs": pairs, "tags": tags}
    return train_captioner(settings.captioner_training(experiment.student.held_out), given, campaign)


def pseudo_labelled(
    experiment: Experiment, teacher: Artifact, inputs: Mapping[str, Artifact], campaign: Campaign | None = None
) -> dict[str, Artifact]:
    """Return the pool's clips with their most likely classes as captions, by their roles in a curation.

    Parameters
    ----------
    experiment : Experiment
        Its tagger or table of tags, if any, is combined with the teacher's similarities.
    teacher : Artifact
    inputs : mapping
        Inputs of the curation, as `candidates` returns them.
    campaign : Campaign, optional
    """
    given = {role: inputs[role] for role in ("pool", "pool_embeddings", "prompt_embeddings")} | {"checkpoint": teacher}
    if experiment.captioning is not None and not experiment.captioning.needs_teacher:
        given["tags"] = tagged(experiment, inputs["pool"], campaign)
    return with_embeddings(teacher, pseudo_label(experiment.pseudo_labelling(), given, campaign), campaign)


def with_embeddings(teacher: Artifact, written: Artifact, campaign: Campaign | None = None) -> dict[str, Artifact]:
    """Embed generated captions; return their manifest and embeddings by their roles in a curation.

    Parameters
    ----------
    teacher : Artifact
        Checkpoint that embeds.
    written : Artifact
        Manifest of generated captions.
    campaign : Campaign, optional
    """
    inputs = {"checkpoint": teacher, "manifest": written}
    embedded = embed(EmbedConfig(what="captions"), inputs, "generated", campaign)
    return {"generated": written, "generated_embeddings": embedded}


def teacher_of(experiment: Experiment, seed: int, manifests: Manifests, campaign: Campaign) -> Artifact:
    """Return the teacher: trained on the captioned clips, from scratch or from a checkpoint, or the checkpoint itself.

    Parameters
    ----------
    experiment : Experiment
    seed : int
        Seed of the training.
    manifests : mapping of str to Artifact
    campaign : Campaign
    """
    adopted, training, inputs = experiment.adopt(seed), experiment.train_teacher(seed), {}
    given = {"teacher_pairs": manifests["pairs"]}
    if adopted is not None:
        inputs["init"] = adopt(adopted, given if adopted.needs_captions else {}, campaign)
        if training is None:
            return inputs["init"]
    assert training is not None
    return train(training, inputs | given | selecting(training, manifests), Row(strategy="teacher"), campaign)


def selecting(training: TrainConfig, manifests: Manifests) -> dict[str, Artifact]:
    """Return the input that selects the weights, unless held-out training pairs select them."""
    return {"evaluation": manifests["evaluation"]} if training.selection == "reference" else {}


def candidates(
    teacher: Artifact, manifests: Manifests, class_prompts: tuple[str, ...], num_crops: int,
    campaign: Campaign | None = None,
) -> dict[str, Artifact]:  # fmt: skip
    """Embed everything that a curation compares; return all its inputs by role.

    Parameters
    ----------
    teacher : Artifact
        Checkpoint that embeds.
    manifests : mapping
        By role: ``pairs`` and, if any, ``pool``, ``captions`` and ``evaluation``.
    class_prompts : tuple of str
    num_crops : int
        Number of crops per clip whose embeddings are averaged.
    campaign : Campaign, optional
    """
    inputs = {"teacher_pairs": manifests["pairs"]}
    inputs |= {role: manifests[role] for role in ("pool", "captions", "evaluation") if role in manifests}
    inputs["prompt_embeddings"] = embed_prompts(teacher, class_prompts, campaign)
    configs = {"audio": EmbedConfig(what="audio", num_crops=num_crops), "captions": EmbedConfig(what="captions")}
    for role, what, manifest in CANDIDATES:
        if manifest in manifests:
            embedded = {"checkpoint": teacher, "manifest": manifests[manifest]}
            inputs[role] = embed(configs[what], embedded, role.removesuffix("_embeddings"), campaign)
    return inputs


def embed_prompts(checkpoint: Artifact, class_prompts: tuple[str, ...], campaign: Campaign | None = None) -> Artifact:
    """Embed class prompts with a checkpoint.

    Parameters
    ----------
    checkpoint : Artifact
    class_prompts : tuple of str
        Texts as they are embedded, such as "this is a sound of rain".
    campaign : Campaign, optional
    """
    return embed(EmbedConfig(what="prompts", prompts=class_prompts), {"checkpoint": checkpoint}, "prompts", campaign)


def predicted_classes(
    checkpoint: Artifact, clips: Artifact, class_names: tuple[str, ...], num_crops: int = 1
) -> dict[str, str]:
    """Embed clips and class prompts, and return the class of the nearest prompt of each embedded clip.

    Parameters
    ----------
    checkpoint : Artifact
    clips : Artifact
        Manifest of the clips.
    class_names : tuple of str
    num_crops : int
        Number of crops per clip whose embeddings are averaged.
    """
    inputs = {"checkpoint": checkpoint, "manifest": clips}
    audio = EmbeddingTable.open(embed(EmbedConfig(what="audio", num_crops=num_crops), inputs, "pool"))
    prompts_KD = EmbeddingTable.open(embed_prompts(checkpoint, prompts(class_names, PROMPT))).rows_ND
    best_N = (audio.rows_ND @ prompts_KD.T).argmax(axis=1)
    return {clip: class_names[index] for clip, index in zip(audio.ids, best_N, strict=True)}


def improvement_sets(
    experiment: Experiment, manifests: Manifests, teacher: Artifact, seed: int, campaign: Campaign
) -> dict[str, Artifact]:
    """Embed everything with the teacher, then curate each set that a row needs, with its audition page.

    Parameters
    ----------
    experiment : Experiment
    manifests : mapping of str to Artifact
    teacher : Artifact
        Checkpoint that embeds and scores the candidates.
    seed : int
        Seed of the teacher, recorded with the sets.
    campaign : Campaign

    Returns
    -------
    dict of str to Artifact
        Improvement-Sets by strategy.
    """
    wanted = experiment.improvement_sets
    if not wanted:
        return {}
    texts = prompts(experiment.class_names, experiment.prompt)
    inputs = candidates(teacher, manifests, texts, experiment.num_crops, campaign)
    sets: dict[str, Artifact] = {}
    written = generated(experiment, teacher, inputs, campaign) if set(wanted) & set(TAGGED) else {}
    labelled = pseudo_labelled(experiment, teacher, inputs, campaign) if "pl" in wanted else {}
    for name in wanted:
        own = inputs
        if name in GENERATED:
            own = without_search(inputs) | (labelled if name == "pl" else written)
        sets[name] = curate(experiment.curate(name), own, seed, campaign)
        audition(AuditionConfig(seed=seed), sets[name], campaign)
    return sets


def without_search(inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Return the inputs of a curation without the unpaired captions, which are used only to search a pool."""
    return {role: artifact for role, artifact in inputs.items() if role not in ("captions", "caption_embeddings")}


def student(
    experiment: Experiment, row: Row, seed: int, manifests: Manifests, teacher: Artifact, sets: Mapping[str, Artifact],
    campaign: Campaign,
) -> Artifact:  # fmt: skip
    """Train the student of one row, from the teacher's weights.

    Parameters
    ----------
    experiment : Experiment
    row : Row
    seed : int
        Seed of the training.
    manifests : mapping of str to Artifact
    teacher : Artifact
    sets : mapping of str to Artifact
        Improvement-Sets by strategy: the set of the row and, if ADS replays DS, ``ds``.
    campaign : Campaign
    """
    inputs = {"init": teacher, "teacher_pairs": manifests["pairs"]}
    if row.improvement_set is not None:
        inputs["improvement_set"] = sets[row.improvement_set]
        inputs |= {role: manifests[role] for role in ("pool", "captions") if role in manifests}
        inputs |= captions_behind(row, sets)
        if row.strategy == "ads" and experiment.ads_replay == "ds":
            inputs["replay"] = sets["ds"]
    training = experiment.train_student(row, seed)
    return train(training, inputs | selecting(training, manifests), row, campaign)


def captions_behind(row: Row, sets: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Return the manifest of the generated captions that a row is trained on, in the role of unpaired captions."""
    if row.strategy not in GENERATED:
        return {}
    return {"captions": Home.open().store.find(sets[row.strategy].record.inputs["generated"])}


def checkpoint_of(
    experiment: Experiment, row: Row, seed: int, manifests: Manifests, teacher: Artifact, sets: Mapping[str, Artifact],
    campaign: Campaign,
) -> Artifact:  # fmt: skip
    """Return the checkpoint of any row: the teacher, a student, or one of these post-trained on the order of sounds.

    Parameters
    ----------
    experiment : Experiment
    row : Row
    seed : int
        Seed of the trainings.
    manifests : mapping of str to Artifact
    teacher : Artifact
    sets : mapping of str to Artifact
        Improvement-Sets by strategy, as `improvement_sets` returns them.
    campaign : Campaign
    """
    if row.is_teacher:
        return teacher
    if not row.teminal:
        return student(experiment, row, seed, manifests, teacher, sets, campaign)
    start = checkpoint_of(experiment, row.before, seed, manifests, teacher, sets, campaign)
    behind = {"teacher_pairs": manifests["pairs"]}
    behind |= {role: manifests[role] for role in ("pool", "captions") if role in manifests}
    if "single_sounds" in manifests:
        sources = {"clips": manifests["single_sounds"]}
    else:
        needed = {role: made for role, made in behind.items() if role != "captions"}
        sources = {"improvement_set": sets[experiment.composed_from(row)], **needed}
    replay = {"teacher_pairs": manifests["pairs"]}
    if row.improvement_set is not None:
        replay = {"replay": sets[row.improvement_set], **behind, **captions_behind(row, sets)}
    return post_trained(experiment.post_training.seeded(seed), start, sources, replay, row, campaign)


def score(
    experiment: Experiment, row: Row, seed: int, manifests: Manifests, checkpoint: Artifact, campaign: Campaign
) -> Artifact:
    """Embed the evaluation clips and the prompts with a checkpoint, and score it zero-shot.

    Parameters
    ----------
    experiment : Experiment
    row : Row
        Row of the checkpoint, recorded with the scores.
    seed : int
        Seed of the checkpoint, recorded with the scores.
    manifests : mapping of str to Artifact
        By role: ``evaluation``.
    checkpoint : Artifact
    campaign : Campaign
    """
    config, num_crops = experiment.evaluate(), experiment.num_crops
    return evaluated(config, checkpoint, manifests["evaluation"], num_crops, row, seed, campaign)


def evaluated(
    config: EvaluateConfig, checkpoint: Artifact, evaluation: Artifact, num_crops: int, row: Row, seed: int,
    campaign: Campaign | None = None,
) -> Artifact:  # fmt: skip
    """Embed clips and texts of an evaluation with a checkpoint, and score the checkpoint.

    Parameters
    ----------
    config : EvaluateConfig
    checkpoint : Artifact
    evaluation : Artifact
        Manifest with labels or, for retrieval, with captions.
    num_crops : int
        Number of crops per clip whose embeddings are averaged.
    row : Row
        Row of the checkpoint, recorded with the scores.
    seed : int
        Seed of the checkpoint, recorded with the scores.
    campaign : Campaign, optional
    """
    inputs = {"checkpoint": checkpoint, "manifest": evaluation}
    audio = embed(EmbedConfig(what="audio", num_crops=num_crops), inputs, "evaluation", campaign)
    given = {"checkpoint": checkpoint, "audio_embeddings": audio, "evaluation": evaluation}
    if config.task == "retrieval":
        given["caption_embeddings"] = embed(EmbedConfig(what="captions"), inputs, "caption", campaign)
    else:
        given["prompt_embeddings"] = embed_prompts(checkpoint, prompts(config.class_names, config.prompt), campaign)
    return evaluate(config, given, row, seed, campaign)


def post_trained(
    settings: PostTraining, checkpoint: Artifact, sources: Mapping[str, Artifact], replay: Mapping[str, Artifact],
    row: Row, campaign: Campaign | None = None,
) -> Artifact:  # fmt: skip
    """Post-train a checkpoint on the order of sounds; return the checkpoint of the last stage.

    Parameters
    ----------
    settings : PostTraining
    checkpoint : Artifact
        Checkpoint to start from; also the teacher of soft labels.
    sources : mapping
        Sounds to compose, by role: ``clips``, or ``improvement_set`` with ``pool`` and ``teacher_pairs``.
    replay : mapping
        Pairs to replay, so that earlier abilities are kept, by role: ``replay`` with its manifests, or
        ``teacher_pairs``; empty: the single sounds with their class names.
    row : Row
        Row of the new checkpoint.
    campaign : Campaign, optional
    """
    model = model_of(checkpoint)
    warn_of_deaf_tower(settings, model)
    composed = compose(settings.composing(model), sources, "training", campaign)
    places = {role: artifact for role, artifact in sources.items() if artifact.kind == "manifest"}
    inputs = {"teacher": checkpoint, "compositions": composed, **places, **replay}
    for config in settings.trainings(model):
        checkpoint = train(config, {**inputs, "init": checkpoint}, row, campaign)
    return checkpoint


def model_of(checkpoint: Artifact) -> ClapConfig:
    """Return the config of a checkpoint's model; in a dry run, of the model that an unmade checkpoint starts from."""
    store = Home.open().store
    while not checkpoint.is_made:
        record = checkpoint.record
        if "init" not in record.inputs:
            return from_dict(ClapConfig, record.config["model"], where=record.id)
        checkpoint = store.find(record.inputs["init"])
    return read_config(checkpoint.path / "config.json")


def order_scores(
    test: OrderEvaluation, checkpoint: Artifact, clips: Artifact, row: Row, seed: int, campaign: Campaign | None = None
) -> Artifact:
    """Compose labelled single sounds, and score how well a checkpoint recognises their order.

    Parameters
    ----------
    test : OrderEvaluation
    checkpoint : Artifact
    clips : Artifact
        Manifest of labelled clips of single sounds.
    row : Row
        Row of the checkpoint, recorded with the scores.
    seed : int
        Seed of the checkpoint, recorded with the scores; the seed of the test is in `test`.
    campaign : Campaign, optional
    """
    composed = compose(test.composing(model_of(checkpoint).window_s), {"clips": clips}, "evaluation", campaign)
    inputs = {"checkpoint": checkpoint, "compositions": composed, "clips": clips}
    return zste(ZsteConfig(prompt=test.prompt, seed=test.seed), inputs, row, seed, campaign)
