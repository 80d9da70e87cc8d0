"""What every task does around its one call: run the stage once, report to MLflow, retry temporary errors."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.utilities.urls import url_for

from clapcur import tracking
from clapcur.data.takedowns import check_clean
from clapcur.store import dry_run, runner
from clapcur.store.artifacts import Artifact, Spread, Stage, here
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home

P = ParamSpec("P")
R = TypeVar("R")
SHAPED_BY_CLIPS = ("improvement_set", "compositions", "checkpoint", "captioner")
# kinds that are rebuilt without a clip that was taken down
READS = ("ingest", "pool", "merge", "adopt", "tagger")
# stages that run even in a dry run, without a trace: they only read, and the plan depends on what they find
WAITS_S = (5, 30, 120)  # together longer than a database takes to restart
AWAY = (sa.exc.OperationalError, sa.exc.InterfaceError, ConnectionError)  # errors of a server that is down


def may_pass(task: Task[..., Any], task_run: TaskRun, state: State) -> bool:
    """Return whether a task failed for a temporary reason: a wrong input stays wrong, and a full disk stays full.

    Parameters
    ----------
    task : Task
        The task that failed.
    task_run : TaskRun
        Its run.
    state : State
        Final state of the run, with the error as its result.
    """
    error = state.result(raise_on_failure=False)
    return isinstance(error, AWAY) and "disk" not in str(error)


def stage_task(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return the decorator of a function that runs one stage: a task inside a flow, a plain function outside.

    So commands and flows share their steps. In a dry run it is always a plain function. `name` is the name of the task
    run, with arguments in braces.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        in_flow = task(
            cache_policy=NO_CACHE, task_run_name=name, retries=len(WAITS_S), retry_delay_seconds=list(WAITS_S),
            retry_condition_fn=may_pass,
        )(function)  # fmt: skip

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            is_plain = FlowRunContext.get() is None or dry_run.current() is not None
            return function(*args, **kwargs) if is_plain else in_flow(*args, **kwargs)

        called.task = in_flow  # type: ignore[attr-defined]  # for callers that need other options
        return called

    return decorate


def run_stage(
    what: Stage, config: Any, inputs: Mapping[str, Artifact], campaign: Campaign | None, tags: Mapping[str, Any],
    is_live: bool = False, spread: Spread = here,
) -> Artifact:  # fmt: skip
    """Run a stage in the home of this process, and send its record to MLflow.

    In a dry run, a stage is only added to the plan, unless it only reads and its inputs exist: what it reads then lasts
    until the end of the dry run.

    Parameters
    ----------
    what : Stage
    config : object
        Config of the stage.
    inputs : mapping
        Artifacts by role.
    campaign : Campaign or None
        Campaign that the MLflow run belongs to.
    tags : mapping
        Place of the artifact in this experiment: strategy, seed, role.
    is_live : bool
        Whether to send the curves while the stage runs, not only afterwards.
    spread : callable
        Runs the parts of a stage that may be computed outside this process; see `clapcur.tasks.fan_out`.

    Raises
    ------
    OutdatedError
        An Improvement-Set, compositions or a checkpoint have, or would have, a clip that was taken down.
    """
    home = Home.open()
    tags, key = {**tags, **flow_run_tags()}, what.key(config, inputs)
    if dry := dry_run.current():
        if what.name not in READS or not all(artifact.is_made for artifact in inputs.values()):
            return dry.ask(home.store, key, tags)
        return dry.read(home.store, what, config, inputs, tags)

    def check(is_written: bool) -> None:
        if what.kind in SHAPED_BY_CLIPS:
            check_clean(home.store, key, is_written)

    if is_live:
        with tracking.live(home, key, campaign, tags) as on_step:
            artifact = runner.run(
                what, config, inputs, home, campaign=campaign, tags=tags, on_step=on_step, check=check
            )
    else:
        artifact = runner.run(what, config, inputs, home, campaign=campaign, tags=tags, spread=spread, check=check)
    tracking.deliver(home)
    return artifact


def flow_run_tags() -> dict[str, str]:
    """Return tags with the id and page of the current flow run; empty without a flow run or a configured server."""
    run = flow_run.id
    if run is None or not PREFECT_API_URL.value():
        return {}
    return {"prefect.flow_run_id": run, "prefect.flow_run_url": str(url_for("flow-run", obj_id=run))}
