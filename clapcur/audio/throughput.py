"""Pace: how fast rows are embedded, and how much of the time nothing was there to be embedded."""

from dataclasses import dataclass


@dataclass
class Pace:
    """What was embedded, and how long it took; adds up over shares of the work."""

    rows: int = 0
    audio_s: float = 0.0  # of the clips behind the rows, whole; 0 for text
    wall_s: float = 0.0
    waiting_s: float = 0.0  # of `wall_s`, in which the next batch was not decoded yet

    def __add__(self, other: "Pace") -> "Pace":
        """Return the sum: of two workers, with `wall_s` as if one had worked after the other."""
        return Pace(
            self.rows + other.rows, self.audio_s + other.audio_s, self.wall_s + other.wall_s,
            self.waiting_s + other.waiting_s,
        )  # fmt: skip

    def metrics(self, elapsed_s: float | None = None) -> dict[str, float]:
        """Return rows a second, seconds of audio a second and the share of time that waited for data.

        `elapsed_s` is what passed on the clock, where that is not `wall_s`. Before the first row there is nothing.
        """
        elapsed_s = self.wall_s if elapsed_s is None else elapsed_s
        if not self.rows or not elapsed_s or not self.wall_s:
            return {}
        told = {"rows_per_s": self.rows / elapsed_s}
        if self.audio_s:
            told |= {"real_time_factor": self.audio_s / elapsed_s, "waiting_share": self.waiting_s / self.wall_s}
        return told

    def __str__(self) -> str:
        """Say it in a few words, for the end of a line of progress."""
        told = self.metrics()
        words = [f"{told['rows_per_s']:,.1f}/s"] if told else []
        if "waiting_share" in told:
            words += [f"{told['real_time_factor']:,.0f} x real time", f"{told['waiting_share']:.0%} waiting for data"]
        return ", ".join(words)
