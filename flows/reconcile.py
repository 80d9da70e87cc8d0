"""The truth about landings: looks again and again at what has landed, whatever events were lost."""

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
MAX_TRIES = 3  # of one version; then it waits for the next landing, or for a person

log = logging.getLogger("clapcur")


@flow(name="reconcile", flow_run_name="reconcile")
def reconcile(configs: Sequence[str]) -> list[str]:
    """Start `recurate` for every experiment whose pool has news worth it, and return the ids of these flow runs.

    The event of a landing starts this flow, and so does a schedule: both come to the same run, for its idempotency key
    names the experiment and the version. A run that failed or crashed is tried again under the next key. A take-down
    that was cut off is finished here: the clip leaves the pool, no alias in MLflow points to what holds it, and where
    the last decision was about such a student, the next one is made.
    """
    home, started = Home.open(), []
    tracking.point_aliases(home)
    for config in configs:
        experiment = experiment_from_file(config)
        if key := next_key(home, experiment):
            parameters = {"config": str(Path(config).absolute())}
            run = run_deployment(RECURATE, parameters=parameters, timeout=0, as_subflow=False, idempotency_key=key)
            assert isinstance(run, FlowRun)  # a coroutine in async flows only
            log.info("%s: %s, flow run %s", experiment.name, key, run.name)
            started.append(str(run.id))
    return started


def next_key(home: Home, experiment: Experiment) -> str | None:
    """Return the idempotency key of the run that an experiment needs now, or None where it needs none."""
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
        return None  # under way, or done
    news = pools.news(home, version, experiment.curate(rules.strategy))
    if not (states or outdated or news.due(rules.min_new_clips, rules.max_wait_hours)):
        return None
    if len(states) == MAX_TRIES:
        log.warning("%s: %d runs failed for %s; start one manually", experiment.name, MAX_TRIES, version.id)
        return None
    return keys[len(states)]
