"""Checkpoints of other projects, with their names and shapes and towers of next to nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoints import bert_source, from_shapes, gpt2_source, roberta_source
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from clapcur.models.checkpoints import load_checkpoint
from clapcur.models.clap import Clap

GOLDEN = json.loads(Path(__file__).with_name("htsat_golden.json").read_text())


Shapes = dict[str, tuple[int, ...] | list[int]]


def norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def batch_norm(name: str, size: int) -> Shapes:
    return norm(name, size) | {
        f"{name}.running_mean": (size,), f"{name}.running_var": (size,), f"{name}.num_batches_tracked": ()
    }  # fmt: skip


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def cnn14(first: int = 8) -> Shapes:
    """PANNs' names, without the front end."""
    shapes, before = batch_norm("bn0", 64), 1
    for block in range(1, 7):
        channels = first << (block - 1)
        shapes[f"conv_block{block}.conv1.weight"] = (channels, before, 3, 3)
        shapes[f"conv_block{block}.conv2.weight"] = (channels, channels, 3, 3)
        shapes |= batch_norm(f"conv_block{block}.bn1", channels) | batch_norm(f"conv_block{block}.bn2", channels)
        before = channels
    return shapes | linear("fc1", before, before) | linear("fc_audioset", 527, before)


def bert(vocab: int, segments: int, positions: int) -> Shapes:
    """Names of BERT and RoBERTa, as old versions of transformers wrote them: with position_ids."""
    shapes: Shapes = {
        "embeddings.position_ids": (1, positions),
        "embeddings.word_embeddings.weight": (vocab, 16),
        "embeddings.position_embeddings.weight": (positions, 16),
        "embeddings.token_type_embeddings.weight": (segments, 16),
    } | norm("embeddings.LayerNorm", 16)
    for layer in range(2):
        at = f"encoder.layer.{layer}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{at}attention.{part}", 16, 16)
        shapes |= norm(f"{at}attention.output.LayerNorm", 16) | linear(f"{at}intermediate.dense", 32, 16)
        shapes |= linear(f"{at}output.dense", 16, 32) | norm(f"{at}output.LayerNorm", 16)
    return shapes | linear("pooler.dense", 16, 16)


def gpt2(vocab: int) -> Shapes:
    """Names of GPT-2, as old versions of transformers wrote them: with the causal mask."""
    shapes: Shapes = {"wte.weight": (vocab, 16), "wpe.weight": (80, 16)}
    for layer in range(2):
        at = f"h.{layer}."
        shapes |= norm(f"{at}ln_1", 16) | norm(f"{at}ln_2", 16)
        shapes |= {f"{at}attn.bias": (1, 1, 80, 80), f"{at}attn.masked_bias": ()}
        for part, inputs, outputs in (
            ("attn.c_attn", 16, 48), ("attn.c_proj", 16, 16), ("mlp.c_fc", 16, 64), ("mlp.c_proj", 64, 16)
        ):  # fmt: skip
            shapes |= {f"{at}{part}.weight": (inputs, outputs), f"{at}{part}.bias": (outputs,)}
    return shapes | norm("ln_f", 16)


def residual(at: str, inputs: int, dim: int = 24) -> Shapes:
    return {f"{at}.linear1.weight": (dim, inputs), f"{at}.linear2.weight": (dim, dim)} | norm(f"{at}.layer_norm", dim)


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def stored_filters(sample_rate: int, f_max: float = 14000) -> Tensor:
    """Compute with Hugging Face's library the filterbank that torchlibrosa stores."""
    return torch.from_numpy(
        mel_filter_bank(513, 64, 50, f_max, sample_rate, norm="slaney", mel_scale="slaney").astype(np.float32)
    )


def msclap_2022(source: Path) -> dict[str, Tensor]:
    vocab = len(bert_source(source))
    return from_shapes(
        under("audio_encoder.base.", cnn14())
        | residual("audio_encoder.projection", 256)
        | under("caption_encoder.base.", bert(vocab, 2, 100))
        | residual("caption_encoder.projection", 16)
        | {"logit_scale": ()}
    ) | {"audio_encoder.base.logmel_extractor.melW": stored_filters(44100)}


def msclap_2023(source: Path) -> dict[str, Tensor]:
    vocab = len(gpt2_source(source))
    tower = from_shapes(GOLDEN["msclap"]["shapes"])
    rest = from_shapes(
        residual("audio_encoder.projection", 64)
        | under("caption_encoder.base.", gpt2(vocab))
        | residual("caption_encoder.projection", 16)
        | {"logit_scale": ()}
    )
    filters = {"audio_encoder.base.htsat.logmel_extractor.melW": stored_filters(32000)}
    return {f"audio_encoder.base.htsat.{name}": tensor for name, tensor in tower.items()} | rest | filters


def laion(source: Path) -> dict[str, Tensor]:
    vocab = len(roberta_source(source, max_length=77))
    tower = from_shapes(GOLDEN["laion"]["shapes"])
    rest = from_shapes(
        under("text_branch.", bert(vocab, 1, 82))
        | linear("audio_projection.0", 24, 64) | linear("audio_projection.2", 24, 24)
        | linear("text_projection.0", 24, 16) | linear("text_projection.2", 24, 24)
        | under("audio_transform.sequential.", linear("0", 24, 24) | linear("3", 24, 24))
        | under("text_transform.sequential.", linear("0", 24, 24) | linear("3", 24, 24))
        | {"logit_scale_a": (), "logit_scale_t": ()}
    )  # fmt: skip
    return {f"audio_branch.{name}": tensor for name, tensor in tower.items()} | rest


def blat(source: Path) -> dict[str, Tensor]:
    vocab = len(bert_source(source))
    tower = {name: shape for name, shape in cnn14().items() if not name.startswith("fc_audioset")}
    tensors = from_shapes(
        under("audio_encoder.", tower) | linear("audio_proj", 24, 256)
        | under("text_encoder.model.", bert(vocab, 2, 100)) | linear("text_proj", 24, 16) | {"logit_scale": ()}
    )  # fmt: skip
    return tensors | {
        "audio_encoder.melspec_extractor.mel_scale.fb": stored_filters(32000),
        "audio_encoder.melspec_extractor.spectrogram.window": torch.hann_window(1024),
    }


FAMILIES: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "msclap-2022": msclap_2022, "msclap-2023": msclap_2023, "laion": laion, "blat": blat
}  # fmt: skip


CONTAINERS = {"msclap-2022": "model", "msclap-2023": "model", "laion": "state_dict", "blat": "state_dict"}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Callable[[str], tuple[Path, dict[str, Tensor]]]:
    """Give a function from a family to a file of it, beside the config and tokenizer of its text encoder."""
    made: dict[str, tuple[Path, dict[str, Tensor]]] = {}

    def get(family: str) -> tuple[Path, dict[str, Tensor]]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            tensors = FAMILIES[family](folder / "text")
            torch.save({CONTAINERS[family]: tensors, "epoch": 3}, folder / "weights.pth")
            made[family] = folder / "weights.pth", tensors
        return made[family]

    return get


@pytest.fixture(scope="module")
def loaded(written) -> Callable[[str], Clap]:
    made: dict[str, Clap] = {}

    def get(family: str) -> Clap:
        path, _ = written(family)
        made.setdefault(family, load_checkpoint(path, text_source=path.parent / "text")[0])
        return made[family]

    return get
