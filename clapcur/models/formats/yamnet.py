"""YAMNet as safetensors: an audio tower alone, as PANNs' Cnn14. Text tower, projections and window are a config's.

The file is TensorFlow's model with its batch norms folded; `clapcur.models.yamnet` has the names.
"""

import dataclasses

from clapcur.errors import CheckpointError
from clapcur.models.config import YAMNET_FRONT_END, ClapConfig, YamnetConfig
from clapcur.models.formats.ledger import Ask, Ledger, Reading
from clapcur.models.formats.panns import FRESH


def recognises(ledger: Ledger) -> bool:
    """Return whether these are the names of this family."""
    return "layer1.conv.weight" in ledger and "layer14.pointwise_conv.weight" in ledger


def read(ledger: Ledger, ask: Ask) -> Reading:
    """Understand a checkpoint."""
    config = ask.config or ClapConfig()
    if config.audio.htsat is not None:
        raise CheckpointError("these weights are a YAMNet, but the given config has an HTSAT; set audio.htsat to None")
    given = config.audio.yamnet or YamnetConfig()
    tower = dataclasses.replace(given, channels=len(ledger["layer1.conv.weight"]))
    audio = dataclasses.replace(config.audio, yamnet=tower, front_end=YAMNET_FRONT_END)
    ledger.ignore(r"classifier\.(weight|bias)", "the head that tags AudioSet, behind the features")
    ledger.take_all("layer", "audio.layer")
    return Reading("yamnet", dataclasses.replace(config, audio=audio), ask.text_tower(config.text), fresh=FRESH)
