"""Cnn14 of PANNs: log-mel frames to one feature vector per clip, at three widths.

Module names equal those of the PANNs release, so its weights load by name; its 527-way head `fc_audioset` is left out,
since only the features before it are used.

Shapes: B batch, L frames, M mel bands, C channels, F features.

References
----------
Kong et al. 2020, PANNs, arXiv:1912.10211; qiuqiangkong/audioset_tagging_cnn, `pytorch/models.py`.
"""

import copy

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from clapcur.models.config import FIRST_CHANNELS, POOLING, OrderHeadConfig
from clapcur.models.order_head import OrderHead, Pooled


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU, then average pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        nn.init.xavier_uniform_(self.conv1.weight)
        nn.init.xavier_uniform_(self.conv2.weight)

    def forward(self, x_BCLM: Tensor, pool: int) -> Tensor:
        """Return the block's maps; the numbers of frames and bands are divided by `pool` and rounded down."""
        x_BCLM = F.relu_(self.bn1(self.conv1(x_BCLM)))
        x_BCLM = F.relu_(self.bn2(self.conv2(x_BCLM)))
        return F.avg_pool2d(x_BCLM, pool) if pool > 1 else x_BCLM


class Cnn14(nn.Module):
    """The audio encoder.

    Parameters
    ----------
    width : {"full", "small", "tiny"}
        Width of all layers: as published, a quarter or an eighth; see `config.FIRST_CHANNELS`.
    num_mels : int
        Mel bands of the input, at least 32.
    block_dropout : float in [0, 1)
        Dropout after every block; 0.2 in PANNs.
    dropout : float in [0, 1)
        Dropout before and after `fc1`; 0.5 in PANNs.
    order_head : OrderHeadConfig, optional
        Adds to the features pooled over frames, see `clapcur.models.order_head`.
    """

    head_parts = ("order_head", "fc1")

    def __init__(
        self,
        width: str = "full",
        num_mels: int = 64,
        block_dropout: float = 0.2,
        dropout: float = 0.5,
        order_head: OrderHeadConfig | None = None,
    ) -> None:
        super().__init__()
        channels = [FIRST_CHANNELS[width] * 2**i for i in range(6)]
        self.num_features = channels[-1]
        self.block_dropout, self.dropout = block_dropout, dropout
        self.bn0 = nn.BatchNorm2d(num_mels)
        self.conv_block1 = ConvBlock(1, channels[0])
        self.conv_block2 = ConvBlock(channels[0], channels[1])
        self.conv_block3 = ConvBlock(channels[1], channels[2])
        self.conv_block4 = ConvBlock(channels[2], channels[3])
        self.conv_block5 = ConvBlock(channels[3], channels[4])
        self.conv_block6 = ConvBlock(channels[4], channels[5])
        self.fc1 = nn.Linear(channels[5], channels[5])
        nn.init.xavier_uniform_(self.fc1.weight)
        nn.init.zeros_(self.fc1.bias)
        self.order_head = OrderHead(order_head, channels[5]) if order_head is not None else None

    def forward(self, logmel_BLM: Tensor) -> Tensor:
        """Return the features of clips.

        Parameters
        ----------
        logmel_BLM : Tensor, shape (B, L, M)
            Log-mel frames in dB, at least 32 of them.

        Returns
        -------
        Tensor, shape (B, F)
            Non-negative, not normalised.

        Raises
        ------
        ValueError
            There are fewer than 32 frames: none would be left after five halvings.
        """
        if logmel_BLM.ndim != 3 or logmel_BLM.shape[1] < POOLING:
            raise ValueError(
                f"expected log-mel frames of shape (batch, frames, bands) with at least {POOLING} "
                f"frames, got {tuple(logmel_BLM.shape)}; nothing would be left after five "
                "halvings, use a longer window"
            )
        return self.head(self.trunk(logmel_BLM))

    def frames(self, logmel_BLM: Tensor) -> Tensor:
        """Return the output of the convolutions before the pooling over time, shape (B, C, L / 32)."""
        x = self.bn0(logmel_BLM.transpose(1, 2).unsqueeze(3))  # (B, M, L, 1): statistics per band
        x = x.transpose(1, 3)  # (B, 1, L, M)
        for i in range(1, 7):
            x = self.get_submodule(f"conv_block{i}")(x, pool=2 if i < 6 else 1)
            x = F.dropout(x, self.block_dropout, self.training)
        return x.mean(dim=3)  # over bands

    def trunk(self, logmel_BLM: Tensor) -> Pooled:
        """Return the pooled output of the convolutions, for the same input as `forward`."""
        x = self.frames(logmel_BLM)
        return Pooled(x.amax(dim=2) + x.mean(dim=2), None if self.order_head is None else x)

    def head(self, pooled: Pooled) -> Tensor:
        """Return the features of clips, shape (B, F), from the output of `trunk`."""
        x = pooled.features_BC
        if self.order_head is not None:
            x = x + self.order_head(pooled.frames_BCL)
        x = F.dropout(x, self.dropout, self.training)
        x = F.relu_(self.fc1(x))
        return F.dropout(x, self.dropout, self.training)

    def folded(self) -> "Cnn14":
        """Return a tower for inference only, with each batch norm folded into its convolution.

        Features are equal up to rounding (unit rows to 1e-6), and a pass over every map is saved. Further training of
        this tower does not update the folded one.
        """
        tower = copy.deepcopy(self, {id(weight): weight for weight in self.parameters()}).eval()  # shares the weights
        for i in range(1, 7):
            block = tower.get_submodule(f"conv_block{i}")
            assert isinstance(block, ConvBlock)
            for conv, bn in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
                assert bn.running_mean is not None and bn.running_var is not None
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, None, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
                )
            for name in ("bn1", "bn2"):
                setattr(block, name, nn.Identity())
        return tower
