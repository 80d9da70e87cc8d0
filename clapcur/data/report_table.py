"""The table of a report: ``table.json``."""

from dataclasses import dataclass

from clapcur.data.rows import Row
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
        """Whether the interval leaves out zero."""
        low, high = self.interval
        return low > 0 or high < 0


@dataclass(frozen=True, kw_only=True)
class SeedScores:
    """What one seed of a row reached, and the ids of what was made."""

    seed: int
    accuracy: float
    interval: tuple[float, float]
    transductive: float
    scores: str
    checkpoint: str
    improvement_set: str | None
    contamination: Contamination
    order_scores: str | None = None


@dataclass(frozen=True, kw_only=True)
class OrderLine:
    """What a row hears of the order of two sounds, over its seeds: the task ``order`` of ZSTE, 0 to 1."""

    score: float
    interval: tuple[float, float]
    chance: float
    relations: float
    # mean of the published tasks that ask for the relation of two sounds
    vs_teacher: Change | None


@dataclass(frozen=True, kw_only=True)
class ReportLine:
    """One line of the table: a strategy, with or without soft labels, over its seeds. Accuracies are 0 to 1."""

    name: str
    strategy: str
    soft_labels: bool
    num_seeds: int
    accuracy: float
    # mean over seeds
    sd: float | None
    # over seeds; None for one
    interval: tuple[float, float]
    vs_teacher: Change | None
    vs_continued: Change | None
    transductive: float
    transductive_interval: tuple[float, float]
    transductive_vs_teacher: Change | None
    contamination: Contamination
    # of the worst seed
    by_seed: list[SeedScores]
    order: OrderLine | None = None
    # where it was scored

    @property
    def row(self) -> Row:
        """The row of the comparison."""
        return Row.parse(self.name)


@dataclass(frozen=True, kw_only=True)
class ReportProtocol(Protocol):
    """What holds for every row: the protocol, and what the trainings had in common."""

    budget: list[int]
    # numbers of examples of the students: one, where the comparison is fair
    selection: list[str]
    # what chose the weights
    order: str | None = None
    # how order was scored, in words


@dataclass(frozen=True, kw_only=True)
class ReportTable(Payload):
    """A title, what holds for every row, and the rows in the paper's order."""

    KIND = "report"
    FILE = "table.json"

    title: str
    note: str
    protocol: ReportProtocol
    rows: list[ReportLine]

    @property
    def best(self) -> ReportLine | None:
        """The most accurate row that is neither teacher nor control, where there is a teacher to compare it with."""
        students = [line for line in self.rows if line.row.is_student and line.vs_teacher]
        return max(students, key=lambda line: line.accuracy, default=None)

    @property
    def seeds(self) -> list[tuple[ReportLine, SeedScores]]:
        """Every row with each of its seeds."""
        return [(line, seed) for line in self.rows for seed in line.by_seed]
