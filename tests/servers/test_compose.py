"""The stack of docker-compose.yml: checked as a file, and its programs run on this machine without containers.

Natively means: the commands, the environment and the health checks are read out of the file; what changes is the names
of the services, which become 127.0.0.1, the ports, which become free ones, and the folders, which become temporary.
"""

import base64
import functools
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
import warnings
from contextlib import suppress
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from postgres import binaries, call
from source_tree import ROOT

from clapcur.servers.local import beside
from clapcur.servers.supervisor import Processes, Program
from clapcur.store.home import Home

RAW = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::([-?])([^}]*))?\})")
GIVEN = {
    "POSTGRES_PASSWORD": "pgpw",
    "S3_ACCESS_KEY": "s3id",
    "S3_SECRET_KEY": "s3pw",
    "LOGIN_PASSWORD": "loginpw",
    "SOUNDS": "/srv/sounds",
}
LOGIN = {"Authorization": f"Basic {base64.b64encode(b'clapcur:loginpw').decode()}"}
PAGES = {"prefect": 4200, "mlflow": 5000}
QUIET = ("DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")


def filled(node, values):
    """Put values into the ${...} of every text, as compose does."""
    if isinstance(node, dict):
        return {name: filled(value, values) for name, value in node.items()}
    if isinstance(node, list):
        return [filled(value, values) for value in node]
    if not isinstance(node, str):
        return node

    def value(found):
        name, kind, otherwise = found.groups()
        if name is None:
            return "$"
        assert values.get(name) or kind == "-", f"{name} has no value and no default"
        return values.get(name) or otherwise

    return VARIABLE.sub(value, node)


COMPOSE = filled(RAW, GIVEN)
SERVICES = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)


def schema():
    """Return the schema of the Compose Specification."""
    return json.loads((files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text())


def texts(node):
    """Give every text in a tree."""
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from texts(value)
    elif isinstance(node, str):
        yield node


def ports_of(service):
    """Return the ports that a service publishes, as (address, port on the host, port in the container)."""
    return [tuple(port.rsplit(":", 2)) for port in service.get("ports", [])]


# -- the file


def test_the_file_is_what_compose_reads():
    """A key in the wrong place is found here and not on the day of the first start."""
    import jsonschema

    checker = jsonschema.validators.validator_for(schema())(schema())
    assert [error.message for error in checker.iter_errors(COMPOSE)] == []
    slip = {"postgres": SERVICES["postgres"] | {"health_check": {}}}
    assert not checker.is_valid(COMPOSE | {"services": SERVICES | slip})


def test_services_start_in_an_order_that_can_be_reached():
    """A cycle, or waiting for the health of what has no check, is a stack that never comes up."""
    order = list(TopologicalSorter({name: of.get("depends_on", {}) for name, of in SERVICES.items()}).static_order())
    assert set(order) == set(SERVICES)
    for name, service in SERVICES.items():
        for needed, wait in service.get("depends_on", {}).items():
            assert "profiles" not in SERVICES[needed], f"{name} waits for {needed}, which may not be started"
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed], f"{name} waits for the health of {needed}"
            else:
                assert (wait["condition"], SERVICES[needed]["restart"]) == ("service_completed_successfully", "no")
    assert {name for name, service in SERVICES.items() if service["restart"] != "unless-stopped"} == {
        "prepare",
        "register",
    }


def test_nothing_calls_home(tmp_path):
    """Every program of ours has its telemetry off, and so has the object store, where it is on by default."""
    wanted = {name: Home(tmp_path).environment()[name] for name in QUIET}
    assert len(OURS) == 7
    for name in OURS:
        assert {key: SERVICES[name]["environment"].get(key) for key in QUIET} == wanted, name
    assert "-master.telemetry=false" in SERVICES["objects"]["command"]


def test_nothing_is_published_but_the_two_pages_and_those_on_loopback():
    """A database on every address of a machine is found within the hour."""
    for name, service in SERVICES.items():
        published = [("127.0.0.1", str(PAGES[name]), str(PAGES[name]))] if name in PAGES else []
        assert ports_of(service) == published
        assert not {"network_mode", "privileged", "pid"} & set(service)
        assert not any("docker.sock" in volume for volume in service.get("volumes", []))
    elsewhere = filled(RAW, GIVEN | {"BIND_ADDRESS": "10.0.0.5", "PREFECT_PORT": "80"})["services"]
    assert ports_of(elsewhere["prefect"]) == [("10.0.0.5", "80", "4200")]


def test_no_secret_stands_in_the_file():
    """What is committed once stays in the history; what is missing must stop the start, not become empty."""
    for name, service in RAW["services"].items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY", key):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}: {key}"
            if found := re.search(r"://\w+:(.*)@", value):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", found[1]), f"{name}: {key}"
        assert not any("://" in text and "@" in text for text in service.get("command", []))


def test_the_example_of_the_settings_is_complete():
    """A variable that nobody can know of, or that nobody reads, is found by reading the source only."""
    example = (ROOT / ".env.example").read_text()
    told = dict(re.findall(r"^#?([A-Z0-9_]+)=(.*)$", example, re.MULTILINE))
    asked = {found[1]: found for text in texts(RAW) for found in VARIABLE.finditer(text) if found[1]}
    assert set(told) - {"COMPOSE_PROFILES"} == set(asked)
    assert {name for name, found in asked.items() if found[2] == "?"} == {
        name for name, value in told.items() if not value
    }
    offered = dict(re.findall(r"^([A-Z0-9_]+)=(.+)$", example, re.MULTILINE))
    assert {name: asked[name][3] for name in offered} == offered  # the same defaults
    assert told["COMPOSE_PROFILES"] in SERVICES["gpu-worker"]["profiles"]


def test_the_programs_agree_on_addresses():
    """Two names for one database, or a port that nobody listens on, and every service is healthy by itself."""
    prefect, mlflow = SERVICES["prefect"]["environment"], SERVICES["mlflow"]["environment"]
    database, bucket = SERVICES["prepare"]["environment"]["CLAPCUR_DATABASE_URL"], "s3://mlflow"
    of_postgres = SERVICES["postgres"]["environment"]
    assert database == "postgresql://{POSTGRES_USER}:{POSTGRES_PASSWORD}@postgres:5432/{POSTGRES_DB}".format(
        **of_postgres
    )
    assert prefect["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == beside(database, "prefect", "postgresql+asyncpg")
    assert mlflow["MLFLOW_BACKEND_STORE_URI"] == beside(database, "mlflow", "postgresql+psycopg")
    for name in ("cpu-worker", "watcher", "register"):
        given = SERVICES[name]["environment"]
        assert given["PREFECT_API_AUTH_STRING"] == prefect["PREFECT_SERVER_API_AUTH_STRING"] == mlflow["CLAPCUR_LOGIN"]
        assert f"{given['MLFLOW_TRACKING_USERNAME']}:{given['MLFLOW_TRACKING_PASSWORD']}" == mlflow["CLAPCUR_LOGIN"]
    assert SERVICES["mlflow"]["command"][-2:] == ["--artifacts-destination", bucket]
    assert f'create_bucket(Bucket="{bucket.removeprefix("s3://")}")' in SERVICES["prepare"]["command"][-1]
    for name, port in PAGES.items():
        command = SERVICES[name]["command"]
        assert command[command.index("--port") + 1] == str(port)
        assert f"127.0.0.1:{port}/api" in SERVICES[name]["healthcheck"]["test"][-1]
    keys = {name: SERVICES["objects"]["environment"][name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    for name in ("prepare", "mlflow"):
        assert SERVICES[name]["environment"].items() >= keys.items()
        assert SERVICES[name]["environment"]["MLFLOW_S3_ENDPOINT_URL"] == "http://objects:8333"
    assert "-s3.port=8333" in SERVICES["objects"]["command"]
    for name in ("cpu-worker", "gpu-worker", "watcher", "register"):
        environment = SERVICES[name]["environment"]
        assert environment["PREFECT_API_URL"] == "http://prefect:4200/api"
        assert environment["PREFECT_UI_URL"] == prefect["PREFECT_UI_URL"] == "http://localhost:4200"
        assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
        assert environment["CLAPCUR_DATABASE_URL"] == database
    assert "mlflow:5000" in mlflow["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    for text in texts(SERVICES):
        for host in re.findall(r"(?:https?://|@)([\w.]+):\d+", text):
            assert host in SERVICES or host in ("localhost", "127.0.0.1"), text
    for name in OURS:
        skipped = SERVICES[name]["environment"]["NO_PROXY"].split(",")
        assert {"postgres", "objects", *PAGES} <= set(skipped)


def test_workers_share_the_store_and_the_sounds():
    """A worker with a store of its own makes everything twice, and finds no input at the second stage."""
    for name in ("cpu-worker", "gpu-worker", "watcher"):
        home, sounds = SERVICES[name]["volumes"]
        assert home == f"home:{SERVICES[name]['environment']['CLAPCUR_HOME']}"
        assert sounds == f"/srv/sounds:{SERVICES[name]['environment']['CLAPCUR_FOLDER']}:ro"
    assert set(COMPOSE["volumes"]) == {"home", "postgres", "objects"}


def test_a_gpu_trains_one_model_at_a_time():
    gpu = SERVICES["gpu-worker"]
    command = gpu["command"]
    assert (command[command.index("--limit") + 1], gpu["profiles"]) == ("1", ["gpu"])
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    both = filled(RAW, GIVEN | {"MODEL_POOL": "gpu", "GPU": "1"})["services"]
    assert both["register"]["environment"]["CLAPCUR_MODEL_POOL"] == command[command.index("--pool") + 1]
    assert both["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["1"]


# -- the commands


def commands():
    """Give the command lines of our programs, those that Python continues to as well, each as a list of words."""
    for name in OURS:
        command = SERVICES[name]["command"]
        if command[0] != "python":
            yield name, command
        for line in re.findall(r'"((?:clapcur|prefect|mlflow) [^"]+)"', command[-1]):
            yield name, line.split()


@pytest.mark.parametrize(
    ("service", "command"),
    list(commands()),
    ids=[name for name, _ in commands()],
)
def test_every_command_is_one_that_its_program_takes(service, command):
    """Options come and go with versions; a container that ends at once with a usage error restarts for ever."""
    parse(command)
    with pytest.raises(Exception, match="no-such-option"):
        parse([*command, "--no-such-option", "1"])


def parse(command):
    """Have a program read its arguments without running it."""
    if command[0] == "prefect":
        from prefect.cli._app import _app as app

        app.parse_args(command[1:], exit_on_error=False, print_error=False)
        return
    if command[0] == "clapcur":
        import typer

        from clapcur.cli import app

        group = typer.main.get_command(app)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's, about its own types
            from mlflow.cli import cli as group
    group.commands[command[1]].make_context(command[1], list(command[2:]))


@pytest.mark.parametrize("service", OURS)
def test_python_in_the_file_is_python(service):
    for command in (SERVICES[service].get("command", []), SERVICES[service].get("healthcheck", {}).get("test", [])):
        if "python" in command:
            compile(command[-1], service, "exec")


# -- the image


def ignored(path):
    """Return whether .dockerignore keeps a path of the root out of the build; the last line that fits counts."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            parts = Path(path).parts
            fits = fnmatch(parts[0], pattern) or ("**" in line and any(fnmatch(part, pattern) for part in parts))
            verdict = not line.startswith("!") if fits else verdict
    return verdict


def test_the_image_gets_what_it_needs_and_nothing_else():
    """What is copied must be let in; secrets, sounds and environments must not."""
    lines = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    copied = [source for line in lines for source in line.split()]
    assert {"clapcur", "flows", "tasks", "deployments", "pyproject.toml", "constraints.txt"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists() and not ignored(source), source
    for kept_out in (".env", ".git", ".venv", ".clapcur", "tests", "sounds", "clapcur/__pycache__", "clapcur/a.pyc"):
        assert ignored(kept_out), kept_out


def test_the_image_installs_extras_that_exist_and_does_not_run_as_root():
    text = (ROOT / "Dockerfile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = re.findall(r'-c constraints\.txt -e "\.\[([\w,]+)\]"', text)
    assert set(asked.split(",")) == set(extras) - {"dev"}
    (user,) = re.findall(r"^USER (\w+)$", text, re.MULTILINE)
    assert f"useradd --uid 1000 --home-dir /var/lib/{user} --create-home {user}" in text
    home = SERVICES["cpu-worker"]["environment"]["CLAPCUR_HOME"]
    assert f"install -d -o {user} -g {user} {home}\n" in text  # else a new volume belongs to root


def test_the_object_store_that_is_tested_is_the_one_of_the_image():
    version = subprocess.run([program("weed"), "version"], capture_output=True, text=True, check=True).stdout.split()[2]
    assert SERVICES["objects"]["image"] == f"chrislusf/seaweedfs:{version}"


# -- the guide


def test_what_the_guide_adds_to_the_file_fits_it():
    """An override that names a service wrongly starts one more service, which fails."""
    import jsonschema

    guide = (ROOT / "docs" / "operations.md").read_text()
    blocks = [
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", guide.replace("!override ", ""), re.DOTALL)
    ]
    overrides = [block for block in blocks if "services" in block]  # others are of an experiment's config
    assert len(overrides) >= 2
    for block in overrides:
        jsonschema.validate(block, schema())
        for name, service in block["services"].items():
            assert name in SERVICES or service["extends"]["service"] in SERVICES
            known = SERVICES.get(name, SERVICES["gpu-worker"]).get("environment", {})
            assert set(service.get("environment", {})) <= set(known)
        assert set(block.get("volumes", {})) <= set(COMPOSE["volumes"])
    for line in re.findall(r"docker compose (?:exec|run|logs|stop|restart)\b[^`|&<>\n]*", guide):
        words = [word for word in line.split(" #")[0].split()[3:] if not word.startswith("-")]
        assert words[0] in {*SERVICES, "SERVICE"}, line
        if words[1:2] == ["clapcur"]:
            parse(words[1:])


# -- the same programs, natively


def program(name):
    """Return where a program of this environment is."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"needs the program {name}, which is absent")
    return found


class Native:
    """The services of the file as processes of this machine."""

    def __init__(self, folder, database):
        self.folder, self.database = folder, database
        self.ports = dict(zip((5432, 8333, 8080, *PAGES.values()), free_ports(5), strict=True))
        places = (folder, *(folder / name for name in ("home", "sounds", "objects", "users-home")))
        for place in places:
            place.mkdir(exist_ok=True)
        self.places = {
            "/var/lib/clapcur/home": folder / "home", "/sounds": folder / "sounds", "=/data": f"={folder / 'objects'}",
            "deployments/": f"{ROOT / 'deployments'}/", "0.0.0.0": "127.0.0.1", "-ip=objects": "-ip=127.0.0.1",
        }  # fmt: skip

    def url(self, port):
        """Return the address of the service that listens on this port in its container."""
        return f"http://127.0.0.1:{self.ports[port]}"

    def here(self, text):
        """Say on this machine what a text of the file says in a container."""
        for there, here in self.places.items():
            text = text.replace(there, str(here))
        text = re.sub(r"(//|@|,)[\w.]+:(\d+)", lambda it: f"{it[1]}127.0.0.1:{self.ports[int(it[2])]}", text)
        alone = re.fullmatch(r"(-[\w.-]+=)?(\d{4})", text)
        return f"{alone[1] or ''}{self.ports[int(alone[2])]}" if alone and int(alone[2]) in self.ports else text

    def environment(self, service):
        """Return the environment of a service: its own, and what an image would set."""
        image = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.folder / "users-home"),
            "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
            "PREFECT_WORKER_WEBSERVER_PORT": str(self.ports[8080]),
            "OMP_NUM_THREADS": "1",
        } | {name: os.environ[name] for name in ("PYTHONPATH", "CLAPCUR_TEST_JOURNAL")}
        return image | {name: self.here(value) for name, value in SERVICES[service].get("environment", {}).items()}

    @functools.cache  # noqa: B019  # lives as long as the tests of this module
    def program(self, service):
        """Return the program of a service, ready when the health check of the file says so."""
        environment = self.environment(service)
        check = [self.here(word) for word in SERVICES[service].get("healthcheck", {}).get("test", [])[1:]]

        def is_healthy():
            return subprocess.run(check, env=environment, capture_output=True, timeout=30).returncode == 0

        if service == "postgres":
            return Program(service, self.postgres(), environment, is_healthy)
        command = [self.here(word) for word in SERVICES[service]["command"]]
        if service == "objects":
            ports = zip(("master", "volume", "filer", "s3"), *[iter(free_ports(8))] * 2, strict=True)
            for name, port, grpc in ports:
                command += [f"-{name}.port={port}"] if name != "s3" else []
                command += [f"-{name}.port.grpc={grpc}"]
            command = [program("weed"), *command]
        return Program(service, command, environment, is_healthy)

    def postgres(self):
        """Make the files of a database server as the image does, and return the command of the server."""
        programs, folder, asked = binaries(), self.database, SERVICES["postgres"]["environment"]
        if programs is None:
            pytest.skip("needs the PostgreSQL programs initdb and postgres, which are absent")
        (folder / "password").write_text(asked["POSTGRES_PASSWORD"])
        as_nobody = []
        if os.getuid() == 0:  # PostgreSQL refuses root
            as_nobody = [program("setpriv"), "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            shutil.chown(folder, "nobody")
        options = ("-U", asked["POSTGRES_USER"], "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "-E", "UTF8")
        call(folder, programs / "initdb", "-D", folder / "data", "--no-sync", *options)
        server = [str(programs / "postgres"), "-D", str(folder / "data"), "-p", str(self.ports[5432])]
        settings = ("listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off")
        return [*as_nobody, *server, *[word for setting in settings for word in ("-c", setting)]]


def free_ports(count):
    """Return ports that nobody listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """Start everything that needs no GPU and no dropped files, in the order and on the conditions of the file."""
    for package in ("psycopg", "boto3"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}, which is not installed")
    folder = tmp_path_factory.mktemp("stack")
    database = Path(tempfile.mkdtemp(prefix="clapcur-pg-", dir="/tmp"))  # its server runs as nobody, who must get there
    wanted = set(SERVICES) - {"gpu-worker", "watcher"}
    order = TopologicalSorter({name: SERVICES[name].get("depends_on", {}) for name in sorted(wanted)}).static_order()
    stack = Native(folder, database)
    with Processes(folder / "logs", grace_s=0.5) as processes:
        for name in order:
            for needed, wait in SERVICES[name].get("depends_on", {}).items():
                if wait["condition"] == "service_healthy":
                    processes.wait_ready(90, stack.program(needed))
            if SERVICES[name]["restart"] == "no":
                processes.run(stack.program(name), 90)
            else:
                processes.start(stack.program(name))
        processes.wait_ready(90)
        yield stack
    shutil.rmtree(database)


slow = [pytest.mark.slow, pytest.mark.timeout(300)]


def status(url, **headers):
    """Return the status that an address answers."""
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


class TestNatively:
    """One start for all of these."""

    pytestmark = slow

    def test_a_file_of_a_run_arrives_in_the_object_store(self, native, monkeypatch):
        """MLflow takes a run and loses its files where the bucket, the keys or the address are wrong."""
        import boto3
        from mlflow import MlflowClient

        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.setenv(name, native.environment("cpu-worker")[name])
        client = MlflowClient(native.environment("cpu-worker")["MLFLOW_TRACKING_URI"])
        run = client.create_run(client.create_experiment("tiny"))
        client.log_text(run.info.run_id, "a dog barks", "captions.txt")
        client.log_metric(run.info.run_id, "accuracy", 0.5)
        given = native.environment("mlflow")
        objects = boto3.client(
            "s3", endpoint_url=given["MLFLOW_S3_ENDPOINT_URL"], region_name=given["AWS_DEFAULT_REGION"],
            aws_access_key_id=given["AWS_ACCESS_KEY_ID"], aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        (key,) = [item["Key"] for item in objects.list_objects_v2(Bucket="mlflow")["Contents"]]
        assert key.endswith(f"{run.info.run_id}/artifacts/captions.txt")
        assert objects.get_object(Bucket="mlflow", Key=key)["Body"].read() == b"a dog barks"
        assert client.get_run(run.info.run_id).data.metrics == {"accuracy": 0.5}

    def test_the_object_store_lets_nobody_in_without_the_keys(self, native):
        assert status(f"{native.url(8333)}/mlflow") == 403

    def test_mlflow_answers_to_its_names_only(self, native):
        """With the default it would refuse its own name in the stack, and look healthy."""
        url = f"{native.url(5000)}/api/2.0/mlflow/experiments/search?max_results=1"
        names = ("mlflow:5000", "localhost:5000", "elsewhere:5000")
        assert [status(url, Host=name, **LOGIN) for name in names] == [200, 200, 421]

    def test_neither_server_answers_without_the_login(self, native):
        """Whoever reaches the address would start flows and read everything."""
        for url in (
            f"{native.url(5000)}/api/2.0/mlflow/experiments/search?max_results=1",
            f"{native.url(4200)}/api/admin/version",
        ):
            assert [status(url), status(url, **LOGIN)] == [401, 200]

    def test_mlflows_page_is_told_to_send_nothing(self, native):
        """The page has a telemetry of its own, which a browser would send and no guard here would see."""
        asked = urllib.request.Request(f"{native.url(5000)}/ajax-api/3.0/mlflow/ui-telemetry", headers=LOGIN)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            assert json.load(answer)["disable_ui_telemetry"] is True

    def test_the_deployments_stand_on_prefects_page_and_a_worker_waits_for_them(self, native):
        from prefect.client.orchestration import SyncPrefectClient

        entries = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
        given = native.environment("cpu-worker")
        with SyncPrefectClient(given["PREFECT_API_URL"], auth_string=given["PREFECT_API_AUTH_STRING"]) as client:
            assert {it.name for it in client.read_deployments()} == {entry["name"] for entry in entries}
            assert {pool.name for pool in client.read_work_pools()} == {"cpu", "gpu"}
            (worker,) = (
                client.read_workers_for_work_pool("cpu") if hasattr(client, "read_workers_for_work_pool") else [0]
            )
        assert status(f"{native.url(4200)}/", Accept="text/html") == 200
        assert status(f"{native.url(8080)}/health") == 200

    def test_no_command_line_holds_a_secret(self, native):
        """Every user of a machine can read every command line of it, those of the programs' own children too."""
        import psutil

        native.program("prefect")
        lines = []
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile, or is a zombie
                lines.append(" ".join(child.cmdline()))
        assert any("mlflow.server" in line or "clapcur.servers.guard:mlflow" in line for line in lines)
        for secret in GIVEN.keys() - {"SOUNDS"}:
            assert not any(GIVEN[secret] in line for line in lines), secret

    def test_each_program_has_its_own_database(self, native):
        import sqlalchemy as sa

        url = native.environment("prepare")["CLAPCUR_DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:")
        engine = sa.create_engine(url)
        with engine.connect() as db:
            names = set(db.scalars(sa.text("SELECT datname FROM pg_database WHERE NOT datistemplate")))
        engine.dispose()
        assert names == {"postgres", "clapcur", "clapcur_mlflow", "clapcur_prefect"}
