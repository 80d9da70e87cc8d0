"""Run a stage at most once: reuse the artifact of its key, or take the lease, compute, commit and index it.

An existing result is reused without importing anything heavy. A missing one is computed by one process, while other
processes that need it wait and reuse it. Payload, record and catalog are written in this order, so that a crash loses
no finished work: the next run finds the result, or resumes from the parts that were marked done.
"""

import functools
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from clapcur import __version__
from clapcur.errors import ArtifactError, Interrupted, LeaseLostError
from clapcur.progress import task
from clapcur.store.artifacts import Artifact, Key, Spread, Stage, check_payload, here, why_not_written
from clapcur.store.catalog import Campaign, Catalog, payload_of
from clapcur.store.home import Home
from clapcur.store.leases import Lease
from clapcur.store.readable import run_name, summary
from clapcur.store.record import Record

LIBRARIES = (
    "faiss-gpu", "mlflow", "numpy", "pandas", "prefect", "pyarrow", "torch", "torchaudio",
    "transformers",
)  # fmt: skip

OnStep = Callable[[int, Mapping[str, float]], None]
log = logging.getLogger("clapcur")


def run(
    stage: Stage,
    config: Any,
    inputs: Mapping[str, Artifact],
    home: Home,
    *,
    campaign: Campaign | None = None,
    tags: Mapping[str, str | int | float | bool] | None = None,
    on_step: OnStep | None = None,
    spread: Spread = here,
    verify: bool = False,
    check: Callable[[bool], None] = lambda is_written: None,
) -> Artifact:
    """Return the artifact of this stage, config and inputs; compute it if it does not exist.

    Parameters
    ----------
    stage : Stage
    config : frozen config
        Machine fields do not change what is returned.
    inputs : mapping of str to Artifact
        By role.
    home : Home
    campaign : Campaign, optional
        The experiment that requests the artifact, for MLflow. Not part of the artifact's identity.
    tags : mapping, optional
        Facts about the role of the result (strategy, seed), stored in its record. Not part of the artifact's identity:
        an existing result keeps its tags.
    on_step : callable, optional
        Called with the step and the metrics of a training.
    spread : callable
        Distributes the parts of a stage; the default, `clapcur.store.artifacts.here`, processes all of them here.
    verify : bool
        Re-hash the payload of an existing result.
    check : callable
        Called with False before anything is computed, and with True when the payload is written but not yet committed;
        an exception ends the work without an artifact. For an existing result it is called with True.

    Raises
    ------
    ArtifactError
        The disk is full or read-only; running again resumes the work.
    DamagedArtifact
        An input has changed since it was written; this is found before anything is computed with it.
    """
    key = stage.key(config, inputs)
    log.debug("%s: looking for the %s %s, made from %s", stage.name, key.kind, key.id, dict(key.inputs))
    catalog = Catalog.open(home)
    artifact = _reuse(key, home, catalog, campaign, verify, discard=False)
    said = {"tags": dict(tags or {}), "campaign": asdict(campaign) if campaign else None}
    check(artifact is not None)
    while artifact is None:
        with catalog.lease(key.id, f"{key.kind} {key.id}") as lease:
            artifact = _reuse(key, home, catalog, campaign, verify)
            if artifact is None:
                try:
                    artifact = _make(stage, config, inputs, home, lease, said, on_step, spread, check)
                except LeaseLostError:  # the next iteration waits for the other process and reuses its result
                    log.info("another process took over %s while this one was suspended", lease.what)
                    continue
                record = artifact.record
                catalog.index(record, payload_of(record))
                log.info(summary(record))
    return artifact


def _reuse(
    key: Key, home: Home, catalog: Catalog, campaign: Campaign | None, verify: bool, discard: bool = True
) -> Artifact | None:
    artifact = home.store.get(key, verify, discard)
    if artifact is None:
        return None
    record = artifact.record
    if not catalog.knows(key.id, record.finished):  # a process crashed between record and catalog
        catalog.index(record, payload_of(record))
    if campaign and (record.campaign or {}).get("key") != campaign.key:
        catalog.note(key.id, f"used by {campaign.key}", {"campaign": asdict(campaign)})
    log.info(summary(record, reused=True))
    return artifact


def _make(
    stage: Stage,
    config: Any,
    inputs: Mapping[str, Artifact],
    home: Home,
    lease: Lease,
    said: Mapping[str, Any],
    on_step: OnStep | None,
    spread: Spread,
    check: Callable[[bool], None],
) -> Artifact:
    started = time.time()
    key = stage.key(config, inputs)
    for artifact in inputs.values():
        check_payload(artifact.path)
    log.debug("%s: computing the %s %s, version %s", stage.name, key.kind, key.id, key.version)
    try:
        work = home.store.open(key)
        work.environment.update(environment())
        work.spread = spread
        work.on_step = _while_held(lease, on_step)
        with task(run_name(Record.planned(key, tags=said["tags"]))):
            outcome = stage.compute(inputs, config, work)
        lease.check()
        check(True)
        return home.store.commit(work, outcome, started, **said)
    except Interrupted:
        raise
    except Exception as error:  # a full disk causes many kinds of error; all other errors are re-raised unchanged
        _check(lease, error)
        folder = home.store.folder(key.kind, key.id)
        why = next((reason for cause in _causes(error) if (reason := why_not_written(cause, home.root))), None)
        if why is None:
            raise
        raise ArtifactError(
            f"{why}: cannot write {folder}; finished work is kept: fix this and run the same command again to resume"
        ) from error


def _while_held(lease: Lease, on_step: OnStep | None) -> OnStep:
    """Return a step callback that ends a training at the first step after another process took over."""

    def checked(step: int, metrics: Mapping[str, float]) -> None:
        lease.check()
        if on_step is not None:
            on_step(step, metrics)

    return checked


def _check(lease: Lease, error: Exception) -> None:
    """Raise LeaseLostError if another process took over: that it moved the files away explains the error."""
    try:
        lease.renew()
    except DBAPIError:  # without the database, no other process can have taken over
        return
    try:
        lease.check()
    except LeaseLostError as lost:
        raise lost from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@functools.cache
def environment() -> dict[str, Any]:
    """Return what a result may depend on besides its key: versions, platform, commit."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    here = {"python": platform.python_version(), "platform": platform.platform()}
    commit = _commit(Path(__file__).resolve().parents[2])
    return here | ({"git": commit} if commit else {}) | {"versions": {"clapcur": __version__} | found}


def _commit(checkout: Path) -> str | None:
    """Return the commit of a checkout, with ``-dirty`` if files differ from it."""
    if not (checkout / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        said = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None
