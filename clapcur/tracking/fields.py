"""The record of an artifact as flat params, metrics and tags for MLflow.

Pure functions of a record, within MLflow's limits: 6,000 characters per param, 8,000 per tag.
"""

import json
from typing import Any

from clapcur.data.rows import Row
from clapcur.store.readable import flat, label, shown_inputs, spelled, thresholds
from clapcur.store.record import Record
from clapcur.tracking.views import DETAIL_TAG, KIND_TAG

MAX_PARAM = 6000
MAX_TAG = 8000
ARTIFACT_TAG = "clapcur.artifact"
CAMPAIGN_TAG = "clapcur.campaign"
RESULTS = ("checkpoint", "captioner", "improvement_set", "decision")
# kinds that people look for; all other runs are steps in between, or repeat what is on the run of the comparison


def params(record: Record) -> dict[str, str]:
    """Return the resolved config, one param per leaf."""
    return {name: _text(value)[:MAX_PARAM] for name, value in flat(record.config).items()}


def run_name(record: Record) -> str:
    """Return a name for people: ``ADS+SL seed 0`` (a model), ``ADS set seed 0``, or the label of any other step."""
    said = label(record)
    row = _row_label(str(record.tags.get("row", record.tags.get("strategy", ""))))
    if row and record.kind == "checkpoint":
        said = row
    elif row and record.kind == "improvement_set":
        said = f"{row} set"
    elif row and record.kind in ("scores", "order_scores"):
        said = f"{record.kind.replace('_', ' ')} of {row}"
    seed = record.tags.get("seed")
    return said if seed is None else f"{said} seed {seed}"


def tags(record: Record, uri: str) -> dict[str, str]:
    """Return the origin of an artifact: id, key, inputs by role, free tags, thresholds, versions.

    A threshold is any number in config or metrics with "threshold" in its name.
    """
    environment = record.environment
    facts = {
        ARTIFACT_TAG: record.id,
        KIND_TAG: record.kind,
        DETAIL_TAG: record.kind not in RESULTS,
        "clapcur.stage": record.stage,
        "clapcur.version": record.version,
        "clapcur.key": record.key_sha256,
        "clapcur.uri": uri,
        "mlflow.source.name": f"clapcur {record.stage}",
        "mlflow.source.git.commit": environment.get("git"),
        "device": environment.get("device"),
    }
    facts |= {f"clapcur.in.{role}": name for role, name in shown_inputs(record).items()}
    facts |= {**thresholds(record), **record.tags}
    if campaign := record.campaign:
        facts |= {
            "clapcur.campaign_key": campaign["key"],
            "clapcur.campaign_name": campaign["name"],
        }
    if record.recomputed is not None:
        facts["clapcur.recomputed_identical"] = record.recomputed["identical"]
    return {spelled(key): _text(value)[:MAX_TAG] for key, value in facts.items() if value is not None}


def _row_label(name: str) -> str:
    """Return a row's name as in tables; a row that this version does not know keeps its own name."""
    try:
        return Row.parse(name).label
    except ValueError:
        return name


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
