"""Tag: tagger x manifest -> tags: the classes of each clip, with probabilities.

Inputs by role: ``manifest``, and one source of classes:

- ``tagger``: YAMNet or PANNs' Cnn14 with its head (`clapcur.stages.tagger`);
- ``checkpoint`` with ``audio_embeddings`` and ``prompt_embeddings``: any CLAP, zero-shot over the prompts of
  ``class_names`` (a softmax over them, at the scale of the model);
- no input, but a table that the config names, such as AudioSet's own labels.

Probabilities of different classes are not comparable: YAMNet is confident about a dog and gives steady noise 0.05. A
clip is given a tag if its probability reaches the threshold of the class: a multiple of the class's mean over all
clips, within limits. The thresholds are part of the payload (`clapcur.data.tags`).

If an earlier table is given (the input ``previous``: same tagger, same config, an earlier version of the pool), its
probabilities are reused and only new clips are processed; means and thresholds are computed over all clips.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.audio import UnusableAudio
from clapcur.audio.throughput import Pace
from clapcur.config import canonical, frozen, machine
from clapcur.data.class_names import PROMPT, check_class_names, check_prompt
from clapcur.data.embeddings import EmbeddingTable, left_out_table
from clapcur.data.manifest import Manifest
from clapcur.data.recordings import recording_id
from clapcur.data.tables import cell_text, read_table
from clapcur.data.tags import Tags
from clapcur.errors import DataError
from clapcur.progress import progress
from clapcur.store.artifacts import Artifact, Stage, Workspace, sha256_file
from clapcur.store.record import Outcome

LEAST_PROBABILITY = 1e-30  # a probability of 0 is no tag, whatever the floor
BLOCK = 512  # clips processed between two saves; ours
KEYS = ("clip_id", "recording_id", "path")  # columns that may name the clip in a table of tags; the first one is used
LISTS = ("tags", "labels", "positive_labels", "label")  # columns that may have its tags
log = logging.getLogger("clapcur")


@frozen
class TagConfig:
    """How clips are tagged, and when a tag is given."""

    factor: float = 3.0
    """Threshold of a tag, as a multiple of its mean probability over all clips, limited by `least` and `most`."""
    least: float = 0.02
    """Minimum threshold: a tag is never given below it."""
    most: float = 0.5
    """Maximum threshold: a tag is always given at or above it."""
    floor: float = 0.001
    """Probabilities below this value are not stored and count as 0 in the means."""
    window_s: float = 10.0
    """Length of a window, in seconds; shorter clips are repeated. AudioSet's clips are 10 s long."""
    num_windows: int = 1
    """Number of windows per clip: 1 is the centre; more are spread evenly over the clip and averaged."""
    class_names: tuple[str, ...] = ()
    """For a CLAP: the classes to choose from."""
    prompt: str = PROMPT
    """For a CLAP: class prompt; {} is replaced by the class name."""
    table: str | None = None
    """A table of known tags, such as AudioSet's labels: a column `clip_id`, `recording_id` or `path`, and a column
    `tags` with names or ids of classes (separated by semicolons; ids also by commas)."""
    classes: str | None = None
    """For a table with AudioSet's ids: table of their names, with columns index, mid and display_name."""
    batch_size: int = machine(16)
    """Windows per batch."""
    device: str = machine("auto")
    """Device; auto: the first GPU, or the CPU if there is none."""
    num_workers: int = machine(0)
    """Number of threads that decode audio; 0: one per CPU."""
    max_bad_fraction: float = machine(0.01)
    """Fail if more than this fraction of the clips is missing, has changed or cannot be used."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        if not 0 <= self.floor <= self.least <= self.most <= 1:
            raise ValueError(
                f"expected 0 <= floor <= least <= most <= 1, got {self.floor:g}, {self.least:g} and {self.most:g}; "
                "percentages?"
            )
        if self.factor <= 0 or self.window_s < 1 or self.num_windows < 1:
            raise ValueError(
                f"expected factor above 0, window_s of at least 1 and num_windows of at least 1, got {self.factor:g}, "
                f"{self.window_s:g} and {self.num_windows}"
            )
        check_prompt(self.prompt)
        if self.class_names:
            check_class_names(self.class_names)

    def thresholds(self, mean_K: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the threshold of each class from its mean probability."""
        return np.clip(self.factor * mean_K, self.least, self.most)


def stage_for(config: TagConfig) -> tuple[Stage, dict[str, Any]]:
    """Return the stage, and the config that identifies its artifact: tables are identified by their content.

    Raises
    ------
    DataError
        A table is missing.
    """
    identity = canonical(config)
    for name in ("table", "classes"):
        if (given := getattr(config, name)) is not None:
            if not Path(given).is_file():
                raise DataError(f"the table {given} does not exist (`{name}` of the tags)")
            identity[name] = sha256_file(Path(given))

    def compute(inputs: Mapping[str, Artifact], _: Any, work: Workspace) -> Outcome:
        return tag(inputs, config, work)

    return Stage("tag", "1", "tags", compute), identity


def tag(inputs: Mapping[str, Artifact], config: TagConfig, work: Workspace) -> Outcome:
    """Write tags.

    Inputs by role: see `clapcur.stages.tag`.

    Raises
    ------
    DataError
        Too many clips are unusable, a table names none of the clips, or there is no source of classes.
    """
    manifest = Manifest.open(inputs["manifest"])
    if "tagger" in inputs:
        found = _heard(inputs, config, manifest, work)
    elif "checkpoint" in inputs:
        found = _zero_shot(inputs, config, manifest)
    elif config.table is not None:
        found = _from_table(config, manifest)
    else:
        raise DataError("no source of tags: give a tagger, a CLAP with class names, or a table")
    tags = Tags.of(found.names, found.tags, found.clips, config.thresholds, found.left_out)
    tags.write(work.path)
    of_class = tags.classes.clips
    counts = {
        "clips": len(found.clips), "tagged": len(tags.given(1)), "tags": int(of_class.sum()),
        "classes": int((of_class > 0).sum()),
    }  # fmt: skip
    if len(found.left_out):
        counts["left_out"] = len(found.left_out)
    return Outcome(counts=counts | found.counts)


@dataclass(frozen=True)
class Found:
    """Tags before thresholds are applied."""

    names: pd.DataFrame  # name, mid
    tags: pd.DataFrame  # clip_id, class, probability
    clips: list[str]  # ids of clips that were processed
    left_out: pd.DataFrame  # clips that were not
    counts: dict[str, int] = field(default_factory=dict)


def _heard(inputs: Mapping[str, Artifact], config: TagConfig, manifest: Manifest, work: Workspace) -> Found:
    """Run a tagger on the clips that no earlier table has, block by block."""
    from clapcur.methods.devices import device_name, pick_device
    from clapcur.models.taggers import open_tagger

    tagger, vocabulary = open_tagger(inputs["tagger"].path)
    before = Tags.open(inputs["previous"]) if "previous" in inputs else None
    known = set(before.clip_ids) if before is not None else set()
    clips, paths = manifest.clips.clip_id.tolist(), manifest.paths
    new = [name for name in clips if name not in known]
    blocks = [new[start : start + BLOCK] for start in range(0, len(new), BLOCK)]
    files = [work.scratch / f"block-{index:05d}.parquet" for index in range(len(blocks))]
    device, pace = pick_device(config.device), Pace()
    todo = [index for index in range(len(blocks)) if not work.is_done(f"block-{index:05d}")]
    with progress("tag", sum(len(blocks[index]) for index in todo), "clips") as advance:
        for index in todo:
            block = blocks[index]
            table, bad = _block(tagger.to(device), block, paths, config, pace)
            _check(bad, len(clips), config)
            table.to_parquet(files[index], index=False)
            left_out_table(bad).to_parquet(files[index].with_suffix(".left-out"), index=False)
            work.mark_done(f"block-{index:05d}")
            pace.rows += len(block)
            advance(len(block), str(pace))
    if todo:
        work.environment["device"] = device_name(device)
    left_out = pd.concat([left_out_table([]), *(pd.read_parquet(file.with_suffix(".left-out")) for file in files)])
    _check(left_out.to_numpy().tolist(), len(clips), config)
    parts = [pd.read_parquet(file) for file in files]
    if before is not None:
        parts.append(before.tags[before.tags.clip_id.isin(clips)])
    names = pd.DataFrame({"name": vocabulary.names, "mid": vocabulary.mids})
    lacking = set(left_out.id)
    heard = [name for name in clips if name not in lacking]
    return Found(names, _joined(parts), heard, left_out, {"heard": len(new) - len(left_out)})


def _block(
    tagger: Any, clips: Sequence[str], paths: Mapping[str, str], config: TagConfig, pace: Pace
) -> tuple[pd.DataFrame, list[tuple[str, str, str, str]]]:
    """Return a tagger's probabilities for some clips, and the unusable clips: id, path, reason, detail."""
    import torch

    from clapcur.models.prefetch import Window, on_device, read_ahead

    offsets = [0.5] if config.num_windows == 1 else np.linspace(0, 1, config.num_windows).tolist()
    window = Window(tagger.sample_rate, round(config.window_s * tagger.sample_rate), offsets, "repeat")
    bad: dict[str, UnusableAudio] = {}
    clips_at_a_time = max(1, config.batch_size // config.num_windows)
    files = [paths[name] for name in clips]
    batches = (files[start : start + clips_at_a_time] for start in range(0, len(files), clips_at_a_time))
    device = next(tagger.parameters()).device
    rows: list[NDArray[np.float32]] = []
    decoded = read_ahead(
        batches, window, num_workers=config.num_workers, pin=device.type == "cuda", pace=pace,
        clip_ids={paths[name]: name for name in clips}, on_bad=bad.__setitem__,
    )  # fmt: skip
    with closing(decoded):
        for crops_NCT in on_device(decoded, device):
            each = [tagger.probabilities(part_BT) for part_BT in crops_NCT.flatten(0, 1).split(config.batch_size)]
            rows.append(torch.cat(each).unflatten(0, crops_NCT.shape[:2]).mean(dim=1).float().cpu().numpy())
    probability_NK = np.concatenate(rows)
    refused = [(name, paths[name], bad[paths[name]]) for name in clips if paths[name] in bad]
    usable = np.array([paths[name] not in bad for name in clips], bool)
    table = _sparse([name for name, is_usable in zip(clips, usable, strict=True) if is_usable],
                    probability_NK[usable], config.floor)  # fmt: skip
    return table, [(name, path, error.reason, error.detail) for name, path, error in refused]


def _check(left_out: Sequence[Sequence[str]], num_clips: int, config: TagConfig) -> None:
    if len(left_out) > config.max_bad_fraction * num_clips:
        first = left_out[0]
        raise DataError(
            f"{len(left_out)} of {num_clips} clips cannot be read; the first is {first[1]}: {first[3]}. That is more "
            f"than max_bad_fraction ({config.max_bad_fraction:g}): restore the files, or ingest again"
        )


def _zero_shot(inputs: Mapping[str, Artifact], config: TagConfig, manifest: Manifest) -> Found:
    """Return the softmax over the class prompts, at the scale of the model."""
    from safetensors import safe_open

    audio, prompts = EmbeddingTable.open(inputs["audio_embeddings"]), EmbeddingTable.open(inputs["prompt_embeddings"])
    names = check_class_names(config.class_names)
    if len(prompts.ids) != len(names):
        raise DataError(
            f"expected one prompt per class name, got {len(names)} names and {len(prompts.ids)} prompts; embed the "
            "prompts of these names"
        )
    with safe_open(inputs["checkpoint"].path / "model.safetensors", "pt") as file:
        scale = float(file.get_tensor("logit_scale").exp())
    listed = set(manifest.clips.clip_id)
    kept = [index for index, name in enumerate(audio.ids) if name in listed]
    logits_NK = scale * audio.rows_ND[kept].astype(np.float64) @ prompts.rows_ND.T
    odds_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    probability_NK = (odds_NK / odds_NK.sum(axis=1, keepdims=True)).astype(np.float32)
    clips = [audio.ids[index] for index in kept]
    table = _sparse(clips, probability_NK, config.floor)
    return Found(pd.DataFrame({"name": names, "mid": ""}), table, clips, audio.left_out)


def _from_table(config: TagConfig, manifest: Manifest) -> Found:
    """Read the tags of the manifest's clips from a table, each with probability 1."""
    from clapcur.models.taggers import Vocabulary

    assert config.table is not None
    path = Path(config.table)
    header, rows = read_table(path)
    key = next((name for name in KEYS if name in header), None)
    column = next((name for name in LISTS if name in header), None)
    if key is None or column is None:
        raise DataError(
            f"{path}: a table of tags needs a column of {', '.join(KEYS)} and one of {', '.join(LISTS)}, got "
            f"{', '.join(header)}"
        )
    by_key = _clips_by(key, manifest, path)
    vocabulary = Vocabulary.read(Path(config.classes)) if config.classes else None
    display = dict(zip(vocabulary.mids, vocabulary.names, strict=True)) if vocabulary else {}
    pairs: set[tuple[str, str]] = set()
    unknown = 0
    for line, row in rows:
        where = f"{path}, line {line}"
        clips = by_key.get(_key(key, cell_text(row[key], where), path), [])
        unknown += not clips
        given = row[column]
        texts = given if isinstance(given, (list, tuple)) else _split(cell_text(given, where))
        for text in texts:
            name = display.get(str(text).strip(), str(text).strip())
            if vocabulary is not None and name not in vocabulary.names:
                raise DataError(f"{where}: {text!r} is not a class of {config.classes}")
            pairs |= {(clip, name) for clip in clips}
    if not pairs:
        raise DataError(
            f"{path} tags none of the {len(manifest.clips)} clips of the manifest ({unknown} rows name other clips); "
            f"does its column {key} match the manifest?"
        )
    if unknown:
        log.warning("%s: %d rows name clips that are not in the manifest", path, unknown)
    names = list(vocabulary.names) if vocabulary else sorted({name for _, name in pairs})
    mids = list(vocabulary.mids) if vocabulary else [""] * len(names)
    index = {name: number for number, name in enumerate(names)}
    table = pd.DataFrame(
        {
            "clip_id": [clip for clip, _ in pairs], "class": [index[name] for _, name in pairs], "probability": 1.0,
        }
    ).astype({"class": np.int32, "probability": np.float32})  # fmt: skip
    named = pd.DataFrame({"name": names, "mid": mids})
    counts = {"unknown_rows": unknown} if unknown else {}
    return Found(named, table, manifest.clips.clip_id.tolist(), left_out_table([]), counts)


def _split(text: str) -> Iterator[str]:
    """Yield the tags in a cell; AudioSet's class names have commas in them, its ids do not."""
    for part in text.split(";"):
        each = part.split(",") if part.strip().startswith(("/m/", "/t/", "/g/")) else [part]
        yield from (piece.strip() for piece in each if piece.strip())


def _key(column: str, text: str, table: Path) -> str:
    if column == "path":
        return str(table.parent.joinpath(text).resolve())
    return recording_id(text) if column == "recording_id" else text


def _clips_by(column: str, manifest: Manifest, table: Path) -> dict[str, list[str]]:
    """Return the clips by each key that a table may use for them."""
    if column == "path":
        keys = zip(manifest.locations.clip_id, manifest.locations.path, strict=True)
    else:
        keys = zip(manifest.clips.clip_id, manifest.clips[column], strict=True)
    found: dict[str, list[str]] = {}
    for clip, text in keys:
        if isinstance(text, str) and text:
            found.setdefault(_key(column, text, table), []).append(clip)
    return found


def _sparse(clips: Sequence[str], probability_NK: NDArray[np.float32], floor: float) -> pd.DataFrame:
    """Return the probabilities that reach the floor: clip_id, class, probability."""
    row, column = np.nonzero(probability_NK >= max(floor, LEAST_PROBABILITY))
    return pd.DataFrame(
        {
            "clip_id": pd.Series(np.array(clips, object)[row], dtype="str"), "class": column.astype(np.int32),
            "probability": probability_NK[row, column],
        }
    )  # fmt: skip


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    if parts:
        return pd.concat(parts, ignore_index=True)
    return _sparse([], np.zeros((0, 0), np.float32), 0.0)
