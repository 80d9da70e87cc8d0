"""Where clapcur keeps everything: one folder with the store, the catalog and MLflow's files.

A new home is open to nobody else (0700), unless `CLAPCUR_HOME_MODE` says otherwise; the folder alone decides. What is
in it has the modes of any new file, by the umask. A home that exists keeps the mode that its owner gave it.
"""

import fcntl
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from clapcur.store.artifacts import Store

MODE = 0o700  # of a new home: recordings and captions in it may be private


@dataclass(frozen=True)
class Home:
    """The folder that `CLAPCUR_HOME` names (default ``./.clapcur``) and the addresses inside it.

    Servers take the place of the embedded files where the environment names them (`CLAPCUR_DATABASE_URL` for the
    catalog, `MLFLOW_TRACKING_URI` for MLflow, `PREFECT_API_URL` for Prefect), or else where ``clapcur up`` runs them
    for this home.
    """

    root: Path

    @classmethod
    def open(cls, root: Path | str | None = None) -> "Home":
        """Return the home in `root`, or where the environment says, and make the folder.

        Raises
        ------
        ValueError
            `CLAPCUR_HOME_MODE` is no mode that lets the owner in.
        """
        chosen = Path(root or os.environ.get("CLAPCUR_HOME") or ".clapcur").expanduser().absolute()
        if not chosen.is_dir():
            mode = _mode_of_new_home()
            chosen.parent.mkdir(parents=True, exist_ok=True)
            try:
                chosen.mkdir(MODE)
                chosen.chmod(mode)  # mkdir's is cut by the umask
            except FileExistsError:  # another process was first; a file in this place is met by mkdir below
                chosen.mkdir(exist_ok=True)
        return cls(chosen)

    @property
    def store(self) -> Store:
        """The artifacts."""
        return Store(self.root / "store")

    @property
    def database_url(self) -> str:
        """Where the catalog is, as SQLAlchemy names it."""
        return self._address("CLAPCUR_DATABASE_URL") or sqlite_url(self.root / "catalog.db", "sqlite")

    @property
    def mlflow_uri(self) -> str:
        """Where MLflow keeps its runs."""
        return self._address("MLFLOW_TRACKING_URI") or self.mlflow_database

    @property
    def mlflow_database(self) -> str:
        """MLflow's file in this home, whoever reads it: this process, or the server of ``clapcur up``."""
        return sqlite_url(self.mlflow_file, "sqlite+pysqlite")

    @property
    def mlflow_file(self) -> Path:
        """MLflow's tables, unless they are behind a server."""
        return self.root / "mlflow.db"

    @property
    def mlflow_lock(self) -> Path:
        """Held by the one who makes MLflow's tables: two at once break the file for good."""
        return self.root / "mlflow.lock"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where MLflow keeps files, unless it was given another place."""
        return self.root / "mlflow-artifacts"

    @property
    def prefect_home(self) -> Path:
        """Where Prefect keeps its database when it has no other."""
        return self.root / "prefect"

    @property
    def login(self) -> str:
        """``user:password`` of the servers that run for this home, made when it is first asked for.

        Its file can be read by its owner alone.
        """
        path = self.root / "login"
        try:
            return path.read_text()
        except FileNotFoundError:
            new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w") as file:
                file.write(f"clapcur:{secrets.token_urlsafe(24)}")
            try:
                os.link(new, path)  # the first of several wins
            except FileExistsError:
                pass
            finally:
                new.unlink()
            return path.read_text()

    @property
    def prefect_lock(self) -> Path:
        """Held by the one who makes Prefect's tables: more at once wait for SQLite until they give up."""
        return self.root / "prefect.lock"

    @property
    def flows_lock(self) -> Path:
        """Shared by the commands that run a flow, each as long as it lives."""
        return self.root / "flows.lock"

    @property
    def servers_file(self) -> Path:
        """Addresses of the servers that ``clapcur up`` runs for this home, by the name of their variable."""
        return self.root / "servers.json"

    @property
    def servers_lock(self) -> Path:
        """Held by ``clapcur up`` as long as it lives; the system lets go of it when the process dies, however."""
        return self.root / "servers.lock"

    def servers(self) -> dict[str, str]:
        """Return the addresses of the running servers of this home, by the name of their variable; empty for none."""
        try:
            text = self.servers_file.read_text()
        except FileNotFoundError:
            return {}
        return json.loads(text) if is_locked(self.servers_lock) else {}

    def _address(self, variable: str) -> str | None:
        return os.environ.get(variable) or self.servers().get(variable)

    def environment(self) -> dict[str, str]:
        """Return the variables under which Prefect, MLflow and Hugging Face are quiet, stay here and never call out.

        Where servers of this home run, their addresses are among them. The batch sizes keep Prefect's recorder from
        colliding with its own API on SQLite, where about half of the flow calls would stall for two seconds.
        """
        prefect_database = sqlite_url(self.prefect_home / "prefect.db", "sqlite+aiosqlite")
        return (
            self._prefect()
            | self.servers()
            | {
                **({"PREFECT_SERVER_DATABASE_CONNECTION_URL": prefect_database} if "?" in prefect_database else {}),
                "CLAPCUR_HOME": str(self.root),
                "PREFECT_HOME": str(self.prefect_home),
                "PREFECT_LOGGING_LEVEL": "CRITICAL",  # a failure is told once, by our own error line
                "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
                "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
                "PREFECT_LOGGING_TO_API_ENABLED": "false",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "RAY_USAGE_STATS_ENABLED": "0",
                "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
                "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
                "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
                "DO_NOT_TRACK": "1",
                "PREFECT_CLIENT_MAX_RETRIES": "2",  # a server that went down with us must not keep us from leaving
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
        )

    def login_of_mlflow(self) -> dict[str, str]:
        """Return the variables in which MLflow's client looks for a login, where servers of this home run."""
        names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        return {name: value for name, value in self.servers().items() if name in names}

    def _prefect(self) -> dict[str, str]:
        """Return the login of the server that a flow of this process starts where no other was named."""
        if "PREFECT_API_URL" in os.environ:
            return {}
        try:
            login = os.environ.get("PREFECT_API_AUTH_STRING") or self.login
        except OSError:  # a home that can only be read
            login = f"clapcur:{secrets.token_urlsafe(24)}"
        return {"PREFECT_API_AUTH_STRING": login, "PREFECT_SERVER_API_AUTH_STRING": login}


def sqlite_url(path: Path, odd_dialect: str) -> str:
    """Return the address of a SQLite file.

    In an address a ``?`` ends the path, and no quoting helps: such a file is named by a URI of SQLite's own.

    Parameters
    ----------
    path : Path
        Absolute.
    odd_dialect : str
        Dialect and driver of an address with a URI: MLflow makes folders of the words behind a plain ``sqlite:``.
    """
    name = os.fsencode(path)
    if b"?" not in name and name.decode(errors="replace") == str(path):
        return f"sqlite:///{path}"
    return f"{odd_dialect}:///file:{quote(name)}?uri=true"


def _mode_of_new_home() -> int:
    said = os.environ.get("CLAPCUR_HOME_MODE", f"{MODE:o}")
    mode = int(said, 8) if re.fullmatch(r"(0o?)?[0-7]{3,4}", said) else 0
    if mode & 0o700 != 0o700:
        raise ValueError(f"CLAPCUR_HOME_MODE must be a file mode such as 0700 or 0750, got {said!r}")
    return mode


def is_locked(path: Path) -> bool:
    """Return whether a living process holds the lock of this file."""
    try:
        file = open(path)
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of when the file is closed
        except BlockingIOError:
            return True
    return False
