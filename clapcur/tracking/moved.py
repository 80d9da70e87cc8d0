"""A home that was moved or copied: MLflow and manifests keep absolute addresses, which become those of the new place.

MLflow's SQLite file has the place of every run, model and data set, its model folders the place of the store, and a
manifest the place of its clips, where these lie in the home. `clapcur sync` calls `readdress`.
"""

import json
import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote

from clapcur.data.manifest import read_locations, write_locations
from clapcur.store.artifacts import LOCATIONS, write_atomic
from clapcur.store.home import Home

ADDRESSES = {  # columns of MLflow's tables that hold places
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "tags": ("value",),
    "datasets": ("dataset_source",),
    "logged_models": ("artifact_location",),
    "logged_model_tags": ("tag_value",),
    "model_versions": ("source", "storage_location"),
    "model_version_tags": ("value",),
}

log = logging.getLogger("clapcur")


def readdress(home: Home) -> list[Path]:
    """Replace the places that the home had before by the one that it has now, and return the earlier ones.

    A place that is this very home under another name, such as a link or the mount of a container, is left as it is.
    """
    earlier = [place for place in _places(home) if not _is_same(place, home.root)]
    for place in earlier:
        _in_tables(home, place)
        _in_model_folders(home, place)
        _in_manifests(home, place)
        log.info("the home was at %s before: what MLflow and manifests say of it is now %s", place, home.root)
    return earlier


def _places(home: Home) -> list[Path]:
    """Return the homes in which MLflow's experiments keep their files."""
    if not home.mlflow_file.is_file():
        return []
    folder = re.compile(rf"file://(?P<root>/.*)/{re.escape(home.mlflow_artifacts.name)}(/.*)?")
    with closing(sqlite3.connect(home.mlflow_file)) as db:
        found = db.execute("SELECT artifact_location FROM experiments").fetchall()
    matches = (folder.fullmatch(location or "") for (location,) in found)
    return sorted({Path(unquote(match["root"])) for match in matches if match})


def _is_same(place: Path, root: Path) -> bool:
    try:
        return os.path.samefile(place, root)
    except OSError:  # nothing is there any more
        return place == root


def _spellings(place: Path) -> tuple[str, str, str]:
    """Return how the folder of a home begins an address, a path, and a text in JSON."""
    path = f"{place}/"
    return f"file://{quote(path)}", path, json.dumps(path)[:-1]


def _in_tables(home: Home, place: Path) -> None:
    address, path, quoted = zip(_spellings(place), _spellings(home.root), strict=True)
    with closing(sqlite3.connect(home.mlflow_file, timeout=60)) as db, db:
        for table, columns in ADDRESSES.items():
            known = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
            for column in known.intersection(columns):
                for old, new in (address, path):
                    db.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, len(old), old),
                    )
                db.execute(
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE instr({column}, ?)",
                    (*quoted, quoted[0]),
                )


def _in_model_folders(home: Home, place: Path) -> None:
    address, _, quoted = zip(_spellings(place), _spellings(home.root), strict=True)
    for folder in home.mlflow_artifacts.glob("*/models/*/artifacts"):
        for path in (folder / "MLmodel", *folder.glob("data/*.json")):
            text = path.read_text() if path.is_file() else ""
            if (new := text.replace(*address).replace(*quoted)) != text:
                write_atomic(path, new)


def _in_manifests(home: Home, place: Path) -> None:
    begins = f"{place}/"
    for manifest in home.store.of_kind("manifest"):
        if (manifest.path / LOCATIONS).exists():
            places = read_locations(manifest.path)
            is_inside = places.path.str.startswith(begins)
            moved = places.path.where(~is_inside, f"{home.root}/" + places.path.str.removeprefix(begins))
            write_locations(places.assign(path=moved), manifest.path)
