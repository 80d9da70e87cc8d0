"""Containers: the file that torch wrote, safetensors, a folder; to a plain dictionary of tensors and back.

This is the one place where a pickle may be read, and only where the caller said so.
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clapcur.errors import CheckpointError

WRAPPERS = ("state_dict", "model")
"""Keys under which files keep their tensors, beside epochs, optimisers and the like."""


def read_tensors(path: Path, pickled: bool = False) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of a file, without wrappers and without the "module." of torch's parallel models.

    Parameters
    ----------
    path : Path
    pickled : bool
        Whether a file that holds more than tensors and numbers may be read. Such a file can run any code when it is
        opened: say so for files of people you trust only.

    Returns
    -------
    tensors : dict
    container : str
        Where in the file they were, for people.

    Raises
    ------
    CheckpointError
        The file is missing, damaged or no checkpoint, or would need `pickled`.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    if path.suffix == ".safetensors":
        try:
            return _without_module(load_file(path), "safetensors")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read, was it cut off? {error}") from error
    return _unwrapped(_load(path, pickled), path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, container: str | None) -> None:
    """Write tensors as torch does, under `container` if it names one; with safetensors where the name ends so."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(plain, path, metadata={"format": "pt"})
    else:
        torch.save({container: plain} if container else plain, path)


def _load(path: Path, pickled: bool) -> Any:
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]  # a number, as training scripts leave it
    numbers = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    dtypes = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "bool"))]
    try:
        with torch.serialization.safe_globals([*numbers, *dtypes]):  # type: ignore[list-item]
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if not pickled:
            raise CheckpointError(
                f"{path} holds more than tensors, which could run any code when it is opened: {_reason(error)}; if you "
                "trust where it came from, load it with pickled=True"
            ) from error
    except (EOFError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint that torch reads, was it cut off? {error}") from error
    return torch.load(path, map_location="cpu", weights_only=False)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "WeightsUnpickler error" in line]
    return (lines or str(error).splitlines() or ["unknown"])[0]


def _unwrapped(loaded: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    where = "bare"
    while True:
        if isinstance(loaded, nn.Module):
            loaded = loaded.state_dict()
        if not isinstance(loaded, Mapping):
            raise CheckpointError(f"{path} holds a {type(loaded).__name__}, expected tensors by name")
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return _without_module(dict(loaded), where)
        inner = next((key for key in WRAPPERS if isinstance(loaded.get(key), (Mapping, nn.Module))), None)
        if inner is None:
            raise CheckpointError(
                f"{path} has no tensors by name, neither bare nor under {' or '.join(WRAPPERS)}; its keys are "
                f"{', '.join(map(str, list(loaded)[:10]))}"
            )
        where = f"{'' if where == 'bare' else where}[{inner!r}]"
        loaded = loaded[inner]


def _without_module(tensors: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], str]:
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}, f"{where}, module."
    return tensors, where
