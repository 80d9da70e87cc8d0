"""The JSON file of an artifact as a frozen dataclass, which both writes and reads it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from clapcur.errors import ArtifactError, DamagedArtifact
from clapcur.store.artifacts import Artifact, write_atomic


@dataclass(frozen=True, kw_only=True)
class Payload:
    """The content of a kind of artifact in one JSON file. A subclass defines the kind, the file name and the fields.

    The file contains ``schema``, the version of its layout, and every field that is not None. A field that a later
    version adds has a default, so that older files still open.
    """

    KIND: ClassVar[str]
    FILE: ClassVar[str]
    SCHEMA: ClassVar[int] = 1

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Read the file of a finished artifact.

        Raises
        ------
        ArtifactError
            The artifact is of another kind, or was written by a newer version of clapcur.
        DamagedArtifact
            The file is missing, or its content is not what this class writes.
        """
        if artifact.kind != cls.KIND:
            raise ArtifactError(f"expected an artifact of kind {cls.KIND}, got the {artifact.kind} {artifact.id}")
        return cls.read(artifact.path)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the file in the folder of an artifact; raises as `open` does."""
        path = folder / cls.FILE
        try:
            values = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise DamagedArtifact(
                f"{path} is missing; `clapcur verify {folder.name}` shows how to recompute it"
            ) from None
        except (ValueError, RecursionError) as error:
            raise DamagedArtifact(f"{path} is not valid JSON: {error}") from None
        return cls.from_json(values, path)

    @classmethod
    def from_json(cls, values: Any, path: Path) -> Self:
        """Build the payload from the content of its file; `path` is for error messages."""
        from pydantic import TypeAdapter, ValidationError

        schema = values.get("schema", 1) if isinstance(values, Mapping) else 1
        if isinstance(schema, int) and schema > cls.SCHEMA:
            raise ArtifactError(
                f"{path} has schema {schema}, but this version of clapcur reads schemas up to {cls.SCHEMA}; update "
                "clapcur"
            )
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise DamagedArtifact(f"{path} is damaged: {where}: {first['msg']}") from None

    def write(self, folder: Path) -> None:
        """Write the file to the folder of an artifact that is being computed."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        write_atomic(folder / self.FILE, json.dumps({"schema": self.SCHEMA, **values}, indent=1))
