"""BLAT: Cnn14 with a medium-sized BERT, and a single-layer projection on each side.

Its Cnn14 processes clips of any length and masks the padding; here it processes windows of 10 s. A clip that fills the
window has the same features; a shorter one is repeated.

References
----------
Xu et al. 2023, arXiv:2303.07902; wsntxxn/BLAT.
"""

import dataclasses
import re

import torch

from clapcur.errors import CheckpointError
from clapcur.models.config import ClapConfig, FrontEndConfig, TextConfig
from clapcur.models.formats.front_ends import settle
from clapcur.models.formats.ledger import Ask, Ledger, Reading, tower
from clapcur.models.formats.originals import read_audio

AUDIO, TEXT = "audio_encoder.", "text_encoder.model."
FILTERS = f"{AUDIO}melspec_extractor.mel_scale.fb"
WINDOW = f"{AUDIO}melspec_extractor.spectrogram.window"


def recognises(ledger: Ledger) -> bool:
    """Return whether the tensor names are those of this family."""
    return "audio_proj.weight" in ledger and "text_proj.weight" in ledger and bool(ledger.names(TEXT))


def read(ledger: Ledger, ask: Ask) -> Reading:
    """Map a checkpoint to a config and named tensors."""
    if f"{AUDIO}conv_block1.conv1.weight" not in ledger or f"{AUDIO}pre_conv0.weight" in ledger:
        raise CheckpointError("unsupported BLAT: its audio encoder is not Cnn14")
    published = FrontEndConfig(num_mels=len(ledger[f"{AUDIO}bn0.weight"]))
    if WINDOW in ledger and not torch.allclose(ledger[WINDOW], torch.hann_window(published.n_fft), atol=1e-4):
        raise CheckpointError(f"{WINDOW} is not a periodic Hann window of {published.n_fft} samples")
    front_end, filters = settle(published, ledger[FILTERS] if FILTERS in ledger else None, ask.front_end)
    ledger.ignore(re.escape(f"{AUDIO}melspec_extractor.") + ".*", "front end: computed from the config")
    audio = dataclasses.replace(read_audio(ledger, AUDIO), front_end=front_end)
    text = TextConfig(source="prajjwal1/bert-medium", pooling="cls", max_tokens=30)
    encoder, tokenizer = ask.blank_encoder(text.source)
    ledger.ignore(r"text_encoder\.model\.embeddings\.position_ids", "positions: counted by newer transformers")
    ledger.ignore(r"text_encoder\.model\.pooler\..*", "pooler: the caption is read at [CLS]")
    ledger.take_all(TEXT, "text.encoder.")
    ledger.take_all("audio_proj.", "audio_projection.")
    ledger.take_all("text_proj.", "text_projection.")
    ledger.take("logit_scale", "logit_scale")
    dim = len(ledger["audio_proj.bias"])
    config = ClapConfig(audio=audio, text=text, embedding_dim=dim, window_s=10.0, projection="linear")
    return Reading("blat", config, tower(text, encoder, tokenizer), filters)
