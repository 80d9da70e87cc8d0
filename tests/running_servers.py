"""`clapcur up` as a process, and its API."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import yaml

STEPS = 6


def wait_until(happens, timeout_s, what):
    """Wait for something and return it; fail where it does not come."""
    deadline = time.monotonic() + timeout_s
    while not (found := happens()):
        assert time.monotonic() < deadline, f"{what} did not happen in {timeout_s} s"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Write a small corpus with an experiment of a few steps, and one whose teacher trains for long."""
    from clapcur.config import to_dict
    from clapcur.corpora.synthetic.procedural import ProceduralConfig, generate
    from clapcur.experiments.config import demo_experiment

    folder = tmp_path_factory.mktemp("corpus")
    corpus = generate(
        folder,
        ProceduralConfig(
            teacher_clips_per_class=2, pool_clips_per_class=2, distractor_clips=4, evaluation_clips_per_class=2,
            leaked_clips=2, duplicate_clips=1, captions_per_class=3, other_captions=6, duration_s=1,
        ),
    )  # fmt: skip
    values = to_dict(demo_experiment(corpus)) | {"name": "tiny"}
    values["curation"] |= {
        "audio_threshold": {"count": 40}, "caption_threshold": {"count": 20}, "near_duplicate": None
    }  # fmt: skip
    for training in ("teacher", "student"):
        values[training] |= {"num_examples": 8 * STEPS, "batch_size": 8, "num_evaluations": 1}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    values["name"], values["teacher"]["num_examples"] = "long", 8 * 5000
    (folder / "long.yaml").write_text(yaml.safe_dump(values))
    return folder


@contextmanager
def running(folder, home, *options):
    """Start the command on a home, in a folder, at ports of its own; gives the process."""
    ports = ("--prefect-port", str(free_port()), "--mlflow-port", str(free_port()))
    command = [sys.executable, "-c", "from clapcur.cli import main; main()", "up", "--no-gpu", "--home", str(home.root)]
    process = subprocess.Popen(
        [*command, *ports, *options],
        cwd=folder,
        env=outside_of_tests(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: home.servers() or process.poll() is not None, 150, "the start")
        assert home.servers(), process.communicate()[0]
        with pytest.MonkeyPatch.context() as patch:
            for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
                patch.setenv(name, home.servers()[name])  # MLflow's client takes the login from nowhere else
            yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def free_port():
    """Return a port that nobody listens at: two servers that start at once must not both take the default."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def outside_of_tests():
    """Return the environment without the settings that make Prefect quiet in tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def up(experiment, tmp_path_factory):
    """Start the command on a new home, in the folder of the experiment; gives the process and the home."""
    from clapcur.store.home import Home

    home = Home.open(tmp_path_factory.mktemp("up") / "home")
    with running(experiment, home) as process:
        yield process, home


@pytest.fixture
def prefect(up):
    """Give a client of the running server."""
    _, home = up
    assert home.servers(), up[0].communicate()[0]
    with client_of(home) as client:
        yield client


def client_of(home):
    """Return a client of the home's Prefect that has the login."""
    from prefect.client.orchestration import SyncPrefectClient

    servers = home.servers()
    return SyncPrefectClient(servers["PREFECT_API_URL"], auth_string=servers["PREFECT_API_AUTH_STRING"])


def start(prefect, name, **parameters):
    """Start a deployment as its form does."""
    deployment = prefect.read_deployment_by_name(f"{name}/{name}")
    return prefect.create_flow_run_from_deployment(deployment.id, parameters=parameters).id
