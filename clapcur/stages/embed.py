"""Embed: checkpoint x manifest -> unit rows for clips or captions; or checkpoint x prompts.

Deterministic: fixed crops, evaluation mode, float32 unless the config says otherwise. The rows are written in shards
of `SHARD_ROWS`; each is marked when it is on disk, so a killed run re-does at most one. No batch reaches over two
shards: which process or machine embeds a shard, alone or among others, changes nothing (on one kind of machine).

Where an earlier table is given (the input ``previous``: same checkpoint, same config, an earlier version of the pool),
its rows are taken over and only what is new is embedded. A row depends on nothing but its clip, up to the rounding of
another batch, and the inputs of the artifact say where it came from.

A row is that of its clip or is not there: every file is hashed as it is read, and one that has vanished, is another
clip now or cannot be used is left out. So is a row that is not finite or not of norm 1. The clips without a row are
listed in ``left_out.parquet`` and counted in the record; more of them than `max_bad_fraction` are an error. The key of
the table names a manifest and cannot know of them, so `with_left_out` looks before it is reused: where one of the clips
can be read again, another table is made, of which the first is ``previous``.
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
NO_ROW = "no_embedding"  # the reason of a clip that can be read and of which the model makes no sound row
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
        """Refuse what contradicts itself."""
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

    Inputs by role: ``checkpoint``, ``manifest`` (but for prompts) and, optionally, ``previous``.

    Raises
    ------
    DataError
        More than `max_bad_fraction` of the clips cannot be embedded; those that could are kept for the next run.
    ArtifactError
        The model makes no sound row of a text.
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
        _kept_model.cache_clear()  # here it has done its work; a worker keeps it for its next share
    paces, devices = [pace for pace, _ in shares], {device for _, device in shares}
    spent_s = time.monotonic() - started
    for leftover in work.path.glob(".rows-*.tmp"):  # of a worker that was killed
        leftover.unlink(missing_ok=True)
    left_out = _left_out(work)
    _check(left_out, len(ids), config)
    if new == ids and len(left_out):
        _set_aside(work, len(_shards(new, SHARD_ROWS)))
    if new != ids or len(left_out):
        # the shards are put together anew, of what was embedded in another order, without what has no row, and with
        # what is taken over
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


# -- what has no row


def _without_row(
    group: Sequence[str], sound: NDArray[np.bool_], paths: Mapping[str, str], bad: Mapping[str, UnusableAudio]
) -> list[tuple[str, str, str, str]]:
    """Return the clips of a shard that are left out: id, path, reason, detail."""
    found = []
    for name, is_sound in zip(group, sound, strict=True):
        path = paths[name]
        if path in bad:
            found.append((name, path, bad[path].reason, bad[path].detail))
        elif not is_sound:
            found.append((name, path, NO_ROW, "its embedding is not finite or not of norm 1"))
    return found


def _note_left_out(work: Workspace, index: int, rows: Sequence[Sequence[str]]) -> None:
    """Keep what a shard leaves out, for the process that puts the table together."""
    note = work.scratch / f"left-out-{index:05d}.json"
    if rows or note.exists():  # of a worker that was killed before it marked the shard
        write_atomic(note, json.dumps(rows))


def _left_out(work: Workspace) -> pd.DataFrame:
    """Return what all shards left out so far."""
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
    """Return in words what was left out, and the first of it by path."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in left_out.reason.value_counts().items())
    first = left_out.iloc[0]
    return f"{len(left_out)} clips have no embedding ({reasons}); the first is {first.path}: {first.detail}"


def _can_be_read(row: Any) -> bool:
    """Return whether a clip that was left out can be embedded now; one of which the model makes no row cannot."""
    if row.reason == NO_ROW:
        return False
    try:
        load_crops(row.path, 16_000, 1, [0.0], clip_id=row.id)
    except UnusableAudio:
        return False
    return True


def _retry(work: Workspace) -> None:
    """Let a run that continues make those shards again of which a left-out clip can be read now."""
    for note in work.scratch.glob("left-out-*.json"):
        index, rows = int(note.stem.rpartition("-")[2]), left_out_table(json.loads(note.read_text()))
        if not work.is_done(_mark(index)) or any(map(_can_be_read, rows.itertuples())):
            work.unmark(_mark(index))
            (work.scratch / shard_name(index)).unlink(missing_ok=True)
            note.unlink()


def _set_aside(work: Workspace, num_shards: int) -> None:
    """Move all shards into the scratch: a run that is killed while it writes them anew finds them there."""
    for index in range(num_shards):
        if not (work.scratch / shard_name(index)).exists():
            os.replace(work.path / shard_name(index), work.scratch / shard_name(index))
    for half_made in work.path.glob(shard_name("*")):
        half_made.unlink()


def with_left_out(store: Store, config: EmbedConfig, inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Add the table that lacks clips which can be read again, so that a complete one is made of it.

    Parameters
    ----------
    store : Store
    config : EmbedConfig
    inputs : mapping of str to Artifact
        By role, those of the stage.

    Returns
    -------
    dict of str to Artifact
        The inputs, with the table as ``previous`` where there is one.
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
    """Return the ids whose rows are not taken over from an earlier table, in the order in which they are embedded.

    Clips of a container are read as they are in it: at random, each cell of a Parquet file would cost its row group.
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
