"""Pairs as a data set: what other libraries read of it, and what `ingest` makes of it again."""

import gc
import hashlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from addressed_sounds import sound, write_tar
from ingest_tools import make, quarantined, scanned, write_csv

from clapcur.data.improvement_set import SCHEMA
from clapcur.data.manifest import Manifest, caption_id
from clapcur.lineage import shared_sets
from clapcur.stages.tombstone import STAGE as BURY
from clapcur.stages.tombstone import Tombstone
from clapcur.store.catalog import Catalog
from clapcur.store.runner import run
from clapcur.testing import commit, manifest

CAPTIONS = {"a": 'a dog, "barks"; loudly | twice', "b": "rain – on a roof", "c": "a siren", "d": "wind"}
KINDS = {"a.wav": "WAV", "b.flac": "FLAC", "c.ogg": "OGG", "d": "FLAC"}
FORMS = ("csv", "hf", "webdataset")


@pytest.fixture(scope="module")
def clips():
    return {name: sound(seed, kind) for seed, (name, kind) in enumerate(KINDS.items())}


@pytest.fixture
def shared(home, tmp_path, clips):
    """Make an Improvement-Set of clips in files, in a tar and, without a name, in Parquet; gives its id."""
    pool = tmp_path / "pool"
    pool.mkdir()
    rows = []
    for name in ("a.wav", "b.flac"):
        (pool / name).write_bytes(clips[name])
        rows.append((name, "", f"freesound:{name[0]}"))
    write_csv(tmp_path / "pool" / "table.csv", [("path", "caption", "recording_id"), *rows])
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "0.tar", {"c.ogg": clips["c.ogg"]})
    pd.DataFrame({"audio": [clips["d"]]}).to_parquet(tmp_path / "shards" / "1.parquet")
    found = [scanned(pool), scanned(tmp_path / "shards")]
    assert not any(map(quarantined, found))
    first, second = (make(home.store, one) for one in found)
    pairs = manifest(home.store, "pairs", captions=CAPTIONS.values())

    def write(work):
        ids = {name[0]: hashlib.sha256(content).hexdigest() for name, content in clips.items()}
        table = [(ids[key], caption_id(text), 0.25, "dog", 0.5, 0) for key, text in CAPTIONS.items()]
        table.append((ids["a"], caption_id(CAPTIONS["b"]), 0.125, "rain", 0.75, 1))
        pd.DataFrame(sorted(table), columns=SCHEMA.names).to_parquet(work.path / "pairs.parquet", index=False)

    inputs = {"pool": first, "clips": second, "teacher_pairs": pairs}
    made = commit(home.store, "improvement_set", "ads", write, inputs)
    Catalog.open(home).rebuild(home.store)
    return made


def pairs_of(found):
    """Return the pairs of a scan by clip id and caption, and the recordings of the clips."""
    table = found.manifest.pairs.merge(found.manifest.captions)
    recordings = dict(zip(found.manifest.clips.clip_id, found.manifest.clips.recording_id, strict=True))
    return set(zip(table.clip_id, table.caption, strict=True)), recordings


def expected_pairs(clips, without=""):
    ids = {name[0]: hashlib.sha256(content).hexdigest() for name, content in clips.items()}
    pairs = {(ids[key], text) for key, text in CAPTIONS.items() if key != without}
    return pairs | ({(ids["a"], CAPTIONS["b"])} if without != "a" else set())


@pytest.mark.parametrize(
    ("form", "audio", "source"),
    [("csv", "copy", "pairs.csv"), ("csv", "none", "pairs.csv"), ("hf", "copy", ""), ("webdataset", "copy", "")],
)
def test_ingest_of_a_written_set_gives_the_same_pairs(answer, shared, clips, tmp_path, form, audio, source):
    """A clip that is encoded again has another id: no lineage would reach it, and no take-down."""
    out = tmp_path / "out" / "set"
    code, said, err = answer("pairs", shared.id, "--to", form, "--output", out, "--audio", audio, "--json")
    assert code == 0, err
    assert json.loads(said) == {"path": str(out), "format": form, "pairs": 5, "clips": 4, "forgotten": 0}
    assert [path.name for path in out.parent.iterdir()] == ["set"]
    found = scanned(out / source)
    assert quarantined(found) == {}
    pairs, recordings = pairs_of(found)
    assert pairs == expected_pairs(clips)
    for clip, recording in recordings.items():
        name = next(name for name, content in clips.items() if hashlib.sha256(content).hexdigest() == clip)
        assert recording in ("", f"freesound:{name[0]}")


def test_the_table_of_a_csv_set_has_what_lineage_knows(answer, shared, clips, tmp_path):
    """Scores without the id of their set cannot be traced."""
    assert answer("pairs", shared.id, "--to", "csv", "--output", tmp_path / "set")[0] == 0
    table = pd.read_csv(tmp_path / "set" / "pairs.csv", keep_default_na=False)
    assert table.columns.tolist() == ["path", "caption", *shared_sets.FIELDS]
    assert set(table.set_id) == {shared.id} and set(table.role) == {"improvement_set"}
    assert table.clip_id.tolist() == sorted(table.clip_id)
    (one,) = table[(table["class"] == "rain")].to_dict("records")
    assert (one["similarity"], one["class_similarity"], one["caption"]) == (0.125, 0.75, CAPTIONS["b"])
    for path, clip in zip(table.path, table.clip_id, strict=True):
        assert hashlib.sha256((tmp_path / "set" / path).read_bytes()).hexdigest() == clip
    assert len(list((tmp_path / "set" / "audio").iterdir())) == len(clips), "a clip of two pairs is there once"


def test_parquet_has_the_audio_and_says_that_it_is_audio(answer, shared, clips, tmp_path):
    """Without the features in the metadata, the audio is a struct of bytes to whoever loads it."""
    assert answer("pairs", shared.id, "--to", "hf", "--output", tmp_path / "set")[0] == 0
    (file,) = (tmp_path / "set" / "data").iterdir()
    assert file.name == "train-00000-of-00001.parquet"
    table = pq.read_table(file)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["audio"] == {"_type": "Audio"} and features["similarity"]["dtype"] == "float32"
    assert list(features) == table.column_names
    for row in table.to_pylist():
        assert hashlib.sha256(row["audio"]["bytes"]).hexdigest() == row["clip_id"]
        assert soundfile.info(io.BytesIO(row["audio"]["bytes"])).samplerate == 16_000
        assert Path(row["audio"]["path"]).suffix in (".wav", ".flac", ".ogg")


def test_hugging_faces_library_reads_its_form(answer, shared, clips, tmp_path):
    """A convention that we only believe to follow."""
    datasets = pytest.importorskip("datasets", reason="needs the package datasets, which is not installed")
    assert answer("pairs", shared.id, "--to", "hf", "--output", tmp_path / "set")[0] == 0
    read = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(read.features["audio"], datasets.Audio) and len(read) == 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves the shard open
def test_webdataset_reads_its_form(answer, shared, clips, tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="needs the package webdataset, which is not installed")
    assert answer("pairs", shared.id, "--to", "webdataset", "--output", tmp_path / "set")[0] == 0
    shards = [str(path) for path in sorted((tmp_path / "set").glob("*.tar"))]
    assert [Path(path).name for path in shards] == ["00000.tar"]
    read = list(webdataset.WebDataset(shards, shardshuffle=False).to_tuple("wav;flac;ogg", "txt", "json"))
    told = [json.loads(text) for _, _, text in read]
    assert {(one["clip_id"], text.decode()) for one, (_, text, _) in zip(told, read, strict=True)} == expected_pairs(
        clips
    )
    for one, (audio, _, _) in zip(told, read, strict=True):
        assert hashlib.sha256(audio).hexdigest() == one["clip_id"] and one["set_id"] == shared.id
        assert one["similarity"] in (0.25, 0.125) and one["class"] in ("dog", "rain")
    gc.collect()


def test_large_sets_are_split(home, shared, tmp_path, monkeypatch, clips):
    """A single file of a terabyte can be neither uploaded nor read by several workers."""
    from clapcur.lineage.queries import trace_pairs

    monkeypatch.setattr(shared_sets, "SHARD_PAIRS", 2)
    monkeypatch.setattr(shared_sets, "GROUP_PAIRS", 1)
    for form, names in {
        "hf": [f"data/train-0000{n}-of-00003.parquet" for n in range(3)],
        "webdataset": [f"0000{n}.tar" for n in range(3)],
    }.items():
        out = tmp_path / form
        shared_sets.write_shared_set(home, shared, trace_pairs(home, shared.id), form, out)
        assert sorted(str(path.relative_to(out)) for path in out.rglob("*.[pt]a*")) == names
        assert pairs_of(scanned(out))[0] == expected_pairs(clips)


@pytest.mark.parametrize("form", FORMS)
def test_the_card_says_what_the_set_is(answer, shared, tmp_path, form):
    """Someone who gets the folder alone has nothing else to go by."""
    assert answer("pairs", shared.id, "--to", form, "--output", tmp_path / "set")[0] == 0
    text = (tmp_path / "set" / "README.md").read_text()
    _, front, rest = text.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["license"] == "other" and "clapcur" in metadata["tags"]
    assert ("configs" in metadata) == (form == "hf")
    assert "5 pairs of 4 audio clips" in rest and shared.id in rest
    assert all(name in rest for name in shared.record.inputs.values())
    assert "The licences of the recordings are those of their sources" in rest
    assert str(tmp_path) not in text, "a path of this machine"


@pytest.mark.parametrize("form", FORMS)
def test_clips_that_were_taken_down_are_left_out(answer, home, shared, clips, tmp_path, form):
    """A set that was made before the take-down still holds the clip."""
    gone = hashlib.sha256(clips["a.wav"]).hexdigest()
    (one,) = [
        artifact for artifact in home.store.of_kind("manifest") if gone in set(Manifest.open(artifact).clips.clip_id)
    ]
    table = Manifest.open(one).clips
    sounds = table[table.clip_id == gone].pcm_sha256.iloc[0]
    run(BURY, Tombstone(clip_id="", pcm_sha256=sounds, recording_id="", reason="asked"), {}, home)
    code, said, _ = answer("pairs", shared.id, "--to", form, "--output", tmp_path / "set", "--json")
    assert code == 0 and json.loads(said) | {"path": ""} == {
        "path": "", "format": form, "pairs": 3, "clips": 3, "forgotten": 2,
    }  # fmt: skip
    pairs, _ = pairs_of(scanned(tmp_path / "set" / ("pairs.csv" if form == "csv" else "")))
    assert pairs == expected_pairs(clips, without="a")
    assert "2 pairs were left out" in (tmp_path / "set" / "README.md").read_text()


def test_filters_and_limits_apply_to_what_is_written(answer, shared, tmp_path):
    options = ("--class", "dog", "--limit", 2, "--sort", "similarity", "--json")
    code, said, _ = answer("pairs", shared.id, "--to", "csv", "--output", tmp_path / "set", *options)
    assert code == 0 and json.loads(said)["pairs"] == 2
    assert set(pd.read_csv(tmp_path / "set" / "pairs.csv")["class"]) == {"dog"}


def test_links_point_to_files_and_to_nothing_else(answer, shared, clips, tmp_path):
    """A clip in a tar has no file of its own."""
    clip = hashlib.sha256(clips["b.flac"]).hexdigest()
    link = ("--to", "csv", "--audio", "link")
    assert answer("pairs", shared.id, *link, "--output", tmp_path / "set", "--clip", clip)[0] == 0
    (file,) = (tmp_path / "set" / "audio").iterdir()
    assert file.is_symlink() and file.resolve() == (tmp_path / "pool" / "b.flac").resolve()
    code, _, err = answer("pairs", shared.id, *link, "--output", tmp_path / "other")
    assert code == 1 and err.count("\n") == 1 and "not a file of its own; use --audio copy" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "pool", "set", "shards"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--to", "csv"), 2, "give --to and --output together"),
        (("--output", "x"), 2, "give --to and --output together"),
        (("--to", "hf", "--output", "x", "--audio", "link"), 2, "--audio link applies to --to csv only"),
        (("--to", "hf", "--output", "x", "--csv"), 2, "give --to or --csv, not both"),
        (("--to", "zip", "--output", "x"), 2, "'zip' is not one of"),
        (("--to", "hf", "--output", "x", "--clip", "ffffffff"), 1, "there are no pairs of"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(answer, shared, tmp_path, monkeypatch, options, code, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    found, _, err = answer("pairs", shared.id, *options)
    assert (found, err.count("\n")) == (code, 1) and message in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("form", FORMS)
def test_a_clip_that_is_missing_or_changed_ends_it_in_one_line(answer, shared, tmp_path, form):
    """Another sound under the id of a clip is worse than no set."""
    file = tmp_path / "pool" / "b.flac"
    for damage, message in ((lambda: file.write_bytes(sound(99)), "changed"), (file.unlink, "missing")):
        damage()
        code, _, err = answer("pairs", shared.id, "--to", form, "--output", tmp_path / "set")
        assert code == 1 and err.count("\n") == 1 and "b.flac" in err and message in err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "pool", "shards"]


def test_a_folder_that_exists_is_left_as_it_is(answer, shared, tmp_path):
    (tmp_path / "set").mkdir()
    code, _, err = answer("pairs", shared.id, "--to", "hf", "--output", tmp_path / "set")
    assert code == 1 and "already exists" in err and not any((tmp_path / "set").iterdir())


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_command_leaves_nothing_under_the_name(home, shared, tmp_path, form):
    """Half a set would be uploaded as a whole one."""
    program = f"""
import sys, time
from itertools import chain
from pathlib import Path
from clapcur.lineage.queries import trace_pairs
from clapcur.lineage.shared_sets import write_shared_set
from clapcur.store.home import Home

def rows():
    for index, row in enumerate(trace_pairs(home, {shared.id!r})):
        if index == 3:
            print("under way", flush=True)
            time.sleep(600)
        yield row

home = Home.open({str(home.root)!r})
write_shared_set(home, home.store.find({shared.id!r}), rows(), {form!r}, Path({str(tmp_path / "set")!r}))
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "under way\n"
    child.send_signal(signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    child.stdout.close()
    assert not (tmp_path / "set").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".set.")] != []
