"""YAMNet as safetensors: only an audio tower. The text tower, the projections and the window come from a config.

The file is TensorFlow's model with folded batch norms; the names are those of `clapcur.models.yamnet`.
"""

import dataclasses

from clapcur.errors import CheckpointError
from clapcur.models.config import YAMNET_FRONT_END, ClapConfig, YamnetConfig
from clapcur.models.formats.ledger import Ask, Ledger, Reading
from clapcur.models.formats.panns import FRESH


def recognises(ledger: Ledger) -> bool:
    """Return whether the tensor names are those of this family."""
    return "layer1.conv.weight" in ledger and "layer14.pointwise_conv.weight" in ledger


def read(ledger: Ledger, ask: Ask) -> Reading:
    """Map a checkpoint to a config and named tensors."""
    config = ask.config or ClapConfig()
    if config.audio.htsat is not None:
        raise CheckpointError("these weights are a YAMNet, but the given config has an HTSAT; set audio.htsat to None")
    given = config.audio.yamnet or YamnetConfig()
    tower = dataclasses.replace(given, channels=len(ledger["layer1.conv.weight"]))
    audio = dataclasses.replace(config.audio, yamnet=tower, front_end=YAMNET_FRONT_END)
    ledger.ignore(r"classifier\.(weight|bias)", "the head that tags AudioSet, behind the features")
    ledger.take_all("layer", "audio.layer")
    return Reading("yamnet", dataclasses.replace(config, audio=audio), ask.text_tower(config.text), fresh=FRESH)
