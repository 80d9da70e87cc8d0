"""Building the audio tower of a config."""

import torch
from torch import Tensor, nn

from clapcur.models.cnn14 import Cnn14
from clapcur.models.config import AudioConfig
from clapcur.models.htsat import Htsat
from clapcur.models.order_head import Pooled
from clapcur.models.yamnet import Yamnet


def build_audio_tower(config: AudioConfig) -> Cnn14 | Htsat | Yamnet:
    """Build Cnn14, HTSAT or YAMNet, with fresh weights."""
    num_mels = config.front_end.num_mels
    if config.htsat is not None:
        return Htsat(config.htsat, num_mels, config.order_head)
    if config.yamnet is not None:
        return Yamnet(config.yamnet, config.order_head).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tower = Cnn14(config.width, num_mels, config.block_dropout, config.dropout, config.order_head)
    # The memory layout does not change any value; on a CPU a training step takes 0.6 of the time.
    return tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def frames_of(tower: nn.Module, logmel_BLM: Tensor) -> Tensor:
    """Return what an audio tower makes of clips before its pooling, shape (B, frames, C).

    Of a tower that knows no frames, what it pooled is the one frame.

    Parameters
    ----------
    tower : Module
        Whose `trunk` gives a `Pooled`; `frames`, where it has that, shape (B, C, frames).
    logmel_BLM : Tensor, shape (B, L, M)
    """
    if isinstance(tower, (Cnn14, Htsat, Yamnet)):
        return tower.frames(logmel_BLM).transpose(1, 2)
    pooled: Pooled = tower.trunk(logmel_BLM)  # type: ignore[operator]  # of a family to come
    return pooled.features_BC[:, None]


def for_inference(tower: nn.Module) -> nn.Module:
    """Return the fastest module for a tower's features in evaluation mode: equal up to rounding, not for training.

    Notes
    -----
    `torch.compile` is not used: on a CPU (one core) Cnn14 takes 0.194 s per clip with it and 0.197 s without, after
    48 s of compilation. `benchmarks/embedding.py` has a row for it, for other machines.
    """
    return tower.folded() if isinstance(tower, Cnn14) else tower
