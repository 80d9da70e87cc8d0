"""Gate: may a new student replace the champion? Two scores on the same clips -> a decision.

The challenger must be better by more than chance: the lower end of the interval of the paired change, over source
recordings, must exceed ``min_change``. The decision and its numbers are stored either way. Labelled clips that are used
for many decisions gradually lose their value as evidence: if you can, give the gate clips whose scores you do not
report.

Payload: ``decision.json``.
"""

from collections.abc import Mapping

from clapcur.config import check_seed, frozen
from clapcur.data.decision import Decision
from clapcur.data.scores import predictions
from clapcur.errors import DataError
from clapcur.methods.metrics import paired_change
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.record import Outcome


@frozen
class GateConfig:
    """What to decide, and at which level of confidence."""

    dataset: str
    """Dataset of the champion."""
    min_change: float = 0.0
    """Minimum change in accuracy, in [-1, 1]; the lower end of the interval of the change must exceed it."""
    level: float = 0.95
    """Confidence level of the interval."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        """Raise ValueError unless the level is in (0, 1)."""
        check_seed(self.seed)
        if not 0 < self.level < 1:
            raise ValueError(f"level must be in (0, 1), got {self.level:g}; a percentage?")


def decide(inputs: Mapping[str, Artifact], config: GateConfig, work: Workspace) -> Outcome:
    """Write the decision.

    Inputs by role: the checkpoints ``champion`` and ``challenger``; their scores on the same evaluation,
    ``champion_scores`` and ``challenger_scores``; and ``teacher``, only to record it.

    Raises
    ------
    DataError
        The two scores are of different clips.
    """
    scored = {role: predictions(inputs[f"{role}_scores"]) for role in ("champion", "challenger")}
    before, after = scored["champion"], scored["challenger"]
    if before.clip_id.tolist() != after.clip_id.tolist():
        raise DataError(
            f"champion and challenger must be scored on the same clips, got {len(before)} and {len(after)} clips with "
            f"{len(set(before.clip_id) & set(after.clip_id))} in common; evaluate both on the same manifest"
        )
    correct = {role: (table.predicted == table.label).to_numpy() for role, table in scored.items()}
    change, low, high = paired_change(
        correct["champion"], correct["challenger"], after.group.to_numpy(str), level=config.level, seed=config.seed
    )
    is_better = low > config.min_change
    accuracy = {role: float(values.mean()) for role, values in correct.items()}
    Decision(
        dataset=config.dataset,
        champion=inputs["champion"].id,
        challenger=inputs["challenger"].id,
        promoted=bool(is_better),
        why=_why(accuracy, (change, low, high), config),
        accuracy=accuracy,
        change=change,
        interval=(low, high),
        num_clips=len(after),
        num_recordings=int(after.group.nunique()),
    ).write(work.path)
    metrics = {f"accuracy_{role}": value for role, value in accuracy.items()}
    return Outcome(
        counts={"clips": len(after)},
        metrics=metrics | {"change": change, "change_low": low, "change_high": high, "promoted": float(is_better)},
    )


def _why(accuracy: Mapping[str, float], change: tuple[float, float, float], config: GateConfig) -> str:
    mean, low, high = (100 * value for value in change)
    said = (
        f"{100 * accuracy['challenger']:.1f} % against {100 * accuracy['champion']:.1f} %, a change of {mean:+.1f} "
        f"[{low:+.1f}, {high:+.1f}]"
    )
    is_better = low > 100 * config.min_change
    return f"{said}: the interval is {'' if is_better else 'not '}above {100 * config.min_change:+.1f}"


STAGE = Stage("gate", "1", "decision", decide)
