"""Register work pools, deployments and automations with Prefect's server; a repeated call updates only what changed.

    CLAPCUR_MODEL_POOL=gpu python -m clapcur.flows.register

`clapcur up` adds ``--ends-runs-left-behind`` before it starts its workers: runs that appear to be running, but whose
processes were killed together with the servers, are then ended first.

The files are deployments/prefect.yaml and deployments/automations.yaml. Changes that people made to schedules on
Prefect's page are kept: our schedules that they switched on or off, and schedules that they added. `prefect deploy`
alone would undo both.
"""

import fcntl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import UUID

import yaml
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import DeploymentSchedule, FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Cancelled, Crashed

from clapcur.servers import heartbeat
from clapcur.servers.local import POOLS
from clapcur.store.home import Home

FILES = Path(__file__).resolve().parents[1] / "deployments"
ALIVE = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)  # states that only a running process can end
LEFT_BEHIND = "its process was killed together with the servers; start it again to resume where it stopped"
OURS = "clapcur-"  # prefix of the slug of every schedule in our file

# The command that a worker runs for a flow run, without variables: Prefect's own template would let anyone who starts a
# run choose the command, environment and folder. The template has no `env`, because Prefect would merge the run's own
# into it; instead the command sets the heartbeat interval, whichever worker starts it. A run started like this stays in
# the process group of its worker, so stopping the worker stops its runs. -P prevents modules in the working directory
# from shadowing ours.
COMMAND = f"env {heartbeat.VARIABLE}={heartbeat.EVERY_S} python -P -m prefect.engine"
JOB = {
    "job_configuration": {"command": COMMAND, "stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}

Schedules = Mapping[UUID, Sequence[DeploymentSchedule]]


def register() -> None:
    """Update the server from our files.

    Raises
    ------
    CalledProcessError
        A deployment could not be registered; Prefect has printed the reason.
    """
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            try:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=JOB))
            except ObjectAlreadyExists:  # with limits that people set, and possibly an older template
                client.update_work_pool(pool, WorkPoolUpdate(base_job_template=JOB))
        before = schedules(client)
        deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        subprocess.run([*deploy, "--prefect-file", str(FILES / "prefect.yaml")], check=True)
        restore(client, before)
        for automation in yaml.safe_load((FILES / "automations.yaml").read_text())["automations"]:
            replace(client, AutomationCore.model_validate(automation))


def end_runs_left_behind(client: SyncPrefectClient, home: Home) -> int:
    """End the runs whose worker or command was killed together with the server; return their number.

    Call this before any worker of this server runs. Runs of commands are left alone while any command runs a flow.
    """
    with open(home.flows_lock, "a") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            of_commands_too = True
        except BlockingIOError:
            of_commands_too = False
        seem_alive = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(ALIVE))))
        left = [run for run in _all_runs(client, seem_alive) if of_commands_too or run.deployment_id]
        for run in left:
            assert run.state is not None
            ended = Cancelled if run.state.is_cancelling() else Crashed
            client.set_flow_run_state(run.id, ended(message=LEFT_BEHIND), force=True)
    return len(left)


def _all_runs(client: SyncPrefectClient, wanted: FlowRunFilter) -> list[FlowRun]:
    """Return all matching runs; the server returns them in pages."""
    found: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, offset=len(found)):
        found += page
    return found


def schedules(client: SyncPrefectClient) -> Schedules:
    """Return the schedules of every deployment, by deployment id."""
    return {deployment.id: deployment.schedules for deployment in client.read_deployments()}


def restore(client: SyncPrefectClient, before: Schedules) -> None:
    """Switch our schedules on or off as they were, and re-create the schedules that people added."""
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
    """Create an automation, or update the one with its name, which stays switched on or off as it was."""
    known = client.read_automations_by_name(automation.name)
    if not known:
        client.create_automation(automation)
    for one in known:
        client.update_automation(one.id, automation.model_copy(update={"enabled": one.enabled}))


if __name__ == "__main__":
    if sys.argv[1:] == ["--ends-runs-left-behind"]:
        with get_client(sync_client=True) as server:
            end_runs_left_behind(server, Home.open())
    register()
