"""The table of a report: ``table.json``."""

from dataclasses import dataclass

from clapcur.data.rows import Row, Strategy
from clapcur.data.scores import Contamination, Protocol
from clapcur.store.payloads import Payload


@dataclass(frozen=True, kw_only=True)
class Change:
    """A paired change in accuracy, -1 to 1, with its interval."""

    change: float
    interval: tuple[float, float]
    num_seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        low, high = self.interval
        return low > 0 or high < 0


@dataclass(frozen=True, kw_only=True)
class SeedScores:
    """The scores of one seed of a row, None if nothing was measured, and the ids of its artifacts."""

    seed: int
    accuracy: float | None
    interval: tuple[float, float] | None
    transductive: float | None
    scores: str | None
    checkpoint: str
    improvement_set: str | None
    contamination: Contamination
    order_scores: str | None = None


@dataclass(frozen=True, kw_only=True)
class OrderLine:
    """How well a row recognises the order of two sounds, over its seeds: the task ``order`` of ZSTE, 0 to 1."""

    score: float
    interval: tuple[float, float]
    chance: float
    relations: float
    # mean of the published tasks that ask for the relation of two sounds
    vs_teacher: Change | None


@dataclass(frozen=True, kw_only=True)
class ReportLine:
    """One line of the table: a strategy, with or without soft labels, over its seeds.

    Accuracies are 0 to 1, and None if there was no evaluation set.
    """

    name: str
    strategy: Strategy
    soft_labels: bool
    num_seeds: int
    accuracy: float | None
    # mean over seeds
    sd: float | None
    # over seeds; None for a single seed
    interval: tuple[float, float] | None
    vs_teacher: Change | None
    vs_continued: Change | None
    transductive: float | None
    transductive_interval: tuple[float, float] | None
    transductive_vs_teacher: Change | None
    contamination: Contamination
    # of the worst seed
    by_seed: list[SeedScores]
    teminal: bool = False
    order: OrderLine | None = None
    # if it was scored

    @property
    def row(self) -> Row:
        """The row of the comparison."""
        return Row(strategy=self.strategy, soft_labels=self.soft_labels, teminal=self.teminal)


@dataclass(frozen=True, kw_only=True)
class ReportProtocol(Protocol):
    """What all rows share: the protocol, and the common settings of the trainings."""

    budget: list[int]
    # numbers of training examples of the students; one number if the comparison is fair
    selection: list[str]
    # how the weights were selected
    order: str | None = None
    # how order was scored, in words


@dataclass(frozen=True, kw_only=True)
class ReportTable(Payload):
    """A title, what all rows share, and the rows in the paper's order."""

    KIND = "report"
    FILE = "table.json"

    title: str
    note: str
    protocol: ReportProtocol
    rows: list[ReportLine]

    @property
    def is_measured(self) -> bool:
        """Whether there was an evaluation set; if not, no row has an accuracy."""
        return all(line.accuracy is not None for line in self.rows)

    @property
    def best(self) -> ReportLine | None:
        """The most accurate row that is neither teacher nor control; None without a teacher to compare with."""
        students = [line for line in self.rows if line.row.is_student and line.vs_teacher]
        return max(students, key=lambda line: line.accuracy or 0.0, default=None)

    @property
    def conclusion(self) -> str:
        """The verdict in words, or that nothing was measured; empty if there is nothing to compare."""
        return NOT_MEASURED if not self.is_measured else self.verdict.text if self.verdict else ""

    @property
    def verdict(self) -> "Verdict | None":
        """Whether the best student beats the teacher, and which model to use; None if there is nothing to compare."""
        teacher = next((line for line in self.rows if line.row.is_teacher), None)
        if teacher is None or (best := self.best) is None or best.vs_teacher is None:
            return None
        students = [line for line in self.rows if line.row.is_student]
        return Verdict(teacher=teacher, best=best, num_students=len(students))

    @property
    def seeds(self) -> list[tuple[ReportLine, SeedScores]]:
        """Every row with each of its seeds."""
        return [(line, seed) for line in self.rows for seed in line.by_seed]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The conclusion of a comparison: whether the best student is better than the teacher, and which model to use."""

    teacher: ReportLine
    best: ReportLine
    num_students: int

    @property
    def is_better(self) -> bool:
        """Whether the interval of the best student's change from the teacher is above zero."""
        return self.best.vs_teacher is not None and self.best.vs_teacher.interval[0] > 0

    @property
    def line(self) -> ReportLine:
        """The row to use: the best student if it is better, otherwise the teacher."""
        return self.best if self.is_better else self.teacher

    @property
    def checkpoint(self) -> str:
        """The id of the checkpoint to use: the row's first seed, since choosing the best seed would bias its score."""
        return self.line.by_seed[0].checkpoint

    @property
    def text(self) -> str:
        """The verdict in a few sentences."""
        assert self.best.vs_teacher is not None
        name, (low, high) = self.best.name, self.best.vs_teacher.interval
        is_worse = high < 0
        found = "is better than" if self.is_better else "is worse than" if is_worse else "is not better than"
        sentences = [f"{name} {found} its teacher: {change_in_points(self.best.vs_teacher)} points."]
        control = self.best.vs_continued
        if self.is_better and control is not None and control.interval[0] <= 0:
            sentences.append(
                f"It is not better than the continued teacher ({change_in_points(control)}): the gain may come from "
                "more training instead of the new pairs."
            )
        if self.num_students > 1:
            sentences.append(
                f"It is the best of {self.num_students} students; the interval does not correct for this selection."
            )
        known = [line.name for line in (self.teacher, self.best) if line.contamination.status == "contaminated"]
        if known:
            sentences.append(
                f"The scores of {' and '.join(known)} are contaminated: some evaluation clips were used in training."
            )
        sentences.append(f"Use {name}." if self.is_better else "Keep the teacher.")
        if not self.is_better and not is_worse and high - low > WIDE:
            sentences.append(
                f"The interval spans {100 * (high - low):.0f} points: more evaluation clips from more recordings would "
                "narrow it."
            )
        return " ".join(sentences)


NOT_MEASURED = (
    "No evaluation set: nothing was measured. Label a sample: `clapcur label POOL --classes classes.txt`, then run "
    "again with --evaluation, or with `evaluation` in the experiment file."
)
WIDE = 0.1  # accuracy, 0 to 1: a wider interval can hide a gain that people would want; ours


def change_in_points(change: Change) -> str:
    """Return a change in points with its interval, such as ``-4.0 [-11.7, +2.5]``."""
    low, high = change.interval
    return f"{100 * change.change:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
