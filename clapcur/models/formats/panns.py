"""PANNs' Cnn14: only an audio tower. The text tower, the projections and the window come from a config.

A file that was trained at another sample rate contains its own filters; the caller chooses which to use.

References
----------
Kong et al. 2020, arXiv:1912.10211; qiuqiangkong/audioset_tagging_cnn.
"""

import dataclasses

from clapcur.errors import CheckpointError
from clapcur.models.config import ClapConfig
from clapcur.models.formats.front_ends import settle, stored_filters
from clapcur.models.formats.ledger import Ask, Ledger, Reading
from clapcur.models.formats.originals import read_audio

FRESH = ("audio_projection.", "text.", "text_projection.", "logit_scale")


def recognises(ledger: Ledger) -> bool:
    """Return whether the tensor names are those of this family."""
    return "conv_block1.conv1.weight" in ledger and "fc1.weight" in ledger and not ledger.names("audio")


def read(ledger: Ledger, ask: Ask) -> Reading:
    """Map a checkpoint to a config and named tensors."""
    if "pre_conv0.weight" in ledger:
        raise CheckpointError("this is PANNs' Wavegram-Logmel-Cnn14; only Cnn14 can be loaded")
    config = ask.config or ClapConfig()
    if config.audio.htsat is not None:
        raise CheckpointError("PANNs' weights are a Cnn14, but the given config has an HTSAT; set audio.htsat to None")
    front_end, filters = settle(
        config.audio.front_end, stored_filters(ledger, "", config.audio.front_end.n_fft), ask.front_end
    )
    found = read_audio(ledger, "")
    audio = dataclasses.replace(config.audio, width=found.width, front_end=front_end)
    return Reading("panns", dataclasses.replace(config, audio=audio), ask.text_tower(config.text), filters, FRESH)
