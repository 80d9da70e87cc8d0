"""Containers (torch files, safetensors, folders) to a plain dictionary of tensors and back.

This is the only place where a pickle may be read, and only if the caller allows it.
"""

import json
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clapcur.downloads import HEAD_BYTES, not_downloaded
from clapcur.errors import CheckpointError
from clapcur.models.hub import check_source

WRAPPERS = ("state_dict", "model")
"""Keys under which files keep their tensors, beside epochs, optimisers and the like."""


MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own limit
OTHER_FILES = {
    b"RIFF": "a sound file (WAV), not weights",
    b"RF64": "a sound file (RF64), not weights",
    b"fLaC": "a sound file (FLAC), not weights",
    b"OggS": "a sound file (Ogg), not weights",
    b"FORM": "a sound file (AIFF), not weights",
    b".snd": "a sound file (AU), not weights",
    b"ID3": "a sound file (MP3), not weights",
    b"\xff\xfb": "a sound file (MP3), not weights",
    b"\x89PNG": "a picture (PNG), not weights",
    b"\xff\xd8\xff": "a picture (JPEG), not weights",
    b"%PDF": "a PDF, not weights",
    b"PAR1": "a Parquet table, not weights",
    b"\x93NUMPY": "an array of NumPy, not named tensors",
    b"\x89HDF": "an HDF5 file (Keras?), which cannot be read here; convert it to safetensors",
    b"GGUF": "a GGUF file, which cannot be read here; take the weights in safetensors",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"BZh": "a bzip2 archive: unpack it first",
    b"\xfd7zXZ": "an xz archive: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it first",
}
"""What else people have at hand under such a name, by its first bytes."""

SPEECHBRAIN = "clap.ckpt"
"""The model in a checkpoint folder of clap_curation, beside optimiser and counters."""


def read_source(source: Path | str, pickled: bool) -> tuple[dict[str, Tensor], str, str | None]:
    """Read the tensors of a file, a folder or a name on the Hub.

    Returns
    -------
    tensors : dict
    container : str
        As for `read_tensors`.
    folder : str or None
        The folder or name, if it has Hugging Face's layout.
    """
    path = Path(source)
    if path.is_file():
        folder = str(path.parent) if (path.parent / "config.json").is_file() else None
        return *read_tensors(path, pickled), folder
    if (path / SPEECHBRAIN).is_file():
        return *read_tensors(path / SPEECHBRAIN, pickled), None
    return *_read_hub(source, pickled), str(source)


def read_tensors(path: Path, pickled: bool = False) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of a file, without wrappers and without the prefix "module." of torch's parallel models.

    Parameters
    ----------
    path : Path
    pickled : bool
        Whether to read a file that contains more than tensors and numbers. Such a file can run any code when it is
        opened: allow it only for files from people you trust.

    Returns
    -------
    tensors : dict
    container : str
        Place of the tensors in the file, for people.

    Raises
    ------
    CheckpointError
        The file is missing, damaged or not a checkpoint, or it requires `pickled`.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} not found")
    if what := what_else(path):
        expected = "safetensors file" if path.suffix == ".safetensors" else "file saved by torch"
        raise CheckpointError(f"{path} is not a {expected}; it is {what}")
    if path.suffix == ".safetensors" or _begins_as_safetensors(path):
        try:
            return _without_module(load_file(path), "safetensors")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {path} (was it truncated?): {error}") from error
    return _unwrapped(_load(path, pickled), path)


def what_else(path: Path) -> str | None:
    """Return what a file that is not a checkpoint is, and what to do; None if it may be one."""
    size = path.stat().st_size
    if size == 0:
        return "empty (0 bytes); was its download or copy interrupted?"
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if what := not_downloaded(head):
        return what
    if what := next((what for start, what in OTHER_FILES.items() if head.startswith(start)), None):
        return what
    if head.startswith(b"PK"):
        return _what_zip(path)
    if _is_text(head):
        return f"a text file that begins with {_first_line(head)!r}, not weights"
    return _what_safetensors(head, size) if path.suffix == ".safetensors" else None


def _begins_as_safetensors(path: Path) -> bool:
    """Return whether a file has the header of a safetensors file, whatever its name."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(MAX_HEADER_BYTES, path.stat().st_size - 8)


def _what_zip(path: Path) -> str | None:
    """Return what a ZIP archive is if torch did not write it; otherwise None."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return "a truncated ZIP archive, the container of torch's files; was its download or copy interrupted?"
    if any(name.endswith("data.pkl") for name in names):
        return None
    return f"a ZIP archive that was not saved by torch, with {', '.join(names[:3]) or 'no files'}; unpack it first"


def _what_safetensors(head: bytes, size: int) -> str | None:
    """Return what is wrong with the beginning of a safetensors file; None if the file may be complete."""
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > MAX_HEADER_BYTES or head[8:9] not in (b"{", b""):
        return None if size < 8 else "an unknown file: it does not begin with a safetensors header"
    if size < 8 + length:
        return f"truncated within its header: it has {size:,} bytes, but the header needs {8 + length:,}; copy it again"
    return None


def _is_text(head: bytes) -> bool:
    """Return whether bytes are plain text; the last character may be truncated."""
    try:
        text = head.decode() if len(head) < HEAD_BYTES else head[:-4].decode(errors="ignore")
    except UnicodeDecodeError:
        return False
    return "\ufffd" not in text and all(c.isprintable() or c in "\t\r\n\f" for c in text)


def _first_line(head: bytes) -> str:
    return (head.decode(errors="replace").strip().splitlines() or [""])[0][:60]


def write_tensors(tensors: Mapping[str, Tensor], path: Path, container: str | None) -> None:
    """Write tensors in torch's format, or as safetensors if the file name ends in .safetensors.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    path : Path
    container : str or None
        Key in torch's file under which the tensors are; None: at the top level.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(plain, path, metadata={"format": "pt"})
    else:
        torch.save({container: plain} if container else plain, path)


def _read_hub(source: Path | str, pickled: bool) -> tuple[dict[str, Tensor], str]:
    """Read the weights of a folder in Hugging Face's layout, or of a name on the Hub."""
    if not Path(source).exists():
        check_source(str(source), "checkpoint")
    found: dict[str, Tensor] = {}
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        path = _inside(source, name)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return read_tensors(path, pickled)
        try:
            parts = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = what_else(path)
            is_plain = what is None or what.startswith("a text file")  # as such a list is
            raise CheckpointError(
                f"{path} is not an index of the parts of a model: {error if is_plain else what}"
            ) from error
        for part in parts:
            if part != Path(part).name:
                raise CheckpointError(f"{source}: {name} names {part!r}, expected a file in the same folder")
            if (piece := _inside(source, part)) is None:
                raise CheckpointError(f"{source} lacks {part}, which {name} names")
            found |= read_tensors(piece, pickled)[0]
        return found, "safetensors, in parts"
    if Path(source).is_dir():
        held = ", ".join(sorted(file.name for file in Path(source).iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"the folder {source} has no weights: expected model.safetensors, pytorch_model.bin or {SPEECHBRAIN}; it "
            f"holds {held}. Give the weights file itself, or download it (`git lfs pull`?)"
        )
    raise CheckpointError(
        f"checkpoint {source} not found: expected a file, a folder with model.safetensors or pytorch_model.bin, or a "
        "name on the Hub that is cached or can be downloaded (is HF_HUB_OFFLINE set?)"
    )


def _inside(source: Path | str, name: str) -> Path | None:
    """Return a file in a folder or under a name on the Hub; None if it does not exist."""
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
        # names are taken as well as types
        with torch.serialization.safe_globals([*numbers, *dtypes]), warnings.catch_warnings():  # type: ignore[list-item]
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # a file that is refused in the next line
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if needed := _code_in_pickle(path):
            if not pickled:
                raise CheckpointError(
                    f"{path} is a pickle that calls {', '.join(needed[:5])} when it is opened, not a file of tensors "
                    "saved by torch"
                ) from error
        elif any(sign in str(error) for sign in ("Unsupported operand", "invalid load key")):
            raise CheckpointError(f"{path} is not a file saved by torch: {_reason(error)}") from error
        elif not pickled:
            raise CheckpointError(
                f"{path} holds more than tensors and could run any code when it is opened: {_reason(error)}; if you "
                "trust its source, load it with pickled=True (--pickled)"
            ) from error
    except (EOFError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"torch cannot read the checkpoint {path}; was it truncated? {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ImportError, UnpicklingError) as error:
        raise CheckpointError(f"{path} needs code that is not installed here: {error}") from error


def _code_in_pickle(path: Path) -> list[str]:
    """Return what a plain pickle would import, without loading it; empty for any other file."""
    with open(path, "rb") as file:
        if file.read(1) != b"\x80":
            return []
        file.seek(0)
        found, strings = [], [""]
        try:
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    found.append(str(argument).replace(" ", "."))
                elif operation.name == "STACK_GLOBAL":
                    found.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
        except ValueError:  # torch's old format, or random bytes: cannot be parsed to the end
            return []
    return list(dict.fromkeys(found))


def _reason(error: Exception) -> str:
    signs = ("WeightsUnpickler error", "GLOBAL", "Unsupported operand", "Unsupported class")
    lines = [line.strip() for line in str(error).splitlines() if any(sign in line for sign in signs)]
    lines = [line for line in lines if not line.endswith("WeightsUnpickler error:")] or lines
    return (lines or str(error).splitlines() or ["unknown"])[0]


def _unwrapped(loaded: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    where = "bare"
    while True:
        if isinstance(loaded, nn.Module):
            loaded = loaded.state_dict()
        if not isinstance(loaded, Mapping):
            raise CheckpointError(f"{path} must hold named tensors, got a {type(loaded).__name__}")
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return _without_module(dict(loaded), where)
        inner = next((key for key in WRAPPERS if isinstance(loaded.get(key), (Mapping, nn.Module))), None)
        if inner is None:
            raise CheckpointError(
                f"{path} has no named tensors, neither at the top level nor under {' or '.join(WRAPPERS)}; its keys "
                "are "
                f"{', '.join(map(str, list(loaded)[:10]))}"
            )
        where = f"{'' if where == 'bare' else where}[{inner!r}]"
        loaded = loaded[inner]


def _without_module(tensors: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], str]:
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}, f"{where}, module."
    return tensors, where
