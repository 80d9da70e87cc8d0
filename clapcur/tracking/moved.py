"""Update MLflow's absolute URIs after a home was moved or copied.

MLflow stores the absolute URI of every run's files, model and registered version in its tables. URIs of artifacts in
our store are in tags, in datasets and in the files of logged models. After a move, all of them lead nowhere or, after a
copy, to the original home.

The former locations of a home are found in its URIs. Another home that keeps its runs in the same tables is recognised
by its files, which exist there and not in this home.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import sqlalchemy as sa
import yaml

from clapcur.errors import ManifestError
from clapcur.store.artifacts import write_atomic
from clapcur.store.home import Home

FILES = {"experiments": "artifact_location", "runs": "artifact_uri"}  # columns with the home's own URIs
ADDRESSES = (  # (table, column) whose values are URIs
    *FILES.items(),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
TAGS = {"tags": ("key", "value"), "logged_model_tags": ("tag_key", "tag_value"), "model_version_tags": ("key", "value")}
OURS = ("clapcur.uri", "clapcur.pairs")  # tags whose values have a URI

Rewrite = Callable[[str], str]
log = logging.getLogger("clapcur")


def follow_home(engine: sa.Engine, home: Home) -> None:
    """Rewrite URIs that name a former location of the home; the caller holds MLflow's lock.

    Files are rewritten first and the tables last, in one transaction, so the next call completes an interrupted one.
    """
    if not (before := former_roots(engine, home)):
        return
    moved = _rewriting(before, home.root)
    _move_models(engine, moved)
    _move_clips(home, before)
    count = _move_tables(engine, moved)
    log.warning(
        "this home was in %s before: updated %d URIs in MLflow to %s",
        ", ".join(map(str, before)),
        count,
        home.root,
    )


def former_roots(engine: sa.Engine, home: Home) -> list[Path]:
    """Return the former locations of this home that MLflow's tables name."""
    tables = set(sa.inspect(engine).get_table_names())
    if not tables.issuperset(FILES):
        return []
    with engine.connect() as db:
        if not _elsewhere(db, home, "experiments"):
            return []
        files = [found for table in FILES for found in _elsewhere(db, home, table)]
    others = {root for root, below in files if (root / below).exists() and not (home.root / below).exists()}
    return sorted(root for root in {root for root, _ in files} - others if not _is_same(root, home.root))


def _is_same(root: Path, other: Path) -> bool:
    """Return whether both paths are the same folder, through a link or a container's mount."""
    try:
        return os.path.samefile(root, other)
    except OSError:  # one of them no longer exists
        return False


def _elsewhere(db: sa.Connection, home: Home, table: str) -> list[tuple[Path, Path]]:
    """Return the files that MLflow's URIs place outside this home: the root of their home, and the path in it."""
    query = sa.select(sa.column(FILES[table], sa.String)).select_from(sa.table(table)).distinct()
    found = []
    for (address,) in db.execute(query):
        path = path_of(address or "")
        if path is None or home.mlflow_artifacts.name not in path.parts[1:]:
            continue
        place = len(path.parts) - 1 - path.parts[::-1].index(home.mlflow_artifacts.name)
        if (root := Path(*path.parts[:place])) != home.root:
            found.append((root, Path(*path.parts[place:])))
    return found


def path_of(address: str) -> Path | None:
    """Return the path of a local file's URI as written by MLflow; None for any other URI."""
    if address.startswith("file://"):
        return Path(unquote(address.removeprefix("file://")))
    return Path(address) if address.startswith("/") else None


def _rewriting(before: list[Path], now: Path) -> Rewrite:
    """Return a function that replaces former locations in a text with the current one, in paths and in URIs."""
    forms = {}
    for root in before:
        forms[f"file://{quote(os.fsencode(root))}"] = f"file://{quote(os.fsencode(now))}"
        forms[str(root)] = str(now)
    spelled = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\S)({spelled})(?=/)")
    return lambda text: pattern.sub(lambda match: forms[match[1]], text)


def _move_tables(engine: sa.Engine, moved: Rewrite) -> int:
    """Rewrite all URIs in MLflow's tables, and return how many values changed."""

    def in_source(text: str) -> str:
        told = json.loads(text)
        return json.dumps(told | {"uri": moved(told["uri"])})

    with engine.begin() as db:
        count = sum(_move_column(db, table, column, moved) for table, column in ADDRESSES)
        for table, (key, value) in TAGS.items():
            count += _move_column(db, table, value, moved, sa.column(key).in_(OURS))
        ours = sa.column("dataset_source_type") == "clapcur"
        return count + _move_column(db, "datasets", "dataset_source", in_source, ours)


def _move_column(db: sa.Connection, name: str, column: str, moved: Rewrite, where: Any = None) -> int:
    """Rewrite one column; return how many distinct values changed."""
    table, values = sa.table(name, sa.column(column)), sa.column(column, sa.String)
    query = sa.select(values).select_from(table).where(values.is_not(None)).distinct()
    condition = sa.true() if where is None else where
    changes = [(old, new) for (old,) in db.execute(query.where(condition)).all() if (new := moved(old)) != old]
    for old, new in changes:
        db.execute(sa.update(table).where(values == old, condition).values({column: new}))
    return len(changes)


def _move_models(engine: sa.Engine, moved: Rewrite) -> None:
    """Rewrite the files of logged models in the home."""
    from mlflow.models import Model

    for folder in _model_folders(engine, moved):
        for path in (folder / "data").glob("*.json"):
            told = json.loads(path.read_text())
            write_atomic(path, json.dumps(told | {"store": moved(told["store"])}))
        model = Model.from_dict(yaml.safe_load((folder / "MLmodel").read_text()))
        model.artifact_path = moved(model.artifact_path or "")
        model.save(str(folder / "MLmodel"))


def _model_folders(engine: sa.Engine, moved: Rewrite) -> Iterator[Path]:
    with engine.connect() as db:
        query = sa.select(sa.column("artifact_location", sa.String)).select_from(sa.table("logged_models"))
        for (address,) in db.execute(query).all():
            folder = path_of(moved(address))
            if moved(address) != address and folder and (folder / "MLmodel").exists():
                yield folder


def _move_clips(home: Home, before: list[Path]) -> None:
    """Rewrite the paths of clips that are in the home itself, such as those of the demo."""
    from clapcur.data.manifest import read_locations, write_locations

    for manifest in home.store.of_kind("manifest"):
        try:
            places = read_locations(manifest.path)
        except ManifestError as error:
            log.warning("%s", error)
            continue
        for root in before:
            inside = places.path.str.startswith(f"{root}/")
            places.loc[inside, "path"] = str(home.root) + places.path[inside].str.removeprefix(str(root))
        write_locations(places, manifest.path)
