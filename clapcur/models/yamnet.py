"""YAMNet, Google's AudioSet tagger, as an audio tower: a MobileNet on log-mel frames.

Module names equal those of the safetensors weights, in which the batch norms are folded into the convolutions. The
521-way head is not part of the tower; it is in `clapcur.models.taggers`.

Shapes: B batch, L frames, M mel bands, C channels, F features.

References
----------
Plakal and Ellis 2020, tensorflow/models, research/audioset/yamnet; Howard et al. 2017, MobileNets, arXiv:1704.04861.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapcur.models.config import YAMNET_LAYERS, OrderHeadConfig, YamnetConfig
from clapcur.models.order_head import OrderHead, Pooled


class SameConv(nn.Conv2d):
    """A 3x3 convolution with TensorFlow's padding "SAME": with a stride of 2, an odd cell of padding is at the end."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride, groups=groups)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_BCLM: Tensor) -> Tensor:
        """Return maps with the sides of the input divided by the stride and rounded up."""
        if self.stride[0] == 1:
            return F.conv2d(x_BCLM, self.weight, self.bias, 1, 1, 1, self.groups)
        frames, bands = (1 + side % 2 for side in x_BCLM.shape[2:])  # total padding of both ends
        padded = F.pad(x_BCLM, (bands // 2, bands - bands // 2, frames // 2, frames - frames // 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)


class First(nn.Module):
    """The first layer: a full convolution and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = SameConv(1, channels, stride=2)

    def forward(self, x_BCLM: Tensor) -> Tensor:
        """Return half as many frames and bands."""
        return F.relu(self.conv(x_BCLM))


class Separable(nn.Module):
    """A depthwise separable convolution: depthwise, ReLU, pointwise, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise_conv = SameConv(in_channels, in_channels, stride, groups=in_channels)
        self.pointwise_conv = nn.Conv2d(in_channels, out_channels, 1)
        nn.init.kaiming_normal_(self.pointwise_conv.weight, nonlinearity="relu")
        assert self.pointwise_conv.bias is not None
        nn.init.zeros_(self.pointwise_conv.bias)

    def forward(self, x_BCLM: Tensor) -> Tensor:
        """Return the output maps."""
        return F.relu(self.pointwise_conv(F.relu(self.depthwise_conv(x_BCLM))))


class Yamnet(nn.Module):
    """The audio encoder.

    Parameters
    ----------
    config : YamnetConfig
    order_head : OrderHeadConfig, optional
        Adds to the features pooled over frames, see `clapcur.models.order_head`.

    Notes
    -----
    As published, YAMNet processes patches of 96 frames, as `clapcur.models.taggers` does. The network is convolutional:
    here it processes a whole window at once, and the features are the mean over its map.
    """

    head_parts = ("order_head",)

    def __init__(self, config: YamnetConfig, order_head: OrderHeadConfig | None = None) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.num_features = channels = config.channels
        self.layer1 = First(channels)
        for number, (factor, stride) in enumerate(YAMNET_LAYERS, start=2):
            self.add_module(f"layer{number}", Separable(self.num_features, channels * factor, stride))
            self.num_features = channels * factor
        self.order_head = OrderHead(order_head, self.num_features) if order_head is not None else None

    def maps(self, logmel_BLM: Tensor) -> Tensor:
        """Return the last map, shape (B, F, L / 32, M / 32), sides rounded up."""
        x_BCLM = logmel_BLM.unsqueeze(1)
        for number in range(1, len(YAMNET_LAYERS) + 2):
            x_BCLM = self.get_submodule(f"layer{number}")(x_BCLM)
        return x_BCLM

    def forward(self, logmel_BLM: Tensor) -> Tensor:
        """Return the features of clips.

        Parameters
        ----------
        logmel_BLM : Tensor, shape (B, L, M)
            Logarithm of mel magnitudes, see `FrontEndConfig.style`.

        Returns
        -------
        Tensor, shape (B, F)
            Non-negative without an order head, not normalised.

        Raises
        ------
        ValueError
            There is no frame, or the input is not three-dimensional.
        """
        if logmel_BLM.ndim != 3 or logmel_BLM.shape[1] < 1:
            raise ValueError(f"expected log-mel frames of shape (batch, frames, bands), got {tuple(logmel_BLM.shape)}")
        return self.head(self.trunk(logmel_BLM))

    def frames(self, logmel_BLM: Tensor) -> Tensor:
        """Return the output of the convolutions before the pooling over time, shape (B, C, L / 32)."""
        return self.maps(logmel_BLM).mean(dim=3)

    def trunk(self, logmel_BLM: Tensor) -> Pooled:
        """Return the pooled output of the convolutions, for the same input as `forward`."""
        frames_BCL = self.frames(logmel_BLM)
        return Pooled(frames_BCL.mean(dim=2), None if self.order_head is None else frames_BCL)

    def head(self, pooled: Pooled) -> Tensor:
        """Return the features of clips, shape (B, F), from the output of `trunk`."""
        features = pooled.features_BC
        if self.order_head is not None:
            features = features + self.order_head(pooled.frames_BCL)
        return F.dropout(features, self.dropout, self.training)


def from_layer(tower: Yamnet, first: int) -> list[nn.Module]:
    """Return the layers from number `first` to the last."""
    return [tower.get_submodule(f"layer{number}") for number in range(first, len(YAMNET_LAYERS) + 2)]


def patches(logmel_BLM: Tensor, length: int = 96, hop: int = 48) -> Tensor:
    """Cut frames into patches as published, shape (B, P, length, M); an incomplete last patch is dropped.

    Parameters
    ----------
    logmel_BLM : Tensor, shape (B, L, M)
    length : int
        Frames in a patch.
    hop : int
        Frames between the starts of two patches.
    """
    return (
        logmel_BLM.unfold(1, length, hop).transpose(2, 3)
        if logmel_BLM.shape[1] >= length
        else torch.empty((len(logmel_BLM), 0, length, logmel_BLM.shape[2]), device=logmel_BLM.device)
    )
