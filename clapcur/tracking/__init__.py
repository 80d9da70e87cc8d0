"""Lineage in MLflow: send the messages in the catalog's outbox.

MLflow is a view of the store and may be deleted: `sync` restores it. If MLflow is down, the pipeline still runs, and
messages wait in the outbox.
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
from clapcur.tracking.views import VIEWS, address, link

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

MLFLOW = "mlflow"  # name of the lease under which runs are searched for and created
REST_S = 60.0  # how long MLflow is left alone after a failure

_rests_until: dict[str, float] = {}
log = logging.getLogger("clapcur")
logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # it logs every start and end
for _name in ("mlflow.store.db.utils", "mlflow.pyfunc"):  # they log that tables are created, and examples checked
    logging.getLogger(_name).setLevel(logging.WARNING)


class Delivery(NamedTuple):
    """How many messages reached MLflow in this call, and how many still wait."""

    delivered: int
    waiting: int


def deliver(home: Home) -> Delivery:
    """Send the waiting messages to MLflow; if it does not respond, warn and keep them in the outbox."""
    catalog = Catalog.open(home)
    waiting = catalog.num_waiting()
    if not waiting or time.monotonic() < _rests_until.get(home.mlflow_uri, 0):
        return Delivery(0, waiting)
    return _deliver(home, catalog)


def sync(home: Home, rebuild: bool = False) -> Delivery:
    """Send all waiting messages to MLflow, including rejected ones, and those for artifacts missing from the catalog.

    If the home was moved, MLflow's URIs of files and models are updated. The status of runs is corrected if a killed or
    suspended process left it wrong: runs of artifacts with a record are FINISHED, and runs of artifacts that no process
    is making are KILLED.

    Parameters
    ----------
    home : Home
    rebuild : bool
        Whether to rebuild the catalog from the store and send everything again, for an MLflow that lost its database.
        Existing runs are completed, not duplicated.
    """
    catalog = Catalog.open(home)
    if rebuild:
        catalog.rebuild(home.store)
    else:
        catalog.catch_up(home.store)
    catalog.requeue(everything=rebuild)
    return _deliver(home, catalog, mends=True)


def answers(home: Home) -> bool:
    """Return whether MLflow responded to the last message sent to it."""
    return home.mlflow_uri not in _rests_until


def point_aliases(home: Home) -> None:
    """Set the aliases of all registered models in MLflow, in case it missed a change or was edited."""
    catalog = Catalog.open(home)

    def tell(page: MlflowPage) -> None:
        with catalog.lease(MLFLOW, "MLflow's turn"):
            page.tell_standings()

    _with_page(home, catalog, tell)


def result_pages(home: Home) -> dict[str, str]:
    """Return the URL of the models of every experiment, best first, by experiment; the newest experiment first.

    Empty if no MLflow server is configured, or if it does not respond.
    """
    if (pages := address(home)) is None:
        return {}
    found: dict[str, str] = {}

    def look(page: MlflowPage) -> None:
        found.update({name: f"{pages}/{link(number, VIEWS[0].key)}" for name, number in page.experiments().items()})

    _with_page(home, Catalog.open(home), look)
    return found


def run_page(home: Home, artifact_id: str) -> str | None:
    """Return the URL of the page of an artifact's run; None without an MLflow server or a run."""
    run, pages = Catalog.open(home).run_of(artifact_id), address(home)
    return f"{pages}/#/runs/{run}" if run and pages else None


def registered_version(home: Home, name: str, version: str) -> str:
    """Return the id of the checkpoint that is this version of a registered model in MLflow.

    Parameters
    ----------
    home : Home
    name : str
        Name of the model.
    version : str
        Number of the version.

    Raises
    ------
    ArtifactError
        MLflow does not have the version or is down, or another program registered it.
    """
    try:
        found = MlflowPage(home, Catalog.open(home)).client.get_model_version(name, version)
    except Exception as error:  # an error of MLflow, the network or a database: the id is unknown
        raise ArtifactError(f"MLflow at {home.mlflow_uri} has no {name}/{version}: {one_line(error)}") from error
    if ARTIFACT_TAG not in found.tags:
        raise ArtifactError(f"{name}/{version} was not registered by clapcur: it has no tag {ARTIFACT_TAG}")
    return str(found.tags[ARTIFACT_TAG])


def live(home: Home, key: Key, campaign: Campaign | None = None, tags: Mapping[str, Any] | None = None) -> Live:
    """Open the MLflow run of an artifact before it is made, to show its curves while it is made.

    The result is the ``on_step`` of `clapcur.store.runner.run`, and a context manager around it. The run is RUNNING
    inside the block, and FAILED or KILLED if an error ends the block. At the end of the block the last points are sent;
    later `deliver` completes the same run. A separate thread sends to MLflow, so that it never delays the training.
    System metrics (CPU, memory, disk, network, GPU) are measured from the first points on, every 10 s unless MLflow's
    own variable sets another interval.

    Parameters
    ----------
    home : Home
    key : Key
    campaign : Campaign, optional
        Campaign that the run belongs to.
    tags : mapping, optional
        As in `Record`.

    Returns
    -------
    Live
        Sends nothing if the artifact exists already.
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
        if points and run.info.status != "RUNNING":  # resumes after an earlier attempt ended
            run = page.set_status(run.info.run_id, key.id, "RUNNING")
            opened[0] = page, run
        if run.info.status == "FINISHED":  # another process has made the artifact, and sends its curves
            return
        page.add_points(run, points)
        if points and not measuring:
            measuring.append(SystemMetricsMonitor(run.info.run_id, resume_logging=True, tracking_uri=home.mlflow_uri))
            measuring[0].start()

    def close(status: str | None) -> None:
        for monitor in measuring:
            monitor.finish()
        for page, run in opened:  # a run that another process finished stays FINISHED
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
            with catalog.lease(MLFLOW, "MLflow's turn"):  # one message per lease, so that no process waits long
                for message in catalog.waiting(after=last)[:1]:
                    arrived = page.tell(message)
                    catalog.mark(message, arrived)
                    delivered += arrived
                    last = message.id
        if mends:
            with catalog.lease(MLFLOW, "MLflow's turn"):
                page.tell_standings()

    _with_page(home, catalog, tell)
    log.debug("sent %d records to MLflow at %s", delivered, home.mlflow_uri)
    return Delivery(delivered, catalog.num_waiting())


def _with_page(home: Home, catalog: Catalog, tell: Callable[[MlflowPage], None]) -> None:
    """Call `tell` with MLflow; if it does not respond, warn and leave it alone for `REST_S`."""
    try:
        tell(MlflowPage(home, catalog))
    except DamagedArtifact:  # our own store: which clips were taken down is unknown, so no alias may move
        raise
    except Exception as error:  # no error of MLflow may stop the pipeline
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
