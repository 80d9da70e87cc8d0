"""Report: scores of all rows and seeds -> one table, two plots and a page that needs nothing else.

One line per (strategy, soft labels), in the paper's order. Its accuracy is the mean over seeds. Its changes are paired:
each seed is compared with the teacher, and with the control ``continued``, of the same seed, clip by clip. Intervals
come from a bootstrap over the source recordings, of the correctness averaged over seeds; they say what other clips
would change, while ``sd`` says what another seed would.

Payload: ``table.json`` (everything), ``table.csv``, ``table.md``, ``accuracy.png``, ``per_class.png`` and
``report.html``. Inputs: ``scores`` artifacts by the roles that the rows name.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.config import frozen
from clapcur.errors import ArtifactError, DataError
from clapcur.methods.metrics import bootstrap_interval, paired_change
from clapcur.stages.report.html import (
    MARK,
    accuracy_figure,
    as_csv,
    as_html,
    as_markdown,
    contamination_lines,
    name_text,
    per_class_figure,
)
from clapcur.store.artifacts import Artifact, Stage, Store, Workspace, read_record, write_atomic

if TYPE_CHECKING:
    from rich.table import Table

ORDER = ("teacher", "continued", "sl", "du", "ds", "ads")  # the paper's, with our control behind the teacher
NUM_RESAMPLES = 2000
LEVEL = 0.95


@frozen
class ReportRow:
    """One scored checkpoint of the comparison."""

    strategy: str
    """Teacher | continued | sl | du | ds | ads."""
    soft_labels: bool = False
    """Whether the targets were softened."""
    seed: int = 0
    """Of its training; rows of one seed are compared with each other."""
    scores: str
    """Role of its scores among the inputs, such as scores.ads+sl.seed0."""


@frozen
class ReportConfig:
    """What is laid side by side."""

    title: str
    """Title of the report."""
    rows: tuple[ReportRow, ...]
    """The rows, in the order of the table."""
    note: str = ""
    """What a reader must know of the sounds, such as that they are synthetic."""

    def __post_init__(self) -> None:
        """Refuse an empty report and a row that stands there twice."""
        names = [(row.strategy, row.soft_labels, row.seed) for row in self.rows]
        if not names:
            raise ValueError("a report needs at least one row")
        if repeated := sorted({f"{row_label(*name[:2])} of seed {name[2]}" for name in names if names.count(name) > 1}):
            raise ValueError(f"each row must stand in the report once, repeated: {', '.join(repeated)}")


@dataclass(frozen=True)
class Scored:
    """The scores of one checkpoint, clip by clip, in the order of the clip ids."""

    row: ReportRow
    artifact: Artifact
    scores: dict[str, Any]
    clips: pd.DataFrame  # clip_id, group, label, predicted, transductive
    checkpoint: dict[str, Any]  # its record

    @classmethod
    def open(cls, row: ReportRow, artifact: Artifact) -> "Scored":
        """Read the scores of a finished artifact, and the record of the checkpoint that they are of."""
        if artifact.kind != "scores":
            raise ArtifactError(f"expected scores for {row.scores}, got the {artifact.kind} {artifact.id}")
        scores = json.loads((artifact.path / "scores.json").read_text())
        if "transductive" not in scores:
            raise ArtifactError(
                f"a report compares zero-shot scores, {artifact.id} are scores of {scores['protocol']['task']}"
            )
        clips = pd.read_parquet(artifact.path / "predictions.parquet").sort_values("clip_id", ignore_index=True)
        store = Store(artifact.path.parents[1])
        checkpoint = read_record(store.folder("checkpoint", artifact.record["inputs"]["checkpoint"]))
        return cls(row, artifact, scores, clips, checkpoint)

    @cached_property
    def correct_N(self) -> NDArray[np.float64]:
        """1 where the clip's nearest class prompt is its label."""
        return np.array(self.clips.predicted == self.clips.label, np.float64)

    @cached_property
    def transductive_N(self) -> NDArray[np.float64]:
        """1 where the class that the whole batch gives to the clip is its label."""
        return np.array(self.clips.transductive == self.clips.label, np.float64)

    @property
    def facts(self) -> dict[str, Any]:
        """What the table keeps of one seed."""
        return {
            "seed": self.row.seed,
            "accuracy": float(self.correct_N.mean()),
            "interval": self.scores["interval"],
            "transductive": float(self.transductive_N.mean()),
            "scores": self.artifact.id,
            "checkpoint": self.checkpoint["id"],
            "improvement_set": self.checkpoint["inputs"].get("improvement_set"),
            "contamination": self.contamination,
        }

    @property
    def contamination(self) -> dict[str, Any]:
        """What the checkpoint has learned of the scored clips; older scores do not say."""
        said = self.scores.get("contamination", {"status": "unknown", "num_clips": 0, "by_reason": {}})
        return {name: said[name] for name in ("status", "num_clips", "by_reason")}


def row_label(strategy: str, soft_labels: bool) -> str:
    """Return the row's name as the paper writes it: teacher, continued, SL, DU, DU+SL, ..."""
    if strategy in ("teacher", "continued"):
        return strategy
    return strategy.upper() + ("+SL" if soft_labels and strategy != "sl" else "")


def report(inputs: Mapping[str, Artifact], config: ReportConfig, work: Workspace) -> dict[str, Any]:
    """Write the table, the plots and the page.

    Raises
    ------
    ArtifactError
        An input is no zero-shot score.
    DataError
        The rows were scored on different clips or under different protocols: their numbers cannot be compared.
    """
    if missing := sorted({row.scores for row in config.rows} - set(inputs)):
        raise ValueError(f"the report names scores that were not given: {', '.join(missing)}")
    scored = [Scored.open(row, inputs[row.scores]) for row in config.rows]
    protocol = common_protocol(scored)
    rows = summarise(scored)
    table = {"title": config.title, "note": config.note, "protocol": protocol, "rows": rows}
    write_atomic(work.path / "table.json", json.dumps(table, indent=1))
    write_atomic(work.path / "table.csv", as_csv(rows))
    write_atomic(work.path / "table.md", as_markdown(table))
    accuracy_figure(rows, work.path / "accuracy.png")
    best = best_row(rows)
    if best is not None:
        per_class_figure(best["name"], class_changes(scored, best), work.path / "per_class.png")
    write_atomic(work.path / "report.html", as_html(table, work.path))
    return {
        "counts": {"rows": len(rows), "scores": len(scored), "clips": protocol["num_clips"]},
        # MLflow takes no + in a name
        "metrics": {f"accuracy.{row['name'].lower().replace('+', '_')}": row["accuracy"] for row in rows},
    }


def common_protocol(scored: Sequence[Scored]) -> dict[str, Any]:
    """Return what holds for every score: clips, prompt, classes and crops; and the budget where it is one.

    Raises
    ------
    DataError
        The rows differ in what must be equal.
    """
    first = scored[0]
    for other in scored[1:]:
        both = f"{first.row.scores} and {other.row.scores}"
        theirs = other.scores["protocol"]
        for name, value in first.scores["protocol"].items():
            if name != "seed" and theirs.get(name) != value:  # the seed draws the resamples, and moves no accuracy
                raise DataError(
                    f"{both} were scored under different protocols ({name}: {value!r} and {theirs.get(name)!r}), "
                    "so their difference says nothing; evaluate them alike"
                )
        if not first.clips[["clip_id", "group", "label"]].equals(other.clips[["clip_id", "group", "label"]]):
            raise DataError(f"{both} were scored on different clips or labels; evaluate them on one manifest")
    students = [item.checkpoint["config"] for item in scored if item.row.strategy != "teacher"]
    facts = {
        "budget": sorted({config["num_examples"] for config in students if "num_examples" in config}),
        "selection": sorted({config["selection"] for config in students if "selection" in config}),
    }
    return first.scores["protocol"] | facts


def summarise(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Return one line per (strategy, soft labels), in the paper's order; `load_table` explains the fields."""
    by_row: dict[tuple[str, bool], dict[int, Scored]] = {}
    for item in scored:
        by_row.setdefault((item.row.strategy, item.row.soft_labels), {})[item.row.seed] = item
    place = {strategy: index for index, strategy in enumerate(ORDER)}
    lines = []
    for strategy, soft_labels in sorted(by_row, key=lambda name: (place.get(name[0], len(ORDER)), *name)):
        seeds = dict(sorted(by_row[strategy, soft_labels].items()))
        items = list(seeds.values())
        correct_SN = np.stack([item.correct_N for item in items])
        transductive_SN = np.stack([item.transductive_N for item in items])
        lines.append(
            {
                "name": row_label(strategy, soft_labels),
                "strategy": strategy,
                "soft_labels": soft_labels,
                "num_seeds": len(items),
                "accuracy": float(correct_SN.mean()),
                "sd": float(correct_SN.mean(axis=1).std(ddof=1)) if len(items) > 1 else None,
                "interval": list(bootstrap_interval(correct_SN.mean(axis=0), **_bootstrap(items[0]))),
                "vs_teacher": _change(seeds, strategy, by_row.get(("teacher", False)), ("teacher",)),
                "vs_continued": _change(seeds, strategy, by_row.get(("continued", False)), ("teacher", "continued")),
                "transductive": float(transductive_SN.mean()),
                "transductive_interval": list(bootstrap_interval(transductive_SN.mean(axis=0), **_bootstrap(items[0]))),
                "transductive_vs_teacher": _change(
                    seeds, strategy, by_row.get(("teacher", False)), ("teacher",), "transductive_N"
                ),
                "contamination": worst_contamination(items),
                "by_seed": [item.facts for item in items],
            }
        )
    return lines


def worst_contamination(items: Sequence[Scored]) -> dict[str, Any]:
    """Return the contamination of the seed that has the most: one contaminated seed spoils the mean."""
    order = ("clean", "unknown", "contaminated")
    return max(
        (item.contamination for item in items), key=lambda said: (order.index(said["status"]), said["num_clips"])
    )


def _change(
    seeds: Mapping[int, Scored], strategy: str, base: Mapping[int, Scored] | None, without: Sequence[str],
    what: str = "correct_N",
) -> dict[str, Any] | None:  # fmt: skip
    """Return the paired change against a base, with its interval; None where there is nothing to compare.

    Every seed is compared with the base of the same seed. A base of one seed only is everybody's base.
    """
    if base is None or strategy in without:
        return None
    only = next(iter(base.values())) if len(base) == 1 else None
    pairs = [(item, partner) for seed, item in seeds.items() if (partner := only or base.get(seed)) is not None]
    if not pairs:
        return None
    before_N = np.mean([getattr(partner, what) for _, partner in pairs], axis=0)
    after_N = np.mean([getattr(item, what) for item, _ in pairs], axis=0)
    change, low, high = paired_change(before_N, after_N, **_bootstrap(pairs[0][0]))
    return {"change": change, "interval": [low, high], "num_seeds": len(pairs)}


def _bootstrap(like: Scored) -> dict[str, Any]:
    """Return how every interval of the report is drawn: recordings, with all their clips."""
    groups_N, seed = like.clips.group.to_numpy(str), like.scores["protocol"].get("seed", 0)
    return {"groups_N": groups_N, "level": LEVEL, "num_resamples": NUM_RESAMPLES, "seed": seed}


def best_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the most accurate row that is neither teacher nor control, where there is a teacher to compare it with."""
    students = [row for row in rows if row["strategy"] not in ("teacher", "continued") and row["vs_teacher"]]
    return max(students, key=lambda row: row["accuracy"], default=None)


def class_changes(scored: Sequence[Scored], row: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return accuracy of the teacher and of a row in every class, averaged over their seeds."""

    def per_class(strategy: str, soft_labels: bool) -> dict[str, float]:
        items = [item for item in scored if (item.row.strategy, item.row.soft_labels) == (strategy, soft_labels)]
        mean_N = np.mean([item.correct_N for item in items], axis=0)
        label_N = items[0].clips.label.to_numpy(str)
        return {str(label): float(mean_N[label_N == label].mean()) for label in np.unique(label_N)}

    teacher, student = per_class("teacher", False), per_class(row["strategy"], row["soft_labels"])
    return {label: (teacher[label], student[label]) for label in teacher}


def load_table(artifact: Artifact) -> list[dict[str, Any]]:
    """Return the lines of a finished report.

    Returns
    -------
    list of dict
        ``name``, ``strategy``, ``soft_labels``, ``num_seeds``; ``accuracy`` (mean over seeds, 0 to 1) with ``sd``
        (over seeds, None for one) and ``interval``; ``vs_teacher`` and ``vs_continued`` (None, or ``change``,
        ``interval`` and ``num_seeds``); ``transductive`` with ``transductive_interval`` and
        ``transductive_vs_teacher``; ``contamination`` (``status``: clean, unknown or contaminated; ``num_clips`` and
        ``by_reason`` of the worst seed); ``by_seed``: per seed ``accuracy``, ``interval``, ``transductive`` and the ids
        ``scores``, ``checkpoint`` and ``improvement_set``.
    """
    if artifact.kind != "report":
        raise ArtifactError(f"expected a report, got the {artifact.kind} {artifact.id}")
    rows: list[dict[str, Any]] = json.loads((artifact.path / "table.json").read_text())["rows"]
    return rows


def render(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """Return the table for a terminal; a change whose interval leaves out zero is coloured."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("")
    for name in ("accuracy %", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("vs teacher", "vs continued", "transductive"):
        table.add_column(name, justify="right")  # breaks before the bracket where 80 columns are all there is

    def change(of: Mapping[str, Any] | None) -> Text:
        if of is None:
            return Text("-", style="dim")
        low, high = of["interval"]
        style = "green" if low > 0 else "red" if high < 0 else ""
        return Text(f"{100 * of['change']:+.1f} [{100 * low:+.1f},{100 * high:+.1f}]", style=style)

    for row in rows:
        spread = f" ±{100 * row['sd']:.1f}" if row["sd"] is not None else ""
        table.add_row(
            name_text(row),
            f"{100 * row['accuracy']:.1f}{spread}",
            f"{100 * row['interval'][0]:.1f}-{100 * row['interval'][1]:.1f}",
            change(row["vs_teacher"]),
            change(row["vs_continued"]),
            f"{100 * row['transductive']:.1f}",
        )
    if contaminated := [line for line in contamination_lines(rows) if line.startswith(MARK)]:
        table.caption, table.caption_justify = "\n".join(contaminated), "left"
    return table


STAGE = Stage("report", "2", "report", report)
