"""What the towers of a training are given: the features of a frozen tower are computed once and kept.

Shapes: B clips or captions, T samples, F features, C channels, L frames, D embedding.
"""

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from clapcur.config import to_dict
from clapcur.models.clap import Clap, evaluating
from clapcur.models.order_head import Pooled

Tokens = dict[str, Tensor]
Key = tuple[str, bytes]  # digests of a trunk and of what it hears


class PooledCache:
    """Keeps what frozen trunks made of crops, while it fits; what came first stays.

    The least recently used would be the wrong ones to drop: a training hears its clips over and over in turn.

    Parameters
    ----------
    max_bytes : int
        0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._rows: dict[Key, tuple[Tensor, ...]] = {}

    def get(self, key: Key) -> tuple[Tensor, ...] | None:
        """Return the row of a crop, if it is kept."""
        return self._rows.get(key)

    def keep(self, key: Key, row: tuple[Tensor, ...]) -> None:
        """Keep a row, in place of the one that is there, if there is room; rows of other trunks make room."""
        size = sum(part.nbytes for part in row)
        self._forget([key] if key in self._rows else [])
        if self.num_bytes + size > self.max_bytes:
            self._forget([other for other in self._rows if other[0] != key[0]])
        if self.num_bytes + size <= self.max_bytes:
            self._rows[key] = row
            self.num_bytes += size

    def _forget(self, keys: list[Key]) -> None:
        for key in keys:
            self.num_bytes -= sum(part.nbytes for part in self._rows.pop(key))


POOLED = PooledCache(0)  # one for the process: the next training of a comparison finds its clips heard


class AudioFeatures:
    """The audio side of a step: log-mel frames for the tower, or what its frozen trunk made of the same crop before.

    Equal samples have equal features, so a crop is known by the digest of its samples. Each is computed by itself: in
    a batch the last bits of a row depend on the rows beside it, and a resumed training meets other batches.

    Parameters
    ----------
    model : Clap
    is_frozen : bool
        Of all audio weights none but those of the head learn, and nothing is masked.
    cache : PooledCache, optional
        That of the process where not given.
    """

    def __init__(self, model: Clap, is_frozen: bool, cache: PooledCache = POOLED):
        self.model, self.is_frozen, self.cache = model, is_frozen, cache
        self._trunk = trunk_digest(model) if is_frozen else ""
        self._num_parts = 1 if model.config.audio.order_head is None else 2

    def inputs(self, waveform_BT: Tensor) -> Tensor | Pooled:
        """Return what `encode_heard` takes for crops, on the model's device; without a gradient.

        Parameters
        ----------
        waveform_BT : Tensor, shape (B, T)
            On the host.
        """
        device = self.model.logit_scale.device
        with torch.no_grad():
            if not self.is_frozen:
                logmel_BLM: Tensor = self.model.front_end(waveform_BT.to(device, non_blocking=True))
                return logmel_BLM
            rows = [self._row(waveform_T) for waveform_T in waveform_BT]
            features_BC, *frames = (torch.stack(part).to(device) for part in zip(*rows, strict=True))
        return Pooled(features_BC, frames[0] if frames else None)

    def encode(self, waveform_BT: Tensor) -> Tensor:
        """Return unit rows, shape (B, D)."""
        return encode_heard(self.model, self.inputs(waveform_BT))

    def _row(self, waveform_T: Tensor) -> tuple[Tensor, ...]:
        key = self._trunk, hashlib.blake2b(waveform_T.numpy().tobytes(), digest_size=16).digest()
        row = self.cache.get(key)
        if row is None or len(row) < self._num_parts:
            device = self.model.logit_scale.device
            with evaluating(self.model.audio), torch.autocast(device.type, enabled=False):
                pooled = self.model.audio.trunk(self.model.front_end(waveform_T[None].to(device)))
            row = tuple(part[0].cpu().clone() for part in pooled if part is not None)
            self.cache.keep(key, row)
        return row[: self._num_parts]


def encode_heard(model: Clap, heard: Tensor | Pooled) -> Tensor:
    """Return unit rows, shape (B, D), of what `AudioFeatures.inputs` gives."""
    return model.encode_pooled(heard) if isinstance(heard, Pooled) else model.encode_logmel(heard)


def is_trunk_frozen(model: Clap) -> bool:
    """Return whether no weight of the audio tower learns but those of its head."""
    return not any(weight.requires_grad for _, weight in _trunk(model, model.audio.named_parameters()))


def trunk_digest(model: Clap) -> str:
    """Return the digest of the weights of an audio tower without its head, and of how it hears."""
    audio = to_dict(model.config.audio)
    audio.pop("order_head", None)
    digest = hashlib.blake2b(repr(audio).encode(), digest_size=16)
    for name, weight in _trunk(model, model.audio.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _trunk(model: Clap, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield those of the audio tower's weights that are not of its head."""
    return ((name, weight) for name, weight in named if name.split(".")[0] not in model.audio.head_parts)


class TextFeatures:
    """The text side of a step: through the tower, or from a table where the tower is frozen.

    A frozen text encoder gives the same features whenever a caption comes up, so they are computed once.

    Parameters
    ----------
    model : Clap
    captions : mapping
        caption_id -> text.
    is_frozen : bool
    """

    def __init__(self, model: Clap, captions: Mapping[str, str], is_frozen: bool):
        self.model, self.captions, self.is_frozen = model, captions, is_frozen
        self._table: dict[str, Tensor] = {}
        self._lock = threading.Lock()  # a tokenizer remembers its padding, so two threads must not share it

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Return what `model.text.tokenize` returns; any thread may ask."""
        with self._lock:
            return self.model.text.tokenize(captions)

    def prepare(self, caption_ids: list[str]) -> Tokens | None:
        """Return the tokens of captions; None where a table has their features."""
        return None if self.is_frozen else self.tokenize([self.captions[name] for name in caption_ids])

    def inputs(self, caption_ids: list[str], tokens: Tokens | None, part: slice) -> Tokens | Tensor:
        """Return what the towers take for some of the captions: tokens, or features, shape (B, F).

        Parameters
        ----------
        caption_ids : list of str
            Of a batch.
        tokens : dict of str to Tensor, or None
            What `prepare` returned for them.
        part : slice
            Those that are wanted.

        Returns
        -------
        dict of str to Tensor, or Tensor of shape (B, F)
            Tokens are on the model's device, cut to the longest text.
        """
        if tokens is None:
            return self._features(caption_ids[part])
        longest = int(tokens["attention_mask"][part].sum(dim=1).max())
        device = self.model.logit_scale.device
        return {name: values[part, :longest].to(device, non_blocking=True) for name, values in tokens.items()}

    def remember(self, caption_ids: list[str]) -> None:
        """Compute the features of those captions that were not met before, where a table holds them."""
        if self.is_frozen:
            self._features(caption_ids)

    def encode(self, caption_ids: list[str]) -> Tensor:
        """Return unit rows, shape (B, D), with a gradient where there is something to learn."""
        tokens = self.prepare(caption_ids)
        if tokens is None:
            return self.model.project_text(self._features(caption_ids))
        return self.model.encode_text(tokens)

    def _features(self, caption_ids: list[str]) -> Tensor:
        if new := sorted({name for name in caption_ids if name not in self._table}):
            with torch.no_grad():
                was_training = self.model.text.training
                self.model.text.eval()
                features = self.model.text_features(self.tokenize([self.captions[name] for name in new]))
                self.model.text.train(was_training)
            self._table.update(zip(new, features, strict=True))
        return torch.stack([self._table[name] for name in caption_ids])
