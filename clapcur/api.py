"""What ``import clapcur`` offers: models by any name they have, and the improvement of a model as a function."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clapcur.audio.addresses import absolute, is_url
from clapcur.data.class_names import check_class_names
from clapcur.data.rows import ImprovementSetName, Row
from clapcur.errors import CheckpointError, DataError
from clapcur.models import hub
from clapcur.models.checkpoints import is_ours, load_checkpoint
from clapcur.models.clap import Clap, Precision, load_model
from clapcur.store.artifacts import Artifact, write_atomic
from clapcur.store.home import Home
from clapcur.store.record import RECORD

if TYPE_CHECKING:
    import pandas as pd

    from clapcur.experiments.config import Experiment

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


@dataclass(frozen=True)
class Trained:
    """A checkpoint in a home, by its id."""

    id: str
    home: Path = field(repr=False)

    @property
    def path(self) -> Path:
        """The folder of the checkpoint."""
        return Home(self.home).store.folder("checkpoint", self.id)

    def load(self, device: str = "auto", precision: Precision = "float32") -> Clap:
        """Return the model; the arguments are those of `load`."""
        return load(self.id, device, precision, self.home)


@dataclass(frozen=True, repr=False)
class Improvement:
    """The result of `improve`."""

    verdict: str
    # whether the student is better than its teacher, in words, or that nothing was measured
    is_better: bool
    # whether the interval of its change from the teacher is above zero
    table: "pd.DataFrame"
    # one row a model: accuracy with its interval, change from the teacher and from the continued teacher
    student: Trained
    # of the first seed
    teacher: Trained
    # of the first seed
    report: Path
    # report.html

    def __repr__(self) -> str:
        """Return the verdict and the two models."""
        return f"{self.verdict}\nstudent {self.student.id}, teacher {self.teacher.id}, report {self.report}"


def improve(
    config: Path | str | None = None,
    *,
    pairs: "Path | str | pd.DataFrame | Iterable[tuple[Any, str]] | None" = None,
    pool: Path | str | Iterable[Any] | None = None,
    classes: Path | str | Iterable[str] | None = None,
    evaluation: "Path | str | pd.DataFrame | Iterable[tuple[Any, str]] | None" = None,
    captions: Path | str | Iterable[str] | None = None,
    checkpoint: Path | str | None = None,
    tagger: Path | str | None = None,
    name: str = "my-sounds",
    strategy: ImprovementSetName = "pl",
    soft_labels: bool | None = None,
    seeds: Sequence[int] | None = None,
    home: Path | str | None = None,
) -> Improvement:
    """Train a student that improves on its teacher, from your recordings, as `clapcur improve` does.

    Finished work is in the home: the same call returns the same result at once.

    Parameters
    ----------
    config : path, optional
        Experiment file. Give it, or the arguments below.
    pairs : path, DataFrame or list of (path, str), optional
        Clips with captions, in the columns path and caption. Not needed with a tagger or a checkpoint.
    pool : path, str or list of path, optional
        Audio without captions: a folder, a shard, a URL, a table, or audio files.
    classes : path, str or list of str, optional
        Class names: a file, a built-in list such as ``esc50``, or the names.
    evaluation : path, DataFrame or list of (path, str), optional
        Clips with labels, in the columns path and label. None: nothing is measured, and the verdict says so.
    captions : path or list of str, optional
        More captions, without audio.
    checkpoint : path or str, optional
        The teacher: a CLAP checkpoint that `clapcur adopt` can import. None: train one on the pairs.
    tagger : path, optional
        Weights of YAMNet or PANNs, to generate captions for the pool.
    name : str
        Name of the experiment.
    strategy : str
        Strategy that curates the student's pairs.
    soft_labels : bool, optional
        Train the student with soft labels from the teacher; None: the default of the strategy.
    seeds : sequence of int, optional
        Seeds; None: those of the file, or 0.
    home : path, optional
        Where everything is kept; default: CLAPCUR_HOME, or ./.clapcur.

    Returns
    -------
    Improvement

    Raises
    ------
    ValueError
        An argument is missing, contradicts another or makes no sense.
    clapcur.errors.ClapcurError
        A file, a table or a checkpoint cannot be used.
    """
    given = {"pairs": pairs, "pool": pool, "evaluation": evaluation, "captions": captions, "tagger": tagger}
    from_paths = {**given, "classes": classes, "checkpoint": checkpoint}
    if config is not None and any(value is not None for value in from_paths.values()):
        raise ValueError("give an experiment file or the other arguments, not both; the file holds the paths")
    if config is None:
        generated = pairs is None and (tagger is not None or checkpoint is not None)
        needed = ("pool" if generated else "pairs", "classes")
        if missing := [one for one in needed if from_paths[one] is None]:
            raise ValueError(f"give an experiment file, or {', '.join(missing)} as well")
    for one, value in given.items():
        if isinstance(value, (str, Path)) and not is_url(str(value)) and not Path(value).exists():
            raise DataError(f"{one} {value} does not exist")
    from dataclasses import replace

    from clapcur.cli.console import working
    from clapcur.experiments import config as recipes

    with _at_home(home) as where, working():
        experiment: Experiment
        if config is not None:
            experiment = recipes.experiment_from_file(config)
        else:
            experiment = recipes.starter(
                name=name, pairs=_table(where, "pairs", pairs, "caption"), pool=_table(where, "pool", pool),
                class_names=_classes(where, classes), evaluation=_table(where, "evaluation", evaluation, "label"),
                captions=_captions(where, captions), checkpoint=str(checkpoint) if checkpoint is not None else None,
                tagger=str(tagger) if tagger is not None else None, rows=(Row.parse(strategy),),
            )  # fmt: skip
        if seeds is not None:
            experiment = replace(experiment, seeds=tuple(seeds))
        from clapcur.flows.improve import improve as flow

        return _improvement(where, flow.fn(experiment, strategy=strategy, soft_labels=soft_labels))


@contextmanager
def _at_home(home: Path | str | None) -> Iterator[Home]:
    """Let this process use a home inside the block, as a command does; its environment is restored afterwards."""
    from clapcur.cli.console import open_home

    before = dict(os.environ)
    try:
        yield open_home(Path(home) if home is not None else None)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _improvement(home: Home, report: Artifact) -> Improvement:
    import pandas as pd

    from clapcur.data.report_table import ReportTable

    read = ReportTable.open(report)
    verdict = read.verdict
    rows = [
        {
            "row": line.name, "accuracy": line.accuracy, **_ends("", line.interval),
            **{
                key: value
                for name, change in (("vs_teacher", line.vs_teacher), ("vs_continued", line.vs_continued))
                for key, value in {
                    name: change.change if change else None, **_ends(f"{name}_", change.interval if change else None)
                }.items()
            },
            "checkpoint": line.by_seed[0].checkpoint, "improvement_set": line.by_seed[0].improvement_set,
        }
        for line in read.rows
    ]  # fmt: skip
    student, teacher = (
        next(line for line in read.rows if is_it(line.row)).by_seed[0].checkpoint
        for is_it in (lambda row: row.is_student, lambda row: row.is_teacher)
    )
    return Improvement(
        verdict=read.conclusion, is_better=verdict is not None and verdict.is_better,
        table=pd.DataFrame(rows).set_index("row"), student=Trained(student, home.root),
        teacher=Trained(teacher, home.root), report=report.path / "report.html",
    )  # fmt: skip


def _ends(prefix: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}


def _table(home: Home, name: str, given: Any, column: str = "") -> Any:
    """Return the path of a table; rows in memory, of path and `column`, are written to the home."""
    import pandas as pd

    if given is None or isinstance(given, (str, Path)):
        return given
    columns = ["path", *([column] if column else [])]
    if not isinstance(given, pd.DataFrame):
        rows = list(given)
        wanted = f"(path, {column})" if column else "paths"
        rows = rows if column else [(row,) for row in rows]
        if not all(isinstance(row, (tuple, list)) and len(row) == len(columns) for row in rows):
            raise ValueError(f"{name} must be a path, a DataFrame or a list of {wanted}")
        given = pd.DataFrame(rows, columns=columns)
    if lacking := [one for one in columns if one not in given]:
        raise ValueError(f"{name} must have the columns {', '.join(columns)}; it lacks {', '.join(lacking)}")
    if given.empty:
        raise DataError(f"{name} is empty")
    given = given.assign(path=[absolute(os.getcwd(), os.fspath(path)) for path in given["path"]])
    return _kept(home, name, ".csv", given.to_csv(index=False))


def _captions(home: Home, given: Any) -> Any:
    import pandas as pd

    if given is None or isinstance(given, (str, Path)):
        return given
    return _kept(home, "captions", ".csv", pd.DataFrame({"caption": list(given)}).to_csv(index=False))


def _classes(home: Home, given: Any) -> Path | str:
    if isinstance(given, (str, Path)):
        return given
    return _kept(home, "classes", ".txt", "".join(f"{name}\n" for name in check_class_names(given, "classes")))


def _kept(home: Home, name: str, suffix: str, text: str) -> Path:
    """Return a file in the home with this text, named by it, so that the same input is the same file."""
    folder = home.root / "inputs"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}{suffix}"
    if not path.exists():
        write_atomic(path, text)
    return path
