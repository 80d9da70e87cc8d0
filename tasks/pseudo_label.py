"""Pool x teacher x class names -> a manifest of the clips with the class that each most likely is."""

from collections.abc import Mapping

from clapcur.data.generated import refresh_locations
from clapcur.stages.pseudo_label import STAGE, PseudoLabelConfig
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.tasks.common import run_stage, stage_task


@stage_task("pseudo-label")
def pseudo_label(
    config: PseudoLabelConfig, inputs: Mapping[str, Artifact], campaign: Campaign | None = None
) -> Artifact:
    """Give each clip of ``pool`` the class that it most likely is."""
    artifact = run_stage(STAGE, config, inputs, campaign, {"role": "pseudo-labels"})
    if artifact.is_made:
        refresh_locations(artifact, inputs["pool"])
    return artifact
