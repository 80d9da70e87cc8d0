"""Listening to a set: a page with its pairs, a map of its clips, and the marks of several people."""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clapcur.cli.arguments import find
from clapcur.cli.completion import artifacts
from clapcur.cli.console import (
    HomeOption,
    JsonOption,
    columns_table,
    open_home,
    print_json,
    show,
    show_artifact,
    working,
)
from clapcur.errors import DataError
from clapcur.store.artifacts import Artifact, write_atomic

if TYPE_CHECKING:
    import pandas as pd

    from clapcur.data.marks import Merged

TEXT_COLUMNS = ("clip_id", "caption_id", "class", "caption", "path")
MOST_POINTS = 5000  # more points than that cover each other, and are slow to draw


def audition(
    improvement_set: Annotated[
        str,
        typer.Argument(
            metavar="SET",
            help="Improvement-Set: an id or its first digits.",
            show_default=False,
            autocompletion=artifacts("improvement_set"),
        ),
    ],
    num_pairs: Annotated[
        int, typer.Option(min=1, help="Number of pairs on the page, spread evenly over the classes.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draw; another seed selects other pairs.")] = 0,
    label_studio: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write the same pairs as tasks for Label Studio: a new folder."),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a page to listen to the pairs of a set.

    The page is one HTML file that needs no server. Play each clip, see its spectrogram, caption and scores, mark wrong
    pairs, and export the marks. With --label-studio, a folder has the same pairs as tasks with their audio; `clapcur
    marks` reads what Label Studio exports.
    """
    if label_studio is not None and label_studio.exists():
        raise DataError(f"{label_studio} already exists; give --label-studio a new folder")
    where = open_home(home, must_exist=True)
    source = find(where, improvement_set, "improvement_set")
    with working():
        from clapcur.stages.audition import AuditionConfig
        from clapcur.tasks.audition import audition as run

        config = AuditionConfig(num_pairs=num_pairs, seed=seed)
        made = run(config, source)
        num_tasks = _write_tasks(made, label_studio, config) if label_studio is not None else 0
    page = (made.path / "audition.html").as_uri()
    if as_json:
        show_artifact(made, as_json, page=page)
        return
    show_artifact(made, as_json)
    counts = made.record.counts
    if counts["embedded"] < counts["clips"]:
        show(
            f"{counts['embedded']:,} of {counts['clips']:,} clips can be played on the page; it gives the reason for "
            "each other clip"
        )
    show(f"open {page}")
    if label_studio is not None:
        show(
            f"{num_tasks:,} tasks for Label Studio: {label_studio / 'tasks.json'}, with its interface in config.xml "
            f"there; start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={label_studio.absolute()}"
        )


def _write_tasks(audition: Artifact, folder: Path, config: Any) -> int:
    """Write the pairs of an audition as tasks, with the excerpts that they are judged by; return how many there are."""
    import pandas as pd

    from clapcur.audio import UnusableAudio
    from clapcur.data import label_studio
    from clapcur.stages.audition.clip import as_mp3, load_excerpt

    pairs = pd.read_csv(audition.path / "pairs.csv", dtype=dict.fromkeys(TEXT_COLUMNS, "str"), keep_default_na=False)
    (folder / "audio").mkdir(parents=True)
    audio = {}
    for clip, path in dict(zip(pairs.clip_id, pairs.path, strict=True)).items():
        try:
            waveform = load_excerpt(path, config.sample_rate, config.max_seconds, clip_id=clip)
        except UnusableAudio:
            continue  # counted by the audition
        write_atomic(folder / "audio" / f"{clip}.mp3", as_mp3(waveform, config.sample_rate))
        audio[clip] = f"/data/local-files/?d=audio/{clip}.mp3"
    write_atomic(folder / "config.xml", label_studio.CONFIG)
    write_atomic(folder / "tasks.json", label_studio.tasks(pairs, audio))
    return int(pairs.clip_id.isin(list(audio)).sum())


def map_page(
    improvement_set: Annotated[
        str, typer.Argument(metavar="SET", help="Improvement-Set: an id or its first digits.", show_default=False)
    ],
    page: Annotated[Path, typer.Argument(metavar="FILE", help="HTML file to write.")] = Path("map.html"),
    num_clips: Annotated[
        int,
        typer.Option(min=2, max=MOST_POINTS, help="Maximum number of clips on the map; a sample if there are more."),
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample.")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a map of the clips that a set was chosen from.

    Each clip is a point in the space of the model, reduced to its first two principal components; click it to play it.
    Colours show the class, the similarity, or which clips were chosen. The page is one HTML file that needs no server.
    """
    where = open_home(home, must_exist=True)
    source = find(where, improvement_set, "improvement_set")
    with working():
        from clapcur.listening.map_page import as_html

        write_atomic(page.absolute(), as_html(where.store, source, num_clips, seed))
    address = page.absolute().as_uri()
    print_json({"id": source.id, "page": address}) if as_json else show(f"open {address}")


def marks(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Marks of one person each, as the audition page exports them, or JSON exports of Label Studio.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the marks of the majority, for `curate --exclude-pairs`.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare and merge the marks of several people.

    Prints how often each two people agree, Cohen's kappa (1: always, 0: as by chance) and every pair that they
    disagree on. The merged table has the mark of the majority; pairs with as many marks of one kind as of the other
    are left out.
    """
    if output is not None and output.suffix.lower() != ".csv":
        raise typer.BadParameter(f"the merged marks are CSV, so --output must end with .csv, got {output}")
    if output is not None and output.absolute().resolve() in [path.absolute().resolve() for path in files]:
        raise DataError(f"--output {output} would overwrite the marks of a person; give another file")
    with working():
        from clapcur.data.marks import merge_marks

        merged = merge_marks(_marks_by_person(files))
        agreement = _agreement(merged)
        if output is not None:
            table = merged.table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
            write_atomic(output.absolute(), table)
    kappas = [kappa for *_, kappa in agreement if not math.isnan(kappa)]
    kappa = sum(kappas) / len(kappas) if kappas else math.nan
    if as_json:
        columns = ("one", "other", "pairs", "agreement", "kappa")
        print_json(
            {
                "people": {name: _num_marks(votes) for name, votes in merged.votes.items()},
                "agreement": [dict(zip(columns, map(_or_null, line), strict=True)) for line in agreement],
                "kappa": _or_null(kappa),
                "disagreements": _spoken(merged, merged.disagreements),
                "ties": _spoken(merged, merged.ties),
                "merged": len(merged.table),
                "output": str(output) if output is not None else None,
            }
        )
        return
    people = [(name, *_num_marks(votes).values()) for name, votes in merged.votes.items()]
    show(columns_table(("person", "right", "wrong"), people, right=("right", "wrong")))
    if agreement:
        lines = [
            (one, other, f"{number:,}", _number(100 * share, 1), _number(value, 2))
            for one, other, number, share, value in agreement
        ]
        columns = ("one", "other", "both marked", "agree %", "kappa")
        show(columns_table(columns, lines, right=columns[2:]))
        if len(agreement) > 1:
            show(f"mean kappa of {len(kappas)} of {len(agreement)} pairs of people: {_number(kappa, 2)}")
    if disagreements := _spoken(merged, merged.disagreements):
        lines = [(one["caption"], one["clip"], one["right"], one["wrong"], one["merged"]) for one in disagreements]
        columns = ("they disagree on", "clip", "right", "wrong", "merged")
        show(columns_table(columns, [(*line[:2], *map(", ".join, line[2:4]), line[4]) for line in lines]))
    if output is not None:
        left_out = f"; {len(merged.ties):,} ties are left out" if len(merged.ties) else ""
        show(f"{len(merged.table):,} pairs with a majority in {output}{left_out}")


def _marks_by_person(files: Sequence[Path]) -> "dict[str, pd.DataFrame]":
    """Return the marks of each person by name: the file's name without its suffix, or Label Studio's name."""
    from clapcur.data.label_studio import read_annotations
    from clapcur.data.marks import read_marks

    if len({path.absolute().resolve() for path in files}) < len(files):
        raise DataError("a file is given twice; every person counts once")
    stems = [path.stem for path in files]
    tables: dict[str, pd.DataFrame] = {}
    for path in files:
        name = path.stem if stems.count(path.stem) == 1 else str(path)
        found = read_annotations(path) if path.suffix.lower() == ".json" else {name: read_marks(path, with_texts=True)}
        if repeated := sorted(found.keys() & tables.keys()):
            raise DataError(f"{path} has marks of {repeated[0]}, who has marks in another file, too; give one of them")
        tables |= found
    if not any(len(table) for table in tables.values()):
        raise DataError(f"nobody marked a pair in {', '.join(map(str, files))}")
    return tables


def _agreement(merged: "Merged") -> list[tuple[str, str, int, float, float]]:
    """Return for each two people: their names, the pairs that both marked, the share they agree on, and kappa."""
    from clapcur.methods.agreement import cohen_kappa

    found = []
    for one, other in combinations(merged.votes.columns, 2):
        both = merged.votes[[one, other]].dropna()
        share = float((both[one] == both[other]).mean()) if len(both) else math.nan
        found.append((one, other, len(both), share, cohen_kappa(both[one].tolist(), both[other].tolist())))
    return found


def _spoken(merged: "Merged", votes: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return pairs with who said what, and the mark that they get."""
    known = merged.about.join(merged.counts).loc[votes.index].reset_index()
    found = []
    for pair, said in zip(known.to_dict("records"), votes.to_dict("records"), strict=True):
        num_right, num_wrong = pair["num_right"], pair["num_wrong"]
        found.append(
            {
                "clip_id": pair["clip_id"], "caption_id": pair["caption_id"],
                "caption": pair["caption"] or pair["caption_id"][:12], "clip": pair["path"] or pair["clip_id"][:12],
                "right": [name for name, mark in said.items() if mark == "right"],
                "wrong": [name for name, mark in said.items() if mark == "wrong"],
                "merged": "right" if num_right > num_wrong else "wrong" if num_wrong > num_right else "left out",
            }
        )  # fmt: skip
    return found


def _num_marks(votes: "pd.Series[Any]") -> dict[str, int]:
    return {mark: int((votes == mark).sum()) for mark in ("right", "wrong")}


def _or_null(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float, places: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{places}f}"
