"""Several manifests -> one."""

from collections.abc import Sequence

from clapcur.stages.merge import STAGE, MergeConfig, refresh_locations
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import run_stage, stage_task


@stage_task("merge-{role}")
def merge(config: MergeConfig, manifests: Sequence[Artifact], role: str, campaign: Campaign | None = None) -> Artifact:
    """Merge manifests into one, and keep a share of it.

    Parameters
    ----------
    config : MergeConfig
        The share to keep.
    manifests : sequence of Artifact
        One or more manifests.
    role : str
        Role of the result in the experiment, such as ``pairs``.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    inputs = {f"part{index:02d}": manifest for index, manifest in enumerate(manifests)}
    artifact = run_stage(STAGE, config, inputs, campaign, {"role": role})
    if artifact.is_made:
        refresh_locations(artifact, manifests)
    return artifact
