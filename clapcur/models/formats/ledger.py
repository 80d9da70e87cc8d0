"""The tensors of a checkpoint, each of which is mapped to our name or ignored for a reason."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from clapcur.errors import CheckpointError
from clapcur.models.config import ClapConfig, TextConfig
from clapcur.models.text import TextTower

FrontEndChoice = Literal["from_config", "from_checkpoint"] | None


@dataclass(frozen=True)
class Ask:
    """The choices of the caller of `load_checkpoint`."""

    blank_encoder: Callable[[str], tuple[Any, Any]]
    # returns a blank text encoder and its tokenizer, for the name that a family gives them
    tokenizer: Callable[[str], Any]
    # only the tokenizer
    text_tower: Callable[[TextConfig], TextTower]
    # for files without a text side: a tower with its own weights
    front_end: FrontEndChoice = None
    config: ClapConfig | None = None
    folder: str | None = None
    # source of the weights, if it is a folder or a name on the Hub


@dataclass(frozen=True)
class Filters:
    """Comparison of the filterbank in a checkpoint with the one that its config computes."""

    stored: str
    # which filters the stored ones are
    computed: str
    # which filters the config of the format computes
    largest_difference: float
    # maximum difference, as a share of the largest weight
    used: Literal["from_config", "from_checkpoint"]


@dataclass(frozen=True)
class Reading:
    """The result of reading a checkpoint: what to build, and which part has weights."""

    format: str
    config: ClapConfig
    text: TextTower
    filters: Filters | None = None
    fresh: tuple[str, ...] = ()
    # prefixes of our names that this format never contains, and that get fresh weights


class Ledger:
    """The tensors of a file by name; those that are neither mapped nor ignored in the end are unexpected.

    Parameters
    ----------
    tensors : mapping
        Names in the file -> tensors.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.taken: dict[str, Tensor] = {}
        self.mapped: dict[str, str] = {}
        self.ignored: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        """Return whether the file has this name."""
        return name in self.tensors

    def names(self, prefix: str) -> list[str]:
        """Return the names with this prefix that are not yet accounted for."""
        done = self.mapped.keys() | self.ignored.keys()
        return [name for name in self.tensors if name.startswith(prefix) and name not in done]

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor; raise CheckpointError if the file lacks it."""
        if name not in self.tensors:
            raise CheckpointError(f"the checkpoint lacks {name}, which is needed to determine its sizes")
        return self.tensors[name]

    def count(self, pattern: str) -> int:
        """Count the distinct numbers that the group of a pattern matches in the names."""
        return len({found[1] for name in self.tensors if (found := re.match(pattern, name))})

    def take(self, theirs: str, *ours: str) -> None:
        """Map a tensor to our name, or split it into equal parts along its rows for several names."""
        if theirs not in self.tensors:
            return  # missing tensors are detected by our names
        tensor = self.tensors[theirs]
        if len(ours) > 1 and len(tensor) % len(ours):
            raise CheckpointError(f"{theirs} has {len(tensor)} rows, expected a multiple of {len(ours)}")
        parts = tensor.chunk(len(ours)) if len(ours) > 1 else [tensor]
        self.mapped[theirs] = " ".join(ours)
        self.taken.update(zip(ours, parts, strict=True))

    def take_all(self, theirs: str, ours: str) -> None:
        """Map all tensors under a prefix, replacing it by our prefix."""
        for name in self.names(theirs):
            self.take(name, ours + name.removeprefix(theirs))

    def ignore(self, pattern: str, reason: str) -> None:
        """Ignore the names that match a pattern completely."""
        for name in self.names(""):
            if re.fullmatch(pattern, name):
                self.ignored[name] = reason

    @property
    def unexpected(self) -> list[str]:
        """Names that are neither mapped nor ignored."""
        return sorted(self.names(""))


def tower(text: TextConfig, encoder: Any, tokenizer: Any) -> TextTower:
    """Build a text tower from its parts.

    Parameters
    ----------
    text : TextConfig
    encoder : PreTrainedModel
    tokenizer : PreTrainedTokenizer

    Raises
    ------
    CheckpointError
        The encoder and the tokenizer do not match the config.
    """
    try:
        return TextTower(encoder, tokenizer, text.pooling, text.max_tokens, text.suffix)
    except ValueError as error:
        raise CheckpointError(f"the text model {text.source!r} does not fit the checkpoint: {error}") from error
