"""The commands for lineage (trace, impact, pairs, why), and for repairing its views (sync, catalog rebuild)."""

import csv
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal

import typer

from clapcur.cli.completion import artifacts
from clapcur.cli.console import HomeOption, JsonOption, columns_table, facts_table, open_home, print_json, show
from clapcur.errors import ArtifactError, DataError
from clapcur.store.artifacts import Artifact, explain_difference
from clapcur.store.home import Home

SUMMARY_WIDTH = 90  # characters of text after a node of the tree
SHOWN = 20  # pairs in a table, unless --limit is given
PAIR_FIELDS = ("clip_id", "caption_id", "caption", "path", "similarity", "class", "class_similarity", "source", "role")
WRITTEN_FIELDS = ("way", "tags", "verdict", "tags_from")  # additional fields of pairs with a generated caption

Form = Literal["table", "csv", "json"]
ArtifactId = Annotated[
    str,
    typer.Argument(
        help="Artifact id, its first digits, an MLflow run id, or a model such as clapcur-esc50@champion.",
        show_default=False,
        autocompletion=artifacts(),
    ),
]


def trace(
    artifact: ArtifactId,
    with_pairs: Annotated[bool, typer.Option("--pairs", help="List the training pairs instead of the tree.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write an HTML page with a graph of the tree.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how an artifact was made.

    Shows a tree from a student down to its Improvement-Set, its teacher and the manifests; with --pairs, every pair.
    """
    if with_pairs and html:
        raise typer.BadParameter("give --pairs or --html, not both")
    from clapcur.lineage import queries as lineage

    where = open_home(home, must_exist=True)
    if with_pairs:
        form: Form = "json" if as_json else "table"
        _show_pairs(lineage.trace_pairs(where, artifact), form)
        return
    node = lineage.trace(where, artifact)
    if html is not None:
        from clapcur.lineage.graph_page import write_page

        write_page(where, node, html)
        page = html.absolute().as_uri()
        print_json({"id": node["id"], "page": page}) if as_json else show(f"open {page}")
    elif as_json:
        print_json(_tree_for_programs(node))
    else:
        show(_tree_for_people(node))


def _tree_for_programs(node: Mapping[str, Any]) -> dict[str, Any]:
    flags = {flag: True for flag in ("repeated", "lost") if node.get(flag)}
    inputs = [_tree_for_programs(below) for below in node["inputs"]]
    return {"id": node["id"], "kind": node["kind"], "role": node["role"], **flags, "inputs": inputs}


def _tree_for_people(node: Mapping[str, Any], tree: Any = None) -> Any:
    from rich.text import Text
    from rich.tree import Tree

    is_repeated = node.get("repeated") and node["kind"] != "manifest"  # a manifest has no nodes below it
    said = "(as above)" if is_repeated else shorten(node["summary"], SUMMARY_WIDTH, placeholder=" ...")
    line = Text.assemble(
        (f"{node['role']}  " if node["role"] else "", "dim"), (node["id"], "bold"),
        f"  {node.get('label') or node['kind']}  ", (said, "dim"),
    )  # fmt: skip
    branch = Tree(line, guide_style="dim") if tree is None else tree.add(line)
    for below in node["inputs"]:
        _tree_for_people(below, branch)
    return branch


def impact(
    clip: Annotated[
        str,
        typer.Argument(
            help="Clip id, its first digits, the path of an audio file, or a recording id.", show_default=False
        ),
    ],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything that one clip influenced.

    Lists every Improvement-Set that holds the clip, every checkpoint trained on it, their scores, and the registered
    models. For a recording, lists this for each clip cut from it.
    """
    from clapcur.lineage import queries as lineage

    where = open_home(home, must_exist=True)
    for name in lineage.clips_of_recording(where, clip) or [clip]:
        _show_impact(lineage.impact(where, name), as_json)


def _show_impact(found: dict[str, Any], as_json: bool) -> None:
    kinds = ("tags", "improvement_sets", "compositions", "captioners", "checkpoints", "scores", "models")
    if as_json:
        print_json({"clip_id": found["clip_id"]} | {kind: [entry["id"] for entry in found[kind]] for kind in kinds})
        return
    show(f"clip {found['clip_id']}")
    rows = [
        (kind.replace("_", " "), entry["id"], entry["label"], entry["because"])
        for kind in ("manifests", *kinds)
        for entry in found[kind]
    ]
    show(columns_table(("", "id", "made by", "because"), rows))
    if found["unread"]:
        show(f"Not checked, because their tables are missing: {', '.join(found['unread'])}; recompute them first.")


def pairs(
    artifact: Annotated[
        str,
        typer.Argument(
            help="Improvement-Set, checkpoint or manifest: an id or its first digits.",
            show_default=False,
            autocompletion=artifacts(),
        ),
    ],
    class_name: Annotated[
        str, typer.Option("--class", help="Show only pairs whose caption is nearest to this class.")
    ] = "",
    clip: Annotated[str, typer.Option(help="Show only pairs of this clip: an id or its first digits.")] = "",
    sort: Annotated[
        Literal["similarity", "class_similarity", "none"] | None,
        typer.Option(
            help="Score to sort by, best first; none: stored order, streamed. Default: similarity; none with --to.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"Maximum number of pairs; default: {SHOWN} in a table, otherwise all.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    to: Annotated[
        Literal["csv", "hf", "webdataset"] | None,
        typer.Option(
            help="Write a data set instead: a table with audio files, Parquet for Hugging Face's datasets, or tar "
            "shards. A card describes it.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="With --to: folder to create.", show_default=False)] = None,
    audio: Annotated[
        Literal["copy", "link", "none"],
        typer.Option(help="With --to csv: copy the audio files, link to them, or write only their paths."),
    ] = "copy",
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per pair.")] = False,
) -> None:
    """List or write the pairs of a set, student or manifest.

    The pairs with the highest similarity come first. A data set (--to) has the pairs with their audio, similarity,
    class, source recording and set, without clips that were taken down. `clapcur ingest` of it gives the same pairs.
    """
    from clapcur.data.class_names import readable
    from clapcur.lineage import queries as lineage

    if as_csv and as_json:
        raise typer.BadParameter("give --csv or --json, not both")
    if (to is None) != (output is None):
        raise typer.BadParameter("give --to and --output together")
    if to and as_csv:
        raise typer.BadParameter("give --to or --csv, not both")
    if audio != "copy" and to != "csv":
        raise typer.BadParameter(f"--audio {audio} applies to --to csv only")
    where = open_home(home, must_exist=True)
    rows = lineage.trace_pairs(where, artifact)
    if clip:
        rows = (row for row in rows if row["clip_id"].startswith(clip))
    if class_name:
        rows = _of_class(rows, readable(class_name))
    if (by := sort or ("none" if to else "similarity")) != "none":
        rows = _best_first(rows, by)
    if to is None or output is None:
        _show_pairs(rows, "csv" if as_csv else "json" if as_json else "table", limit)
        return
    from clapcur.lineage.shared_sets import write_shared_set

    made = write_shared_set(where, lineage.find(where, artifact), islice(rows, limit), to, output, audio)
    if as_json:
        print_json({"path": str(made.path), "format": to, **made.counts})
    else:
        show(facts_table({"wrote": made.path, "format": to} | {name: f"{n:,}" for name, n in made.counts.items()}))


def _of_class(rows: Iterable[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    found = False
    for row in rows:
        if row["class"] == name:
            found = True
            yield row
        elif row["class"] is not None:
            seen.add(row["class"])
    if not found:
        there = f"the classes of these pairs are {', '.join(sorted(seen))}" if seen else "these pairs have no classes"
        raise DataError(f"no pair is of class {name!r}; {there}")


def _best_first(rows: Iterable[dict[str, Any]], field: str) -> Iterator[dict[str, Any]]:
    """Yield the pairs by decreasing score, ties in stored order, and pairs without a score last."""
    yield from sorted(rows, key=lambda row: math.inf if row[field] is None else -row[field])


def _show_pairs(rows: Iterable[dict[str, Any]], form: Form, limit: int | None = None) -> None:
    """Print all pairs or the first `limit`; without a limit, a table for people has `SHOWN` rows."""
    rows = iter(rows)
    if form == "json":
        for row in islice(rows, limit):
            print_json({field: row[field] for field in (*PAIR_FIELDS, *WRITTEN_FIELDS) if field in row})
        return
    if form == "csv":
        first = next(rows, {})  # scored pairs come first, and generated captions are among them
        fields = (*PAIR_FIELDS, *(field for field in WRITTEN_FIELDS if field in first))
        writer = csv.DictWriter(sys.stdout, fields, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(islice(chain([first] if first else [], rows), limit))
        return
    shown = list(islice(rows, limit or SHOWN))
    is_generated = any("tags" in row for row in shown)
    lines = [
        (
            row["clip_id"][:12], row["caption"] or row["caption_id"][:12], _number(row["similarity"]),
            row["class"] or "-",
            _number(row["class_similarity"]), row["role"], row["path"] or "(not on this machine)",
            *[row.get("tags", "-")] * is_generated,
        )
        for row in shown
    ]  # fmt: skip
    columns = ["clip", "caption", "similarity", "class", "to class", "role", "file"] + ["tags"] * is_generated
    show(columns_table(columns, lines, right=("similarity", "to class")))
    rest = sum(1 for _ in rows)
    show(f"{len(shown):,} of {len(shown) + rest:,} pairs" + ("; --limit N, --json or --csv give more" if rest else ""))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def why(
    artifact: ArtifactId,
    other: Annotated[
        str,
        typer.Argument(
            help="Artifact to compare with; default: the most similar earlier one of the same stage.",
            show_default=False,
            autocompletion=artifacts(),
        ),
    ] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain why an artifact was rebuilt instead of reused.

    Compares it with another artifact and lists each difference in their keys: config, stage version and inputs.
    Follows inputs that differ down to the root cause.
    """
    from clapcur.lineage.queries import find

    where = open_home(home, must_exist=True)
    ours = find(where, artifact)
    theirs = find(where, other) if other else _nearest(where, ours)
    differences = list(_differences(where, theirs, ours, "", set()))
    if as_json:
        print_json({"id": ours.id, "other": theirs.id, "differences": differences})
        return
    show(f"{theirs.kind} {theirs.id} -> {ours.kind} {ours.id}")
    show(*(f"  {line}" for line in differences or ["no difference: both have the same key"]))


def _nearest(home: Home, ours: Artifact) -> Artifact:
    """Return the earlier artifact of the same stage with the fewest differences; of several, the latest."""
    record = ours.record
    earlier = [
        artifact
        for artifact in home.store
        if artifact.kind == ours.kind and artifact.id != ours.id
        and (other := artifact.record).stage == record.stage and other.finished <= record.finished
    ]  # fmt: skip
    if not earlier:
        raise DataError(
            f"found no earlier {ours.kind} to compare with {ours.id}; name one: clapcur why {ours.id} OTHER"
        )
    return min(reversed(earlier), key=lambda artifact: len(explain_difference(_key(artifact), _key(ours))))


def _key(artifact: Artifact) -> dict[str, Any]:
    record = artifact.record
    return {name: getattr(record, name) for name in ("stage", "version", "config", "inputs")}


def _differences(home: Home, theirs: Artifact, ours: Artifact, path: str, seen: set[tuple[str, str]]) -> Iterator[str]:
    """Yield every leaf in which two keys differ; for inputs that differ, yield their own differences."""
    one, two = _key(theirs), _key(ours)
    inputs = one.pop("inputs"), two.pop("inputs")
    if one["stage"] != two["stage"]:
        yield f"{path}stage: {one['stage']!r} -> {two['stage']!r}"
        return
    yield from (path + line for line in explain_difference(one, two))
    for role in sorted({*inputs[0], *inputs[1]}):
        before, after = inputs[0].get(role), inputs[1].get(role)
        if before == after:
            continue
        yield f"{path}{role}: {before} -> {after}"
        if before and after and (before, after) not in seen:
            seen.add((before, after))
            yield from _differences(home, home.store.find(before), home.store.find(after), f"{path}{role} > ", seen)


def sync(
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Send all records again, if MLflow lost its database.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send pending records to MLflow and update those it has.

    In a home that was moved or copied, updates every file and model URI to the new location. Exits with code 1 if
    records are still pending.
    """
    from clapcur import tracking

    where = open_home(home, must_exist=True)
    delivery = tracking.sync(where, rebuild=rebuild)
    if as_json:
        print_json({"delivered": delivery.delivered, "waiting": delivery.waiting})
    else:
        show(f"{delivery.delivered} records sent to MLflow")
    if delivery.waiting:
        raise ArtifactError(
            f"MLflow at {where.mlflow_uri} did not accept {delivery.waiting} records, see above; they are kept: "
            "fix the error and run `clapcur sync` again"
        )
    if not tracking.answers(where):
        raise ArtifactError(
            f"MLflow at {where.mlflow_uri} could not be updated, see above; fix the error and run `clapcur sync` again"
        )


def rebuild(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Rebuild the catalog.

    Reads the records in the store, which are the source of truth.
    """
    from clapcur.store.catalog import Catalog

    where = open_home(home, must_exist=True)
    count = Catalog.open(where).rebuild(where.store)
    if as_json:
        print_json({"artifacts": count})
    else:
        show(f"{count} artifacts indexed in the catalog of {where.root}")
