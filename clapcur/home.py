"""Where clapcur keeps everything: one folder with the store, the catalog and MLflow's files."""

import fcntl
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from clapcur.artifacts import Store


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
        """Return the home in `root`, or where the environment says, and make the folder."""
        chosen = Path(root or os.environ.get("CLAPCUR_HOME") or ".clapcur").expanduser().absolute()
        chosen.mkdir(parents=True, exist_ok=True)
        return cls(chosen)

    @property
    def store(self) -> Store:
        """The artifacts."""
        return Store(self.root / "store")

    @property
    def database_url(self) -> str:
        """Where the catalog is, as SQLAlchemy names it."""
        return self._address("CLAPCUR_DATABASE_URL") or f"sqlite:///{self.root / 'catalog.db'}"

    @property
    def mlflow_uri(self) -> str:
        """Where MLflow keeps its runs."""
        return self._address("MLFLOW_TRACKING_URI") or self.mlflow_database

    @property
    def mlflow_database(self) -> str:
        """MLflow's file in this home, whoever reads it: this process, or the server of ``clapcur up``."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

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
        return (
            self._prefect()
            | self.servers()
            | {
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


def is_locked(path: Path) -> bool:
    """Tell whether a living process holds the lock of this file."""
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
