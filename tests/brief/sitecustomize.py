"""Makes our defaults small, so that a documented command takes seconds: few examples and pairs, a window of a second.

A Python process loads a module of this name from PYTHONPATH when it starts; the one in tests/offline is loaded too.
"""

import dataclasses
import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_offline = importlib.util.spec_from_file_location(
    "clapcur_offline_guard", Path(__file__).resolve().parents[1] / "offline" / "sitecustomize.py"
)
assert _offline is not None and _offline.loader is not None
_offline.loader.exec_module(importlib.util.module_from_spec(_offline))

_load = SourceFileLoader.exec_module


def load(loader: SourceFileLoader, module: ModuleType) -> None:
    """Load a module, and shorten the defaults where it is the one that has them."""
    _load(loader, module)
    if module.__name__ == "clapcur.experiments.config":
        shorten(module)


def shorten(config: Any) -> None:
    """Let an experiment train small towers on 16 examples, and choose 12 pairs."""
    real = config.defaults

    def brief() -> Any:
        experiment = real()
        trainings = {
            role: dataclasses.replace(getattr(experiment, role), num_examples=16, batch_size=8)
            for role in ("teacher", "student")
        }
        audio = dataclasses.replace(
            experiment.teacher.model.audio,
            front_end=config.FrontEndConfig(sample_rate=16_000, n_fft=512, hop_samples=320, num_mels=40, f_max=7800.0),
        )
        model = dataclasses.replace(experiment.teacher.model, audio=audio, window_s=1.0, embedding_dim=32)
        trainings["teacher"] = dataclasses.replace(trainings["teacher"], model=model)
        few = config.Threshold(count=12)
        # to a model that has learned nothing, everything sounds alike
        curation = dataclasses.replace(
            experiment.curation, audio_threshold=few, caption_threshold=few, near_duplicate=None
        )
        return dataclasses.replace(experiment, **trainings, curation=curation)

    config.defaults = brief


SourceFileLoader.exec_module = load  # type: ignore[method-assign]
