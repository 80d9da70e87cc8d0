"""Shards: a pool of containers is the pool of the files in them, and grows by what is new."""

import gzip
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from addressed_sounds import sound, write_tar
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from ingest_tools import make, name, pairs, quarantined, scanned, tones, write_csv
from shard_tools import member_names, scanned_url

from clapcur.audio import addresses
from clapcur.data.manifest import Manifest
from clapcur.errors import DataError, ManifestError
from clapcur.stages.ingest import Columns, probes, shards
from clapcur.store.artifacts import Store

CAPTIONS = {"a": "a dog barks", "b": "rain", "c": "wind in trees"}


@pytest.fixture
def clips() -> dict[str, bytes]:
    return {
        f"{key}.{kind}": sound(seed, kind.upper())
        for seed, (key, kind) in enumerate(zip("abc", ("flac", "wav", "ogg"), strict=True))
    }


def sample(clips: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the members of a WebDataset shard: clips, each with its caption."""
    found = {}
    for file, content in clips.items():
        key = file.partition(".")[0]
        found |= {
            file: content,
            f"{key}.txt": CAPTIONS[key].encode(),
            f"{key}.json": json.dumps({"recording_id": key}).encode(),
        }
    return found


# --- the same pool in every form -----------------------------------------------------------------------------------


def test_files_tars_and_parquet_of_the_same_clips_are_the_same_manifest(
    tmp_path: Path, clips: dict[str, bytes]
) -> None:
    """A pool that is packed to be kept would be embedded again, and be another experiment."""
    (tmp_path / "files").mkdir()
    for file, content in clips.items():
        (tmp_path / "files" / file).write_bytes(content)
    rows = [(f"files/{file}", CAPTIONS[file[0]], file[0]) for file in clips]
    write_csv(tmp_path / "t.csv", [("path", "caption", "recording_id"), *rows])
    first, *rest = sample(clips).items()
    (tmp_path / "tars" / "deeper").mkdir(parents=True)
    write_tar(tmp_path / "tars" / "0.tar", dict([first, *rest[:2]]))
    write_tar(tmp_path / "tars" / "deeper" / "1.TAR", {f"./x/{file}": content for file, content in rest[2:]})
    keys = [file[0] for file in clips]
    frame = pd.DataFrame(
        {"audio": list(clips.values()), "caption": [CAPTIONS[key] for key in keys], "recording_id": keys}
    )
    (tmp_path / "cells").mkdir()
    frame[:2].to_parquet(tmp_path / "cells" / "0.parquet", row_group_size=1)
    frame[2:].assign(audio=[{"bytes": clips["c.ogg"], "path": "c.ogg"}]).to_parquet(tmp_path / "cells" / "1.parquet")
    expected = scanned(tmp_path / "t.csv")
    assert expected.counts["pairs"] == 3
    for folder in ("tars", "cells"):
        found = scanned(tmp_path / folder)
        assert name(found) == name(expected)
        for table in ("clips", "captions", "pairs"):
            pd.testing.assert_frame_equal(getattr(found.manifest, table), getattr(expected.manifest, table))
        assert found.counts == expected.counts
    frame.to_parquet(tmp_path / "one.parquet")
    assert name(scanned(tmp_path / "one.parquet")) == name(expected), "one file is a source as well"


def test_clips_of_shards_have_the_embeddings_of_their_files(tmp_path: Path, clips: dict[str, bytes]) -> None:
    """Other samples by one, or another clip, and nothing would fail."""
    from clapcur.models.clap import Clap
    from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, TextConfig

    front_end = FrontEndConfig(sample_rate=16_000, n_fft=256, hop_samples=160, num_mels=32, f_max=7000.0)
    text = TextConfig(pooling="mean", hidden_size=16, num_layers=1, vocab_size=40)
    audio = AudioConfig(front_end=front_end, width="tiny")
    model = Clap.create(ClapConfig(audio=audio, text=text, embedding_dim=8, window_s=0.4), list(CAPTIONS.values()))
    (tmp_path / "files").mkdir()
    for file, content in clips.items():
        (tmp_path / "files" / file).write_bytes(content)
    write_tar(tmp_path / "a.tar", clips)
    pd.DataFrame({"audio": list(clips.values())}).to_parquet(tmp_path / "a.parquet")
    rows = []
    for source in ("files", "a.tar", "a.parquet"):
        manifest = scanned(tmp_path / source).manifest
        rows.append(model.embed_audio([manifest.paths[clip] for clip in manifest.clips.clip_id]))
    np.testing.assert_array_equal(rows[1], rows[0])
    np.testing.assert_array_equal(rows[2], rows[0])


def test_what_webdataset_writes_is_read(tmp_path: Path, clips: dict[str, bytes]) -> None:
    """A convention that we only believe to follow."""
    webdataset = pytest.importorskip("webdataset", reason="needs the package webdataset, which is not installed")
    with webdataset.ShardWriter(str(tmp_path / "shard-%03d.tar"), maxcount=2, verbose=0) as writer:
        for file, content in clips.items():
            key, kind = file.split(".")
            writer.write(
                {"__key__": f"pool/{key}", kind: content, "txt": CAPTIONS[key], "json": {"label": key}, "cls": 7}
            )
    found = scanned(tmp_path)
    assert len(list(tmp_path.glob("*.tar"))) == 2
    assert {(addresses.readable(path), caption) for path, caption in _pairs(found)} == {
        (f"{tmp_path}/shard-00{number // 2}.tar/pool/{file}", CAPTIONS[file[0]]) for number, file in enumerate(clips)
    }
    assert sorted(found.manifest.clips.label) == ["a", "b", "c"], "of a .json before that of a .cls"


def _pairs(found: Any) -> list[tuple[str, str]]:
    table = found.manifest.pairs.merge(found.manifest.captions).merge(found.manifest.locations)
    return list(zip(table.path, table.caption, strict=True))


# --- what a tar says of its clips ----------------------------------------------------------------------------------


def described(tmp_path: Path, members: Mapping[str, bytes], **config: Any) -> dict[str, set[str]]:
    """Return the captions by member name."""
    found = scanned(write_tar(tmp_path / "a.tar", dict(members)), **config)
    captions: dict[str, set[str]] = {file: set() for file in member_names(found)}
    for path, caption in _pairs(found):
        captions[addresses.readable(path).rpartition("/")[2]].add(caption)
    return captions


def test_captions_are_those_of_text_and_json_members(tmp_path: Path) -> None:
    members = {
        "a.flac": sound(0), "a.txt": b"a  dog\n", 
        "a.json": json.dumps({"text": ["a dog", "barking"], "tag": ["x"]}).encode(),
        "b.flac": sound(1), "b.json": json.dumps({"caption": "rain", "text": "spoken"}).encode(),
        "c.flac": sound(2),
    }  # fmt: skip
    assert described(tmp_path, members) == {"a.flac": {"a dog", "barking"}, "b.flac": {"rain"}, "c.flac": set()}
    columns = Columns(caption="text")
    assert described(tmp_path, members, columns=columns)["b.flac"] == {"spoken"}


def test_names_with_dots_do_not_share_their_captions(tmp_path: Path) -> None:
    """By WebDataset's rule 1.2.wav and 1.3.wav are one sample: each would have the other's caption."""
    members = {
        "1.2.wav": sound(0, "WAV"), "1.3.wav": sound(1, "WAV"), "1.2.txt": b"two", "1.3.txt": b"three",
        "x/2.wav": sound(2, "WAV"), "x/2.caption.txt": b"of x", "y/2.wav": sound(3, "WAV"),
        "3.left.wav": sound(4, "WAV"), "3.right.wav": sound(5, "WAV"), "3.txt": b"both ears",
    }  # fmt: skip
    assert described(tmp_path, members) == {
        "1.2.wav": {"two"}, "1.3.wav": {"three"}, "3.left.wav": {"both ears"}, "3.right.wav": {"both ears"},
        "2.wav": {"of x"},
    }  # fmt: skip


def test_descriptions_without_a_clip_and_members_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    """Shards whose audio has another stem than its texts come out without captions, silently."""
    path = tmp_path / "a.tar"
    clips = {f"{number}.flac": sound(number) for number in range(30)}
    others = {
        "0.json": b"{",
        "1.json": b"[]",
        "2.txt": b"\xff\xfe",
        "3.txt": b" ",
        "gone.txt": b"x",
        "gone.json": b"{}",
    }
    write_tar(path, clips | others | {"._0.flac": b"", "notes.md": b""})
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"link{int(kind)}.flac")
            link.type, link.linkname = kind, "0.flac"
            tar.addfile(link)
        tar.addfile(tarfile.TarInfo("empty.flac"))
    found = scanned(path, max_bad_fraction=0.5)
    assert quarantined(found) == {
        "a.tar/0.flac": "unreadable", "a.tar/1.flac": "unreadable", "a.tar/2.txt": "unreadable",
        "a.tar/3.flac": "empty_caption", "a.tar/link1.flac": "unreadable", "a.tar/link2.flac": "unreadable",
        "a.tar/empty.flac": "empty",
    }  # fmt: skip
    assert (found.counts["clips"], found.counts["without_file"]) == (30, 2)


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("content", "reason", "said"),
    [
        (b'{"label": ["dog", "rain"]}', "wrong_type", r"a\.tar/a\.json, column 'label': expected one value"),
        (b'{"text": {"a": 1}}', "wrong_type", "column 'text': expected one value, got {'a': 1}"),
        (b'{"caption": [["a"]]}', "wrong_type", "column 'caption': expected one value"),
        (b'{"fold": {"a": [1]}, "caption": "x"}', "wrong_type", "column 'fold'"),
        (b'{"caption": ' + DEEP, "unreadable", "recursion"),
        (b'{"label": ' + b"1" * 5000 + b"}", "unreadable", "digits"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_and_stops_nothing(
    tmp_path: Path, content: bytes, reason: str, said: str
) -> None:
    """One member of a million ended the whole ingest."""
    members = {"a.flac": sound(0), "a.json": content, "b.flac": sound(1), "b.json": b'{"caption": "rain"}'}
    found = scanned(write_tar(tmp_path / "a.tar", members), max_bad_fraction=0.5)
    assert quarantined(found) == {"a.tar/a.flac": reason}
    assert re.search(said, found.quarantine.detail[0]) and len(found.quarantine.detail[0]) < 300
    assert [caption for _, caption in _pairs(found)] == ["rain"]


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["inside a clip", "inside a header", "between two members", "garbage"])
def test_what_a_damaged_tar_has_lost_is_in_quarantine_and_the_rest_is_kept(tmp_path: Path, cut: str) -> None:
    """Python's tarfile ends silently where a header is cut or broken: half the pool, and nobody is told."""
    path = write_tar(tmp_path / "a.tar", {f"{number}.flac": sound(number) for number in range(20)})
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    whole, last, start = path.read_bytes(), members[15], members[15].offset
    path.write_bytes(
        {
            "inside a clip": whole[: last.offset_data + 100],
            "inside a header": whole[: start + 100],
            "between two members": whole[:start],
            "garbage": whole[:start] + b"x" * 512 + whole[start + 512 :],
        }[cut]
    )
    found = scanned(path, max_bad_fraction=0.2)
    lost = {"a.tar/15.flac": "truncated"} if cut == "inside a clip" else {}
    assert quarantined(found) == {"a.tar": "truncated"} | lost
    assert member_names(found) == {f"{number}.flac" for number in range(15)}


def test_a_broken_shard_beside_whole_ones_is_in_quarantine(tmp_path: Path) -> None:
    pool = {f"{number}.flac": sound(number) for number in range(30)}
    write_tar(tmp_path / "a.tar", pool)
    (tmp_path / "b.tar").write_bytes(b"<html>404</html>" * 100)
    write_tar(tmp_path / "c.tar", {"picture.jpg": b"x"})
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and then nothing")
    assert quarantined(scanned(tmp_path, max_bad_fraction=0.2)) == {
        "b.tar": "unreadable", "c.tar": "empty", "d.parquet": "unreadable",
    }  # fmt: skip


@pytest.mark.parametrize("file", ["a.tar.gz", "a.tgz", "a.tar"])
def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(gzip.compress(write_tar(tmp_path / "plain", {"a.flac": sound(0)}).read_bytes()))
    for source in (tmp_path / file, tmp_path):
        with pytest.raises(ManifestError, match="compressed: .*unpack it to a .tar"):
            scanned(source)


# --- tables, lists and pools ---------------------------------------------------------------------------------------


def test_a_table_may_name_clips_by_address(tmp_path: Path) -> None:
    """Relative to the table or to the audio folder, like any path."""
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "a.tar", {"a.flac": sound(0), "b.flac": sound(1)})
    listed = shards.list_tar(str(tmp_path / "shards" / "a.tar")).clips
    rows = [(addresses.member_address("shards/a.tar", first, size, file), file) for file, first, size in listed]
    found = scanned(write_csv(tmp_path / "t.csv", [("path", "caption"), *rows]))
    assert pairs(found) == {("a.tar#bytes=" + path.partition("bytes=")[2], caption) for path, caption in rows}


def test_a_table_may_name_shards_but_not_describe_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.flac": sound(0)})
    pd.DataFrame({"audio": [sound(1)]}).to_parquet(tmp_path / "b.parquet")
    tones(tmp_path, 1)
    table = write_csv(tmp_path / "t.csv", [("path",), ("a.tar",), ("b.parquet",), ("0.wav",)])
    assert scanned(table).counts["clips"] == 3
    write_csv(table, [("path", "caption"), ("a.tar", "rain")])
    with pytest.raises(ManifestError, match="line 2 describes a.tar, a shard of many clips"):
        scanned(table)


def test_an_exclusion_list_keeps_a_member_out_by_its_path(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.flac": sound(0), "b.flac": sound(1)})
    (tmp_path / "list.txt").write_text("a.tar/b.flac\n")
    assert member_names(scanned(tmp_path / "a.tar", exclude=(str(tmp_path / "list.txt"),))) == {"a.flac"}


def test_a_table_of_paths_beside_the_audio_is_no_shard(tmp_path: Path) -> None:
    files = tones(tmp_path, 2)
    pd.DataFrame({"path": files, "fingerprint": [b"x", b"y"]}).to_parquet(tmp_path / "t.parquet")
    assert scanned(tmp_path).counts["rows"] == scanned(tmp_path / "t.parquet").counts["rows"] == 2


def test_a_column_of_audio_is_named_where_several_could_be(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"left": [sound(0)], "right": [sound(1)]}).to_parquet(path)
    with pytest.raises(ManifestError, match="left or right may be audio; choose the column"):
        scanned(path)
    (place,) = scanned(path, columns=Columns(path="right")).manifest.paths.values()
    assert place == f"{path}#row=0&column=right"


def test_metadata_for_shards_is_refused(tmp_path: Path) -> None:
    """A table whose paths name no file of a shard would describe nothing."""
    write_tar(tmp_path / "pool.tar", {"a.flac": sound(0)})
    table = write_csv(tmp_path / "meta.csv", [("path", "label"), ("a.flac", "dog")])
    with pytest.raises(ManifestError, match="holds the shard pool.tar: ingest shards separately"):
        scanned(tmp_path, metadata=str(table))


def test_a_pool_that_grows_by_a_shard_probes_the_new_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of a thousand shards that is decoded again for each new one."""
    probed: list[str] = []
    original = probes.probe
    monkeypatch.setattr(probes, "probe", lambda path, rules: probed.append(path) or original(path, rules))
    pool, cache = tmp_path / "pool", tmp_path / "probes.db"
    pool.mkdir()
    for number in range(2):
        write_tar(pool / f"{number}.tar", {f"{number}-{clip}.flac": sound(10 * number + clip) for clip in range(3)})
        scanned(pool, cache)
    assert [addresses.container_of(path) for path in probed] == [str(pool / "0.tar")] * 3 + [str(pool / "1.tar")] * 3
    write_tar(pool / "1.tar", {"other.flac": sound(99)})
    scanned(pool, cache)
    assert len(probed) == 7, "a shard that was written anew is looked at again"


# --- object stores -------------------------------------------------------------------------------------------------


def test_a_pool_in_a_store_is_the_pool_on_the_disk(
    tmp_path: Path, clips: dict[str, bytes], object_store: AbstractFileSystem
) -> None:
    write_tar(tmp_path / "a.tar", sample(clips))
    extra = sound(9)
    (tmp_path / "d.flac").write_bytes(extra)
    pd.DataFrame({"audio": [sound(8)], "caption": ["hum"]}).to_parquet(tmp_path / "b.parquet")
    for file in ("a.tar", "d.flac", "b.parquet"):
        object_store.pipe_file(f"/bucket/pool/deep/{file}", (tmp_path / file).read_bytes())
    object_store.pipe_file("/bucket/pool/.hidden/e.flac", extra)
    object_store.pipe_file("/bucket/pool/readme.md", b"no audio")
    found, expected = scanned_url("memory://bucket/pool/"), scanned(tmp_path)
    assert name(found) == name(expected) and found.counts["clips"] == 5
    assert {path.partition("#")[0] for path in found.manifest.paths.values()} == {
        f"memory://bucket/pool/deep/{file}" for file in ("a.tar", "d.flac", "b.parquet")
    }
    assert scanned_url("memory://bucket/pool/deep/a.tar").counts["clips"] == 3
    manifest = Manifest.open(make(Store(tmp_path / "store"), found))
    assert manifest.paths == found.manifest.paths, "a URL comes out of the table as it went in"


def test_a_table_may_name_objects_and_their_members(tmp_path: Path, object_store: AbstractFileSystem) -> None:
    """A URL that is taken for a path loses a slash, and every clip is missing."""
    object_store.pipe_file("/bucket/a.tar", write_tar(tmp_path / "a.tar", {"a.flac": sound(0)}).read_bytes())
    object_store.pipe_file("/bucket/b.flac", sound(1))
    (tmp_path / "c.flac").write_bytes(sound(2))
    ((_, first, size),) = shards.list_tar("memory://bucket/a.tar").clips
    member = addresses.member_address("memory://bucket/a.tar", first, size, "a.flac")
    places = [member, "memory://bucket/b.flac", f"{tmp_path}/c.flac"]
    roots = ("/", "memory://bucket/")
    found = scanned(write_csv(tmp_path / "t.csv", [("path",), *((place,) for place in places)]), roots=roots)
    assert set(found.manifest.paths.values()) == set(places)
    table = write_csv(tmp_path / "t.csv", [("path",), ("memory://bucket/a.tar",)])
    found = scanned(table, tmp_path / "probes.db", roots=roots)
    assert list(found.manifest.paths.values()) == [member]


def test_a_store_is_read_once_and_then_only_listed(
    tmp_path: Path,
    object_store: AbstractFileSystem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every look at a pool would fetch all of it, and be paid for."""
    content = write_tar(tmp_path / "a.tar", {f"{number}.flac": sound(number) for number in range(3)}).read_bytes()
    object_store.pipe_file("/pool/a.tar", content)
    object_store.pipe_file("/pool/b.flac", sound(7))
    asked: list[str] = []

    def spy(original: Any) -> Any:
        return lambda *given, **more: asked.append(original.__name__) or original(*given, **more)

    monkeypatch.setattr(MemoryFileSystem, "open", spy(MemoryFileSystem.open))
    monkeypatch.setattr(MemoryFileSystem, "cat_file", spy(MemoryFileSystem.cat_file))
    first = scanned_url("memory://pool", tmp_path / "probes.db")
    assert asked == ["open"] * 5, "the tar for its list, and each clip once"
    asked.clear()
    second = scanned_url("memory://pool", tmp_path / "probes.db")
    assert name(first) == name(second) and second.manifest.paths == first.manifest.paths
    assert not asked


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing/here", "does not exist"),
        ("memory://bucket/t.csv", "a table must be a local file"),
        ("gs://bucket/pool", "Please install gcsfs"),
    ],
)
def test_a_url_that_cannot_be_a_source_is_refused_with_what_to_do(
    url: str, message: str, object_store: AbstractFileSystem
) -> None:
    object_store.pipe_file("/bucket/t.csv", b"path\n")
    with pytest.raises(DataError, match=message):
        scanned_url(url)
