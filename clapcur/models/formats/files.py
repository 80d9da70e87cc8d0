"""Containers: the file that torch wrote, safetensors, a folder; to a plain dictionary of tensors and back.

This is the one place where a pickle may be read, and only where the caller said so.
"""

import json
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


SPEECHBRAIN = "clap.ckpt"
"""The model in a checkpoint folder of clap_curation, beside optimiser and counters."""


def read_source(source: Path | str, pickled: bool) -> tuple[dict[str, Tensor], str, str | None]:
    """Read the tensors of a file, a folder or a name on the Hub.

    Returns
    -------
    tensors : dict
    container : str
        As `read_tensors`.
    folder : str or None
        The folder or name, where it has Hugging Face's layout.
    """
    path = Path(source)
    if path.is_file():
        folder = str(path.parent) if (path.parent / "config.json").is_file() else None
        return *read_tensors(path, pickled), folder
    if (path / SPEECHBRAIN).is_file():
        return *read_tensors(path / SPEECHBRAIN, pickled), None
    return *_read_hub(source, pickled), str(source)


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


def _read_hub(source: Path | str, pickled: bool) -> tuple[dict[str, Tensor], str]:
    """Read the weights of a folder in Hugging Face's layout, or of a name on the Hub."""
    found: dict[str, Tensor] = {}
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        path = _inside(source, name)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return read_tensors(path, pickled)
        for part in sorted(set(json.loads(path.read_text())["weight_map"].values())):
            if part != Path(part).name:
                raise CheckpointError(f"{source}: {name} names {part!r}, expected a file in the same folder")
            if (piece := _inside(source, part)) is None:
                raise CheckpointError(f"{source} lacks {part}, which {name} names")
            found |= read_tensors(piece, pickled)[0]
        return found, "safetensors, in parts"
    raise CheckpointError(
        f"no checkpoint {source}: it is no file, no folder with model.safetensors or pytorch_model.bin, and no name on "
        "the Hub that is in the local cache or could be fetched (is HF_HUB_OFFLINE set?)"
    )


def _inside(source: Path | str, name: str) -> Path | None:
    """Return the file of a folder or of a name on the Hub, or None."""
    from transformers.utils import cached_file

    if Path(source).is_dir():
        return Path(source, name) if Path(source, name).is_file() else None
    try:
        return Path(found) if (found := cached_file(str(source), name)) else None
    except (OSError, ValueError):
        return None


def _load(path: Path, pickled: bool) -> Any:
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]  # a number, as training scripts leave it
    numbers = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    dtypes = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "bool"))]
    try:
        with torch.serialization.safe_globals([*numbers, *dtypes]):  # type: ignore[list-item]  # takes names as well
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if any(sign in str(error) for sign in ("Unsupported operand", "invalid load key")):
            raise CheckpointError(f"{path} is no file that torch wrote: {_reason(error)}") from error
        if not pickled:
            raise CheckpointError(
                f"{path} holds more than tensors, which could run any code when it is opened: {_reason(error)}; if you "
                "trust where it came from, load it with pickled=True"
            ) from error
    except (EOFError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint that torch reads, was it cut off? {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ImportError, UnpicklingError) as error:
        raise CheckpointError(f"{path} needs code that is not installed here: {error}") from error


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
