"""What a training must remember to go on as if it had never stopped.

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

from clapcur.artifacts import write_atomic
from clapcur.errors import Interrupted


class TrainingState:
    """Step, weights, optimiser, best weights and history of one training."""

    def __init__(self, model: torch.nn.Module, optimiser: torch.optim.Optimizer, path: Path):
        self.model, self.optimiser, self.path = model, optimiser, path
        self.step = 0
        self.skipped = 0
        self.micro_batch: int | None = None  # pairs, once a step was taken; smaller after the memory ran out
        self.best_loss = float("inf")
        self.best_step = 0
        self._best: dict[str, torch.Tensor] = {}
        self._history: list[dict[str, Any]] = []

    def note(
        self, step: int, metrics: Mapping[str, float], on_step: Callable[[int, Mapping[str, float]], None]
    ) -> None:
        """Add the metrics of a step to the history and tell who listens."""
        self._history.append({"step": step, "time_ms": time.time_ns() // 1_000_000, **metrics})
        on_step(step, metrics)

    def keep_best(self, loss: float) -> None:
        """Remember the present weights as the best so far."""
        self.best_loss, self.best_step = loss, self.step
        self._best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def restore_best(self) -> None:
        """Put the best weights back into the model; without any, the present ones stay."""
        if self._best:
            self.model.load_state_dict(self._best)

    def save(self) -> None:
        """Write everything, so that a kill at any moment leaves the last state or this one."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        numbers: dict[str, Any] = {}
        for index, moments in self.optimiser.state_dict()["state"].items():
            for name, value in moments.items():
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value)
        name = f"{self.path.name}-{self.step}.safetensors"
        numbers |= {
            "tensors": name, "step": self.step, "skipped": self.skipped, "micro_batch": self.micro_batch,
            "best_step": self.best_step,
            "best_loss": self.best_loss if self._best else None, "history": self._history,
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
        self.step, self.skipped, self.best_step = numbers["step"], numbers["skipped"], numbers["best_step"]
        self.micro_batch = numbers["micro_batch"]
        self.best_loss = float("inf") if numbers["best_loss"] is None else numbers["best_loss"]
        self._history = numbers["history"]
        return True

    def write_history(self, path: Path) -> None:
        """Write the history as one JSON object a line."""
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in self._history))

    def summary(self) -> dict[str, float]:
        """Return the figures that stand for the whole training."""
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
