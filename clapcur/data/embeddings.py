"""Embedding tables: ids, and rows of unit norm in shards.

Payload of an ``embeddings`` artifact: ``ids.parquet`` (column ``id``: clip ids, caption ids or, for class prompts,
the prompt itself; column ``text`` for captions and prompts) and ``rows-00000.npy``, ... (float32, unit norm), in the
order of the ids. If the table is incomplete, ``left_out.parquet`` lists the clips of the manifest that have no row
(columns ``id``, ``path``, ``reason``, ``detail``).
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.errors import ArtifactError
from clapcur.store.artifacts import Artifact, write_atomic

UNIT_TOLERANCE = 1e-3
LEFT_OUT = "left_out.parquet"


@dataclass(frozen=True)
class EmbeddingTable:
    """Ids and their embeddings.

    Attributes
    ----------
    ids : list of str, length N
    rows_ND : array, shape (N, D), float32
        Rows of norm 1.
    left_out : DataFrame
        The clips that have no row: id, path, reason, detail.
    """

    ids: list[str]
    rows_ND: NDArray[np.float32]
    left_out: pd.DataFrame = field(default_factory=lambda: left_out_table([]))

    @classmethod
    def open(cls, artifact: Artifact) -> "EmbeddingTable":
        """Read the table of a finished artifact."""
        if artifact.kind != "embeddings":
            raise ArtifactError(f"expected embeddings, got the {artifact.kind} {artifact.id}")
        return cls(read_ids(artifact.path), read_shards(artifact.path), read_left_out(artifact.path))

    def __post_init__(self) -> None:
        """Reject rows that are not one unit vector per id."""
        if len(self.ids) != len(self.rows_ND):
            raise ArtifactError(f"{len(self.ids)} ids for {len(self.rows_ND)} rows: the table is incomplete")
        if len(unsound := np.flatnonzero(~are_sound(self.rows_ND))):
            first, norm = self.ids[unsound[0]], np.linalg.norm(self.rows_ND[unsound[0]])
            raise ArtifactError(
                f"embeddings must have norm 1, but {len(unsound)} of {len(self.ids)} do not; that of {first} has norm "
                f"{norm:.4f}"
            )

    def select(self, ids: list[str]) -> NDArray[np.float32]:
        """Return the rows of these ids in their order, read-only; raise ArtifactError if an id is missing."""
        if ids == self.ids:
            return self.rows_ND
        where = {name: index for index, name in enumerate(self.ids)}
        if missing := [name for name in ids if name not in where]:
            raise ArtifactError(
                f"{len(missing)} of {len(ids)} ids have no embedding; the first is {self._named(missing[0])}"
            )
        return self.rows_ND[[where[name] for name in ids]]

    def _named(self, name: str) -> str:
        """Return an id, or the path of a clip that was left out with the reason."""
        why = self.left_out[self.left_out.id == name]
        return f"{why.path.iloc[0]}, which was left out ({why.detail.iloc[0]})" if len(why) else name


def are_sound(rows_ND: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return for each row whether it is finite and of norm 1."""
    norms_N = np.sqrt(np.einsum("ij,ij->i", rows_ND, rows_ND))  # np.linalg.norm would copy the whole table to square it
    return np.asarray(np.abs(norms_N - 1) < UNIT_TOLERANCE)  # False for NaN


def left_out_table(rows: Iterable[Sequence[str]]) -> pd.DataFrame:
    """Return a table of the clips without a row, sorted by id."""
    table = pd.DataFrame(list(rows), columns=["id", "path", "reason", "detail"], dtype="str")
    return table.sort_values("id", ignore_index=True)


def read_left_out(folder: Path) -> pd.DataFrame:
    """Return the clips without a row in the embedding table of `folder`: id, path, reason, detail."""
    path = folder / LEFT_OUT
    return pd.read_parquet(path) if path.exists() else left_out_table([])


def read_ids(folder: Path) -> list[str]:
    """Return the ids of a table, without its rows."""
    return pd.read_parquet(folder / "ids.parquet", columns=["id"]).id.tolist()


def read_shards(folder: Path) -> NDArray[np.float32]:
    """Return the rows of all shards in a folder, shape (N, D); (0, 0) if there are none."""
    shards = [np.load(path, mmap_mode="r") for path in sorted(folder.glob(shard_name("*")))]
    if not shards:
        return np.zeros((0, 0), np.float32)
    rows_ND = np.empty((sum(map(len, shards)), shards[0].shape[1]), np.float32)
    start = 0
    while shards:  # one at a time, so that memory holds at most one shard besides the result
        shard_RD = shards.pop(0)
        rows_ND[start : start + len(shard_RD)] = shard_RD
        start += len(shard_RD)
    return rows_ND


def write_shard(folder: Path, index: int, rows_ND: NDArray[np.float32]) -> None:
    """Write one shard atomically; the caller marks it as done.

    Parameters
    ----------
    folder : Path
    index : int
        Number of the shard, from 0.
    rows_ND : NDArray, shape (N, D)
        Written as float32.
    """
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(rows_ND, dtype=np.float32))
    write_atomic(folder / shard_name(index), content.getvalue())


def shard_name(index: int | str) -> str:
    """Return the file name of a shard, or for "*" the glob pattern that matches all shards."""
    return f"rows-{index:0>5}.npy" if isinstance(index, int) else f"rows-{index}.npy"
