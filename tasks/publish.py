"""Result of a flow -> a page of its Prefect run."""

from clapcur.store.artifacts import Artifact
from clapcur.tasks.common import stage_task
from clapcur.tasks.pages import show


@stage_task("publish")
def publish(made: Artifact) -> None:
    """Show an artifact on the page of the flow run, unless the stage that made it already did."""
    show(made)
