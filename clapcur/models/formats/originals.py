"""The towers under the names of their own releases: PANNs' Cnn14 and HTSAT, as in LAION-CLAP and MS-CLAP.

Cnn14 has the same names here. HTSAT is stored under Hugging Face's names, which separate query, key and value.
"""

import math
import re

import torch
from torch import Tensor

from clapcur.errors import CheckpointError
from clapcur.models.config import FIRST_CHANNELS, AudioConfig, FrontEndConfig, HtsatConfig
from clapcur.models.formats.ledger import Ledger

AUDIO = "audio."
HTSAT = "audio.model.audio_encoder."
"""Where the towers are in a model of ours."""

BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Parts of a block of HTSAT: the release's name -> Hugging Face's."""

QKV = "attn.qkv"
PARTS = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
"""In the release one layer, in this order."""

HEAD = "head of 527 AudioSet classes, on no path to an embedding"


def is_htsat(ledger: Ledger, prefix: str) -> bool:
    """Return whether the tower under a prefix is HTSAT; otherwise it is Cnn14."""
    return f"{prefix}patch_embed.proj.weight" in ledger


def read_audio(ledger: Ledger, prefix: str) -> AudioConfig:
    """Map the tower under a prefix and return its config; the caller fills in the front end."""
    ledger.ignore(re.escape(prefix) + r"(fc_audioset|tscam_conv|head)\.(weight|bias)", HEAD)
    if not is_htsat(ledger, prefix):
        first = ledger[f"{prefix}conv_block1.conv1.weight"].shape[0]
        widths = {channels: width for width, channels in FIRST_CHANNELS.items()}
        if first not in widths:
            raise CheckpointError(f"Cnn14 with {first} channels in its first block; expected one of {sorted(widths)}")
        front_end = FrontEndConfig(num_mels=len(ledger[f"{prefix}bn0.weight"]))
        ledger.take_all(prefix, AUDIO)
        return AudioConfig(front_end=front_end, width=widths[first])  # type: ignore[arg-type]
    htsat = _htsat_config(ledger, prefix)
    num_mels = len(ledger[f"{prefix}bn0.weight"])
    ledger.ignore(re.escape(prefix) + r"layers\.\d+\.blocks\.\d+\.attn_mask", "follows from the window")
    ledger.ignore(
        re.escape(prefix) + r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_index", "follows from the window"
    )
    for name in ledger.names(prefix):
        ledger.take(name, *(HTSAT + ours for ours in htsat_names(name.removeprefix(prefix))))
    return AudioConfig(front_end=FrontEndConfig(num_mels=num_mels), htsat=htsat)


def htsat_names(theirs: str) -> tuple[str, ...]:
    """Return Hugging Face's name, or its three names, for a name of the release."""
    found = re.fullmatch(r"(layers\.\d+\.blocks\.\d+\.)(.+?)(\.weight|\.bias)?", theirs)
    if not found:
        return (re.sub(r"^bn0\.", "batch_norm.", theirs),)
    block, part, kind = found[1], found[2], found[3] or ""
    if part == QKV:
        return tuple(f"{block}{ours}{kind}" for ours in PARTS)
    return (f"{block}{BLOCK.get(part, part)}{kind}",)


def write_unused(config: AudioConfig, prefix: str, num_classes: int = 527) -> dict[str, Tensor]:
    """Return the tensors that strict loading requires besides the tower: a zero AudioSet head, and HTSAT's buffers.

    No embedding depends on the head.

    Parameters
    ----------
    config : AudioConfig
    prefix : str
        Prefix of the tower's names.
    num_classes : int
        Outputs of the head.
    """
    htsat, num_mels = config.htsat, config.front_end.num_mels
    if htsat is None:
        features = 32 * FIRST_CHANNELS[config.width]
        head = {"fc_audioset.weight": (num_classes, features), "fc_audioset.bias": (num_classes,)}
        return {prefix + name: torch.zeros(shape) for name, shape in head.items()}
    rows = htsat.picture // (htsat.patch << (len(htsat.depths) - 1)) // (htsat.picture // num_mels)
    written = {
        f"{prefix}tscam_conv.weight": torch.zeros(num_classes, htsat.num_features, rows, 3),
        f"{prefix}tscam_conv.bias": torch.zeros(num_classes),
        f"{prefix}head.weight": torch.zeros(num_classes, num_classes),
        f"{prefix}head.bias": torch.zeros(num_classes),
    }
    for stage, depth in enumerate(htsat.depths):
        side = htsat.picture // htsat.patch >> stage
        for block in range(depth):
            name = f"{prefix}layers.{stage}.blocks.{block}."
            written[f"{name}attn.relative_position_index"] = _relative_positions(htsat.window)
            if block % 2 and side > htsat.window:  # every second block uses windows shifted by half
                written[f"{name}attn_mask"] = _shift_mask(side, htsat.window)
    return written


def _relative_positions(window: int) -> Tensor:
    """Return the row of the bias table for each pair of patches in a window, shape (window^2, window^2)."""
    place = torch.arange(window * window)
    down, right = place // window, place % window
    apart = [axis[:, None] - axis + window - 1 for axis in (down, right)]
    return apart[0] * (2 * window - 1) + apart[1]


def _shift_mask(side: int, window: int) -> Tensor:
    """Return -100 for patches that are adjacent only by the cyclic shift, shape (windows, window^2, window^2)."""
    place = torch.arange(side)
    part = (place >= side - window).long() + (place >= side - window // 2).long()
    regions = (3 * part[:, None] + part).unflatten(1, (-1, window)).unflatten(0, (-1, window))
    flat = regions.transpose(1, 2).reshape(-1, window * window)
    return torch.where(flat[:, None, :] != flat[:, :, None], -100.0, 0.0)


def write_audio(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tower of a model's state under the release's names."""
    if not any(name.startswith(HTSAT) for name in state):
        return {prefix + name.removeprefix(AUDIO): tensor for name, tensor in state.items() if name.startswith(AUDIO)}
    back = {ours: theirs for theirs, ours in BLOCK.items()}
    written: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(HTSAT):
            continue
        ours = name.removeprefix(HTSAT)
        found = re.fullmatch(r"(layers\.\d+\.blocks\.\d+\.)(.+?)(\.weight|\.bias)?", ours)
        if not found:
            written[prefix + re.sub(r"^batch_norm\.", "bn0.", ours)] = tensor
            continue
        block, part, kind = found[1], found[2], found[3] or ""
        if part == PARTS[0]:
            whole = [state[f"{HTSAT}{block}{each}{kind}"] for each in PARTS]
            written[f"{prefix}{block}{QKV}{kind}"] = torch.cat(whole)
        elif part not in PARTS:
            written[f"{prefix}{block}{back[part]}{kind}"] = tensor
    return written


def _htsat_config(ledger: Ledger, prefix: str) -> HtsatConfig:
    """Derive the sizes from the shapes; the side of the picture follows only from the masks of the shifted windows."""
    start = re.escape(prefix)
    stages = ledger.count(rf"{start}layers\.(\d+)\.")
    tables = [ledger[f"{prefix}layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(stages)]
    channels, _, patch, _ = ledger[f"{prefix}patch_embed.proj.weight"].shape
    window = (math.isqrt(tables[0].shape[0]) + 1) // 2
    mask = f"{prefix}layers.0.blocks.1.attn_mask"
    picture = math.isqrt(ledger[mask].shape[0]) * window * patch if mask in ledger else HtsatConfig().picture
    return HtsatConfig(
        channels=channels,
        depths=tuple(ledger.count(rf"{start}layers\.{i}\.blocks\.(\d+)\.") for i in range(stages)),
        num_heads=tuple(table.shape[1] for table in tables),
        window=window,
        patch=patch,
        picture=picture,
        mlp_ratio=ledger[f"{prefix}layers.0.blocks.0.mlp.fc1.weight"].shape[0] / channels,
    )
