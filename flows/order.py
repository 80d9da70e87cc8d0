"""The order of sounds: teach a checkpoint to hear it, and score what it hears."""

from collections.abc import Mapping
from pathlib import Path

from prefect import flow

from clapcur.data.class_names import PROMPT
from clapcur.errors import ArtifactError
from clapcur.experiments.post_training import PostTraining, warn_of_deaf_tower
from clapcur.lineage.queries import find
from clapcur.models.folder import read_config
from clapcur.stages.adopt import AdoptConfig
from clapcur.stages.compose import ComposeConfig
from clapcur.stages.ingest import IngestConfig
from clapcur.stages.zste import ZsteConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.adopt import adopt
from clapcur.tasks.compose import compose
from clapcur.tasks.ingest import ingest
from clapcur.tasks.train import train
from clapcur.tasks.zste import zste as score


@flow(name="post-train", flow_run_name="post-train-{checkpoint.id}")
def post_train(
    checkpoint: Artifact, sources: Mapping[str, Artifact], settings: PostTraining,
    replay: Mapping[str, Artifact] | None = None, campaign: Campaign | None = None,
) -> Artifact:  # fmt: skip
    """Teach a checkpoint the order of sounds.

    Parameters
    ----------
    checkpoint : Artifact
    sources : mapping
        By role: ``clips``, or ``improvement_set`` with ``pool`` and ``teacher_pairs``.
    settings : PostTraining
    replay : mapping, optional
        By role: ``replay`` with the manifests behind it, or ``teacher_pairs``.
    campaign : Campaign, optional

    Returns
    -------
    Artifact
        The checkpoint of the last stage.
    """
    model = read_config(checkpoint.path / "config.json")
    warn_of_deaf_tower(settings, model)
    composed = compose(settings.composing(model), sources, "training", campaign)
    places = {role: artifact for role, artifact in sources.items() if artifact.kind == "manifest"}
    inputs = {"teacher": checkpoint, "compositions": composed, **places, **(replay or {})}
    for name, config in settings.trainings(model):
        checkpoint = train(config, {**inputs, "init": checkpoint}, name, campaign)
    return checkpoint


@flow(name="zste", flow_run_name="zste-{checkpoint.id}")
def zste(
    checkpoint: Artifact, clips: Artifact, num_groups: int = 200, duration_s: float | None = None,
    prompt: str = PROMPT, seed: int = 0, campaign: Campaign | None = None,
) -> Artifact:  # fmt: skip
    """Score what a checkpoint hears of the order of labelled sounds.

    Parameters
    ----------
    checkpoint, clips : Artifact
        The clips are a labelled manifest, all of it held out.
    num_groups : int
        Groups of two sounds.
    duration_s : float, optional
        Of an item; the window of the checkpoint where not given.
    prompt : str
    seed : int
        Of the groups, the distractors and the bootstrap.
    campaign : Campaign, optional

    Returns
    -------
    Artifact
        The scores.
    """
    composing = composing_test(checkpoint, num_groups, duration_s, prompt, seed)
    composed = compose(composing, {"clips": clips}, "evaluation", campaign)
    inputs = {"checkpoint": checkpoint, "compositions": composed, "clips": clips}
    name = str(checkpoint.record.get("tags", {}).get("row", "checkpoint"))
    return score(ZsteConfig(prompt=prompt, seed=seed), inputs, name, seed, campaign)


def composing_test(
    checkpoint: Artifact, num_groups: int, duration_s: float | None, prompt: str, seed: int
) -> ComposeConfig:
    """Return how the sounds of a test are put together, all of them held out, by default for the window of a model."""
    window_s = read_config(checkpoint.path / "config.json").window_s
    return ComposeConfig(
        duration_s=duration_s or window_s, num_held_out_groups=num_groups, held_out=1.0, prompt=prompt, seed=seed
    )


def checkpoint_of(home: Home, name: str) -> Artifact:
    """Return the checkpoint that an id means, or a file or folder, which is adopted."""
    if not Path(name).exists():
        return find(home, name, "checkpoint")
    return adopt.fn(AdoptConfig(source=str(Path(name).absolute())), {})


def labelled_clips(home: Home, name: str) -> Artifact:
    """Return the manifest that an id means, or a table, which is ingested."""
    if not Path(name).exists():
        return find(home, name, "manifest")
    return ingest.fn(IngestConfig(source=str(Path(name).absolute())), "clips")


def sources_of(home: Home, name: str) -> dict[str, Artifact]:
    """Return what sounds are composed from, by role: a labelled manifest, or a set with the manifests behind it."""
    found = labelled_clips(home, name) if Path(name).exists() else _clips_or_set(home, name)
    if found.kind != "improvement_set":
        return {"clips": found}
    return {"improvement_set": found} | _manifests_of(home, found, ("pool", "teacher_pairs"))


def replay_of(home: Home, name: str) -> dict[str, Artifact]:
    """Return what is replayed, by role: nothing, given pairs, or a set with the manifests behind it."""
    if not name:
        return {}
    found = _clips_or_set(home, name)
    if found.kind == "manifest":
        return {"teacher_pairs": found}
    return {"replay": found} | _manifests_of(home, found, ("pool", "captions", "teacher_pairs"))


def _clips_or_set(home: Home, name: str) -> Artifact:
    found = find(home, name)
    if found.kind not in ("manifest", "improvement_set"):
        raise ArtifactError(f"expected a manifest or an Improvement-Set, got the {found.kind} {found.id}")
    return found


def _manifests_of(home: Home, chosen: Artifact, roles: tuple[str, ...]) -> dict[str, Artifact]:
    inputs = chosen.record["inputs"]
    return {role: find(home, inputs[role], "manifest") for role in roles if role in inputs}
