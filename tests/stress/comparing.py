"""Two homes against each other: everything that is not a time, a run or a place must be equal.

The files are hashed anew: a record that says what the file no longer holds would else be believed.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from clapcur.errors import DamagedArtifact
from clapcur.store.artifacts import ASIDE, LOCATIONS, TIMES, explain_difference, sha256_file
from clapcur.store.catalog import Catalog
from clapcur.store.database import ARTIFACT, EDGE
from clapcur.store.home import Home
from clapcur.store.record import RECORD, checked_record

MEASURED = {  # how fast it was
    "rows_per_s", "real_time_factor", "waiting_share", "samples_per_s", "memory_mib", "seconds", "duration",
}  # fmt: skip
ALLOWED = MEASURED | {
    "started", "finished", "environment", "recomputed", "campaign",
    "files",  # compared by their bytes
    "record_sha256",  # of the times too; that it is true is checked
}  # fmt: skip
NOT_COMPARED = {RECORD, LOCATIONS, TIMES}  # the record by its fields; the other two differ between equal runs
SHOWN = 5  # differences of one artifact


def plain(value: Any) -> Any:
    """Return a record without what may differ between two runs."""
    if isinstance(value, Mapping):
        kept = {name: plain(one) for name, one in value.items() if name not in ALLOWED}
        return {name: one for name, one in kept.items() if not name.startswith("prefect.")}
    return value


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of each file of an artifact."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    return {name: sha256_file(path) for name, path in paths.items() if name not in NOT_COMPARED}


def store_differences(
    wanted: Path, home: Path, ids: Iterable[str] | None = None, set_aside: Collection[str] = ()
) -> list[str]:
    """Name what the store of `home` lacks, has beside or has otherwise than that of `wanted`, one line each.

    Parameters
    ----------
    wanted, home : Path
        The undisturbed home and the other one.
    ids : iterable of str, optional
        Look at these artifacts alone; whether there are others is not asked then.
    set_aside : collection of str
        Artifacts whose record was damaged, so that what was there may have been moved aside.
    """
    ours, theirs = _folders(wanted), _folders(home)
    for key in [(kind, name) for kind, name in theirs if name.endswith(ASIDE) and name[1:].split("-")[0] in set_aside]:
        del theirs[key]
    said = []
    if ids is None:
        said += [f"{kind} {name} is missing" for kind, name in sorted(ours.keys() - theirs.keys())]
        said += [f"{kind} {name} is one too many" for kind, name in sorted(theirs.keys() - ours.keys())]
    chosen = set(ids) if ids is not None else {name for _, name in ours}
    for key in sorted(ours.keys() & theirs.keys()):
        if key[1] in chosen:
            said += [f"{' '.join(key)}: {line}" for line in _artifact_differences(ours[key], theirs[key])]
    return said


def _folders(home: Path) -> dict[tuple[str, str], Path]:
    """Return every folder of a store by kind and id, finished or not: an unfinished one is a difference too."""
    found = sorted((home / "store").glob("*/*"))
    return {(path.parent.name, path.name): path for path in found}


def _artifact_differences(wanted: Path, folder: Path) -> list[str]:
    if not (folder / RECORD).exists():
        return ["it has no record"]
    ours, theirs = (json.loads((place / RECORD).read_text()) for place in (wanted, folder))
    said = explain_difference(plain(ours), plain(theirs))[:SHOWN]
    mine, yours = contents(wanted), contents(folder)
    said += [f"{name} is missing" for name in sorted(mine.keys() - yours.keys())]
    said += [f"{name} was left over" for name in sorted(yours.keys() - mine.keys())]
    said += [f"{name} has other bytes" for name in sorted(mine.keys() & yours.keys()) if mine[name] != yours[name]]
    said += [f"{name} is not what its record states" for name in _untrue(folder, theirs)]
    try:
        checked_record(folder)
    except DamagedArtifact as damage:
        said.append(str(damage))
    return said


def _untrue(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Name the files whose bytes are not those that the record states."""
    there = contents(folder)
    return [name for name, entry in record["files"].items() if there.get(name) != entry["sha256"]]


def catalog_differences(home: Path, database_url: str | None = None) -> list[str]:
    """Name what the catalog says otherwise than the store, and what still waits for MLflow."""
    where = Home(home)
    catalog = Catalog(database_url or f"sqlite:///{home / 'catalog.db'}")
    records = {artifact.id: artifact.record for artifact in where.store}
    with catalog._engine.begin() as db:
        rows = {row.id: row for row in db.execute(ARTIFACT.select())}
        edges = {(row.artifact_id, row.role, row.input_id) for row in db.execute(EDGE.select())}
    wanted = {(name, role, below) for name, record in records.items() for role, below in record.inputs.items()}
    said = [f"the catalog does not know {name}" for name in sorted(records.keys() - rows.keys())]
    said += [f"the catalog knows {name}, which the store lacks" for name in sorted(rows.keys() - records.keys())]
    said += [f"the catalog lacks the edge {edge}" for edge in sorted(wanted - edges)]
    said += [f"the catalog has the edge {edge} too many" for edge in sorted(edges - wanted)]
    for name in sorted(records.keys() & rows.keys()):
        if rows[name].finished != records[name].finished:
            said.append(f"the catalog has another time of {name} than its record")
        if not rows[name].mlflow_run_id:
            said.append(f"the catalog knows no MLflow run of {name}")
    if waiting := catalog.num_waiting():
        said.append(f"{waiting} messages to MLflow still wait after `clapcur sync`")
    return said


def mlflow_differences(wanted: Path, home: Path) -> list[str]:
    """Name what MLflow shows of the artifacts of `home` otherwise than of those of `wanted`."""
    ours, theirs = _mlflow_runs(wanted), _mlflow_runs(home)
    said = [f"MLflow has {count} runs of {name}" for name, count in theirs[1].items() if count > 1]
    said += [f"MLflow has no run of {name}" for name in sorted(ours[0].keys() - theirs[0].keys())]
    said += [f"MLflow has a run of {name} too many" for name in sorted(theirs[0].keys() - ours[0].keys())]
    for name in sorted(ours[0].keys() & theirs[0].keys()):
        lines = explain_difference(ours[0][name], theirs[0][name])
        said += [f"the MLflow run of {name}: {line}" for line in lines[:SHOWN]]
    return said


def _mlflow_runs(home: Path) -> tuple[dict[str, Any], Counter[str]]:
    """Return what MLflow shows of each artifact (or campaign), and how many runs each has."""
    from mlflow import MlflowClient

    address = f"sqlite:///{home / 'mlflow.db'}"
    client = MlflowClient(address, address)
    experiments = client.search_experiments()
    runs = [run for one in experiments for run in client.search_runs([one.experiment_id], max_results=5000)]
    shown: dict[str, Any] = {}
    counted: Counter[str] = Counter()
    for run in runs:
        name = run.data.tags.get("clapcur.artifact") or f"campaign {run.data.tags.get('clapcur.campaign')}"
        counted[name] += 1
        tags = {tag: text for tag, text in run.data.tags.items() if not tag.startswith(("mlflow.", "prefect."))}
        for varying in ("clapcur.uri", "clapcur.recomputed_identical", "clapcur.campaign_key"):
            tags.pop(varying, None)
        metrics = {key: value for key, value in run.data.metrics.items() if key.split("/")[0] != "system"}
        shown[name] = {
            "status": run.info.status,
            "params": dict(run.data.params),
            "metrics": {key: value for key, value in metrics.items() if key not in MEASURED},
            "tags": tags,
            "files": {file.path: file.is_dir for file in client.list_artifacts(run.info.run_id)},
            "datasets": len(run.inputs.dataset_inputs),
            "models": len(run.outputs.model_outputs) if run.outputs else 0,
        }
    return shown, counted
