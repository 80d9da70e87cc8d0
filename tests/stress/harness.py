"""What every campaign is built on: numbered steps with a seed each, a deadline, counts, failures.

A step is what can be repeated alone. Its random numbers depend on the seed, the campaign and its number, never on what
ran before it or beside it.
"""

import random
import shutil
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Failure:
    """Something that was lost, wrong or left behind, and how to see it again."""

    campaign: str
    step: int
    what: str
    repeat: str
    kept: str | None
    # the folder with everything as it was


@dataclass
class Run:
    """One campaign while it runs.

    Parameters
    ----------
    campaign : str
    seed : int
    folder : Path
        Its own, for homes and sounds.
    deadline : float
        Of `time.monotonic`; no step begins after it.
    jobs : int
        Steps at a time.
    only_step : int, optional
        Run this step alone.
    """

    campaign: str
    seed: int
    folder: Path
    deadline: float
    jobs: int = 2
    only_step: int | None = None
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    skipped: str = ""
    # why nothing was run
    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def random(self, step: int) -> random.Random:
        """Return the random numbers of a step."""
        return random.Random(f"{self.seed}/{self.campaign}/{step}")

    def count(self, what: str, number: int = 1) -> None:
        """Add to a line of the summary."""
        with self._lock:
            self.counts[what] += number

    def say(self, text: str) -> None:
        """Print a line of progress."""
        with self._lock:
            print(f"[{time.strftime('%H:%M:%S')}] {self.campaign}: {text}", file=sys.stderr, flush=True)

    def fail(self, step: int, what: str, kept: Path | None = None) -> None:
        """Note a failure; `kept` is left in its place."""
        options = f"--seed {self.seed} --only {self.campaign} --step {step}"
        repeat = f'make stress ARGS="{options}"'
        with self._lock:
            self.failures.append(Failure(self.campaign, step, what, repeat, str(kept) if kept else None))
        self.say(f"FAILED in step {step}: {what}\n    repeat: {repeat}" + (f"\n    kept: {kept}" if kept else ""))

    def has_time(self) -> bool:
        """Return whether another step may begin."""
        return time.monotonic() < self.deadline

    def steps(self, numbers: Iterable[int], work: Callable[[int], None]) -> None:
        """Do numbered steps, several at a time; what comes after the deadline is counted as not reached."""
        chosen = list(numbers)
        if self.only_step is not None:
            chosen = [number for number in chosen if number == self.only_step]

        def attempt(number: int) -> None:
            if not self.has_time():
                self.count("steps not reached")
                return
            try:
                work(number)
            except Exception:  # a fault of ours or of what is tested: the other steps are done all the same
                self.fail(number, f"the step itself broke:\n{traceback.format_exc()}")
            self.count("steps")

        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(attempt, chosen))

    def drop(self, folder: Path, step: int) -> None:
        """Remove the folder of a step unless the step failed."""
        if not any(failure.step == step for failure in self.failures):
            shutil.rmtree(folder, ignore_errors=True)
