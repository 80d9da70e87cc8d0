"""ONNX: both towers as graphs for a runtime without torch; export only.

A folder with ``audio.onnx`` (waveforms of one window -> unit rows), ``text.onnx`` (token ids and mask -> unit rows),
the tokenizer's files, and ``config.json`` with the sample rate, the window, and how short clips are extended. The front
end is part of the audio graph; the caller must add the caption's suffix (`config.text.suffix`).

Shapes: B batch, T samples, D embedding.
"""

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clapcur.errors import CheckpointError
from clapcur.models.folder import write_config

if TYPE_CHECKING:
    from clapcur.models.clap import Clap

NEEDED = ("onnx", "onnxscript")
"""Packages that torch writes the graphs with."""


class AudioGraph(nn.Module):
    """Waveforms of one window at the model's sample rate -> unit rows."""

    def __init__(self, model: "Clap") -> None:
        super().__init__()
        self.model = model

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """Return rows of shape (B, D)."""
        return self.model.encode_audio(waveform_BT)


class TextGraph(nn.Module):
    """Token ids and mask -> unit rows."""

    def __init__(self, model: "Clap") -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return rows of shape (B, D)."""
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.model.project_text(self.model.text.features(tokens))


def save(model: "Clap", folder: Path) -> None:
    """Write the graphs, the tokenizer and the config to a folder.

    Raises
    ------
    CheckpointError
        A package that is needed to write the graphs is not installed.
    """
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise CheckpointError(f"writing ONNX needs {' and '.join(lacking)}: run `pip install 'clapcur[onnx]'`")
    folder.mkdir(parents=True, exist_ok=True)
    was_training = model.training
    model.eval()
    waveform_BT = torch.randn(2, model.config.num_samples, device=model.logit_scale.device)
    tokens = model.text.tokenize(["a dog barks", "rain falls on a tin roof"])
    named = {name: tokens[name].to(model.logit_scale.device) for name in ("input_ids", "attention_mask")}
    batch, length = torch.export.Dim("batch"), torch.export.Dim("tokens", max=model.text.max_tokens)
    try:
        _export(AudioGraph(model), {"waveform_BT": waveform_BT}, {"waveform_BT": {0: batch}}, folder / "audio.onnx")
        _export(TextGraph(model), named, {name: {0: batch, 1: length} for name in named}, folder / "text.onnx")
    finally:
        model.train(was_training)
    model.text.save_tokenizer(folder)
    write_config(model.config, folder / "config.json")


def _export(graph: nn.Module, inputs: dict[str, Tensor], shapes: dict[str, object], path: Path) -> None:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own internals
        torch.onnx.export(
            graph.eval(), kwargs=inputs, f=path, input_names=list(inputs), output_names=["rows"],
            dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
