"""LAION-CLAP without fusion: HTSAT or Cnn14 with a RoBERTa or a BERT and its pooler.

A file contains neither the sample rate nor the window: they are those of `model_configs/*.json` and `hook.py`, with
the waveform rounded to 16 bits.

References
----------
Wu et al. 2023, arXiv:2211.06687; LAION-AI/CLAP.
"""

import dataclasses

import torch
from torch import Tensor

from clapcur.errors import CheckpointError
from clapcur.models.config import ClapConfig, FrontEndConfig, TextConfig
from clapcur.models.formats.front_ends import settle, stored_filters, torchlibrosa_tensors
from clapcur.models.formats.ledger import Ask, Ledger, Reading, tower
from clapcur.models.formats.originals import read_audio, write_audio, write_unused

AUDIO, TEXT = "audio_branch.", "text_branch."
LAYERS = {"0": "linear1", "2": "linear2"}
"""Of the projections: the place in a torch.nn.Sequential -> ours."""

FRONT_END = FrontEndConfig(sample_rate=48000, hop_samples=480, int16=True)
POSITIONS = "positions: counted by newer transformers"
SECOND_SCALE = "second temperature: of the caption's side, the released loss learns the first; written back as a copy"
TRANSFORMS = "MLPs behind the embedding, of an unused loss"


def recognises(ledger: Ledger) -> bool:
    """Return whether the tensor names are those of this family."""
    return bool(ledger.names(AUDIO) and ledger.names(TEXT) and "audio_projection.0.weight" in ledger)


def read(ledger: Ledger, ask: Ask) -> Reading:
    """Map a checkpoint to a config and named tensors."""
    if any(part in name for name in ledger.names(AUDIO) for part in ("fusion_model.", "mel_conv2d.", "mel_conv1d.")):
        raise CheckpointError(
            "this LAION-CLAP was trained with fusion (four spectrograms of a long clip); only models without fusion "
            "can be "
            "loaded (630k-audioset-best.pt, music_*.pt)"
        )
    if f"{TEXT}embeddings.word_embeddings.weight" not in ledger:
        raise CheckpointError("unsupported LAION-CLAP: its text encoder is neither RoBERTa nor BERT")
    published = dataclasses.replace(FRONT_END, num_mels=len(ledger[f"{AUDIO}bn0.weight"]))
    front_end, filters = settle(published, stored_filters(ledger, AUDIO, published.n_fft), ask.front_end)
    audio = dataclasses.replace(read_audio(ledger, AUDIO), front_end=front_end)
    # RoBERTa has one segment type, BERT two; all other names are the same.
    is_roberta = ledger[f"{TEXT}embeddings.token_type_embeddings.weight"].shape[0] == 1
    text = TextConfig(source="roberta-base" if is_roberta else "bert-base-uncased", pooling="pooler", max_tokens=77)
    encoder, tokenizer = ask.blank_encoder(text.source)
    ledger.ignore(r"text_branch\.embeddings\.(position_ids|token_type_ids)", POSITIONS)
    ledger.ignore(r"(audio|text)_transform\..*", TRANSFORMS)
    ledger.ignore("logit_scale_t", SECOND_SCALE)
    for side in ("audio_projection", "text_projection"):
        for place, layer in LAYERS.items():
            ledger.take_all(f"{side}.{place}.", f"{side}.{layer}.")
    ledger.take_all(TEXT, "text.encoder.")
    ledger.take("logit_scale_a", "logit_scale")
    config = ClapConfig(
        audio=audio,
        text=text,
        embedding_dim=len(ledger["audio_projection.2.bias"]),
        window_s=10.0,
        short="repeatpad",
        projection="mlp",
    )
    return Reading("laion", config, tower(text, encoder, tokenizer), filters)


def refusal(config: ClapConfig, encoder_type: str) -> str | None:
    """Return why this format cannot represent a model, or None."""
    if config.projection != "mlp":
        return f"its projections are {config.projection!r}, but this format needs 'mlp'"
    if config.text.pooling != "pooler" or encoder_type not in ("bert", "roberta"):
        return (
            f"its text encoder is a {encoder_type} pooled by {config.text.pooling!r}, "
            "but this format needs a RoBERTa or a BERT with its pooler"
        )
    return None


def write(state: dict[str, Tensor], config: ClapConfig) -> dict[str, Tensor]:
    """Return a model's state under this family's names.

    The other tensors that strict loading requires, the AudioSet heads and the MLPs after the embedding, are zeros: no
    embedding depends on them.
    """
    written = torchlibrosa_tensors(config.audio.front_end, AUDIO) | write_audio(state, AUDIO)
    for side in ("audio_projection", "text_projection"):
        for place, layer in LAYERS.items():
            for kind in ("weight", "bias"):
                written[f"{side}.{place}.{kind}"] = state[f"{side}.{layer}.{kind}"]
    text = "text.encoder."
    written |= {TEXT + name.removeprefix(text): state[name] for name in state if name.startswith(text)}
    dim = config.embedding_dim
    for side in ("audio_transform", "text_transform"):
        for place in ("0", "3"):  # two layers, a ReLU and a dropout between them
            written[f"{side}.sequential.{place}.weight"] = torch.zeros(dim, dim)
            written[f"{side}.sequential.{place}.bias"] = torch.zeros(dim)
    written |= write_unused(config.audio, AUDIO)
    # newer releases of the package delete this name and fail if it is absent
    positions = state["text.encoder.embeddings.position_embeddings.weight"].shape[0]
    written[f"{TEXT}embeddings.position_ids"] = torch.arange(positions)[None]
    return written | {"logit_scale_a": state["logit_scale"], "logit_scale_t": state["logit_scale"]}
