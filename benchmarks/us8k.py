"""Score strategies on real sounds: does curation improve a weak teacher on UrbanSound8K.

Teacher pairs are ESC-10 and 15 clips per class of UrbanSound8K fold 1, captioned from several phrasings per class; the
pool is the rest of the given folds with spoken digits and long Freesound clips mixed in, unlabelled; AudioCaps
training captions are the unpaired text.

Splits keep the final score honest. On ``development`` (pool: fold 1 and half of the recordings of fold 10, evaluation:
the other half) every setting is chosen; ``final`` (pool: folds 1 and 10, evaluation: fold 2) is run with the chosen
settings, once. ``known_recordings`` (pool: fold 1, evaluation: fold 10) has the same teacher as ``development`` and a
pool in which there is hardly a recording that the teacher has not heard.

    python benchmarks/us8k.py --split development --ablation targets --seeds 0,1,2
    python benchmarks/us8k.py --split final --seeds 0,1,2
    python benchmarks/us8k.py --split development --ablation base --checkpoint some-clap/    # from a ClapModel

With ``--checkpoint`` the teacher is trained on from that model, both towers, at the same budget; with ``--as-is`` the
checkpoint is the teacher. ``--steps`` gives teacher and students another budget than the published one: a few steps
show in minutes whether a checkpoint goes the whole way.

Needs the real sounds of ``../shared/data`` (or ``--data``) and the extra ``clapcur[minilm]``.
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from clapcur.store.home import Home

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
POOL_FOLDS = {"known_recordings": ("1",), "development": ("1",), "final": ("1", "10")}
EVALUATION_FOLD = {"known_recordings": "10", "development": "10", "final": "2"}
TEACHER_CLIPS_PER_CLASS = 15
CAPTIONS_PER_CLIP = 2

PHRASES = {
    "air_conditioner": [
        "an air conditioner hums",
        "the steady hum of an air conditioner",
        "air conditioning blowing in a room",
        "a ventilation unit is running",
        "a fan of an air conditioner whirs",
    ],
    "car_horn": [
        "a car horn honks",
        "a car is honking its horn",
        "honking of a car horn in the street",
        "a driver blows the horn",
        "a vehicle beeps its horn",
    ],
    "children_playing": [
        "children are playing",
        "kids shout and play outside",
        "children laugh and play in a playground",
        "voices of playing children",
        "a group of children playing and yelling",
    ],
    "dog_bark": [
        "a dog barks",
        "a dog is barking",
        "barking of a dog",
        "a dog barks several times",
        "dogs bark outside",
    ],
    "drilling": [
        "a power drill is running",
        "someone is drilling",
        "drilling into a wall",
        "an electric drill whirs",
        "the noise of drilling",
    ],
    "engine_idling": [
        "an engine is idling",
        "a car engine idles",
        "a motor runs steadily while idling",
        "an idling vehicle engine",
        "a truck engine idles",
    ],
    "gun_shot": [
        "a gun is fired",
        "a gun shot rings out",
        "gunshots are heard",
        "someone fires a gun",
        "a loud gun shot",
    ],
    "jackhammer": [
        "a jackhammer is running",
        "a jackhammer pounds the pavement",
        "a pneumatic hammer breaks concrete",
        "jackhammer noise at a construction site",
        "hammering of a jackhammer",
    ],
    "siren": [
        "a siren wails",
        "an emergency vehicle siren",
        "a police siren is sounding",
        "sirens are blaring",
        "an ambulance passes with its siren on",
    ],
    "street_music": [
        "street musicians are playing",
        "music is played in the street",
        "a street performer plays music",
        "street music with instruments",
        "a band plays outside in the street",
    ],
    "dog": ["a dog barks", "a dog is barking", "barking of a dog", "a dog barks several times", "a small dog yaps"],
    "chainsaw": [
        "a chainsaw is running",
        "someone cuts wood with a chainsaw",
        "a chainsaw revs",
        "the buzz of a chainsaw",
    ],
    "crackling_fire": ["a fire is crackling", "crackling of a fire", "wood burns and crackles", "a campfire crackles"],
    "helicopter": [
        "a helicopter flies by",
        "a helicopter hovers",
        "the rotor of a helicopter",
        "a helicopter overhead",
    ],
    "rain": ["rain is falling", "heavy rain falls", "the sound of rain", "rain patters on a roof"],
    "crying_baby": ["a baby is crying", "an infant cries", "crying of a baby", "a baby wails"],
    "clock_tick": ["a clock is ticking", "ticking of a clock", "a clock ticks", "a watch ticks quietly"],
    "sneezing": ["a person sneezes", "someone is sneezing", "a sneeze", "a man sneezes loudly"],
    "rooster": ["a rooster crows", "crowing of a rooster", "a cock crows", "a rooster is crowing"],
    "sea_waves": [
        "waves break on the shore",
        "the sound of sea waves",
        "ocean waves roll in",
        "waves wash over a beach",
    ],
}


def write_tables(data: Path, folder: Path, split: str) -> dict[str, Path]:
    """Write the tables of one split and return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(2023)
    esc, urban = read_manifest(data / "esc10"), read_manifest(data / "urbansound8k")
    evaluation = [row for row in urban if row["fold"] == EVALUATION_FOLD[split]]
    forbidden = {row["recording_id"] for row in evaluation}
    first_fold = [row for row in urban if row["fold"] == "1"]
    rng.shuffle(first_fold)
    taken: dict[str, list[dict[str, str]]] = {}
    for row in first_fold:
        chosen = taken.setdefault(row["label"], [])
        if len(chosen) < TEACHER_CLIPS_PER_CLASS:
            chosen.append(row)
    teacher = esc + [row for label in sorted(taken) for row in taken[label]]
    teacher = [row for row in teacher if row["recording_id"] not in forbidden]
    paths = {row["path"] for row in teacher}
    pool = [row for row in urban if row["fold"] in POOL_FOLDS[split] and row["path"] not in paths]
    if split == "development":  # recordings that the teacher has not heard, as the final pool has them
        pool += [row for row in evaluation if is_even(row["recording_id"])]
        evaluation = [row for row in evaluation if not is_even(row["recording_id"])]
    pool += read_manifest(data / "fsdd") + read_manifest(data / "freesound_samples")
    pairs = [
        {**row, "caption": caption}
        for row in teacher
        for caption in rng.sample(PHRASES[row["label"]], CAPTIONS_PER_CLIP)
    ]
    with open(data / "captions" / "audiocaps" / "train.csv", newline="", encoding="utf-8") as file:
        captions = [{"caption": row["caption"]} for row in csv.DictReader(file)]
    where = {
        "pairs": write_csv(folder / "pairs.csv", pairs, ("path", "caption", "recording_id")),
        "pool": write_csv(folder / "pool.csv", pool, ("path", "recording_id")),
        "captions": write_csv(folder / "captions.csv", captions, ("caption",)),
        "evaluation": write_csv(folder / "evaluation.csv", evaluation, ("path", "label", "recording_id", "fold")),
    }
    where["class_names"] = folder / "classes.txt"
    where["class_names"].write_text("\n".join(sorted({row["label"] for row in evaluation})))
    return where


def is_even(recording_id: str) -> bool:
    """Split recordings into halves, always in the same way."""
    return hashlib.sha256(recording_id.encode()).digest()[0] % 2 == 0


def write_csv(path: Path, rows: list[dict[str, str]], columns: tuple[str, ...]) -> Path:
    """Write these columns of the rows and return the path."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_manifest(folder: Path) -> list[dict[str, str]]:
    """Read a corpus' ``manifest.csv``, with absolute paths and the Freesound recording of every clip."""
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["path"] = str(folder / row["path"])
        row["recording_id"] = f"freesound:{row['freesound_id']}" if row["freesound_id"] else ""
    return rows


def base(tables: dict[str, Path], name: str):
    """Return the experiment that every ablation changes one thing of."""
    from clapcur.data.class_names import read_class_names
    from clapcur.experiments.config import Experiment
    from clapcur.methods.thresholds import Threshold
    from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, TextConfig
    from clapcur.stages.curate import Curation
    from clapcur.stages.ingest import IngestConfig
    from clapcur.stages.train import SoftLabels, TrainConfig

    model = ClapConfig(
        audio=AudioConfig(front_end=FrontEndConfig(hop_samples=640), width="tiny", block_dropout=0.0, dropout=0.1),
        text=TextConfig(source="minilm", pooling="mean", max_tokens=64),
        embedding_dim=256, window_s=4.0, projection_dropout=0.1,
    )  # fmt: skip
    training = TrainConfig(
        num_examples=64 * 120, batch_size=64, learning_rate=1e-3, hard_target="identical", frozen_towers=("text",),
        precision="auto", held_out=0.1, num_evaluations=4,
    )  # fmt: skip
    return Experiment(
        name=name,
        pairs=IngestConfig(source=str(tables["pairs"])),
        pool=IngestConfig(source=str(tables["pool"])),
        captions=IngestConfig(source=str(tables["captions"])),
        evaluation=IngestConfig(source=str(tables["evaluation"])),
        class_names=read_class_names(tables["class_names"]),
        teacher=dataclasses.replace(training, model=model, num_examples=64 * 400, selection="last"),
        student=dataclasses.replace(training, learning_rate=5e-4, selection="last"),
        soft_labels=SoftLabels(form="cross_modal", beta=0.7, temperature=0.07),
        curation=Curation(audio_threshold=Threshold(count=2000), caption_threshold=Threshold(count=2000)),
    )  # fmt: skip


def ablations() -> dict[str, dict[str, tuple[tuple[str, ...], dict[str, object]]]]:
    """Return, per ablation, its settings: which rows are run, and what is changed."""
    from clapcur.methods.thresholds import Threshold

    ads, soft = ("ads",), ("ads+sl",)
    return {
        "grid": {"base": (("teacher", "continued", "sl", "du", "du+sl", "ds", "ds+sl", "ads", "ads+sl"), {})},
        "base": {"base": (("teacher", "continued", "ads", "ads+sl"), {})},
        "teacher": {
            f"teacher of {steps} steps": (("teacher", "continued", "ads"), {"teacher.num_examples": 64 * steps})
            for steps in (200, 400)
        },
        "chosen": {
            "cross_modal, beta 0.3": (soft, {"soft_labels.beta": 0.3}),
            "cross_modal, beta 0.7": (soft, {"soft_labels.beta": 0.7}),
            "replay 0.75": (soft, {"student.replay_probability": 0.75}),
            "1000 pairs": (soft, {"curation.audio_threshold": Threshold(count=1000)}),
            "paper, beta 0.3": (soft, {"soft_labels.form": "paper", "soft_labels.beta": 0.3}),
        },
        "targets": {"softmax, beta 0.3": (soft, {"soft_labels.form": "softmax", "soft_labels.beta": 0.3})},
        "replay": {
            "none": (ads, {"student.replay_probability": 0.0}),
            "teacher pairs, 0.75": (ads, {"student.replay_probability": 0.75}),
            "DS, 0.5": (ads, {"ads_replay": "ds"}),
        },
        "threshold": {
            f"{count} pairs": (ads, {"curation.audio_threshold": Threshold(count=count)}) for count in (500, 1000, 8000)
        },
        "rate": {
            f"learning rate {rate:g}": (("continued", "ads"), {"student.learning_rate": rate}) for rate in (2e-4, 1e-3)
        },
        "balance": {"by class": (ads, {"student.balance": "class"})},
        "even": {"one threshold for all classes": (ads, {"curation.even_classes": False})},
        "caps": {"1 per clip": (ads, {"curation.max_per_clip": 1})},
        "batch": {"batch 128": (ads, {"student.batch_size": 128})},
        "augmentation": {"2 masks": (ads, {"student.time_masks": 2, "student.frequency_masks": 2})},
        "temperature": {"temperature 0.03": (soft, {"soft_labels.temperature": 0.03})},
        "captions": {"10000 captions": (ads, {"curation.caption_threshold": Threshold(count=10000)})},
        "hard": {"diagonal": (ads, {"student.hard_target": "diagonal"})},
        "selection": {"held_out": (ads, {"student.selection": "held_out"})},
    }


def changed(experiment, changes: dict[str, object]):
    """Return the experiment with some fields replaced; a dotted name goes one level down."""
    for name, value in changes.items():
        head, _, tail = name.partition(".")
        new = dataclasses.replace(getattr(experiment, head), **{tail: value}) if tail else value
        experiment = dataclasses.replace(experiment, **{head: new})
    return experiment


def beginning_with(experiment, checkpoint: str, as_is: bool):
    """Return the experiment with a checkpoint as teacher, or as what the teacher is trained on from."""
    from clapcur.stages.adopt import AdoptConfig

    teacher = None if as_is else dataclasses.replace(experiment.teacher, model=None, frozen_towers=())
    student = dataclasses.replace(experiment.student, frozen_towers=())
    return dataclasses.replace(experiment, checkpoint=AdoptConfig(source=checkpoint), teacher=teacher, student=student)


def with_steps(experiment, steps: int):
    """Return the experiment with trainings of so many steps."""
    trainings = {name: getattr(experiment, name) for name in ("teacher", "student")}
    budgets = {
        name: dataclasses.replace(training, num_examples=training.batch_size * steps)
        for name, training in trainings.items()
        if training is not None
    }
    return dataclasses.replace(experiment, **budgets)


def run(experiment, name: str) -> Iterator[dict[str, object]]:
    """Run one ablation of an experiment through the flow that users run; yield a result per setting and row."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from clapcur.data.report_table import ReportTable
    from clapcur.data.rows import Row
    from clapcur.flows.compare import compare

    for setting, (rows, changes) in ablations()[name].items():
        wanted = tuple(dict.fromkeys(("teacher", *rows)))
        setup = changed(dataclasses.replace(experiment, rows=tuple(map(Row.parse, wanted))), changes)
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            report = compare(setup)
        for line in ReportTable.open(report).rows:
            yield {"ablation": name, "setting": setting, "report": report.id, **dataclasses.asdict(line)}


def main() -> None:
    """Run ablations and print a table a line a row; the JSON lines go to ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=sorted(EVALUATION_FOLD), default="development")
    parser.add_argument("--ablation", nargs="+", default=["grid"], help=f"of: {', '.join(ablations())}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--output", type=Path, help="append one JSON object per setting and row")
    parser.add_argument("--checkpoint", help="a file, a folder or a name on the Hub, as `clapcur adopt` takes it")
    parser.add_argument("--as-is", action="store_true", help="the checkpoint is the teacher and is not trained on")
    parser.add_argument(
        "--steps", type=int, help="of teacher and students; default: as published in docs/results/us8k-weak-teacher.md"
    )
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        sys.exit(f"the real sounds are not at {arguments.data}; give their folder with --data")
    if arguments.split == "final" and arguments.ablation != ["grid"]:
        sys.exit("the final split is scored once, with the chosen settings; ablations run on --split development")
    for name, value in Home.open().environment().items():
        os.environ.setdefault(name, value)
    tables = write_tables(arguments.data, Home.open().root / "us8k" / arguments.split, arguments.split)
    seeds = tuple(int(seed) for seed in arguments.seeds.split(","))
    experiment = dataclasses.replace(base(tables, f"us8k-{arguments.split}"), seeds=seeds)
    if arguments.checkpoint:
        experiment = beginning_with(experiment, arguments.checkpoint, arguments.as_is)
    if arguments.steps:
        experiment = with_steps(experiment, arguments.steps)
    for name in arguments.ablation:
        for result in run(experiment, name):
            print(json.dumps(result), flush=True)
            if arguments.output:
                with open(arguments.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
