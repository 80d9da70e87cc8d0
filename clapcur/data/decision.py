"""The decision on whether a new student replaces the champion: ``decision.json``."""

from dataclasses import dataclass

from clapcur.store.payloads import Payload


@dataclass(frozen=True, kw_only=True)
class Decision(Payload):
    """Champion against challenger on one dataset; both are ids of checkpoints."""

    KIND = "decision"
    FILE = "decision.json"

    dataset: str
    champion: str
    challenger: str
    promoted: bool
    why: str
    # in words
    accuracy: dict[str, float]
    # of champion and challenger, 0 to 1
    change: float
    interval: tuple[float, float]
    # of `change`, paired by clip
    num_clips: int
    num_recordings: int
