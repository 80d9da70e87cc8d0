"""Result of a flow -> pages of its Prefect run: tables, cards, and links to MLflow."""

import os
import re
from collections.abc import Sequence
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from clapcur.data.decision import Decision
from clapcur.data.improvement_set import Card
from clapcur.data.report_table import ReportTable
from clapcur.data.scores import Scores
from clapcur.stages.report.html import cell_text
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home
from clapcur.store.readable import label
from clapcur.store.record import Record
from clapcur.tasks.common import stage_task


@stage_task("publish")
def publish(made: Artifact) -> None:
    """Show an artifact on the page of the flow run; a report comes with the cards of its Improvement-Sets."""
    home = Home.open()
    record = made.record
    shown = {
        "report": report_page, "improvement_set": card_page, "scores": scores_page, "decision": decision_page
    }  # fmt: skip
    create_markdown_artifact(shown.get(made.kind, facts_page)(made, home), key=key(record), description=title(record))
    if made.kind == "report":
        sets = (seed.improvement_set for _, seed in ReportTable.open(made).seeds)
        for name in dict.fromkeys(filter(None, sets)):
            chosen = home.store.find(name)
            create_markdown_artifact(card_page(chosen, home), key=key(chosen.record), description=title(chosen.record))
    if link := mlflow_link(made.id, home):
        create_link_artifact(link, "its run in MLflow", key=f"{key(record)}-mlflow", description=title(record))


def report_page(report: Artifact, home: Home) -> str:
    """Return the table of a report, with links to its checkpoints."""
    rows = [
        (line.name, seed.seed, f"`{seed.checkpoint}`", linked(seed.checkpoint, home))
        for line, seed in ReportTable.open(report).seeds
    ]
    checkpoints = table(("row", "seed", "checkpoint", "MLflow"), rows)
    shown = (report.path / "table.md").read_text()
    return f"{shown}\n{checkpoints}\nFull report: `{report.path / 'report.html'}`\n"


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
            table(("threshold", "cosine"), thresholds) if thresholds else "",
            table(("kept out", "count"), out) if out else "",
            table(("class", "pairs", "clips"), classes) if classes else "",
            table(("caption", "pairs"), captions),
            f"MLflow: {linked(improvement_set.id, home)}; all pairs: `clapcur pairs {improvement_set.id}`\n",
        )
    )


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
    head = f"# {'Promoted' if decided.promoted else 'Not promoted'}\n\n{decided.why}.\n"
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
    link = mlflow_link(artifact_id, home)
    return f"[run]({link})" if link else "no server"


def mlflow_link(artifact_id: str, home: Home) -> str | None:
    """Return the URL of the page of an artifact's run; None without an MLflow server.

    `CLAPCUR_MLFLOW_PAGES` is the URL of the server for browsers, if it differs from ours.
    """
    run = Catalog.open(home).run_of(artifact_id)
    pages = os.environ.get("CLAPCUR_MLFLOW_PAGES") or home.mlflow_uri
    return f"{pages}/#/runs/{run}" if run and pages.startswith("http") else None


def key(record: Record) -> str:
    """Return the name under which Prefect keeps the versions of a page: dataset, label and seed."""
    dataset = record.experiment
    return re.sub(r"[^a-z0-9]+", "-", f"{dataset} {title(record)}".lower()).strip("-")


def title(record: Record) -> str:
    """Return a readable name of an artifact: its label and seed."""
    seed = record.tags.get("seed")
    said = " ".join(dict.fromkeys(label(record).split()))  # the role of a report repeats its stage
    return said if seed is None else f"{said} seed {seed}"
