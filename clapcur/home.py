"""Where clapcur keeps everything: one folder with the store, the catalog and MLflow's files."""

import os
from dataclasses import dataclass
from pathlib import Path

from clapcur.artifacts import Store


@dataclass(frozen=True)
class Home:
    """The folder that `CLAPCUR_HOME` names (default ``./.clapcur``) and the addresses inside it.

    Servers take the place of the embedded files where the environment names them: `CLAPCUR_DATABASE_URL` for the
    catalog, `MLFLOW_TRACKING_URI` for MLflow, `PREFECT_API_URL` for Prefect.
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
        return os.environ.get("CLAPCUR_DATABASE_URL") or f"sqlite:///{self.root / 'catalog.db'}"

    @property
    def mlflow_uri(self) -> str:
        """Where MLflow keeps its runs."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where MLflow keeps files when it has no server."""
        return self.root / "mlflow-artifacts"

    @property
    def prefect_home(self) -> Path:
        """Where Prefect keeps its database when it has no server."""
        return self.root / "prefect"

    def environment(self) -> dict[str, str]:
        """Return the variables under which Prefect, MLflow and Hugging Face are quiet, stay here and never call out.

        The batch sizes keep Prefect's recorder from colliding with its own API on SQLite, where about half of the
        flow calls would stall for two seconds.
        """
        return {
            "CLAPCUR_HOME": str(self.root),
            "PREFECT_HOME": str(self.prefect_home),
            "PREFECT_LOGGING_LEVEL": "CRITICAL",  # a failure is told once, by our own error line
            "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
            "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
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
