"""The home: one folder with the store, the catalog and MLflow's files.

A new home has mode 0700 (private), unless `CLAPCUR_HOME_MODE` gives another; this mode alone controls access. Files in
it get the default mode given by the umask. An existing home keeps its mode.
"""

import fcntl
import json
import os
import re
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from clapcur.store.artifacts import Store

MODE = 0o700  # of a new home, because its recordings and captions may be private


@dataclass(frozen=True)
class Home:
    """The folder given by `CLAPCUR_HOME` (default ``./.clapcur``) and the addresses inside it.

    Servers replace the embedded files if the environment gives their addresses (`CLAPCUR_DATABASE_URL` for the
    catalog, `MLFLOW_TRACKING_URI` for MLflow, `PREFECT_API_URL` for Prefect), or if ``clapcur up`` runs them for this
    home.
    """

    root: Path

    @classmethod
    def open(cls, root: Path | str | None = None) -> "Home":
        """Return the home in `root`, or in the folder given by the environment, and create the folder.

        Raises
        ------
        ValueError
            `CLAPCUR_HOME_MODE` is not a file mode, or does not give the owner full access.
        """
        chosen = Path(root or os.environ.get("CLAPCUR_HOME") or ".clapcur").expanduser().absolute()
        if not chosen.is_dir():
            mode = _mode_of_new_home()
            chosen.parent.mkdir(parents=True, exist_ok=True)
            try:
                chosen.mkdir(MODE)
                chosen.chmod(mode)  # the mode of mkdir is masked by the umask
            except FileExistsError:  # another process created it; if it is a file, the next line raises
                chosen.mkdir(exist_ok=True)
        return cls(chosen)

    @property
    def store(self) -> Store:
        """The artifacts."""
        return Store(self.root / "store")

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of the catalog."""
        return self._address("CLAPCUR_DATABASE_URL") or sqlite_url(self.root / "catalog.db", "sqlite")

    @property
    def mlflow_uri(self) -> str:
        """Where MLflow stores its runs."""
        return self._address("MLFLOW_TRACKING_URI") or self.mlflow_database

    @property
    def mlflow_database(self) -> str:
        """The URL of MLflow's file in this home, for this process or for the server of ``clapcur up``."""
        return sqlite_url(self.mlflow_file, "sqlite+pysqlite")

    @property
    def mlflow_file(self) -> Path:
        """MLflow's tables, unless a server has them."""
        return self.root / "mlflow.db"

    @property
    def mlflow_lock(self) -> Path:
        """Held by the process that creates MLflow's tables: two at once would corrupt the file."""
        return self.root / "mlflow.lock"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where MLflow stores files, unless another place is configured."""
        return self.root / "mlflow-artifacts"

    @property
    def prefect_home(self) -> Path:
        """Where Prefect stores its database, unless another one is configured."""
        return self.root / "prefect"

    @property
    def login(self) -> str:
        """``user:password`` for the servers of this home, created at the first access.

        Only the owner can read the file.
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
                os.link(new, path)  # the first of several processes wins
            except FileExistsError:
                pass
            finally:
                new.unlink()
            return path.read_text()

    @property
    def prefect_lock(self) -> Path:
        """Held by the process that creates Prefect's tables: several at once would wait for SQLite and time out."""
        return self.root / "prefect.lock"

    @property
    def flows_lock(self) -> Path:
        """Held, as a shared lock, by every running command that runs a flow."""
        return self.root / "flows.lock"

    @property
    def servers_file(self) -> Path:
        """Addresses of the servers that ``clapcur up`` runs for this home, by environment variable."""
        return self.root / "servers.json"

    @property
    def servers_lock(self) -> Path:
        """Held by ``clapcur up`` while it runs; the system releases it when the process ends, even if it is killed."""
        return self.root / "servers.lock"

    def servers(self) -> dict[str, str]:
        """Return the addresses of this home's running servers by environment variable; empty if there are none."""
        try:
            text = self.servers_file.read_text()
        except FileNotFoundError:
            return {}
        return json.loads(text) if is_locked(self.servers_lock) else {}

    def _address(self, variable: str) -> str | None:
        return os.environ.get(variable) or self.servers().get(variable)

    def environment(self) -> dict[str, str]:
        """Return variables that keep Prefect, MLflow and Hugging Face quiet, inside this home and without telemetry.

        They include the addresses of this home's running servers. The batch sizes keep Prefect's recorder from
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
                "PREFECT_LOGGING_LEVEL": "CRITICAL",  # a failure is reported once, by our own error line
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
                "PREFECT_CLIENT_MAX_RETRIES": "2",  # a server that stopped with this process must not delay its exit
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
        )

    def login_of_mlflow(self) -> dict[str, str]:
        """Return the variables with the login for MLflow's client, if servers of this home run."""
        names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        return {name: value for name, value in self.servers().items() if name in names}

    def _prefect(self) -> dict[str, str]:
        """Return the login of the server that a flow starts if no other server is configured."""
        if "PREFECT_API_URL" in os.environ:
            return {}
        try:
            login = os.environ.get("PREFECT_API_AUTH_STRING") or self.login
        except OSError:  # a read-only home
            login = f"clapcur:{secrets.token_urlsafe(24)}"
        return {"PREFECT_API_AUTH_STRING": login, "PREFECT_SERVER_API_AUTH_STRING": login}


def sqlite_url(path: Path, odd_dialect: str) -> str:
    """Return the URL of a SQLite file.

    In a URL a ``?`` ends the path and cannot be quoted: such a file needs SQLite's own URI syntax.

    Parameters
    ----------
    path : Path
        Absolute path.
    odd_dialect : str
        Dialect and driver of a URL with a URI: MLflow would create folders from the text after a plain ``sqlite:``.
    """
    name = os.fsencode(path)
    if b"?" not in name and name.decode(errors="replace") == str(path):
        return f"sqlite:///{path}"
    return f"{odd_dialect}:///file:{quote(name)}?uri=true"


def open_to_read(file: Path, ignores_journal: bool = False) -> sqlite3.Connection:
    """Open a SQLite file without writing to it, nor to its folder.

    Parameters
    ----------
    file : Path
    ignores_journal : bool
        Whether to read the file alone. To read its journal too, SQLite may need to write the journal's index.

    Raises
    ------
    sqlite3.Error
        The file cannot be read.
    """
    has_journal = not ignores_journal and Path(f"{file}-wal").exists()  # without one, SQLite would create it
    how = "mode=ro" if has_journal else "mode=ro&immutable=1"
    return sqlite3.connect(f"file:{quote(os.fsencode(file))}?{how}", uri=True, check_same_thread=False)


def _mode_of_new_home() -> int:
    said = os.environ.get("CLAPCUR_HOME_MODE", f"{MODE:o}")
    mode = int(said, 8) if re.fullmatch(r"(0o?)?[0-7]{3,4}", said) else 0
    if mode & 0o700 != 0o700:
        raise ValueError(f"CLAPCUR_HOME_MODE must be a file mode such as 0700 or 0750, got {said!r}")
    return mode


def is_locked(path: Path) -> bool:
    """Return whether a running process holds the lock of this file."""
    try:
        file = open(path)
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released when the file is closed
        except BlockingIOError:
            return True
    return False
