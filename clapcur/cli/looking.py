"""The commands that show artifacts and use a model: ls, show, classify."""

import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from clapcur.cli.completion import artifacts
from clapcur.cli.console import (
    HomeOption,
    JsonOption,
    age,
    columns_table,
    facts_table,
    open_home,
    print_json,
    show,
    working,
)
from clapcur.cli.tracing import ArtifactId
from clapcur.data.class_names import PROMPT, find_class_names
from clapcur.errors import ArtifactError
from clapcur.store.readable import count_name, label, shown_inputs
from clapcur.store.record import Record

SHOWN_CLASSES = 3  # per file, in the table


def ls(
    kind: Annotated[
        str,
        typer.Argument(
            help="Kind of artifact, such as checkpoint or improvement_set; default: all kinds.", show_default=False
        ),
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="Number of artifacts to show, newest first.")] = 30,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List artifacts, newest first.

    Shows the stage that made each one, its experiment, age and size.
    """
    from clapcur.lineage.collection import size_of

    store = open_home(home, must_exist=True).store
    kind = kind.replace("-", "_").replace(" ", "_")
    everything = list(store)
    kinds = sorted({artifact.kind for artifact in everything})
    if kind and kind not in kinds:
        kind = kind.removesuffix("s")
    if kind and kind not in kinds:
        raise ArtifactError(f"this home has no artifact of kind {kind!r}; it has {', '.join(kinds) or 'none'}")
    chosen = [artifact for artifact in everything if kind in ("", artifact.kind)]
    chosen.sort(key=lambda artifact: (artifact.record.finished, artifact.id), reverse=True)
    rows = [_listed(artifact.record, size_of(artifact.path)) for artifact in chosen[:limit]]
    if as_json:
        print_json(rows)
        return
    columns = ("id", "kind", "made by", "experiment", "age", "size")
    table = [
        (row["id"], row["kind"].replace("_", " "), row["label"], row["experiment"], age(row["finished"]), _size(row))
        for row in rows
    ]
    show(columns_table(columns, table, right=("age", "size")))
    if len(chosen) > limit:
        show(f"{len(chosen) - limit:,} older artifacts are not shown; use --limit {len(chosen)} to show all.")


def _listed(record: Record, num_bytes: int) -> dict[str, Any]:
    experiment = record.experiment
    return {
        "id": record.id, "kind": record.kind, "label": label(record), "experiment": experiment,
        "finished": record.finished, "bytes": num_bytes,
    }  # fmt: skip


def _size(row: dict[str, Any]) -> str:
    return f"{row['bytes'] / 2**20:,.1f} MiB"


def show_one(artifact: ArtifactId, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show one artifact.

    Shows the stage that made it, its counts and metrics, its inputs, and its folder.
    """
    from clapcur.lineage.queries import find

    found = find(open_home(home, must_exist=True), artifact)
    record = found.record
    if as_json:
        print_json(record.to_dict() | {"folder": str(found.path)})
        return
    numbers = {count_name(name): f"{value:,}" for name, value in record.counts.items()}
    numbers |= {name: f"{value:.4g}" for name, value in record.metrics.items()}
    facts: dict[str, Any] = {
        record.kind.replace("_", " "): record.id,
        "made by": f"{label(record)}, version {record.version}",
        "experiment": (record.campaign or {}).get("name", "none"),
        "age": age(record.finished),
        "took": f"{record.seconds:.1f} s",
        "folder": str(found.path),
    }
    show(facts_table(facts | numbers))
    if inputs := shown_inputs(record):
        show("\nmade from:", facts_table(inputs))


def classify(
    files: Annotated[list[Path], typer.Argument(help="Audio files or folders.", show_default=False)],
    model: Annotated[
        str,
        typer.Option(
            help="Checkpoint: an id, an alias such as clapcur-esc50@champion, or a folder.",
            autocompletion=artifacts("checkpoint"),
        ),
    ],
    classes: Annotated[str, typer.Option(help="Class names: a file with one per line, a built-in list, or a,b,c.")],
    prompt: Annotated[str, typer.Option(help="Class prompt; {} is replaced by the class name.")] = PROMPT,
    transductive: Annotated[bool, typer.Option(help="Classify all files jointly; for many files.")] = False,
    num_crops: Annotated[int, typer.Option(min=1, help="Number of windows per file to average.")] = 1,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV with the probability of every class.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Classify audio files with a model.

    Classes are given by name only. The table shows the most likely classes with their probabilities; --csv and --json
    print the probability of every class.
    """
    if as_csv and as_json:
        raise typer.BadParameter("give --csv or --json, not both")
    names = find_class_names(classes, Path.cwd()) if "," not in classes else tuple(map(str.strip, classes.split(",")))
    paths = [path for given in files for path in _audio_files(given)]
    with working():
        from clapcur.models.clap import load_model

        folder = Path(model)
        if not folder.is_dir():
            from clapcur.lineage.queries import find

            folder = find(open_home(home, must_exist=True), model, "checkpoint").path
        table = load_model(folder).classify(paths, names, prompt, transductive, num_crops)
    columns = table.columns.tolist()[4:]
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["path", "class", "similarity", *columns])
        writer.writerows(table[["path", "class", "similarity", *columns]].itertuples(index=False, name=None))
        return
    if as_json:
        for row in table.to_dict("records"):
            probabilities = {name: row[column] for name, column in zip(names, columns, strict=True)}
            print_json({name: row[name] for name in ("path", "class", "similarity")} | {"probabilities": probabilities})
        return
    shown = [(row["path"], *_likeliest(row, names, columns)) for row in table.to_dict("records")]
    show(columns_table(("", *(("likeliest", "then", "then")[: min(SHOWN_CLASSES, len(names))])), shown))


def _likeliest(row: Mapping[Any, Any], names: tuple[str, ...], columns: list[str]) -> list[str]:
    ordered = sorted(zip(names, columns, strict=True), key=lambda pair: -row[pair[1]])
    return [f"{name} {100 * row[column]:.0f} %" for name, column in ordered[:SHOWN_CLASSES]]


def _audio_files(given: Path) -> list[Path]:
    """Return the file itself, or the audio files below a folder, sorted."""
    from clapcur.errors import DataError
    from clapcur.stages.ingest.rows import AUDIO_SUFFIXES

    if not given.is_dir():
        return [given]
    found = sorted(path for path in given.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"{given} holds no audio file; supported are {', '.join(sorted(AUDIO_SUFFIXES))}")
    return found
