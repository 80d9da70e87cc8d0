"""Pairs as a data set that others can train on: a CSV file with audio, Hugging Face's Parquet, or WebDataset's shards.

Audio files are copied byte by byte, so that a clip keeps its id (the SHA-256 of its bytes) and `clapcur ingest` of the
data set gives the same pairs. Clips that were taken down are left out.
"""

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import soundfile

from clapcur.audio.addresses import container_of, is_url, readable
from clapcur.audio.decoding import UnusableAudio, open_audio
from clapcur.audio.loading import SHA256
from clapcur.data.forgotten import forgotten_names
from clapcur.errors import DataError
from clapcur.lineage.cards import data_card
from clapcur.lineage.queries import clips_named
from clapcur.stages.ingest.rows import AUDIO_SUFFIXES
from clapcur.store.artifacts import Artifact
from clapcur.store.folders import whole_folder
from clapcur.store.home import Home
from clapcur.store.readable import folder_name

Form = Literal["csv", "hf", "webdataset"]
AudioChoice = Literal["copy", "link", "none"]

FIELDS = ("clip_id", "caption_id", "similarity", "class", "class_similarity", "recording_id", "set_id", "role")
GENERATED = ("way", "tags", "verdict", "tags_from")  # of pairs with a generated caption
NUMBERS = ("similarity", "class_similarity")
GROUP_PAIRS, GROUP_BYTES = 100, 2**26  # of a row group: reading one clip reads its whole group
SHARD_PAIRS, SHARD_BYTES = 10_000, 2**29


@dataclass
class SharedSet:
    """What was written."""

    path: Path
    pairs: int = 0
    forgotten: int = 0
    # pairs that were left out because their clip was taken down
    clip_ids: set[str] = field(default_factory=set)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of pairs, clips and forgotten pairs."""
        return {"pairs": self.pairs, "clips": len(self.clip_ids), "forgotten": self.forgotten}


def write_shared_set(
    home: Home, artifact: Artifact, rows: Iterable[Mapping[str, Any]], form: Form, folder: Path,
    audio: AudioChoice = "copy",
) -> SharedSet:  # fmt: skip
    """Write pairs as a data set with a card, README.md.

    Parameters
    ----------
    home : Home
    artifact : Artifact
        What the pairs are from.
    rows : iterable of mapping
        As `clapcur.lineage.queries.trace_pairs` yields them.
    form : {"csv", "hf", "webdataset"}
        ``pairs.csv`` and ``audio/``; ``data/train-*.parquet`` as the library datasets reads it; or ``00000.tar``, ...
    folder : Path
        New folder; it gets its name when everything is written.
    audio : {"copy", "link", "none"}
        For "csv": copy the files, link to them, or write their paths on this machine.

    Raises
    ------
    DataError
        The folder exists, there are no pairs, a pair has two sounds, or an audio file is missing or has changed.
    ValueError
        `audio` does not apply to this form.
    """
    if form != "csv" and audio != "copy":
        raise ValueError(f"audio {audio!r} is for the form 'csv' only; {form!r} holds the audio itself")
    written = SharedSet(folder)
    names = forgotten_names(home.store)
    gone = names | set(clips_named(home, names)) if names else frozenset()
    kept = _kept(rows, gone, written)
    first = next(kept, None)
    if first is None:
        left_out = f"; {written.forgotten} were left out because they were taken down" if written.forgotten else ""
        raise DataError(f"there are no pairs of {artifact.id} to write{left_out}")
    fields = (*FIELDS, *(name for name in GENERATED if name in first))  # these come first if there are any
    with whole_folder(folder) as work:
        pairs = chain([first], kept)
        if form == "csv":
            _write_csv(work, pairs, fields, audio)
        elif form == "hf":
            _write_parquet(work, pairs, fields)
        else:
            _write_shards(work, pairs, fields)
        text = data_card(home, artifact, form, written.counts, ("caption", *fields))
        (work / "README.md").write_text(text, encoding="utf-8")
    return written


def _kept(rows: Iterable[Mapping[str, Any]], gone: frozenset[str], written: SharedSet) -> Iterator[Mapping[str, Any]]:
    """Yield the pairs that may be shared, and count them."""
    for row in rows:
        if row["clip_id"] in gone:
            written.forgotten += 1
            continue
        if "group" in row:
            raise DataError(
                f"the captions of {row['source']} describe two sounds played together, which are made during training; "
                "write the pairs of the Improvement-Set instead"
            )
        if row["caption"] is None:
            raise DataError(f"the caption {row['caption_id'][:12]} is not in the manifests of {row['source']}")
        if row["path"] is None:
            raise DataError(
                f"the place of clip {row['clip_id'][:12]} is unknown on this machine; ingest its file again"
            )
        written.pairs += 1
        written.clip_ids.add(row["clip_id"])
        yield {**row, "set_id": row["source"]}


def _read(row: Mapping[str, Any]) -> bytes:
    """Return the bytes of a pair's clip; they must be those that were ingested."""
    path, clip_id = row["path"], row["clip_id"]
    with open_audio(path) as file:
        content = file.readall()
    found = hashlib.sha256(content).hexdigest()
    if SHA256.fullmatch(clip_id) and found != clip_id:
        detail = f"it was clip {clip_id[:12]} when it was ingested, but is {found[:12]} now"
        raise UnusableAudio(path, "changed", f"{detail}; restore the file, or ingest again")
    return content


def _suffix(path: str, content: bytes) -> str:
    """Return the suffix of a clip's format: that of its name or, if it has none, what its bytes are."""
    suffix = PurePosixPath(readable(path)).suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        return suffix
    try:
        return f".{soundfile.info(io.BytesIO(content)).format.lower()}"
    except soundfile.LibsndfileError as error:
        raise UnusableAudio(path, "unreadable", error.error_string) from None


def _write_csv(folder: Path, pairs: Iterable[Mapping[str, Any]], fields: tuple[str, ...], audio: AudioChoice) -> None:
    places: dict[str, str] = {}
    if audio != "none":
        (folder / "audio").mkdir()
    with open(folder / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("path", "caption", *fields), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in pairs:
            if row["clip_id"] not in places:
                places[row["clip_id"]] = row["path"] if audio == "none" else _place(folder, row, audio)
            writer.writerow({**row, "path": places[row["clip_id"]]})


def _place(folder: Path, row: Mapping[str, Any], audio: AudioChoice) -> str:
    """Put the audio of a clip into the folder; return its path there."""
    path = row["path"]
    if audio == "link" and (is_url(path) or container_of(path) != path):
        raise DataError(f"a link cannot point to {readable(path)}, which is not a file of its own; use --audio copy")
    content = _read(row)
    name = f"audio/{folder_name(row['clip_id'])}{_suffix(path, content)}"
    if audio == "link":
        (folder / name).symlink_to(Path(path).absolute())
    else:
        (folder / name).write_bytes(content)
    return name


def _write_parquet(folder: Path, pairs: Iterable[Mapping[str, Any]], fields: tuple[str, ...]) -> None:
    """Write files that the library datasets reads as they are: their metadata says that a column is audio."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {name: "float32" if name in NUMBERS else "string" for name in ("caption", *fields)}
    features = {"audio": {"_type": "Audio"}} | {name: {"dtype": kind, "_type": "Value"} for name, kind in kinds.items()}
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("audio", audio), *((name, getattr(pa, kind)()) for name, kind in kinds.items())],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    (folder / "data").mkdir()
    files: list[Path] = []
    for shard in _shards(pairs):
        files.append(folder / "data" / f"{len(files)}.parquet")
        with pq.ParquetWriter(files[-1], schema) as writer:
            group: list[dict[str, Any]] = []
            size = 0
            for row, content, suffix in shard:
                sound = {"bytes": content, "path": f"{row['clip_id']}{suffix}"}
                group.append({"audio": sound} | {name: _text(row, name) for name in kinds})
                size += len(content)
                if len(group) == GROUP_PAIRS or size >= GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(group, schema))
                    group, size = [], 0
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema))
    for index, file in enumerate(files):
        file.rename(file.with_name(f"train-{index:05d}-of-{len(files):05d}.parquet"))


def _text(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    return value if value is None or name in NUMBERS else str(value)


def _write_shards(folder: Path, pairs: Iterable[Mapping[str, Any]], fields: tuple[str, ...]) -> None:
    """Write tars in WebDataset's form: each pair is a sample of audio, ``.txt`` (the caption) and ``.json``."""
    number = 0
    for index, shard in enumerate(_shards(pairs)):
        with tarfile.open(folder / f"{index:05d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for row, content, suffix in shard:
                told = {name: row[name] for name in ("caption", *fields) if row.get(name) not in (None, "")}
                members = {
                    suffix: content, ".txt": row["caption"].encode(),
                    ".json": json.dumps(told, ensure_ascii=False, default=str).encode(),
                }  # fmt: skip
                for ending, data in members.items():
                    member = tarfile.TarInfo(f"{number:08d}{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                number += 1


def _shards(pairs: Iterable[Mapping[str, Any]]) -> Iterator[Iterator[tuple[Mapping[str, Any], bytes, str]]]:
    """Yield the pairs in shards, each pair with the bytes and the suffix of its clip; read each shard to its end."""
    waiting = iter(pairs)

    def shard(first: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], bytes, str]]:
        size, count, row = 0, 0, first
        while True:
            content = _read(row)
            yield row, content, _suffix(row["path"], content)
            size, count = size + len(content), count + 1
            if size >= SHARD_BYTES or count == SHARD_PAIRS:
                return
            following = next(waiting, None)
            if following is None:
                return
            row = following

    for first in waiting:
        yield shard(first)
