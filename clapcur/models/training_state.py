"""What a training must remember to continue as if it had never stopped.

Weights, optimiser moments and the best weights so far go into one safetensors file, numbers and history into one JSON
file; both are replaced atomically, the JSON last. No pickle.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from clapcur.errors import CheckpointError, Interrupted
from clapcur.models.folder import not_finite
from clapcur.store.artifacts import HISTORY, TIMES, write_atomic


class TrainingState:
    """Step, weights, optimiser, best weights and history of one training."""

    def __init__(self, model: torch.nn.Module, optimiser: torch.optim.Optimizer, path: Path):
        self.model, self.optimiser, self.path = model, optimiser, path
        self.step = 0
        self.micro_batch: int | None = None  # pairs, once a step was taken; smaller after the memory ran out
        self.best_loss = float("inf")
        self.best_step = 0
        self._best: dict[str, torch.Tensor] = {}
        self._history: list[dict[str, Any]] = []
        self._times: list[dict[str, Any]] = []

    def note(
        self, step: int, metrics: Mapping[str, float], on_step: Callable[[int, Mapping[str, float]], None],
        measured: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """Add the metrics of a step to the history and tell who listens.

        Parameters
        ----------
        step : int
        metrics : mapping of str to float
        on_step : callable
            Is told the step and all figures.
        measured : mapping of str to float, optional
            Speed and memory. They are kept apart with the time: a run that is equal has other figures.
        """
        measured = measured or {}
        self._history.append({"step": step, **metrics})
        self._times.append({"step": step, "time_ms": time.time_ns() // 1_000_000, **measured})
        on_step(step, {**metrics, **measured})

    def first(self, name: str) -> float:
        """Return the first value of a metric in the history, of this process or of the one that was killed."""
        return float(next(row[name] for row in self._history if name in row))

    def keep_best(self, loss: float) -> None:
        """Remember the present weights as the best so far."""
        self.best_loss, self.best_step = loss, self.step
        self._best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    @property
    def has_best(self) -> bool:
        """Whether any weights were the best so far."""
        return bool(self._best)

    def restore_best(self) -> None:
        """Put the best weights back into the model; without any, the present ones stay."""
        if self._best:
            self.model.load_state_dict(self._best)

    def save(self) -> None:
        """Write everything, so that a kill at any moment leaves the last state or this one.

        Raises
        ------
        CheckpointError
            A weight is not finite: the last state is kept.
        """
        if spoilt := not_finite(self.model.state_dict()):
            raise CheckpointError(
                f"these weights are not finite after step {self.step}: {', '.join(spoilt[:5])}; lower the learning "
                "rate. The previous saved state is kept"
            )
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        numbers: dict[str, Any] = {}
        for index, moments in self.optimiser.state_dict()["state"].items():
            for name, value in moments.items():
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value)
        name = f"{self.path.name}-{self.step}.safetensors"
        numbers |= {
            "tensors": name, "step": self.step, "micro_batch": self.micro_batch,
            "best_step": self.best_step,
            "best_loss": self.best_loss if self._best else None, "history": self._history, "times": self._times,
        }  # fmt: skip
        target = self.path.with_name(name)
        temporary = target.with_suffix(".tmp")
        save_file({key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, temporary)
        os.replace(temporary, target)
        write_atomic(self.path.with_suffix(".json"), json.dumps(numbers))
        for old in self.path.parent.glob(f"{self.path.name}-*.safetensors"):
            if old != target:
                old.unlink()

    def load(self) -> bool:
        """Go on from a saved state, if there is one."""
        numbers_file = self.path.with_suffix(".json")
        if not numbers_file.exists():
            return False
        numbers = json.loads(numbers_file.read_text())
        tensors = load_file(self.path.with_name(numbers["tensors"]))

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self._best = part("best.")
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in part("optimiser.").items():
            index, field = name.split(".", 1)
            moments.setdefault(int(index), {})[field] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        self.step, self.best_step = numbers["step"], numbers["best_step"]
        self.micro_batch = numbers["micro_batch"]
        self.best_loss = float("inf") if numbers["best_loss"] is None else numbers["best_loss"]
        self._history = numbers["history"]
        self._times = numbers.get("times") or [  # one list had both in states of older versions
            {"step": row["step"], "time_ms": row.pop("time_ms")} for row in self._history
        ]
        return True

    def write_history(self, folder: Path) -> None:
        """Write the history as one JSON object a line, and in a file beside it when each line was noted."""
        for name, rows in ((HISTORY, self._history), (TIMES, self._times)):
            write_atomic(folder / name, "".join(json.dumps(row) + "\n" for row in rows))

    def summary(self) -> dict[str, float]:
        """Return the figures that represent the whole training."""
        losses = [row["loss"] for row in self._history if "loss" in row]
        figures: dict[str, float] = {"steps": self.step, "loss": sum(losses[-10:]) / max(1, len(losses[-10:]))}
        if self._best:
            figures |= {"held_out_loss": self.best_loss, "best_step": self.best_step}
        return figures


class StopRequest:
    """Turns SIGTERM into a flag that the loop reads between two steps; the old handler returns afterwards."""

    def __init__(self) -> None:
        self.is_set = False
        self._previous: Any = None

    def __enter__(self) -> "StopRequest":
        """Listen; only the main thread of a process may."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._set)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop listening."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True

    def leave(self, message: str) -> None:
        """End the work in good order."""
        raise Interrupted(message)
