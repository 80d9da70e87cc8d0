"""HTSAT: the Swin transformer of LAION-CLAP and MS-CLAP 2023, on log-mel frames folded into a square picture.

The network is the one in `transformers`, so that weights in Hugging Face's format load by name.

Shapes: B batch, L frames, M mel bands, F features.

References
----------
Chen et al. 2022, HTS-AT, arXiv:2202.00874.
"""

from typing import Any

from torch import Tensor, nn

from clapcur.models.config import HtsatConfig, OrderHeadConfig
from clapcur.models.order_head import OrderHead, Pooled


class Htsat(nn.Module):
    """The audio encoder.

    Parameters
    ----------
    config : HtsatConfig
    num_mels : int
        Mel bands of the input.
    order_head : OrderHeadConfig, optional
        Adds to the features pooled over frames, see `clapcur.models.order_head`.
    """

    head_parts = ("order_head",)

    def __init__(self, config: HtsatConfig, num_mels: int, order_head: OrderHeadConfig | None = None) -> None:
        from transformers import ClapAudioModel

        super().__init__()
        self.num_features, self.max_frames = config.num_features, config.max_frames(num_mels)
        self.model = ClapAudioModel(hugging_face_config(config, num_mels))
        for module in self.model.modules():  # positions follow from the window: they need not be stored
            for name, index in list(module.named_buffers(recurse=False)):
                if name == "relative_position_index":
                    module.register_buffer(name, index, persistent=False)
        self.order_head = OrderHead(order_head, self.num_features) if order_head is not None else None

    def forward(self, logmel_BLM: Tensor) -> Tensor:
        """Return the features of clips.

        Parameters
        ----------
        logmel_BLM : Tensor, shape (B, L, M)
            Log-mel frames in dB; if there are fewer than the picture holds, they are stretched over it.

        Returns
        -------
        Tensor, shape (B, F)
            Not normalised.

        Raises
        ------
        ValueError
            There are more frames than the picture holds.
        """
        if logmel_BLM.ndim != 3 or logmel_BLM.shape[1] > self.max_frames:
            raise ValueError(
                f"expected log-mel frames of shape (batch, frames, bands) with at most {self.max_frames} frames, got "
                f"{tuple(logmel_BLM.shape)}; use a shorter window"
            )
        return self.head(self.trunk(logmel_BLM))

    def frames(self, logmel_BLM: Tensor) -> Tensor:
        """Return what the transformer makes of clips before the pooling, averaged over bands, shape (B, F, L)."""
        frames_BFL: Tensor = self.model(input_features=logmel_BLM.unsqueeze(1)).last_hidden_state.mean(dim=2)
        return frames_BFL

    def trunk(self, logmel_BLM: Tensor) -> Pooled:
        """Return the pooled output of the transformer, for the same input as `forward`."""
        heard = self.model(input_features=logmel_BLM.unsqueeze(1))
        frames_BFL = None if self.order_head is None else heard.last_hidden_state.mean(dim=2)  # over bands
        return Pooled(heard.pooler_output, frames_BFL)

    def head(self, pooled: Pooled) -> Tensor:
        """Return the features of clips, shape (B, F), from the output of `trunk`."""
        if self.order_head is None:
            return pooled.features_BC
        added: Tensor = self.order_head(pooled.frames_BCL)
        return pooled.features_BC + added


def hugging_face_config(config: HtsatConfig, num_mels: int) -> Any:
    """Return the `transformers.ClapAudioConfig` of a tower."""
    from transformers import ClapAudioConfig

    return ClapAudioConfig(
        patch_embeds_hidden_size=config.channels,
        hidden_size=config.num_features,
        depths=list(config.depths),
        num_hidden_layers=len(config.depths),
        num_attention_heads=list(config.num_heads),
        window_size=config.window,
        patch_size=config.patch,
        patch_stride=[config.patch, config.patch],
        spec_size=config.picture,
        num_mel_bins=num_mels,
        mlp_ratio=config.mlp_ratio,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.attention_dropout,
        drop_path_rate=config.drop_path,
    )
