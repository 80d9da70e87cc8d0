"""Where the work is done."""

import torch


def pick_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the first GPU if there is one, else the CPU.

    Raises
    ------
    ValueError
        There is no such device: falling back to the CPU would take days silently.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:1', got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no {name} here, torch sees {torch.cuda.device_count()} GPUs")
    return device


def device_name(device: torch.device) -> str:
    """Return what people call a device: the model of a GPU, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
