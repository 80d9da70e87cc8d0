"""Scores of how well a checkpoint recognises the order of sounds, from ZSTE: ``scores.json``.

``items.parquet``, beside it, contains the score of each item in each task.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from clapcur.data.scores import Contamination
from clapcur.store.artifacts import Artifact
from clapcur.store.payloads import Payload

ITEMS = "items.parquet"


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """The score of one task, from 0 to 1."""

    score: float
    interval: tuple[float, float]
    chance: float
    # of a model that knows nothing
    num_items: int


@dataclass(frozen=True, kw_only=True)
class OrderProtocol:
    """The conditions under which order was scored; scores of different protocols cannot be compared."""

    task: str
    num_groups: int
    num_classes: int
    num_recordings: int
    duration_s: float
    # of an item
    window_s: float
    # of the model's input
    prompt: str
    interval: str
    # in words
    seed: int
    # of the distractors and of the bootstrap

    def facts(self) -> dict[str, Any]:
        """Return all fields by name."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class OrderScores(Payload):
    """The scores of all tasks of `clapcur.methods.zste`, and their means."""

    KIND = "order_scores"
    FILE = "scores.json"

    tasks: dict[str, TaskScore]
    average: float
    # mean of the published tasks
    relations: float
    # mean of those published tasks that ask for the relation of two sounds
    contamination: Contamination
    protocol: OrderProtocol


def items_of(artifact: Artifact, task: str) -> pd.DataFrame:
    """Return the score of each item in one task: item_id, score, recording_a and recording_b, sorted by item."""
    items = pd.read_parquet(artifact.path / ITEMS, columns=["item_id", "task", "score", "recording_a", "recording_b"])
    return items[items.task == task].drop(columns="task").sort_values("item_id", ignore_index=True)
