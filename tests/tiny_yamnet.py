"""A model with a YAMNet of next to nothing, and a tagger of five classes."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from clapcur.models.config import (
    YAMNET_FRONT_END,
    AudioConfig,
    ClapConfig,
    TextConfig,
    YamnetConfig,
)
from clapcur.models.taggers import YamnetTagger

SMALL = ClapConfig(
    audio=AudioConfig(front_end=YAMNET_FRONT_END, yamnet=YamnetConfig(channels=4)),
    text=TextConfig(hidden_size=32, vocab_size=120, max_tokens=20), embedding_dim=24, window_s=0.5,
)  # fmt: skip


def write_tagger(folder: Path) -> Path:
    """Write a tagger of five classes as YAMNet's file is, and the list of its classes beside it."""
    folder.mkdir()
    torch.manual_seed(0)
    model = YamnetTagger(5, YamnetConfig(channels=4))
    with torch.no_grad():
        model.classifier.weight.mul_(20)  # of random features all classes are alike
    tensors = {name.removeprefix("tower."): value for name, value in model.state_dict().items()}
    save_file(tensors, folder / "yamnet.safetensors")
    names = ("Hum", "Whistle", "Noise, static", "Speech", "Wind")
    rows = ["index,mid,display_name", *(f'{index},/m/{index},"{name}"' for index, name in enumerate(names))]
    (folder / "class_map.csv").write_text("\n".join(rows))
    return folder / "yamnet.safetensors"
