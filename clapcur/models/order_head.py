"""An order-aware pooling: what a small recurrent layer adds to features that were pooled without order.

Pooling by mean and maximum forgets when a sound came. The head reads the same frames from both ends and adds to what
was pooled; its last layer starts at zero, so that a tower to which it is added gives the very embeddings it gave.

Shapes: B batch, C channels, L frames.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from clapcur.models.config import OrderHeadConfig


class Pooled(NamedTuple):
    """What the trunk of an audio tower makes of clips: the input of its head, which is small."""

    features_BC: Tensor
    """Pooled over time."""
    frames_BCL: Tensor | None
    """Before the pooling; None where no order head reads them."""


class OrderHead(nn.Module):
    """A bidirectional GRU over frames, projected to the channels of the pooled features.

    Parameters
    ----------
    config : OrderHeadConfig
    channels : int
        Of frames and pooled features.
    """

    def __init__(self, config: OrderHeadConfig, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.recurrent = nn.GRU(channels, config.hidden_size, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * config.hidden_size, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, frames_BCL: Tensor) -> Tensor:
        """Return what is added to the pooled features, shape (B, C)."""
        _, last_2BH = self.recurrent(self.norm(frames_BCL.transpose(1, 2)))
        added: Tensor = self.out(torch.cat([last_2BH[0], last_2BH[1]], dim=1))
        return added
