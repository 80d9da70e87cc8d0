"""Report: scores of all rows and seeds -> one table, two plots and a self-contained page.

There is one line per (strategy, soft labels), in the paper's order. Its accuracy is the mean over seeds. Its changes
are paired: each seed is compared, clip by clip, with the teacher and with the control ``continued`` of the same seed.
Intervals come from a bootstrap over source recordings of the correctness averaged over seeds; they show the variation
over clips, while ``sd`` shows the variation over seeds.

Payload: ``table.json`` (everything), ``table.csv``, ``table.md``, ``accuracy.png``, ``per_class.png`` and
``report.html``. Inputs: ``scores`` artifacts by the roles that the rows name; the checkpoint of each, with the prefix
``checkpoint.`` before its role; and, if order was scored, the order scores of each, with the prefix ``order.``. Without
an evaluation set there are only the checkpoints: the report then lists them and says that nothing was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.config import added, frozen
from clapcur.data.order_scores import OrderScores, items_of
from clapcur.data.report_table import Change, OrderLine, ReportLine, ReportProtocol, ReportTable, SeedScores
from clapcur.data.rows import STRATEGIES, Row, Strategy
from clapcur.data.scores import NOT_ON_RECORD, Contamination, ZeroShotScores, predictions
from clapcur.errors import DataError
from clapcur.methods.metrics import bootstrap_interval, paired_change
from clapcur.methods.zste import pigeonhole_interval
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
from clapcur.store.artifacts import Artifact, Stage, Workspace, write_atomic
from clapcur.store.record import Outcome, Record

if TYPE_CHECKING:
    from rich.table import Table

NUM_RESAMPLES = 2000
LEVEL = 0.95
NOTHING: dict[str, Any] = {"task": "none", "crops": 0, "num_clips": 0, "num_recordings": 0}  # without an evaluation set
TRAINING_FACTS = (("budget", "num_examples"), ("selection", "selection"))  # field of the protocol, and of the config


@frozen
class ReportRow:
    """One scored checkpoint of the comparison."""

    strategy: Strategy
    """Strategy of its training pairs."""
    soft_labels: bool = False
    """Whether it was trained with soft labels."""
    seed: int = 0
    """Seed of its training; rows of the same seed are compared with each other."""
    scores: str
    """Role of its scores among the inputs, such as scores.ads+sl.seed0."""
    teminal: bool = added(neutral=False)
    """Whether it was post-trained on the order of sounds."""

    @staticmethod
    def of(row: Row, seed: int) -> "ReportRow":
        """Return the line for a row and seed, with the default role of its scores."""
        return ReportRow(**vars(row), seed=seed, scores=f"scores.{row.name}.seed{seed}")

    @property
    def row(self) -> Row:
        """The row of the comparison."""
        return Row(strategy=self.strategy, soft_labels=self.soft_labels, teminal=self.teminal)

    @property
    def checkpoint(self) -> str:
        """Role of its checkpoint."""
        return f"checkpoint.{self.scores}"

    @property
    def order_scores(self) -> str:
        """Role of its scores for the order of sounds, if that was scored."""
        return f"order.{self.scores}"


@frozen
class ReportConfig:
    """The rows to compare, and the texts of the report."""

    title: str
    """Title of the report."""
    rows: tuple[ReportRow, ...]
    """The rows, in the order of the table."""
    note: str = ""
    """Note for readers, such as that the audio is synthetic."""

    def __post_init__(self) -> None:
        """Reject an empty report and duplicate rows."""
        names = [f"{line.row.label} of seed {line.seed}" for line in self.rows]
        if not names:
            raise ValueError("a report needs at least one row")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"each row must be in the report once; repeated: {', '.join(repeated)}")


@dataclass(frozen=True)
class Scored:
    """The scores of one checkpoint, clip by clip, in the order of the clip ids."""

    line: ReportRow
    artifact: Artifact
    scores: ZeroShotScores
    clips: pd.DataFrame  # clip_id, group, label, predicted, transductive
    checkpoint: Record
    heard: Artifact | None = None  # its order scores

    @classmethod
    def open(cls, line: ReportRow, inputs: Mapping[str, Artifact]) -> "Scored":
        """Read finished scores, and the record of their checkpoint."""
        artifact, checkpoint = inputs[line.scores], inputs[line.checkpoint]
        scores = ZeroShotScores.open(artifact)
        heard = inputs.get(line.order_scores)
        return cls(line, artifact, scores, predictions(artifact), checkpoint.record, heard)

    @cached_property
    def correct_N(self) -> NDArray[np.float64]:
        """1 for clips whose nearest class prompt is their label, else 0."""
        return np.array(self.clips.predicted == self.clips.label, np.float64)

    @cached_property
    def transductive_N(self) -> NDArray[np.float64]:
        """1 for clips whose transductive class is their label, else 0."""
        return np.array(self.clips.transductive == self.clips.label, np.float64)

    @property
    def of_seed(self) -> SeedScores:
        """Scores of one seed, as stored in the table."""
        known = self.scores.contamination
        return SeedScores(
            seed=self.line.seed,
            accuracy=float(self.correct_N.mean()),
            interval=self.scores.interval,
            transductive=float(self.transductive_N.mean()),
            scores=self.artifact.id,
            checkpoint=self.checkpoint.id,
            improvement_set=self.checkpoint.inputs.get("improvement_set"),
            contamination=Contamination(status=known.status, num_clips=known.num_clips, by_reason=known.by_reason),
            order_scores=None if self.heard is None else self.heard.id,
        )


def report(inputs: Mapping[str, Artifact], config: ReportConfig, work: Workspace) -> Outcome:
    """Write the table, the plots and the page.

    Inputs by role: see `clapcur.stages.report`.

    Raises
    ------
    ArtifactError
        An input is no zero-shot score.
    DataError
        The rows were scored on different clips or under different protocols, so their numbers cannot be compared.
    ValueError
        A row names an input that is missing.
    """
    is_measured = any(line.scores in inputs or line.checkpoint not in inputs for line in config.rows)
    wanted = {line.checkpoint for line in config.rows} | {line.scores for line in config.rows if is_measured}
    if missing := sorted(wanted - set(inputs)):
        raise ValueError(f"missing inputs of the report: {', '.join(missing)}")
    scored = [Scored.open(line, inputs) for line in config.rows] if is_measured else []
    checkpoints = {line: inputs[line.checkpoint].record for line in config.rows}
    protocol = common_protocol(scored) if is_measured else ReportProtocol(**NOTHING, **trainings(checkpoints))
    rows = summarise(scored) if is_measured else unmeasured(checkpoints)
    table = ReportTable(title=config.title, note=config.note, protocol=protocol, rows=rows)
    table.write(work.path)
    write_atomic(work.path / "table.csv", as_csv(rows))
    write_atomic(work.path / "table.md", as_markdown(table))
    if is_measured:
        accuracy_figure(rows, work.path / "accuracy.png")
    if (best := table.best) is not None:
        per_class_figure(best.name, class_changes(scored, best.row), work.path / "per_class.png")
    write_atomic(work.path / "report.html", as_html(table, work.path))
    return Outcome(
        counts={"rows": len(rows), "scores": len(scored), "clips": protocol.num_clips},
        # MLflow does not allow + in a name
        metrics={
            f"accuracy.{line.row.name.replace('+', '_')}": line.accuracy for line in rows if line.accuracy is not None
        },
        facts={"verdict": table.conclusion},
    )


def common_protocol(scored: Sequence[Scored]) -> ReportProtocol:
    """Return the protocol that all scores share: clips, prompt, classes and crops, and the budget if it is the same.

    Raises
    ------
    DataError
        The rows differ in a part that must be equal.
    """
    first = scored[0]
    for other in scored[1:]:
        both = f"{first.line.scores} and {other.line.scores}"
        theirs = vars(other.scores.protocol)
        for name, value in vars(first.scores.protocol).items():
            if name != "seed" and theirs[name] != value:  # the seed only affects the resamples, not the accuracy
                raise DataError(
                    f"{both} were scored under different protocols ({name}: {value!r} and {theirs[name]!r}) and cannot "
                    "be compared; evaluate them in the same way"
                )
        if not first.clips[["clip_id", "group", "label"]].equals(other.clips[["clip_id", "group", "label"]]):
            raise DataError(f"{both} were scored on different clips or labels; evaluate them on the same manifest")
    return ReportProtocol(
        **vars(first.scores.protocol),
        order=common_order([item.heard for item in scored if item.heard is not None]),
        **trainings({item.line: item.checkpoint for item in scored}),
    )


def trainings(checkpoints: Mapping[ReportRow, Record]) -> dict[str, Any]:
    """Return the sample budgets of the students and how their weights were selected, as fields of the protocol."""
    students = [
        record.config for line, record in checkpoints.items() if line.strategy != "teacher" and not line.teminal
    ]
    return {name: sorted({config[key] for config in students if key in config}) for name, key in TRAINING_FACTS}


def unmeasured(checkpoints: Mapping[ReportRow, Record]) -> list[ReportLine]:
    """Return one line per row without any number, for an experiment without an evaluation set."""
    by_row: dict[Row, list[SeedScores]] = {}
    for line, record in sorted(checkpoints.items(), key=lambda item: item[0].seed):
        by_row.setdefault(line.row, []).append(
            SeedScores(
                seed=line.seed, accuracy=None, interval=None, transductive=None, scores=None, checkpoint=record.id,
                improvement_set=record.inputs.get("improvement_set"), contamination=NOT_ON_RECORD,
            )
        )  # fmt: skip
    return [
        ReportLine(
            name=row.label, strategy=row.strategy, soft_labels=row.soft_labels, teminal=row.teminal,
            num_seeds=len(by_row[row]), accuracy=None, sd=None, interval=None, vs_teacher=None, vs_continued=None,
            transductive=None, transductive_interval=None, transductive_vs_teacher=None, contamination=NOT_ON_RECORD,
            by_seed=by_row[row],
        )
        for row in sorted(by_row, key=in_order)
    ]  # fmt: skip


def in_order(row: Row) -> tuple[bool, int, bool]:
    """Return the sort key that puts rows in the paper's order."""
    return row.teminal, STRATEGIES.index(row.strategy), row.soft_labels


def summarise(scored: Sequence[Scored]) -> list[ReportLine]:
    """Return one line per row of the comparison, summarised over its seeds, in the paper's order."""
    by_row: dict[Row, dict[int, Scored]] = {}
    for item in scored:
        by_row.setdefault(item.line.row, {})[item.line.seed] = item
    teacher, continued = (by_row.get(Row(strategy=base)) for base in ("teacher", "continued"))
    lines = []
    for row in sorted(by_row, key=in_order):
        seeds = dict(sorted(by_row[row].items()))
        items = list(seeds.values())
        correct_SN = np.stack([item.correct_N for item in items])
        transductive_SN = np.stack([item.transductive_N for item in items])
        bootstrap = _bootstrap(items[0])
        is_teacher = row.is_teacher
        lines.append(
            ReportLine(
                name=row.label,
                strategy=row.strategy,
                soft_labels=row.soft_labels,
                num_seeds=len(items),
                accuracy=float(correct_SN.mean()),
                sd=float(correct_SN.mean(axis=1).std(ddof=1)) if len(items) > 1 else None,
                interval=bootstrap_interval(correct_SN.mean(axis=0), **bootstrap),
                vs_teacher=None if is_teacher else _change(seeds, teacher),
                vs_continued=_change(seeds, continued) if row.is_student else None,
                transductive=float(transductive_SN.mean()),
                transductive_interval=bootstrap_interval(transductive_SN.mean(axis=0), **bootstrap),
                transductive_vs_teacher=None if is_teacher else _change(seeds, teacher, "transductive_N"),
                contamination=worst_contamination(items),
                by_seed=[item.of_seed for item in items],
                teminal=row.teminal,
                order=order_line(seeds, None if is_teacher else teacher),
            )
        )
    return lines


def common_order(heard: Sequence[Artifact]) -> str | None:
    """Return a description of how order was scored; None if it was not.

    Raises
    ------
    DataError
        The rows were scored on different groups.
    """
    found = {OrderScores.open(artifact).protocol for artifact in heard}
    composed = {artifact.record.inputs["compositions"] for artifact in heard}
    if len(found) > 1 or len(composed) > 1:
        raise DataError(
            f"order was scored under {len(found)} protocols and on {len(composed)} compositions, so the rows cannot be "
            "compared; score all rows on the same groups"
        )
    if not found:
        return None
    (protocol,) = found
    return (
        f"{protocol.num_groups} groups of two sounds, {protocol.num_recordings} recordings, {protocol.num_classes} "
        f"classes, {protocol.duration_s:g} s an item"
    )


def order_line(seeds: Mapping[int, Scored], teacher: Mapping[int, Scored] | None) -> OrderLine | None:
    """Return a row's score for order, averaged over its seeds, and the paired change relative to the teacher."""
    tables = {seed: items_of(item.heard, "order") for seed, item in seeds.items() if item.heard is not None}
    if not tables:
        return None
    score_N = np.mean([table.score for table in tables.values()], axis=0)
    recordings_N2 = next(iter(tables.values()))[["recording_a", "recording_b"]].to_numpy(str)
    scores = [OrderScores.open(item.heard) for item in seeds.values() if item.heard is not None]
    pairs = [(item.heard, partner.heard) for item, partner in _paired(seeds, teacher)]
    changes = [
        items_of(after, "order").score - items_of(before, "order").score
        for after, before in pairs
        if after is not None and before is not None
    ]
    change = None
    if changes:
        change_N = np.mean(changes, axis=0)
        interval = pigeonhole_interval(change_N, recordings_N2, level=LEVEL, num_resamples=NUM_RESAMPLES)
        change = Change(change=float(change_N.mean()), interval=interval, num_seeds=len(changes))
    return OrderLine(
        score=float(score_N.mean()),
        interval=pigeonhole_interval(score_N, recordings_N2, level=LEVEL, num_resamples=NUM_RESAMPLES),
        chance=scores[0].tasks["order"].chance,
        relations=float(np.mean([one.relations for one in scores])),
        vs_teacher=change,
    )


def worst_contamination(items: Sequence[Scored]) -> Contamination:
    """Return the contamination of the most contaminated seed, because one such seed invalidates the mean."""
    order = ("clean", "unknown", "contaminated")
    known = [item.of_seed.contamination for item in items]
    return max(known, key=lambda one: (order.index(one.status), one.num_clips))


def _change(
    seeds: Mapping[int, Scored],
    base: Mapping[int, Scored] | None,
    what: Literal["correct_N", "transductive_N"] = "correct_N",
) -> Change | None:
    """Return the paired change relative to a base, with its interval; None if there is nothing to compare."""
    if not (pairs := _paired(seeds, base)):
        return None
    before_N = np.mean([getattr(partner, what) for _, partner in pairs], axis=0)
    after_N = np.mean([getattr(item, what) for item, _ in pairs], axis=0)
    change, low, high = paired_change(before_N, after_N, **_bootstrap(pairs[0][0]))
    return Change(change=change, interval=(low, high), num_seeds=len(pairs))


def _paired(seeds: Mapping[int, Scored], base: Mapping[int, Scored] | None) -> list[tuple[Scored, Scored]]:
    """Return every seed with the base of the same seed; a base with a single seed is paired with all seeds."""
    if not base:
        return []
    only = next(iter(base.values())) if len(base) == 1 else None
    return [(item, partner) for seed, item in seeds.items() if (partner := only or base.get(seed)) is not None]


def _bootstrap(like: Scored) -> dict[str, Any]:
    """Return the settings of every bootstrap in the report, which resamples recordings with all their clips."""
    seed = like.scores.protocol.seed
    return {
        "groups_N": like.clips.group.to_numpy(str), "level": LEVEL, "num_resamples": NUM_RESAMPLES,
        "seed": seed if seed is not None else 0,
    }  # fmt: skip


def class_changes(scored: Sequence[Scored], row: Row) -> dict[str, tuple[float, float]]:
    """Return the accuracies of the teacher and of a row in every class, averaged over their seeds."""

    def per_class(wanted: Row) -> dict[str, float]:
        items = [item for item in scored if item.line.row == wanted]
        mean_N = np.mean([item.correct_N for item in items], axis=0)
        label_N = items[0].clips.label.to_numpy(str)
        return {str(label): float(mean_N[label_N == label].mean()) for label in np.unique(label_N)}

    teacher, student = per_class(Row(strategy="teacher")), per_class(row)
    return {label: (teacher[label], student[label]) for label in teacher}


def render(rows: Sequence[ReportLine]) -> "Table":
    """Return the table for a terminal; changes whose interval excludes zero are coloured."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("")
    if any(row.accuracy is None for row in rows):
        table.add_column("checkpoint")
        for row in rows:
            table.add_row(name_text(row), ", ".join(seed.checkpoint for seed in row.by_seed))
        return table
    for name in ("accuracy %", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    has_order = any(row.order for row in rows)
    for name in ("vs teacher", "vs continued", "transductive", *(("order",) if has_order else ())):
        table.add_column(name, justify="right")  # breaks before the bracket in a terminal of 80 columns

    def change(of: Change | None) -> Text:
        if of is None:
            return Text("-", style="dim")
        low, high = of.interval
        style = "green" if low > 0 else "red" if high < 0 else ""
        return Text(f"{100 * of.change:+.1f} [{100 * low:+.1f},{100 * high:+.1f}]", style=style)

    for row in rows:
        assert row.accuracy is not None and row.interval is not None and row.transductive is not None
        spread = f" ±{100 * row.sd:.1f}" if row.sd is not None else ""
        low, high = row.interval
        table.add_row(
            name_text(row),
            f"{100 * row.accuracy:.1f}{spread}",
            f"{100 * low:.1f}-{100 * high:.1f}",
            change(row.vs_teacher),
            change(row.vs_continued),
            f"{100 * row.transductive:.1f}",
            *((f"{100 * row.order.score:.1f}" if row.order else "-",) if has_order else ()),
        )
    if contaminated := [line for line in contamination_lines(rows) if line.startswith(MARK)]:
        table.caption, table.caption_justify = "\n".join(contaminated), "left"
    return table


STAGE = Stage("report", "4", "report", report)
