"""MLflow's runs table as people open it: saved views, links to them, and the text above the table.

MLflow stores a saved view in a tag of the experiment, and its page opens the view that the URL names: filter, order and
columns need no preparation. The views are listed under *Views* on the page, where everyone can add more.
"""

import json
import os
from typing import Any, NamedTuple

from clapcur.store.home import Home

VIEW_TAG = "mlflow.sharedViewState."  # prefix of the tags in which MLflow stores saved views
NOTE_TAG = "mlflow.note.content"  # the description of a run or an experiment, in Markdown
KIND_TAG, DETAIL_TAG = "clapcur.kind", "clapcur.detail"
ACCURACY, ROW, SEED = "metrics.`accuracy`", "tags.`row`", "tags.`seed`"
MODELS, DATASETS = "attributes.`Models`", "attributes.`Dataset`"


class View(NamedTuple):
    """A saved view of the runs of an experiment."""

    key: str
    name: str
    what: str
    wanted: str
    order_by: str
    columns: tuple[str, ...]
    group_by: str | None = None  # name of a tag; metrics of a group are averaged


VIEWS = (
    View(
        "models",
        "Models by accuracy",
        "teachers and students, the best one first",
        f"tags.`{KIND_TAG}` = 'checkpoint'",
        ACCURACY,
        (ACCURACY, ROW, SEED, MODELS, DATASETS),
    ),
    View(
        "strategies",
        "Strategies by accuracy",
        "the same, averaged over seeds",
        f"tags.`{KIND_TAG}` = 'checkpoint'",
        ACCURACY,
        (ACCURACY, SEED, MODELS),
        "row",
    ),
    View(
        "overview",
        "Comparisons, models and sets",
        "without the steps in between, such as embeddings",
        f"tags.`{DETAIL_TAG}` = 'false'",
        "attributes.start_time",
        (f"tags.`{KIND_TAG}`", ACCURACY, ROW, SEED, DATASETS),
    ),
)


def experiment_tags(experiment_id: str) -> dict[str, str]:
    """Return the tags of an experiment that hold its description and its views."""
    links = {view: f"[{view.name}]({link(experiment_id, view.key)})" for view in VIEWS}
    listed = "\n".join(f"- {links[view]}: {view.what}" for view in VIEWS)
    note = (
        f"Start with {links[VIEWS[0]]}.\n\n{listed}\n\nA comparison is one run, with its verdict, table and report; "
        "the runs of its models, Improvement-Sets and other steps are below it. The tag `clapcur.artifact` is an id "
        "for `clapcur trace ID`, which shows how it was made."
    )
    return {NOTE_TAG: note} | {f"{VIEW_TAG}{view.key}": _stored(view) for view in VIEWS}


def link(experiment_id: str, key: str) -> str:
    """Return the link to a view of an experiment, relative to MLflow's address.

    Parameters
    ----------
    experiment_id : str
    key : str
        Key of the view, such as ``models``.
    """
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}"


def address(home: Home) -> str | None:
    """Return MLflow's address for browsers; None without a server.

    `CLAPCUR_MLFLOW_PAGES` is that address, if it differs from ours.
    """
    pages = os.environ.get("CLAPCUR_MLFLOW_PAGES") or home.mlflow_uri
    return pages.rstrip("/") if pages.startswith("http") else None


def _stored(view: View) -> str:
    """Return a view in MLflow's format: an envelope with a name, and the state as JSON in a string."""
    state: dict[str, Any] = {
        "searchFilter": view.wanted, "orderByKey": view.order_by, "orderByAsc": False, "startTime": "ALL",
        "lifecycleFilter": "Active", "modelVersionFilter": "All Runs", "datasetsFilter": [],
        "selectedColumns": list(view.columns), "columnOrder": list(view.columns),
    }  # fmt: skip
    if view.group_by:
        by = {"mode": "tag", "groupByData": view.group_by}
        state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": [by]}
    return json.dumps({"name": view.name, "createdAt": 0, "state": json.dumps(state)})
