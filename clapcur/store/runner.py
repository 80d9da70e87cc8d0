"""One stage, once: key, then a checked hit, or else lease, compute, commit, index.

A result that exists is reused without importing anything heavy. One that does not is made by one
process, whoever else wants it waits and reuses. The order payload, record, catalog means that a
crash at any point loses nothing that was finished: the next run finds it, or resumes from the
parts that were marked done.
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
from clapcur.store.artifacts import Artifact, Key, Spread, Stage, check_payload, here, why_not_written
from clapcur.store.catalog import Campaign, Catalog, payload_of
from clapcur.store.home import Home
from clapcur.store.leases import Lease
from clapcur.store.readable import summary

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
    """Return what this stage makes of this config and these inputs, made now or before.

    Parameters
    ----------
    stage : Stage
    config : frozen config
        Machine fields do not change what is returned.
    inputs : mapping of str to Artifact
        By role.
    home : Home
    campaign : Campaign, optional
        The experiment that asks, for MLflow. Not part of the artifact's identity.
    tags : mapping, optional
        Facts about the role of the result (strategy, seed), kept in its record. Not part of the
        artifact's identity: a result that exists keeps the tags it was made with.
    on_step : callable, optional
        Is told step and metrics of a training.
    spread : callable
        Hands out the parts of a stage that may be made elsewhere; `clapcur.store.artifacts.here` hands out none.
    verify : bool
        Re-hash the payload of a result that exists.
    check : callable
        Called before anything is computed, with False, and with True when the payload is written and about to count;
        what it raises ends the work, and no artifact is made. A result that exists is checked with True.

    Raises
    ------
    ArtifactError
        The disk is full or read-only; running again continues.
    DamagedArtifact
        An input is not what was written; found before anything is computed with it.
    """
    key = stage.key(config, inputs)
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
                except LeaseLostError:  # the next turn waits for the other process, and takes what it made
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
    if not catalog.knows(key.id, record.finished):  # a crash came between record and catalog
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
    try:
        work = home.store.open(key)
        work.environment.update(environment())
        work.spread = spread
        work.on_step = _while_held(lease, on_step)
        outcome = stage.compute(inputs, config, work)
        lease.check()
        check(True)
        return home.store.commit(work, outcome, started, **said)
    except Interrupted:
        raise
    except Exception as error:  # a full disk comes dressed as many errors; all others continue as they are
        _check(lease, error)
        folder = home.store.folder(key.kind, key.id)
        why = next((reason for cause in _causes(error) if (reason := why_not_written(cause, home.root))), None)
        if why is None:
            raise
        raise ArtifactError(
            f"{why}: cannot write {folder}; finished work is kept: fix this and run the same command again to resume"
        ) from error


def _while_held(lease: Lease, on_step: OnStep | None) -> OnStep:
    """Return what a training tells its steps to: it ends at the first one after somebody else took over."""

    def checked(step: int, metrics: Mapping[str, float]) -> None:
        lease.check()
        if on_step is not None:
            on_step(step, metrics)

    return checked


def _check(lease: Lease, error: Exception) -> None:
    """Raise LeaseLostError where the error comes of another process that took over, and moved our files away."""
    try:
        lease.renew()
    except DBAPIError:  # then nobody can have taken over either
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
    """Return what the result may depend on beside its key: versions, platform, commit."""
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
    """Return the commit of a checkout, with ``-dirty`` where files differ from it."""
    if not (checkout / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        said = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None
