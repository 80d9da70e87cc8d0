"""Artifacts -> pages of the flow run that made them, in Prefect: tables, cards, decisions, and links to MLflow.

The key of a page names what it shows, so that Prefect's Artifacts page lists its versions. Prefect is a view: if its
server does not respond, the page is left out, and the pipeline continues.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.runtime import flow_run

from clapcur import tracking
from clapcur.data.decision import Decision
from clapcur.data.improvement_set import Card, Changes
from clapcur.data.report_table import ReportTable
from clapcur.data.scores import Scores
from clapcur.stages.report.html import cell_text
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home
from clapcur.store.readable import in_words, label
from clapcur.store.record import Record

_shown: set[tuple[str, str]] = set()  # flow run and artifact
log = logging.getLogger("clapcur")


def show(made: Artifact) -> Artifact:
    """Show an artifact on the page of the current flow run, once, and return it.

    Nothing is shown outside a flow run, or in a dry run.
    """
    run, home = flow_run.id, Home.open()
    if run is None or not made.is_made or (run, made.id) in _shown:
        return made
    _shown.add((run, made.id))
    page = {
        "report": report_page, "improvement_set": card_page, "scores": scores_page, "decision": decision_page
    }.get(made.kind, facts_page)  # fmt: skip
    name, text, link = key(made.record), page(made, home), models_link(made.record, home)
    try:
        create_markdown_artifact(text, key=name, description=headline(made))
        if made.kind == "report" and link:
            about = f"MLflow's table of all models of {made.record.experiment}, best first"
            create_link_artifact(link, "all models by accuracy", key=f"{name}-mlflow", description=about)
    except Exception as error:  # no error of Prefect may stop the pipeline; the artifact is in the store
        log.warning("%s %s has no page in Prefect: %s", made.kind, made.id, tracking.one_line(error))
    return made


def headline(made: Artifact) -> str:
    """Return an artifact in one sentence: a verdict, a decision, or what it has."""
    record = made.record
    if made.kind == "decision":
        decided = Decision.open(made)
        return f"{'Promoted' if decided.promoted else 'Not promoted'}: {decided.why}"
    counts = ", ".join(in_words(name, count) for name, count in list(record.counts.items())[:2])
    return str(record.facts.get("verdict") or (f"{title(record)}: {counts}" if counts else title(record)))


def models_link(record: Record, home: Home) -> str | None:
    """Return the URL of MLflow's table of all models of an experiment; None without a server."""
    return tracking.result_pages(home).get(record.experiment)


def report_page(report: Artifact, home: Home) -> str:
    """Return the table of a report, with links to its checkpoints."""
    rows = [
        (line.name, seed.seed, f"`{seed.checkpoint}`", linked(seed.checkpoint, home))
        for line, seed in ReportTable.open(report).seeds
    ]
    checkpoints = table(("row", "seed", "checkpoint", "MLflow"), rows)
    shown = (report.path / "table.md").read_text()
    link = models_link(report.record, home)
    where = f"\n[All models by accuracy in MLflow]({link})\n" if link else ""
    return f"{shown}{where}\n{checkpoints}\nFull report: `{report.path / 'report.html'}`\n"


def card_page(improvement_set: Artifact, home: Home) -> str:
    """Return the card of an Improvement-Set."""
    card = Card.open(improvement_set)
    thresholds = [(name, f"{value:.4f}") for name, value in card.thresholds.items()]
    counts = [(name.replace("_", " "), f"{count:,}") for name, count in card.counts.items()]
    out = [(name.replace("_", " "), f"{count:,}") for name, count in card.exclusions.items()]
    classes = [(name, f"{n['pairs']:,}", f"{n['clips']:,}") for name, n in card.class_coverage.items()]
    captions = [(top.caption, f"{top.pairs:,}") for top in card.top_captions]
    return "\n".join(
        (
            f"# Improvement-Set {improvement_set.id}: {card.strategy.upper()}\n",
            table(("", "count"), counts),
            changes_text(card.changes) if card.changes else "",
            table(("threshold", "cosine"), thresholds) if thresholds else "",
            table(("kept out", "count"), out) if out else "",
            table(("class", "pairs", "clips"), classes) if classes else "",
            table(("caption", "pairs"), captions),
            f"MLflow: {linked(improvement_set.id, home)}; all pairs: `clapcur pairs {improvement_set.id}`\n",
        )
    )


def changes_text(changes: Changes) -> str:
    """Return what changed since the set of an earlier version of the pool."""
    rows = [
        ("pairs", f"{changes.added:,}", f"{changes.removed:,}", f"{changes.kept:,}"),
        ("clips", f"{changes.clips_added:,}", f"{changes.clips_removed:,}", ""),
    ]
    classes = [
        (name, f"{n['before']:,}", f"{n['after']:,}")
        for name, n in changes.pairs_per_class.items()
        if n["before"] != n["after"]
    ]
    told = f"Compared with its predecessor `{changes.parent}`:\n\n{table(('', 'added', 'removed', 'kept'), rows)}"
    return told + (f"\n{table(('class', 'pairs before', 'pairs after'), classes)}" if classes else "")


def scores_page(scores: Artifact, home: Home) -> str:
    """Return the numbers of one evaluation, and its protocol."""
    protocol = [(name.replace("_", " "), value) for name, value in Scores.open(scores).protocol.facts().items()]
    return f"{facts_page(scores, home)}\n{table(('protocol', ''), protocol)}"


def decision_page(decision: Artifact, home: Home) -> str:
    """Return whether the challenger was promoted, and why."""
    decided = Decision.open(decision)
    rows = [
        (role, f"`{checkpoint}`", f"{100 * decided.accuracy[role]:.1f} %", linked(checkpoint, home))
        for role, checkpoint in (("champion", decided.champion), ("challenger", decided.challenger))
    ]
    low, high = decided.interval
    head = (
        f"# {'Promoted' if decided.promoted else 'Not promoted'}\n\n{decided.why}.\n\nChange: "
        f"{100 * decided.change:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points on {decided.num_clips:,} clips of "
        f"{decided.num_recordings:,} recordings.\n"
    )
    return f"{head}\n{table(('', 'checkpoint', 'accuracy', 'MLflow'), rows)}\n"


def facts_page(made: Artifact, home: Home) -> str:
    """Return the metrics and counts of any artifact."""
    record = made.record
    numbers = [(name, f"{value:.4g}") for name, value in record.metrics.items()]
    counts = [(name, f"{count:,}") for name, count in record.counts.items()]
    head = f"# {made.kind.replace('_', ' ')} {made.id}: {label(record)}\n"
    return f"{head}\n{table(('', 'value'), numbers + counts)}\nMLflow: {linked(made.id, home)}; folder: `{made.path}`\n"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table of plain text or links, with all columns but the first aligned to the right."""
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(cell_text(str(cell)) for cell in line)} |\n" for line in lines)


def linked(artifact_id: str, home: Home) -> str:
    """Return a Markdown link to the MLflow run of an artifact, or ``no server`` if there is none."""
    link = tracking.run_page(home, artifact_id)
    return f"[run]({link})" if link else "no server"


def key(record: Record) -> str:
    """Return the name under which Prefect keeps the versions of a page: dataset, label and seed."""
    dataset = record.experiment
    return re.sub(r"[^a-z0-9]+", "-", f"{dataset} {title(record)}".lower()).strip("-")


def title(record: Record) -> str:
    """Return a readable name of an artifact: its label and seed."""
    seed = record.tags.get("seed")
    return label(record) if seed is None else f"{label(record)} seed {seed}"
