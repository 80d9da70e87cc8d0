"""Post-training: single sounds are put together, and a checkpoint learns in which order they come."""

from collections.abc import Mapping

from prefect import flow

from clapcur.experiments.post_training import PostTraining, warn_of_deaf_tower
from clapcur.models.folder import read_config
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.compose import compose
from clapcur.tasks.train import train


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
