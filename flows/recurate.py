"""New audio landed: embed and score what is new, write the next Improvement-Set, train a student if it is worth it."""

import dataclasses
import json
import logging

from prefect import flow

from clapcur import champions, pools, preflight
from clapcur.artifacts import Artifact
from clapcur.catalog import Campaign
from clapcur.config import signature
from clapcur.errors import DataError
from clapcur.gate import GateConfig
from clapcur.home import Home
from clapcur.recipes import Experiment, Row
from clapcur.report import ReportConfig, ReportRow
from clapcur.trace import impact
from flows.compare import improvement_sets, ingest_all, score, student, teacher_of
from tasks.gate import gate
from tasks.report import report

log = logging.getLogger("clapcur")


@flow(name="recurate", flow_run_name="recurate-{experiment.name}")
def recurate(experiment: Experiment, force: bool = False) -> Artifact:
    """Bring the student of an experiment up to date with the pool that it names (``pool: pool:NAME``).

    The same call on the same pool does nothing twice, so that a landing which is announced twice, or again after it was
    lost, does no harm.

    Parameters
    ----------
    experiment : Experiment
    force : bool
        Do not wait for more clips, and train whatever changed.

    Returns
    -------
    Artifact
        What was made last: the version of the pool, where it is too early to curate; the Improvement-Set, where too
        little changed to train; or the decision about the new student.
    """
    home, rules = Home.open(), experiment.on_landing
    version = pools.head(home, pool_name(experiment))
    news = pools.news(home, version, experiment.curate(rules.strategy))
    why = news.due(rules.min_new_clips, rules.max_wait_hours)
    if not (why or force or news.curated == version):
        log.info("%s: nothing to do yet, %d new clips since %.1f h", version.id, news.new_clips, news.hours)
        return version
    if why:
        log.info("%s is curated: %s", version.id, why)
    seed, row = experiment.seeds[0], rules.row
    experiment = dataclasses.replace(experiment, rows=(Row(strategy="teacher"), row), seeds=(seed,))
    campaign = Campaign(
        experiment.name, f"recurate v{version.record['config']['version']}", signature([experiment, version.id])
    )
    preflight.check_config(experiment)
    manifests = ingest_all(experiment, campaign)
    teacher = teacher_of(experiment, seed, manifests, campaign)
    sets = improvement_sets(experiment, manifests, teacher, seed, campaign)
    champion = champions.standing(home.store, experiment.name).get("champion", teacher)
    withdrawn = why_withdrawn(home, champion)
    share = share_changed(sets[rules.strategy])
    if share < rules.min_changed and not withdrawn and not force:
        log.info("%.1f %% of the pairs changed, %.1f %% are worth a student", 100 * share, 100 * rules.min_changed)
        return sets[rules.strategy]
    challenger = student(experiment, row, seed, manifests, teacher, sets, campaign)
    if decided := champions.decision_about(home.store, experiment.name, challenger):
        return decided
    scores = {
        role: score(experiment, of_row, seed, manifests, checkpoint, campaign)
        for role, of_row, checkpoint in (
            ("teacher", Row(strategy="teacher"), teacher), ("champion", row, champion), ("challenger", row, challenger)
        )
    }  # fmt: skip
    decision = gate(
        GateConfig(dataset=experiment.name, min_change=rules.min_change, withdrawn=withdrawn),
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
    log.info(json.loads((decision.path / "decision.json").read_text())["why"])
    return decision


def pool_name(experiment: Experiment) -> str:
    """Return the name of the pool that an experiment draws from; DataError where it names a place instead."""
    name = experiment.pool.landed_in if experiment.pool else None
    if name is None:
        source = experiment.pool.source if experiment.pool else "none"
        raise DataError(
            f"{experiment.name} has the pool {source}: audio can land in a pool that has a name; write "
            "`pool: pool:NAME` into the config and begin it with `clapcur land FOLDER --pool NAME`"
        )
    return name


def share_changed(improvement_set: Artifact) -> float:
    """Return which share of its pairs an Improvement-Set gained and lost against its parent; 1 where it has none."""
    changes = json.loads((improvement_set.path / "card.json").read_text()).get("changes")
    if changes is None:
        return 1.0
    return float(changes["added"] + changes["removed"]) / max(1, changes["kept"] + changes["removed"])


def why_withdrawn(home: Home, champion: Artifact) -> str:
    """Return why the champion may not stay: a clip that was taken down after it was made touched it."""
    made = champion.record["finished"]
    for stone in home.store.of_kind("tombstone"):
        if stone.record["finished"] > made:
            clip = stone.record["config"]["clip_id"]
            if champion.id in {entry["id"] for entry in impact(home, clip)["checkpoints"]}:
                return f"it was trained on the clip {clip[:12]}, which was taken down"
    return ""
