"""Embed: checkpoint x manifest -> unit rows for clips or captions; or checkpoint x prompts.

The result is deterministic: fixed crops, evaluation mode, float32 unless configured otherwise. Rows are written in
shards of `SHARD_ROWS`; each shard is marked when it is on disk, so a killed run repeats at most one. No batch spans two
shards, so the result does not depend on which process or machine embeds a shard (on one kind of machine).

If an earlier table is given (the input ``previous``: same checkpoint, same config, an earlier version of the pool), its
rows are reused and only new clips are embedded. A row depends only on its clip, up to the rounding of another batch,
and the inputs of the artifact record its origin.

A row always belongs to its clip: every file is hashed when it is read, and files that are missing, changed or unusable
are left out, as are rows that are not finite or not of norm 1. Clips without a row are listed in ``left_out.parquet``
and counted in the record; more than `max_bad_fraction` of them are an error. The key of a table names the manifest and
cannot depend on these clips. Therefore `with_left_out` checks a table before it is reused: if one of the clips can be
read again, a new table is made, with the first as ``previous``.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.audio import UnusableAudio, load_crops
from clapcur.audio.addresses import container_of, reading_order
from clapcur.audio.throughput import Pace
from clapcur.config import frozen, machine
from clapcur.data.embeddings import (
    LEFT_OUT,
    EmbeddingTable,
    are_sound,
    left_out_table,
    read_ids,
    read_left_out,
    read_shards,
    shard_name,
    write_shard,
)
from clapcur.data.manifest import Manifest
from clapcur.errors import ArtifactError, DataError
from clapcur.progress import progress
from clapcur.store.artifacts import Artifact, Key, Stage, Store, Workspace, write_atomic
from clapcur.store.record import Outcome

if TYPE_CHECKING:
    from clapcur.models.clap import Clap

SHARD_ROWS = 1024
NO_ROW = "no_embedding"  # reason for a clip that can be read, but for which the model returns no valid row
log = logging.getLogger("clapcur")


@frozen
class EmbedConfig:
    """What is embedded, and how."""

    what: Literal["audio", "captions", "prompts"]
    """What to embed: the clips or captions of the manifest, or `prompts`."""
    prompts: tuple[str, ...] = ()
    """Class prompts, in the order of the class names; only for what="prompts"."""
    num_crops: int = 1
    """Number of crops per clip: 1 is the centre crop; more are spread evenly over the clip, averaged and normalised."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the towers; the front end and the stored embeddings are always float32."""
    batch_size: int = machine(64)
    """Clips or captions per batch."""
    device: str = machine("auto")
    """Device; auto: the first GPU, or the CPU if there is none."""
    num_workers: int = machine(0)
    """Number of threads that decode audio; 0: one per CPU."""
    max_bad_fraction: float = machine(0.01)
    """Fail if more than this fraction of the clips is missing, has changed or cannot be used (project default). Not
    part of the signature, because the table lists the clips without an embedding."""

    def __post_init__(self) -> None:
        """Reject contradictory or senseless values."""
        if (self.what == "prompts") != bool(self.prompts):
            raise ValueError(
                f"give prompts if and only if what='prompts', got {self.what!r} and {len(self.prompts)} prompts"
            )
        if self.num_crops < 1:
            raise ValueError(f"num_crops must be at least 1, got {self.num_crops}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must be in [0, 1], got {self.max_bad_fraction}; a percentage?")
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                f"expected batch_size of at least 1 and num_workers of 0 (one per CPU) or more, got {self.batch_size} "
                f"and {self.num_workers}"
            )


def embed(inputs: Mapping[str, Artifact], config: EmbedConfig, work: Workspace) -> Outcome:
    """Write ``ids.parquet`` and the shards; see `clapcur.data.embeddings` for the payload.

    Inputs by role: ``checkpoint``, ``manifest`` (except for prompts) and, optionally, ``previous``.

    Raises
    ------
    DataError
        More than `max_bad_fraction` of the clips cannot be embedded; finished rows are kept for the next run.
    ArtifactError
        The model returns no valid row for a text.
    """
    started = time.monotonic()
    table, paths = _what_to_embed(inputs, config)
    ids = table.id.tolist()
    new = _new(ids, inputs, paths)
    _retry(work)
    todo = [index for index in range(len(_shards(new, SHARD_ROWS))) if not work.is_done(_mark(index))]
    embed_some = partial(embed_shards, inputs, config, work.path, work.key, SHARD_ROWS)
    try:
        shares: list[tuple[Pace, str]] = work.spread(embed_some, todo) if todo else []
    finally:
        _kept_model.cache_clear()  # no longer needed here; a worker keeps it for its next share
    paces, devices = [pace for pace, _ in shares], {device for _, device in shares}
    spent_s = time.monotonic() - started
    for leftover in work.path.glob(".rows-*.tmp"):  # left by a killed worker
        leftover.unlink(missing_ok=True)
    left_out = _left_out(work)
    _check(left_out, len(ids), config)
    if new == ids and len(left_out):
        _set_aside(work, len(_shards(new, SHARD_ROWS)))
    if new != ids or len(left_out):
        # write the shards again: in the order of the ids, without missing rows, and with reused rows
        rows = dict(zip(new, read_shards(work.scratch), strict=True))
        table = table[~table.id.isin(left_out.id)]
        ids = table.id.tolist()
        previous = EmbeddingTable.open(inputs["previous"]) if "previous" in inputs else None
        for index, shard in enumerate(_shards(ids, SHARD_ROWS)):
            if previous is not None:
                taken_over = [name for name in shard if name not in rows]
                rows |= zip(taken_over, previous.select(taken_over), strict=True)
            write_shard(work.path, index, np.stack([rows.pop(name) for name in shard]))
    if not ids:
        write_shard(work.path, 0, np.zeros((0, 1), np.float32))
    table.to_parquet(work.path / "ids.parquet", index=False)
    if len(left_out):
        left_out.to_parquet(work.path / LEFT_OUT, index=False)
        log.warning("%s; they are listed in %s", _told(left_out), work.path / LEFT_OUT)
    if devices:
        work.environment["device"] = ", ".join(sorted(devices))
    counts = {"rows": len(ids), "shards": len(_shards(ids, SHARD_ROWS)), "embedded": len(new) - len(left_out)}
    if len(left_out):
        counts["left_out"] = len(left_out)
    return Outcome(counts=counts, metrics=sum(paces, Pace()).metrics(spent_s))


def embed_shards(
    inputs: Mapping[str, Artifact],
    config: EmbedConfig,
    folder: Path,
    key: Key,
    shard_rows: int,
    shards: Sequence[int],
) -> tuple[Pace, str]:
    """Embed some shards of an unfinished artifact, in its own process or in any process that sees its store.

    Parameters
    ----------
    inputs, config
        As for `embed`.
    folder, key
        Folder and key of the artifact's workspace.
    shard_rows : int
        Number of new rows per shard, except the last.
    shards : sequence of int
        Indices of the shards; those marked as done are skipped.

    Returns
    -------
    Pace, str
        Speed of the work, and the device.
    """
    from clapcur.methods.devices import device_name

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
    bad: dict[str, UnusableAudio] = {}
    if paths is not None:
        files = [[paths[name] for name in group] for group in groups]
        clip_ids = {paths[name]: name for group in groups for name in group}
        each = model.embed_each(
            files, config.num_crops, config.batch_size, config.num_workers, pace, clip_ids=clip_ids,
            on_bad=bad.__setitem__,
        )  # fmt: skip
    else:
        each = (model.embed_text([text[name] for name in group], config.batch_size) for group in groups)
    with progress(f"embed {config.what}", sum(map(len, groups)), "rows") as advance:
        for index, group, rows in zip(todo, groups, each, strict=True):
            sound = are_sound(rows)
            if paths is not None:
                _note_left_out(work, index, _without_row(group, sound, paths, bad))
                _check(_left_out(work), len(table), config)
            elif not sound.all():
                name = group[int(np.argmin(sound))]
                raise ArtifactError(
                    f"the checkpoint {inputs['checkpoint'].id} gives an embedding that is not finite or not of norm 1 "
                    f"for the text {text[name]!r} ({int((~sound).sum())} of {len(group)} texts); its weights may be "
                    "damaged"
                )
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


# -- clips without a row


def _without_row(
    group: Sequence[str], sound: NDArray[np.bool_], paths: Mapping[str, str], bad: Mapping[str, UnusableAudio]
) -> list[tuple[str, str, str, str]]:
    """Return the clips that a shard leaves out: id, path, reason, detail."""
    found = []
    for name, is_sound in zip(group, sound, strict=True):
        path = paths[name]
        if path in bad:
            found.append((name, path, bad[path].reason, bad[path].detail))
        elif not is_sound:
            found.append((name, path, NO_ROW, "its embedding is not finite or not of norm 1"))
    return found


def _note_left_out(work: Workspace, index: int, rows: Sequence[Sequence[str]]) -> None:
    """Save the clips that a shard leaves out, for the process that assembles the table."""
    note = work.scratch / f"left-out-{index:05d}.json"
    if rows or note.exists():  # a note of a worker that was killed before it marked the shard
        write_atomic(note, json.dumps(rows))


def _left_out(work: Workspace) -> pd.DataFrame:
    """Return the clips that all shards have left out so far."""
    notes = sorted(work.scratch.glob("left-out-*.json"))
    return left_out_table(row for note in notes for row in json.loads(note.read_text()))


def _check(left_out: pd.DataFrame, num_clips: int, config: EmbedConfig) -> None:
    if len(left_out) > config.max_bad_fraction * num_clips:
        raise DataError(
            f"{_told(left_out)}. That is more than max_bad_fraction ({config.max_bad_fraction:g}) of {num_clips} "
            "clips: "
            "restore the files, or ingest again"
        )


def _told(left_out: pd.DataFrame) -> str:
    """Return a sentence about the clips that were left out, with the first ones by path."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in left_out.reason.value_counts().items())
    first = left_out.iloc[0]
    return f"{len(left_out)} clips have no embedding ({reasons}); the first is {first.path}: {first.detail}"


def _can_be_read(row: Any) -> bool:
    """Return whether a clip that was left out can be embedded now; never if the model returned no valid row."""
    if row.reason == NO_ROW:
        return False
    try:
        load_crops(row.path, 16_000, 1, [0.0], clip_id=row.id)
    except UnusableAudio:
        return False
    return True


def _retry(work: Workspace) -> None:
    """Unmark shards with left-out clips that can be read now, so that a resumed run embeds them again."""
    for note in work.scratch.glob("left-out-*.json"):
        index, rows = int(note.stem.rpartition("-")[2]), left_out_table(json.loads(note.read_text()))
        if not work.is_done(_mark(index)) or any(map(_can_be_read, rows.itertuples())):
            work.unmark(_mark(index))
            (work.scratch / shard_name(index)).unlink(missing_ok=True)
            note.unlink()


def _set_aside(work: Workspace, num_shards: int) -> None:
    """Move all shards to the scratch folder, where a run that is killed while writing them again finds them."""
    for index in range(num_shards):
        if not (work.scratch / shard_name(index)).exists():
            os.replace(work.path / shard_name(index), work.scratch / shard_name(index))
    for half_made in work.path.glob(shard_name("*")):
        half_made.unlink()


def with_left_out(store: Store, config: EmbedConfig, inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Add an existing table that lacks clips which can be read again, so that a complete one is made from it.

    Parameters
    ----------
    store : Store
    config : EmbedConfig
    inputs : mapping of str to Artifact
        Inputs of the stage, by role.

    Returns
    -------
    dict of str to Artifact
        The inputs, with such a table as ``previous`` if there is one.
    """
    now = dict(inputs)
    while (made := store.get(STAGE.key(config, now))) and len(left_out := read_left_out(made.path)):
        then = {**now, "previous": made}
        if not store.get(STAGE.key(config, then)) and not any(map(_can_be_read, left_out.itertuples())):
            log.warning("%s %s: %s", made.kind, made.id, _told(left_out))
            break
        now = then
    return now


# -- shards


def _mark(index: int) -> str:
    return f"rows-{index:05d}"


def _new(ids: Sequence[str], inputs: Mapping[str, Artifact], paths: Mapping[str, str] | None) -> list[str]:
    """Return the ids whose rows are not reused from an earlier table, in the order in which they are embedded.

    Clips of a container are read in its order: in random order, each cell of a Parquet file would read a row group.
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
    """Return the table of ids and texts and, for audio, the paths of the clips."""
    if config.what == "prompts":
        return pd.DataFrame({"id": config.prompts, "text": config.prompts}, dtype="str"), None
    manifest = Manifest.open(inputs["manifest"])
    if config.what == "captions":
        captions = manifest.captions
        return pd.DataFrame({"id": captions.caption_id, "text": captions.caption}), None
    return pd.DataFrame({"id": manifest.clips.clip_id, "text": ""}, dtype="str"), manifest.paths


STAGE = Stage("embed", "1", "embeddings", embed)
