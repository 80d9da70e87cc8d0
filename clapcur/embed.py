"""Embed: checkpoint x manifest -> unit rows for clips or captions; or checkpoint x prompts.

Deterministic: fixed crops, evaluation mode, float32 unless the config says otherwise. The rows are written in shards
of `SHARD_ROWS`; each is marked when it is on disk, so a killed run re-does at most one. No batch reaches over two
shards: which process or machine embeds a shard, alone or among others, changes nothing (on one kind of machine).

Where an earlier table is given (the input ``previous``: same checkpoint, same config, an earlier version of the pool),
its rows are taken over and only what is new is embedded. A row depends on nothing but its clip, up to the rounding of
another batch, and the inputs of the artifact say where it came from.
"""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from clapcur.artifacts import Artifact, Key, Stage, Workspace
from clapcur.audio.addresses import container_of, reading_order
from clapcur.config import frozen, machine
from clapcur.embeddings import EmbeddingTable, read_ids, read_shards, write_shard
from clapcur.manifest import Manifest
from clapcur.pace import Pace
from clapcur.progress import progress

if TYPE_CHECKING:
    from clapcur.models.clap import Clap

SHARD_ROWS = 1024


@frozen
class EmbedConfig:
    """What is embedded, and how."""

    what: Literal["audio", "captions", "prompts"]
    # clips or captions of the manifest, or the prompts below
    prompts: tuple[str, ...] = ()
    # class prompts, in the order of the class names; only with what="prompts"
    num_crops: int = 1
    # audio: 1 is the centre crop; more are spread evenly over the clip, averaged and made unit again
    precision: Literal["float32", "bfloat16"] = "float32"
    # of the towers; the front end and the written rows are float32 always
    batch_size: int = machine(64)
    # clips or captions at a time
    device: str = machine("auto")
    # auto takes the first GPU if there is one
    num_workers: int = machine(0)
    # threads that decode; 0 is one per CPU

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if (self.what == "prompts") != bool(self.prompts):
            raise ValueError(
                f"prompts go with what='prompts' and only with it, got {self.what!r} and {len(self.prompts)} prompts"
            )
        if self.num_crops < 1:
            raise ValueError(f"num_crops must be at least 1, got {self.num_crops}")
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                f"expected batch_size of at least 1 and num_workers of 0 (one per CPU) or more, got {self.batch_size} "
                f"and {self.num_workers}"
            )


def embed(inputs: Mapping[str, Artifact], config: EmbedConfig, work: Workspace) -> dict[str, Any]:
    """Write ``ids.parquet`` and the shards; see `clapcur.embeddings` for the payload.

    Inputs by role: ``checkpoint``, ``manifest`` (but for prompts) and, optionally, ``previous``.
    """
    started = time.monotonic()
    table, paths = _what_to_embed(inputs, config)
    ids = table.id.tolist()
    new = _new(ids, inputs, paths)
    todo = [index for index in range(len(_shards(new, SHARD_ROWS))) if not work.is_done(_mark(index))]
    embed_some = partial(embed_shards, inputs, config, work.path, work.key, SHARD_ROWS)
    try:
        shares: list[tuple[Pace, str]] = work.spread(embed_some, todo) if todo else []
    finally:
        _kept_model.cache_clear()  # here it has done its work; a worker keeps it for its next share
    paces, devices = [pace for pace, _ in shares], {device for _, device in shares}
    spent_s = time.monotonic() - started
    for leftover in work.path.glob(".rows-*.tmp"):  # of a worker that was killed
        leftover.unlink(missing_ok=True)
    if new != ids:  # the shards are put together anew, of what was embedded in another order and what is taken over
        rows = dict(zip(new, read_shards(work.scratch), strict=True))
        previous = EmbeddingTable.open(inputs["previous"]) if "previous" in inputs else None
        for index, shard in enumerate(_shards(ids, SHARD_ROWS)):
            if previous is not None:
                taken_over = [name for name in shard if name not in rows]
                rows |= zip(taken_over, previous.select(taken_over), strict=True)
            write_shard(work.path, index, np.stack([rows.pop(name) for name in shard]))
    if not ids:
        write_shard(work.path, 0, np.zeros((0, 1), np.float32))
    table.to_parquet(work.path / "ids.parquet", index=False)
    if devices:
        work.environment["device"] = ", ".join(sorted(devices))
    return {
        "counts": {"rows": len(ids), "shards": len(_shards(ids, SHARD_ROWS)), "embedded": len(new)},
        "metrics": sum(paces, Pace()).metrics(spent_s),
    }


def embed_shards(
    inputs: Mapping[str, Artifact],
    config: EmbedConfig,
    folder: Path,
    key: Key,
    shard_rows: int,
    shards: Sequence[int],
) -> tuple[Pace, str]:
    """Embed some shards of an artifact that is being made: in its own process, or wherever its store is seen.

    Parameters
    ----------
    inputs, config
        As for `embed`.
    folder, key
        Of the artifact's workspace.
    shard_rows : int
        How the new rows are cut into shards, the last one aside.
    shards : sequence of int
        Which ones; those that are marked done are left as they are.

    Returns
    -------
    Pace, str
        How fast it went, and on which device.
    """
    from clapcur.devices import device_name

    work, pace = Workspace(folder, key), Pace()
    table, paths = _what_to_embed(inputs, config)
    text = dict(zip(table.id, table.text, strict=True))
    new = _new(table.id.tolist(), inputs, paths)
    made = work.path if new == table.id.tolist() else work.scratch
    all_shards = _shards(new, shard_rows)
    todo = [index for index in shards if not work.is_done(_mark(index))]
    groups = [all_shards[index] for index in todo]
    model = _kept_model(inputs["checkpoint"].path, config.device, config.precision)
    started = time.monotonic()
    if paths is not None:
        files = [[paths[name] for name in group] for group in groups]
        each = model.embed_each(files, config.num_crops, config.batch_size, config.num_workers, pace)
    else:
        each = (model.embed_text([text[name] for name in group], config.batch_size) for group in groups)
    with progress(f"embed {config.what}", sum(map(len, groups)), "rows") as advance:
        for index, group, rows in zip(todo, groups, each, strict=True):
            write_shard(made, index, rows)
            work.mark_done(_mark(index))
            pace.rows += len(group)
            pace.wall_s = time.monotonic() - started
            advance(len(group), str(pace))
    return pace, device_name(model.logit_scale.device)


@lru_cache(maxsize=1)
def _kept_model(checkpoint: Path, device: str, precision: Literal["float32", "bfloat16"]) -> "Clap":
    from clapcur.models.clap import load_model

    return load_model(checkpoint, device=device, precision=precision)


def _mark(index: int) -> str:
    return f"rows-{index:05d}"


def _new(ids: Sequence[str], inputs: Mapping[str, Artifact], paths: Mapping[str, str] | None) -> list[str]:
    """Return the ids whose rows are not taken over from an earlier table, in the order in which they are embedded.

    Clips of a container are read as they lie in it: at random, each cell of a Parquet file would cost its row group.
    """
    known = set(read_ids(inputs["previous"].path)) if "previous" in inputs else set()
    new = [name for name in ids if name not in known]
    if paths is not None and any(container_of(paths[name]) != paths[name] for name in new):
        new.sort(key=lambda name: reading_order(paths[name]))
    return new


def _shards(ids: Sequence[str], shard_rows: int) -> list[Sequence[str]]:
    return [ids[start : start + shard_rows] for start in range(0, len(ids), shard_rows)]


def _what_to_embed(
    inputs: Mapping[str, Artifact], config: EmbedConfig
) -> tuple[pd.DataFrame, Mapping[str, Any] | None]:
    """Return the table of ids and texts and, for audio, where the clips lie."""
    if config.what == "prompts":
        return pd.DataFrame({"id": config.prompts, "text": config.prompts}, dtype="str"), None
    manifest = Manifest.open(inputs["manifest"])
    if config.what == "captions":
        captions = manifest.captions
        return pd.DataFrame({"id": captions.caption_id, "text": captions.caption}), None
    return pd.DataFrame({"id": manifest.clips.clip_id, "text": ""}, dtype="str"), manifest.paths


STAGE = Stage("embed", "1", "embeddings", embed)
