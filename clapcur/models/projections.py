"""Projections from a tower's features to the shared space, in the forms that released models have.

The names of the layers are those of the releases. The resulting rows are not normalised.

Shapes: B batch, F features, D embedding.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from clapcur.models.config import ClapConfig


class Projection(nn.Module):
    """The residual form: LayerNorm(e + Dropout(W2 GELU(e))) with e = W1 x.

    Names and form are those of the released MS-CLAP 2022 weights (Elizalde et al. 2023).
    """

    def __init__(self, num_features: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(num_features, embedding_dim, bias=False)
        self.linear2 = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.layer_norm = nn.LayerNorm(embedding_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features_BF: Tensor) -> Tensor:
        """Return rows of shape (B, D)."""
        embedded_BD = self.linear1(features_BF)
        residual_BD = self.dropout(self.linear2(F.gelu(embedded_BD)))
        return self.layer_norm(embedded_BD + residual_BD)


class MlpProjection(nn.Module):
    """W2 ReLU(W1 x + b1) + b2: LAION-CLAP's form (Wu et al. 2023), with Hugging Face's names."""

    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(num_features, embedding_dim)
        self.linear2 = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, features_BF: Tensor) -> Tensor:
        """Return rows of shape (B, D)."""
        return self.linear2(F.relu(self.linear1(features_BF)))


def build_projection(config: ClapConfig, num_features: int) -> nn.Module:
    """Build the projection given by a config."""
    if config.projection == "residual":
        return Projection(num_features, config.embedding_dim, config.projection_dropout)
    if config.projection == "mlp":
        return MlpProjection(num_features, config.embedding_dim)
    return nn.Linear(num_features, config.embedding_dim)  # BLAT (Xu et al. 2023)
