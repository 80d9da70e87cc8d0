"""Parse the arguments of the stage commands: ids, thresholds, training files."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clapcur.cli.completion import artifacts
from clapcur.config import from_dict, read_mapping
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home

if TYPE_CHECKING:
    from clapcur.methods.contamination import NearDuplicate
    from clapcur.methods.thresholds import Threshold
    from clapcur.stages.curate import Curation
    from clapcur.stages.train import TrainConfig


CLASSES_HELP = "Class names: a file with one name per line, or a built-in list such as esc50."
Checkpoint = Annotated[
    str,
    typer.Argument(
        help="Checkpoint: an id, its first digits, or its MLflow run.",
        show_default=False,
        autocompletion=artifacts("checkpoint"),
    ),
]
ClassFile = Annotated[str | None, typer.Option("--classes", help=CLASSES_HELP)]


def find(home: Home, name: str, kind: str) -> Artifact:
    """Return the artifact with this id, first digits of an id or MLflow run id.

    Parameters
    ----------
    home : Home
    name : str
        See `clapcur.lineage.queries.find`.
    kind : str
        Kind that the artifact must have.

    Raises
    ------
    ArtifactError
        The name refers to no artifact, to several, or to one of another kind.
    """
    from clapcur.lineage.queries import find as find_any

    return find_any(home, name, kind)


def threshold(text: str) -> "Threshold":
    """Parse a threshold: a cosine, ``count:N`` or ``precision:P``; raise ValueError for anything else."""
    from clapcur.methods.thresholds import Threshold

    way, colon, value = text.rpartition(":")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if way == "count" and number.is_integer():
        return Threshold(count=int(number))
    if way == "precision" and math.isfinite(number):
        return Threshold(precision=number)
    if not colon and math.isfinite(number):
        return Threshold(similarity=number)
    raise ValueError(f"a threshold must be a cosine such as 0.7, count:2000 or precision:0.8, got {text!r}")


def near_duplicate(text: str) -> "NearDuplicate":
    """Parse the similarity at or above which two clips are duplicates: a cosine, ``calibrated`` or ``never``."""
    if text in ("calibrated", "never"):
        return "calibrated" if text == "calibrated" else None
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"near_duplicate must be a cosine such as 0.9999, 'calibrated' or 'never', got {text!r}"
        ) from None


def curation_from_file(path: Path | None, **given: Any) -> "Curation":
    """Return the curation of an experiment file or of a file with the fields of one curation, or the defaults.

    Fields in `given` that are not None override those of the file.
    """
    from dataclasses import replace

    from clapcur.experiments.config import curation_values, experiment_from_file
    from clapcur.stages.curate import Curation

    curation = Curation()
    if path is not None:
        values = read_mapping(path)
        if "pairs" in values:
            curation = experiment_from_file(path).curation
        else:
            curation = from_dict(Curation, curation_values(values, path.absolute().parent, path), where=str(path))
    return replace(curation, **{name: value for name, value in given.items() if value is not None})


def training_from_file(
    path: Path, which: Literal["teacher", "student"], seed: int | None, soft_labels: bool = False,
    processes: int | None = None,
) -> "TrainConfig":  # fmt: skip
    """Return a training from an experiment file, or from a file with the fields of one training.

    Parameters
    ----------
    path : Path
        YAML file.
    which : {"teacher", "student"}
        Training to take from an experiment file.
    seed : int or None
        Seed of the training; None: that of the file.
    soft_labels : bool
        Whether to train with soft labels even if the file does not.
    processes : int, optional
        Number of processes that train together; None: that of the file.

    Raises
    ------
    ValueError
        The experiment trains no teacher, or a value makes no sense.
    """
    from dataclasses import replace

    values = read_mapping(path)
    from clapcur.experiments.config import experiment_from_file
    from clapcur.stages.train import SoftLabels, TrainConfig

    labels = SoftLabels()
    if values.keys() & {"pairs", "teacher", "student"}:
        experiment = experiment_from_file(path)
        config, labels = getattr(experiment, which), experiment.soft_labels
        if config is None:
            raise ValueError(f"{path} trains no teacher: its checkpoint is the teacher; import it with `clapcur adopt`")
    else:
        config = from_dict(TrainConfig, values, where=str(path))
    given = {"seed": seed, "processes": processes}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if soft_labels and config.soft_labels is None:
        changes["soft_labels"] = labels
    return replace(config, **changes)
