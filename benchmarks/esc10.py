"""Score strategies on real sounds at small size: ESC-10, five folds, a teacher of 80 clips each.

For every evaluation fold the next fold is the teacher's (captioned from several phrasings per class) and the other
three are the pool, unlabelled; a sample of AudioCaps training captions is the unpaired text. Every clip is evaluated
once, by a model that has not met its fold: ESC-10's folds share no source recording. Nothing is tuned here; the
settings are those of ``us8k.py``.

    python benchmarks/esc10.py --output esc10.jsonl

Needs ESC-10 and AudioCaps' captions in ``../shared/data`` (or ``--data``) and the extra ``clapcur[minilm]``.
"""

import argparse
import csv
import dataclasses
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from us8k import CAPTIONS_PER_CLIP, DATA, PHRASES, base, read_manifest, write_csv

from clapcur.store.home import Home

FOLDS = ("1", "2", "3", "4", "5")
NUM_CAPTIONS = 8000
ROWS = ("teacher", "continued", "sl", "du", "du+sl", "ds", "ds+sl", "ads", "ads+sl")


def write_tables(data: Path, folder: Path, fold: str) -> dict[str, Path]:
    """Write the tables with which one fold is evaluated and return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(2023)
    clips = read_manifest(data / "esc10")
    teacher_fold = FOLDS[(FOLDS.index(fold) + 1) % len(FOLDS)]
    pairs = [
        {**clip, "caption": caption}
        for clip in clips
        if clip["fold"] == teacher_fold
        for caption in rng.sample(PHRASES[clip["label"]], CAPTIONS_PER_CLIP)
    ]
    with open(data / "captions" / "audiocaps" / "train.csv", newline="", encoding="utf-8") as file:
        captions = [{"caption": line["caption"]} for line in csv.DictReader(file)]
    where = {
        "pairs": write_csv(folder / "pairs.csv", pairs, ("path", "caption", "recording_id")),
        "pool": write_csv(
            folder / "pool.csv", [c for c in clips if c["fold"] not in (fold, teacher_fold)], ("path", "recording_id")
        ),
        "captions": write_csv(folder / "captions.csv", rng.sample(captions, NUM_CAPTIONS), ("caption",)),
        "evaluation": write_csv(
            folder / "evaluation.csv",
            [c for c in clips if c["fold"] == fold],
            ("path", "label", "recording_id", "fold"),
        ),
        "class_names": folder / "classes.txt",
    }
    where["class_names"].write_text("\n".join(sorted({clip["label"] for clip in clips})))
    return where


def main() -> None:
    """Run all folds, then print one line per row over all clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", default=",".join(ROWS), help="teacher and continued are always among them")
    parser.add_argument("--output", type=Path, help="append one JSON object per row")
    arguments = parser.parse_args()
    if not (arguments.data / "esc10").is_dir():
        sys.exit(f"ESC-10 is not at {arguments.data}/esc10; give the folder above it with --data")
    for name, value in Home.open().environment().items():
        os.environ.setdefault(name, value)
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from clapcur.data.rows import Row
    from clapcur.experiments.config import Experiment
    from clapcur.flows.compare import compare
    from clapcur.methods.metrics import bootstrap_interval, paired_change

    rows = tuple(dict.fromkeys(("teacher", "continued", *arguments.rows.split(","))))
    predictions: dict[str, list[pd.DataFrame]] = {name: [] for name in rows}
    for fold in FOLDS:
        tables = write_tables(arguments.data, Home.open().root / "esc10" / fold, fold)
        experiment: Experiment = dataclasses.replace(
            base(tables, "esc10"), rows=tuple(map(Row.parse, rows)), seeds=(arguments.seed,)
        )
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            report = compare(experiment)
        for role, scores in report.record.inputs.items():
            if role.startswith("scores."):
                path = Home.open().store.folder("scores", scores) / "predictions.parquet"
                predictions[role.split(".")[1]].append(pd.read_parquet(path))
        print(f"fold {fold}: report {report.id}", file=sys.stderr, flush=True)

    whole = {name: pd.concat(parts).sort_values("clip_id", ignore_index=True) for name, parts in predictions.items()}
    groups = whole["teacher"].group.to_numpy(str)

    def correct(name: str, column: str = "predicted") -> np.ndarray:
        return (whole[name][column] == whole[name].label).to_numpy(float)

    for name in rows:
        result = {
            "row": name,
            "clips": len(groups),
            "accuracy": correct(name).mean(),
            "interval": bootstrap_interval(correct(name), groups),
            "against_teacher": paired_change(correct("teacher"), correct(name), groups),
            "against_continued": paired_change(correct("continued"), correct(name), groups),
            "transductive": correct(name, "transductive").mean(),
            "transductive_against_teacher": paired_change(
                correct("teacher", "transductive"), correct(name, "transductive"), groups
            ),
        }
        print(json.dumps(result), flush=True)
        if arguments.output:
            with open(arguments.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
