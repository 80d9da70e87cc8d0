"""The files of a saved model: config and weights, read back exactly or not at all.

PyTorch's `strict=False` silently skips tensors that do not fit, and the model then uses random weights; using a default
for a setting that is missing in the file would be just as wrong.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clapcur.errors import CheckpointError
from clapcur.models.config import ClapConfig

FORMAT = "clapcur.clap/2"
"""Stands in every config.json; the number goes up with every key that is added."""

ADDED: Mapping[str, Mapping[str, object]] = {
    "clapcur.clap/1": {
        "audio": {"front_end": {"filter_rate": None, "int16": False}, "htsat": None},
        "text": {"suffix": ""},
        "short": "repeat",
        "projection": "residual",
    }
}
"""What models of older formats were, in the keys that their config.json lacks."""

SHOWN = 10
"""Names in a message, of each kind; more are counted."""


def write_config(config: ClapConfig, path: Path) -> None:
    """Write a config as JSON for people and for `read_config`."""
    values = {"format": FORMAT, "model": config.to_dict()}
    path.write_text(json.dumps(values, indent=1) + "\n")


def read_config(path: Path) -> ClapConfig:
    """Read a config that `write_config` wrote.

    Raises
    ------
    CheckpointError
        The file is missing, is not a clapcur config, or has other keys than this version's configs.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a model folder: it has no {path.name}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, Mapping) or values.get("format") not in (FORMAT, *ADDED):
        raise CheckpointError(f'{path} is not the config of a clapcur model ("format": "{FORMAT}")')
    try:
        values = {**values, "model": _completed(values["model"], ADDED.get(values["format"], {}))}
        config = ClapConfig.from_dict(values["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if lacking := _keys(config.to_dict()) - _keys(values["model"]):
        raise CheckpointError(
            f"{path} lacks {', '.join(sorted(lacking))}; a default might differ from what the model was trained with"
        )
    return config


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that contain a NaN or an infinity."""
    return [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all parameters and persistent buffers, on any device and in any memory layout.

    Raises
    ------
    CheckpointError
        A weight is not finite: the model would return NaN.
    """
    if spoilt := not_finite(model.state_dict()):
        raise CheckpointError(f"the model was not saved: these weights are not finite: {_some(spoilt)}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` with the weights of a file.

    Raises
    ------
    CheckpointError
        The file is missing or damaged, or its names, shapes or types are not the model's; all are listed.
    """
    try:
        found = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"the weights file {path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read the weights {path}; was the file truncated? {error}") from error
    expected = model.state_dict()
    changed = [
        f"{name} ({_kind(found[name])}, expected {_kind(expected[name])})"
        for name in expected.keys() & found.keys()
        if _kind(found[name]) != _kind(expected[name])
    ]
    problems = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys(),
        "of another shape": changed,
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_some(sorted(names))}" for kind, names in problems.items() if names)
        raise CheckpointError(f"the weights {path} belong to a different model; {listed}")
    model.load_state_dict(found)


def _completed(values: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Add the settings that an older format lacks."""
    nested = {key: _completed(values[key], value) for key, value in added.items() if isinstance(value, Mapping)}
    return {**added, **values, **nested}


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _keys(values: Mapping[str, object], prefix: str = "") -> set[str]:
    nested = {f"{prefix}{key}.": value for key, value in values.items() if isinstance(value, dict)}
    inner = (_keys(value, path) for path, value in nested.items())
    return {f"{prefix}{key}" for key in values}.union(*inner)
