"""Reconcile pools with their students: check regularly what has landed, in case events were lost."""

import logging
from collections.abc import Sequence
from pathlib import Path

from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from clapcur import tracking
from clapcur.config import signature
from clapcur.data import champions
from clapcur.experiments.config import Experiment, experiment_from_file
from clapcur.flows.recurate import pool_name
from clapcur.lineage import pools
from clapcur.store.home import Home
from clapcur.tasks.pool import grow

RECURATE = "recurate/recurate"
MAX_TRIES = 3  # per version; after that, reconcile waits for the next landing or for a manual run

log = logging.getLogger("clapcur")


@flow(name="reconcile", flow_run_name="reconcile")
def reconcile(configs: Sequence[str]) -> list[str]:
    """Start `recurate` for every experiment whose pool has changed enough, and return the ids of these flow runs.

    The event of a landing starts this flow, and so does a schedule. Both lead to the same run, because its idempotency
    key names the experiment and the version. A run that failed or crashed is tried again under the next key. This flow
    also completes an interrupted take-down: it removes the clip from the pool and moves MLflow's aliases away from
    models that were trained on it; if the last decision was about such a student, a new decision is made.
    """
    home, started = Home.open(), []
    tracking.point_aliases(home)
    for config in configs:
        experiment = experiment_from_file(config)
        if key := next_key(home, experiment):
            parameters = {"config": str(Path(config).absolute())}
            run = run_deployment(RECURATE, parameters=parameters, timeout=0, as_subflow=False, idempotency_key=key)
            assert isinstance(run, FlowRun)  # it is a coroutine only in async flows
            log.info("%s: %s, flow run %s", experiment.name, key, run.name)
            started.append(str(run.id))
    return started


def next_key(home: Home, experiment: Experiment) -> str | None:
    """Return the idempotency key of the run that an experiment needs now; None if it needs none."""
    name, rules = pool_name(experiment), experiment.on_landing
    if not pools.versions(home, name):
        return None
    version = grow(name)
    outdated = champions.why_outdated(home.store, experiment.name)
    since = f"{version.id}:{signature(sorted(pools.forgotten(home)))[:12]}" if outdated else version.id
    keys = [f"{'forgotten' if outdated else 'landing'}:{experiment.name}:{since}:{n}" for n in range(MAX_TRIES)]
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=keys))
        states = [run.state for run in client.read_flow_runs(flow_run_filter=wanted)]
    if not all(state is not None and (state.is_failed() or state.is_crashed()) for state in states):
        return None  # in progress, or done
    news = pools.news(home, version, experiment.curate(rules.strategy))
    if not (states or outdated or news.due(rules.min_new_clips, rules.max_wait_hours)):
        return None
    if len(states) == MAX_TRIES:
        log.warning("%s: %d runs failed for %s; start one manually", experiment.name, MAX_TRIES, version.id)
        return None
    return keys[len(states)]
