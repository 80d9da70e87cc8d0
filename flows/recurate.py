"""Re-curation: embed and score new clips, write the next Improvement-Set, train a student if enough pairs changed."""

import dataclasses
import logging
from collections.abc import Set

from prefect import flow

from clapcur.config import signature
from clapcur.data import champions
from clapcur.data.decision import Decision
from clapcur.data.forgotten import forgotten_names
from clapcur.data.improvement_set import Card
from clapcur.data.rows import Row
from clapcur.data.takedowns import why_tainted
from clapcur.errors import ArtifactError, DataError, OutdatedError
from clapcur.experiments import preflight
from clapcur.experiments.config import Experiment
from clapcur.flows.steps import improvement_sets, ingest_all, score, student, teacher_of
from clapcur.lineage import pools
from clapcur.stages.gate import GateConfig
from clapcur.stages.report import ReportConfig, ReportRow
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.gate import gate
from clapcur.tasks.pool import grow
from clapcur.tasks.report import report

log = logging.getLogger("clapcur")


MAX_TRIES = 3  # per call, if clips are taken down or champions change while it runs


@flow(name="recurate", flow_run_name="recurate-{experiment.name}")
def recurate(experiment: Experiment, force: bool = False) -> Artifact:
    """Update the student of an experiment after the named pool (``pool: pool:NAME``) has changed.

    A second call on the same pool repeats no work, so it does no harm if a landing is announced twice. If a clip is
    taken down meanwhile, the flow starts again without that clip. Without pairs, the teacher of generated captions is
    kept when the pool grows (`clapcur.flows.steps.kept_captions`).

    Parameters
    ----------
    experiment : Experiment
    force : bool
        Whether to curate without waiting for more clips, and to train even if few pairs changed.

    Returns
    -------
    Artifact
        The last artifact made: the version of the pool if it is too early to curate, the Improvement-Set if too few
        pairs changed to train, or the decision about the new student.

    Raises
    ------
    DataError
        The experiment has no evaluation set, its pool is not a named pool, or nothing has landed in it.
    """
    for _ in range(MAX_TRIES - 1):
        try:
            return bring_up_to_date(experiment, force)
        except OutdatedError as change:
            log.warning("%s starts again: %s", experiment.name, change)
    return bring_up_to_date(experiment, force)


def bring_up_to_date(experiment: Experiment, force: bool) -> Artifact:
    """Do the work of `recurate` once.

    Raises
    ------
    OutdatedError
        A clip was taken down, or the champion was replaced, while this ran.
    """
    home, rules = Home.open(), experiment.on_landing
    version = grow(pool_name(experiment))
    news = pools.news(home, version, experiment.curate(rules.strategy))
    outdated = champions.why_outdated(home.store, experiment.name)
    why = news.due(rules.min_new_clips, rules.max_wait_hours) or outdated
    if not (why or force or news.curated == version):
        log.info("%s: nothing to do yet; %d new clips in %.1f h", version.id, news.new_clips, news.hours)
        return version
    if why:
        log.info("curating %s: %s", version.id, why)
    seed, row = experiment.seeds[0], rules.row
    experiment = dataclasses.replace(experiment, rows=(Row(strategy="teacher"), row), seeds=(seed,))
    campaign = Campaign(
        experiment.name, f"recurate v{version.record.config['version']}", signature([experiment, version.id])
    )
    preflight.check_config(experiment)
    manifests = ingest_all(experiment, campaign, keep_pairs=True)
    teacher = teacher_of(experiment, seed, manifests, campaign)
    sets = improvement_sets(experiment, manifests, teacher, seed, campaign)
    chosen = sets[rules.strategy]
    share = share_changed(home, chosen, judged_sets(home, experiment.name)) if chosen.is_made else None
    if share is not None and share < rules.min_changed and not (force or outdated):
        log.info(
            "%.1f %% of the pairs changed, below the %.1f %% that triggers training",
            100 * share,
            100 * rules.min_changed,
        )
        return chosen
    challenger = student(experiment, row, seed, manifests, teacher, sets, campaign)
    champion = champions.standing(home.store, experiment.name).get("champion", teacher)
    if decided := champions.decision_that_holds(home.store, experiment.name, champion, challenger):
        return decided
    scores = {
        role: score(experiment, of_row, seed, manifests, checkpoint, campaign)
        for role, of_row, checkpoint in (
            ("teacher", Row(strategy="teacher"), teacher), ("champion", row, champion), ("challenger", row, challenger)
        )
    }  # fmt: skip
    decision = gate(
        GateConfig(dataset=experiment.name, min_change=rules.min_change),
        {
            "teacher": teacher, "champion": champion, "challenger": challenger,
            "champion_scores": scores["champion"], "challenger_scores": scores["challenger"],
        },
        campaign,
    )  # fmt: skip
    rows = (
        ReportRow(strategy="teacher", seed=seed, scores="scores.teacher"),
        ReportRow(strategy=row.strategy, soft_labels=row.soft_labels, seed=seed, scores="scores.challenger"),
    )
    of_report = {"scores.teacher": scores["teacher"], "scores.challenger": scores["challenger"]}
    report(
        ReportConfig(title=f"{experiment.name}, {campaign.name}", rows=rows, note=experiment.note), of_report, campaign
    )
    if decision.is_made:
        log.info(Decision.open(decision).why)
    return decision


def pool_name(experiment: Experiment) -> str:
    """Return the name of an experiment's pool.

    Raises
    ------
    DataError
        The pool is a path or missing, or there is no evaluation set to choose a champion with.
    """
    if experiment.evaluation is None:
        raise DataError(
            f"{experiment.name} has no evaluation set, but a champion is chosen by its accuracy: label a sample with "
            "`clapcur label POOL --classes classes.txt`, and add `evaluation` to the config"
        )
    name = experiment.pool.landed_in if experiment.pool else None
    if name is None:
        source = experiment.pool.source if experiment.pool else "none"
        raise DataError(
            f"{experiment.name} has the pool {source}, but re-curation needs a named pool: set `pool: pool:NAME` in "
            "the "
            "config and create the pool with `clapcur land FOLDER --pool NAME`"
        )
    return name


def judged_sets(home: Home, dataset: str) -> frozenset[str]:
    """Return the ids of the Improvement-Sets whose students were judged, except students with a forgotten clip."""
    names, found = forgotten_names(home.store), set()
    for _, decision in champions.decisions(home.store, dataset):
        try:
            challenger = home.store.find(decision.challenger)
        except ArtifactError:  # collected or damaged, so changes since then are unknown
            continue
        chosen = challenger.record.inputs.get("improvement_set")
        if chosen and not why_tainted(home.store, challenger, names):
            found.add(chosen)
    return frozenset(found)


def share_changed(home: Home, improvement_set: Artifact, judged: Set[str]) -> float | None:
    """Return which fraction of its pairs an Improvement-Set gained or lost since the last set with a judged student.

    Changes accumulate over sets that were too similar to train a student on.

    Parameters
    ----------
    home : Home
    improvement_set : Artifact
    judged : set of str
        Ids of the Improvement-Sets whose students were judged; see `judged_sets`.

    Returns
    -------
    float or None
        Pairs added and removed, divided by the number of pairs before the last change. 1 if no earlier set was judged,
        None if this set was judged itself.
    """
    if improvement_set.id in judged:
        return None
    changed, size = 0, 0
    while improvement_set.id not in judged:
        changes = Card.open(improvement_set).changes
        if changes is None:
            return 1.0
        changed += changes.added + changes.removed
        size = size or changes.kept + changes.removed
        try:
            improvement_set = home.store.find(changes.parent)
        except ArtifactError:  # removed by `clapcur gc`
            return 1.0
    return changed / max(1, size)
