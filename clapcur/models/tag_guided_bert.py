"""The decoder of the captioner: BERT read left to right, that sees a clip's frames and is told its tags.

Shapes: B batch, S tokens, L frames, C channels of a frame, K classes, D width of the decoder, V vocabulary.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel, LogitsProcessor


class TagGuidedBert(BertLMHeadModel):
    """A language model with cross-attention to audio and a tag vector in every word embedding.

    Parameters
    ----------
    config : transformers.BertConfig
        Of a decoder with cross-attention.
    num_channels : int
        Channels of a frame of the audio tower.
    num_classes : int
        Length of the tag vector.

    Notes
    -----
    The tag vector enters as in BLAT: one linear layer, whose output is added to the embedding of every word. As usual
    in BERT, the position is added before the layer norm; wsntxxn/AudioCaption adds it behind the norm, and has three
    recurrent layers over the frames. Here each channel of the frames is standardised, and frames get a sinusoidal
    position.
    """

    frame_mean: Tensor
    frame_scale: Tensor

    def __init__(self, config: BertConfig, num_channels: int, num_classes: int) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.tag_projection = nn.Linear(num_classes, width)
        self.audio_projection = nn.Sequential(
            nn.Linear(num_channels, width), nn.ReLU(), nn.Dropout(config.hidden_dropout_prob), nn.LayerNorm(width)
        )
        self.register_buffer("frame_mean", torch.zeros(num_channels))
        self.register_buffer("frame_scale", torch.ones(num_channels))
        self.cls.predictions.bias.requires_grad_(False)  # not on the path to the logits: the output layer has its own

    def standardise(self, mean_C: Tensor, deviation_C: Tensor) -> None:
        """Remember mean and standard deviation of each channel over the frames that are learned from.

        Channels of a tower differ a thousandfold, and what tells sounds apart is rarely the largest. A channel that
        never changes is left at 0.
        """
        steady_C = deviation_C <= 1e-6 * (mean_C.abs() + 1e-6)
        self.frame_mean.copy_(mean_C)
        self.frame_scale.copy_(torch.where(steady_C, 0, 1 / deviation_C))

    def heard(self, frames_BLC: Tensor) -> Tensor:
        """Return what the cross-attention reads, shape (B, L, D), of the frames of an audio tower."""
        standard_BLC = (frames_BLC - self.frame_mean) * self.frame_scale
        projected_BLD: Tensor = self.audio_projection(standard_BLC)
        return projected_BLD + sinusoids(projected_BLD.shape[1], projected_BLD.shape[2]).to(projected_BLD)

    def forward(
        self, input_ids: Tensor, tags: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None,
        past_key_values: Any = None, use_cache: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Return the logits of the next words, in the form of `transformers`, whose `generate` calls this.

        Parameters
        ----------
        input_ids : Tensor, shape (B, S)
        tags : Tensor, shape (B, K)
            The tag vectors; zeros where nothing is known.
        encoder_hidden_states : Tensor, shape (B, L, D)
            What `heard` returned.
        attention_mask, past_key_values, use_cache, **kwargs
            As in `transformers.BertLMHeadModel`.
        """
        words_BSD = self.get_input_embeddings()(input_ids) + self.tag_projection(tags)[:, None]
        return super().forward(
            inputs_embeds=words_BSD, encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask,
            past_key_values=past_key_values, use_cache=use_cache, **kwargs,
        )  # fmt: skip


class GumbelNoise(LogitsProcessor):
    """Noise that makes the largest logit of a row a sample of its softmax (the Gumbel-max trick).

    The noise of a row depends on its name and the number of its tokens alone. The samplers of torch have one stream
    for a whole batch instead, so that a caption would depend on the clips beside it.

    Parameters
    ----------
    temperature : float
    names : sequence of str
        One for each row.

    References
    ----------
    Maddison et al. 2014, A* Sampling, arXiv:1411.0030, section 2.
    """

    def __init__(self, temperature: float, names: Sequence[str]) -> None:
        self._temperature = temperature
        digests = [hashlib.sha256(name.encode()).digest() for name in names]
        self._generators = [np.random.default_rng(int.from_bytes(digest)) for digest in digests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits of the next tokens with noise, shape (B, V)."""
        noise_BV = np.stack([generator.gumbel(size=scores.shape[1]) for generator in self._generators])
        return scores + torch.from_numpy(self._temperature * noise_BV).to(scores)


def sinusoids(length: int, width: int) -> Tensor:
    """Return position encodings, shape (length, width), of Vaswani et al. 2017, section 3.5."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]
