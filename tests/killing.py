"""One landing after another, and killing a part of the servers meanwhile."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
from running_servers import client_of, outside_of_tests, start, wait_until

from clapcur.testing import write_tone, write_tones


def said(home, *arguments):
    """Run a command as people do, in a process of its own, and return what it prints as JSON."""
    code = "from clapcur.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments), "--home", str(home.root), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=outside_of_tests())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ended(prefect, run_id):
    """Wait for the end of a flow run and return it."""
    wait_until(lambda: prefect.read_flow_run(run_id).state.is_final(), 240, f"the end of the run {run_id}")
    run = prefect.read_flow_run(run_id)
    assert run.state.is_completed(), f"{run.name}: {run.state.message}"
    return run


def one_landing_after_another(home, folder):
    """Tell it: what lands comes out as a student whose pairs can be named, and what is forgotten is gone."""
    from mlflow import MlflowClient

    field, config = folder / "field", write_tones(folder)
    text = config.read_text().replace("audio_threshold: {similarity: 0.7}", "audio_threshold: {similarity: -1}")
    rules = "{min_new_clips: 2, min_changed: 0, strategy: du, soft_labels: false}"
    config.write_text(f"{text}\n        pool: pool:field\n        on_landing: {rules}\n")
    for seed in range(100, 106):
        write_tone(field / f"{seed}.wav", (200, 3000)[seed % 2], seed=seed)
    first = said(home, "land", field, "--pool", "field")
    assert (first["version"], first["counts"]["clips"]) == (1, 6)

    with client_of(home) as prefect:
        ended(prefect, start(prefect, "recurate", config="tones.yaml"))
        known = {run.id for run in runs_of(prefect, "recurate")}
        for seed in (106, 107):
            write_tone(field / f"{seed}.wav", (200, 3000)[seed % 2], seed=seed)
        second = said(home, "land", field, "--pool", "field")
        assert second["counts"]["added"] == 2
        found = wait_until(
            lambda: [run for run in runs_of(prefect, "recurate") if run.id not in known], 60, "the run of the event"
        )
        assert len(found) == 1
        message = ended(prefect, found[0].id).state.message
        again = ended(prefect, start(prefect, "reconcile"))
        assert again.state.message == "nothing to do", "a landing that is announced twice does no harm"
        assert len(runs_of(prefect, "recurate")) == len(known) + 1

    decision = home.store.find(message.removeprefix("decision "))
    student = decision.record.inputs["challenger"]
    embedded = [one.record for one in home.store.of_kind("embeddings")]
    of_second = [one.counts for one in embedded if one.inputs.get("manifest") == second["id"]]
    assert [(counts["rows"], counts["embedded"]) for counts in of_second] == [(8, 2)]

    client = MlflowClient(home.servers()["MLFLOW_TRACKING_URI"], home.servers()["MLFLOW_TRACKING_URI"])
    version = client.get_model_version_by_alias("clapcur-tones", "challenger")
    assert version.tags["clapcur.artifact"] == student
    assert client.get_run(version.run_id).data.tags["strategy"] == "du"
    assert said(home, "trace", "clapcur-tones@challenger")["id"] == student
    (chosen,) = [name for role, name in home.store.find(student).record.inputs.items() if role == "improvement_set"]
    pairs = [pair for pair in pairs_of(home, student) if pair["source"] == chosen]
    assert pairs

    gone = pairs[0]["clip_id"]
    told = said(home, "forget", gone, "--reason", "asked", "--config", config)["forgotten"]
    assert chosen in told[0]["improvement_sets"] and student in told[0]["checkpoints"]
    latest = list(home.store.of_kind("checkpoint"))[-1].id
    assert latest != student
    assert gone not in {pair["clip_id"] for pair in pairs_of(home, latest)}


def runs_of(prefect, name):
    """Return the runs of a deployment."""
    deployment = prefect.read_deployment_by_name(f"{name}/{name}")
    return [run for run in prefect.read_flow_runs() if run.deployment_id == deployment.id]


def pairs_of(home, checkpoint):
    """Return the pairs that a checkpoint was trained on."""
    from clapcur.lineage.queries import trace_pairs

    return list(trace_pairs(home, checkpoint))


def kill_part(up, home, part):
    """Kill what `clapcur up` runs for a part, with all that it has started, and wait until it stands again.

    A part is known by its log, whatever its command is.
    """
    (dead,) = alive(up, home, part)
    os.killpg(dead, signal.SIGKILL)
    wait_until(lambda: set(alive(up, home, part)) - {dead}, 30, f"a new {part}")


def alive(up, home, part):
    """Return the processes that `clapcur up` itself started for a part, which write its log."""
    log = home.root / "logs" / f"{part.replace(' ', '-')}.log"
    assert log.exists()
    found = []
    for child in psutil.Process(up.pid).children():
        with suppress(OSError, psutil.Error):  # it ends just now
            if child.status() != psutil.STATUS_ZOMBIE and os.readlink(f"/proc/{child.pid}/fd/1") == str(log):
                found.append(child.pid)
    return found
