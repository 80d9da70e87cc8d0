"""Throughput of embedding: rows per second, and the share of time spent waiting for data."""

from dataclasses import dataclass


@dataclass
class Pace:
    """The amount of work and the time it took; can be summed over parts of the work."""

    rows: int = 0
    audio_s: float = 0.0  # total duration of the clips; 0 for text
    wall_s: float = 0.0
    waiting_s: float = 0.0  # part of `wall_s` in which the next batch was not decoded yet

    def __add__(self, other: "Pace") -> "Pace":
        """Return the sum; for two workers, `wall_s` is as if they had worked one after the other."""
        return Pace(
            self.rows + other.rows, self.audio_s + other.audio_s, self.wall_s + other.wall_s,
            self.waiting_s + other.waiting_s,
        )  # fmt: skip

    def metrics(self, elapsed_s: float | None = None) -> dict[str, float]:
        """Return rows per second, seconds of audio per second and the share of time spent waiting for data.

        `elapsed_s` is the elapsed time if it differs from `wall_s`. Before the first row, the result is empty.
        """
        elapsed_s = self.wall_s if elapsed_s is None else elapsed_s
        if not self.rows or not elapsed_s or not self.wall_s:
            return {}
        told = {"rows_per_s": self.rows / elapsed_s}
        if self.audio_s:
            told |= {"real_time_factor": self.audio_s / elapsed_s, "waiting_share": self.waiting_s / self.wall_s}
        return told

    def __str__(self) -> str:
        """Return a short text for the end of a progress line."""
        told = self.metrics()
        words = [f"{told['rows_per_s']:,.1f}/s"] if told else []
        if "waiting_share" in told:
            words += [f"{told['real_time_factor']:,.0f} x real time", f"{told['waiting_share']:.0%} waiting for data"]
        return ", ".join(words)
