"""Addresses: a clip in a container or an object store is the same clip as its file."""

import io
import tarfile
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from addressed_sounds import RATE, content, sound, write_tar
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFile
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from clapcur.audio import Problem, UnusableAudio, cells, load_audio, probe
from clapcur.audio.addresses import absolute, cell_address, member_address, readable, reading_order
from clapcur.errors import DataError
from clapcur.stages.ingest.shards import list_tar


def members_of(path: Path) -> dict[str, str]:
    """Return the addresses of the audio in a tar by name."""
    return {name: member_address(str(path), offset, size, name) for name, offset, size in list_tar(str(path)).clips}


# --- tar -----------------------------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=120)


@settings(max_examples=60, deadline=None)
@given(
    folders=st.lists(st.lists(names, max_size=2), min_size=1, max_size=5),
    sizes=st.lists(st.sampled_from([0, 1, 511, 512, 513, 5000]), min_size=5, max_size=5),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_members_are_those_that_the_standard_library_reads(
    folders: list[list[str]], sizes: list[int], form: int, tmp_path_factory
) -> None:
    """One block too far behind a long name, and every clip begins inside the one before."""
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    inside = ["/".join((*("d" + part for part in folder), f"{number}.wav")) for number, folder in enumerate(folders)]
    write_tar(path, {name: bytes([n + 1]) * sizes[n] for n, name in enumerate(inside)}, form)
    with tarfile.open(path) as tar:
        expected = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert {name: content(address) for name, address in members_of(path).items()} == expected


@pytest.mark.parametrize("kind", ["FLAC", "WAV", "OGG", "AIFF", "MP3"])
def test_a_clip_in_a_container_is_the_clip_in_its_file(tmp_path: Path, kind: str) -> None:
    """Other ids, lengths or samples: the same pool as shards would be another pool."""
    clips = {f"{seed}.{kind.lower()}": sound(seed, kind) for seed in range(3)}
    tar = members_of(write_tar(tmp_path / "a.tar", clips))
    pd.DataFrame({"audio": list(clips.values())}).to_parquet(tmp_path / "a.parquet", row_group_size=2)
    for row, (name, encoded) in enumerate(clips.items()):
        (tmp_path / name).write_bytes(encoded)
        for address in (tar[name], cell_address(str(tmp_path / "a.parquet"), row, "audio")):
            assert probe(address) == probe(tmp_path / name)
            np.testing.assert_array_equal(load_audio(address, 8000), load_audio(tmp_path / name, 8000))


@pytest.mark.parametrize("kind", ["FLAC", "WAV", "OGG", "AIFF"])
def test_a_cut_clip_in_a_whole_container_is_named(tmp_path: Path, kind: str) -> None:
    """The next member begins where the clip ends: libsndfile would read on into it, or stop silently."""
    cut = sound(0, kind, num_samples=40_000)
    (address, _) = members_of(write_tar(tmp_path / "a.tar", {"a.wav": cut[: len(cut) // 2], "b.wav": cut})).values()
    answer = probe(address)
    assert isinstance(answer, Problem) and answer.reason == "truncated"


def test_a_container_that_ends_inside_a_clip_or_before_it_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.flac": sound(0), "b.flac": sound(1)})
    first, second = members_of(path).values()
    size = len(sound(0))
    path.write_bytes(path.read_bytes()[: 512 + size - 10])
    assert probe(first) == Problem("truncated", f"its container ends after {size - 10} of its {size} bytes")
    for address in (second, first.replace("a.tar", "gone.tar")):
        answer = probe(address)
        assert isinstance(answer, Problem) and answer.reason in ("truncated", "missing")
        assert str(tmp_path) not in answer.detail


def test_a_shard_is_read_at_random_by_many_threads(tmp_path: Path) -> None:
    """One position for all threads, or one buffer: now and then a clip that is another."""
    clips = {f"{seed}.wav": sound(seed, "WAV", 50 * (seed + 1)) for seed in range(60)}
    tar = members_of(write_tar(tmp_path / "a.tar", clips))
    table = pa.table({"audio": pa.array(list(clips.values()))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    rows = {name: cell_address(str(tmp_path / "a.parquet"), row, "audio") for row, name in enumerate(clips)}
    wrong = []

    def work(seed: int) -> None:
        for name in np.random.default_rng(seed).permutation(list(clips)):
            for address in (tar[name], rows[name]):
                if content(address) != clips[name]:
                    wrong.append(address)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- Parquet -------------------------------------------------------------------------------------------------------


def test_rows_in_their_order_read_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group read anew for each of its rows: an ingest that reads the pool a hundred times."""
    monkeypatch.setattr(cells, "GROUPS", cells._RowGroups())
    monkeypatch.setattr(cells, "KEPT_BYTES", 1)
    read, original = [], cells._read_group
    monkeypatch.setattr(cells, "_read_group", lambda *asked: read.append(asked[2]) or original(*asked))
    clips = [bytes([number]) * 100 for number in range(10)]
    pd.DataFrame({"audio": clips}).to_parquet(tmp_path / "a.parquet", row_group_size=4)
    path = str(tmp_path / "a.parquet")
    assert [content(cell_address(path, row, "audio")) for row in range(10)] == clips
    assert read == [0, 1, 2]


def test_a_parquet_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for value in (b"one", b"other"):
        pd.DataFrame({"audio": [value]}).to_parquet(path)
        assert content(cell_address(str(path), 0, "audio")) == value


@pytest.mark.parametrize(
    ("row", "column", "reason", "detail"),
    [
        (9, "audio", "truncated", "3 rows"),
        (1, "audio", "unreadable", "no bytes"),
        (0, "sound", "unreadable", "no column 'sound'"),
        (0, "text", "unreadable", "Format not recognised"),
        (2, "audio", "empty", "0 bytes"),
    ],
)
def test_a_cell_that_holds_no_audio_is_named(tmp_path: Path, row: int, column: str, reason: str, detail: str) -> None:
    values = [{"bytes": sound(0), "path": "a"}, {"bytes": None, "path": "b"}, {"bytes": b"", "path": "c"}]
    pd.DataFrame({"audio": values, "text": ["x", "y", "z"]}).to_parquet(tmp_path / "a.parquet")
    answer = probe(cell_address(str(tmp_path / "a.parquet"), row, column))
    assert isinstance(answer, Problem) and answer.reason == reason and detail in answer.detail


def test_a_row_group_that_fills_the_memory_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAPCUR_MAX_CLIP_BYTES", "500")
    pd.DataFrame({"audio": [sound(0)]}).to_parquet(tmp_path / "a.parquet")
    answer = probe(cell_address(str(tmp_path / "a.parquet"), 0, "audio"))
    assert isinstance(answer, Problem) and "row_group_size=100" in answer.detail


# --- object stores -------------------------------------------------------------------------------------------------


def test_an_object_and_its_parts_are_read_like_files(tmp_path: Path, object_store: AbstractFileSystem) -> None:
    clips = {"a.flac": sound(0), "b.wav": sound(1, "WAV")}
    (first, second) = members_of(write_tar(tmp_path / "a.tar", clips)).values()
    pd.DataFrame({"audio": list(clips.values())}).to_parquet(tmp_path / "a.parquet")
    for name in ("a.tar", "a.parquet"):
        object_store.pipe_file(f"/pool/{name}", (tmp_path / name).read_bytes())
    object_store.pipe_file("/pool/a.flac", clips["a.flac"])
    assert content("memory://pool/a.flac") == clips["a.flac"]
    for address, expected in ((first, "a.flac"), (second, "b.wav")):
        assert content(address.replace(str(tmp_path), "memory://pool")) == clips[expected]
    assert content(cell_address("memory://pool/a.parquet", 1, "audio")) == clips["b.wav"]
    with pytest.raises(UnusableAudio, match="missing"):
        load_audio("memory://pool/gone.flac", RATE)


def test_a_member_of_an_object_asks_for_its_bytes_and_no_more(
    tmp_path: Path, object_store: AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard fetched whole for each of its thousand clips."""
    (_, second) = members_of(write_tar(tmp_path / "a.tar", {"a.wav": sound(0), "b.wav": sound(1)})).values()
    object_store.pipe_file("/pool/a.tar", (tmp_path / "a.tar").read_bytes())
    asked: list[int] = []
    monkeypatch.setattr(MemoryFile, "read", lambda self, size=-1: asked.append(size) or io.BytesIO.read(self, size))
    assert content(second.replace(str(tmp_path), "memory://pool")) == sound(1)
    assert asked == [len(sound(1))]


def test_a_store_whose_package_is_absent_is_an_error_and_no_problem_of_a_clip() -> None:
    """A pool of a million clips in quarantine as unreadable."""
    with pytest.raises(DataError, match="gs://bucket/a.wav cannot be read here: .*gcsfs"):
        probe("gs://bucket/a.wav")
    with pytest.raises(DataError, match="no-such cannot be read here|Protocol not known"):
        probe("nosuchstore://a/b.wav")


# --- texts ---------------------------------------------------------------------------------------------------------


def test_relative_addresses_are_relative_to_their_base() -> None:
    """A name with dots or slashes is no path: folded, it would be another member's."""
    member = "b.tar#bytes=512-600&name=../x//y.wav"
    assert absolute("/pool/a", "../" + member) == "/pool/" + member
    assert absolute("s3://bucket/pool", member) == "s3://bucket/pool/" + member
    for fixed in ("/c.wav", "s3://other//c.wav"):
        assert absolute("/pool", fixed) == fixed
    assert absolute("/pool", "a#1.wav") == "/pool/a#1.wav", "a # alone makes no container"


def test_addresses_are_read_by_people_and_sorted_as_they_lie() -> None:
    members = [f"/a.tar#bytes={first}-{first + 9}&name={first}.wav" for first in (512, 9216, 10_240)]
    rows = [cell_address("/b.parquet", row, "audio") for row in (2, 10)]
    assert sorted([*rows[::-1], *members[::-1]], key=reading_order) == [*members, *rows]
    assert readable(members[0]) == "/a.tar/512.wav" and readable(rows[0]) == rows[0]
