"""The commands that each run one stage; they take and print artifact ids."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clapcur.cli.arguments import (
    CLASSES_HELP,
    Checkpoint,
    ClassFile,
    curation_from_file,
    find,
    threshold,
    training_from_file,
)
from clapcur.cli.arguments import near_duplicate as same_sound
from clapcur.cli.completion import artifacts
from clapcur.cli.console import (
    HomeOption,
    JsonOption,
    RootsOption,
    facts_table,
    interval_text,
    open_home,
    print_json,
    show,
    show_artifact,
    show_quarantine,
    working,
)
from clapcur.data.class_names import PROMPT, find_class_names, prompts
from clapcur.data.rows import GENERATED, ImprovementSetName, Row
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home

ManifestId = Annotated[
    str,
    typer.Argument(
        help="Manifest: the id printed by `ingest`.", show_default=False, autocompletion=artifacts("manifest")
    ),
]
PromptOption = Annotated[str, typer.Option("--prompt", help="Class prompt; {} is replaced by the class name.")]
CropsOption = Annotated[
    int, typer.Option("--num-crops", min=1, help="Number of crops per clip to average; 1 is the centre crop.")
]
TrainingFile = Annotated[
    Path, typer.Option("--config", help="Experiment file as for `improve`, or the fields of one training (YAML).")
]
NearOption = Annotated[
    str,
    typer.Option(
        "--near-duplicate",
        help="Cosine at or above which a clip counts as a duplicate of an evaluation clip; or calibrated, or never.",
    ),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of the training; default: from the config.")]
ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--processes", help="Number of processes that share each batch, one per GPU; default: from the config."
    ),
]


def ingest(
    source: Annotated[
        str,
        typer.Argument(
            help="CSV, TSV, JSONL or Parquet, a .txt of captions, a .tar of clips, or a folder or URL of these.",
            show_default=False,
        ),
    ],
    audio_folder: Annotated[
        Path | None, typer.Option(help="Base folder of relative paths; default: the table's folder.")
    ] = None,
    path_column: Annotated[str | None, typer.Option(help="Column of paths; default: path.")] = None,
    caption_column: Annotated[
        list[str] | None, typer.Option(help="Column of captions; default: caption; repeatable.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels; default: label.")] = None,
    fold_column: Annotated[str | None, typer.Option(help="Column of folds; default: fold.")] = None,
    recording_column: Annotated[
        str | None, typer.Option(help="Column of source recordings; default: recording_id.")
    ] = None,
    metadata: Annotated[Path | None, typer.Option(help="For a folder: a table to join by path.")] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(help="Clips to exclude: a file of clip ids, paths or recording ids, one per line."),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Treat the source as the folder of this corpus, such as esc50 or clotho.")
    ] = None,
    fold: Annotated[list[str] | None, typer.Option(help="Fold or split of the corpus; repeatable.")] = None,
    text: Annotated[
        bool,
        typer.Option(
            "--text", help="Treat the source as general text: keep sentences that describe something audible."
        ),
    ] = False,
    min_duration: Annotated[float | None, typer.Option(help="Minimum duration of a clip, in seconds.")] = None,
    max_duration: Annotated[float | None, typer.Option(help="Maximum duration of a clip, in seconds.")] = None,
    max_bad: Annotated[float, typer.Option(help="Fail if more than this fraction of rows is bad.")] = 0.1,
    root: RootsOption = None,
    role: Annotated[
        str, typer.Option(help="Purpose of the manifest, shown in MLflow: pairs, pool, captions or evaluation.")
    ] = "pool",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a manifest from a table or a folder.

    Decodes and hashes every file. Bad files are put in quarantine with a reason and do not stop the run.
    Prints the id of the manifest, to pass to other commands.
    """
    open_home(home)
    named: dict[str, Any] = {
        "path": path_column, "caption": tuple(caption_column or ()) or None, "label": label_column, "fold": fold_column,
        "recording_id": recording_column,
    }  # fmt: skip
    durations = {"min_duration_s": min_duration, "max_duration_s": max_duration}
    with working():
        from clapcur.audio import ProbeRules, addresses
        from clapcur.stages.ingest import Columns, IngestConfig, TextRules
        from clapcur.tasks.ingest import ingest as run

        config = IngestConfig(
            source=addresses.absolute(os.getcwd(), source),
            corpus=corpus,
            text=TextRules() if text else None,
            folds=tuple(fold or ()),
            audio_folder=str(audio_folder.absolute()) if audio_folder else None,
            columns=Columns(**{name: column for name, column in named.items() if column}),
            metadata=str(metadata.absolute()) if metadata else None,
            rules=ProbeRules(**{name: limit for name, limit in durations.items() if limit is not None}),
            exclude=tuple(str(path.absolute()) for path in exclude or ()),
            roots=tuple(root or IngestConfig.roots),
            max_bad_fraction=max_bad,
        )
        made = run(config, role)
    quarantine = made.record.facts.get("quarantine", {})
    if as_json:
        show_artifact(made, as_json, quarantine=quarantine)
        return
    show_artifact(made, as_json)
    show_quarantine(made)


def train_teacher(
    pairs: ManifestId,
    config: TrainingFile,
    seed: SeedOption = None,
    processes: ProcessesOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a teacher on captioned clips."""
    settings = training_from_file(config, "teacher", seed, processes=processes)
    where = open_home(home)
    inputs = {"teacher_pairs": find(where, pairs, "manifest")}
    with working():
        from clapcur.tasks.train import train

        made = train(settings, inputs, Row(strategy="teacher"))
    show_artifact(made, as_json)


def train_student(
    teacher: Annotated[
        str, typer.Option(help="Checkpoint that the student starts from.", autocompletion=artifacts("checkpoint"))
    ],
    pairs: Annotated[
        str,
        typer.Option(
            help="Manifest of the teacher's pairs, to hold out and to replay.", autocompletion=artifacts("manifest")
        ),
    ],
    config: TrainingFile,
    improvement_set: Annotated[
        str,
        typer.Option(
            "--set",
            help="Improvement-Set to train on; default: the teacher's pairs.",
            autocompletion=artifacts("improvement_set"),
        ),
    ] = "",
    pool: Annotated[
        str,
        typer.Option(
            help="Manifest of the set's clips; default: the one it was curated from.",
            autocompletion=artifacts("manifest"),
        ),
    ] = "",
    captions: Annotated[
        str, typer.Option(help="Manifest of the set's captions; default: the one it was curated from.")
    ] = "",
    replay: Annotated[
        str, typer.Option(help="Improvement-Set to replay, such as DS; default: the teacher's pairs.")
    ] = "",
    soft_labels: Annotated[
        bool, typer.Option("--soft-labels", help="Soften the targets with the teacher (Eqs. 2-5).")
    ] = False,
    seed: SeedOption = None,
    processes: ProcessesOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a student from its teacher.

    With --set, trains on an Improvement-Set and replays the teacher's pairs. Without it, trains the teacher further on
    its own pairs, which is the control that a student must beat.
    """
    settings = training_from_file(config, "student", seed, soft_labels, processes)
    where = open_home(home)
    inputs = {"init": find(where, teacher, "checkpoint"), "teacher_pairs": find(where, pairs, "manifest")}
    row = Row.parse("sl" if settings.soft_labels else "continued")
    if improvement_set:
        chosen = find(where, improvement_set, "improvement_set")
        inputs["improvement_set"] = chosen
        row = Row(strategy=chosen.record.config["strategy"], soft_labels=settings.soft_labels is not None)
        for role, given in (("pool", pool), ("captions", captions)):
            if name := given or chosen.record.inputs.get(role):
                inputs[role] = find(where, name, "manifest")
    if replay:
        inputs["replay"] = find(where, replay, "improvement_set")
    with working():
        from clapcur.tasks.train import train

        made = train(settings, inputs, row)
    show_artifact(made, as_json)


def embed(
    checkpoint: Checkpoint,
    manifest: Annotated[str, typer.Argument(help="Manifest; omit it with --classes.", show_default=False)] = "",
    what: Annotated[Literal["audio", "captions"], typer.Option(help="Embed the clips or the captions.")] = "audio",
    classes: ClassFile = None,
    prompt: PromptOption = PROMPT,
    num_crops: CropsOption = 1,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed clips, captions or class prompts.

    Takes clips or captions from a manifest, or builds prompts from class names.
    """
    if bool(manifest) == bool(classes):
        raise typer.BadParameter("give either a manifest or --classes")
    where = open_home(home)
    inputs = {"checkpoint": find(where, checkpoint, "checkpoint")}
    if manifest:
        inputs["manifest"] = find(where, manifest, "manifest")
    names = find_class_names(classes, Path.cwd()) if classes else None
    with working():
        from clapcur.stages.embed import EmbedConfig
        from clapcur.tasks.embed import embed as run

        if names:
            made = run(EmbedConfig(what="prompts", prompts=prompts(names, prompt)), inputs, "prompts")
        else:
            made = run(EmbedConfig(what=what, num_crops=num_crops if what == "audio" else 1), inputs, what)
    show_artifact(made, as_json)


def curate(
    strategy: Annotated[
        ImprovementSetName,
        typer.Option(help="Domain-unspecific (du), -specific (ds), augmented (ads), or generated captions (tagcap)."),
    ],
    checkpoint: Annotated[str, typer.Option(help="Teacher checkpoint.", autocompletion=artifacts("checkpoint"))],
    pairs: Annotated[str, typer.Option(help="Manifest of the teacher's pairs.", autocompletion=artifacts("manifest"))],
    classes: Annotated[str, typer.Option(help=CLASSES_HELP)],
    pool: Annotated[
        str,
        typer.Option(help="Manifest of audio without captions, for DU and ADS.", autocompletion=artifacts("manifest")),
    ] = "",
    captions: Annotated[str, typer.Option(help="Manifest of additional captions.")] = "",
    generated: Annotated[str, typer.Option(help="Manifest that `caption` generated for the pool, for tagcap.")] = "",
    evaluation: Annotated[
        str,
        typer.Option(
            help="Evaluation manifest; its clips and recordings are left out.", autocompletion=artifacts("manifest")
        ),
    ] = "",
    config: Annotated[
        Path | None,
        typer.Option(
            help="Experiment file as for `improve`, or the fields of one curation (YAML, see docs/config.md)."
        ),
    ] = None,
    audio_threshold: Annotated[
        str | None,
        typer.Option(help="Threshold of clip and caption: a cosine such as 0.7, count:2000 or precision:0.8."),
    ] = None,
    caption_threshold: Annotated[
        str | None, typer.Option(help="Threshold of caption and class: a cosine such as 0.7, or count:200.")
    ] = None,
    near_duplicate: Annotated[
        str | None,
        typer.Option(help="Cosine at or above which a clip duplicates an evaluation clip; or calibrated, or never."),
    ] = None,
    even_classes: Annotated[
        bool | None,
        typer.Option(help="Split a threshold by count evenly over the classes, or use one for all classes."),
    ] = None,
    exclude_pairs: Annotated[
        Path | None,
        typer.Option(help="Marks from an audition page: exclude wrong pairs, and calibrate a precision on all marks."),
    ] = None,
    max_per_clip: Annotated[int | None, typer.Option(help="Maximum number of captions per clip.")] = None,
    max_per_caption: Annotated[int | None, typer.Option(help="Maximum number of clips per caption.")] = None,
    prompt: PromptOption = PROMPT,
    num_crops: CropsOption = 1,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the pairs that a student learns from.

    Embeds everything with the checkpoint first, if that is not done yet. Leaves out pairs that the teacher's training
    held out, and clips that duplicate an evaluation clip. Options that you omit are taken from --config, or are the
    defaults of `improve`.
    """
    if strategy != "ds" and not pool:
        raise typer.BadParameter(f"{strategy} searches audio without captions: give --pool")
    if (strategy in GENERATED) != bool(generated):
        raise typer.BadParameter(
            f"--generated is the manifest of captions that were made for the pool: {', '.join(GENERATED)} need it, no "
            "other strategy has it"
        )
    names = find_class_names(classes, Path.cwd())
    from clapcur.data.marks import marks_from_file

    curation = curation_from_file(
        config, audio_threshold=threshold(audio_threshold) if audio_threshold else None,
        caption_threshold=threshold(caption_threshold) if caption_threshold else None, even_classes=even_classes,
        max_per_clip=max_per_clip, max_per_caption=max_per_caption,
        marks=marks_from_file(exclude_pairs) if exclude_pairs else None,
    )  # fmt: skip
    if near_duplicate:  # "never" is None
        curation = replace(curation, near_duplicate=same_sound(near_duplicate))
    where = open_home(home)
    teacher = find(where, checkpoint, "checkpoint")
    given = {"pairs": pairs, "pool": pool, "captions": captions, "evaluation": evaluation}
    manifests = {role: find(where, name, "manifest") for role, name in given.items() if name}
    with working():
        from clapcur.flows.steps import candidates, with_embeddings, without_search
        from clapcur.stages.curate import CurateConfig
        from clapcur.tasks.curate import curate as run

        trained = teacher.record.config
        inputs = candidates(teacher, manifests, prompts(names, prompt), num_crops)
        if generated:
            inputs = without_search(inputs) | with_embeddings(teacher, find(where, generated, "manifest"))
        made = run(
            curation.of(strategy, names, prompt, trained.get("held_out", CurateConfig.held_out)),
            inputs,
            trained.get("seed", 0),
        )
    show_artifact(made, as_json, card=str(made.path / "card.json"))


def evaluate(
    checkpoint: Checkpoint,
    evaluation: Annotated[
        str, typer.Argument(help="Manifest with labels, or with captions for --retrieval.", show_default=False)
    ],
    classes: ClassFile = None,
    retrieval: Annotated[
        bool, typer.Option("--retrieval", help="Score retrieval between captions and clips instead of classification.")
    ] = False,
    prompt: PromptOption = PROMPT,
    num_crops: CropsOption = 1,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a checkpoint: classification or retrieval.

    Both are zero-shot. The transductive score, which classifies all clips jointly, is reported separately. Missing
    embeddings are computed first.
    """
    if retrieval == bool(classes):
        raise typer.BadParameter("give either --classes or --retrieval")
    names = find_class_names(classes, Path.cwd()) if classes else ()
    where = open_home(home)
    scored = find(where, checkpoint, "checkpoint")
    manifest = find(where, evaluation, "manifest")
    with working():
        from clapcur.data.manifest import Manifest
        from clapcur.data.scores import Scores, ZeroShotScores
        from clapcur.flows.steps import evaluated
        from clapcur.stages.evaluate import EvaluateConfig, label_index

        if retrieval:
            config = EvaluateConfig(task="retrieval")
        else:
            config = EvaluateConfig(class_names=names, prompt=prompt)
            label_index(Manifest.open(manifest).clips, names)  # fails early, before anything is embedded
        record = scored.record
        seed = int(record.tags.get("seed", 0))
        made = evaluated(config, scored, manifest, num_crops, Row.of(record), seed)
    scores = Scores.open(made) if retrieval else ZeroShotScores.open(made)
    intervals = {} if retrieval else {name: getattr(scores, name) for name in ("interval", "transductive_interval")}
    protocol, known = scores.protocol.facts(), scores.contamination
    if as_json:
        first = {"interval": intervals["interval"]} if intervals else {}
        show_artifact(made, as_json, **first, protocol=protocol, contamination=asdict(known))
        return
    heard = f"{known.status}, {known.num_clips} clips" if known.num_clips else known.status
    shown = {name: interval_text(interval) for name, interval in intervals.items()}
    show_artifact(made, as_json, **shown, contamination=heard)
    show("\nunder this protocol:", facts_table(protocol))


def report(
    rows: Annotated[
        list[str],
        typer.Argument(
            help="NAME=SCORES or NAME.seedN=SCORES for each row, or the id of a report.", show_default=False
        ),
    ],
    title: Annotated[str, typer.Option(help="Title of the page.")] = "comparison",
    note: Annotated[str, typer.Option(help="Note for readers, such as a caveat about the audio.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare scores: table, plots and HTML page.

    Names are teacher, continued, sl, du, du+sl, ds, ds+sl, ads and ads+sl. Given the id of a report, shows that report
    again.
    """
    from clapcur.cli.experiments import scored_rows
    from clapcur.data.report_table import ReportTable
    from clapcur.stages.report import render

    if len(rows) == 1 and "=" not in rows[0]:
        where = open_home(home, must_exist=True)
        made = find(where, rows[0], "report")
    else:
        where = open_home(home)
        made = _make_report(where, rows, title, note)
    table = ReportTable.open(made)
    if as_json:
        said = {"home": str(where.root), "report": made.id, "verdict": table.conclusion}
        print_json(said | {"rows": scored_rows(made, where)})
        return
    show(render(table.rows))
    if not table.is_measured:
        show(table.conclusion)
    show(f"report {made.id}: {made.path / 'report.html'}")


def _make_report(home: Home, rows: list[str], title: str, note: str) -> Artifact:
    from clapcur.stages.report import ReportConfig, ReportRow

    inputs, lines = {}, []
    for text in rows:
        name, is_row, scores = text.partition("=")
        name, _, seed = name.partition(".seed")
        if not is_row or (seed and not seed.isdecimal()):
            raise typer.BadParameter(f"expected a row such as ads+sl=SCORES or ads+sl.seed1=SCORES, got {text!r}")
        try:
            row = Row.parse(name)
        except ValueError as error:
            raise typer.BadParameter(f"expected a row such as ads+sl=SCORES, got {text!r}: {error}") from None
        lines.append(ReportRow.of(row, int(seed or 0)))
        inputs[lines[-1].scores] = find(home, scores, "scores")
    with working():
        from clapcur.tasks.report import report as run

        return run(ReportConfig(title=title, rows=tuple(lines), note=note), inputs)
