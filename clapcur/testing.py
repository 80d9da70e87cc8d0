"""Small artifacts for tests, written through the store just as the stages write them.

For testing a custom stage or strategy::

    store = Store(tmp_path)
    pool = manifest(store, "pool", clips_table(["a", "b"]))
    rows = embeddings(store, "pool rows", ["a", "b"], [[1, 0], [0, 1]])
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from numpy.typing import ArrayLike

from clapcur.data.embeddings import write_shard
from clapcur.data.improvement_set import Card
from clapcur.data.manifest import CLIPS, captions_table
from clapcur.data.report_table import ReportLine, ReportProtocol, ReportTable, SeedScores
from clapcur.data.rows import PAPER_ROWS, Row
from clapcur.data.scores import NOT_ON_RECORD, ZERO_SHOT, Contamination
from clapcur.experiments.config import CURATION_FIELDS, Experiment
from clapcur.methods.thresholds import Threshold
from clapcur.store.artifacts import LOCATIONS, Artifact, Stage, Store, Workspace, write_atomic
from clapcur.store.record import RECORD, Outcome, Record


def commit(store: Store, kind: str, name: str, write: Any, inputs: Mapping[str, Artifact] | None = None) -> Artifact:
    """Create an artifact whose payload `write(work)` writes; the same name returns the same artifact.

    Parameters
    ----------
    store : Store
    kind : str
    name : str
        The config of the artifact is ``{"name": name}``.
    write : callable
        Called with the `Workspace`; may return an `Outcome`.
    inputs : mapping of str to Artifact, optional
        By role.
    """

    def compute(inputs: Mapping[str, Artifact], config: Any, work: Workspace) -> Outcome:
        return write(work) or Outcome()

    stage = Stage("test", "1", kind, compute)
    key = stage.key({"name": name}, inputs or {})
    if found := store.get(key):
        return found
    work = store.open(key)
    return store.commit(work, stage.compute(inputs or {}, None, work), time.time())


def record(kind: str = "manifest", **said: Any) -> Record:
    """Return a record with the given values and placeholders; names that are not fields of a record become facts."""
    known = {"id": "0" * 12, "key_sha256": "0" * 64, "stage": kind, "version": "1", "config": {}, "inputs": {}}
    return Record.of({"kind": kind, **known, **said})


def rewrite_record(artifact: Artifact, **changes: Any) -> None:
    """Change values in an artifact's record; the record then has no digest, like those of older versions."""
    said = json.dumps({**artifact.record.to_dict(), **changes})
    write_atomic(artifact.path / RECORD, said)


def clips_table(clip_ids: Sequence[str], **columns: Sequence[Any]) -> pd.DataFrame:
    """Return a clips table with plausible values for the columns that are not given."""
    table = pd.DataFrame(
        {
            "clip_id": list(clip_ids), "pcm_sha256": [f"pcm-{clip}" for clip in clip_ids], "duration_s": 1.0,
            "sample_rate": 16_000, "num_channels": 1, "bytes": 32_044, "recording_id": "", "label": "", "fold": "",
        }
    )  # fmt: skip
    for name, values in columns.items():
        table[name] = list(values)
    return table[CLIPS.names]


def manifest(
    store: Store, name: str, clips: pd.DataFrame | None = None, pairs: Sequence[tuple[str, str]] = (),
    captions: Sequence[str] = (), paths: Mapping[str, Path] | None = None,
) -> Artifact:  # fmt: skip
    """Create a manifest.

    Parameters
    ----------
    store : Store
    name : str
    clips : DataFrame, optional
        As returned by `clips_table`; no clips by default.
    pairs : sequence of (str, str)
        Clip id and caption text.
    captions : sequence of str
        Captions without a clip.
    paths : mapping of str to Path, optional
        By clip id; other clips get a path that does not exist.
    """
    texts = captions_table([*captions, *(text for _, text in pairs)])
    id_of = dict(zip(texts.caption, texts.caption_id, strict=True))
    rows = [(clip, id_of[text]) for clip, text in pairs]
    clips = clips_table([]) if clips is None else clips

    def write(work: Workspace) -> None:
        clips.to_parquet(work.path / "clips.parquet", index=False)
        texts.to_parquet(work.path / "captions.parquet", index=False)
        pd.DataFrame(rows, columns=["clip_id", "caption_id"], dtype="str").to_parquet(
            work.path / "pairs.parquet", index=False
        )
        where = {clip: str((paths or {}).get(clip, f"/nowhere/{clip}.wav")) for clip in clips.clip_id}
        pd.DataFrame({"clip_id": list(where), "path": list(where.values())}, dtype="str").to_parquet(
            work.path / LOCATIONS, index=False
        )

    return commit(store, "manifest", name, write)


def embeddings(store: Store, name: str, ids: Sequence[str], rows_ND: ArrayLike) -> Artifact:
    """Create an embedding table.

    Parameters
    ----------
    store : Store
    name : str
    ids : sequence of str
    rows_ND : array_like, shape (N, D)
        The function scales them to unit norm.
    """
    given_ND = np.asarray(rows_ND, np.float64)
    unit = (given_ND / np.linalg.norm(given_ND, axis=1, keepdims=True)).astype(np.float32)

    def write(work: Workspace) -> None:
        write_shard(work.path, 0, unit)
        pd.DataFrame({"id": list(ids), "text": ""}, dtype="str").to_parquet(work.path / "ids.parquet", index=False)

    return commit(store, "embeddings", name, write)


def write_tone(path: Path, frequency_hz: float, seed: int, duration_s: float = 0.6, sample_rate: int = 16_000) -> Path:
    """Write a WAV file of a tone in noise; each seed gives a different recording.

    Parameters
    ----------
    path : Path
    frequency_hz : float
        Approximate frequency in Hz.
    seed : int
    duration_s : float
        Seconds.
    sample_rate : int
        Hz.

    Returns
    -------
    Path
        `path`.
    """
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(duration_s * sample_rate)) / sample_rate
    wave = 0.3 * np.sin(2 * np.pi * frequency_hz * (1 + 0.02 * rng.standard_normal()) * time_s)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave + 0.02 * rng.standard_normal(len(time_s)), sample_rate, subtype="PCM_16")
    return path


def write_tones(folder: Path) -> Path:
    """Write tones with captions, noises with labels, class names and an experiment with tiny towers.

    Returns the experiment file, ``tones.yaml``.
    """
    rows = ["path,caption,recording_id"]
    for index in range(16):
        kind, frequency_hz = (("low hum", 200), ("high whistle", 3000))[index % 2]
        write_tone(folder / f"pairs/{index}.wav", frequency_hz, seed=index)
        rows.append(f"pairs/{index}.wav,the sound of a {kind},recording-{index}")
    (folder / "pairs.csv").write_text("\n".join(rows))
    rows = ["path,label"]
    rng = np.random.default_rng(20230501864)
    for index in range(4):
        noise = np.cumsum(rng.standard_normal(12_000)) if index % 2 else rng.standard_normal(12_000)
        soundfile.write(folder / f"{index}.wav", 0.2 * noise / np.abs(noise).max(), 16_000)
        rows.append(f"{index}.wav,{('low_hum', 'high_whistle')[index % 2]}")
    (folder / "labelled.csv").write_text("\n".join(rows))
    (folder / "classes.txt").write_text("low hum\nhigh whistle\n")
    (folder / "tones.yaml").write_text(
        """
        pairs: pairs.csv
        evaluation: labelled.csv
        class_names: classes.txt
        audio_threshold: {similarity: 0.7}
        caption_threshold: {similarity: -1}
        max_per_clip: null
        near_duplicate: null
        rows: [{strategy: teacher}, {strategy: ds, soft_labels: true}]
        seeds: [5]
        teacher:
          num_examples: 16
          batch_size: 8
          selection: last
          num_evaluations: 0
          model:
            audio:
              width: tiny
              front_end: {sample_rate: 16000, n_fft: 512, hop_samples: 320, num_mels: 40, f_max: 7800}
            text: {hidden_size: 16, num_layers: 1, vocab_size: 100}
            embedding_dim: 16
            window_s: 0.7
        student: {num_examples: 8, batch_size: 8, selection: last, num_evaluations: 0}
        """
    )
    return folder / "tones.yaml"


def card(strategy: str = "ads", **said: Any) -> Card:
    """Return the card of an Improvement-Set; fields that are not given are empty."""
    empty: dict[str, Any] = {
        "thresholds": {}, "counts": {}, "exclusions": {}, "contamination": {}, "marked_wrong": 0, "similarity": {},
        "class_coverage": {}, "top_captions": [],
    }  # fmt: skip
    return Card(strategy=strategy, **empty | said)


def report_line(name: str, **said: Any) -> ReportLine:
    """Return the report line of a row, such as ADS+SL, with plausible values for the fields that are not given."""
    known = {row.label: row for row in (*PAPER_ROWS, *(row.post_trained for row in PAPER_ROWS))}
    row = known.get(name, Row(strategy="ads"))
    plausible: dict[str, Any] = {
        "num_seeds": 1, "accuracy": 0.5, "sd": None, "interval": (0.4, 0.6), "vs_teacher": None, "vs_continued": None,
        "transductive": 0.5, "transductive_interval": (0.4, 0.6), "transductive_vs_teacher": None,
        "contamination": Contamination(status="clean", num_clips=0, by_reason={}),
        "by_seed": [
            SeedScores(
                seed=0, accuracy=0.5, interval=(0.4, 0.6), transductive=0.5, scores="s", checkpoint="c",
                improvement_set=None, contamination=NOT_ON_RECORD,
            )
        ],
    }  # fmt: skip
    return ReportLine(
        name=name, strategy=row.strategy, soft_labels=row.soft_labels, teminal=row.teminal, **plausible | said
    )


def report_table(rows: Sequence[ReportLine]) -> ReportTable:
    """Return a report table with these lines."""
    protocol = ReportProtocol(
        task=ZERO_SHOT, crops=1, num_clips=4, num_recordings=2, prompt="{}", num_classes=2, class_names_sha256="c" * 64,
        interval="bootstrap over recordings, 95%", seed=0, budget=[640], selection=["held_out"],
    )  # fmt: skip
    return ReportTable(title="test", note="", protocol=protocol, rows=list(rows))


def changed(experiment: Experiment, **changes: Any) -> Experiment:
    """Return a copy of an experiment with changed fields; fields of its curation can be given directly."""
    of_curation = {name: changes.pop(name) for name in CURATION_FIELDS & changes.keys()}
    return replace(experiment, curation=replace(experiment.curation, **of_curation), **changes)


PAPER_RULE: dict[str, Any] = {  # the paper's curation, as fields of a `Curation`
    "audio_threshold": Threshold(similarity=0.7), "caption_threshold": Threshold(similarity=0.7),
    "even_classes": False, "max_per_clip": None,
}  # fmt: skip
