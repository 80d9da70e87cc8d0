"""Signs of life: a run that works is never shown as crashed, and one whose process is gone does not stay running.

The servers are those of `clapcur up`, in a home of an odd name. Between two signs, and before a silent run counts as
crashed, less time passes than in real life (`HASTE`, see tests/faster); all else is as there.
"""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from killing import kill_part
from running_servers import client_of, experiment, outside_of_tests, running, start, wait_until  # noqa: F401  # a fixture
from source_tree import ROOT

from clapcur.servers import heartbeat
from clapcur.servers.local import LocalServers
from clapcur.store.home import Home

FASTER = ROOT / "tests" / "faster"
HASTE = 6
SILENCE_S = heartbeat.SILENCE_S / HASTE
WATCH = "clapcur: runs whose process is gone"
WORKS_S = 3 * SILENCE_S


# -- the files that repeat the numbers


def watch():
    """Return the automation that misses signs of life, as it is in the file."""
    automations = yaml.safe_load((ROOT / "deployments" / "automations.yaml").read_text())["automations"]
    (found,) = [one for one in automations if one["name"] == WATCH]
    return found


def test_a_run_is_missed_only_after_several_signs():
    """With one sign lost, or late on a busy machine, a run would be called crashed while it works."""
    assert heartbeat.SILENCE_S >= 3 * heartbeat.EVERY_S
    automation = watch()
    assert automation["trigger"]["within"] == heartbeat.SILENCE_S
    assert f"each {heartbeat.EVERY_S} seconds" in automation["description"]
    (action,) = automation["actions"]
    assert f"no sign of life for {heartbeat.SILENCE_S} s" in action["message"]


def test_the_frequency_is_set_wherever_a_run_may_come_from(tmp_path):
    """Prefect's own, of three minutes, is twice as long as what is waited for."""
    from clapcur.flows.register import JOB

    local = LocalServers(home=Home(tmp_path), prefect_port=1, mlflow_port=2, folder=tmp_path)
    every_s = str(heartbeat.EVERY_S)
    for program in (local.worker("cpu"), local.worker("gpu"), local.prefect_server()):
        assert program.environment[heartbeat.VARIABLE] == every_s
    assert f"{heartbeat.VARIABLE}={every_s}" in JOB["job_configuration"]["command"].split()
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    workers = {name: one["environment"] for name, one in services.items() if "worker" in name}
    assert len(workers) == 2
    assert {one[heartbeat.VARIABLE] for one in workers.values()} == {every_s}


def test_prefect_takes_the_frequency():
    """It refuses one below its minimum, and the flow with it."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.name == heartbeat.VARIABLE
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: heartbeat.EVERY_S}):
        assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() == heartbeat.EVERY_S
    with pytest.raises(ValueError), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: heartbeat.EVERY_S - 1}):
        pass


def test_the_documents_name_the_silence():
    """Whoever waits for a run to be called crashed reads there how long."""
    said = " ".join((ROOT / "docs" / "operations.md").read_text().split())
    assert re.findall(r"(\d+) s later, by the automation", said) == [str(heartbeat.SILENCE_S)]


# -- real servers


@pytest.fixture(scope="module")
def stack(experiment, tmp_path_factory):
    """Start the command in a home of an odd name; gives its process, the home and the folder of the experiments."""
    home = Home.open(tmp_path_factory.mktemp("signs") / "a home? of signs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(FASTER), os.environ["PYTHONPATH"]]))
        patch.setenv("CLAPCUR_TEST_HASTE", str(HASTE))
        with running(experiment, home) as up:
            with client_of(home) as prefect:
                hasten(prefect)
            yield up, home, experiment


def hasten(prefect):
    """Let the automation wait for less long."""
    from prefect.events.schemas.automations import AutomationCore

    from clapcur.flows.register import replace

    hastened = watch()
    hastened["trigger"]["within"] = SILENCE_S
    replace(prefect, AutomationCore.model_validate(hastened))


def state_of(prefect, run_id):
    """Return the state of a flow run."""
    return prefect.read_flow_run(run_id).state


def is_running(prefect, run_id):
    """Return whether a flow run runs; fails where it ended."""
    state = state_of(prefect, run_id)
    assert not state.is_final(), f"{state.name}: {state.message}"
    return state.is_running()


COMMAND = f"""
import time
import sitecustomize
from clapcur.cli.console import open_home
open_home(None)
sitecustomize.hasten({HASTE})
from prefect import flow
from clapcur.cli.experiments import run_flow

@flow
def of_a_command():
    from prefect.runtime import flow_run
    print(flow_run.id, flush=True)
    time.sleep({WORKS_S})

run_flow(of_a_command)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_runs_that_take_long_are_shown_as_running_and_one_whose_process_is_gone_as_crashed(stack):
    """Every run of more than 90 s was called crashed, and started again beside itself."""
    up, home, _ = stack
    environment = outside_of_tests() | {"CLAPCUR_HOME": str(home.root)}
    with (
        client_of(home) as prefect,
        subprocess.Popen(
            [sys.executable, "-c", COMMAND], env=environment, stdout=subprocess.PIPE, text=True
        ) as command,
    ):
        assert command.stdout is not None
        of_worker, of_command = start(prefect, "train-teacher", config="long.yaml"), command.stdout.readline().strip()
        wait_until(lambda: is_running(prefect, of_worker), 120, "the start of the run")
        since = time.monotonic()
        while time.monotonic() < since + WORKS_S:
            assert is_running(prefect, of_worker)
            assert state_of(prefect, of_command).name in ("Running", "Completed")
            time.sleep(0.5)
        assert command.wait(60) == 0
        states = [state.name for state in prefect.read_flow_run_states(of_command)]
        assert "Crashed" not in states and states[-1] == "Completed"

        kill_part(up, home, "worker cpu")
        wait_until(lambda: state_of(prefect, of_worker).is_final(), 8 * SILENCE_S, "the end of a run without a process")
        assert state_of(prefect, of_worker).name == "Crashed"
        assert "no sign of life" in state_of(prefect, of_worker).message


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_runs_that_were_left_behind_are_ended_and_those_of_commands_that_live_are_not(stack):
    """Called crashed, a run that lives is started once more; called running, a dead one is waited for."""
    import fcntl

    from prefect import flow
    from prefect.states import Cancelling, Completed, Pending, Running

    from clapcur.flows.register import LEFT_BEHIND, end_runs_left_behind

    @flow
    def of_a_command():
        pass

    _, home, _ = stack
    with client_of(home) as prefect:
        end_runs_left_behind(prefect, home)
        deployment = prefect.read_deployment_by_name("train-teacher/train-teacher")
        parameters = {"config": "long.yaml"}
        made = {
            (owner, state.type.value): (
                prefect.create_flow_run(of_a_command, state=state)
                if owner == "command"
                else prefect.create_flow_run_from_deployment(deployment.id, parameters=parameters, state=state)
            ).id
            for owner in ("command", "deployment")
            for state in (Running(), Pending(), Cancelling(), Completed())
        }

        def seen():
            return {key: state_of(prefect, run_id).name for key, run_id in made.items()}

        ended = {"RUNNING": "Crashed", "PENDING": "Crashed", "CANCELLING": "Cancelled", "COMPLETED": "Completed"}
        before = seen()
        with open(home.flows_lock, "a") as living:
            fcntl.flock(living, fcntl.LOCK_SH)  # as a command that runs a flow
            assert end_runs_left_behind(prefect, home) == 3
            assert seen() == before | {("deployment", kind): name for kind, name in ended.items()}
        assert end_runs_left_behind(prefect, home) == 3
        assert seen() == {(owner, kind): ended[kind] for owner, kind in made}
        assert state_of(prefect, made["command", "RUNNING"]).message == LEFT_BEHIND
        assert end_runs_left_behind(prefect, home) == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_next_start_ends_what_was_killed_together_with_the_servers(stack):
    """Run last: nobody was left to miss its signs of life, and the page showed it as running for days."""
    from clapcur.flows.register import LEFT_BEHIND

    up, home, folder = stack
    with client_of(home) as prefect:
        run_id = start(prefect, "train-teacher", config="long.yaml")
        wait_until(lambda: is_running(prefect, run_id), 120, "the start of the run")
    up.send_signal(signal.SIGKILL)
    up.wait(30)
    with running(folder, home), client_of(home) as prefect:
        assert (state_of(prefect, run_id).name, state_of(prefect, run_id).message) == ("Crashed", LEFT_BEHIND)
