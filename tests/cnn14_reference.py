"""Cnn14 written out, to compare ours with."""

import torch
import torch.nn.functional as F


def reference_features(weights: dict[str, torch.Tensor], logmel_BLM: torch.Tensor) -> torch.Tensor:
    """Cnn14 at evaluation from the description in PANNs (Table 1), batch norm written out, one loop a block."""

    def normalised(x_BCLM: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, gain, bias = (
            weights[f"{name}.{part}"].reshape(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x_BCLM - mean) / (var + 1e-5).sqrt() * gain + bias

    x = normalised(logmel_BLM.permute(0, 2, 1)[..., None], "bn0")[..., 0].permute(0, 2, 1)[:, None]
    for block in range(1, 7):
        for layer in (1, 2):
            patches = F.unfold(x, 3, padding=1)
            kernel = weights[f"conv_block{block}.conv{layer}.weight"].flatten(1)
            x = (kernel @ patches).unflatten(2, x.shape[2:])
            x = normalised(x, f"conv_block{block}.bn{layer}").clamp(min=0)
        if block < 6:
            x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
            x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    x = x.mean(dim=3)
    x = x.max(dim=2).values + x.mean(dim=2)
    return (x @ weights["fc1.weight"].T + weights["fc1.bias"]).clamp(min=0)
