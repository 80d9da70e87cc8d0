"""Hugging Face's `ClapModel`, from a folder or a name on the Hub; without fusion.

The folder defines everything except the crop of clips longer than the window, which is random there and central here.
Its text encoder is a RoBERTa under another name, and is kept as a RoBERTa.

References
----------
transformers, `models/clap`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clapcur.errors import CheckpointError
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, HtsatConfig, TextConfig
from clapcur.models.formats.front_ends import settle
from clapcur.models.formats.laion import POSITIONS, SECOND_SCALE
from clapcur.models.formats.ledger import Ask, Ledger, Reading, tower
from clapcur.models.htsat import hugging_face_config

if TYPE_CHECKING:
    from clapcur.models.clap import Clap

FIXED = {
    "enable_fusion": False,
    "hidden_act": "gelu",
    "patch_embed_input_channels": 1,
    "flatten_patch_embeds": True,
    "enable_patch_layer_norm": True,
    "qkv_bias": True,
    "layer_norm_eps": 1e-5,
    "projection_hidden_act": "relu",
}
"""Of the audio config: what our tower is, and no released model is otherwise."""

ROBERTA = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
    "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
"""Fields that ClapTextConfig and RobertaConfig share."""


def recognises(ledger: Ledger) -> bool:
    """Return whether the tensor names are those of this family."""
    return bool(ledger.names("audio_model.audio_encoder.") and ledger.names("text_model."))


def read(ledger: Ledger, ask: Ask) -> Reading:
    """Map a checkpoint to a config and named tensors."""
    from transformers import ClapConfig as TheirConfig
    from transformers import ClapFeatureExtractor

    if ask.folder is None:
        raise CheckpointError("these are the weights of a ClapModel; give its folder or its name on the Hub")
    if ask.front_end == "from_checkpoint":
        settle(FrontEndConfig(), None, ask.front_end)
    try:
        theirs = TheirConfig.from_pretrained(ask.folder)
        extractor = ClapFeatureExtractor.from_pretrained(ask.folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{ask.folder} lacks the config or the feature extractor of a ClapModel: {error}"
        ) from error
    front_end = _front_end(extractor)
    encoder, tokenizer = _text(theirs.text_config), ask.tokenizer(ask.folder)
    ledger.ignore(r"audio_model\..*\.relative_position_index", "follows from the window")
    ledger.ignore(r"text_model\.embeddings\.(position_ids|token_type_ids)", POSITIONS)
    ledger.ignore("logit_scale_t", SECOND_SCALE)
    ledger.take_all("audio_model.", "audio.model.")
    ledger.take_all("text_model.", "text.encoder.")
    ledger.take_all("audio_projection.", "audio_projection.")
    ledger.take_all("text_projection.", "text_projection.")
    ledger.take("logit_scale_a", "logit_scale")
    positions = encoder.config.max_position_embeddings - encoder.embeddings.padding_idx - 1
    text = TextConfig(source=ask.folder, pooling="pooler", max_tokens=min(positions, tokenizer.model_max_length))
    config = ClapConfig(
        audio=AudioConfig(front_end=front_end, htsat=_htsat(theirs.audio_config, front_end.num_mels)),
        text=text,
        embedding_dim=theirs.projection_dim,
        window_s=float(extractor.max_length_s),
        short=extractor.padding,  # type: ignore[arg-type]  # ClapConfig refuses what it does not know
        projection="mlp",
    )
    return Reading("hf", config, tower(text, encoder, tokenizer))


def refusal(config: ClapConfig, encoder_type: str) -> str | None:
    """Return why this format cannot represent a model, or None."""
    if config.audio.htsat is None:
        return "its audio tower is a Cnn14, but this format needs an HTSAT"
    if config.projection != "mlp":
        return f"its projections are {config.projection!r}, but this format needs 'mlp'"
    if config.text.pooling != "pooler" or encoder_type != "roberta":
        return (
            f"its text encoder is a {encoder_type} pooled by {config.text.pooling!r}, "
            "but this format needs a RoBERTa with its pooler"
        )
    front_end = config.audio.front_end
    if front_end.filter_rate is not None or (front_end.mel_norm, front_end.mel_scale) != ("slaney", "slaney"):
        return "its mel filters differ from those of this format's feature extractor"
    if not config.window_s.is_integer():
        return f"its window is {config.window_s:g} s, but this format needs a whole number of seconds"
    return None


def write(state: dict[str, Tensor], config: ClapConfig) -> dict[str, Tensor]:
    """Return a model's state under this family's names, without what `ClapModel` computes."""
    written = {"logit_scale_a": state["logit_scale"], "logit_scale_t": state["logit_scale"]}
    for ours, theirs in (
        ("audio.model.", "audio_model."),
        ("text.encoder.", "text_model."),
        ("audio_projection.", "audio_projection."),
        ("text_projection.", "text_projection."),
    ):
        written |= {theirs + name.removeprefix(ours): state[name] for name in state if name.startswith(ours)}
    return written


def save(model: "Clap", folder: Path) -> None:
    """Write a folder that `ClapModel.from_pretrained` and `ClapProcessor.from_pretrained` read."""
    from transformers import ClapConfig as TheirConfig
    from transformers import ClapModel

    config, front_end = model.config, model.config.audio.front_end
    assert config.audio.htsat is not None
    text = {name: getattr(model.text.encoder.config, name) for name in ROBERTA}
    audio = hugging_face_config(config.audio.htsat, front_end.num_mels)
    theirs = ClapModel(
        TheirConfig(
            text_config=text,
            audio_config=audio.to_dict(),
            projection_dim=config.embedding_dim,
            logit_scale_init_value=model.scale().item(),
        )
    )
    lacking, unknown = theirs.load_state_dict(write(dict(model.state_dict()), config), strict=False)
    computed = ("relative_position_index", "position_ids", "token_type_ids")
    assert not unknown and all(name.endswith(computed) for name in lacking), (unknown, lacking)
    theirs.save_pretrained(folder)
    extractor(config).save_pretrained(folder)
    model.text.save_tokenizer(folder)


def extractor(config: ClapConfig) -> Any:
    """Return the feature extractor that matches a model's front end."""
    from transformers import ClapFeatureExtractor

    front_end = config.audio.front_end
    return ClapFeatureExtractor(
        feature_size=front_end.num_mels,
        sampling_rate=front_end.sample_rate,
        hop_length=front_end.hop_samples,
        max_length_s=round(config.window_s),
        fft_window_size=front_end.n_fft,
        frequency_min=front_end.f_min,
        frequency_max=front_end.f_max,
        truncation="rand_trunc",
        padding=config.short,
    )


def _front_end(extractor: Any) -> FrontEndConfig:
    if extractor.truncation != "rand_trunc" or extractor.top_db is not None:
        raise CheckpointError(
            f"the feature extractor has truncation={extractor.truncation!r} and top_db={extractor.top_db}; only models "
            "without fusion (truncation='rand_trunc' and no top_db) can be loaded"
        )
    if extractor.padding not in ("repeat", "repeatpad", "pad"):
        raise CheckpointError(
            f"the feature extractor pads short clips with {extractor.padding!r}, which is not supported"
        )
    return FrontEndConfig(
        sample_rate=extractor.sampling_rate,
        n_fft=extractor.fft_window_size,
        hop_samples=extractor.hop_length,
        num_mels=extractor.feature_size,
        f_min=float(extractor.frequency_min),
        f_max=float(extractor.frequency_max),
    )


def _htsat(theirs: Any, num_mels: int) -> HtsatConfig:
    other = {name: getattr(theirs, name) for name, ours in FIXED.items() if getattr(theirs, name) != ours}
    patch = theirs.patch_size
    if not isinstance(patch, int) or list(theirs.patch_stride) != [patch, patch]:
        other["patch_stride"] = theirs.patch_stride
    if theirs.num_mel_bins != num_mels:
        other["num_mel_bins"] = theirs.num_mel_bins
    if other:
        raise CheckpointError(f"the audio config of this ClapModel has {other}, which is not supported")
    return HtsatConfig(
        channels=theirs.patch_embeds_hidden_size,
        depths=tuple(theirs.depths),
        num_heads=tuple(theirs.num_attention_heads),
        window=theirs.window_size,
        patch=patch,
        picture=theirs.spec_size,
        mlp_ratio=float(theirs.mlp_ratio),
        dropout=float(theirs.hidden_dropout_prob),
        attention_dropout=float(theirs.attention_probs_dropout_prob),
        drop_path=float(theirs.drop_path_rate),
    )


def _text(theirs: Any) -> Any:
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(RobertaConfig(**{name: getattr(theirs, name) for name in ROBERTA}))
