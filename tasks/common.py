"""What every task does around its one call: run the stage once, tell MLflow, try again what may pass."""

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
# kinds that are made again without a clip that was taken down
READS = ("ingest", "pool", "merge", "adopt", "tagger")
# stages that a dry run runs: they only read, and what a plan says depends on what they find
WAITS_S = (5, 30, 120)  # together longer than a database takes to restart
AWAY = (sa.exc.OperationalError, sa.exc.InterfaceError, ConnectionError)  # what it is when a server is not there


def may_pass(task: Task[..., Any], task_run: TaskRun, state: State) -> bool:
    """Return whether a task failed for a reason that may pass: a wrong input stays wrong, a full disk stays full."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, AWAY) and "disk" not in str(error)


def stage_task(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return the decorator of the functions that run one stage: tasks of the flow they are called in.

    Outside a flow they are plain functions, so that commands and flows share their steps. `name` is the name of the
    task run, with the arguments in braces.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        in_flow = task(
            cache_policy=NO_CACHE, task_run_name=name, retries=len(WAITS_S), retry_delay_seconds=list(WAITS_S),
            retry_condition_fn=may_pass,
        )(function)  # fmt: skip

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(*args, **kwargs) if FlowRunContext.get() is None else in_flow(*args, **kwargs)

        called.task = in_flow  # type: ignore[attr-defined]  # for those who want it with other options
        return called

    return decorate


def run_stage(
    what: Stage, config: Any, inputs: Mapping[str, Artifact], campaign: Campaign | None, tags: Mapping[str, Any],
    is_live: bool = False, spread: Spread = here,
) -> Artifact:  # fmt: skip
    """Run a stage in the home of this process and send its record to MLflow.

    In a dry run it is only asked for, unless all it does is to read.

    Parameters
    ----------
    what : Stage
    config : the stage's config
    inputs : mapping
        Artifacts by role.
    campaign : Campaign or None
        The experiment that the MLflow run belongs to.
    tags : mapping
        What the artifact is in this experiment: strategy, seed, role.
    is_live : bool
        Send the curves while the stage runs, not only afterwards.
    spread : callable
        Who makes the parts of a stage that need not be made in this process.

    Raises
    ------
    OutdatedError
        An Improvement-Set or a checkpoint holds, or would hold, a clip that was taken down.
    """
    home = Home.open()
    tags, key = {**tags, **flow_run_tags()}, what.key(config, inputs)
    if dry := dry_run.current():
        if what.name not in READS or not all(artifact.is_made for artifact in inputs.values()):
            return dry.ask(home.store, key, tags)

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
    """Return which flow run makes an artifact, where a server keeps its page."""
    run = flow_run.id
    if run is None or not PREFECT_API_URL.value():
        return {}
    return {"prefect.flow_run_id": run, "prefect.flow_run_url": str(url_for("flow-run", obj_id=run))}
