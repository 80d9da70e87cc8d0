"""The parts of a model that can be frozen or trained, by names that fit every family."""

from collections.abc import Iterable
from typing import get_args

from torch import nn

from clapcur.errors import CheckpointError
from clapcur.models.clap import Clap
from clapcur.models.cnn14 import Cnn14
from clapcur.models.config import Part
from clapcur.models.yamnet import Yamnet, from_layer

LAYERS = ("encoder.layer", "transformer.layer", "layers", "h")  # names of the layers in encoders of `transformers`


def modules_of(model: Clap, part: Part) -> list[nn.Module]:
    """Return the modules of a part; none for the scale, which is a single weight.

    Raises
    ------
    ValueError
        The part is unknown.
    CheckpointError
        The model has no such part.
    """
    if part not in get_args(Part):
        raise ValueError(f"a part must be one of {', '.join(get_args(Part))}, got {part!r}")
    if part == "logit_scale":
        return []
    if part == "order_head":
        if model.audio.order_head is None:
            raise CheckpointError("the model has no order head to train; set add_order_head")
        return [model.audio.order_head]
    if part == "audio_last":
        if isinstance(model.audio, Cnn14):
            return [model.audio.fc1]
        if isinstance(model.audio, Yamnet):
            return from_layer(model.audio, 13)
        encoder = model.audio.model.audio_encoder
        return [encoder.layers[-1], encoder.norm]
    if part == "text_last":
        return [_last_layer(model.text.encoder)]
    return [getattr(model, part)]


def let_learn(model: Clap, parts: Iterable[Part]) -> list[nn.Module]:
    """Make only these parts trainable; return their modules, the only ones that should be in training mode.

    All others must stay in evaluation mode: in training mode, a batch norm would update its statistics even though its
    weights are frozen, and dropout would be applied.
    """
    parts = tuple(parts)
    model.requires_grad_(False)
    found = [module for part in parts for module in modules_of(model, part)]
    for module in found:
        module.requires_grad_(True)
    if "logit_scale" in parts:
        model.logit_scale.requires_grad_(True)
    return found


def _last_layer(encoder: nn.Module) -> nn.Module:
    for place in LAYERS:
        try:
            layers = encoder.get_submodule(place)
        except AttributeError:
            continue
        assert isinstance(layers, nn.ModuleList)
        return layers[-1]
    raise CheckpointError(
        f"cannot find the layers of the text encoder {type(encoder).__name__} (expected {', '.join(LAYERS)}); train "
        "`text` instead of text_last"
    )
