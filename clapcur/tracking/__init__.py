"""Lineage for people: what the catalog's outbox holds, shown in MLflow.

MLflow is a picture of the store and may be thrown away: `sync` draws it again. MLflow being down
never stops a run of the pipeline; what could not be said waits in the outbox.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from clapcur.errors import ArtifactError, DamagedArtifact
from clapcur.store.artifacts import Key
from clapcur.store.catalog import Campaign, Catalog
from clapcur.store.home import Home
from clapcur.store.record import RECORD, Record
from clapcur.tracking.curves import Live, Point
from clapcur.tracking.fields import ARTIFACT_TAG
from clapcur.tracking.runs import MlflowPage, one_line

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

MLFLOW = "mlflow"  # the lease under which runs are looked for and made
REST_S = 60.0  # after a failure MLflow is left alone for so long

_rests_until: dict[str, float] = {}
log = logging.getLogger("clapcur")
logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # says when it begins and ends


class Delivery(NamedTuple):
    """How many messages reached MLflow just now, and how many still wait."""

    delivered: int
    waiting: int


def deliver(home: Home) -> Delivery:
    """Tell MLflow what it does not know yet; where it does not answer, warn and let it wait."""
    catalog = Catalog.open(home)
    waiting = catalog.num_waiting()
    if not waiting or time.monotonic() < _rests_until.get(home.mlflow_uri, 0):
        return Delivery(0, waiting)
    return _deliver(home, catalog)


def sync(home: Home, rebuild: bool = False) -> Delivery:
    """Tell MLflow everything that waits, what was given up and what the catalog never knew too.

    Where the home was moved, what MLflow knows of files and models leads to where they are now. Runs whose status a
    killed or sleeping process left wrong are mended: what has a record is FINISHED, what has none and is made by nobody
    is KILLED.

    Parameters
    ----------
    home : Home
    rebuild : bool
        Make the catalog again from the store and tell everything anew, for an MLflow that lost
        its database. Known runs are completed, not doubled.
    """
    catalog = Catalog.open(home)
    if rebuild:
        catalog.rebuild(home.store)
    else:
        catalog.catch_up(home.store)
    catalog.requeue(everything=rebuild)
    return _deliver(home, catalog, mends=True)


def answers(home: Home) -> bool:
    """Return whether MLflow answered when it was last told something."""
    return home.mlflow_uri not in _rests_until


def point_aliases(home: Home) -> None:
    """Point the aliases of all registered models at what has them now, for an MLflow that missed it or was edited."""
    catalog = Catalog.open(home)

    def tell(page: MlflowPage) -> None:
        with catalog.lease(MLFLOW, "MLflow's turn"):
            page.tell_standings()

    _with_page(home, catalog, tell)


def registered_version(home: Home, name: str, version: str) -> str:
    """Return the id of the checkpoint that MLflow has under this version of a registered model.

    Parameters
    ----------
    home : Home
    name : str
        Of the model.
    version : str
        Its number.

    Raises
    ------
    ArtifactError
        MLflow does not know it or is down, or another program registered it.
    """
    try:
        found = MlflowPage(home, Catalog.open(home)).client.get_model_version(name, version)
    except Exception as error:  # of MLflow, of the network under it, of a database: all mean that it cannot be told
        raise ArtifactError(f"MLflow at {home.mlflow_uri} has no {name}/{version}: {one_line(error)}") from error
    if ARTIFACT_TAG not in found.tags:
        raise ArtifactError(f"{name}/{version} was not registered by clapcur: it has no tag {ARTIFACT_TAG}")
    return str(found.tags[ARTIFACT_TAG])


def live(home: Home, key: Key, campaign: Campaign | None = None, tags: Mapping[str, Any] | None = None) -> Live:
    """Open the run of an artifact that is about to be made, so that its curves are seen now.

    The result is the ``on_step`` of `clapcur.store.runner.run` and a context manager around it: the run
    is RUNNING inside, FAILED or KILLED where the block is left by an error; at its end the last
    points are sent, before `deliver` completes the same run. MLflow is met in a thread of its own
    and never holds up the training. What the machine does meanwhile (CPU, memory, disk, network,
    GPU) is measured from the first points on, every 10 s unless MLflow's own variable says otherwise.

    Parameters
    ----------
    home : Home
    key : Key
    campaign : Campaign, optional
        The experiment that asks.
    tags : mapping, optional
        As in `Record`.

    Returns
    -------
    Live
        One that tells nothing where the artifact is there already.
    """
    if (home.store.folder(key.kind, key.id) / RECORD).exists():
        return Live(lambda points: None, lambda status: None)
    record = Record.planned(
        key, started=time.time(), tags=dict(tags or {}), campaign=asdict(campaign) if campaign else None
    )
    opened: list[tuple[MlflowPage, Run]] = []
    measuring: list[SystemMetricsMonitor] = []

    def send(points: list[Point]) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if not opened:
            catalog = Catalog.open(home)
            page = MlflowPage(home, catalog)
            with catalog.lease(MLFLOW, "MLflow's turn"):
                run = page.open_run(record)
            page.describe(run, record)
            opened.append((page, run))
        page, run = opened[0]
        if points and run.info.status != "RUNNING":  # resumes where an earlier try ended
            run = page.set_status(run.info.run_id, key.id, "RUNNING")
            opened[0] = page, run
        if run.info.status == "FINISHED":  # another process has made it, and tells its curves
            return
        page.add_points(run, points)
        if points and not measuring:
            measuring.append(SystemMetricsMonitor(run.info.run_id, resume_logging=True, tracking_uri=home.mlflow_uri))
            measuring[0].start()

    def close(status: str | None) -> None:
        for monitor in measuring:
            monitor.finish()
        for page, run in opened:  # what another process finished stays so, however ours ended
            page.set_status(run.info.run_id, key.id, status)

    return Live(send, close)


def _deliver(home: Home, catalog: Catalog, mends: bool = False) -> Delivery:
    delivered = 0

    def tell(page: MlflowPage) -> None:
        nonlocal delivered
        if mends:
            page.mend_statuses()
        last = 0
        while catalog.waiting(after=last):
            with catalog.lease(MLFLOW, "MLflow's turn"):  # one message a turn: nobody waits long
                for message in catalog.waiting(after=last)[:1]:
                    arrived = page.tell(message)
                    catalog.mark(message, arrived)
                    delivered += arrived
                    last = message.id
        if mends:
            with catalog.lease(MLFLOW, "MLflow's turn"):
                page.tell_standings()

    _with_page(home, catalog, tell)
    return Delivery(delivered, catalog.num_waiting())


def _with_page(home: Home, catalog: Catalog, tell: Callable[[MlflowPage], None]) -> None:
    """Say something to MLflow; where it does not answer, warn and leave it alone for a while."""
    try:
        tell(MlflowPage(home, catalog))
    except DamagedArtifact:  # of our own store: nobody knows what was taken down, and no alias may move
        raise
    except Exception as error:  # whatever MLflow does, the run of the pipeline continues
        first_time = home.mlflow_uri not in _rests_until
        _rests_until[home.mlflow_uri] = time.monotonic() + REST_S
        log.log(
            logging.WARNING if first_time else logging.DEBUG,
            "MLflow at %s does not respond: %s. Nothing is lost; send pending records with `clapcur sync`",
            home.mlflow_uri,
            one_line(error),
        )
    else:
        _rests_until.pop(home.mlflow_uri, None)
