"""AudioSet taggers: the probability of each of its classes in a clip.

YAMNet and PANNs' Cnn14 with their own heads. A tagger folder of clapcur contains ``tagger.json`` (family, size and
classes) and ``model.safetensors``.

Shapes: B batch, T samples, P patches, K classes.
"""

import csv
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from clapcur.errors import CheckpointError, DataError
from clapcur.models.cnn14 import Cnn14
from clapcur.models.config import FIRST_CHANNELS, YAMNET_FRONT_END, FrontEndConfig, YamnetConfig
from clapcur.models.folder import load_weights, save_weights
from clapcur.models.formats.files import read_tensors
from clapcur.models.formats.front_ends import settle, stored_filters
from clapcur.models.formats.ledger import Ledger
from clapcur.models.front_end import LogMel
from clapcur.models.yamnet import Yamnet, patches

T = TypeVar("T", bound="Tagger")
DESCRIPTION = "tagger.json"
CLASS_LISTS = ("class_map.csv", "yamnet_class_map.csv", "class_labels_indices.csv")
"""How lists of classes are called that come with taggers."""


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a tagger, in the order of its outputs."""

    names: tuple[str, ...]
    # display names
    mids: tuple[str, ...]
    # ids in AudioSet's ontology, such as /m/0bt9lr; empty strings if there are none

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """Read a table with the columns index, mid and display_name, as published with AudioSet and YAMNet.

        Raises
        ------
        DataError
            The file is missing, or is not such a table.
        """
        if not path.is_file():
            raise DataError(
                f"the list of AudioSet's classes {path} does not exist; download it with the tagger's weights"
            )
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = set(rows[0]) if rows else set()
        if not {"index", "mid", "display_name"} <= columns:
            raise DataError(f"{path} must have the columns index, mid and display_name, got {sorted(columns)}")
        if [row["index"] for row in rows] != [str(index) for index in range(len(rows))]:
            raise DataError(f"{path} must number its classes from 0, in the order of the tagger's outputs")
        names = tuple(row["display_name"] for row in rows)
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise DataError(f"{path} has the class {twice[0]!r} more than once; each output needs a name of its own")
        return cls(names, tuple(row["mid"] for row in rows))

    @classmethod
    def beside(cls, weights: Path) -> "Vocabulary":
        """Read the list of classes in the folder of a weights file.

        Raises
        ------
        DataError
            The folder has no list with one of the usual names.
        """
        for name in CLASS_LISTS:
            if (weights.parent / name).is_file():
                return cls.read(weights.parent / name)
        raise DataError(
            f"the outputs of {weights} have no names: expected {' or '.join(CLASS_LISTS)} in its folder; give the list "
            "of its classes (columns index, mid, display_name)"
        )


class Tagger(nn.Module, ABC):
    """A front end, a tower and a head with one output per class."""

    FAMILY: ClassVar[str]
    front_end: LogMel

    @property
    def sample_rate(self) -> int:
        """Sample rate of the input waveforms, in Hz."""
        return self.front_end.config.sample_rate

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Outputs of the head."""

    @abstractmethod
    def probabilities(self, waveform_BT: Tensor) -> Tensor:
        """Return the probability of each class in a clip, shape (B, K)."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return the settings that are needed to rebuild it, besides the number of classes."""


def _filled(tagger: T, tensors: Mapping[str, Tensor], head: str, path: Path) -> T:
    """Load the weights of a file, in which the tower's names have no prefix, into a tagger and return it."""
    named = {name if name.startswith(head) else f"tower.{name}": value for name, value in tensors.items()}
    try:
        tagger.load_state_dict(named)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit a tagger of the family {tagger.FAMILY}: {error}") from None
    return tagger.eval()


class YamnetTagger(Tagger):
    """YAMNet with its head, as published: patches of 0.96 s that overlap by half, with averaged probabilities.

    Parameters
    ----------
    num_classes : int
    config : YamnetConfig, optional
    """

    FAMILY = "yamnet"

    def __init__(self, num_classes: int, config: YamnetConfig | None = None) -> None:
        super().__init__()
        self.front_end = LogMel(YAMNET_FRONT_END)
        self.tower = Yamnet(config or YamnetConfig())
        self.classifier = nn.Linear(self.tower.num_features, num_classes)

    @staticmethod
    def recognises(tensors: Mapping[str, Tensor]) -> bool:
        """Return whether these are YAMNet's tensor names."""
        return "layer1.conv.weight" in tensors

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], path: Path) -> "YamnetTagger":
        """Build the tagger from a file's tensors; raises as `load` does."""
        needed = ("layer1.conv.weight", "classifier.weight")
        if lacking := [name for name in needed if name not in tensors]:
            raise CheckpointError(
                f"{path} is not a tagger: expected YAMNet's layers and its classifier, but {', '.join(lacking)} is "
                "missing"
            )
        tagger = cls(len(tensors["classifier.weight"]), YamnetConfig(channels=len(tensors["layer1.conv.weight"])))
        return _filled(tagger, tensors, "classifier.", path)

    @classmethod
    def load(cls, path: Path) -> "YamnetTagger":
        """Read the weights of a tower and its head.

        Raises
        ------
        CheckpointError
            The file is damaged, or does not contain the weights of YAMNet with its head.
        """
        return cls.of(read_tensors(path)[0], path)

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return self.classifier.out_features

    def description(self) -> dict[str, Any]:
        """Return the size of the tower."""
        return {"channels": self.tower.layer1.conv.out_channels}

    @torch.inference_mode()
    def probabilities(self, waveform_BT: Tensor) -> Tensor:
        """Return the mean probability of each class over a clip, shape (B, K).

        Parameters
        ----------
        waveform_BT : Tensor, shape (B, T)
            Mono, at 16 kHz, at least 0.975 s (one patch of 96 frames).
        """
        patches_BPLM = patches(self.front_end(waveform_BT))
        if patches_BPLM.shape[1] == 0:
            raise ValueError(
                f"a clip must fill a patch of 0.975 s, got {waveform_BT.shape[1]} samples at 16 kHz; repeat or pad it"
            )
        each_PK = torch.sigmoid(self.classifier(self.tower(patches_BPLM.flatten(0, 1))))
        return each_PK.unflatten(0, patches_BPLM.shape[:2]).mean(dim=1)


class Cnn14Tagger(Tagger):
    """PANNs' Cnn14 with its head, as published: the whole clip in one pass.

    Parameters
    ----------
    num_classes : int
    width : {"full", "small", "tiny"}
    front_end : FrontEndConfig, optional
        By default that of 32 kHz.

    References
    ----------
    Kong et al. 2020, arXiv:1912.10211; qiuqiangkong/audioset_tagging_cnn, `Cnn14`.
    """

    FAMILY = "panns"

    def __init__(self, num_classes: int, width: str = "full", front_end: FrontEndConfig | None = None) -> None:
        super().__init__()
        config = front_end or FrontEndConfig()
        self.front_end, self.width = LogMel(config), width
        self.tower = Cnn14(width, config.num_mels)
        self.fc_audioset = nn.Linear(self.tower.num_features, num_classes)

    @staticmethod
    def recognises(tensors: Mapping[str, Tensor]) -> bool:
        """Return whether these are Cnn14's tensor names."""
        return "conv_block1.conv1.weight" in tensors and "fc1.weight" in tensors

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], path: Path) -> "Cnn14Tagger":
        """Build the tagger from a file's tensors.

        Raises
        ------
        CheckpointError
            The head is missing, or the sizes or filters are not those of a PANNs release.
        """
        if "fc_audioset.weight" not in tensors:
            raise CheckpointError(
                f"{path} is not a tagger: expected PANNs' classifier head, but fc_audioset.weight is missing"
            )
        widths = {channels: width for width, channels in FIRST_CHANNELS.items()}
        first = len(tensors["conv_block1.conv1.weight"])
        if first not in widths:
            raise CheckpointError(f"Cnn14 with {first} channels in its first block; expected one of {sorted(widths)}")
        ledger = Ledger(tensors)
        heard = _panns_front_end(tensors)
        front_end, _ = settle(heard, stored_filters(ledger, "", heard.n_fft), None)
        tagger = cls(len(tensors["fc_audioset.weight"]), widths[first], front_end)
        own = {name: value for name, value in tensors.items() if name not in ledger.ignored}
        return _filled(tagger, own, "fc_audioset.", path)

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return self.fc_audioset.out_features

    def description(self) -> dict[str, Any]:
        """Return width and front end."""
        return {"width": self.width, "front_end": asdict(self.front_end.config)}

    @torch.inference_mode()
    def probabilities(self, waveform_BT: Tensor) -> Tensor:
        """Return the probability of each class in a clip, shape (B, K).

        Parameters
        ----------
        waveform_BT : Tensor, shape (B, T)
            Mono, at `sample_rate`, at least 32 frames.
        """
        return torch.sigmoid(self.fc_audioset(self.tower(self.front_end(waveform_BT))))


def _panns_front_end(tensors: Mapping[str, Tensor]) -> FrontEndConfig:
    """Return PANNs' published front end for 32, 16 or 8 kHz, according to the frame length in the file."""
    kernel = tensors.get("spectrogram_extractor.stft.conv_real.weight")
    filters = tensors.get("logmel_extractor.melW")
    n_fft = 1024 if kernel is None and filters is None else 0
    if kernel is not None:
        n_fft = kernel.shape[-1]
    elif filters is not None:
        n_fft = 2 * (len(filters) - 1)
    published = {1024: (32_000, 14_000.0), 512: (16_000, 8_000.0), 256: (8_000, 4_000.0)}
    if n_fft not in published:
        raise CheckpointError(f"PANNs has no frames of {n_fft} samples; expected one of {sorted(published)}")
    rate, f_max = published[n_fft]
    return FrontEndConfig(sample_rate=rate, n_fft=n_fft, hop_samples=n_fft * 320 // 1024, f_max=f_max)


FAMILIES: tuple[type[YamnetTagger] | type[Cnn14Tagger], ...] = (YamnetTagger, Cnn14Tagger)


def read_tagger(path: Path, pickled: bool = False) -> Tagger:
    """Read a tagger file of another project.

    Parameters
    ----------
    path : Path
        YAMNet as safetensors, or PANNs' Cnn14 as released.
    pickled : bool
        As for `clapcur.models.checkpoints.load_checkpoint`.

    Raises
    ------
    CheckpointError
        The file is damaged, is of an unknown family, or has no head.
    """
    tensors, _ = read_tensors(path, pickled)
    for family in FAMILIES:
        if family.recognises(tensors):
            return family.of(tensors, path)
    raise CheckpointError(
        f"{path} is not a known tagger: expected YAMNet or PANNs' Cnn14 with its classifier head. It has "
        f"{len(tensors)} tensors, such as {', '.join(sorted(tensors)[:6])}"
    )


def check_fit(tagger: Tagger, vocabulary: Vocabulary) -> None:
    """Raise CheckpointError if the number of classes differs from the number of the tagger's outputs."""
    if len(vocabulary.names) != tagger.num_classes:
        raise CheckpointError(
            f"the tagger has {tagger.num_classes} outputs, but the list has {len(vocabulary.names)} classes; give the "
            "list "
            "that came with the weights (YAMNet has 521 classes, PANNs 527)"
        )


def save_tagger(tagger: Tagger, vocabulary: Vocabulary, folder: Path) -> None:
    """Write a tagger and the names of its outputs; raises as `check_fit` does.

    Parameters
    ----------
    tagger : Tagger
    vocabulary : Vocabulary
    folder : Path
        Must exist.
    """
    check_fit(tagger, vocabulary)
    values = {"family": tagger.FAMILY, **tagger.description(), "names": vocabulary.names, "mids": vocabulary.mids}
    (folder / DESCRIPTION).write_text(json.dumps(values, indent=1) + "\n")
    save_weights(tagger, folder / "model.safetensors")


def open_tagger(folder: Path) -> tuple[Tagger, Vocabulary]:
    """Read a tagger that `save_tagger` wrote; raise CheckpointError if it is missing or damaged."""
    try:
        values = json.loads((folder / DESCRIPTION).read_text())
        vocabulary = Vocabulary(tuple(values["names"]), tuple(values["mids"]))
        tagger: Tagger
        if values["family"] == YamnetTagger.FAMILY:
            tagger = YamnetTagger(len(vocabulary.names), YamnetConfig(channels=values["channels"]))
        else:
            tagger = Cnn14Tagger(len(vocabulary.names), values["width"], FrontEndConfig(**values["front_end"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not the folder of a tagger: {error}") from None
    load_weights(tagger, folder / "model.safetensors")
    return tagger.eval(), vocabulary
