"""A model of next to nothing, and captions for it."""

from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, TextConfig

RATE = 16000


CAPTIONS = ["a dog barks", "rain falls on a tin roof", "this is a sound of engine idling and siren"]


FRONT_END = FrontEndConfig(sample_rate=RATE, n_fft=512, hop_samples=160, f_max=8000.0)


CONFIG = ClapConfig(
    audio=AudioConfig(front_end=FRONT_END, width="tiny"),
    text=TextConfig(source="bert-tiny", hidden_size=32, vocab_size=120, max_tokens=20),
    embedding_dim=24,
    window_s=0.5,
)
