"""Location and identity of a dataset, in the form of MLflow's datasets.

Registered in the entry point group ``mlflow.dataset_source``, so that `mlflow.data.get_source` leads from a run to the
store. Nothing here imports mlflow.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clapcur.errors import ArtifactError
from clapcur.store.record import RECORD, read_record


class ArtifactSource:
    """The URI and the key of a manifest or an Improvement-Set.

    It has the methods of `mlflow.data.dataset_source.DatasetSource` without inheriting from it.
    """

    TYPE = "clapcur"

    def __init__(self, uri: str, sha256: str) -> None:
        self.uri, self.sha256 = uri, sha256

    @staticmethod
    def _get_source_type() -> str:
        return ArtifactSource.TYPE

    @staticmethod
    def _can_resolve(_raw_source: Any) -> bool:
        return False  # never guess from a URI

    def load(self) -> Path:
        """Return the folder of the artifact.

        Raises
        ------
        ArtifactError
            The artifact at the URI does not have this key; the datasets of a run can be edited in MLflow.
        """
        folder = Path(self.uri)
        if not (folder / RECORD).is_file() or read_record(folder).key_sha256 != self.sha256:
            raise ArtifactError(f"{self.uri} is not the artifact with key {self.sha256[:12]}; it was moved or replaced")
        return folder

    def to_dict(self) -> dict[str, Any]:
        """Return URI and key as plain values."""
        return {"uri": self.uri, "sha256": self.sha256}

    def to_json(self) -> str:
        """Return URI and key as JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, source_dict: Mapping[Any, Any]) -> "ArtifactSource":
        """Return the source that `to_dict` described."""
        return cls(source_dict["uri"], source_dict["sha256"])

    @classmethod
    def from_json(cls, source_json: str) -> "ArtifactSource":
        """Return the source that `to_json` described."""
        return cls.from_dict(json.loads(source_json))
