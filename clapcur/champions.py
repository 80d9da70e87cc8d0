"""Who is champion of a dataset: read out of the decisions in the store, so that no pointer can be lost.

MLflow shows the same as aliases of a registered model (`clapcur.lineage`).
"""

import json
from typing import Any

from clapcur.artifacts import Artifact, Store


def decisions(store: Store, dataset: str) -> list[dict[str, Any]]:
    """Return the decisions about a dataset, the first one first, with the ``id`` of each and its ``teacher``."""
    found = []
    for artifact in store.of_kind("decision"):
        record = artifact.record
        if record["config"]["dataset"] == dataset:
            told = json.loads((artifact.path / "decision.json").read_text())
            found.append({"id": artifact.id, "teacher": record["inputs"]["teacher"], **told})
    return found


def decision_about(store: Store, dataset: str, challenger: Artifact) -> Artifact | None:
    """Return the last decision about a challenger, None where it has not been judged yet."""
    made = [decision["id"] for decision in decisions(store, dataset) if decision["challenger"] == challenger.id]
    return store.find(made[-1]) if made else None


def standing(store: Store, dataset: str) -> dict[str, Artifact]:
    """Return the checkpoints by alias: ``teacher``, ``champion`` and ``challenger``, the last that tried.

    The teacher is champion until a student was promoted. Empty where nothing was decided yet.
    """
    made = decisions(store, dataset)
    if not made:
        return {}
    promoted = [decision["challenger"] for decision in made if decision["promoted"]]
    aliases = {
        "teacher": made[-1]["teacher"],
        "champion": promoted[-1] if promoted else made[-1]["champion"],
        "challenger": made[-1]["challenger"],
    }
    return {alias: store.find(name) for alias, name in aliases.items()}
