"""The architecture of a model, as frozen configs; importing them does not import torch.

A config describes everything except the weights and the vocabulary; `clap.Clap.save` writes it beside them. The
defaults are the paper's model (Wang et al. 2023) at the 32 kHz of the PANNs weights, with a small text tower that needs
no download; the paper's own is `TextConfig(source="bert-base-uncased")`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from clapcur import config
from clapcur.config import added, frozen

FIRST_CHANNELS = {"full": 64, "small": 16, "tiny": 8}
"""Channels of Cnn14's first block at each width; five doublings follow, so that a clip's features
are 32 times as many. full: as published, 80 M parameters; small: a quarter of every width, 5 M;
tiny: an eighth, 1.3 M, which trains on a CPU."""

POOLING = 32
"""Frames, and mel bands, behind one cell of Cnn14's last map: five halvings."""

RECEPTIVE_FRAMES = 284
"""Frames that one cell of Cnn14's last map depends on: 12 convolutions of 3 and five halvings between them."""

YAMNET_LAYERS = (
    (2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1), (16, 1), (16, 1), (16, 1), (16, 1), (32, 2), (32, 1),
)  # fmt: skip
"""YAMNet's layers 2 to 14: channels as a multiple of the first layer's, and stride."""

YAMNET_RECEPTIVE_FRAMES = 315
"""Frames that one cell of YAMNet's last map depends on."""

Tower = Literal["audio", "text"]

Part = Literal[
    "audio", "audio_last", "order_head", "audio_projection", "text", "text_last", "text_projection", "logit_scale"
]
"""What a training may teach alone: towers, the last layer of each (Cnn14's `fc1`, HTSAT's last stage, YAMNet's layers
13 and 14; the encoder's last layer), the order head, the projections and the scale; see `clapcur.models.parts`."""

MAX_SCALE = 100.0
"""Largest exp(logit_scale), as in CLIP (Radford et al. 2021, section 2.5)."""


def _check_dropout(name: str, probability: float) -> None:
    if not 0 <= probability < 1:
        raise ValueError(f"{name} must be a probability in [0, 1), got {probability}")


@frozen
class FrontEndConfig:
    """What a log-mel frame is; the defaults are PANNs' (Kong et al. 2020)."""

    sample_rate: int = 32000
    """Hz; waveforms must have this sample rate; a different rate cannot be detected."""
    n_fft: int = 1024
    """Samples in a frame and its periodic Hann window."""
    hop_samples: int = 320
    """Samples from frame to frame; 10 ms at 32 kHz."""
    num_mels: int = 64
    """Mel bands."""
    f_min: float = 50.0
    """Hz; lower edge of the lowest band."""
    f_max: float = 14000.0
    """Hz; upper edge of the highest band, at most half the sample rate."""
    mel_norm: Literal["slaney"] | None = "slaney"
    """"slaney": triangles of equal area, as librosa; None: of equal height."""
    mel_scale: Literal["slaney", "htk"] = "slaney"
    """The formula from Hz to mel; librosa's default is "slaney"."""
    amin: float = 1e-10
    """Minimum power, so that digital silence is -100 dB instead of -inf."""
    filter_rate: int | None = None
    """Hz; sample rate for which the mel filters are computed; None: `sample_rate`. A different rate shifts every band:
    PANNs' filters for 32 kHz cover 69-19 294 Hz at 44.1 kHz, as in the training of MS-CLAP 2023."""
    int16: bool = False
    """Round the waveform to 16 bits first, as LAION-CLAP does; this affects quiet bands."""
    style: Literal["librosa", "tensorflow"] = added("librosa")
    """Spectrogram convention. "librosa" (PANNs and CLAP): centred frames with reflected ends, power in dB; "tensorflow"
    (YAMNet): frames start at sample 0, bands are triangles over mel, natural logarithm of magnitude plus amin."""
    frame_samples: int | None = added(None)
    """Samples in a frame, for "tensorflow" only; zero-padded to n_fft. None: n_fft."""

    def __post_init__(self) -> None:
        """Reject a front end whose bands would be empty or above half the sample rate."""
        for name in ("sample_rate", "n_fft", "hop_samples", "num_mels"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not 0 <= self.f_min < self.f_max:
            raise ValueError(f"expected 0 <= f_min < f_max in Hz, got {self.f_min}, {self.f_max}")
        if self.filter_rate is not None and self.filter_rate < 1:
            raise ValueError(f"filter_rate must be a rate in Hz or None, got {self.filter_rate}")
        if self.f_max > (self.filter_rate or self.sample_rate) / 2:
            if self.filter_rate is not None:
                raise ValueError(f"f_max is {self.f_max:g} Hz, above half of filter_rate {self.filter_rate}")
            raise ValueError(
                f"f_max is {self.f_max:g} Hz, but audio at {self.sample_rate} Hz has no content "
                f"above {self.sample_rate / 2:g} Hz: the upper bands would always be silent; "
                f"set f_max to {self.sample_rate / 2:g} or less, or raise sample_rate"
            )
        if self.style not in ("librosa", "tensorflow"):
            raise ValueError(f"style must be 'librosa' or 'tensorflow', got {self.style!r}")
        frame = self.frame_samples
        if frame is not None and not (self.style == "tensorflow" and 1 <= frame <= self.n_fft):
            raise ValueError(
                f"frame_samples needs style 'tensorflow' and must be at most n_fft ({self.n_fft}), got "
                f"{frame} with {self.style!r}"
            )
        if self.mel_norm not in ("slaney", None):
            raise ValueError(f"mel_norm must be 'slaney' or None, got {self.mel_norm!r}")
        if self.mel_scale not in ("slaney", "htk"):
            raise ValueError(f"mel_scale must be 'slaney' or 'htk', got {self.mel_scale!r}")
        if not self.amin > 0:
            raise ValueError(f"amin must be above 0, got {self.amin}; silence would be -inf dB")

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a clip: one at every hop, the first centred at sample 0 or beginning there."""
        if self.style == "tensorflow":
            return max(0, (num_samples - self.frame) // self.hop_samples + 1)
        return num_samples // self.hop_samples + 1

    @property
    def frame(self) -> int:
        """Samples in a frame."""
        return self.frame_samples or self.n_fft


@frozen
class HtsatConfig:
    """HTSAT, a Swin transformer over the log-mel frames folded into a square picture (Chen et al. 2022).

    The defaults are "tiny", the tower of LAION-CLAP and MS-CLAP 2023; LAION's "base" has 128 channels and depths
    (2, 2, 12, 2).
    """

    channels: int = 96
    """Channels of a patch in the first stage; each stage doubles them."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Number of blocks in each stage; the sides of the picture are halved between stages."""
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    """Number of attention heads in each stage."""
    window: int = 8
    """Side of an attention window, in patches."""
    patch: int = 4
    """Side of a patch, in frames and mel bands."""
    picture: int = 256
    """Side of the input picture; with 64 mel bands it holds four rows of 256 frames."""
    mlp_ratio: float = 4.0
    """Ratio of the hidden width of the blocks' MLP to their channels."""
    dropout: float = 0.0
    """Dropout probability in the MLP of every block."""
    attention_dropout: float = 0.0
    """Dropout probability in the attention."""
    drop_path: float = 0.1
    """Stochastic depth: probability of skipping the last block, rising linearly from 0 at the first; as in HTSAT."""

    def __post_init__(self) -> None:
        """Refuse a tower that could not be built."""
        for name in ("dropout", "attention_dropout", "drop_path"):
            _check_dropout(name, getattr(self, name))
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise ValueError(f"depths and num_heads must have the same length, got {self.depths} and {self.num_heads}")
        for stage, heads in enumerate(self.num_heads):
            if (self.channels << stage) % heads:
                raise ValueError(
                    f"the channels of a stage must be a multiple of its heads, got {self.channels << stage} channels "
                    f"and {heads} heads in stage {stage}"
                )
        if self.picture % (self.patch << (len(self.depths) - 1)):
            raise ValueError(
                f"picture must be a multiple of patch times two for every stage after the first, got {self.picture} "
                f"for patch {self.patch} and {len(self.depths)} stages"
            )

    @property
    def num_features(self) -> int:
        """Channels of the last stage."""
        return self.channels << (len(self.depths) - 1)

    def max_frames(self, num_mels: int) -> int:
        """Return the number of frames that the picture holds; shorter inputs are stretched to it."""
        return self.picture * (self.picture // num_mels)


YAMNET_FRONT_END = FrontEndConfig(
    sample_rate=16_000, n_fft=512, frame_samples=400, hop_samples=160, num_mels=64, f_min=125.0, f_max=7500.0,
    mel_norm=None, mel_scale="htk", amin=1e-3, style="tensorflow",
)  # fmt: skip
"""What YAMNet was trained with."""


@frozen
class YamnetConfig:
    """YAMNet, a MobileNet that was trained to tag AudioSet (Plakal and Ellis 2020), without batch norms."""

    channels: int = 32
    """Channels of the first layer; the last has 32 times as many. 32: as published, 3.2 M parameters."""
    dropout: float = 0.0
    """Dropout probability of the features."""

    def __post_init__(self) -> None:
        """Refuse a tower that could not be built."""
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        _check_dropout("dropout", self.dropout)


@frozen
class OrderHeadConfig:
    """A recurrent layer over the frames that adds the order of sounds to what is pooled without it."""

    hidden_size: int = 128
    """Units in each of the two directions."""

    def __post_init__(self) -> None:
        """Reject a layer without units."""
        if self.hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, got {self.hidden_size}")


@frozen
class LoraConfig:
    """The size of low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = 8
    """Rank of what each adapter adds to a weight."""
    alpha: int = 16
    """What the adapters add is multiplied by alpha / rank."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if self.rank < 1:
            raise ValueError(f"the rank of an adapter must be at least 1, got {self.rank}")
        if self.alpha < 1:
            raise ValueError(f"alpha must be at least 1, got {self.alpha}")


@frozen
class AudioConfig:
    """The audio tower: front end, and Cnn14, HTSAT or YAMNet behind it."""

    front_end: FrontEndConfig = FrontEndConfig()
    """From waveform to log-mel spectrogram."""
    htsat: HtsatConfig | None = None
    """HTSAT instead of Cnn14; None: Cnn14."""
    yamnet: YamnetConfig | None = added(None)
    """YAMNet instead of Cnn14; its front end comes from a file, see `clapcur.models.formats.yamnet`; None: Cnn14."""
    width: Literal["full", "small", "tiny"] = "full"
    """Width of every layer, see FIRST_CHANNELS; this field and the next two apply to Cnn14 only."""
    block_dropout: float = 0.2
    """Dropout probability after every convolution block; as in PANNs."""
    dropout: float = 0.5
    """Dropout probability before and after the last layer; as in PANNs."""
    order_head: OrderHeadConfig | None = added(None)
    """Order-aware pooling in addition to that of the tower, for any tower; None: only that of the tower."""

    def __post_init__(self) -> None:
        """Refuse a tower that could not be built."""
        if self.htsat is not None and self.yamnet is not None:
            raise ValueError("give either htsat or yamnet, not both")
        if self.yamnet is not None:
            return
        if self.htsat is not None:
            folds, rest = divmod(self.htsat.picture, self.front_end.num_mels)
            rows = self.htsat.picture // (self.htsat.patch << (len(self.htsat.depths) - 1))
            if rest or not folds or rows % folds:
                raise ValueError(
                    f"HTSAT folds the frames into a picture of {self.htsat.picture} bands, reduced to {rows} rows in "
                    "its "
                    f"last stage; both must be multiples of the folds of num_mels {self.front_end.num_mels}"
                )
            return
        if self.width not in FIRST_CHANNELS:
            raise ValueError(f"width must be one of {', '.join(FIRST_CHANNELS)}, got {self.width!r}")
        _check_dropout("block_dropout", self.block_dropout)
        _check_dropout("dropout", self.dropout)
        if self.front_end.num_mels < POOLING:
            raise ValueError(
                f"Cnn14 halves the mel bands five times and needs at least {POOLING}, "
                f"got num_mels {self.front_end.num_mels}"
            )


@frozen
class TextConfig:
    """The text tower: any encoder that Hugging Face's AutoModel loads, or our own."""

    source: str = "bert-tiny"
    """"bert-tiny": a small BERT with fresh weights and a vocabulary of the training captions; "minilm":
    all-MiniLM-L6-v2 from an installed package; else a folder or a name on the Hub."""
    pooling: Literal["cls", "mean", "pooler", "last"] = "cls"
    """Features of a caption: the last hidden state at [CLS] (the paper), its mean over the tokens, the output of the
    encoder's own pooler (LAION-CLAP), or the state at the last token, for left-to-right models."""
    suffix: str = ""
    """Text appended to every caption; MS-CLAP 2023 appends " <|endoftext|>" and pools there."""
    max_tokens: int = 100
    """Maximum number of tokens, including [CLS] and [SEP]; longer captions are truncated; as in the paper."""
    hidden_size: int = 128
    """Width; this field and those below apply to "bert-tiny" only."""
    num_layers: int = 2
    """Number of transformer layers."""
    num_heads: int = 2
    """Number of attention heads."""
    vocab_size: int = 4096
    """Maximum number of word pieces in the vocabulary."""

    def __post_init__(self) -> None:
        """Reject a tower that could not be built, or whose features would silently be poor."""
        if self.pooling not in ("cls", "mean", "pooler", "last"):
            raise ValueError(f"pooling must be 'cls', 'mean', 'pooler' or 'last', got {self.pooling!r}")
        if self.source == "minilm" and self.pooling != "mean":
            raise ValueError(
                "all-MiniLM-L6-v2 was trained with the mean over tokens, not with [CLS]; set pooling to 'mean'"
            )
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens must be at least 3, got {self.max_tokens}: [CLS] and [SEP] take two")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads, got {self.hidden_size} and {self.num_heads}"
            )


@frozen
class ClapConfig:
    """Both towers and the space where they meet."""

    audio: AudioConfig = AudioConfig()
    """Audio tower."""
    text: TextConfig = TextConfig()
    """Text tower."""
    embedding_dim: int = 1024
    """Dimension of the shared space; the paper uses 1,024."""
    window_s: float = 5.0
    """Window of the model, in seconds; the paper uses 5."""
    short: Literal["repeat", "repeatpad", "pad"] = "repeat"
    """How a shorter clip fills the window. repeat: repeated and cut (MS-CLAP); repeatpad: repeated in full, then
    silence (LAION-CLAP); pad: once, then silence."""
    projection: Literal["residual", "mlp", "linear"] = "residual"
    """Projection to the shared space. residual: MS-CLAP; mlp: two layers with ReLU (LAION-CLAP); linear: one (BLAT)."""
    projection_dropout: float = 0.5
    """Dropout probability in both projections, for "residual" only; as in the paper."""
    initial_temperature: float = 0.07
    """Initial temperature by which similarities are divided before the softmax; it is then learned. 0.07 in the
    reference code, 0.007 in the paper."""

    def __post_init__(self) -> None:
        """Reject a window that does not fit the tower, and a temperature that the limit on logit_scale overrides."""
        _check_dropout("projection_dropout", self.projection_dropout)
        if self.embedding_dim < 1:
            raise ValueError(f"embedding_dim must be at least 1, got {self.embedding_dim}")
        if not 1 / MAX_SCALE <= self.initial_temperature:
            raise ValueError(
                f"initial_temperature must be at least {1 / MAX_SCALE:g}, got "
                f"{self.initial_temperature}: logit_scale is limited to {MAX_SCALE:g}, so the first step would undo it"
            )
        for name, known in (
            ("short", ("repeat", "repeatpad", "pad")),
            ("projection", ("residual", "mlp", "linear")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        front_end, htsat = self.audio.front_end, self.audio.htsat
        if htsat is not None:
            self._check_frames(front_end, htsat)
            return
        if self.audio.yamnet is not None:
            if front_end.num_frames(self.num_samples) < 1:
                raise ValueError(f"window_s is {self.window_s:g}, shorter than a frame of {front_end.frame} samples")
            return
        least = max((POOLING - 1) * front_end.hop_samples, front_end.n_fft // 2 + 1)
        if self.num_samples < least:
            raise ValueError(
                f"window_s must be at least {least / front_end.sample_rate:.4g} s, got "
                f"{self.window_s:g}: Cnn14 halves the frames five times and none would be left"
            )

    def _check_frames(self, front_end: FrontEndConfig, htsat: HtsatConfig) -> None:
        frames, most = front_end.num_frames(self.num_samples), htsat.max_frames(front_end.num_mels)
        if frames > most or self.num_samples <= front_end.n_fft // 2:
            raise ValueError(
                f"window_s {self.window_s:g} gives {frames} frames, but HTSAT's picture holds at most {most}, and a "
                f"window must be longer than half a frame of {front_end.n_fft} samples"
            )

    @property
    def hears_order_s(self) -> float:
        """Seconds over which the audio tower can recognise the order of sounds; at most the window."""
        if self.audio.order_head is not None or self.audio.htsat is not None:  # HTSAT's last stage covers every frame
            return self.window_s
        front_end = self.audio.front_end
        frames = RECEPTIVE_FRAMES if self.audio.yamnet is None else YAMNET_RECEPTIVE_FRAMES
        return min(self.window_s, frames * front_end.hop_samples / front_end.sample_rate)

    @property
    def num_samples(self) -> int:
        """Samples in a window at the front end's sample rate."""
        return round(self.window_s * self.audio.front_end.sample_rate)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` accepts."""
        return config.to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ClapConfig":
        """Build a config; raise ValueError for an unknown key, with the nearest known one."""
        return config.from_dict(cls, values, "model config")
