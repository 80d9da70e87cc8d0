"""Send metrics from a training loop to MLflow without delaying the loop."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from clapcur.errors import Interrupted

FLUSH_S = 2.0  # points of this period are sent together
CLOSE_S = 10.0  # how long the end of a training waits until its last points are sent
CLOSE_TURNS = 20

Point = tuple[int, int, Mapping[str, float]]  # step, time (ms since 1970), metrics
log = logging.getLogger("clapcur")


class Live:
    """A function (step, metrics) that returns at once and never raises.

    Parameters
    ----------
    send : callable
        Called in a thread with the points since its last call; the first call has an empty list, for preparation. After
        its first error it is not called again.
    close : callable
        Called at the end with ``FAILED`` or ``KILLED`` if an error ended the block and any point was sent, else with
        None.
    """

    def __init__(self, send: Callable[[list[Point]], None], close: Callable[[str | None], None]) -> None:
        self._send, self._close = send, close
        self._points: queue.SimpleQueue[Point | str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._pump, daemon=True)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue the metrics of a step; start sending if no block was entered."""
        if self._thread.ident is None:
            self._thread.start()
        self._points.put((step, time.time_ns() // 1_000_000, dict(metrics)))

    def __enter__(self) -> "Live":
        """Start sending, so that the training is visible before its first step."""
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Send the remaining points and the status: FAILED after an error, KILLED after a requested stop."""
        stopped = isinstance(error, (KeyboardInterrupt, Interrupted))
        self._points.put(None if error is None else "KILLED" if stopped else "FAILED")
        for _ in range(CLOSE_TURNS):  # if the process is suspended meanwhile, it loses one turn, not the whole wait
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
        """Wait up to `FLUSH_S`; return the points received, whether the block ended, and its status."""
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
