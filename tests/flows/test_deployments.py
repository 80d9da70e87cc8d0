"""What is in deployments/prefect.yaml: every flow imports by its name, and its form explains itself."""

from pathlib import Path

import pytest
import yaml
from source_tree import ROOT

from clapcur import testing
from clapcur.errors import DataError, Interrupted
from clapcur.servers.local import POOLS, LocalServers

FILE = ROOT / "deployments" / "prefect.yaml"
ENTRIES = yaml.safe_load(FILE.read_text())["deployments"]
NAMES = [entry["name"] for entry in ENTRIES]


def load(entry):
    """Return the flow of an entry, as a worker loads it."""
    from prefect.flows import load_flow_from_entrypoint

    return load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)


def test_the_promised_deployments_are_there():
    promised = {
        "train-teacher", "embed-pool", "curate", "train-student", "evaluate", "improve", "compare", "land", "reconcile",
        "recurate", "forget", "post-train", "zste", "tag", "train-captioner", "caption",
    }  # fmt: skip
    assert promised <= set(NAMES)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_every_deployment_is_a_flow_of_its_name_with_a_form_that_explains_itself(entry):
    """A field without a description sends people from the form to the source."""
    from prefect.utilities.callables import parameter_schema

    flow = load(entry)
    assert flow.name == entry["name"]
    assert flow.description and flow.timeout_seconds
    assert not flow.retries  # an input that is wrong stays wrong
    schema = parameter_schema(flow)
    for name, field in schema.properties.items():
        assert len(field["description"]) > 20, name
        assert field["title"] != name
    elsewhere = ("clapcur.flows.deployed_pools.", "clapcur.flows.deployed_order.")
    assert entry["entrypoint"].startswith(elsewhere) or "config" in schema.required


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_every_deployment_runs_in_a_pool_that_exists(entry, tmp_path):
    """A run in a pool without a worker waits for ever, and nothing says so."""
    from clapcur.store.home import Home

    local = LocalServers(home=Home(tmp_path), prefect_port=1, mlflow_port=2, folder=tmp_path)
    name = entry["work_pool"]["name"].replace("{{ $CLAPCUR_MODEL_POOL }}", local.environment()["CLAPCUR_MODEL_POOL"])
    assert name in POOLS


def test_the_form_refuses_what_makes_no_sense():
    from clapcur.flows.deployed import improve

    with pytest.raises(Exception, match="seed"):
        improve.validate_parameters({"config": "a.yaml", "seed": -1})
    with pytest.raises(Exception, match="strategy"):
        improve.validate_parameters({"config": "a.yaml", "strategy": "best"})


def test_the_forms_offer_every_strategy_that_there_is():
    """Each had a list of its own: a comparison could not be asked for pseudo-labels."""
    from clapcur.data.rows import IMPROVEMENT_SETS
    from clapcur.flows import deployed

    for strategy in IMPROVEMENT_SETS:
        for flow in (deployed.improve, deployed.curate, deployed.train_student):
            flow.validate_parameters({"config": "a.yaml", "strategy": strategy})
        deployed.compare.validate_parameters({"config": "a.yaml", "strategies": [strategy, "sl"]})
    for soft in (None, False, True):
        asked = deployed.improve.validate_parameters({"config": "a.yaml", "soft_labels": soft})
        assert asked["soft_labels"] is soft


def test_relative_experiments_start_where_the_servers_were_started(monkeypatch, tmp_path):
    """A worker runs in a folder of its own, where no experiment lies."""
    from clapcur.flows.deployed import config_path

    monkeypatch.setenv("CLAPCUR_FOLDER", str(tmp_path))
    assert config_path("mine.yaml") == tmp_path / "mine.yaml"
    assert config_path("/else/where.yaml") == Path("/else/where.yaml")


@pytest.mark.parametrize(
    ("error", "cancelling", "state"),
    [
        (Interrupted("stopped at step 3"), True, "Cancelled"),
        (Interrupted("stopped at step 3"), False, "Crashed"),
        (DataError("no such file"), False, "Failed"),
    ],
)
def test_a_run_that_ends_early_says_why_in_one_line(monkeypatch, error, cancelling, state):
    """A cancelled training that calls itself failed starts a search for an error that is none."""
    from clapcur.flows import deployed

    @deployed.deployed("early", hours=1)
    def early(config: str):
        raise error

    monkeypatch.setattr(deployed, "is_cancelling", lambda: cancelling)
    ended = early.fn("a.yaml")
    assert (ended.name, ended.message) == (state, str(error))


# -- what is published


def test_the_card_of_an_improvement_set_is_a_page(home):
    """The card as the curation writes it, not as it once was."""
    from clapcur.data.improvement_set import CaptionCount, Changes
    from clapcur.tasks import pages
    from clapcur.testing import card, commit

    said = card(
        thresholds={"audio": 0.41}, counts={"pairs": 1200, "clips": 3}, exclusions={"held_out": 2},
        class_coverage={"dog bark": {"pairs": 1200, "clips": 3}},
        top_captions=[CaptionCount(caption="a dog | barks", pairs=7)],
        changes=Changes(
            parent="5eed5eed5eed", added=1100, removed=20, kept=100, clips_added=2, clips_removed=0,
            pairs_per_class={"dog bark": {"before": 120, "after": 1200}, "rain": {"before": 3, "after": 3}},
        ),
    )  # fmt: skip
    made = commit(home.store, "improvement_set", "ads", lambda work: said.write(work.path))
    page = pages.card_page(made, home)
    for line in ("| pairs | 1,200 |", "| audio | 0.4100 |", "| held out | 2 |", "| dog bark | 1,200 | 3 |"):
        assert line in page
    assert "| a dog \\| barks | 7 |" in page
    assert "`5eed5eed5eed`" in page and "| pairs | 1,100 | 20 | 100 |" in page
    assert "| dog bark | 120 | 1,200 |" in page and "rain" not in page


def test_a_link_leads_to_the_run_where_mlflow_has_a_page(home, monkeypatch):
    from clapcur.store.catalog import Catalog
    from clapcur.testing import commit
    from clapcur.tracking import run_page

    made = commit(home.store, "scores", "scores", lambda work: None)
    catalog = Catalog.open(home)
    catalog.rebuild(home.store)
    catalog.set_run(made.id, "5eed" * 8)
    assert run_page(home, made.id) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5001")
    assert run_page(home, made.id) == f"http://127.0.0.1:5001/#/runs/{'5eed' * 8}"


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (
            {"stage": "curate", "tags": {"strategy": "ads", "seed": 1}, "campaign": {"experiment": "My sounds"}},
            "my-sounds-curate-ads-seed-1",
        ),
        ({"stage": "report", "tags": {"role": "report"}, "campaign": None}, "report"),
        ({"stage": "train", "tags": {"row": "ads+sl", "seed": 0}}, "train-ads-sl-seed-0"),
    ],
)
def test_pages_have_names_that_prefect_takes(record, name):
    """Prefect refuses a key with anything but small letters, digits and dashes: the whole run would fail at its end."""
    from clapcur.tasks.pages import key

    assert key(testing.record(**record)) == name


def test_every_schedule_has_a_slug_of_ours():
    """Without one, the next registration could not tell it from a schedule that somebody added."""
    from clapcur.flows.register import OURS

    slugs = [schedule.get("slug", "") for entry in ENTRIES for schedule in entry.get("schedules", ())]
    assert len(slugs) >= 2
    assert all(slug.startswith(OURS) for slug in slugs)
