"""Re-curation of every strategy that takes clips of a pool: what it reuses, and what it keeps."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from tiny_yamnet import write_tagger

from clapcur.config import signature
from clapcur.data import champions
from clapcur.data.decision import Decision
from clapcur.data.manifest import Manifest
from clapcur.data.rows import FROM_POOL, IMPROVEMENT_SETS, Row
from clapcur.data.tags import Tags
from clapcur.experiments.config import Experiment, LandingRules, experiment_from_file
from clapcur.flows.forget import forget, plan_take_down
from clapcur.flows.land import land
from clapcur.flows.plan import plan_recuration
from clapcur.flows.recurate import recurate
from clapcur.flows.steps import improvement_sets, ingest_all, teacher_of
from clapcur.lineage import pools
from clapcur.stages.ingest import IngestConfig
from clapcur.stages.tombstone import STAGE as BURY
from clapcur.stages.tombstone import Tombstone
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.store.runner import run
from clapcur.testing import write_tone, write_tones

pytestmark = pytest.mark.usefixtures("leaves_no_trace")  # of the log that a command writes
WRITTEN = ("tagcap", "tagcap-classes", "pl")
FIRST, MORE = range(6), range(6, 9)


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    """Send nothing to MLflow, which takes longer than everything else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clapcur.tasks.common.tracking.deliver", lambda home: None)
        patch.setattr("clapcur.tasks.common.tracking.live", lambda *arguments: nullcontext(lambda step, metrics: None))
        yield


@pytest.fixture
def config(tmp_path) -> Path:
    return write_config(tmp_path)


def write_config(folder: Path) -> Path:
    """Write an experiment with a tagger, whose pool is what landed as ``field``."""
    path = write_tones(folder)
    write_tagger(folder / "tagger")
    kept = [line for line in path.read_text().splitlines() if not line.strip().startswith(("rows:", "audio_thr"))]
    lines = [
        "audio_threshold: {similarity: -1}", "pool: pool:field", "rows: [teacher, tagcap, tagcap-classes, pl]",
        "on_landing: {min_new_clips: 3, max_wait_hours: 96, min_changed: 0, strategy: tagcap, soft_labels: false}",
        "captioning:", "  tagger: tagger/yamnet.safetensors", "  tags: {factor: 1.0, window_s: 1}",
        "  captions: {above_tag: no}",
    ]  # fmt: skip
    path.write_text("\n".join([*kept, *(" " * 8 + line for line in lines)]))
    return path


def drop(folder: Path, numbers: range) -> Artifact:
    """Land tones of these numbers, with those that are in the folder."""
    for number in numbers:
        write_tone(folder / f"{number}.wav", 250 + 350 * number, seed=50 + number, duration_s=1.2)
    return land.fn(IngestConfig(source=str(folder)), "field")


def sets_of(experiment: Experiment) -> dict[str, Artifact]:
    campaign = Campaign(experiment.name, "test", signature(experiment))
    manifests = ingest_all(experiment, campaign)
    teacher = teacher_of(experiment, 5, manifests, campaign)
    return improvement_sets(experiment, manifests, teacher, 5, campaign)


def test_every_set_of_pool_clips_can_be_made_on_landing():
    """A new strategy that landings do not know is curated once and then never again."""
    assert set(FROM_POOL) == set(IMPROVEMENT_SETS) - {"ds"}, "ds is chosen from the pairs"
    kinds = LandingRules.__dataclass_fields__["strategy"].type
    assert get_args(kinds) == FROM_POOL
    assert [LandingRules(strategy=name).row.strategy for name in FROM_POOL] == list(FROM_POOL)
    assert LandingRules().row == Row(strategy="ads", soft_labels=True), "an older experiment keeps its student"


def test_a_strategy_of_generated_captions_is_refused_where_nothing_generates_them(config):
    text = config.read_text()
    config.write_text(text[: text.index("        captioning:")].replace(", tagcap, tagcap-classes", ""))
    with pytest.raises(ValueError, match="on_landing: the strategy tagcap needs generated captions: give `captioning`"):
        experiment_from_file(config)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_generated_sets_of_a_grown_pool_are_those_of_one_landing(quiet, config, tmp_path, monkeypatch):
    """Thresholds of tags are relative to the whole pool: captions of known clips change when others land."""
    experiment, folder = experiment_from_file(config), tmp_path / "field"
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "grown"))
    home = Home.open()
    v1 = drop(folder, FIRST)
    first = sets_of(experiment)
    v2 = drop(folder, MORE)
    grown = sets_of(experiment)
    assert sets_of(experiment) == grown
    for name in WRITTEN:
        record = grown[name].record
        assert (record.inputs["parent"], record.inputs["parent_pool"]) == (first[name].id, v1.id)
        news = pools.news(home, v2, experiment.curate(name))
        assert news.curated == v2 and news.new_clips == 0
        changes = json.loads((grown[name].path / "card.json").read_text())["changes"]
        before, after = (set(keyed(one[name]).index) for one in (first, grown))
        assert (changes["added"], changes["removed"]) == (len(after - before), len(before - after))

    # only what is new was heard and embedded
    of_v2 = [one for one in home.store if v2.id in one.record.inputs.values()]
    heard = {one.record.stage: one.record.counts for one in of_v2 if one.record.stage in ("tag", "embed")}
    assert heard["tag"]["heard"] == heard["embed"]["embedded"] == len(MORE)
    assert heard["tag"]["clips"] == heard["embed"]["rows"] == len(FIRST) + len(MORE)
    for name in WRITTEN:
        known, now = (captions_of(home, one[name]) for one in (first, grown))
        embedded = home.store.find(grown[name].record.inputs["generated_embeddings"]).record.counts
        assert (embedded["rows"], embedded["embedded"]) == (len(now), len(now - known))

    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "at once"))
    drop(folder, MORE)
    anew = sets_of(experiment)
    for name in WRITTEN:
        assert "parent" not in anew[name].record.inputs
        pd.testing.assert_frame_equal(keyed(grown[name]), keyed(anew[name]), rtol=0, atol=1e-5)
    thresholds = [tags_of(home, one["tagcap"]).classes.threshold for one in (first, grown)]
    assert (thresholds[0] != thresholds[1]).any(), "or the pool as a whole had no influence"


def keyed(chosen: Artifact) -> pd.DataFrame:
    """Return the pairs of a set by clip and caption, without the rank, which rounding may exchange."""
    table = pd.read_parquet(chosen.path / "pairs.parquet").set_index(["clip_id", "caption_id"]).sort_index()
    return table.drop(columns="rank", errors="ignore")


def captions_of(home: Home, chosen: Artifact) -> set[str]:
    return set(Manifest.open(home.store.find(chosen.record.inputs["generated"])).captions.caption_id)


def tags_of(home: Home, chosen: Artifact) -> Tags:
    written = home.store.find(chosen.record.inputs["generated"])
    return Tags.open(home.store.find(written.record.inputs["tags"]))


# -- what is kept of an experiment without pairs, and what a dry run says


@pytest.fixture(scope="module")
def begun(quiet, tmp_path_factory) -> Path:
    """Make a home whose first landing was curated, for an experiment without pairs."""
    folder = tmp_path_factory.mktemp("begun")
    path = write_config(folder)
    path.write_text(path.read_text().replace("pairs: pairs.csv", "pairs: null"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLAPCUR_HOME", str(folder / "home"))
        drop(folder / "field", FIRST)
        assert recurate.fn(experiment_from_file(path)).kind == "decision"
        assert Home.open().login
    return folder


@pytest.fixture
def copied(begun, tmp_path, monkeypatch) -> Path:
    """Give a copy of that home, the sounds and the experiment file."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    return tmp_path / "tones.yaml"


def teachers(home: Home) -> list[str]:
    return [one.id for one in home.store.of_kind("checkpoint") if one.record.tags["row"] == "teacher"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_first_teacher_of_generated_captions_stays(quiet, copied, tmp_path):
    """Every landing trained another teacher, and its student was compared with a champion of another one."""
    experiment, home = experiment_from_file(copied), Home.open()
    (teacher,) = teachers(home)
    drop(tmp_path / "field", MORE)
    planned = {step.what: (step.new, step.reused) for step in plan_recuration(experiment).steps}
    assert planned["train teacher"] == (0, experiment.teacher.num_examples)
    assert planned["tag pool"] == planned["embed pool"] == (len(MORE), len(FIRST))
    decision = recurate.fn(experiment)
    assert decision.record.inputs["teacher"] == teacher and teachers(home) == [teacher]
    student = home.store.find(Decision.open(decision).challenger).record
    chosen = home.store.find(student.inputs["improvement_set"]).record
    assert chosen.inputs["pool"] == student.inputs["pool"] == pools.head(home, "field").id, "the student hears all"
    assert "parent" in chosen.inputs and chosen.inputs["teacher_pairs"] == student.inputs["teacher_pairs"]

    first = Manifest.open(pools.versions(home, "field")[0]).clips.clip_id
    forget.fn([first[0]], "asked")
    recurate.fn(experiment)
    assert len(teachers(home)) == 2, "tags are relative to the mean over all clips, so the first captions are gone"
    newest = champions.standing(home.store, experiment.name)["teacher"]
    assert newest.id == teachers(home)[1]
    learned = Manifest.open(home.store.find(newest.record.inputs["teacher_pairs"])).pairs.clip_id
    assert first[0] not in set(learned)

    tags = dataclasses.replace(experiment.captioning.tags, factor=0.9)
    other = dataclasses.replace(experiment, captioning=dataclasses.replace(experiment.captioning, tags=tags))
    steps = {step.what: step.new for step in plan_recuration(other).steps}
    assert steps["train teacher"] == experiment.teacher.num_examples, "other captions are another teacher's"


def content(home: Path) -> dict[str, str]:
    """Return the digest of every file of a home, except the log files that all commands write."""
    files = sorted(path for path in home.rglob("*") if path.is_file() and path.parent != home / "logs")
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_dry_run_of_a_recuration_says_what_is_missing_and_writes_nothing(copied, tmp_path, answer):
    home = Home.open()
    version = drop(tmp_path / "field", range(6, 8))
    before = content(home.root)
    code, out, err = answer("recurate", copied, "--dry-run", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert (said["due"], said["missing"]) == ("", "2 of 3 new clips; due in 4 d at the latest")
    assert (said["new_clips"], said["gone_clips"], said["version"]) == (2, 0, version.id)
    assert 0 <= said["hours_waited"] < 1
    steps = {step["what"]: (step["new"], step["reused"]) for step in said["steps"]}
    assert steps["embed pool"] == steps["tag pool"] == (2, 6) and steps["train tagcap"][0] > 0
    _, out, _ = answer("recurate", copied, "--dry-run")
    assert "Not due yet: 2 of 3 new clips; due in 4 d at the latest." in out
    _, out, _ = answer("recurate", copied, "--dry-run", "--force")
    assert "Due: it is forced." in out
    assert content(home.root) == before

    # where tables must be read that were never ingested
    text = copied.read_text()
    copied.write_text(text.replace("min_new_clips: 3", "min_new_clips: 2").replace("pairs: null", "pairs: pairs.csv"))
    code, out, err = answer("recurate", copied, "--dry-run", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["due"] == "2 new clips (threshold: 2)" and said["missing"] == ""
    assert {step["what"]: step["new"] for step in said["steps"]}["train teacher"] == 16
    assert content(home.root) == before

    # where a clip was taken down, and is in the pool still
    clip = Manifest.open(version).clips.clip_id[0]
    run(BURY, Tombstone(clip_id=clip, pcm_sha256=""), {}, home)
    copied.write_text(text)
    before = content(home.root)
    code, out, err = answer("recurate", copied, "--dry-run", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert (said["due"], said["gone_clips"], said["new_clips"]) == ("1 clips were taken down", 1, 2)
    steps = {step["what"]: (step["new"], step["reused"]) for step in said["steps"]}
    assert steps["tag pool"] == (2, 5) and steps["train teacher"][0] > 0
    assert content(home.root) == before and pools.head(home, "field") == version


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_dry_run_of_a_take_down_names_what_it_would_undo_and_writes_nothing(quiet, copied, tmp_path, answer):
    """What it says of aliases and artifacts is what the take-down then does."""
    experiment, home = experiment_from_file(copied), Home.open()
    version = pools.head(home, "field")
    clip = Manifest.open(version).clips.clip_id[0]
    (decision,) = home.store.of_kind("decision")
    standing = champions.standing(home.store, experiment.name)
    before = content(home.root)
    code, out, err = answer("forget", clip[:12], "--dry-run", "--config", copied, "--json")
    assert code == 0, err
    said = json.loads(out)
    (told,) = said["clips"]
    assert said["dry_run"] and told["clip_id"] == clip and said["pools"] == {"field": 1}
    assert said["experiments"] == [experiment.name]
    assert version.id in {entry["id"] for entry in told["manifests"]}
    made = {kind: {one.id for one in home.store.of_kind(kind)} for kind in ("improvement_set", "checkpoint")}
    outdated = {one["id"]: one for one in said["outdated"]}
    assert outdated.keys() == made["improvement_set"] | made["checkpoint"], "all learned from the pool"
    assert outdated[Decision.open(decision).challenger]["label"] == "train tagcap"
    assert all(clip[:12] in one["because"] for one in outdated.values())
    model = f"clapcur-{experiment.name}"
    expected = [{"alias": f"{model}@{name}", "checkpoint": one.id, "then": None} for name, one in standing.items()]
    assert said["aliases"] == expected and len(expected) == 3
    code, out, err = answer("forget", clip[:12], "--dry-run", "--config", copied)
    assert code == 0, err
    assert f"clip {clip} would be forgotten" in out and "Nothing was changed" in out
    assert f"{model}@champion" in out and "train tagcap" in out
    assert content(home.root) == before

    planned = plan_take_down([clip])
    assert planned.experiments == () and planned.pools == {"field": 1}
    forget.fn([clip], "asked")
    assert champions.standing(home.store, experiment.name) == {}
    again = plan_take_down([Manifest.open(version).clips.clip_id[1]])
    assert again.outdated == () and again.aliases == (), "all of it is outdated already"
    code, _, err = answer("forget", "0123456789abcdef", "--dry-run")
    assert code == 1 and "0123456789abcdef" in err
