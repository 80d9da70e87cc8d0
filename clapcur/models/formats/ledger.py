"""What a family's file makes: the tensors of a checkpoint, each taken under our name or ignored for a reason."""

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
    """What the caller of `load_checkpoint` chose."""

    blank_encoder: Callable[[str], tuple[Any, Any]]
    # a text encoder to be filled and its tokenizer, by the name that a family gives them
    tokenizer: Callable[[str], Any]
    # the tokenizer alone
    text_tower: Callable[[TextConfig], TextTower]
    # for files without a text side: a tower with its own weights
    front_end: FrontEndChoice = None
    config: ClapConfig | None = None
    folder: str | None = None
    # where the weights came from, if that was a folder or a name on the Hub


@dataclass(frozen=True)
class Filters:
    """How the filterbank that a checkpoint stores compares with the one that its config computes."""

    stored: str
    # which filters the stored ones are
    computed: str
    # which filters the config of the format computes
    largest_difference: float
    # between the two, as a share of the largest weight
    used: Literal["from_config", "from_checkpoint"]


@dataclass(frozen=True)
class Reading:
    """A checkpoint understood: what to build, and what of it is filled."""

    format: str
    config: ClapConfig
    text: TextTower
    filters: Filters | None = None
    fresh: tuple[str, ...] = ()
    # prefixes of our names that this format never has and that start from fresh weights


class Ledger:
    """The tensors of a file by their names; what is neither taken nor ignored at the end is unexpected.

    Parameters
    ----------
    tensors : mapping
        Their names -> tensors.
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
        """Return the names that begin so and are not yet accounted for."""
        done = self.mapped.keys() | self.ignored.keys()
        return [name for name in self.tensors if name.startswith(prefix) and name not in done]

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor; CheckpointError where the file lacks it."""
        if name not in self.tensors:
            raise CheckpointError(f"the checkpoint lacks {name}, which is needed to determine its sizes")
        return self.tensors[name]

    def count(self, pattern: str) -> int:
        """Count the different numbers that are at the group of a pattern in names."""
        return len({found[1] for name in self.tensors if (found := re.match(pattern, name))})

    def take(self, theirs: str, *ours: str) -> None:
        """Take a tensor under our name, or cut in equal parts along its rows under several."""
        if theirs not in self.tensors:
            return  # what is missing is found out by our names
        tensor = self.tensors[theirs]
        if len(ours) > 1 and len(tensor) % len(ours):
            raise CheckpointError(f"{theirs} has {len(tensor)} rows, expected a multiple of {len(ours)}")
        parts = tensor.chunk(len(ours)) if len(ours) > 1 else [tensor]
        self.mapped[theirs] = " ".join(ours)
        self.taken.update(zip(ours, parts, strict=True))

    def take_all(self, theirs: str, ours: str) -> None:
        """Take everything under a prefix, with our prefix in its place."""
        for name in self.names(theirs):
            self.take(name, ours + name.removeprefix(theirs))

    def ignore(self, pattern: str, reason: str) -> None:
        """Leave out the names that match a pattern from start to end."""
        for name in self.names(""):
            if re.fullmatch(pattern, name):
                self.ignored[name] = reason

    @property
    def unexpected(self) -> list[str]:
        """Names that nobody accounted for."""
        return sorted(self.names(""))


def tower(text: TextConfig, encoder: Any, tokenizer: Any) -> TextTower:
    """Put a text tower together.

    Parameters
    ----------
    text : TextConfig
    encoder : PreTrainedModel
    tokenizer : PreTrainedTokenizer

    Raises
    ------
    CheckpointError
        Encoder and tokenizer are not what the config says.
    """
    try:
        return TextTower(encoder, tokenizer, text.pooling, text.max_tokens, text.suffix)
    except ValueError as error:
        raise CheckpointError(f"the text model {text.source!r} does not fit the checkpoint: {error}") from error
