"""Choice of device and precision."""

import logging

import torch

log = logging.getLogger("clapcur")


def pick_device(name: str) -> torch.device:
    """Return the device with a name; "auto" is the first GPU if there is one, otherwise the CPU.

    Raises
    ------
    ValueError
        There is no such device: silently falling back to the CPU could take days.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:1', got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not available: torch finds {torch.cuda.device_count()} GPUs")
    return device


def device_name(device: torch.device) -> str:
    """Return a device's name for people: the model of a GPU, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the precision with a name; "auto" is bfloat16 if the device supports it, otherwise float32.

    Warns
    -----
    One line in the log if bfloat16 is requested but the device has no instructions for it: torch then emulates it, and
    on a CPU a backward pass takes ten to forty times as long as in float32.
    """
    if name == "float32":
        return torch.float32
    if has_bfloat16(device):
        return torch.bfloat16
    if name == "auto":
        return torch.float32
    log.warning(
        "%s has no bfloat16 instructions and emulates them, many times slower than float32; `precision: auto` uses "
        "float32 here", "this CPU" if device.type == "cpu" else device_name(device),
    )  # fmt: skip
    return torch.bfloat16


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 instructions: GPUs from Ampere on; CPUs with AMX, AVX512-BF16 or SVE."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "sve_bf16"))
