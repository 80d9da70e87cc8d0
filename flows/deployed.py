"""The flows behind the deployments: their parameters form the input form on Prefect's page, their steps are the usual.

An experiment is named by its YAML file, an artifact by its id. Existing results are reused and missing ones computed:
`curate` trains the teacher first if there is none. Flows are not retried: a wrong input stays wrong, and a stopped run
resumes where it stopped when it is started again. Tasks retry errors that may be temporary (`clapcur.tasks.common`).

The parameters of a deployed flow are described in their annotations (`shown`), which Prefect shows in the form. The
docstring of a deployed flow is its description on Prefect's page.
"""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec
from uuid import UUID

from prefect import Flow, State, flow, get_client
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed
from pydantic import Field

from clapcur.config import read_mapping, signature
from clapcur.data.class_names import prompts
from clapcur.data.rows import IMPROVEMENT_SETS, ImprovementSetName, Row, StudentStrategy, chosen_rows
from clapcur.errors import ArtifactError, ClapcurError, DataError, Interrupted
from clapcur.experiments.captioning import Captioning
from clapcur.experiments.config import Experiment, experiment_from_file
from clapcur.flows import steps
from clapcur.flows.compare import compare as compare_flow
from clapcur.flows.improve import improve as improve_flow
from clapcur.lineage.queries import find
from clapcur.stages.embed import EmbedConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.embed import embed
from clapcur.tasks.ingest import ingest
from clapcur.tasks.publish import publish

HOUR_S = 3600
P = ParamSpec("P")


def shown(title: str, description: str, **limits: Any) -> Any:
    """Return a field of the form; Prefect overwrites pydantic's own title and description, but not these."""
    return Field(json_schema_extra={"title": title, "description": description}, **limits)


Config = Annotated[
    str,
    shown(
        title="Experiment",
        description="Experiment file [path on the worker's machine; relative to the folder where `clapcur up` was"
        " started]. `clapcur init` writes one.",
        min_length=1,
    ),
]
Seed = Annotated[
    int, shown(title="Seed", description="Seed of the training of teacher and student [whole number].", ge=0)
]
Student = Annotated[
    ImprovementSetName,
    shown(
        title="Strategy",
        description="Training pairs of the student: du, pool clips with any caption; ds, the teacher's own pairs about"
        " the classes; ads, pool clips with captions about the classes; tagcap, pool clips with captions generated from"
        " their tags; tagcap-classes, only those about the classes; pl, pool clips with"
        " their most likely class.",
    ),
]
SoftLabels = Annotated[
    bool, shown(title="Soft labels", description="Train the student with soft labels from the teacher's similarities.")
]
SoftOrBest = Annotated[
    bool | None,
    shown(
        title="Soft labels",
        description="Train the student with soft labels from the teacher's similarities. Empty: as the strategy needs;"
        " pl with a tagger without, all others with them.",
    ),
]
Teacher = Annotated[
    str,
    shown(
        title="Teacher",
        description="Checkpoint to start from [id, or its first digits]. Empty: the experiment's teacher for this seed,"
        " trained first if it is missing.",
    ),
]


def run_name() -> str:
    """Return the name of a run from its parameters: flow, dataset, strategy and seed."""
    asked = flow_run.parameters
    if "config" not in asked:
        return f"{flow_run.flow_name} {asked['checkpoint']} seed {asked['seed']}"
    try:
        dataset = read_mapping(config_path(asked["config"])).get("name")
    except (ClapcurError, OSError):  # the flow itself reports the error
        dataset = None
    soft = "+sl" if asked.get("soft_labels") and asked.get("strategy") in IMPROVEMENT_SETS else ""
    said = [flow_run.flow_name, dataset or Path(asked["config"]).stem]
    said += [f"{asked['strategy']}{soft}"] if "strategy" in asked else []
    seeds = asked.get("seeds") or [asked[name] for name in ("seed",) if name in asked]
    return " ".join(map(str, said + (["seed", ",".join(map(str, seeds))] if seeds else [])))


def deployed(name: str, hours: int) -> Callable[[Callable[P, State]], Flow[P, State]]:
    """Return the decorator of a deployed flow, with a time limit in hours and one-line messages for expected errors."""

    def decorate(story: Callable[P, State]) -> Flow[P, State]:
        @functools.wraps(story)
        def told(*arguments: P.args, **options: P.kwargs) -> State:
            try:
                return story(*arguments, **options)
            except Interrupted as stop:  # a training received SIGTERM itself and saved its state
                return Cancelled(message=str(stop)) if is_cancelling() else Crashed(message=str(stop))
            except ClapcurError as error:
                return Failed(message=str(error))

        return flow(name=name, flow_run_name=run_name, timeout_seconds=hours * HOUR_S, persist_result=False)(told)

    return decorate


def is_cancelling() -> bool:
    """Return whether a user asked Prefect to cancel this run."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(flow_run.id)).state
    return state is not None and state.is_cancelling()


@deployed("improve", hours=24 * 7)
def improve(config: Config, strategy: Student = "pl", soft_labels: SoftOrBest = None, seed: Seed = 0) -> State:
    """Train one student on your sounds and report whether it beats its teacher.

    The report includes the control: the teacher, trained further with the same budget.
    """
    experiment = load(config, (seed,))
    return done(improve_flow.fn(experiment, strategy=strategy, soft_labels=soft_labels))


@deployed("compare", hours=24 * 14)
def compare(
    config: Config,
    strategies: Annotated[
        list[Literal["sl", ImprovementSetName]],
        shown(
            title="Strategies",
            description="Rows of the table, with and without soft labels as in the experiment; one that it lacks is"
            " added. Empty: all rows of the experiment.",
        ),
    ] = [],  # noqa: B006  # Prefect's form shows it, and no code changes it
    seeds: Annotated[
        list[int],
        shown(
            title="Seeds",
            description="Seeds, each with one teacher and one set of students; empty: those of the experiment.",
        ),
    ] = [],  # noqa: B006
) -> State:
    """Compare the strategies over seeds, with and without soft labels, at one sample budget."""
    experiment = load(config, seeds)
    if strategies:
        experiment = replace(experiment, rows=chosen_rows(experiment.rows, strategies))
    return done(compare_flow.fn(experiment))


@deployed("train-teacher", hours=24 * 7)
def train_teacher(config: Config, seed: Seed = 0) -> State:
    """Train the teacher of an experiment on its captioned clips, or import the checkpoint that the experiment names."""
    experiment = load(config, (seed,))
    needed = replace(experiment, pool=None, captions=None, rows=()) if experiment.pairs else experiment
    manifests = steps.ingest_all(needed, campaign(experiment))
    return done(teacher_of(experiment, "", seed, manifests))


@deployed("embed-pool", hours=48)
def embed_pool(config: Config, teacher: Teacher = "", seed: Seed = 0) -> State:
    """Embed the clips of the pool before a curation."""
    experiment = load(config, (seed,))
    if experiment.pool is None:
        raise ArtifactError(f"{config} has no pool; add `pool`, a folder or a table of audio files")
    manifests = steps.ingest_all(experiment, campaign(experiment))
    checkpoint = teacher_of(experiment, teacher, seed, manifests)
    audio = EmbedConfig(what="audio", num_crops=experiment.num_crops)
    return done(embed(audio, {"checkpoint": checkpoint, "manifest": manifests["pool"]}, "pool", campaign(experiment)))


@deployed("tag", hours=48)
def tag(config: Config, teacher: Teacher = "", seed: Seed = 0) -> State:
    """Tag the pool, as configured in the experiment's `captioning`.

    The teacher is used only if it tags, over the class names: if there is neither a tagger nor a table of tags.
    """
    experiment = load(config, (seed,))
    settings = captioning_of(experiment, config)
    if experiment.pool is None:
        raise ArtifactError(f"{config} has no pool; add `pool`, a folder or a table of audio files")
    manifests = steps.ingest_all(experiment, campaign(experiment))
    heard = None
    if settings.needs_teacher:
        checkpoint = teacher_of(experiment, teacher, seed, manifests)
        heard = steps.heard_by(experiment, checkpoint, manifests["pool"], "pool", campaign(experiment))
    return done(steps.tagged(experiment, manifests["pool"], campaign(experiment), heard))


@deployed("train-captioner", hours=24 * 7)
def train_captioner(config: Config, teacher: Teacher = "", seed: Seed = 0) -> State:
    """Train a captioner on the tagged pairs of an experiment, with the audio tower of its teacher.

    Its settings are those of `captioner` in the experiment's `captioning`.
    """
    experiment = load(config, (seed,))
    captioning_of(experiment, config)
    if experiment.pairs is None:
        raise DataError(f"{config} has no captioned clips for a captioner to learn from: add `pairs`")
    needed = replace(experiment, pool=None, captions=None, rows=())
    manifests = steps.ingest_all(needed, campaign(experiment))
    checkpoint = teacher_of(experiment, teacher, seed, manifests)
    inputs = {"teacher_pairs": manifests["pairs"]}
    return done(steps.captioner_of(experiment, checkpoint, inputs, campaign(experiment)))


@deployed("caption", hours=48)
def caption(config: Config, teacher: Teacher = "", seed: Seed = 0) -> State:
    """Tag the pool and generate captions for it, as configured in the experiment's `captioning`."""
    experiment = load(config, (seed,))
    captioning_of(experiment, config)
    manifests = steps.ingest_all(experiment, campaign(experiment))
    checkpoint = teacher_of(experiment, teacher, seed, manifests)
    texts = prompts(experiment.class_names, experiment.prompt)
    inputs = steps.candidates(checkpoint, manifests, texts, experiment.num_crops, campaign(experiment))
    return done(steps.generated(experiment, checkpoint, inputs, campaign(experiment))["generated"])


@deployed("curate", hours=48)
def curate(config: Config, strategy: Student = "ads", teacher: Teacher = "", seed: Seed = 0) -> State:
    """Select the pairs to train a student on: one Improvement-Set, with its card."""
    experiment = load(config, (seed,))
    manifests = steps.ingest_all(experiment, campaign(experiment))
    checkpoint = teacher_of(experiment, teacher, seed, manifests)
    return done(sets_of(experiment, Row(strategy=strategy), manifests, checkpoint, seed)[strategy])


@deployed("train-student", hours=24 * 7)
def train_student(
    config: Config,
    strategy: Annotated[
        StudentStrategy,
        shown(
            title="Strategy",
            description="Training pairs of the student: an Improvement-Set (du, ds, ads, tagcap, tagcap-classes,"
            " pl);"
            " continued, the teacher's own pairs (the control that a student must beat); sl, the same with soft "
            "labels.",
        ),
    ] = "ads",
    soft_labels: SoftLabels = True,
    teacher: Teacher = "",
    improvement_set: Annotated[
        str,
        shown(
            title="Improvement-Set",
            description="Improvement-Set to train on [id, or its first digits]. Empty: the set of this experiment,"
            " teacher and strategy, curated first if it is missing.",
        ),
    ] = "",
    seed: Seed = 0,
) -> State:
    """Train one student from its teacher."""
    experiment = load(config, (seed,))
    manifests = steps.ingest_all(experiment, campaign(experiment))
    row = Row(strategy=strategy, soft_labels=strategy == "sl" or (soft_labels and strategy != "continued"))
    checkpoint = teacher_of(experiment, teacher, seed, manifests)
    given = {str(strategy): artifact(improvement_set, "improvement_set")} if improvement_set else {}
    needs_ds = strategy == "ads" and experiment.ads_replay == "ds"
    sets = given if given and not needs_ds else sets_of(experiment, row, manifests, checkpoint, seed) | given
    return done(steps.student(experiment, row, seed, manifests, checkpoint, sets, campaign(experiment)))


@deployed("evaluate", hours=48)
def evaluate(
    config: Config,
    checkpoint: Annotated[
        str,
        shown(
            title="Checkpoint",
            description="Checkpoint to score [id, its first digits, or its MLflow run].",
            min_length=4,
        ),
    ],
) -> State:
    """Score a checkpoint zero-shot on the labelled clips of an experiment."""
    experiment = load(config)
    if experiment.evaluation is None:
        raise DataError(f"{config} has no evaluation set; add `evaluation`, a table of labelled clips")
    scored = artifact(checkpoint, "checkpoint")
    row, seed = Row.of(scored.record), int(scored.record.tags.get("seed", 0))
    manifests = {"evaluation": ingest(experiment.evaluation, "evaluation", campaign(experiment))}
    return done(steps.score(experiment, row, seed, manifests, scored, campaign(experiment)))


def config_path(config: str) -> Path:
    """Return the path of an experiment file; relative paths start from the folder where `clapcur up` was started."""
    return Path(os.environ.get("CLAPCUR_FOLDER", "."), Path(config).expanduser())


def load(config: str, seeds: Sequence[int] = ()) -> Experiment:
    """Read an experiment, with these seeds if any are given, and send our log lines to the run's page."""
    logging.getLogger("clapcur").setLevel(logging.INFO)
    experiment = experiment_from_file(config_path(config))
    return replace(experiment, seeds=tuple(seeds)) if seeds else experiment


def captioning_of(experiment: Experiment, config: str) -> Captioning:
    """Return how an experiment generates captions; raise DataError if it does not."""
    if experiment.captioning is None:
        raise DataError(f"{config} does not configure captioning: add `captioning: {{tagger: FILE}}`")
    return experiment.captioning


def campaign(experiment: Experiment) -> Campaign:
    """Return the campaign for single stages of an experiment."""
    return Campaign(experiment.name, f"stages of {experiment.name}", signature(replace(experiment, seeds=(0,))))


def teacher_of(experiment: Experiment, name: str, seed: int, manifests: dict[str, Artifact]) -> Artifact:
    """Return the named checkpoint, or the experiment's own teacher, trained if it is missing.

    Parameters
    ----------
    experiment : Experiment
    name : str
        Id of a checkpoint, or its first digits; empty: the experiment's own teacher.
    seed : int
        Seed of the teacher's training.
    manifests : dict of str to Artifact
        By role, as `clapcur.flows.steps.ingest_all` returns them.

    Raises
    ------
    ArtifactError
        The name refers to no checkpoint, or to several.
    """
    if name:
        return artifact(name, "checkpoint")
    return steps.teacher_of(experiment, seed, manifests, campaign(experiment))


def sets_of(
    experiment: Experiment, row: Row, manifests: dict[str, Artifact], teacher: Artifact, seed: int
) -> dict[str, Artifact]:
    """Return the Improvement-Sets that one row needs, curated if they are missing.

    Parameters
    ----------
    experiment : Experiment
    row : Row
        Row whose sets are wanted; the experiment's own rows are ignored.
    manifests : dict of str to Artifact
        By role, as `clapcur.flows.steps.ingest_all` returns them.
    teacher : Artifact
        Checkpoint that embeds and scores the candidates.
    seed : int
        Seed of the teacher, recorded with the sets.

    Returns
    -------
    dict of str to Artifact
        Improvement-Sets by strategy.
    """
    return steps.improvement_sets(replace(experiment, rows=(row,)), manifests, teacher, seed, campaign(experiment))


def artifact(name: str, kind: str) -> Artifact:
    """Return the artifact with this id, first digits of an id or MLflow run; raise ArtifactError for another kind."""
    return find(Home.open(), name, kind)


def done(made: Artifact) -> State:
    """Publish the result of a flow, and return the final state, which names it."""
    publish(made)
    return Completed(message=f"{made.kind.replace('_', ' ')} {made.id}")
