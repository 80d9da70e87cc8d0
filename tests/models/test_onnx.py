"""The graphs for a runtime without torch, run by onnxruntime; skipped where the packages are not installed."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from checkpoint_families import FAMILIES
from checkpoint_families import loaded as loaded  # noqa: PLC0414  # the fixtures
from checkpoint_families import written as written  # noqa: PLC0414
from tiny_checkpoints import CAPTIONS, clip

from clapcur.errors import CheckpointError
from clapcur.models.checkpoints import save_checkpoint


def test_a_missing_package_is_named(loaded, tmp_path, monkeypatch):
    """An ImportError out of torch's exporter says nothing of what to install."""
    model, found = loaded("blat"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *at: None if "onnx" in name else found(name, *at))
    with pytest.raises(
        CheckpointError, match=r"writing ONNX needs onnx and onnxscript: run `pip install 'clapcur\[onnx\]'`"
    ):
        save_checkpoint(model, tmp_path, "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_graphs_answer_as_the_model_for_any_batch(loaded, tmp_path, family):
    """A batch or a length of tokens that was fixed at export fails for the second user, or pads every caption."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}")
    import onnxruntime
    from transformers import AutoTokenizer

    model = loaded(family)
    save_checkpoint(model, tmp_path / "graphs", "onnx")
    audio, text = (onnxruntime.InferenceSession(tmp_path / "graphs" / f"{side}.onnx") for side in ("audio", "text"))
    config = json.loads((tmp_path / "graphs" / "config.json").read_text())["model"]
    rate = config["audio"]["front_end"]["sample_rate"]
    waves_BT = np.stack([clip(config["window_s"], rate, seed) for seed in range(4)])
    with torch.inference_mode():
        expected = model.encode_audio(torch.from_numpy(waves_BT)).numpy()
    # seed 1 is a tone 60 dB above its noise: the float32 FFTs of two libraries differ most in such bands
    np.testing.assert_allclose(audio.run(None, {"waveform_BT": waves_BT})[0], expected, atol=2e-5)
    np.testing.assert_allclose(audio.run(None, {"waveform_BT": waves_BT[2:3]})[0], expected[2:3], atol=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "graphs", local_files_only=True)
    for captions in (CAPTIONS, CAPTIONS[:1]):
        closed = [caption + config["text"]["suffix"] for caption in captions]
        tokens = tokenizer(closed, padding=True, return_tensors="np")
        named = {name: np.asarray(tokens[name], np.int64) for name in ("input_ids", "attention_mask")}
        np.testing.assert_allclose(text.run(None, named)[0], model.embed_text(captions), atol=1e-5)
