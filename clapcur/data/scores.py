"""Scores of a checkpoint, as an evaluation writes them: ``scores.json``.

Beside it is ``predictions.parquet`` (zero-shot; one row per clip; read by `predictions`) or ``ranks.parquet``
(retrieval; one row per caption).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from clapcur.errors import ArtifactError
from clapcur.store.artifacts import Artifact
from clapcur.store.payloads import Payload

if TYPE_CHECKING:
    import pandas as pd

PREDICTIONS = "predictions.parquet"
RANKS = "ranks.parquet"
ZERO_SHOT = "zero-shot classification"


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """Which of the scored clips the checkpoint has learned from."""

    status: str
    # clean, contaminated or unknown
    num_clips: int
    by_reason: dict[str, int]
    # clip, recording, near_duplicate
    examples: dict[str, Any] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    # checkpoints and manifests without a record
    accuracy_of_others: float | None = None
    # on the clips that are new to the checkpoint
    recordings_compared_without_place: int | None = None
    near_duplicate_threshold: float | None = None


NOT_ON_RECORD = Contamination(status="unknown", num_clips=0, by_reason={})  # the value for scores of old versions


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The conditions under which scores were measured; scores of different protocols cannot be compared."""

    task: str
    crops: int
    num_clips: int
    num_recordings: int
    prompt: str | None = None
    num_classes: int | None = None
    class_names_sha256: str | None = None
    interval: str | None = None
    # in words
    seed: int | None = None
    # of the bootstrap
    num_captions: int | None = None

    def facts(self) -> dict[str, Any]:
        """Return the fields that apply to this task, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Scores(Payload):
    """What every evaluation reports."""

    KIND = "scores"
    FILE = "scores.json"

    protocol: Protocol
    contamination: Contamination = NOT_ON_RECORD


@dataclass(frozen=True, kw_only=True)
class ZeroShotScores(Scores):
    """Scores of a zero-shot classification, from 0 to 1."""

    accuracy: float
    interval: tuple[float, float]
    macro_accuracy: float | None = None
    transductive: float
    transductive_interval: tuple[float, float] | None = None
    per_class: dict[str, float] = field(default_factory=dict)
    per_fold: dict[str, float] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
    # rows: labels, columns: predictions
    confusion_classes: list[str] | None = None
    # the classes of the matrix, if there are too many for a complete one

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the scores; raise ArtifactError if they are of another task."""
        scores = Scores.read(folder)
        if scores.protocol.task != ZERO_SHOT:
            raise ArtifactError(f"expected zero-shot scores, got scores of {scores.protocol.task} in {folder.name}")
        return super().read(folder)


@dataclass(frozen=True, kw_only=True)
class RetrievalScores(Scores):
    """Scores of a retrieval: ``text_to_audio`` and ``audio_to_text``, each ``recall_at_K`` and ``map_at_10``."""

    metrics: dict[str, float] = field(default_factory=dict)


def predictions(scores: Artifact) -> "pd.DataFrame":
    """Return the table of a zero-shot evaluation by clip: clip_id, group, label, predicted, transductive, ..."""
    import pandas as pd

    return pd.read_parquet(scores.path / PREDICTIONS).sort_values("clip_id", ignore_index=True)
