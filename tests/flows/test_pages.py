"""What a flow run shows in Prefect of the artifacts that it made."""

import chain
import pytest
from prefect import flow, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.testing.utilities import prefect_test_harness
from running_servers import free_port

from clapcur.tasks.pages import show

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def prefect():
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def decision(home):
    """Give a decision about two checkpoints."""
    pairs = {"teacher_pairs": chain.manifest(home, "pairs", pairs=[("dog-1", "a dog barks")])}
    teacher, student = (chain.checkpoint(home, pairs, row, ["teacher_pairs"]) for row in ("teacher", "ads"))
    return chain.decision(home, teacher, teacher, student, promoted=True)


def test_a_decision_is_shown_in_words_once_per_flow_run(decision):
    """A result that its stage and the end of its flow both show would stand there twice."""

    @flow
    def decide():
        assert show(show(decision)) == decision

    decide()
    decide()
    with get_client(sync_client=True) as client:
        pages = [page for page in client.read_artifacts() if page.key == "esc50-evaluate-gate"]
    assert len(pages) == 2 and len({page.flow_run_id for page in pages}) == 2
    assert {page.description for page in pages} == {"Promoted: 3 points better"}
    assert "# Promoted" in pages[0].data and "+3.0 [+1.0, +5.0] points on 400 clips of 40 recordings" in pages[0].data
    assert "no server" in pages[0].data, "no MLflow server is known, so no URL is made up"


def test_a_page_that_prefect_does_not_take_fails_no_run(decision, caplog, monkeypatch):
    """A training of a week must not fail because of a page about it."""
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "5eed5eed-5eed-5eed-5eed-5eed5eed5eed")
    gone = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: gone, PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert show(decision) == decision
    assert f"decision {decision.id} has no page in Prefect" in caplog.text


def test_outside_of_a_flow_nothing_is_asked_of_prefect(decision):
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        assert show(decision) == decision
