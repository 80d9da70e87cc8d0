"""Pool x teacher x class names -> a manifest of the clips with their most likely classes."""

from collections.abc import Mapping

from clapcur.data.generated import refresh_locations
from clapcur.stages.pseudo_label import STAGE, PseudoLabelConfig
from clapcur.store import dry_run
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import run_stage, stage_task


@stage_task("pseudo-label")
def pseudo_label(
    config: PseudoLabelConfig, inputs: Mapping[str, Artifact], campaign: Campaign | None = None
) -> Artifact:
    """Pair each clip of ``pool`` with its most likely class.

    Parameters
    ----------
    config : PseudoLabelConfig
    inputs : mapping of str to Artifact
        By role; see `clapcur.stages.pseudo_label`.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.
    """
    artifact = run_stage(STAGE, config, inputs, campaign, {"role": "pseudo-labels"})
    if artifact.is_made and dry_run.current() is None:
        refresh_locations(artifact, inputs["pool"])
    return artifact
