"""The rows of a comparison: what a student learns from, and whether its targets are softened.

Only this module knows how a row is spelled: ``ads+sl`` in commands, tags and run names, ``ADS+SL`` in tables.
``ads+sl+teminal`` is the student ``ads+sl``, post-trained on the order of sounds; ``teminal`` the post-trained teacher.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from clapcur.config import added, frozen
from clapcur.store.record import Record

ImprovementSetName = Literal["du", "ds", "ads", "tagcap", "tagcap-classes", "pl"]
PoolSetName = Literal["du", "ads", "tagcap", "tagcap-classes", "pl"]
StudentStrategy = Literal["continued", "sl", ImprovementSetName]
Strategy = Literal["teacher", StudentStrategy]
IMPROVEMENT_SETS: tuple[ImprovementSetName, ...] = get_args(ImprovementSetName)
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)  # in the order of the paper's tables, our control second
PAPER_SETS: tuple[ImprovementSetName, ...] = ("du", "ds", "ads")
SEARCHED: tuple[ImprovementSetName, ...] = ("du", "ads")  # sets whose pairs are found by comparing a pool with captions
TAGGED: tuple[ImprovementSetName, ...] = ("tagcap", "tagcap-classes")  # sets of captions written from tags
GENERATED: tuple[ImprovementSetName, ...] = (*TAGGED, "pl")  # sets of captions written for a pool's clips
FROM_POOL: tuple[PoolSetName, ...] = get_args(PoolSetName)  # sets of a pool's clips, which change when clips land
LABELS = {"tagcap": "TagCap", "tagcap-classes": "TagCap ∩ classes"}  # labels other than the name in capitals


@frozen
class Row:
    """One row of a comparison: what the student learns from, and whether its targets are softened."""

    strategy: Strategy
    """Strategy of the student's training pairs."""
    soft_labels: bool = False
    """Whether it is trained with soft labels."""
    teminal: bool = added(neutral=False)
    """Whether it is then post-trained on the order of sounds."""

    def __post_init__(self) -> None:
        """Reject rows that contradict their name."""
        if self.strategy in ("teacher", "continued") and self.soft_labels:
            raise ValueError(f"the row {self.strategy!r} has no soft labels; 'sl' is the teacher continued with them")
        if self.strategy == "sl" and not self.soft_labels:
            raise ValueError("the row 'sl' is the teacher continued with soft labels: set soft_labels")

    @staticmethod
    def parse(text: str) -> "Row":
        """Return the row of a short name, such as ``ads+sl``, or of its label, such as ``ADS+SL, TeminAL``.

        Raises
        ------
        ValueError
            There is no such row.
        """
        rows = (*PAPER_ROWS, *GENERATED_ROWS)
        known = {row.name: row for row in rows}
        known |= {row.post_trained.name: row.post_trained for row in rows}
        short = "".join(text.lower().split()).replace(",", "+").replace("∩", "-")
        if (row := known.get(short)) is None:
            raise ValueError(f"expected the name of a row, one of {', '.join(known)}; got {text!r}")
        return row

    @staticmethod
    def of(record: Record) -> "Row":
        """Return the row in a record's tags; a checkpoint without this tag, such as an imported one, is a teacher."""
        return Row.parse(str(record.tags.get("row", "teacher")))

    @property
    def name(self) -> str:
        """The row's short name, such as ``ads+sl``."""
        name = f"{self.strategy}+sl" if self.soft_labels and self.strategy != "sl" else self.strategy
        if not self.teminal:
            return name
        return "teminal" if self.strategy == "teacher" else f"{name}+teminal"

    @property
    def label(self) -> str:
        """The row's name as the paper writes it: teacher, continued, SL, DU, DU+SL, ..."""
        if self.teminal:
            return "TeminAL" if self.strategy == "teacher" else f"{self.before.label}, TeminAL"
        if self.strategy in LABELS:
            return LABELS[self.strategy] + ("+SL" if self.soft_labels else "")
        return self.name if self.strategy in ("teacher", "continued") else self.name.upper()

    @property
    def post_trained(self) -> "Row":
        """The same row, post-trained on the order of sounds."""
        return replace(self, teminal=True)

    @property
    def before(self) -> "Row":
        """The row that a post-trained row started from; any other row itself."""
        return replace(self, teminal=False)

    @property
    def improvement_set(self) -> ImprovementSetName | None:
        """The set that the student learns from; None for the teacher's own pairs."""
        return self.strategy if self.strategy in IMPROVEMENT_SETS else None

    @property
    def is_teacher(self) -> bool:
        """Whether the row is the unchanged teacher."""
        return self.strategy == "teacher" and not self.teminal

    @property
    def is_student(self) -> bool:
        """Whether the row is neither the teacher nor the control."""
        return self.teminal or self.strategy not in ("teacher", "continued")

    @property
    def tags(self) -> dict[str, str | bool]:
        """The tags that describe this row in the record of an artifact."""
        return {"row": self.name, "strategy": self.strategy, "soft_labels": self.soft_labels}


PAPER_ROWS = (
    Row(strategy="teacher"),
    Row(strategy="continued"),
    Row(strategy="sl", soft_labels=True),
    *(Row(strategy=strategy, soft_labels=soft) for strategy in PAPER_SETS for soft in (False, True)),
)
GENERATED_ROWS = tuple(Row(strategy=strategy, soft_labels=soft) for strategy in GENERATED for soft in (False, True))


def chosen_rows(rows: Sequence[Row], names: Iterable[str]) -> tuple[Row, ...]:
    """Return the rows of these names, and teacher and control.

    Parameters
    ----------
    rows : sequence of Row
        Those of an experiment; one that is named and not among them is added.
    names : iterable of str
        Rows such as ``ads+sl``, or strategies such as ``ads``, which are all rows of that strategy.

    Raises
    ------
    ValueError
        There is no such row.
    """
    wanted = {"teacher", "continued"} | {name.strip().lower() for name in names}
    there = {row.strategy for row in rows}
    added = [row for name in sorted(wanted) if (row := _row(name)) is not None and row not in rows]
    rows = (*rows, *(row for row in added if row.teminal or row.soft_labels or row.strategy not in there))
    known = {row.strategy for row in rows} | {row.name for row in rows} | {"teacher", "continued"}
    if unknown := sorted(wanted - known):
        raise ValueError(f"unknown row {', '.join(unknown)}; the rows are {', '.join(row.name for row in rows)}")
    return tuple(row for row in rows if row.name in wanted or (row.strategy in wanted and not row.teminal))


def _row(name: str) -> Row | None:
    """Return the row of a name; None where there is no such row."""
    try:
        return Row.parse(name)
    except ValueError:
        return None
