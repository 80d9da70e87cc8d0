"""The models to use of a dataset, derived from decisions and reports in the store, so that no pointer can be lost.

Where a gate decides, the champion is the model to use. Without decisions it is the student that won the newest
comparison, under the alias ``recommended``; if no student beat the teacher, nothing is registered.

A checkpoint whose lineage contains a clip that was taken down (`clapcur.data.takedowns`) gets no alias, whatever was
decided before or after the take-down. MLflow shows the same aliases on a registered model (`clapcur.tracking`).
"""

import logging
from collections.abc import Iterable, Set
from contextlib import AbstractContextManager

from clapcur.config import signature
from clapcur.data.decision import Decision
from clapcur.data.forgotten import forgotten_names
from clapcur.data.report_table import ReportTable
from clapcur.data.takedowns import why_tainted
from clapcur.errors import ArtifactError
from clapcur.store.artifacts import Artifact, Store
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home
from clapcur.store.leases import Lease

ALIASES = ("teacher", "champion", "challenger")  # set by decisions
RECOMMENDED = "recommended"  # set by comparisons

log = logging.getLogger("clapcur")


def turn(home: Home, dataset: str) -> AbstractContextManager[Lease]:
    """Hold the lease for decisions about a dataset: two at once would both compare with the same champion."""
    return Catalog.open(home).lease(f"champion:{signature(dataset)[:40]}", f"the decision about {dataset}")


def datasets(store: Store) -> list[str]:
    """Return the datasets for which there is a decision or a report, sorted."""
    decided = {artifact.record.config["dataset"] for artifact in store.of_kind("decision")}
    compared = {artifact.record.experiment for artifact in store.of_kind("report")}
    return sorted((decided | compared) - {""})


def newest_comparison(store: Store, dataset: str) -> tuple[Artifact, ReportTable] | None:
    """Return the newest report about a dataset that has a verdict, with its table; None if there is none."""
    for artifact in reversed(list(store.of_kind("report"))):
        if artifact.record.experiment != dataset:
            continue
        try:
            table = ReportTable.open(artifact)
        except ArtifactError as error:
            log.warning("skipping a damaged report: %s", error)
            continue
        if table.verdict is not None:
            return artifact, table
    return None


def decisions(store: Store, dataset: str) -> list[tuple[Artifact, Decision]]:
    """Return the decisions about a dataset, oldest first."""
    return [
        (artifact, Decision.open(artifact))
        for artifact in store.of_kind("decision")
        if artifact.record.config["dataset"] == dataset
    ]


def decision_that_holds(store: Store, dataset: str, champion: Artifact, challenger: Artifact) -> Artifact | None:
    """Return the decision that settles the question: this challenger is champion, or did not beat this champion.

    Parameters
    ----------
    store : Store
    dataset : str
    champion, challenger : Artifact
        Checkpoints.

    Returns
    -------
    Artifact or None
        The newest such decision; None if there is none.
    """
    for artifact, decision in reversed(decisions(store, dataset)):
        if decision.challenger == challenger.id and (
            challenger == champion or (decision.champion == champion.id and not decision.promoted)
        ):
            return artifact
    return None


def standing(store: Store, dataset: str, names: Set[str] | None = None) -> dict[str, Artifact]:
    """Return the checkpoints by alias: ``teacher``, ``champion`` and ``challenger``, or ``recommended``.

    The champion is the last promoted student, or the teacher until one was promoted; the challenger is the newest
    student. A checkpoint that is lost, or whose lineage contains a forgotten clip, is skipped: the previously promoted
    one takes its place, then the teacher. An alias without a clean checkpoint is left out. Before the first decision
    there is only ``recommended``, and only if a student beat the teacher in the newest comparison.

    Parameters
    ----------
    store : Store
    dataset : str
    names : set of str, optional
        What is forgotten (`clapcur.data.forgotten`); by default everything that has a tombstone now.
    """
    names = forgotten_names(store) if names is None else names
    made = list(reversed(decisions(store, dataset)))
    if not made:
        return _recommended(store, dataset, names)
    promoted = [decision.challenger for _, decision in made if decision.promoted]
    before = [decision.champion for _, decision in made]
    teachers = [artifact.record.inputs["teacher"] for artifact, _ in made]
    wanted = {
        "teacher": teachers,
        "champion": promoted + before[-1:] + teachers if promoted else before + teachers,
        "challenger": [decision.challenger for _, decision in made],
    }
    known: dict[str, Artifact | None] = {}
    found = {alias: _first_clean(store, candidates, names, known) for alias, candidates in wanted.items()}
    return {alias: artifact for alias, artifact in found.items() if artifact is not None}


def _recommended(store: Store, dataset: str, names: Set[str]) -> dict[str, Artifact]:
    compared = newest_comparison(store, dataset)
    verdict = compared[1].verdict if compared else None
    if verdict is None or not verdict.is_better:
        return {}
    chosen = _first_clean(store, [verdict.checkpoint], names, {})
    return {} if chosen is None else {RECOMMENDED: chosen}


def why_outdated(store: Store, dataset: str) -> str:
    """Return why the newest decision is void: a forgotten clip is in a checkpoint's lineage. Empty if it holds."""
    if not (made := decisions(store, dataset)) or not (names := forgotten_names(store)):
        return ""
    newest = made[-1][1]
    reasons = (_why_not(store, checkpoint, names) for checkpoint in (newest.champion, newest.challenger))
    return next(filter(None, reasons), "")


def _first_clean(
    store: Store, candidates: Iterable[str], names: Set[str], known: dict[str, Artifact | None]
) -> Artifact | None:
    for name in candidates:
        if name not in known:
            why = _why_not(store, name, names)
            known[name] = None if why else store.find(name)
        if (found := known[name]) is not None:
            return found
    return None


def _why_not(store: Store, checkpoint: str, names: Set[str]) -> str:
    try:
        return why_tainted(store, store.find(checkpoint), names)
    except ArtifactError as error:
        log.warning("cannot set an alias for the checkpoint %s of a decision: %s", checkpoint, error)
        return str(error)
