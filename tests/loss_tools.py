"""Rows and gradients for losses."""

import torch
from torch.nn import functional as F


def unit_rows(num_rows, dim, seed):
    """Seeded directions."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_rows, dim, generator=generator, dtype=torch.float64), dim=1)


def value_and_gradient(loss, logits):
    """Both, because a loss can be right in one of them only."""
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    return value.detach(), torch.autograd.grad(value, logits)[0]
