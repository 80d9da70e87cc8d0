"""Manifests: ids that never change, tables that cannot contradict each other, a split that cannot leak."""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clapcur.data.manifest import (
    Manifest,
    caption_id,
    captions_table,
    normalise_caption,
    read_locations,
    union,
    write_locations,
)
from clapcur.errors import ManifestError
from clapcur.store.artifacts import LOCATIONS, Artifact, Store
from clapcur.testing import clips_table, manifest

NO_CAPTIONS = captions_table([])
NO_PAIRS = pd.DataFrame({"clip_id": [], "caption_id": []}, dtype="str")
NO_PLACES = pd.DataFrame({"clip_id": [], "path": []}, dtype="str")


def table_of(clips: pd.DataFrame, captions: pd.DataFrame = NO_CAPTIONS, pairs: pd.DataFrame = NO_PAIRS) -> Manifest:
    return Manifest(clips, captions, pairs, NO_PLACES)


def test_a_caption_is_named_by_the_sha256_of_its_text() -> None:
    """A change of the hash or of the normal form renames every caption and orphans every stored pair."""
    # FIPS 180-2, appendix B.1: SHA-256 of "abc"
    assert caption_id("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert caption_id(" abc\r\n") == caption_id("abc")
    assert caption_id("Abc") != caption_id("abc")


@given(st.text())
def test_captions_that_look_the_same_have_the_same_id(text: str) -> None:
    """The same sentence typed on a Mac (decomposed accents) would be another caption, and never be found as known."""
    once = normalise_caption(text)
    assert normalise_caption(once) == once
    for other in (unicodedata.normalize("NFD", text), f"\t{text}\u00a0 ", text.replace(" ", "  ")):
        assert caption_id(other) == caption_id(text)


@given(st.lists(st.text(max_size=8), max_size=12))
def test_the_captions_table_does_not_depend_on_order_or_repetition(texts: list[str]) -> None:
    table = captions_table(texts)
    pd.testing.assert_frame_equal(table, captions_table([*reversed(texts), *texts]))
    assert set(table.caption) == {normalise_caption(text) for text in texts}
    assert table.caption_id.tolist() == sorted(table.caption_id)
    assert all(caption_id(row.caption) == row.caption_id for row in table.itertuples())
    assert (table.dtypes == "str").all(), "an empty table must have the types of a full one"


def test_another_kind_of_artifact_is_no_manifest() -> None:
    with pytest.raises(ManifestError, match="expected a manifest, got the checkpoint abc"):
        Manifest.open(Artifact("checkpoint", "abc", "/nowhere"))


def test_a_manifest_reads_back_what_was_written(tmp_path) -> None:
    clips = clips_table(["a", "b"], recording_id=["r1", ""], label=["dog", "rain"])
    opened = Manifest.open(manifest(Store(tmp_path), "m", clips, [("a", "a dog barks")], ["wind"]))
    pd.testing.assert_frame_equal(opened.clips, clips)
    assert opened.captions.caption.tolist() == captions_table(["a dog barks", "wind"]).caption.tolist()
    assert opened.pairs.values.tolist() == [["a", caption_id("a dog barks")]]
    assert {clip: str(path) for clip, path in opened.paths.items()} == {"a": "/nowhere/a.wav", "b": "/nowhere/b.wav"}


def test_tables_that_contradict_each_other_are_refused() -> None:
    """A pair whose clip is not there would be trained on with another clip's row, or drop out silently."""
    clips, captions = clips_table(["a"]), captions_table(["wind"])
    for clip, caption, said in (("b", caption_id("wind"), "clip_id .*: b"), ("a", "nothing", "caption_id .*: nothing")):
        with pytest.raises(ManifestError, match=said):
            table_of(clips, captions, pd.DataFrame({"clip_id": [clip], "caption_id": [caption]}))
    with pytest.raises(ManifestError, match="clip_id must be unique, but 1 rows"):
        table_of(clips_table(["a", "a"]))
    with pytest.raises(ManifestError, match="caption_id must be unique"):
        table_of(clips, pd.concat([captions, captions]))
    with pytest.raises(ManifestError, match="table 'clips' must have the columns"):
        table_of(clips.drop(columns="fold"))


def test_clips_of_one_recording_are_one_group_and_others_stand_alone() -> None:
    clips = clips_table(["a", "b", "c", "d"], recording_id=["r", "", "r", ""])
    assert table_of(clips).groups == {"a": "r", "b": "b", "c": "r", "d": "d"}


def test_the_held_out_clips_are_whole_recordings_of_about_the_share_asked_for() -> None:
    """Cuts of one recording on both sides: selection and calibration would see what was trained on."""
    ids = [f"clip{i}" for i in range(3000)]
    recordings = [f"rec{i // 3}" for i in range(3000)]
    clips = table_of(clips_table(ids, recording_id=recordings))
    held = clips.held_out(0.2)
    assert 0.17 < len(held) / 3000 < 0.23  # 1000 recordings: 0.2 +- 2.4 standard deviations
    for first in range(0, 3000, 3):
        assert len(held & set(ids[first : first + 3])) in (0, 3)
    assert clips.held_out(0) == set()
    assert clips.held_out(0.1) < held, "a larger share holds all of the smaller"


def test_what_is_held_out_does_not_depend_on_what_else_is_in_the_manifest() -> None:
    """A pool that grows would move clips from the held-out side into training."""
    ids = [f"clip{i}" for i in range(200)]
    many, few = table_of(clips_table(ids)), table_of(clips_table(ids[50:100]))
    assert few.held_out(0.3) == many.held_out(0.3) & set(ids[50:100])


def test_the_choice_is_the_sha256_of_the_recording_and_so_the_same_for_ever() -> None:
    """Python's own hash() differs from process to process: the teacher's held-out clips would train the student."""
    ids = [f"clip{i}" for i in range(50)]
    chosen = {
        name for name in ids if int(hashlib.sha256(f"held-out:{name}".encode()).hexdigest()[:16], 16) < 2**64 // 4
    }
    assert table_of(clips_table(ids)).held_out(0.25) == chosen


@pytest.mark.parametrize("fraction", [-0.1, 1, 20, float("nan")])
def test_a_share_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="held-out fraction"):
        table_of(clips_table(["a"])).held_out(fraction)


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        table_of(clips_table(["a"])).clips = clips_table([])  # type: ignore[misc]


def test_several_manifests_become_one_in_which_the_first_description_counts(tmp_path) -> None:
    """Freesound's clips are in Clotho and in FSD50K: counted twice, the teacher hears them twice."""
    store = Store(tmp_path)
    first = manifest(
        store, "1", clips_table(["b", "c"], label=["dog", "rain"]), [("b", "a dog"), ("c", "rain")], ["wind"]
    )
    second = manifest(store, "2", clips_table(["a", "b"], label=["car", "hound"]), [("a", "a car"), ("b", "a hound")])
    one = union([Manifest.open(first), Manifest.open(second)])
    assert dict(zip(one.clips.clip_id, one.clips.label, strict=True)) == {"a": "car", "b": "dog", "c": "rain"}
    assert len(one.pairs) == 4 and set(one.captions.caption) == {"a dog", "rain", "wind", "a car", "a hound"}
    other = union([Manifest.open(second), Manifest.open(first)])
    pd.testing.assert_frame_equal(one.pairs, other.pairs)
    assert other.clips.label.tolist()[1] == "hound"


def test_a_share_takes_whole_recordings_and_grows_into_a_larger_share(tmp_path) -> None:
    """A tenth that is no part of a fifth compares two things at once: how much was learned, and of what."""
    clips = [f"clip{index:03d}" for index in range(300)]
    table = clips_table(clips, recording_id=[f"recording {index // 3}" for index in range(300)])
    pairs = [(clip, f"caption {index}") for index, clip in enumerate(clips)]
    whole = Manifest.open(manifest(Store(tmp_path), "all", table, pairs, ["a caption without a clip"]))
    tenth, half = whole.sample(0.1), whole.sample(0.5)
    assert 5 <= tenth.clips.recording_id.nunique() <= 20
    assert (tenth.clips.groupby("recording_id").size() == 3).all()
    assert set(tenth.clips.clip_id) < set(half.clips.clip_id)
    assert len(tenth.captions) == len(tenth.pairs) + 1 == len(tenth.locations) + 1
    assert whole.sample(1.0).clips.equals(whole.clips)
    held_out = whole.held_out(0.5)
    both = len(held_out & set(half.clips.clip_id)) / len(half.clips)
    assert 0.3 < both < 0.7, "what is taken says nothing about what is held out"


def cut(data: bytes, at: int) -> bytes:
    return data[:at]


def flip_a_bit(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


@pytest.mark.parametrize("spoil", [cut, flip_a_bit])
def test_damaged_places_are_refused_and_written_anew(tmp_path: Path, spoil: Callable[[bytes, int], bytes]) -> None:
    """No digest covers this table: a flipped bit would lead to another file, or stop every ingest for good."""
    places = pd.DataFrame({"clip_id": ["a" * 64, "b" * 64], "path": ["sounds/rain.wav", "sounds/dog.wav"]})
    assert write_locations(places, tmp_path) and not write_locations(places, tmp_path)
    table = tmp_path / LOCATIONS
    whole = table.read_bytes()
    refused = 0
    for at in range(len(whole)):
        table.write_bytes(spoil(whole, at))
        try:
            assert read_locations(tmp_path).equals(places), f"byte {at}"
        except ManifestError as error:
            assert str(table) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > len(whole) / 3  # the rest are fields that no reader looks at
    assert write_locations(places, tmp_path) and table.read_bytes() == whole
