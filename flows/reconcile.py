"""The truth about landings: looks again and again at what has landed, whatever events were lost."""

import logging
from collections.abc import Sequence
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from clapcur import pools
from clapcur.home import Home
from clapcur.recipes import experiment_from_file
from flows.recurate import pool_name

RECURATE = "recurate/recurate"
MAX_TRIES = 3  # of one version; then it waits for the next landing, or for a person

log = logging.getLogger("clapcur")


@flow(name="reconcile", flow_run_name="reconcile")
def reconcile(configs: Sequence[str]) -> list[str]:
    """Start `recurate` for every experiment whose pool has news worth it, and return the ids of these flow runs.

    The event of a landing starts this flow, and so does a schedule: both come to the same run, for its idempotency key
    names the experiment and the version. A run that failed or crashed is tried again under another key.
    """
    home, started = Home.open(), []
    for config in configs:
        experiment = experiment_from_file(config)
        name = pool_name(experiment)
        if not pools.versions(home, name):
            log.info("%s: nothing has landed in %s", experiment.name, name)
            continue
        version = pools.head(home, name)
        rules = experiment.on_landing
        why = pools.news(home, version, experiment.curate(rules.strategy)).due(
            rules.min_new_clips, rules.max_wait_hours
        )
        if not why:
            log.info("%s: nothing to do at %s", experiment.name, version.id)
            continue
        for attempt in range(MAX_TRIES):
            key = f"landing:{experiment.name}:{version.id}" + (f":{attempt}" if attempt else "")
            parameters = {"config": str(Path(config).absolute())}
            run = run_deployment(RECURATE, parameters=parameters, timeout=0, as_subflow=False, idempotency_key=key)
            assert isinstance(run, FlowRun)  # a coroutine in async flows only
            if run.state is None or not (run.state.is_failed() or run.state.is_crashed()):
                log.info("%s: %s, flow run %s", experiment.name, why, run.name)
                started.append(str(run.id))
                break
    return started
