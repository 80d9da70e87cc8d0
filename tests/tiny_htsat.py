"""An HTSAT of next to nothing."""

from tiny_clap import FRONT_END

from clapcur.models.config import AudioConfig, ClapConfig, HtsatConfig, TextConfig

TINY = HtsatConfig(channels=8, depths=(1, 2), num_heads=(2, 2), window=4, picture=64)


CONFIG = ClapConfig(
    audio=AudioConfig(front_end=FRONT_END, htsat=TINY),
    text=TextConfig(hidden_size=32, vocab_size=120, max_tokens=20),
    embedding_dim=24,
    window_s=0.5,
)
