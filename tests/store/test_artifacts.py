"""The store: what an artifact is called, and when it counts as finished."""

import dataclasses
import hashlib
import json
import os
import stat
import subprocess
import tempfile

import pytest

from clapcur.config import frozen, machine
from clapcur.errors import ArtifactError, DamagedArtifact
from clapcur.store import artifacts
from clapcur.store.artifacts import (
    Artifact,
    Key,
    Stage,
    Store,
    check_payload,
    checked_record,
    damaged_files,
    explain_difference,
    read_record,
    write_atomic,
)
from clapcur.store.record import Outcome
from clapcur.testing import rewrite_record

KEY = Key("scores", "evaluate", "1", {"threshold": 0.5}, {"pool": "0123456789ab"})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def finish(store, key=KEY, text="payload", **outcome):
    work = store.open(key)
    (work.path / "deep").mkdir(exist_ok=True)
    (work.path / "deep" / "data.txt").write_text(text)
    return store.commit(work, Outcome(**outcome), started=1.0)


def test_the_id_is_the_hash_of_the_whole_key_written_as_sorted_json():
    """Another spelling of the same key would orphan every artifact that was ever made."""
    written = (
        '{"config":{"threshold":0.5},"inputs":{"pool":"0123456789ab"},"kind":"scores","stage":"evaluate","version":"1"}'
    )
    assert KEY.sha256 == hashlib.sha256(written.encode()).hexdigest()
    assert KEY.id == KEY.sha256[:12]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "report"},
        {"stage": "score"},
        {"version": "2"},
        {"config": {"threshold": 0.6}},
        {"inputs": {"pool": "0123456789ac"}},
        {"inputs": {"captions": "0123456789ab"}},
    ],
)
def test_whatever_made_an_artifact_changes_its_id(change):
    """A part of the key that is not hashed hands out an old result under a new meaning."""
    assert dataclasses.replace(KEY, **change).id != KEY.id


def test_how_the_work_is_done_does_not_change_the_id():
    """A signed worker count would recompute everything on every other machine."""

    @frozen
    class Config:
        threshold: float = 0.5
        workers: int = machine(2)

    stage = Stage("curate", "1", "improvement_set", lambda inputs, config, work: Outcome())
    assert stage.key(Config(workers=8), {}) == stage.key(Config(), {})
    assert stage.key(Config(threshold=0.6), {}) != stage.key(Config(), {})


def test_inputs_are_signed_by_id_and_role_whatever_their_order_and_place(store):
    """An address in the key would make a moved store forget everything."""
    stage = Stage("curate", "1", "improvement_set", lambda inputs, config, work: Outcome())
    one, two = Artifact("manifest", "a" * 12, "/here"), Artifact("manifest", "b" * 12, "/here")
    moved = Artifact("manifest", "a" * 12, "/there")
    same = stage.key({}, {"pool": one, "captions": two})
    assert same == stage.key({}, {"captions": two, "pool": moved})
    assert same != stage.key({}, {"captions": one, "pool": two})


def test_a_folder_without_a_record_is_not_an_artifact(store):
    """A killed run leaves payload files: taken for finished, they would be trained on."""
    work = store.open(KEY)
    (work.path / "data.txt").write_text("half")
    assert store.get(KEY) is None
    assert list(store) == []
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        _ = Artifact("scores", KEY.id, str(work.path)).record


def test_a_half_written_file_of_a_killed_run_leaves_with_the_commit(store):
    """What a kill left behind would be in the artifact for ever: no record names it, and no collection looks there."""
    work = store.open(KEY)
    for name in (".data.txt.0123456789ab.tmp", "deep/.data.txt.0123456789ab.tmp"):
        (work.path / name).parent.mkdir(exist_ok=True)
        (work.path / name).write_text("half")
    artifact = finish(store)
    assert sorted(path.name for path in artifact.path.rglob("*") if path.is_file()) == ["data.txt", "record.json"]


def test_the_record_has_the_digests_that_another_tool_computes(store):
    """A digest of something else than the file's bytes would never find a damaged file."""
    artifact = finish(store, text="some bytes\n")
    said = subprocess.run(
        ["sha256sum", artifact.path / "deep" / "data.txt"], capture_output=True, text=True, check=True
    )
    assert artifact.record.files == {"deep/data.txt": {"bytes": 11, "sha256": said.stdout.split()[0]}}


@pytest.mark.parametrize("damage", ["gone", "shorter"])
def test_lost_bytes_are_a_miss_and_the_record_goes_with_them(store, damage):
    """A hit on a dead path is an error in the middle of the next stage; others must not see it either."""
    artifact = finish(store)
    path = artifact.path / "deep" / "data.txt"
    path.unlink() if damage == "gone" else path.write_text("pay")
    assert store.get(KEY) is None
    assert list(store) == []


def test_flipped_bytes_of_the_same_length_are_a_miss(store):
    """One flipped bit of the weights was reused, loaded and computed with."""
    artifact = finish(store, text="payload")
    (artifact.path / "deep" / "data.txt").write_text("PAYLOAD")
    assert damaged_files(artifact.path, artifact.record) == ["deep/data.txt"]
    with pytest.raises(DamagedArtifact, match=f"scores {KEY.id} is damaged: deep/data.txt in .* changed after it was"):
        check_payload(artifact.path)
    assert store.get(KEY, discard=False) is None
    assert [found.id for found in store] == [KEY.id]  # not to be discarded without the lease
    assert store.get(KEY) is None
    assert list(store) == []


def test_a_file_is_read_once_in_a_process_and_again_after_it_changed(store, monkeypatch):
    """Hashing gigabytes at every reuse would make a comparison that finds everything done a matter of minutes."""
    path = finish(store).path / "deep" / "data.txt"
    monkeypatch.setattr(artifacts, "SETTLED_S", -60.0)
    assert store.get(KEY) is not None
    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "sha256_file", lambda path: pytest.fail("read again"))
        assert store.get(KEY) is not None
    path.unlink()
    path.write_text("PAYLOAD")
    assert store.get(KEY) is None


def test_what_changed_a_moment_ago_is_read_again(store):
    """Within one tick of the file system's clock a second change has the time of the first."""
    path = finish(store).path / "deep" / "data.txt"
    assert store.get(KEY) is not None
    with open(path, "r+b") as file:
        file.write(b"P")
    assert store.get(KEY) is None


def write_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(**values):
    def write(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return write


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (write_half, "not valid JSON"),
        (lambda path: path.write_bytes(b""), "not valid JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
        (lambda path: path.write_text("[" * 100_000), "not valid JSON"),
        (lambda path: path.write_text("[]"), "expected an object, got a list"),
        (lambda path: path.write_text("{}"), "has no 'kind'"),
        (change(id="0123456789ab"), "it belongs to the scores 0123456789ab"),
        (change(kind="report"), "it belongs to the report"),
        (change(finished="yesterday"), "'finished' is 'yesterday'"),
        (change(finished=float("nan")), "times are not finite"),
        (change(inputs=["0123456789ab"]), "'inputs' is"),
        (change(inputs={"pool": 5}), "an input is not an id"),
        (change(files={"deep/data.txt": "0123"}), "size and digest of deep/data.txt"),
        (change(counts={"clips": "many"}), "counts.clips is 'many'"),
        (change(metrics=None), "'metrics' is None"),
        (change(tags=[]), "'tags' is"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    ],
)
def test_a_damaged_record_is_named_passed_over_and_replaced(store, caplog, break_it, said):
    """One record that could not be read stopped every command on the home."""
    other = finish(store, dataclasses.replace(KEY, version="2"))
    damaged = finish(store)
    break_it(damaged.path / "record.json")
    with pytest.raises(DamagedArtifact, match=f"{KEY.id}/record.json is damaged: .*{said}"):
        read_record(damaged.path)
    with pytest.raises(DamagedArtifact):
        store.find(KEY.id)
    assert list(store.damaged_records()) == [damaged.path]
    assert list(store) == [other]
    assert sum("is damaged" in record.getMessage() for record in caplog.records) == 1
    assert store.get(KEY) is None
    made = finish(store, text="made again")
    assert (made.path / "deep" / "data.txt").read_text() == "made again"
    assert {one.id for one in store} == {made.id, other.id}
    assert store.damaged_records() == {}
    assert store.get(KEY) == made


@pytest.mark.parametrize("values", [{"metrics": {"accuracy": 1.0}}, {"config": {"threshold": 0.75}}, {"files": {}}])
def test_a_record_that_was_changed_by_as_much_as_a_digit_is_no_hit(store, values):
    """A digit that flipped in an accuracy, or in the digest that would find it, looks like any other digit."""
    artifact = finish(store)
    change(**values)(artifact.path / "record.json")
    with pytest.raises(DamagedArtifact, match="its digest does not match its content"):
        checked_record(artifact.path)
    assert store.get(KEY) is None
    assert finish(store).record.config == {"threshold": 0.5}


def test_a_record_of_an_older_version_has_no_digest_and_counts(store):
    """A home of the last release would be computed anew from the first manifest on."""
    artifact = finish(store)
    rewrite_record(artifact)
    assert not {"schema", "record_sha256"} & json.loads((artifact.path / "record.json").read_text()).keys()
    assert store.get(KEY) == artifact


def test_a_flipped_bit_in_the_name_of_any_field_is_damage(store):
    """A record whose digest had another name passed for one of an older version, which has none."""
    path = finish(store).path / "record.json"
    record = json.loads(path.read_text())
    for name in record:
        flipped = name[0] + chr(ord(name[1]) ^ 1) + name[2:]
        path.write_text(json.dumps({flipped if one == name else one: value for one, value in record.items()}))
        with pytest.raises(DamagedArtifact):
            checked_record(path.parent)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_every_file_of_an_artifact_has_the_mode_of_a_new_file(store, umask):
    """Weights that a library wrote as a temporary file were readable by nobody else, captions by everybody."""
    before = os.umask(umask)
    try:
        work = store.open(KEY)
        descriptor, name = tempfile.mkstemp(dir=work.path)
        os.close(descriptor)
        os.replace(name, work.path / "weights")
        (work.path / "captions").write_text("a dog barks")
        artifact = store.commit(work, Outcome(), started=1.0)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in artifact.path.iterdir()}
    assert modes == dict.fromkeys(("weights", "captions", "record.json"), 0o666 & ~umask)


@pytest.mark.parametrize(("text", "identical"), [("payload", True), ("another", False)])
def test_a_recomputed_artifact_says_whether_it_came_out_the_same(store, text, identical, caplog):
    """A stage that is not deterministic would otherwise replace what students were trained on, unseen."""
    (finish(store).path / "deep" / "data.txt").unlink()
    assert store.get(KEY) is None
    assert finish(store, text=text).record.recomputed == {"identical": identical}
    assert ("was recomputed and differs from before in deep/data.txt" in caplog.text) == (not identical)
    assert not (store.folder("scores", KEY.id) / "lost.json").exists()


def test_a_first_computation_says_nothing_of_a_recomputation(store):
    """A note on everything is a note on nothing."""
    assert finish(store).record.recomputed is None


def test_a_key_that_shares_only_its_first_digits_is_refused(store):
    """The folder's name is 12 digits of 64; a collision would return somebody else's result."""
    artifact = finish(store)
    rewrite_record(artifact, key_sha256=KEY.id + "0" * 52)
    with pytest.raises(ArtifactError, match="a different key with the same first 12 digits"):
        store.get(KEY)


def test_parts_survive_a_restart_and_vanish_with_the_record(store):
    """Marks that are lost redo hours; marks that stay skip the work of a recomputation."""
    work = store.open(KEY)
    (work.scratch / "state").write_text("training state")
    work.mark_done("part-0")
    again = store.open(KEY)
    assert (again.is_done("part-0"), again.is_done("part-1")) == (True, False)
    artifact = finish(store)
    assert list(artifact.record.files) == ["deep/data.txt"]
    assert not store.open(KEY).is_done("part-0")


def test_where_clips_lie_is_not_part_of_the_payload(store):
    """Re-finding moved audio would look like damage and recompute every stage."""
    work = store.open(KEY)
    (work.path / "locations.parquet").write_text("here")
    artifact = finish(store)
    (artifact.path / "locations.parquet").write_text("somewhere else")
    assert store.get(KEY, verify=True) == artifact


def test_an_atomic_write_that_dies_leaves_the_old_content(tmp_path, monkeypatch):
    """Half a record is a record that cannot be read, for good."""
    path = tmp_path / "record.json"
    write_atomic(path, "old")

    def die(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_an_artifact_is_found_by_the_start_of_its_id(store):
    """People copy the first digits; the wrong artifact is worse than none."""
    artifact = finish(store)
    assert store.find(artifact.id[:4]) == artifact
    other = dataclasses.replace(KEY, version="2")
    finish(store, other)
    (store.root / "scores" / other.id).rename(store.root / "scores" / f"{artifact.id[:6]}ffffff")
    with pytest.raises(ArtifactError, match=f"expected one artifact .* found scores {artifact.id[:6]}"):
        store.find(artifact.id[:6])
    with pytest.raises(ArtifactError, match="found none"):
        store.find("0000")
    with pytest.raises(ArtifactError, match="expected at least 4 of the 12 digits"):
        store.find(artifact.id[:3])


def test_the_store_lists_artifacts_in_the_order_in_which_they_were_made(store, monkeypatch):
    """A catalog rebuilt in another order would tell MLflow of scores before their checkpoints."""
    times = iter([30.0, 10.0, 20.0])
    monkeypatch.setattr("clapcur.store.artifacts.time.time", lambda: next(times))
    made = [finish(store, dataclasses.replace(KEY, version=version)) for version in "abc"]
    assert list(store) == [made[1], made[2], made[0]]


def test_a_difference_names_every_leaf_that_differs():
    """`why` that overlooks a nested value sends people to search elsewhere."""
    ours = {"a": 1, "b": {"c": [1, 2], "d": None}}
    theirs = {"a": 1.0, "b": {"c": [1, 3]}, "e": "new"}
    assert explain_difference(ours, theirs) == ["b.c: [1, 2] -> [1, 3]", "e: None -> 'new'"]
