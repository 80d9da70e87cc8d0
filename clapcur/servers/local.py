"""The servers of one machine: Prefect, MLflow and the workers that run the deployments, for one home.

The servers listen on loopback. Without PostgreSQL they use the same files in the home as commands without servers do,
so each sees the results of the other. With ``postgresql://.../NAME`` the catalog is the database NAME, and MLflow and
Prefect use NAME_mlflow and NAME_prefect: they need separate databases because the migrations of both use a table of the
same name. Missing databases are created.
"""

import base64
import fcntl
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clapcur.errors import ClapcurError
from clapcur.servers import guard, heartbeat
from clapcur.servers.supervisor import Processes, Program
from clapcur.store.artifacts import write_atomic
from clapcur.store.home import Home

if TYPE_CHECKING:
    import sqlalchemy as sa

HOST = "127.0.0.1"
OUR_NAMES = (HOST, "localhost")  # names under which the pages may be opened
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
READY_S = 180.0  # the first start creates databases
CPU_LIMIT = 2  # flow runs at a time on a machine without a GPU
POOLS = ("cpu", "gpu")

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach our loopback


@dataclass(frozen=True)
class LocalServers:
    """What ``clapcur up`` runs.

    Attributes
    ----------
    home : Home
    prefect_port, mlflow_port : int
    folder : Path
        Folder that relative paths of experiment files start from.
    has_gpu : bool
        Whether flows that use a model go to the pool ``gpu``, one at a time, instead of the pool ``cpu``.
    database_url : str, optional
        URL of a PostgreSQL database; None: files in the home.
    artifact_root : str, optional
        Where MLflow keeps files, such as ``s3://bucket/mlflow``; None: a folder of the home.
    """

    home: Home
    prefect_port: int
    mlflow_port: int
    folder: Path
    has_gpu: bool = False
    database_url: str | None = None
    artifact_root: str | None = None

    @property
    def prefect(self) -> str:
        """Address of Prefect's pages."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def mlflow(self) -> str:
        """Address of MLflow's pages."""
        return f"http://{HOST}:{self.mlflow_port}"

    def addresses(self) -> dict[str, str]:
        """Return the addresses and the login that other commands of this home should use, as environment variables."""
        user, _, password = self.home.login.partition(":")
        known = {
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_API_AUTH_STRING": self.home.login,
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password,
        }
        return known | ({"CLAPCUR_DATABASE_URL": self.database_url} if self.database_url else {})

    def environment(self) -> dict[str, str]:
        """Return the environment of every process: plain log output, local addresses and no Prefect profile."""
        kept = {name: value for name, value in os.environ.items() if name != "PREFECT_PROFILE"}
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        no_proxy = ",".join(filter(None, (os.environ.get("NO_PROXY"), HOST)))
        return kept | self.home.environment() | self.addresses() | {
            "PATH": programs,  # the deployments call `python`
            "NO_PROXY": no_proxy,
            "PYTHONUNBUFFERED": "1",
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_LOGGING_INTERNAL_LEVEL": "WARNING",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_LOGGING_COLORS": "false",
            "PREFECT_CLI_COLORS": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # it would start eight processes that we do not use
            heartbeat.VARIABLE: str(heartbeat.EVERY_S),
            "CLAPCUR_FOLDER": str(self.folder),
            "CLAPCUR_MODEL_POOL": "gpu" if self.has_gpu else "cpu",
        }  # fmt: skip

    def guarded(self, port: int) -> dict[str, str]:
        """Return the environment of a server behind `clapcur.servers.guard` at this port of loopback."""
        hosts = [f"{name}:{port}" for name in OUR_NAMES]
        origins = ",".join(f"http://{host}" for host in hosts)
        return self.environment() | {
            guard.HOSTS: ",".join(hosts),
            guard.LOGIN: self.home.login,
            "PREFECT_SERVER_API_AUTH_STRING": self.home.login,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins,
            "PREFECT_SERVER_UI_API_URL": "/api",  # relative to the page, under any of our names
            "PREFECT_SERVER_UI_V2_ENABLED": "false",  # that interface contacts an analytics host
            "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": origins,
        }

    def prefect_server(self) -> Program:
        """Return the program that runs Prefect's API, pages and scheduler."""
        environment = self.guarded(self.prefect_port)
        if self.database_url:
            url = beside(self.database_url, "prefect", "postgresql+asyncpg")
            environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
        command = [
            "uvicorn",
            "--factory",
            "clapcur.servers.guard:prefect",
            "--host",
            HOST,
            "--port",
            str(self.prefect_port),
        ]
        command += ["--log-level", "warning", "--timeout-keep-alive", "5"]
        return Program("prefect server", _module(command), environment, lambda: answers(f"{self.prefect}/api/health"))

    def mlflow_server(self) -> Program:
        """Return the program that runs MLflow.

        Its clients write files to the artifact root themselves, so the files are the same with and without a server.
        """
        database = self.home.mlflow_database
        if self.database_url:
            database = beside(self.database_url, "mlflow", "postgresql+psycopg")
        root = self.artifact_root or self.home.mlflow_artifacts.as_uri()
        command = ["mlflow", "server", "--host", HOST, "--port", str(self.mlflow_port), "--workers", "1"]
        command += ["--app-name", "clapcur", "--default-artifact-root", root, "--no-serve-artifacts"]
        # a database URL may contain a password, and every user can read command lines
        environment = self.guarded(self.mlflow_port) | {"MLFLOW_BACKEND_STORE_URI": database}
        url = f"{self.mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
        return Program("mlflow server", _module(command), environment, lambda: answers(url, self.home.login))

    def mlflow_database(self) -> Program:
        """Return the program that creates or repairs MLflow's database file in the home."""
        return Program("mlflow database", _module(["clapcur.tracking.database"]), self.environment())

    def worker(self, pool: str) -> Program:
        """Return the worker of a pool; the logs of its flow runs appear on Prefect's pages."""
        environment = self.environment() | {
            "PREFECT_LOGGING_TO_API_ENABLED": "true",
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "clapcur",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_CLIENT_MAX_RETRIES": "5",
        }
        limit = 1 if pool == "gpu" else CPU_LIMIT
        name = f"{pool}-{os.getpid()}"
        command = ["prefect", "worker", "start", "--pool", pool, "--type", "process"]
        command += ["--name", name, "--limit", str(limit)]
        return Program(f"worker {pool}", _module(command), environment, lambda: self._is_online(pool, name))

    def _is_online(self, pool: str, name: str) -> bool:
        workers = call(f"{self.prefect}/api/work_pools/{pool}/workers/filter", {}, self.home.login)
        return any(worker["name"] == name and worker["status"] == "ONLINE" for worker in workers or ())

    def registration(self) -> Program:
        """Return the program that ends runs left behind and registers pools, deployments and automations."""
        return Program(
            "deployments", _module(["clapcur.flows.register", "--ends-runs-left-behind"]), self.environment()
        )


@contextmanager
def running(local: LocalServers) -> Iterator[Processes]:
    """Run all servers of a home; inside the block they are ready, and other commands of the home use them."""
    from filelock import FileLock

    if local.database_url:
        make_databases(local.database_url)
    with sole(local.home), Processes(local.home.root / "logs") as processes:
        prefect = local.prefect_server()
        with FileLock(local.home.prefect_lock):  # a command without servers may be creating Prefect's tables
            processes.start(prefect)
            if not local.database_url:
                processes.run(local.mlflow_database(), READY_S)
            processes.start(local.mlflow_server())
            processes.wait_ready(READY_S, prefect)
        processes.run(local.registration(), READY_S)
        for pool in POOLS if local.has_gpu else ("cpu",):
            processes.start(local.worker(pool))
        processes.wait_ready(READY_S)
        write_atomic(local.home.servers_file, json.dumps(local.addresses()))
        local.home.servers_file.chmod(0o600)  # a database URL may contain a password
        try:
            yield processes
        finally:
            local.home.servers_file.unlink(missing_ok=True)


@contextmanager
def sole(home: Home) -> Iterator[None]:
    """Hold the lock on a home's servers.

    Raises
    ------
    ClapcurError
        The servers of this home are already running; the message names their addresses.
    """
    with open(home.servers_lock, "a") as lock:
        for attempt in range(10):  # a process that tests the lock holds it for a moment
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05 * attempt)
        else:
            known = home.servers()
            where = "its servers are starting"
            if known:
                prefect = known["PREFECT_API_URL"].removesuffix("/api")
                where = f"Prefect is at {prefect}, MLflow at {known['MLFLOW_TRACKING_URI']}"
            raise ClapcurError(f"`clapcur up` is already running for {home.root}: {where}")
        home.servers_file.unlink(missing_ok=True)  # left by servers that were killed
        yield


def choose_port(wanted: int | None, default: int, flag: str) -> int:
    """Return the requested port if it is free, else the default port or, if that is in use, any free port.

    Parameters
    ----------
    wanted : int or None
        Port that the user asked for; None: choose one.
    default : int
        Port to prefer if none was asked for.
    flag : str
        Option that sets the port, for the error message.

    Raises
    ------
    ClapcurError
        The requested port is in use.
    """
    if wanted is not None:
        if not is_free(wanted):
            raise ClapcurError(f"port {wanted} is in use; choose another one with {flag}, or omit the option")
        return wanted
    if is_free(default):
        return default
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Return whether a server can listen on this port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closing connections do not count
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@functools.cache
def has_gpu() -> bool:
    """Return whether NVIDIA's driver lists a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        return "GPU" in subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def beside(url: str, name: str, driver: str) -> str:
    """Return the URL of a database on the catalog's server, such as ``clapcur_mlflow``.

    Parameters
    ----------
    url : str
        URL of the catalog's database.
    name : str
        What to append to the name of the catalog's database: ``mlflow`` or ``prefect``.
    driver : str
        SQLAlchemy driver, such as ``postgresql+psycopg``.

    Returns
    -------
    str
        The URL, with its password in plain text.
    """
    import sqlalchemy as sa

    catalog = sa.make_url(url)
    made = catalog.set(drivername=driver, database=f"{catalog.database}_{name}")
    return made.render_as_string(hide_password=False)


def make_databases(url: str) -> None:
    """Create the databases of the catalog, MLflow and Prefect that are missing.

    Raises
    ------
    ValueError
        `url` is no PostgreSQL URL with a database name.
    ClapcurError
        A database could not be created.
    """
    import sqlalchemy as sa

    catalog = sa.make_url(url)
    if catalog.get_backend_name() != "postgresql" or not catalog.database:
        raise ValueError(f"expected postgresql://USER:PASSWORD@HOST/NAME, got {catalog.render_as_string()}")
    engine = sa.create_engine(
        catalog.set(drivername="postgresql+psycopg", database="postgres"), isolation_level="AUTOCOMMIT"
    )
    wanted = [catalog.database, *(f"{catalog.database}_{name}" for name in ("mlflow", "prefect"))]
    try:
        with engine.connect() as db:
            for name in wanted:
                _make_database(db, name)
    except sa.exc.SQLAlchemyError as error:
        said = " ".join(str(getattr(error, "orig", error)).split())
        raise ClapcurError(
            f"cannot create the databases {', '.join(wanted)}: {said}; check --database-url, or create them yourself"
        ) from None
    finally:
        engine.dispose()


def _make_database(db: "sa.Connection", name: str) -> None:
    """Create a database unless it exists or another process creates it at the same time."""
    import sqlalchemy as sa

    known = sa.text("SELECT 1 FROM pg_database WHERE datname = :name").bindparams(name=name)
    if db.scalar(known):
        return
    try:
        db.execute(sa.text(f"CREATE DATABASE {db.dialect.identifier_preparer.quote(name)}"))
    except sa.exc.DBAPIError:
        if not db.scalar(known):
            raise


def answers(url: str, login: str | None = None) -> bool:
    """Return whether a URL responds with success."""
    return call(url, login=login) is not None


def call(url: str, body: Mapping[str, Any] | None = None, login: str | None = None) -> Any:
    """Return the JSON with which a URL responds; None if the request fails or the response is not JSON.

    Parameters
    ----------
    url : str
    body : mapping, optional
        JSON body to post; None: send a GET request.
    login : str, optional
        ``user:password`` for HTTP basic authentication.
    """
    headers = {"Content-Type": "application/json"}
    if login is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    request = urllib.request.Request(url, headers=headers)
    if body is not None:
        request.data = json.dumps(body).encode()
    try:
        with _direct.open(request, timeout=10) as answer:
            return json.loads(answer.read())
    except (urllib.error.URLError, OSError, ValueError):
        return None


def _module(command: list[str]) -> list[str]:
    return [sys.executable, "-m", *command]
