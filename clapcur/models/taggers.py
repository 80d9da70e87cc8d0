"""Taggers of AudioSet: how probable each of its classes is in a sound.

Shapes: B batch, T samples, P patches, K classes.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from clapcur.errors import CheckpointError, DataError
from clapcur.models.config import YAMNET_FRONT_END, YamnetConfig
from clapcur.models.formats.files import read_tensors
from clapcur.models.front_end import LogMel
from clapcur.models.yamnet import Yamnet, patches


@dataclass(frozen=True)
class Vocabulary:
    """The classes that a tagger knows, in the order of its outputs."""

    names: tuple[str, ...]
    # display names
    mids: tuple[str, ...]
    # ids in AudioSet's ontology, such as /m/0bt9lr

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """Read a table with the columns index, mid and display_name, as AudioSet and YAMNet come with.

        Raises
        ------
        DataError
            The file is missing, or no such table.
        """
        if not path.is_file():
            raise DataError(f"the list of AudioSet's classes {path} does not exist; it comes with the tagger's weights")
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = set(rows[0]) if rows else set()
        if not {"index", "mid", "display_name"} <= columns:
            raise DataError(f"{path} must have the columns index, mid and display_name, got {sorted(columns)}")
        if [row["index"] for row in rows] != [str(index) for index in range(len(rows))]:
            raise DataError(f"{path} must number its classes from 0 on, in the order of the tagger's outputs")
        return cls(tuple(row["display_name"] for row in rows), tuple(row["mid"] for row in rows))


class YamnetTagger(nn.Module):
    """YAMNet with its head, as published: patches of 0.96 s, half of each over the next, probabilities averaged.

    Parameters
    ----------
    num_classes : int
    config : YamnetConfig, optional
    """

    def __init__(self, num_classes: int, config: YamnetConfig | None = None) -> None:
        super().__init__()
        self.front_end = LogMel(YAMNET_FRONT_END)
        self.tower = Yamnet(config or YamnetConfig())
        self.classifier = nn.Linear(self.tower.num_features, num_classes)

    @classmethod
    def load(cls, path: Path) -> "YamnetTagger":
        """Read the weights of a tower and its head.

        Raises
        ------
        CheckpointError
            The file is damaged, or these are no weights of YAMNet with its head.
        """
        tensors, _ = read_tensors(path)
        needed = ("layer1.conv.weight", "classifier.weight")
        if lacking := [name for name in needed if name not in tensors]:
            raise CheckpointError(
                f"{path} is no tagger: expected YAMNet's layers and its classifier, {', '.join(lacking)} is missing"
            )
        tagger = cls(len(tensors["classifier.weight"]), YamnetConfig(channels=len(tensors["layer1.conv.weight"])))
        named = {name if name.startswith("classifier.") else f"tower.{name}": value for name, value in tensors.items()}
        try:
            tagger.load_state_dict(named)
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit YAMNet: {error}") from None
        return tagger.eval()

    @torch.inference_mode()
    def probabilities(self, waveform_BT: Tensor) -> Tensor:
        """Return the mean probability of each class over a clip, shape (B, K).

        Parameters
        ----------
        waveform_BT : Tensor, shape (B, T)
            Mono, at 16 kHz, at least 0.975 s: a patch of 96 frames.
        """
        patches_BPLM = patches(self.front_end(waveform_BT))
        if patches_BPLM.shape[1] == 0:
            raise ValueError(
                f"a clip must fill a patch of 0.975 s, got {waveform_BT.shape[1]} samples at 16 kHz; repeat or pad it"
            )
        each_PK = torch.sigmoid(self.classifier(self.tower(patches_BPLM.flatten(0, 1))))
        return each_PK.unflatten(0, patches_BPLM.shape[:2]).mean(dim=1)
