"""Tiny models and tokenizers in the forms of other projects, with weights that make every tensor count."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

CAPTIONS = (
    "a dog barks twice", "rain on a tin roof", "this is a sound of church bells",
    "typing, wind and a helicopter", "a crying baby and a chainsaw",
)  # fmt: skip
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
"""Of a text encoder."""


def scramble(tensors: Mapping[str, Tensor], seed: int = 0) -> None:
    """Give every weight a value of its own, in place: zeros, ones and equal statistics would hide a swap.

    The batch norms of log-mel frames expect dB, so that what comes out depends on the clip.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        is_front = name.split(".")[-2:-1] in (["bn0"], ["batch_norm"])
        with torch.no_grad():
            if name.endswith("running_mean"):
                tensor.copy_(-40 + 5 * noise if is_front else 0.1 * noise)
            elif name.endswith("running_var"):
                tensor.copy_(200 + 50 * noise.abs() if is_front else 1 + 0.3 * noise.abs())
            elif tensor.ndim >= 2:
                spread = 1.0 if "embeddings" in name or ".wte." in name else 1.5 / tensor[0].numel() ** 0.5
                tensor.copy_(spread * noise)
            elif name.endswith("weight"):
                tensor.copy_(1 + 0.2 * noise)
            elif name.startswith("logit_scale"):
                tensor.copy_(2.5 + 0.3 * noise)
            else:
                tensor.copy_(0.2 * noise)


def trained(module: nn.Module, seed: int = 0) -> Any:
    """Return a module with scrambled weights, in evaluation mode."""
    scramble(dict(module.state_dict(keep_vars=True)), seed)
    return module.eval()


def byte_pairs(vocab_size: int, special: Sequence[str], captions: Sequence[str] = CAPTIONS) -> dict[str, Any]:
    """Learn what RoBERTa's and GPT-2's tokenizers are made of: vocabulary and merges over bytes."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]
    return {"vocab": learned["vocab"], "merges": [tuple(pair) for pair in learned["merges"]]}


def roberta_source(folder: Path, max_length: int = 60, positions: int = 82) -> Any:
    """Write a tokenizer and a config of a tiny RoBERTa, and return the tokenizer."""
    from transformers import RobertaConfig, RobertaTokenizer

    parts = byte_pairs(330, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer = RobertaTokenizer(**parts, model_max_length=max_length)
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=positions, type_vocab_size=1, layer_norm_eps=1e-5, **SIZES
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def bert_source(folder: Path, positions: int = 100) -> Any:
    """Write a tokenizer and a config of a tiny BERT, and return the tokenizer."""
    from transformers import BertConfig

    from clapcur.models.text import train_tokenizer

    tokenizer = train_tokenizer(CAPTIONS, 150)
    tokenizer.model_max_length = positions
    BertConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, **SIZES).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def gpt2_source(folder: Path, positions: int = 80) -> Any:
    """Write a tokenizer and a config of a tiny GPT-2, without padding as the released one; "!" has id 0."""
    from transformers import GPT2Config, GPT2Tokenizer

    parts = byte_pairs(300, [])
    vocab = parts["vocab"]
    first = next(piece for piece, index in vocab.items() if index == 0)
    vocab[first], vocab["!"] = vocab["!"], 0
    vocab["<|endoftext|>"] = len(vocab)
    tokenizer = GPT2Tokenizer(vocab=vocab, merges=parts["merges"], model_max_length=positions)
    end = vocab["<|endoftext|>"]
    GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=end,
        eos_token_id=end,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_clip(path: Path, duration_s: float, sample_rate: int, seed: int = 0) -> np.ndarray:
    """Write a clip, and return it."""
    wave = clip(duration_s, sample_rate, seed)
    soundfile.write(path, wave, sample_rate, subtype="FLOAT")
    return wave


def clip(duration_s: float, sample_rate: int, seed: int = 0) -> np.ndarray:
    """Return a chirp in noise; each seed has another pitch and more noise."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(duration_s * sample_rate)) / sample_rate
    pitch_hz = 200 * 3 ** (seed % 4) + 400 * time_s
    wave = 0.3 * np.sin(2 * np.pi * pitch_hz * time_s) * (1 + np.sin(7 * time_s)) / 2
    return (wave + 0.0003 * 10 ** (seed % 4) * rng.standard_normal(len(time_s))).astype(np.float32)


def from_shapes(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    """Make tensors of the given shapes, scrambled; names of counters and positions hold whole numbers."""
    tensors = {}
    for name, shape in shapes.items():
        whole = name.endswith(("num_batches_tracked", "position_ids", "relative_position_index"))
        tensors[name] = torch.zeros(tuple(shape), dtype=torch.int64 if whole else torch.float32)
        if name.endswith("position_ids"):
            tensors[name] = torch.arange(shape[-1])[None]
    scramble(tensors, seed)
    return tensors
