"""Low-rank adapters: a student of a large model that learns few weights, and is a file of megabytes.

Beside each linear layer and convolution of a tower, whose weight stays as it was, two thin matrices learn what is added
to it (LoRA, Hu et al. 2021, arXiv:2106.09685; by the library `peft`). Their last factor starts at zero, so that the
embeddings are unchanged until they learn. After the training they are merged into the weights: a student is a model
like any other. What it learned can be written to a file by itself, which the same base model reads.
"""

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clapcur.errors import CheckpointError
from clapcur.models.clap import Clap, seeded
from clapcur.models.config import LoraConfig, Tower
from clapcur.models.folder import not_finite

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

ADAPTER = "adapter.safetensors"
"""In a checkpoint that was trained with adapters."""
FORMAT = "clapcur.adapter/1"
LEARNS = ("audio_projection", "text_projection", "audio.order_head", "logit_scale")
"""Learned as a whole beside the adapters, and written with them."""


def add_adapters(model: Clap, config: LoraConfig, towers: Iterable[Tower], seed: int = 0) -> list[nn.Module]:
    """Add adapters to towers, in place; they, the projections, an order head and the scale learn, and nothing else.

    Parameters
    ----------
    model : Clap
    config : LoraConfig
    towers : iterable of {"audio", "text"}
        The others stay frozen.
    seed : int
        Of the adapters' first factors.

    Returns
    -------
    list of Module
        Those that are to be in training mode: none of the towers, whose batch norms keep their statistics.

    Raises
    ------
    CheckpointError
        A tower has no layer that can take an adapter.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    model.requires_grad_(False)
    with seeded(seed):
        for name in towers:
            tower = getattr(model, name)
            layers, is_transposed = _adaptable(tower)
            if not layers:
                raise CheckpointError(
                    f"the {name} tower {type(tower).__name__} has no linear layer or convolution to adapt; freeze it, "
                    "or train all of it with adapt: all"
                )
            wanted = PeftConfig(
                r=config.rank, lora_alpha=config.alpha, target_modules=layers, fan_in_fan_out=is_transposed
            )
            inject_adapter_in_model(wanted, tower)
    learning = [module for module in (model.audio_projection, model.text_projection, model.audio.order_head) if module]
    for module in learning:
        module.requires_grad_(True)
    model.logit_scale.requires_grad_(True)
    return learning


def merge_adapters(model: Clap) -> None:
    """Add to each weight what its adapter learned, and take the adapters out, in place."""
    for name, layer in _adapted(model):
        layer.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())


def digest_of(model: Clap) -> str:
    """Return a hash of a model's weights by name, adapters left out: what an adapter must be added to."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save_adapter(model: Clap, path: Path | str, base: str) -> None:
    """Write what a model with adapters learned, as safetensors.

    Parameters
    ----------
    model : Clap
        With adapters that are not merged yet, or none where the projections alone learned.
    path : path
    base : str
        `digest_of` the model that they were added to.
    """
    tensors = {name: value for name, value in model.state_dict().items() if name.startswith(LEARNS)}
    adapted = dict(_adapted(model))
    for name, layer in adapted.items():
        tensors |= {f"{name}.lora_A": layer.lora_A["default"].weight, f"{name}.lora_B": layer.lora_B["default"].weight}
    said: dict[str, Any] = {"format": FORMAT, "base": base, "towers": sorted({name.split(".")[0] for name in adapted})}
    for layer in adapted.values():  # all have the same
        said |= {"rank": layer.r["default"], "alpha": layer.lora_alpha["default"]}
    header = {"clapcur": json.dumps(said)}  # one entry: several come in any order, and equal files would differ
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, header)


def copy_adapter(checkpoint: Path, path: Path) -> None:
    """Copy the adapters out of the folder of a checkpoint that was trained with some.

    Raises
    ------
    CheckpointError
        It was trained without.
    """
    if not (checkpoint / ADAPTER).is_file():
        raise CheckpointError(
            f"checkpoint {checkpoint.name} has no adapters: only a training with adapt: lora or projections has; "
            "export it as a whole with --format clapcur"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint / ADAPTER, path)


def with_adapter(model: Clap, path: Path | str) -> Clap:
    """Return the student that an adapter file makes of its base model.

    Parameters
    ----------
    model : Clap
        The base; it stays as it was.
    path : path
        What `save_adapter` wrote.

    Raises
    ------
    CheckpointError
        The file is missing, damaged or no adapter of ours; or it was trained on another model.
    """
    said, tensors = _read(Path(path))
    if said.get("base") != digest_of(model):
        raise CheckpointError(
            f"{path} was trained on another model than this one; give the checkpoint that its training started from"
        )
    made = copy.deepcopy(model)
    size = {name: said[name] for name in ("rank", "alpha") if name in said}  # none where projections alone learned
    add_adapters(made, LoraConfig(**size), said.get("towers", ()))
    own = made.state_dict()
    given = {re.sub(r"\.(lora_[AB])$", r".\1.default.weight", name): value for name, value in tensors.items()}
    if unfit := [name for name, value in given.items() if name not in own or value.shape != own[name].shape]:
        raise CheckpointError(f"{path} is damaged: {len(unfit)} of its weights do not fit the base, such as {unfit[0]}")
    if spoilt := not_finite(given):
        raise CheckpointError(f"{path} is damaged: these weights are not finite: {', '.join(spoilt[:5])}")
    for name, value in given.items():
        own[name].copy_(value)
    merge_adapters(made)
    return made.requires_grad_(True).eval()


def _adaptable(tower: nn.Module) -> tuple[list[str], bool]:
    """Return the layers that take an adapter, and whether they keep their weights transposed, as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    named = list(tower.named_modules())
    transposed = [name for name, module in named if isinstance(module, Conv1D)]
    plain = [
        name
        for name, module in named
        if type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)
    ]  # a subclass may compute something else from its weight
    return (transposed, True) if transposed else ([name for name in plain if "order_head" not in name], False)


def _adapted(model: nn.Module) -> Iterator[tuple[str, "LoraLayer"]]:
    from peft.tuners.lora import LoraLayer

    yield from [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {}).get("clapcur", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the adapter {path}: {error}") from error
    if said.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not an adapter of clapcur ({FORMAT}), which `export --format adapter` writes")
    return said, tensors
