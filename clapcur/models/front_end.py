"""Waveform to log-mel spectrogram, as PANNs or YAMNet computes it, always in float32.

The filterbank and the window are rebuilt from the config and never stored: PANNs' checkpoints contain the filterbank
for 32 kHz among their weights, and loading them into a 44.1 kHz model silently moves its band from 50-14 000 Hz to
69-19 294 Hz (qiuqiangkong/audioset_tagging_cnn#16).

Shapes: B batch, T samples, L frames, F frequency bins, M mel bands.
"""

import math

import torch
import torchaudio
from torch import Tensor, nn

from clapcur.models.config import FrontEndConfig


class LogMel(nn.Module):
    """Log-mel spectrogram: STFT, power or magnitude, mel bands, logarithm; see `FrontEndConfig.style`.

    Parameters
    ----------
    config : FrontEndConfig
        Frames and mel bands.

    Raises
    ------
    ValueError
        A mel band is between two frequency bins and would be empty.

    Notes
    -----
    The buffers are not persistent: no checkpoint contains them, so none can overwrite them.
    """

    window: Tensor
    mel_filters: Tensor

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        self.config = config
        window = torch.hann_window(config.frame, periodic=True, dtype=torch.float32)
        self.register_buffer("window", window, persistent=False)
        filters_FM = mel_filters(config)
        silent = int((filters_FM.amax(dim=0) == 0).sum())
        if silent:
            raise ValueError(
                f"{silent} of {config.num_mels} mel bands are between two frequency bins, "
                f"{(config.filter_rate or config.sample_rate) / config.n_fft:g} Hz apart, and would always be silent; "
                "raise n_fft or lower num_mels"
            )
        self.register_buffer("mel_filters", filters_FM.float(), persistent=False)

    def power(self, waveform_BT: Tensor) -> Tensor:
        """Return the power spectrogram, shape (B, L, F), float32."""
        half = self.config.n_fft // 2
        if waveform_BT.ndim != 2 or waveform_BT.shape[1] <= half:
            raise ValueError(
                f"expected waveforms of shape (batch, samples) with more than {half} samples, as "
                f"the reflected ends need, got {tuple(waveform_BT.shape)}; pad or repeat them"
            )
        power_BFL: Tensor = torchaudio.functional.spectrogram(
            waveform_BT.float(),
            pad=0,
            window=self.window,
            n_fft=self.config.n_fft,
            hop_length=self.config.hop_samples,
            win_length=self.config.n_fft,
            power=2.0,
            normalized=False,
            center=True,
            pad_mode="reflect",
        )
        return power_BFL.transpose(1, 2)

    def magnitude(self, waveform_BT: Tensor) -> Tensor:
        """Return the magnitude spectrogram of zero-padded frames that begin at sample 0, shape (B, L, F)."""
        if waveform_BT.ndim != 2 or waveform_BT.shape[1] < self.config.frame:
            raise ValueError(
                f"expected waveforms of shape (batch, samples) with at least {self.config.frame} samples, got "
                f"{tuple(waveform_BT.shape)}; pad or repeat them"
            )
        frames_BLN = waveform_BT.float().unfold(1, self.config.frame, self.config.hop_samples)
        return torch.fft.rfft(frames_BLN * self.window, self.config.n_fft).abs()

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """Return the log-mel spectrogram.

        Parameters
        ----------
        waveform_BT : Tensor, shape (B, T)
            Mono waveforms at `config.sample_rate`.

        Returns
        -------
        Tensor, shape (B, L, M), float32
            In dB re 1 (for the style "tensorflow": a natural logarithm); float32 even under autocast, because half
            precision would lose quiet bands.

        Raises
        ------
        ValueError
            The waveforms are not longer than half a frame (for the style "tensorflow": shorter than a frame), or not
            two-dimensional.
        TypeError
            The whole module was cast to another precision.
        """
        if self.mel_filters.dtype != torch.float32:
            raise TypeError(
                f"the front end was cast to {self.mel_filters.dtype}, which moves its band edges; "
                "keep the model in float32 and run it under torch.autocast"
            )
        with torch.autocast(waveform_BT.device.type, enabled=False):
            if self.config.int16:
                waveform_BT = (waveform_BT.float().clamp(-1, 1) * 32767).trunc() / 32767
            if self.config.style == "tensorflow":
                return torch.log(self.magnitude(waveform_BT) @ self.mel_filters + self.config.amin)
            mel_BLM = self.power(waveform_BT) @ self.mel_filters
            return 10.0 * torch.log10(mel_BLM.clamp(min=self.config.amin))


def mel_filters(config: FrontEndConfig) -> Tensor:
    """Return triangular mel filters, shape (F, M), float64.

    Notes
    -----
    torchaudio's `melscale_fbanks` is off by up to 1e-3 at odd sample rates (it rounds half of 11025 to 5512) and uses
    float32; these filters agree with 144 MATLAB filterbanks to 1e-14 (tests).

    References
    ----------
    Slaney 1998, Auditory Toolbox; HTK Book, section 5.4.
    """
    num_bins = config.n_fft // 2 + 1
    rate = config.filter_rate or config.sample_rate
    bin_hz_F = torch.arange(num_bins, dtype=torch.float64) * rate / config.n_fft
    lowest, highest = (_hz_to_mel(hz, config.mel_scale) for hz in (config.f_min, config.f_max))
    edge_mel = torch.linspace(lowest, highest, config.num_mels + 2, dtype=torch.float64)
    edge_hz = _mel_to_hz(edge_mel, config.mel_scale)
    edges, bins_F = edge_hz, bin_hz_F
    if config.style == "tensorflow":  # its triangles are linear in mel
        edges, bins_F = edge_mel, _bins_to_mel(bin_hz_F, config.mel_scale)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]  # (M,) each
    rising_FM = (bins_F[:, None] - low) / (centre - low)
    falling_FM = (high - bins_F[:, None]) / (high - centre)
    filters_FM = torch.minimum(rising_FM, falling_FM).clamp(min=0)
    return filters_FM * 2 / (edge_hz[2:] - edge_hz[:-2]) if config.mel_norm == "slaney" else filters_FM


def _bins_to_mel(hz_F: Tensor, scale: str) -> Tensor:
    return torch.tensor([_hz_to_mel(hz, scale) for hz in hz_F.tolist()], dtype=torch.float64)


def _hz_to_mel(hz: float, scale: str) -> float:
    if scale == "htk":
        return 2595 * math.log10(1 + hz / 700)
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def _mel_to_hz(mel: Tensor, scale: str) -> Tensor:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    above_1000_hz = 1000 * torch.exp((mel - 15) * math.log(6.4) / 27)
    return torch.where(mel < 15, mel * 200 / 3, above_1000_hz)
