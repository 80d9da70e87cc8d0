"""Embed: checkpoint x manifest -> unit rows for clips or captions; or checkpoint x prompts.

Deterministic: fixed crops, evaluation mode, float32 unless the config says otherwise. The rows are written in shards
of `SHARD_ROWS`; each is marked when it is on disk, so a killed run re-does at most one.

Where an earlier table is given (the input ``previous``: same checkpoint, same config, an earlier version of the pool),
its rows are taken over and only what is new is embedded. A row depends on nothing but its clip, up to the rounding of
another batch, and the inputs of the artifact say where it came from.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from clapcur.artifacts import Artifact, Stage, Workspace
from clapcur.config import frozen, machine
from clapcur.embeddings import EmbeddingTable, read_shards, write_shard
from clapcur.manifest import Manifest
from clapcur.progress import progress

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

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if (self.what == "prompts") != bool(self.prompts):
            raise ValueError(
                f"prompts go with what='prompts' and only with it, got {self.what!r} and {len(self.prompts)} prompts"
            )
        if self.num_crops < 1:
            raise ValueError(f"num_crops must be at least 1, got {self.num_crops}")


def embed(inputs: Mapping[str, Artifact], config: EmbedConfig, work: Workspace) -> dict[str, Any]:
    """Write ``ids.parquet`` and the shards; see `clapcur.embeddings` for the payload.

    Inputs by role: ``checkpoint``, ``manifest`` (but for prompts) and, optionally, ``previous``.
    """
    table, paths = _what_to_embed(inputs, config)
    ids = table.id.tolist()
    previous = EmbeddingTable.open(inputs["previous"]) if "previous" in inputs else None
    known = set(previous.ids) if previous else set()
    new = [name for name in ids if name not in known]
    text = dict(zip(table.id, table.text, strict=True))
    made = work.scratch if previous else work.path  # with rows taken over, the shards are put together at the end
    _embed_new(inputs["checkpoint"], config, work, made, new, text, paths)
    if previous:
        rows = dict(zip(new, read_shards(made), strict=True))
        for index, shard in enumerate(_shards(ids)):
            taken_over = [name for name in shard if name in known]
            rows |= zip(taken_over, previous.select(taken_over), strict=True)
            write_shard(work.path, index, np.stack([rows.pop(name) for name in shard]))
    if not ids:
        write_shard(work.path, 0, np.zeros((0, 1), np.float32))
    table.to_parquet(work.path / "ids.parquet", index=False)
    return {"counts": {"rows": len(ids), "shards": len(_shards(ids)), "embedded": len(new)}}


def _embed_new(
    checkpoint: Artifact, config: EmbedConfig, work: Workspace, folder: Path, ids: Sequence[str],
    text: Mapping[str, str], paths: Mapping[str, Any] | None,
) -> None:  # fmt: skip
    """Embed clips (where there are paths) or texts into shards in `folder`; those marked done are left as they are."""
    from clapcur.models.clap import load_model

    shards = _shards(ids)
    todo = [index for index in range(len(shards)) if not work.is_done(f"rows-{index:05d}")]
    model = load_model(checkpoint.path, device=config.device, precision=config.precision) if todo else None
    with progress(
        f"embed {config.what}", len(ids), "rows", done=len(ids) - sum(len(shards[i]) for i in todo)
    ) as advance:
        for index in todo:
            assert model is not None
            if paths is None:
                rows = model.embed_text([text[name] for name in shards[index]], batch_size=config.batch_size)
            else:
                files = [paths[name] for name in shards[index]]
                rows = model.embed_audio(files, num_crops=config.num_crops, batch_size=config.batch_size)
            write_shard(folder, index, rows)
            work.mark_done(f"rows-{index:05d}")
            advance(len(shards[index]))


def _shards(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[start : start + SHARD_ROWS] for start in range(0, len(ids), SHARD_ROWS)]


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
