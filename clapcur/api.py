"""What ``import clapcur`` offers: models by any name they have."""

import os
import re
from pathlib import Path

from clapcur.errors import CheckpointError, DataError
from clapcur.models import hub
from clapcur.models.checkpoints import is_ours, load_checkpoint
from clapcur.models.clap import Clap, Precision, load_model
from clapcur.store.home import Home
from clapcur.store.record import RECORD

REGISTERED = "models:/"  # MLflow's prefix for registered models


def load(
    what: Path | str, device: str = "auto", precision: Precision = "float32", home: Path | str | None = None
) -> Clap:
    """Load a model by an id, a name or a path.

    Parameters
    ----------
    what : path or str
        One of

        - a folder: of an export, of an artifact, or of Hugging Face's `ClapModel`;
        - a weights file of another project (docs/checkpoints.md lists the formats);
        - an id in the home or its first digits, such as ``60f4``, or an MLflow run id;
        - a registered model, such as ``models:/clapcur-esc50@champion``;
        - a model on the Hugging Face Hub, such as ``org/name`` or, if a folder has the same name, ``hf:org/name``.
    device : str
        "auto" takes the first GPU if there is one; else as torch names it.
    precision : {"float32", "bfloat16"}
        Precision of the towers.
    home : path, optional
        Where ids and registered models are looked up; default: CLAPCUR_HOME, or ./.clapcur.

    Returns
    -------
    Clap
        In evaluation mode, with ``embed_audio``, ``embed_text`` and ``classify``.

    Raises
    ------
    CheckpointError
        There is no such model, or it is damaged or incomplete.
    ArtifactError
        The home has no such id, or several, or the artifact is no checkpoint.
    DataError
        There is no home to look the id up in.
    """
    name = os.fspath(what)
    if not name.strip():
        raise CheckpointError("the name of the model is empty; give an id, a folder, models:/NAME@ALIAS or hf:ORG/NAME")
    place = Path(name).expanduser()
    if name.startswith(hub.PREFIX):
        return _load_from_hub(name.removeprefix(hub.PREFIX), device, precision)
    if place.exists():
        return _load_place(place, device, precision)
    if name.startswith(REGISTERED) or re.fullmatch(r"[0-9a-f]+|[^/]+@\w+", name):
        return _load_artifact(name.removeprefix(REGISTERED), device, precision, home)
    if not isinstance(what, Path) and name.count("/") == 1 and hub.NAME.fullmatch(name):
        return _load_from_hub(name, device, precision)
    raise CheckpointError(
        f"found no model {name!r}: it is not a file or folder, and neither an id, models:/NAME@ALIAS nor a name on the "
        "Hub, ORG/NAME"
    )


def _load_artifact(name: str, device: str, precision: Precision, home: Path | str | None) -> Clap:
    from clapcur.lineage.queries import find

    return _load_place(find(existing_home(home), name, "checkpoint").path, device, precision)


def _load_place(place: Path, device: str, precision: Precision) -> Clap:
    if place.is_dir() and is_ours(place):
        model = load_model(place, device, precision)
        model.id = place.resolve().name if (place / RECORD).exists() else None
        return model
    if (place / RECORD).exists() or (place / "config.json").exists() and _says_ours(place):
        return load_model(place, device, precision)  # raises an error that names what is missing
    return _load_foreign(str(place), device, precision)


def _says_ours(place: Path) -> bool:
    return '"clapcur.' in (place / "config.json").read_text(errors="replace")


def _load_foreign(source: str, device: str, precision: Precision) -> Clap:
    try:
        model, report = load_checkpoint(source, device=device)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{error}. `clapcur adopt` has options for such files and gives an id to load") from None
    if report.fresh:
        raise CheckpointError(
            f"{source} ({report.format}) lacks {len(report.fresh)} weights of a complete model, such as "
            f"{report.fresh[0]}; train it on captioned clips first, with `checkpoint` and `teacher` in an experiment"
        )
    model.precision = precision
    return model


def _load_from_hub(name: str, device: str, precision: Precision) -> Clap:
    folder = hub.download(name)
    return _load_foreign(name, device, precision) if folder is None else load_model(folder, device, precision)


def existing_home(home: Path | str | None = None) -> Home:
    """Return a home that exists; raise DataError if there is none, instead of creating an empty one."""
    chosen = Path(home or os.environ.get("CLAPCUR_HOME") or ".clapcur").expanduser()
    if not chosen.is_dir():
        raise DataError(f"no clapcur home found at {chosen.absolute()}; give home=... or set CLAPCUR_HOME")
    return Home.open(chosen)
