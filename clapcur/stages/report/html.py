"""Formats of a report: CSV, Markdown, two plots and one self-contained HTML page."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clapcur.data.report_table import Change, ReportLine, ReportTable
from clapcur.methods.plots import (
    ACCENT,
    INK,
    MAX_BARS,
    MUTED,
    NO_METADATA,
    label_text,
    label_texts,
    new_figure,
    side_picture,
)
from clapcur.pages import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

LOSS = "#b04a2f"
MEANING = {
    "teacher": "trained on the pairs",
    "continued": "control: the teacher, trained further on its own pairs for the students' budget",
    "SL": "the same, with soft labels from the teacher",
    "DU": "student trained on all pool clips and captions that the teacher finds similar (domain-unspecific)",
    "DS": "student trained on the teacher's pairs whose caption is near one of the classes (domain-specific)",
    "ADS": "student trained on pool clips with captions near one of the classes (augmented domain-specific)",
    "TagCap": "student trained on pool clips with captions generated from their tags",
    "TagCap ∩ classes": "the same, only pairs whose caption is near one of the classes",
    "+SL": "the same set, with soft labels",
    "TeminAL": "post-trained on composed sounds, to learn their order",
}
MARK = "†"  # after the name of a row whose checkpoint was trained on clips that it is scored on
KNOWN_BY = {
    "clip": "the clip itself",
    "recording": "another clip of its recording",
    "near_duplicate": "a near duplicate",
}
CHANGES = ("vs_teacher", "vs_continued", "transductive_vs_teacher")
COLUMNS = (
    "accuracy, %", "95 % interval", "vs teacher", "vs continued", "transductive, %", "transductive vs teacher",
    "order, %", "order vs teacher",
)  # of the page; the last two only if a row was scored on order  # fmt: skip
KNOWN_WITHOUT_SCORES = ("name", "strategy", "soft_labels", "num_seeds")  # columns of table.csv


def as_csv(rows: Sequence[ReportLine]) -> str:
    """Return the table as CSV: fractions from 0 to 1, one column per number, missing numbers empty.

    If nothing was measured, there are no columns of numbers.
    """
    columns = [*KNOWN_WITHOUT_SCORES, "accuracy", "sd", "interval_low", "interval_high"]
    columns += ["transductive", "transductive_interval_low", "transductive_interval_high"]
    columns += [f"{name}{part}" for name in CHANGES for part in ("", "_low", "_high")]
    columns += ["contamination", "contaminated_clips"]
    columns += ["order", "order_low", "order_high", "order_vs_teacher", "order_vs_teacher_low", "order_vs_teacher_high"]
    if any(row.accuracy is None for row in rows):
        columns = list(KNOWN_WITHOUT_SCORES)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = dict(vars(row))
        flat["contamination"] = row.contamination.status
        flat["contaminated_clips"] = row.contamination.num_clips
        for name in ("interval", "transductive_interval"):
            flat[f"{name}_low"], flat[f"{name}_high"] = getattr(row, name) or (None, None)
        for name in CHANGES:
            change: Change | None = getattr(row, name)
            values = (change.change, *change.interval) if change else (None, None, None)
            flat[name], flat[f"{name}_low"], flat[f"{name}_high"] = values
        flat["order"] = row.order.score if row.order else None
        if row.order:
            flat["order_low"], flat["order_high"] = row.order.interval
        if row.order and (heard := row.order.vs_teacher):
            flat["order_vs_teacher"] = heard.change
            flat["order_vs_teacher_low"], flat["order_vs_teacher_high"] = heard.interval
        writer.writerow(flat)
    return text.getvalue()


def as_markdown(table: ReportTable) -> str:
    """Return the table as Markdown, in per cent; changes whose interval excludes zero are bold."""
    if not table.is_measured:
        checkpoints = [f"| {cell_text(line.name)} | {seed.seed} | `{seed.checkpoint}` |" for line, seed in table.seeds]
        lines = [f"**{table.conclusion}**", "", "| | seed | checkpoint |", "|---|--:|---|", *checkpoints, ""]
        return "\n".join([*lines, *(f"- {line}" for line in protocol_lines(table))]) + "\n"
    head = "| | accuracy | 95 % interval | vs teacher | vs continued | transductive | transductive vs teacher |"
    has_order = any(row.order for row in table.rows)
    lines = [head + " order | order vs teacher |" * has_order, "|---|--:|:-:|--:|--:|--:|--:|" + "--:|--:|" * has_order]
    for row in table.rows:
        heard = row.order.vs_teacher if row.order else None
        shown = (change_text(change) for change in (*(getattr(row, name) for name in CHANGES), heard))
        changes = [f"**{text}**" if is_clear else text for text, is_clear in shown]
        cells = [cell_text(name_text(row)), accuracy_text(row), interval_text(row.interval), *changes[:2]]
        cells += [percent(row.transductive), changes[2]]
        cells += [f"{100 * row.order.score:.1f}" if row.order else "-", changes[3]] if has_order else []
        lines.append("| " + " | ".join(cells) + " |")
    if table.conclusion:
        lines = [f"**{cell_text(table.conclusion)}**", "", *lines]
    return "\n".join(lines + ["", *(f"- {' '.join(line.split())}" for line in protocol_lines(table))]) + "\n"


def cell_text(text: str) -> str:
    """Return a text escaped for a cell of a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def name_text(row: ReportLine) -> str:
    """Return the name of a row, with `MARK` if its checkpoint was trained on clips that it is scored on."""
    return f"{row.name} {MARK}" if row.contamination.status == "contaminated" else str(row.name)


def contamination_lines(rows: Sequence[ReportLine]) -> list[str]:
    """Return lines about which rows are contaminated, which are not, and for which this is unknown."""
    by_status: dict[str, list[ReportLine]] = {}
    for row in rows:
        by_status.setdefault(row.contamination.status, []).append(row)
    lines = []
    for row in by_status.get("contaminated", []):
        num_clips = row.contamination.num_clips
        known = [f"{n} by {KNOWN_BY[reason]}" for reason, n in row.contamination.by_reason.items() if n]
        lines.append(
            f"{MARK} CONTAMINATED: {row.name} was trained on {num_clips} of its evaluation clips ({', '.join(known)})"
        )
    if clean := by_status.get("clean"):
        whose = "every row" if len(clean) == len(rows) else ", ".join(row.name for row in clean)
        lines.append(f"no contamination: {whose} was not trained on these clips or their recordings")
    if unknown := by_status.get("unknown"):
        whose = "the rows" if len(unknown) == len(rows) else ", ".join(row.name for row in unknown)
        lines.append(f"contamination unknown: no record of whether {whose} was trained on these clips")
    return lines


def accuracy_text(row: ReportLine) -> str:
    """Return the accuracy in per cent, with the standard deviation over seeds if there are several."""
    return percent(row.accuracy) + (f" ± {100 * row.sd:.1f}" if row.sd is not None else "")


def percent(value: float | None) -> str:
    """Return a fraction in per cent, or a dash if it was not measured."""
    return "-" if value is None else f"{100 * value:.1f}"


def interval_text(interval: Sequence[float] | None, sign: str = "") -> str:
    """Return an interval in per cent, or a dash if nothing was measured.

    Parameters
    ----------
    interval : sequence of float or None
        Its ends, as fractions.
    sign : str
        Format of the sign: ``+`` shows that of a positive number too.
    """
    return "-" if interval is None else " to ".join(f"{100 * limit:{sign}.1f}" for limit in interval)


def change_text(change: Change | None) -> tuple[str, bool]:
    """Return a change in points with its interval, and whether the interval excludes zero."""
    if change is None:
        return "-", False
    low, high = change.interval
    return f"{100 * change.change:+.1f} ({interval_text((low, high), '+')})", low > 0 or high < 0


def protocol_lines(table: ReportTable) -> list[str]:
    """Return the lines that a reader needs to interpret or reproduce the numbers."""
    facts, rows = table.protocol, table.rows
    seeds = sorted({seed.seed for row in rows for seed in row.by_seed})
    budget = facts.budget
    lines = [] if not table.is_measured else [
        f"{facts.num_clips:,} clips of {facts.num_recordings:,} recordings, {facts.num_classes} classes "
        f"(names {(facts.class_names_sha256 or '')[:12]}), prompt “{facts.prompt}”, {facts.crops} "
        f"crop{'s' if facts.crops > 1 else ''} per clip",
        f"interval: {facts.interval}; clips of one recording are resampled together; changes are paired by clip and "
        "seed",
        f"seeds {', '.join(map(str, seeds))}; ± is the standard deviation over seeds"
        if len(seeds) > 1
        else f"seed {seeds[0]}; a single seed does not show the spread over seeds",
    ]  # fmt: skip
    if len(budget) == 1:
        lines.append(
            f"equal sample budgets: every row except the teacher saw {budget[0]:,} more pairs, including replay"
        )
    elif budget:
        sizes = ", ".join(f"{size:,}" for size in budget)
        lines.append(f"UNEQUAL sample budgets ({sizes} pairs): the comparison is not fair")
    if facts.selection == ["held_out"]:
        lines.append(
            "checkpoints were selected by their loss on held-out training pairs"
            + (", not on these clips" if table.is_measured else "")
        )
    elif facts.selection == ["last"]:
        lines.append("every student is the last step of its training: no checkpoint was selected on any clips")
    if not table.is_measured:
        return lines
    lines += contamination_lines(rows)
    if facts.order is not None:
        lines.append(
            f"order: how often the caption with the right order is nearer than the one with the wrong order; chance is "
            f"50 %; on "
            f"{facts.order}"
        )
    if any(row.row.teminal for row in rows):
        lines.append("TeminAL: that checkpoint, post-trained on composed sounds, in addition to the budget")
    return [*lines, "transductive: all clips classified jointly (text-anchored EM, arXiv 2606.17160), without labels"]


@side_picture
def accuracy_figure(rows: Sequence[ReportLine], path: Path) -> None:
    """Plot accuracy and interval of every row; seeds are small, transductive is hollow, the teacher is a line."""
    from matplotlib.lines import Line2D

    rows = rows[:MAX_BARS]
    figure = new_figure(7.2, 1.5 + 0.36 * len(rows))
    axes = figure.subplots()
    has_seeds = any(row.num_seeds > 1 for row in rows)
    for place, row in enumerate(rows):
        assert row.accuracy is not None and row.interval is not None and row.transductive is not None
        low, high = (100 * limit for limit in row.interval)
        colour = ACCENT if row.row.is_student else INK
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round", zorder=2)
        axes.plot(100 * row.accuracy, place, "o", color=colour, markersize=7, zorder=4)
        (hollow,) = axes.plot(100 * row.transductive, place, "o", markeredgecolor=colour, markersize=6, zorder=3)
        hollow.set_markerfacecolor("white")
        if has_seeds:
            single = [100 * seed.accuracy for seed in row.by_seed if seed.accuracy is not None]
            axes.plot(single, [place + 0.27] * len(single), ".", color=colour, markersize=5, alpha=0.6, zorder=3)
    teacher = next((100 * row.accuracy for row in rows if row.row.is_teacher and row.accuracy is not None), None)
    if teacher is not None:
        axes.axvline(teacher, color=MUTED, linewidth=1.2, zorder=1)
    axes.set_yticks(range(len(rows)), label_texts(row.name for row in rows), parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#eeeeee", zorder=0)
    axes.set_xlabel("zero-shot accuracy, %")
    legend = [
        Line2D([], [], color=ACCENT, marker="o", markersize=7, linewidth=2.2, label="accuracy, 95 % interval"),
        Line2D([], [], color=ACCENT, marker="o", markerfacecolor="white", linestyle="", label="transductive"),
    ]
    if has_seeds:
        legend.append(Line2D([], [], color=ACCENT, marker=".", linestyle="", alpha=0.6, label="one seed"))
    if teacher is not None:
        legend.append(Line2D([], [], color=MUTED, linewidth=1.2, label="teacher"))
    _legend_above(axes, legend)
    axes.spines[["top", "right", "left"]].set_visible(False)
    _save(figure, path)


@side_picture
def per_class_figure(name: str, classes: Mapping[str, tuple[float, float]], path: Path) -> None:
    """Plot the change of each class, from the teacher's accuracy to the row's, sorted by the change.

    If there are too many classes, only those with the largest losses and gains are shown.

    Parameters
    ----------
    name : str
        Name of the row.
    classes : mapping of str to (float, float)
        Accuracy of the teacher and of the row in each class, from 0 to 1.
    path : Path
    """
    from matplotlib.lines import Line2D

    name = label_text(name)
    order = sorted(classes, key=lambda label: classes[label][1] - classes[label][0])
    if len(order) > MAX_BARS:
        order = order[: MAX_BARS // 2] + order[-MAX_BARS // 2 :]
    figure = new_figure(7.2, 1.2 + 0.27 * len(order))
    axes = figure.subplots()
    for place, label in enumerate(order):
        teacher, student = (100 * value for value in classes[label])
        colour = ACCENT if student >= teacher else LOSS
        axes.plot([teacher, student], [place, place], color=colour, linewidth=3, alpha=0.35, solid_capstyle="butt")
        axes.plot(teacher, place, "|", color=INK, markersize=9)
        axes.plot(student, place, "o", color=colour, markersize=6)
        axes.text(103, place, f"{student - teacher:+.0f}", va="center", ha="left", fontsize=8.5, color=colour)
    axes.set_yticks(range(len(order)), label_texts(order), fontsize=8.5, parse_math=False)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlim(-2, 102)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#eeeeee", zorder=0)
    axes.set_xlabel("accuracy in the class, %")
    if len(order) < len(classes):
        axes.set_xlabel(f"accuracy in the class, %: the {len(order)} of {len(classes):,} classes that changed the most")
    legend = [
        Line2D([], [], color=INK, marker="|", linestyle="", markersize=9, label="teacher"),
        Line2D([], [], color=ACCENT, marker="o", linestyle="", label=f"{name}, better"),
        Line2D([], [], color=LOSS, marker="o", linestyle="", label=f"{name}, worse"),
    ]
    _legend_above(axes, legend)
    axes.spines[["top", "right", "left"]].set_visible(False)
    _save(figure, path)


def _legend_above(axes: "Axes", handles: "list[Line2D]") -> None:
    legend = axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=len(handles), frameon=False, fontsize=8.5,
        handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _save(figure: "Figure", path: Path) -> None:
    figure.savefig(path, dpi=160, bbox_inches="tight", metadata=NO_METADATA)


def as_html(table: ReportTable, folder: Path) -> str:
    """Return the page as HTML, including the plots in `folder`."""
    rows = table.rows
    best = max((row.accuracy for row in rows if row.accuracy is not None), default=None)
    best_name = table.best.name if table.best else ""
    figures = (
        ("accuracy.png", "accuracy of every row", "Every row; the line marks the teacher."),
        (
            "per_class.png",
            "accuracy by class",
            f"Change by class: {best_name} and the teacher.",
        ),
    )
    return render(
        "report.html",
        title=table.title,
        note=table.note,
        verdict=table.conclusion,
        is_measured=table.is_measured,
        rows=[_shown(row, row.accuracy == best) for row in rows],
        columns=COLUMNS,
        meanings=MEANING,
        has_order=any(row.order for row in rows),
        figures=[
            {"uri": _data_uri(folder / name), "alt": alt, "caption": caption}
            for name, alt, caption in figures
            if (folder / name).exists()
        ],
        protocol=protocol_lines(table),
        lineage=[{**vars(seed), "name": line.name, "accuracy": percent(seed.accuracy)} for line, seed in table.seeds],
    )


def _shown(row: ReportLine, is_best: bool) -> dict[str, Any]:
    """Return a row of the results as text for the page."""
    return {
        "name": name_text(row),
        "is_best": is_best,
        "accuracy": percent(row.accuracy),
        "spread": f"{100 * row.sd:.1f}" if row.sd is not None else "",
        "interval": interval_text(row.interval),
        "transductive": percent(row.transductive),
        "order": f"{100 * row.order.score:.1f}" if row.order else "",
        "order_vs_teacher": _shown_change(row.order.vs_teacher if row.order else None),
        **{name: _shown_change(getattr(row, name)) for name in CHANGES},
    }


def _shown_change(change: Change | None) -> dict[str, str] | None:
    if change is None:
        return None
    low, high = change.interval
    return {
        "kind": "up" if low > 0 else "down" if high < 0 else "even",
        "change": f"{100 * change.change:+.1f}",
        "interval": interval_text((low, high), "+"),
    }


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
