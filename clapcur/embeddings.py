"""Embedding tables: ids and unit rows in shards, and the checkpoint that made them.

Payload of an ``embeddings`` artifact: ``ids.parquet`` (column ``id``: clip ids, caption ids or, for class prompts,
the prompt itself; column ``text`` for captions and prompts) and ``rows-00000.npy``, ... (float32, unit norm), in the
order of the ids.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.artifacts import Artifact, write_atomic
from clapcur.errors import ArtifactError

UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class EmbeddingTable:
    """Ids and their unit rows.

    Attributes
    ----------
    ids : list of str, length N
    rows_ND : array, shape (N, D), float32
        Rows of norm 1.
    """

    ids: list[str]
    rows_ND: NDArray[np.float32]

    @classmethod
    def open(cls, artifact: Artifact) -> "EmbeddingTable":
        """Read the table of a finished artifact."""
        if artifact.kind != "embeddings":
            raise ArtifactError(f"expected embeddings, got the {artifact.kind} {artifact.id}")
        return cls(read_ids(artifact.path), read_shards(artifact.path))

    def __post_init__(self) -> None:
        """Refuse rows that are not one unit vector per id."""
        if len(self.ids) != len(self.rows_ND):
            raise ArtifactError(f"{len(self.ids)} ids for {len(self.rows_ND)} rows: the table is incomplete")
        norms = np.sqrt(np.einsum("ij,ij->i", self.rows_ND, self.rows_ND))  # a norm of numpy's squares a copy of all
        if len(norms) and not np.all(np.abs(norms - 1) < UNIT_TOLERANCE):
            worst = int(np.nanargmax(np.where(np.isfinite(norms), np.abs(norms - 1), np.inf)))
            raise ArtifactError(f"embedding rows must have norm 1, the row of {self.ids[worst]} has {norms[worst]:.4f}")

    def select(self, ids: list[str]) -> NDArray[np.float32]:
        """Return the rows of these ids, in their order, not to be written to; ArtifactError where one is missing."""
        if ids == self.ids:
            return self.rows_ND
        where = {name: index for index, name in enumerate(self.ids)}
        if missing := [name for name in ids if name not in where]:
            raise ArtifactError(f"{len(missing)} of {len(ids)} ids have no embedding, the first is {missing[0]}")
        return self.rows_ND[[where[name] for name in ids]]


def read_ids(folder: Path) -> list[str]:
    """Return the ids of a table, without its rows."""
    return pd.read_parquet(folder / "ids.parquet", columns=["id"]).id.tolist()


def read_shards(folder: Path) -> NDArray[np.float32]:
    """Return the rows of all shards in a folder, shape (N, D); (0, 0) where there are none."""
    shards = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("rows-*.npy"))]
    if not shards:
        return np.zeros((0, 0), np.float32)
    rows_ND = np.empty((sum(map(len, shards)), shards[0].shape[1]), np.float32)
    start = 0
    while shards:  # one after another, so that no more than one is in memory beside the whole
        shard_RD = shards.pop(0)
        rows_ND[start : start + len(shard_RD)] = shard_RD
        start += len(shard_RD)
    return rows_ND


def write_shard(folder: Path, index: int, rows_ND: NDArray[np.float32]) -> None:
    """Write one shard, whole or not at all; the caller marks it done."""
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(rows_ND, dtype=np.float32))
    write_atomic(folder / f"rows-{index:05d}.npy", content.getvalue())
