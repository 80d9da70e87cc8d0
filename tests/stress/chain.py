"""The smallest real chain: a tiny synthetic corpus, tiny towers, and the commands from sounds to report.

Every training saves its state after each step, and the captions fill two shards, so that a killed command has something
to continue from.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clapcur.store.record import Record
from stress.commands import Ended, run

EXPERIMENT = """\
name: stress
pairs: pairs.csv
pool: {source: pool, metadata: pool.csv, audio_folder: .}
captions: captions.csv
evaluation: evaluation.csv
class_names: class_names.txt
audio_threshold: {count: 60}
caption_threshold: {count: 40}
max_per_clip: 3
near_duplicate: null  # to towers of next to nothing, all sounds are the same
seeds: [0]
teacher:
  num_examples: 320
  batch_size: 32
  selection: last
  num_evaluations: 0
  precision: float32
  save_every_s: 0
  num_workers: 1
  model:
    audio:
      width: tiny
      front_end: {sample_rate: 16000, n_fft: 512, hop_samples: 320, num_mels: 40, f_max: 7800}
    text: {hidden_size: 16, num_layers: 1, vocab_size: 200}
    embedding_dim: 16
    window_s: 0.7
student:
  {num_examples: 320, batch_size: 32, selection: held_out, num_evaluations: 2, precision: float32, save_every_s: 0,
   num_workers: 1}
"""
MORE_CAPTIONS = 1100  # more than a shard has rows


@dataclass(frozen=True)
class Step:
    """A command of the chain; names in braces are the ids that earlier ones printed."""

    name: str
    command: str

    @property
    def stage(self) -> str:
        """The command's own name, such as ``embed``."""
        return self.command.split()[0]

    def arguments(self, ids: Mapping[str, str]) -> list[str]:
        """Return what to type behind ``clapcur``."""
        return [*self.command.format(**ids).split(), "--json"]


STEPS = (
    Step("pairs", "ingest pairs.csv --role pairs"),
    Step("pool", "ingest pool --metadata pool.csv --audio-folder . --role pool"),
    Step("captions", "ingest captions.csv --role captions"),
    Step("evaluation", "ingest evaluation.csv --role evaluation"),
    Step("teacher", "train-teacher {pairs} --config experiment.yaml"),
    Step("pool_rows", "embed {teacher} {pool}"),
    Step("caption_rows", "embed {teacher} {captions} --what captions"),
    Step(
        "set",
        "curate --strategy ads --checkpoint {teacher} --pairs {pairs} --pool {pool} --captions {captions} "
        "--evaluation {evaluation} --classes class_names.txt --audio-threshold count:60 --caption-threshold count:40 "
        "--near-duplicate never --max-per-clip 3",
    ),
    Step(
        "student",
        "train-student --teacher {teacher} --set {set} --pairs {pairs} --pool {pool} --config experiment.yaml "
        "--soft-labels",
    ),
    Step("teacher_scores", "evaluate {teacher} {evaluation} --classes class_names.txt"),
    Step("scores", "evaluate {student} {evaluation} --classes class_names.txt"),
    Step("report", "report teacher={teacher_scores} ads+sl={scores}"),
)


def make_corpus(folder: Path) -> Path:
    """Make the sounds, the tables and ``experiment.yaml``, or find them there."""
    from clapcur.corpora.synthetic.plan import ProceduralConfig
    from clapcur.corpora.synthetic.procedural import generate

    config = ProceduralConfig(
        duration_s=1.0, teacher_clips_per_class=4, pool_clips_per_class=4, distractor_clips=30,
        evaluation_clips_per_class=3, captions_per_class=4, other_captions=20, leaked_clips=4,
    )  # fmt: skip
    if not (folder / "experiment.yaml").exists():
        generate(folder, config)
        known = (folder / "captions.csv").read_text().splitlines()[1:]
        more = [f'"{known[number % len(known)].strip(chr(34))}, take {number}"' for number in range(MORE_CAPTIONS)]
        with open(folder / "captions.csv", "a") as file:
            file.write("\n".join(more) + "\n")
        (folder / "experiment.yaml").write_text(EXPERIMENT)
    return folder


class ChainError(Exception):
    """A command of the chain failed though nobody disturbed it."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(str(ended))
        self.ended = ended


def run_chain(
    home: Path, corpus: Path, before: Callable[[Step, Mapping[str, str]], None] = lambda step, ids: None, **options: Any
) -> dict[str, str]:
    """Run the chain to its end and return the ids by step; `before` is called in front of each command."""
    ids: dict[str, str] = {}
    for step in STEPS:
        before(step, ids)
        ids[step.name] = finish(step, ids, home, corpus, **options)
    return ids


def finish(step: Step, ids: Mapping[str, str], home: Path, corpus: Path, **options: Any) -> str:
    """Run one command of the chain to its end and return the id that it prints."""
    ended = run(step.arguments(ids), home, corpus, **options)
    if ended.code:
        raise ChainError(ended)
    return str(ended.answer.get("id") or ended.answer["report"])


@dataclass(frozen=True)
class Made:
    """An artifact of the undisturbed chain, and how long its making took."""

    kind: str
    id: str
    seconds: float


@dataclass(frozen=True)
class Timing:
    """An undisturbed command: what it made, and its time before the first and behind the last artifact."""

    made: tuple[Made, ...]
    before_s: float
    after_s: float


def timed_chain(home: Path, corpus: Path) -> tuple[dict[str, str], dict[str, Timing]]:
    """Run the chain undisturbed; return the ids and the timing of each step."""
    ids: dict[str, str] = {}
    timings: dict[str, Timing] = {}
    known: set[str] = set()
    for step in STEPS:
        began = time.time()
        ids[step.name] = finish(step, ids, home, corpus)
        ended = time.time()
        records = [record for record in records_of(home) if record.id not in known]
        known |= {record.id for record in records}
        made = tuple(Made(one.kind, one.id, one.seconds) for one in records)
        first = min((one.started for one in records), default=ended)
        last = max((one.finished for one in records), default=ended)
        timings[step.name] = Timing(made, first - began, ended - last)
    return ids, timings


def records_of(home: Path) -> list[Record]:
    """Return every record of a home, in the order in which the artifacts were finished."""
    from clapcur.store.home import Home

    return [artifact.record for artifact in Home(home).store]
