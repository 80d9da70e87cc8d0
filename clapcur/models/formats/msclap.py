"""MS-CLAP 2022 and 2023, and clap_curation, which keeps the names of 2022.

A file contains neither the sample rate nor the window: these are taken from the releases (`configs/config_2022.yml`,
and for 2023 the values in `models/htsat.py`, which differ from its yml). 2022 is Cnn14 with a BERT, 2023 is HTSAT with
a GPT-2; the tensor names show which of them a file contains, for each side separately.

References
----------
Elizalde et al. 2022, arXiv:2206.04769; 2023, arXiv:2309.05767; microsoft/CLAP; zhepeiw/clap_curation.
"""

import dataclasses

import torch
from torch import Tensor

from clapcur.models.config import ClapConfig, FrontEndConfig, TextConfig
from clapcur.models.formats.front_ends import settle, stored_filters, torchlibrosa_tensors
from clapcur.models.formats.ledger import Ask, Ledger, Reading, tower
from clapcur.models.formats.originals import is_htsat, read_audio, write_audio, write_unused

AUDIO, TEXT = "audio_encoder.", "caption_encoder."
HTSAT = f"{AUDIO}base.htsat."
POSITIONS = "positions: counted from 0 by newer transformers"
MASKS = "causal mask: computed by newer transformers"

FRONT_END_2022 = FrontEndConfig(sample_rate=44100)
FRONT_END_2023 = FrontEndConfig(sample_rate=44100, filter_rate=32000)
"""The filters of 2023 are built for 32 kHz and hear 44.1 kHz: the yml's fmax of 8000 is read by nobody."""

TEXT_2022 = TextConfig(source="bert-base-uncased", pooling="cls", max_tokens=100)
TEXT_2023 = TextConfig(source="gpt2", pooling="last", max_tokens=77, suffix=" <|endoftext|>")
PADDING_2023 = "!"
"""Id 0 of GPT-2, which has no padding of its own."""


def recognises(ledger: Ledger) -> bool:
    """Return whether the tensor names are those of this family."""
    return bool(ledger.names(f"{AUDIO}base.") and ledger.names(f"{TEXT}base."))


def read(ledger: Ledger, ask: Ask) -> Reading:
    """Map a checkpoint to a config and named tensors."""
    new_audio, new_text = is_htsat(ledger, HTSAT), f"{TEXT}base.wte.weight" in ledger
    prefix = HTSAT if new_audio else f"{AUDIO}base."
    published = FRONT_END_2023 if new_audio else FRONT_END_2022
    published = dataclasses.replace(published, num_mels=len(ledger[f"{prefix}bn0.weight"]))
    front_end, filters = settle(published, stored_filters(ledger, prefix, published.n_fft), ask.front_end)
    audio = dataclasses.replace(read_audio(ledger, prefix), front_end=front_end)
    text = TEXT_2023 if new_text else TEXT_2022
    encoder, tokenizer = ask.blank_encoder(text.source)
    if new_text and tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PADDING_2023})
    ledger.ignore(r"caption_encoder\.base\.(embeddings\.)?position_ids", POSITIONS)
    ledger.ignore(r"caption_encoder\.base\.h\.\d+\.attn\.(bias|masked_bias)", MASKS)
    ledger.ignore(r"caption_encoder\.base\.pooler\..*", "pooler: the caption is read at [CLS]")
    ledger.take_all(f"{AUDIO}projection.", "audio_projection.")
    ledger.take_all(f"{TEXT}base.", "text.encoder.")
    ledger.take_all(f"{TEXT}projection.", "text_projection.")
    ledger.take("logit_scale", "logit_scale")
    config = ClapConfig(
        audio=audio,
        text=text,
        embedding_dim=len(ledger[f"{AUDIO}projection.layer_norm.weight"]),
        window_s=7.0 if new_audio else 5.0,
    )
    name = "msclap-2023" if new_audio and new_text else "msclap-2022" if not new_audio and not new_text else "msclap"
    return Reading(name, config, tower(text, encoder, tokenizer), filters)


def refusal(config: ClapConfig, encoder_type: str) -> str | None:
    """Return why this format cannot represent a model, or None."""
    if config.projection != "residual":
        return f"its projections are {config.projection!r}, but this format needs 'residual'"
    if config.text.pooling not in ("cls", "last"):
        return f"it pools captions by {config.text.pooling!r}, but this format needs 'cls' (2022) or 'last' (2023)"
    if (config.text.pooling == "last") != (encoder_type == "gpt2"):
        return (
            f"its text encoder is a {encoder_type}, but this format pools GPT-2 at the last token and others at [CLS]"
        )
    return None


def write(state: dict[str, Tensor], config: ClapConfig) -> dict[str, Tensor]:
    """Return a model's state under this family's names, with the front end that its code reads from the file."""
    prefix = f"{AUDIO}base." if config.audio.htsat is None else HTSAT
    written = torchlibrosa_tensors(config.audio.front_end, prefix) | write_audio(state, prefix)
    for ours, theirs in (
        ("audio_projection.", f"{AUDIO}projection."),
        ("text.encoder.", f"{TEXT}base."),
        ("text_projection.", f"{TEXT}projection."),
        ("logit_scale", "logit_scale"),
    ):
        written |= {theirs + name.removeprefix(ours): state[name] for name in state if name.startswith(ours)}
    written |= write_unused(config.audio, prefix)
    if config.text.pooling == "cls":  # these files contain a BERT's pooler, although no embedding depends on it
        size = state["text.encoder.embeddings.word_embeddings.weight"].shape[1]
        written[f"{TEXT}base.pooler.dense.weight"] = torch.zeros(size, size)
        written[f"{TEXT}base.pooler.dense.bias"] = torch.zeros(size)
    return written
