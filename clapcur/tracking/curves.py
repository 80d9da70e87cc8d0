"""Metrics on their way from a training loop to whoever shows them, without holding up the loop."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from clapcur.errors import Interrupted

FLUSH_S = 2.0  # points of so long a time travel together
CLOSE_S = 10.0  # how long the end of a training waits for its last points
CLOSE_TURNS = 20

Point = tuple[int, int, Mapping[str, float]]  # step, time (ms since 1970), metrics
log = logging.getLogger("clapcur")


class Live:
    """A function (step, metrics) that returns at once and never raises.

    Parameters
    ----------
    send : callable
        Is given the points since the last time, in a thread; first an empty list, to get ready.
        After its first error nothing more is sent.
    close : callable
        Is called at the end, with how the block ended if it did by an error and anything was sent, else with None.
    """

    def __init__(self, send: Callable[[list[Point]], None], close: Callable[[str | None], None]) -> None:
        self._send, self._close = send, close
        self._points: queue.SimpleQueue[Point | str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._pump, daemon=True)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of a step; begin to send where no block was entered."""
        if self._thread.ident is None:
            self._thread.start()
        self._points.put((step, time.time_ns() // 1_000_000, dict(metrics)))

    def __enter__(self) -> "Live":
        """Begin to send, so that the training is seen before its first step."""
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Send the rest; say FAILED or, for a wanted stop, KILLED where there was an error."""
        stopped = isinstance(error, (KeyboardInterrupt, Interrupted))
        self._points.put(None if error is None else "KILLED" if stopped else "FAILED")
        for _ in range(CLOSE_TURNS):  # a process that is asleep meanwhile spends one turn, not all the time
            self._thread.join(CLOSE_S / CLOSE_TURNS)

    def _pump(self) -> None:
        try:
            self._send([])
            sent = 0
            while True:
                points, ended, status = self._gather()
                if points:
                    self._send(points)
                    sent += len(points)
                if ended:
                    self._close(status if sent else None)
                    return
        except Exception as error:  # the training continues; `history.jsonl` has every point
            log.warning("curves are not updated during training: %s", " ".join(str(error).split()))

    def _gather(self) -> tuple[list[Point], bool, str | None]:
        """Wait for points, return those of the next `FLUSH_S`, whether it ended and how."""
        points: list[Point] = []
        deadline = time.monotonic() + FLUSH_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                said = self._points.get(timeout=left)
            except queue.Empty:
                break
            if not isinstance(said, tuple):
                return points, True, said
            points.append(said)
        return points, False, None
