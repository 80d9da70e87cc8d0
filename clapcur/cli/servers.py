"""The command that runs Prefect, MLflow and workers on this machine."""

import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from clapcur.cli.console import HomeOption, columns_table, open_home, show

NUM_PAGES = 5  # of the newest experiments
log = logging.getLogger("clapcur")


def up(
    prefect_port: Annotated[int | None, typer.Option(help="Port of Prefect; default: 4200, or a free one.")] = None,
    mlflow_port: Annotated[int | None, typer.Option(help="Port of MLflow; default: 5000, or a free one.")] = None,
    database_url: Annotated[
        str | None,
        typer.Option(
            envvar="CLAPCUR_DATABASE_URL",
            help="postgresql://... URL of the catalog; MLflow and Prefect get their own databases on the same server. "
            "Default: SQLite files in the home.",
        ),
    ] = None,
    artifact_root: Annotated[
        str | None, typer.Option(help="Where MLflow stores files, such as s3://bucket/mlflow; default: in the home.")
    ] = None,
    gpu: Annotated[
        bool | None,
        typer.Option(
            "--gpu/--no-gpu", help="Start a GPU worker, for one run at a time; default: if this machine has a GPU."
        ),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Start Prefect, MLflow and a worker on this machine.

    Registers the deployments, so that you can start flows in Prefect and see their runs in MLflow. The servers listen
    on this machine only; crashed processes are restarted, and Ctrl-C stops everything. Other commands on this home use
    the servers while they run.
    """
    from clapcur.servers import local as servers
    from clapcur.servers.supervisor import ProcessError
    from clapcur.tracking import result_pages

    where = open_home(home)
    local = servers.LocalServers(
        home=where,
        prefect_port=servers.choose_port(prefect_port, servers.PREFECT_PORT, "--prefect-port"),
        mlflow_port=servers.choose_port(mlflow_port, servers.MLFLOW_PORT, "--mlflow-port"),
        folder=Path.cwd(),
        has_gpu=servers.has_gpu() if gpu is None else gpu,
        database_url=None if (database_url or "").startswith("sqlite") else database_url,
        artifact_root=artifact_root,
    )
    listen_for_the_end()
    log.info("starting; logs are in %s", where.root / "logs")
    try:
        with servers.running(local) as processes:
            show(columns_table(("", "address"), [("Prefect", local.prefect), ("MLflow", local.mlflow)]))
            user, _, password = where.login.partition(":")
            show(f"Log in to MLflow as {user} with {password}, to Prefect with {where.login}")
            for name, page in list(result_pages(where).items())[:NUM_PAGES]:
                show(f"Models of {name}, best first: {page}")
            show("Stop both with Ctrl-C.")
            sys.stdout.flush()
            processes.supervise(log.warning)
    except ProcessError as error:
        print(*error.last_lines, sep="\n", file=sys.stderr, flush=True)
        raise
    except KeyboardInterrupt:
        log.info("stopped")


def listen_for_the_end() -> None:
    """Stop the servers when this process receives a signal that would end it.

    SIGINT is handled even if it is ignored, as in the background of a script; otherwise the servers would outlive the
    script's Ctrl-C. SIGHUP stays ignored if it is ignored, as under `nohup`.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
