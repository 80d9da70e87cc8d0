"""Tell Prefect's server what there is: work pools, deployments and automations. Again: only what changed.

    CLAPCUR_MODEL_POOL=gpu python -m flows.register

The files are deployments/prefect.yaml and deployments/automations.yaml. What people did to schedules on Prefect's page
stays: one of ours that they switched on or off, and those that they added. `prefect deploy` alone would undo both.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import UUID

import yaml
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists

from clapcur.servers import POOLS

FILES = Path(__file__).resolve().parents[1] / "deployments"
OURS = "clapcur-"  # begins the slug of every schedule in our file

# What a worker does for a flow run, without one variable: Prefect's own template would let whoever starts a run choose
# command, environment and folder. There is no `env` here, for Prefect would merge that of a run into it. The command
# keeps a run in the process group of its worker, so that whoever stops the worker stops its runs; -P keeps modules of
# the working directory from taking the place of ours.
JOB = {
    "job_configuration": {"command": "python -P -m prefect.engine", "stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}

Schedules = Mapping[UUID, Sequence[DeploymentSchedule]]


def register() -> None:
    """Bring the server up to date with our files.

    Raises
    ------
    CalledProcessError
        A deployment could not be registered; what Prefect said stands before it.
    """
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            try:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=JOB))
            except ObjectAlreadyExists:  # with the limits that people gave it, and perhaps a template of before
                client.update_work_pool(pool, WorkPoolUpdate(base_job_template=JOB))
        before = schedules(client)
        deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        subprocess.run([*deploy, "--prefect-file", str(FILES / "prefect.yaml")], check=True)
        restore(client, before)
        for automation in yaml.safe_load((FILES / "automations.yaml").read_text())["automations"]:
            replace(client, AutomationCore.model_validate(automation))


def schedules(client: SyncPrefectClient) -> Schedules:
    """Return the schedules of every deployment by its id."""
    return {deployment.id: deployment.schedules for deployment in client.read_deployments()}


def restore(client: SyncPrefectClient, before: Schedules) -> None:
    """Give schedules of ours the switch that they had, and make those of people's own again."""
    for deployment, now in schedules(client).items():
        by_slug = {one.slug: one for one in now if one.slug}
        for known in before.get(deployment, ()):
            mine = by_slug.get(known.slug or "")
            if mine is None and not (known.slug or "").startswith(OURS):
                again = known.model_dump(include=set(DeploymentScheduleCreate.model_fields))
                client.create_deployment_schedules(deployment, [DeploymentScheduleCreate.model_validate(again)])
            elif mine is not None and mine.active != known.active:
                client.update_deployment_schedule(deployment, mine.id, active=known.active)


def replace(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create an automation, or change the one of its name; whether it is switched on stays as people left it."""
    known = client.read_automations_by_name(automation.name)
    if not known:
        client.create_automation(automation)
    for one in known:
        client.update_automation(one.id, automation.model_copy(update={"enabled": one.enabled}))


if __name__ == "__main__":
    register()
