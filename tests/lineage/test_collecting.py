"""Collecting what no kept model needs: what stays, what goes, and a removal that may be cut off anywhere."""

import json
import os
import shutil
import time

import chain
import pytest
from chain import clip
from hypothesis import given, settings
from hypothesis import strategies as st

from clapcur import testing
from clapcur.cli.collecting import _size
from clapcur.data import champions
from clapcur.lineage import collection, pools
from clapcur.lineage.collection import choose, collect, plan
from clapcur.lineage.queries import trace
from clapcur.stages.pool import STAGE as GROW
from clapcur.stages.tombstone import STAGE as BURY
from clapcur.stages.tombstone import Tombstone
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home
from clapcur.store.record import RECORD
from clapcur.store.runner import run
from clapcur.testing import clips_table, embeddings, manifest


def record(kind, finished=1.0, inputs=None, stage="", **config):
    stages = {"embeddings": "embed", "improvement_set": "curate", "decision": "gate"}
    stage = stage or stages.get(kind, kind)
    return testing.record(kind, stage=stage, finished=finished, inputs=inputs or {}, config=config)


# -- the choice


STORE = {
    "pairs": record("manifest"),
    "stray": record("manifest"),
    "teacher": record("checkpoint", 2, {"teacher_pairs": "pairs"}),
    "rows": record("embeddings", 3, {"checkpoint": "teacher", "manifest": "pairs"}),
    "set": record("improvement_set", 4, {"pool_embeddings": "rows"}),
    "old set": record("improvement_set", 4, {"pool_embeddings": "rows"}),
    "student": record("checkpoint", 5, {"init": "teacher", "improvement_set": "set"}),
    "loser": record("checkpoint", 5, {"init": "teacher", "improvement_set": "old set"}),
    "student scores": record("scores", 6, {"checkpoint": "student"}),
    "loser scores": record("scores", 6, {"checkpoint": "loser"}),
    "old report": record("report", 7, {"scores.a": "loser scores"}),
    "report": record("report", 8, {"scores.a": "student scores"}),
    "stone": record("tombstone", 9, clip_id="x"),
}
LOSERS = {"loser", "loser scores", "old set"}


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({}, {"stray"}),
        ({"reports": 2}, {"stray"}),
        ({"reports": 1}, LOSERS | {"stray"}),
        ({"reports": 1, "named": ["loser"]}, {"stray", "loser scores"}),
        ({"reports": 0, "standing": {"m@champion": "student"}}, LOSERS | {"stray", "student scores"}),
        ({"reports": 0, "standing": {"m@champion": "teacher"}}, set(STORE) - {
            "pairs", "teacher", "old report", "report", "stone"}),
        ({"reports": 0, "since": 5.5}, {"stray"}),
    ],
)  # fmt: skip
def test_what_nothing_kept_was_made_from_goes(options, gone):
    standing = options.pop("standing", {})
    choice = choose(STORE, standing, **options)
    assert set(choice.remove) == gone
    assert set(choice.keep) == set(STORE) - gone


def test_every_choice_has_its_reason():
    choice = choose(STORE, {"clapcur-x@champion": "student"}, named=["rows"], reports=0)
    assert choice.keep["student"] == "clapcur-x@champion"
    assert choice.keep["set"] == "improvement set of the checkpoint student"
    assert choice.keep["rows"] == "named with --keep"
    assert choice.keep["stone"] == "a tombstone is kept"
    assert choice.remove["stray"] == "no kept artifact was made from it"


@st.composite
def stores(draw):
    kinds = ["manifest", "checkpoint", "embeddings", "improvement_set", "scores", "report"]
    made = {}
    for number in range(draw(st.integers(1, 12))):
        below = draw(st.lists(st.sampled_from(sorted(made)), max_size=3)) if made else []
        roles = ["pool", "previous", "parent"]
        inputs = dict(zip(roles, below, strict=False))
        made[f"{number:02d}"] = record(draw(st.sampled_from(kinds)), float(number), inputs)
    return made


@settings(max_examples=60, deadline=None)
@given(stores(), st.data())
def test_nothing_that_stays_misses_an_input_but_of_reports_and_by_wish(records, data):
    """A model whose teacher was removed could not be traced, and would be made again from nothing."""
    named = data.draw(st.sets(st.sampled_from(sorted(records))))
    reports = data.draw(st.none() | st.integers(0, 2))
    choice = choose(records, {}, named=named, reports=reports)
    assert choice.keep.keys() | choice.remove.keys() == records.keys()
    assert not choice.keep.keys() & choice.remove.keys() and named <= choice.keep.keys()
    for name in choice.keep:
        if records[name].kind != "report" or choice.keep[name] != "a report is kept":
            assert set(records[name].inputs.values()) <= choice.keep.keys()


POOL = {
    "v1": record("manifest", 1, stage="pool", name="field", version=1),
    "v2": record("manifest", 2, {"parent": "v1"}, stage="pool", name="field", version=2),
    "city": record("manifest", 3, stage="pool", name="city", version=1),
    "e1": record("embeddings", 4, {"manifest": "v1"}, what="audio"),
    "e2": record("embeddings", 5, {"manifest": "v2", "previous": "e1"}, what="audio"),
    "s1": record("improvement_set", 6, {"pool": "v1", "pool_embeddings": "e1"}, strategy="ads"),
    "s1du": record("improvement_set", 6, {"pool": "v1", "pool_embeddings": "e1"}, strategy="du"),
    "s2": record("improvement_set", 7, {"pool": "v2", "pool_embeddings": "e2", "parent": "s1"}, strategy="ads"),
    "student": record("checkpoint", 8, {"improvement_set": "s2"}),
    "other": record("embeddings", 9, {"manifest": "elsewhere"}, what="audio"),
}


def test_a_pool_stays_with_what_its_next_version_begins_from():
    """Ten new clips would cost the embedding of the whole pool, and the pool would look as if never curated."""
    choice = choose(POOL, {})
    assert set(choice.remove) == {"student", "other"}
    assert choice.keep["v2"] == "newest version of the pool field"
    assert choice.keep["city"] == "newest version of the pool city"
    assert choice.keep["s2"] == "the pool field continues from it" == choice.keep["s1du"]


def test_what_holds_a_forgotten_clip_stays_only_where_a_kept_model_was_made_from_it():
    """An earlier set that only saved work would keep the clip for ever: each set names the one before."""
    champion = {"m@champion": "student"}
    holding = ["e1", "s1", "s1du"]
    choice = choose(POOL, champion, holding=holding)
    assert set(choice.remove) == {*holding, "other"}
    assert choice.remove["s1"] == "holds a clip that was taken down, and no kept model was made from it"
    assert set(choose(POOL, champion, holding=[*holding, "s2", "e2"]).remove) == {*holding, "other"}
    assert set(choose(POOL, {}, holding=["s2"]).remove) == {"s2", "s1", "student", "other"}
    assert "s1" in choose(POOL, champion, named=["s1"], holding=holding).keep
    assert "s1du" in choose(POOL, champion, since=5.5, holding=holding).keep  # too young


def test_only_the_newest_decision_keeps_what_was_judged():
    """A challenger of every week would stay for ever."""
    judged = {
        "a": record("checkpoint"), "b": record("checkpoint"), "c": record("checkpoint"),
        "first": record("decision", 2, {"champion": "a", "challenger": "b"}, dataset="x"),
        "second": record("decision", 3, {"champion": "a", "challenger": "c"}, dataset="x"),
    }  # fmt: skip
    choice = choose(judged, {})
    assert set(choice.remove) == {"b"}
    assert choice.keep["second"] == "newest decision about x" and choice.keep["first"] == "a decision is kept"


# -- the removal


@pytest.fixture
def made(home):
    """Make an experiment of which the student is champion; what else there is belongs to the scores."""
    made = chain.experiment(home)
    chain.decision(home, made["teacher"], made["teacher"], made["student"], promoted=True)
    return made


def ids(items):
    return {item.id for item in items}


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_plan_touches_nothing_and_a_collection_removes_exactly_that(home, made):
    before = tree(home.store.root)
    chosen = plan(home, grace_hours=0)
    assert tree(home.store.root) == before
    scores = {made["teacher_scores"].id, made["student_scores"].id}
    assert scores <= ids(chosen.removed) and {item.kind for item in chosen.removed} == {"scores", "embeddings"}
    assert all(
        item.bytes == sum(path.stat().st_size for path in item.folder.rglob("*") if path.is_file())
        for item in chosen.removed
    )
    catalog = Catalog.open(home)
    there = set(catalog.kinds(ids(chosen.kept) | ids(chosen.removed)))
    assert ids(collect(home, chosen)) == ids(chosen.removed)
    assert {artifact.id for artifact in home.store} == ids(chosen.kept)
    assert set(catalog.kinds(there)) == ids(chosen.kept)
    assert not [edge for edge in catalog.downstream(made["student"].id) if edge.artifact_id in ids(chosen.removed)]
    assert {message.artifact_id for message in catalog.waiting()} == ids(chosen.kept)
    assert not any(item.folder.exists() for item in chosen.removed) and not list(home.store.root.glob("*/.*"))
    assert champions.standing(home.store, "esc50")["champion"] == made["student"]
    assert "lost" not in json.dumps(trace(home, made["student"].id))
    assert plan(home, grace_hours=0).removed == []


def test_what_was_removed_is_made_again_when_it_is_wanted(home, made):
    collect(home, plan(home, grace_hours=0))
    again = chain.scores(home, made["student"], made["evaluation"], "ads+sl", 0.75)
    assert again == made["student_scores"]
    assert Catalog.open(home).kinds([again.id]) == {again.id: "scores"}


def test_nothing_young_is_touched(home, made):
    """A flow has just made the embeddings that its next task reads."""
    work = home.store.root / "checkpoint" / ("0" * 12)
    work.mkdir()
    (work / "model.safetensors").write_bytes(b"half")
    assert (plan(home).removed, plan(home).making) == ([], 1)
    os.utime(work / "model.safetensors", (1, 1))
    os.utime(work, (time.time() - 3600 * 30,) * 2)
    (item,) = plan(home).removed
    assert plan(home).making == 0
    assert (item.id, item.kind, item.bytes) == ("0" * 12, "checkpoint", 4)
    assert item.why == "unfinished, untouched for 30 h"
    assert plan(home, grace_hours=31).removed == []
    assert ids(collect(home, plan(home))) == {"0" * 12} and not work.exists()


def test_a_training_that_writes_deep_inside_its_folder_is_not_old(home):
    """The folder's own time does not move when a file below it is written."""
    work = home.store.root / "checkpoint" / ("0" * 12)
    (work / "work").mkdir(parents=True)
    (work / "work" / "state").write_bytes(b"new")
    for folder in (work / "work", work):
        os.utime(folder, (1, 1))
    assert plan(home).removed == []


@pytest.mark.parametrize("broken", ["rename", "remove", "rmtree"])
def test_a_removal_that_is_cut_off_leaves_no_half_artifact_and_is_finished_later(home, made, monkeypatch, broken):
    """A folder with a record and half its files would be taken for the artifact."""
    chosen = plan(home, grace_hours=0)
    victim = made["student_scores"]

    def cut(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if broken == "rename":
            patch.setattr("pathlib.Path.rename", cut)
        elif broken == "remove":
            patch.setattr(Catalog, "remove", cut)
        else:
            patch.setattr(shutil, "rmtree", cut)
        with pytest.raises(KeyboardInterrupt):
            collect(home, chosen)
    assert not (victim.path / RECORD).exists()  # the newest goes first
    assert victim.id not in {artifact.id for artifact in home.store}
    time.sleep(0.01)
    collect(home, plan(home, grace_hours=0))
    assert Catalog.open(home).kinds([victim.id]) == {}
    assert not victim.path.exists() and not list(home.store.root.glob("*/.*"))


def test_what_was_made_again_after_a_cut_stays_in_the_catalog(home, made):
    """The rest of an old removal must not hide the new artifact."""
    victim = made["student_scores"]
    rest = victim.path.with_name(f".{victim.id}{collection.REMOVED}")
    shutil.copytree(victim.path, rest, ignore=shutil.ignore_patterns(RECORD))
    collect(home, plan(home))
    assert victim.path.exists() and Catalog.open(home).kinds([victim.id]) == {victim.id: "scores"}
    assert not list(home.store.root.glob("*/.*"))


def test_what_changed_since_the_plan_stays(home, made):
    """Between the look and the removal somebody makes a model of the set that was about to go."""
    chosen = plan(home, grace_hours=0)
    rows = home.store.find(made["teacher_scores"].record.inputs["audio_embeddings"])
    new = chain.make(home, "scores", "new", lambda work: None, {"audio_embeddings": rows})
    anew = made["student_scores"]
    testing.rewrite_record(anew, finished=time.time())
    gone = ids(collect(home, chosen))
    assert not {rows.id, new.id, anew.id} & gone
    assert {rows.id, new.id, anew.id} <= {artifact.id for artifact in home.store}
    assert made["teacher_scores"].id in gone


def test_a_removal_waits_for_who_holds_the_artifact(home, made):
    """Two processes in one folder: one writes, the other empties it."""
    import threading

    chosen = plan(home, grace_hours=0)
    newest = max(chosen.removed, key=lambda item: item.finished)
    thread = threading.Thread(target=collect, args=(home, chosen))
    with Catalog.open(home).lease(newest.id):
        thread.start()
        time.sleep(0.3)
        assert (newest.folder / RECORD).exists()
    thread.join(20)
    assert not newest.folder.exists()


def test_a_forgotten_clip_leaves_sets_and_embeddings_too(home, made):
    """The vector of a sound that somebody wanted back would be on the disk for ever."""
    grown = []
    for landing in (["a", "b"], ["c"]):
        landed = manifest(home.store, "".join(landing), clips_table([clip(name) for name in landing]))
        grown.append(run(GROW, *pools.next_version(home, "field", landed), home))
    v1, v2 = grown
    rows = embeddings(home.store, "rows", [clip("a"), clip("b")], [[1, 0], [0, 1]])
    made_of = {"pool": v1, "pool_embeddings": rows}
    first = chain.improvement_set(home, [("a", "a dog barks", 0.5)], made_of)
    second = chain.improvement_set(home, [("c", "a dog barks", 0.5)], {"pool": v2, "parent": first})
    run(BURY, Tombstone(clip_id="other id", pcm_sha256=f"pcm-{clip('a')}"), {}, home)
    Catalog.open(home).catch_up(home.store)
    assert ids(plan(home, grace_hours=0).tainted) == {rows.id, first.id}
    chosen = plan(home, grace_hours=0, with_forgotten=True)
    assert {rows.id, first.id} <= ids(chosen.removed) and chosen.tainted == []
    assert {v1.id, v2.id, second.id} <= ids(chosen.kept)
    collect(home, chosen)
    assert not rows.path.exists() and not first.path.exists() and second.path.exists()


def test_a_home_that_has_nothing_is_no_error(tmp_path):
    home = Home.open(tmp_path / "new")
    chosen = plan(home)
    assert (chosen.kept, chosen.removed, collect(home, chosen)) == ([], [], [])


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1536, "1.5 KiB"), (20 << 20, "20 MiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_are_told_as_people_read_them(count, said):
    assert _size(count) == said


# -- the command


@pytest.fixture
def answer(capsys, monkeypatch):
    import typer

    from clapcur.cli import collecting as command

    app = typer.Typer()
    app.command()(command.gc)
    monkeypatch.setattr("clapcur.cli.collecting.open_home", lambda root, must_exist: Home.open())

    def call(*arguments):
        app([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return call


def test_the_command_says_what_would_go_and_removes_it_only_when_told(home, made, answer):
    """A dry run that deletes, or a deletion that does not say what it did, is the end of trust."""
    before = tree(home.store.root)
    said = answer("--grace", 0)
    assert tree(home.store.root) == before
    assert "to delete" in said and made["student_scores"].id in said and "--delete would free" in said
    told = json.loads(answer("--grace", 0, "--json"))
    assert told["deleted"] is False and {one["kind"] for one in told["removed"]} == {"scores", "embeddings"}
    assert tree(home.store.root) == before
    kept = json.loads(answer("--grace", 0, "--keep", made["student_scores"].id[:6], "--json", "--delete"))
    assert kept["deleted"] is True
    assert kept["bytes"] == sum(one["bytes"] for one in kept["removed"]) < told["bytes"]
    assert made["student_scores"].path.exists() and not made["teacher_scores"].path.exists()
    assert "0 deleted" in answer("--grace", 0, "--keep", made["student_scores"].id, "--delete")
    assert "Nothing to delete" in answer("--grace", 24)
