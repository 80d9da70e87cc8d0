"""Damage in a store: what is named, what can be made again and by whom, and what continues working meanwhile."""

import json

import chain
import pytest

from clapcur.errors import DamagedArtifact
from clapcur.lineage import collection
from clapcur.lineage.queries import impact, trace, trace_pairs
from clapcur.lineage.verification import verify
from clapcur.stages.tombstone import STAGE as BURY
from clapcur.stages.tombstone import Tombstone
from clapcur.store.artifacts import check_payload
from clapcur.store.catalog import Catalog
from clapcur.store.runner import run

BREAKS = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "no JSON": lambda path: path.write_bytes(b"\x00" * 100),
    "other types": lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": "none"})),
    "another id": lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"id": "0123456789ab"})),
}


@pytest.fixture
def made(home):
    """Make an experiment and a forgotten clip."""
    return chain.experiment(home) | {"stone": run(BURY, Tombstone(clip_id="c" * 64, pcm_sha256="d" * 64), {}, home)}


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_a_whole_store_is_sound_and_every_artifact_was_read(home, made):
    """A check that looks at nothing finds nothing."""
    assert verify(home) == (len(list(home.store)), [])


@pytest.mark.parametrize(
    ("which", "file"),
    [
        ("teacher", "model.safetensors"), ("teacher", "config.json"), ("student", "history.jsonl"),
        ("set", "pairs.parquet"), ("set", "similarity.png"), ("pool", "clips.parquet"),
        ("student_scores", "scores.json"),
    ],
)  # fmt: skip
def test_a_flipped_bit_is_found_in_every_kind_of_payload(home, made, which, file):
    """The file is there and has its size: nothing but reading it tells."""
    flip_a_bit(made[which].path / file)
    _, (damage,) = verify(home)
    assert (damage.id, damage.kind, damage.files) == (made[which].id, made[which].kind, (file,))
    assert damage.why == f"changed: {file}"
    with pytest.raises(DamagedArtifact, match=file):
        check_payload(made[which].path)


def test_missing_files_are_told_from_changed_ones(home, made):
    """Who deleted something by mistake looks in the bin first."""
    (made["set"].path / "card.json").unlink()
    flip_a_bit(made["set"].path / "pairs.parquet")
    _, (damage,) = verify(home, [made["set"].id[:6]])
    assert damage.why == "missing: card.json; changed: pairs.parquet"


def test_it_says_what_can_be_made_again_and_what_only_by_whom(home, made):
    """To run it again is no help where the recordings of a manifest are on somebody's disk."""
    for which, file in (("pool", "clips.parquet"), ("set", "pairs.parquet"), ("student_scores", "scores.json")):
        flip_a_bit(made[which].path / file)
    (made["stone"].path / "record.json").write_text("{")
    (made["student"].path / "record.json").unlink()
    told = {damage.id: damage for damage in verify(home)[1]}
    assert told[made["pool"].id].again.startswith("only by a user with the original files: run `clapcur ingest`")
    assert told[made["set"].id].again == (
        f"after {made['pool'].id}, which can be recomputed only by {told[made['pool'].id].again[8:]}"
    )
    assert told[made["set"].id].by_whom == told[made["pool"].id].by_whom == "a user with the original files"
    assert told[made["student_scores"].id].again == told[made["set"].id].again  # the student needs the set first
    assert told[made["stone"].id].by_whom == "a user who knows which clip was taken down"
    assert told[made["stone"].id].files == ("record.json",)


def test_what_needs_nothing_from_outside_is_made_again_by_the_next_run(home, made):
    """Nobody should look for files that the store has."""
    flip_a_bit(made["teacher_scores"].path / "scores.json")
    _, (damage,) = verify(home)
    assert (damage.again, damage.by_whom) == ("by the next run that needs it", "")


def test_the_command_names_damage_with_exit_code_1_and_changes_nothing(home, made, answer):
    """A nightly job reads the exit code."""
    assert answer("verify", "--home", home.root)[0] == 0
    flip_a_bit(made["teacher"].path / "model.safetensors")
    code, out, _ = answer("verify", "--all", "--home", home.root)
    assert code == 1 and made["teacher"].id in out and "model.safetensors" in out
    code, out, _ = answer("verify", made["teacher"].id, made["set"].id, "--json", "--home", home.root)
    said = json.loads(out)
    assert (code, said["verified"]) == (1, 2)
    assert [one["id"] for one in said["damaged"]] == [made["teacher"].id]
    assert answer("verify", made["set"].id, "--home", home.root)[0] == 0
    assert answer("verify", "00000000", "--home", home.root)[0] == 1
    assert answer("verify", made["set"].id, "--all", "--home", home.root)[0] == 2


@pytest.mark.parametrize("break_it", BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("which", ["teacher_pairs", "pool", "teacher", "set", "student", "student_scores", "stone"])
def test_one_damaged_record_stops_no_command(home, made, answer, which, break_it):
    """Half a record in one artifact of thousands made the whole home useless."""
    damaged = made[which]
    break_it(damaged.path / "record.json")
    whole = made["teacher_scores"] if which in ("student", "set", "pool", "student_scores", "stone") else made["pool"]
    assert trace(home, whole.id)["id"] == whole.id
    with pytest.raises(DamagedArtifact, match=damaged.id):
        trace(home, damaged.id)
    assert damaged.id not in {artifact.id for artifact in home.store}
    assert impact(home, chain.clip("pool-1"))["clip_id"] == chain.clip("pool-1")
    for command in (["gc"], ["gc", "--delete"], ["catalog", "rebuild"], ["trace", whole.id]):
        assert answer(*command, "--home", home.root)[0] == 0
    assert answer("trace", damaged.id, "--home", home.root)[0] == 1
    code, out, _ = answer("verify", "--json", "--home", home.root)
    assert code == 1 and [one["id"] for one in json.loads(out)["damaged"]] == [damaged.id]


def test_the_way_down_goes_on_beside_a_damaged_record(home, made):
    """One lost node must not hide the rest of the tree."""
    (made["set"].path / "record.json").write_text("{")
    nodes = {node["role"]: node for node in trace(home, made["student"].id)["inputs"]}
    assert nodes["improvement_set"]["lost"] and nodes["improvement_set"]["summary"] == "its record is damaged"
    assert nodes["init"]["id"] == made["teacher"].id


@pytest.mark.parametrize("rebuilt", [False, True])
def test_gc_keeps_what_a_damaged_record_was_made_from_and_what_was_made_from_it(home, made, rebuilt):
    """The record that leads from a kept student to its pool is damaged, not the student's right to its pool."""
    chain.decision(home, made["teacher"], made["teacher"], made["student"], promoted=True)
    (made["set"].path / "record.json").write_text("{")
    (made["stone"].path / "record.json").write_text("{")
    if rebuilt:
        Catalog.open(home).rebuild(home.store)
    chosen = collection.plan(home, grace_hours=-1.0)
    going = {item.id for item in chosen.removed}
    assert not going & {made[name].id for name in ("set", "pool", "teacher_pairs", "student", "stone", "evaluation")}
    assert chosen.damaged == sorted((made["set"].id, made["stone"].id))
    assert made["teacher_scores"].id in going


def test_gc_removes_what_was_moved_aside(home, made):
    """Each repair would leave a dead copy of the weights for ever."""
    damaged = made["student_scores"]
    (damaged.path / "record.json").write_text("{")
    made |= chain.experiment(home)
    (aside,) = damaged.path.parent.glob(".*.aside")
    assert aside.name.startswith(f".{damaged.id}")
    assert verify(home)[1] == []
    gone = collection.collect(home, collection.plan(home, grace_hours=-1.0, named=[damaged.id]))
    assert not aside.exists() and damaged.path.exists()
    assert "moved aside" in " ".join(item.why for item in gone)


def test_pairs_are_not_listed_from_damaged_tables(home, made):
    """A caption with one other letter goes into a report as it stands."""
    flip_a_bit(made["pool"].path / "captions.parquet")
    with pytest.raises(DamagedArtifact, match="captions.parquet"):
        list(trace_pairs(home, made["set"].id))
