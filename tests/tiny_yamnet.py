"""A model with a YAMNet of next to nothing."""

from clapcur.models.config import (
    YAMNET_FRONT_END,
    AudioConfig,
    ClapConfig,
    TextConfig,
    YamnetConfig,
)

SMALL = ClapConfig(
    audio=AudioConfig(front_end=YAMNET_FRONT_END, yamnet=YamnetConfig(channels=4)),
    text=TextConfig(hidden_size=32, vocab_size=120, max_tokens=20), embedding_dim=24, window_s=0.5,
)  # fmt: skip
