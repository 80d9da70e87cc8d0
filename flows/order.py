"""The order of sounds: train a checkpoint to recognise it, and score how well it does."""

from collections.abc import Mapping
from pathlib import Path

from prefect import flow

from clapcur.data.rows import Row
from clapcur.errors import ArtifactError
from clapcur.experiments.order import OrderEvaluation, PostTraining
from clapcur.flows.given import clips_of
from clapcur.flows.steps import order_scores, post_trained
from clapcur.lineage.queries import find
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home


@flow(name="post-train", flow_run_name="post-train-{checkpoint.id}")
def post_train(
    checkpoint: Artifact, sources: Mapping[str, Artifact], settings: PostTraining,
    replay: Mapping[str, Artifact] | None = None, campaign: Campaign | None = None,
) -> Artifact:  # fmt: skip
    """Post-train a checkpoint on the order of sounds.

    Parameters
    ----------
    checkpoint : Artifact
        Checkpoint to start from.
    sources : mapping of str to Artifact
        Sounds to compose, by role; see `sources_of`.
    settings : PostTraining
    replay : mapping of str to Artifact, optional
        Pairs to replay, by role; see `replay_of`. None or empty: the single sounds with their class names.
    campaign : Campaign, optional
        Campaign that the MLflow runs belong to.
    """
    row = Row.of(checkpoint.record).post_trained
    return post_trained(settings, checkpoint, sources, replay or {}, row, campaign)


@flow(name="zste", flow_run_name="zste-{checkpoint.id}")
def zste(checkpoint: Artifact, clips: Artifact, test: OrderEvaluation, campaign: Campaign | None = None) -> Artifact:
    """Score how well a checkpoint recognises the order of labelled sounds.

    Parameters
    ----------
    checkpoint : Artifact
    clips : Artifact
        Manifest of labelled clips of single sounds.
    test : OrderEvaluation
    campaign : Campaign, optional
        Campaign that the MLflow runs belong to.
    """
    return order_scores(test, checkpoint, clips, Row.of(checkpoint.record), test.seed, campaign)


def sources_of(home: Home, name: str) -> dict[str, Artifact]:
    """Return the sources of composed sounds by role: a labelled manifest, or an Improvement-Set with its manifests."""
    found = clips_of(home, name) if Path(name).exists() else _clips_or_set(home, name)
    if found.kind != "improvement_set":
        return {"clips": found}
    return {"improvement_set": found} | _manifests_of(home, found, ("pool", "teacher_pairs"))


def replay_of(home: Home, name: str) -> dict[str, Artifact]:
    """Return the pairs to replay by role: none, given pairs, or an Improvement-Set with its manifests."""
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
    inputs = chosen.record.inputs
    return {role: find(home, inputs[role], "manifest") for role in roles if role in inputs}
