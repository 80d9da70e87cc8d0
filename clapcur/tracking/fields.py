"""The record of an artifact as flat params, metrics and tags for MLflow.

Pure functions of a record, within MLflow's limits: 6,000 characters per param, 8,000 per tag.
"""

import json
from typing import Any

from clapcur.store.readable import flat, shown_inputs, spelled, thresholds
from clapcur.store.record import Record

MAX_PARAM = 6000
MAX_TAG = 8000
ARTIFACT_TAG = "clapcur.artifact"
CAMPAIGN_TAG = "clapcur.campaign"


def params(record: Record) -> dict[str, str]:
    """Return the resolved config, one param per leaf."""
    return {name: _text(value)[:MAX_PARAM] for name, value in flat(record.config).items()}


def tags(record: Record, uri: str) -> dict[str, str]:
    """Return the origin of an artifact: id, key, inputs by role, free tags, thresholds, versions.

    A threshold is any number in config or metrics with "threshold" in its name.
    """
    environment = record.environment
    facts = {
        ARTIFACT_TAG: record.id,
        "clapcur.kind": record.kind,
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


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
