"""The front end of a checkpoint: the published one of its family, compared with the filterbank in its file.

torchlibrosa stores the STFT kernels and the mel filters among the weights, so that loading PANNs' file into a model
with another sample rate replaces that model's filters. We never store filters: those of a file are compared with the
ones that a config computes, and if they differ, the caller chooses which to use. The choice results in a config.

Shapes: F frequency bins, M mel bands, T samples in a frame.
"""

import dataclasses
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from clapcur.errors import CheckpointError
from clapcur.models.config import FrontEndConfig
from clapcur.models.formats.ledger import Filters, FrontEndChoice, Ledger
from clapcur.models.front_end import mel_filters

TOLERANCE = 1e-5
"""Of the largest filter weight: libraries differ by rounding (1e-7), another rate or band by more than 0.1."""

RATES = (32000, 44100, 48000, 16000, 22050, 24000, 8000)
"""Hz; filters in files are looked for among these."""

BANDS = ((50.0, 14000.0), (50.0, 8000.0), (0.0, 14000.0), (0.0, 8000.0), (20.0, 16000.0))
"""Hz; and among these bands."""


def settle(
    published: FrontEndConfig, stored_FM: Tensor | None, choice: FrontEndChoice
) -> tuple[FrontEndConfig, Filters | None]:
    """Return the front end to use, and how the stored filters compare with it.

    Parameters
    ----------
    published : FrontEndConfig
        Front end of the family.
    stored_FM : Tensor, shape (F, M), or None
        Mel filters in the checkpoint.
    choice : "from_config", "from_checkpoint" or None

    Raises
    ------
    CheckpointError
        The stored filters differ from those of the config and `choice` is None; or the choice is "from_checkpoint" but
        there are no stored filters, or none that a config can describe.
    """
    if stored_FM is None:
        if choice == "from_checkpoint":
            raise CheckpointError("the checkpoint stores no filterbank; load it with front_end='from_config'")
        return published, None
    difference = _difference(published, stored_FM)
    found = next((config for config in _candidates(published) if _difference(config, stored_FM) <= TOLERANCE), None)
    stored = _words(found) if found else "that no config here describes"
    if choice is None and difference > TOLERANCE:
        raise CheckpointError(
            f"the checkpoint stores mel filters {stored}, but its config computes filters {_words(published)}; the "
            "weights were trained with only one of them. Choose front_end='from_checkpoint', which the release's own "
            "code uses, or front_end='from_config'"
        )
    if choice == "from_checkpoint" and found is None:
        raise CheckpointError(f"the checkpoint stores filters {stored}; only front_end='from_config' can load it")
    used: FrontEndChoice = choice or "from_config"
    assert used is not None
    config = found if used == "from_checkpoint" and found else published
    return config, Filters(stored, _words(published), difference, used)


def stored_filters(ledger: Ledger, prefix: str, n_fft: int) -> Tensor | None:
    """Return the filters under torchlibrosa's names, and check that its STFT is the same as ours.

    Parameters
    ----------
    ledger : Ledger
        The tensors of the checkpoint.
    prefix : str
        Prefix of the tower's names.
    n_fft : int
        Length of the window, in samples.

    Raises
    ------
    CheckpointError
        The STFT has another length or window.
    """
    kernel = f"{prefix}spectrogram_extractor.stft.conv_real.weight"
    if kernel in ledger:
        window_T = ledger[kernel][0].flatten()  # the cosine of 0 Hz
        if len(window_T) != n_fft or not torch.allclose(window_T.float(), torch.hann_window(n_fft), atol=1e-4):
            raise CheckpointError(
                f"{kernel} must be a periodic Hann window of {n_fft} samples, got another window of {len(window_T)} "
                "samples"
            )
    name = f"{prefix}logmel_extractor.melW"
    stored_FM = ledger[name] if name in ledger else None
    ledger.ignore(
        re.escape(prefix) + r"(spectrogram_extractor|logmel_extractor)\..*", "front end: computed from the config"
    )
    return stored_FM


def torchlibrosa_tensors(config: FrontEndConfig, prefix: str) -> dict[str, Tensor]:
    """Return the front end as torchlibrosa stores it: the kernels of the STFT and the mel filters."""
    bins_F = torch.arange(config.n_fft // 2 + 1, dtype=torch.float64)
    samples_T = torch.arange(config.n_fft, dtype=torch.float64)
    turns_FT = (bins_F[:, None] * samples_T) % config.n_fft / config.n_fft  # removing whole turns affects only rounding
    window_T = torch.hann_window(config.n_fft, dtype=torch.float64)
    real_FT, imag_FT = (2 * torch.pi * turns_FT).cos() * window_T, -(2 * torch.pi * turns_FT).sin() * window_T
    return {
        f"{prefix}spectrogram_extractor.stft.conv_real.weight": real_FT[:, None].float(),
        f"{prefix}spectrogram_extractor.stft.conv_imag.weight": imag_FT[:, None].float(),
        f"{prefix}logmel_extractor.melW": mel_filters(config).float(),
    }


def _difference(config: FrontEndConfig, stored_FM: Tensor) -> float:
    computed_FM = mel_filters(config)
    if computed_FM.shape != stored_FM.shape:
        return float("inf")
    return float((computed_FM - stored_FM.double()).abs().max() / computed_FM.max())


def _candidates(published: FrontEndConfig) -> Iterator[FrontEndConfig]:
    yield published
    for rate in dict.fromkeys((published.sample_rate, *RATES)):
        for f_min, f_max in dict.fromkeys(((published.f_min, published.f_max), *BANDS, (0.0, rate / 2))):
            if f_max <= rate / 2:
                filter_rate = None if rate == published.sample_rate else rate
                yield dataclasses.replace(published, filter_rate=filter_rate, f_min=f_min, f_max=f_max)


def _words(config: FrontEndConfig) -> str:
    rate = config.filter_rate or config.sample_rate
    stretch = config.sample_rate / rate
    heard = f" (heard as {config.f_min * stretch:.0f}-{config.f_max * stretch:.0f} Hz)" if stretch != 1 else ""
    return f"of {rate} Hz, {config.f_min:g}-{config.f_max:g} Hz{heard}"
