"""Tagger: a tagger file of another project -> a tagger of ours, used by `clapcur.stages.tag`.

The identity of the result is the content of the weights and the names of the classes, not the location of the files.

Payload: ``tagger.json`` and ``model.safetensors`` (see `clapcur.models.taggers`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clapcur.config import frozen
from clapcur.errors import CheckpointError
from clapcur.store.artifacts import Artifact, Stage, Workspace, sha256_file
from clapcur.store.record import Outcome

if TYPE_CHECKING:
    from clapcur.models.taggers import Vocabulary


@frozen
class TaggerConfig:
    """Which tagger, and what its outputs are called."""

    source: str
    """Weights file: YAMNet as safetensors, or PANNs' Cnn14 with its classifier head, as released."""
    classes: str | None = None
    """Table of its classes, in the order of its outputs, with columns index, mid and display_name. null: the file next
    to the weights (class_map.csv, yamnet_class_map.csv or class_labels_indices.csv)."""
    pickled: bool = False
    """Load a pickle file, which can run code; only for files from a source you trust."""

    def check_place(self) -> "Vocabulary":
        """Check that the weights and the names of the outputs exist; return the names without reading the weights.

        Raises
        ------
        CheckpointError
            The file of weights is missing.
        DataError
            The names of the outputs are missing.
        """
        from clapcur.models.taggers import Vocabulary

        path = Path(self.source)
        if not path.is_file():
            raise CheckpointError(f"tagger {path} not found; give its weights file")
        return Vocabulary.read(Path(self.classes)) if self.classes else Vocabulary.beside(path)


def stage_for(config: TaggerConfig) -> tuple[Stage, dict[str, Any]]:
    """Return the stage that reads this tagger, and the config that identifies its artifact; raise as `check_place`."""
    path, vocabulary = Path(config.source), config.check_place()
    identity = {"sha256": sha256_file(path), "names": vocabulary.names, "mids": vocabulary.mids}

    def compute(inputs: Mapping[str, Artifact], _: Any, work: Workspace) -> Outcome:
        from clapcur.models.taggers import read_tagger, save_tagger

        tagger = read_tagger(path, config.pickled)
        save_tagger(tagger, vocabulary, work.path)
        return Outcome(counts={"classes": tagger.num_classes}, facts={"format": tagger.FAMILY})

    return Stage("tagger", "1", "tagger", compute), identity
