"""Small models of Hugging Face, and what its own code makes of them."""

from pathlib import Path

import numpy as np
import torch
from tiny_checkpoints import CAPTIONS, SIZES, roberta_source, trained
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

AUDIO = {
    "patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [2, 1, 3, 1], "num_attention_heads": [1, 2, 2, 4],
    "num_hidden_layers": 4,
}  # fmt: skip


EXTRACTOR = {"frequency_min": 50, "truncation": "rand_trunc", "padding": "repeatpad"}


def write_hugging_face(folder: Path, seed: int = 0, audio: dict | None = None, **extractor: object) -> ClapModel:
    """Write a tiny ClapModel as its library does, and return it."""
    tokenizer = roberta_source(folder)
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 66}
    config = ClapConfig(text_config=text, audio_config={**AUDIO, **(audio or {})}, projection_dim=24)
    model = trained(ClapModel(config), seed)
    model.save_pretrained(folder)
    ClapProcessor(ClapFeatureExtractor(**{**EXTRACTOR, **extractor}), tokenizer).save_pretrained(folder)
    return model


def embedded(model: ClapModel, folder: Path, waveforms: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Embed as the library's documentation says: processor, then model."""
    processor = ClapProcessor.from_pretrained(folder)
    with torch.inference_mode():
        heard = processor(audio=waveforms, sampling_rate=48000, return_tensors="pt")
        read = processor.tokenizer(list(CAPTIONS), padding=True, return_tensors="pt")
        return (
            model.get_audio_features(**heard).pooler_output.numpy(),
            model.get_text_features(**read).pooler_output.numpy(),
        )
