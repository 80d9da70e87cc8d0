"""The story of one landing, through real servers: improve, land, re-curate, trace, forget; then they are killed.

Here on PostgreSQL; tests/servers/test_up.py tells the story on embedded files, with the servers that it has.
"""

import shutil

import pytest
from killing import ended, kill_part, one_landing_after_another
from postgres import restart, running_postgres
from running_servers import client_of, running, start, wait_until

from clapcur.testing import write_tones

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """Start the command on PostgreSQL, once for both tests; gives process, home, folder, options and the database.

    An experiment without a pool is where it was started, ``plain.yaml``.
    """
    from clapcur.store.home import Home

    folder = tmp_path_factory.mktemp("stack")
    home = Home.open(folder / "home")
    shutil.copy(write_tones(folder), folder / "plain.yaml")
    with running_postgres() as database:
        options = ("--database-url", f"postgresql://clapcur@/clapcur?host={database}")
        with running(folder, home, *options) as up:
            yield up, home, folder, options, database


def test_one_landing_after_another_on_postgresql(stack):

    _, home, folder, _, _ = stack
    with client_of(home) as prefect:
        ended(prefect, start(prefect, "improve", config="plain.yaml", strategy="ds", seed=5))
    one_landing_after_another(home, folder)


def test_what_is_killed_in_the_middle_of_a_run_loses_nothing(stack):
    """Worker, MLflow, Prefect and PostgreSQL die one by one and come back by themselves; then all die at once.

    What was finished is never made again. The run of the worker dies with it: nobody is left to say so, and Prefect
    alone would show it as running for ever.
    """
    from clapcur.store.catalog import Catalog
    from clapcur.tracking import sync

    up, home, folder, options, database = stack
    kept = made(home)

    def train(prefect, seed):
        return start(prefect, "train-student", config="plain.yaml", strategy="ds", seed=seed)

    def begin(prefect, seed):
        """Start a run and wait until it has made something, which from then on is kept."""
        before = made(home)
        run_id = train(prefect, seed)
        wait_until(lambda: len(made(home)) > len(before), 120, "the first artifact of the run")
        kept.update(made(home))
        return run_id

    def finish(prefect, seed, run_id):
        """Wait for the run; one that the death of its server took with it is started again, as people do."""
        wait_until(lambda: answers(lambda: prefect.read_flow_run(run_id).state.is_final()), 180, "the end of the run")
        if not prefect.read_flow_run(run_id).state.is_completed():
            ended(prefect, train(prefect, seed))

    with client_of(home) as prefect:
        orphan = begin(prefect, 1)
        kill_part(up, home, "worker cpu")
        for seed, kill in (
            (2, lambda: kill_part(up, home, "mlflow server")),
            (3, lambda: kill_part(up, home, "prefect server")),
            (4, lambda: restart(database)),
        ):
            run_id = begin(prefect, seed)
            kill()
            finish(prefect, seed, run_id)
        wait_until(lambda: prefect.read_flow_run(orphan).state.is_final(), 180, "the orphan's end")
        assert prefect.read_flow_run(orphan).state.is_crashed()
        assert "no sign of life" in prefect.read_flow_run(orphan).state.message
        begin(prefect, 6)
    up.kill()
    up.wait(30)
    restart(database)
    with running(folder, home, *options):
        with client_of(home) as prefect:
            for seed in (1, 6):
                ended(prefect, train(prefect, seed))
        assert kept.items() <= made(home).items(), "something was made twice"
        assert sync(home).waiting == 0
        assert set(Catalog.open(home).kinds(made(home))) == set(made(home))
        assert all(Catalog.open(home).run_of(name) for name in made(home))


def made(home):
    """Return when each artifact was finished."""
    return {one.id: one.record.finished for one in home.store}


def answers(question):
    """Return the answer, or None while the server that could give it is away."""
    import httpx

    try:
        return question()
    except httpx.HTTPError:
        return None
