"""Ingest: what enters a manifest, what does not and why, and that the same content has the same name."""

import csv
import json
import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_tools import make, name, pairs, quarantined, scanned, tones, write_csv

from clapcur.audio import opening, probe
from clapcur.config import from_dict
from clapcur.data.manifest import Manifest, normalise_caption
from clapcur.errors import ArtifactError, ManifestError
from clapcur.stages.ingest import Columns, IngestConfig, Scan, probes, refresh_locations, scan
from clapcur.store.artifacts import LOCATIONS, Store
from clapcur.testing import write_tone

PAYLOAD = ("clips.parquet", "captions.parquet", "pairs.parquet", "quarantine.parquet")


def by_file(found: Scan, column: str) -> dict[str, str]:
    table = found.manifest.clips.merge(found.manifest.locations)
    return {Path(path).name: value for path, value in zip(table.path, table[column], strict=True)}


# --- sources -------------------------------------------------------------------------------------------------------


def test_a_table_gives_clips_captions_and_pairs(tmp_path: Path) -> None:
    a, b = tones(tmp_path / "audio", 2)
    rows = [
        ("path", "caption", "label", "fold", "recording_id"),
        (f"audio/{a}", "a low tone", "tone", "1", "007"),
        (f"audio/{a}", "somebody  hums", "tone", "1", "007"),
        (f"audio/{b}", "a low tone", "NA", "", ""),
    ]
    found = scanned(write_csv(tmp_path / "t.csv", rows))
    assert pairs(found) == {(a, "a low tone"), (a, "somebody hums"), (b, "a low tone")}
    assert by_file(found, "recording_id") == {a: "007", b: ""}, "an id keeps its zeros"
    assert by_file(found, "label") == {a: "tone", b: "NA"}, "NA is a label, not a missing value"
    assert by_file(found, "fold") == {a: "1", b: ""}
    counts = {"clips": 2, "captions": 2, "pairs": 3, "rows": 3, "quarantined": 0, "duplicates": 0}
    assert counts.items() <= found.counts.items()


def test_every_form_of_a_table_gives_the_same_manifest(tmp_path: Path) -> None:
    """The same pool as CSV and as Parquet would be embedded twice, and be two experiments."""
    files = tones(tmp_path, 3)
    texts = ['a "quoted", comma', "two\nlines", "Straße — 雨"]
    header, rows = ["path", "caption", "recording_id"], list(zip(files, texts, ["12", "13", ""], strict=True))
    write_csv(tmp_path / "t.csv", [header, *rows])
    write_csv(tmp_path / "t.tsv", [header, *rows], "\t")
    (tmp_path / "windows.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "t.csv").read_bytes())
    (tmp_path / "unix.csv").write_bytes((tmp_path / "t.csv").read_bytes().replace(b"\r\n", b"\n"))
    records = [dict(zip(header, row, strict=True)) for row in rows]
    records[2]["recording_id"] = None  # type: ignore[assignment]
    (tmp_path / "t.jsonl").write_text("\n\n".join(json.dumps(record) for record in records))
    frame = pd.DataFrame(records)
    frame["recording_id"] = [12.0, 13.0, np.nan]  # what pandas makes of integers with a gap
    frame["caption"] = [[text] for text in texts]
    frame.to_parquet(tmp_path / "t.parquet")
    names = {name(scanned(path)) for path in sorted(tmp_path.glob("*[!0-9].*")) if path.suffix != ".wav"}
    assert len(names) == 1
    assert pairs(scanned(tmp_path / "t.jsonl")) == {
        (file, normalise_caption(text)) for file, text in zip(files, texts, strict=True)
    }


@settings(max_examples=40, deadline=None)
@given(
    captions=st.lists(
        st.text(min_size=1).filter(lambda text: len(normalise_caption(text)) > 4), min_size=1, max_size=8, unique=True
    )
)
def test_captions_come_through_every_table_as_they_were(captions: list[str], tmp_path_factory) -> None:
    """A comma, a quote or a line end that shifts or cuts a caption: the model learns from the rest of it."""
    folder = tmp_path_factory.mktemp("tables")
    expected = {normalise_caption(text) for text in captions}
    write_csv(folder / "t.csv", [("caption", "other"), *((text, "x,\ty") for text in captions)])
    write_csv(folder / "t.tsv", [("caption", "other"), *((text, "x,\ty") for text in captions)], "\t")
    (folder / "t.jsonl").write_text("\n".join(json.dumps({"caption": text}, ensure_ascii=False) for text in captions))
    (folder / "list.jsonl").write_text(json.dumps({"caption": captions}))
    pd.DataFrame({"caption": captions}).to_parquet(folder / "t.parquet")
    for path in sorted(folder.iterdir()):
        found = scanned(path)
        assert set(found.manifest.captions.caption) == expected, path.name
        assert found.counts["quarantined"] == 0


def test_a_text_file_is_one_caption_per_line(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes('\ufeffrain, then "wind"\r\n\r\nwind\r\nwind\r\n'.encode())
    found = scanned(path, max_bad_fraction=0.25)
    assert set(found.manifest.captions.caption) == {'rain, then "wind"', "wind"}
    assert (len(found.manifest.clips), len(found.manifest.pairs)) == (0, 0)
    assert quarantined(found) == {"line 2": "empty_caption"}


def test_a_folder_is_all_its_audio_in_whatever_depth(tmp_path: Path) -> None:
    tones(tmp_path / "pool" / "b" / "deep", 2)
    tones(tmp_path / "elsewhere", 3)
    soundfile.write(tmp_path / "pool" / "0.FLAC", *soundfile.read(tmp_path / "elsewhere" / "0.wav", dtype="int16"))
    (tmp_path / "pool" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pool" / "b" / "up").symlink_to(tmp_path / "pool")
    (tmp_path / "pool" / "notes.txt").write_text("no audio")
    (tmp_path / "pool" / "._0.wav").write_bytes(b"what macOS puts beside a file")
    found = scanned(tmp_path / "pool")
    files = sorted(Path(path).relative_to(tmp_path / "pool").as_posix() for path in found.manifest.paths.values())
    assert files == ["0.FLAC", "b/deep/0.wav", "b/deep/1.wav", "linked/2.wav"]
    assert (found.counts["duplicates"], found.counts["same_sound"]) == (2, 1), "0.FLAC sounds like 0.wav and is kept"
    assert found.counts["quarantined"] == found.counts["captions"] == found.counts["pairs"] == 0


def test_audio_that_libsndfile_cannot_read_is_seen_and_not_passed_over(tmp_path: Path) -> None:
    """A pool of .m4a files that comes out empty, or a tenth smaller, silently."""
    tones(tmp_path, 1)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    assert quarantined(scanned(tmp_path, max_bad_fraction=0.5)) == {"a.m4a": "unreadable"}


def test_metadata_is_joined_to_the_files_of_a_folder(tmp_path: Path) -> None:
    """Recording ids that are not found by their path: cuts of one recording land on both sides of a split."""
    files = tones(tmp_path / "pool", 3)
    rows = [("path", "label", "recording_id"), (files[0], "dog", "9"), (files[1], "rain", "9"), ("gone.wav", "x", "8")]
    table = write_csv(tmp_path / "meta.csv", rows)
    found = scanned(tmp_path / "pool", metadata=str(table))
    assert by_file(found, "recording_id") == {files[0]: "9", files[1]: "9", files[2]: ""}
    assert by_file(found, "label") == {files[0]: "dog", files[1]: "rain", files[2]: ""}
    assert (found.counts["without_metadata"], found.counts["without_file"]) == (1, 1)
    write_csv(tmp_path / "meta.csv", [("path", "label"), *((f"pool/{file}", "dog") for file in files)])
    with pytest.raises(ManifestError, match=r"'0.wav', the table's first path is 'pool/0.wav'; set `audio_folder`"):
        scanned(tmp_path / "pool", metadata=str(table))
    assert by_file(
        scanned(tmp_path / "pool", metadata=str(table), audio_folder=str(tmp_path)), "label"
    ) == dict.fromkeys(files, "dog")


def test_columns_may_have_any_name_and_captions_many_columns(tmp_path: Path) -> None:
    (file,) = tones(tmp_path / "clips", 1)
    rows = [("file_name", "caption_1", "caption_2"), (file, "one", "two")]
    table = write_csv(tmp_path / "t.csv", rows)
    columns = Columns(path="file_name", caption=("caption_1", "caption_2"))
    assert pairs(scanned(table, columns=columns, audio_folder=str(tmp_path / "clips"))) == {
        (file, "one"),
        (file, "two"),
    }
    texts = scanned(table, columns=Columns(path=None, caption=("caption_1", "caption_2")))
    assert set(texts.manifest.captions.caption) == {"one", "two"} and not len(texts.manifest.clips)


@pytest.mark.parametrize(
    ("header", "columns", "said"),
    [
        (
            ("path", "captions"),
            {"caption": "captoin"},
            r"'captoin'; its columns are \['path', 'captions'\]; did you .*captions",
        ),
        (("path", "Captions"), {}, "no column 'caption', but has 'Captions'"),
        (("filename", "caption"), {}, "no column 'path', but has 'filename'"),
        (("path", "recording id"), {}, "'recording_id', but has 'recording id'.* or `recording_id: null`"),
        (("sound", "pathh"), {}, r"'path' or 'caption'; its columns are \['sound', 'pathh'\]; did you mean 'pathh'"),
        (("path", "path"), {}, "more than one column 'path'"),
    ],
)  # fmt: skip
def test_a_wrong_column_is_named_with_those_that_there_are(
    tmp_path: Path, header: tuple[str, ...], columns: dict[str, str], said: str
) -> None:
    """A column that is not found and counts as absent: all captions, or all the audio, are gone silently."""
    (file,) = tones(tmp_path, 1)
    table = write_csv(tmp_path / "t.csv", [header, (file, "text")])
    with pytest.raises(ManifestError, match=said):
        scanned(table, columns=Columns(**columns))


def test_a_column_of_a_similar_name_can_be_left_or_taken(tmp_path: Path) -> None:
    (file,) = tones(tmp_path, 1)
    table = write_csv(tmp_path / "t.csv", [("path", "Labels"), (file, "dog")])
    assert by_file(scanned(table, columns=Columns(label=None)), "label") == {file: ""}
    assert by_file(scanned(table, columns=Columns(label="Labels")), "label") == {file: "dog"}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("t.csv", b"", "is empty: the first line must name the columns"),
        ("t.csv", b"path,caption\n", "has no rows"),
        ("t.csv", b"path,caption\na.wav,a dog, barking\n", "line 2: 3 cells, but the header has 2.*double quotes"),
        ("t.csv", b'path,caption\na.wav,"never closed\nb.wav,x\n', "is a quote unclosed or not doubled"),
        ("t.csv", "path,caption\na.wav,hören\n".encode("latin-1"), "is not UTF-8"),
        ("t.txt", "hören\n".encode("utf-16")[:-1], "is marked as UTF-16 but is not valid"),
        ("t.csv", "path,caption\na.wav,hören\n".encode("utf-16")[:-1], "is marked as UTF-16 but is not valid"),
        ("t.jsonl", b'{"caption": "x"}\n{"caption": \n', "line 2: not JSON"),
        ("t.jsonl", b'["x"]\n', "line 1: expected a JSON object"),
        ("t.parquet", b"PAR1 not", "not a Parquet file"),
        ("t.xlsx", b"PK", r"expected a table \(.csv, .tsv, .jsonl, .parquet\), got .xlsx"),
        ("gone.csv", None, "does not exist"),
        ("", None, "no audio file"),
    ],
)
def test_a_broken_source_is_one_clear_error(tmp_path: Path, file: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ManifestError, match=said):
        scanned(tmp_path / file)


# --- quarantine ----------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path: Path) -> dict[str, str]:
    """Write one file of each way to be bad, beside two good ones; file name -> reason."""
    folder, rate = tmp_path / "pool", 16_000
    tones(folder, 2)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * rate).astype(np.float32)

    def write(file: str, samples: np.ndarray) -> Path:
        soundfile.write(folder / file, samples, rate, subtype="FLOAT" if file.endswith("wav") else None)
        return folder / file

    (folder / "unreadable.wav").write_text("<html>404 not found</html>")
    (folder / "empty.wav").touch()
    write("no_frames.wav", samples[:0])
    for kind in ("wav", "flac", "ogg"):
        path = write(f"truncated.{kind}", samples)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    write("silent.flac", np.zeros(rate))
    write("non_finite.wav", np.where(np.arange(5 * rate) == 70_000, np.nan, samples))
    write("too_short.wav", samples[:100])
    write("too_long.wav", np.tile(samples, 2))
    named = {path.name: path.stem for path in folder.iterdir() if path.stem not in "01"}
    return named | {"no_frames.wav": "empty"}


def test_every_bad_file_stands_in_quarantine_with_its_reason(tmp_path: Path, spoilt: dict[str, str]) -> None:
    """A bad file that ends the ingest of a million, or one that enters."""
    table = write_csv(
        tmp_path / "t.csv", [("path",), *((f"pool/{file}",) for file in ["0.wav", "1.wav", *spoilt, "no.wav"])]
    )
    rules = from_dict(IngestConfig, {"source": "x", "rules": {"max_duration_s": 6}}).rules
    found = scanned(table, rules=rules, max_bad_fraction=0.9)
    assert quarantined(found) == {f"pool/{file}": why for file, why in spoilt.items()} | {"pool/no.wav": "missing"}
    assert found.reasons["truncated"] == 3 and found.reasons["empty"] == 2
    assert sorted(by_file(found, "label")) == ["0.wav", "1.wav"]


def test_a_value_of_a_wrong_type_in_a_table_costs_its_row_alone(tmp_path: Path) -> None:
    files = tones(tmp_path, 4)
    values: list[dict[str, Any]] = [
        {"label": ["x", "y"]}, {"caption": {"a": 1}}, {"fold": {}, "recording_id": [1]}, {"caption": "rain"},
    ]  # fmt: skip
    rows = [{"path": file, **value} for file, value in zip(files, values, strict=True)] + [{"path": ["a.wav"]}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = scanned(tmp_path / "t.jsonl", max_bad_fraction=1)
    assert quarantined(found) == dict.fromkeys([*files[:3], "line 5"], "wrong_type")
    assert found.counts["clips"] == 4 and [caption for _, caption in pairs(found)] == ["rain"]


def test_too_much_quarantine_is_an_error_that_says_what_is_wrong(tmp_path: Path) -> None:
    """A wrong audio folder: a manifest without a single clip, and a training that starts."""
    files = tones(tmp_path, 3)
    table = write_csv(tmp_path / "t.csv", [("path",), *((file,) for file in files), ("gone.wav",)])
    assert scanned(table, max_bad_fraction=0.25).counts["quarantined"] == 1
    with pytest.raises(ManifestError, match=r"1 of the 4 rows .* \(0.24\): missing 1; the first is gone.wav \(missing"):
        scanned(table, max_bad_fraction=0.24)
    with pytest.raises(ManifestError, match="4 of the 4 rows .*: missing 4; the first is"):
        scanned(table, audio_folder=str(tmp_path / "elsewhere"))
    with pytest.raises(ManifestError, match="has no usable clip or caption: .* 4; the first is "):
        scanned(table, audio_folder=str(tmp_path / "elsewhere"), max_bad_fraction=1)


def test_empty_captions_are_listed_and_their_clips_kept_without_them(tmp_path: Path) -> None:
    """The text "nan" as the caption of every clip that had none: a hundred clips that mean the same."""
    files = tones(tmp_path, 5)
    texts = ["a tone", "", "  ", "nan", None]
    (tmp_path / "t.jsonl").write_text(
        "\n".join(json.dumps({"path": file, "caption": text}) for file, text in zip(files, texts, strict=True))
    )
    found = scanned(tmp_path / "t.jsonl", max_bad_fraction=0.8)
    assert quarantined(found) == dict.fromkeys(files[1:], "empty_caption")
    assert pairs(found) == {(files[0], "a tone")} and found.counts["clips"] == 5
    frame = pd.DataFrame({"path": files, "caption": [texts[0], np.nan, np.nan, np.nan, np.nan]})
    frame.to_parquet(tmp_path / "t.parquet")
    assert name(scanned(tmp_path / "t.parquet", max_bad_fraction=0.8)) == name(found)


def test_a_row_without_a_file_gives_no_caption_either(tmp_path: Path) -> None:
    (file,) = tones(tmp_path, 1)
    table = write_csv(
        tmp_path / "t.csv", [("path", "caption"), (file, "one"), ("", "of no file"), ("gone.wav", "lost")]
    )
    found = scanned(table, max_bad_fraction=0.7)
    assert quarantined(found) == {"line 3": "missing", "gone.wav": "missing"}
    assert found.manifest.captions.caption.tolist() == ["one"]


def test_files_of_equal_bytes_are_one_clip_with_the_captions_of_both(tmp_path: Path) -> None:
    """The same clip twice, once held out and once trained on."""
    a, b = tones(tmp_path, 2)
    shutil.copy(tmp_path / a, tmp_path / "copy.wav")
    rows = [("path", "caption"), ("copy.wav", "from the copy"), (a, "from the first"), (b, "other")]
    found = scanned(write_csv(tmp_path / "t.csv", rows))
    assert pairs(found) == {(a, "from the first"), (a, "from the copy"), (b, "other")}
    assert (found.counts["clips"], found.counts["duplicates"], found.counts["quarantined"]) == (2, 1, 0)


def test_contradicting_values_of_one_clip_are_listed_and_the_choice_does_not_depend_on_order(tmp_path: Path) -> None:
    (file,) = tones(tmp_path, 1)
    rows = [("path", "label", "recording_id"), *((file, f"label {i}", "7") for i in "52413"), (file, "", "")]
    found = scanned(write_csv(tmp_path / "t.csv", rows))
    assert found.quarantine.values.tolist() == [
        [file, "conflicting_label", "kept 'label 1', not 'label 2', 'label 3', 'label 4', 'label 5'"]
    ]
    assert by_file(found, "label") == {file: "label 1"} and by_file(found, "recording_id") == {file: "7"}
    assert name(scanned(write_csv(tmp_path / "t.csv", [rows[0], *rows[:0:-1]]))) == name(found)


# --- exclusion -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Write a table of six clips; 0 and 1 are cut from the recording r0, 2 and 3 from r2, 4 and 5 from r4."""
    files = tones(tmp_path / "audio", 6)
    rows = [(f"audio/{file}", f"tone {i}", f"r{i - i % 2}") for i, file in enumerate(files)]
    return write_csv(tmp_path / "pool.csv", [("path", "caption", "recording_id"), *rows])


@pytest.mark.parametrize(
    ("file", "write", "gone", "hit"),
    [
        ("ids.txt", lambda folder: f"# evaluation\n{clip(folder, 3)}\n\n", "3", 1),
        ("paths.txt", lambda folder: f"audio/0.wav\r\n{folder}/audio/5.wav\r\nnever/seen.wav", "05", 2),
        ("recordings.txt", lambda folder: "r2\nr9", "23", 1),
        ("recordings.csv", lambda folder: "recording_id,title\nr2,0.wav\nr4,r0\n", "2345", 2),
        ("table.csv", lambda folder: f"path,clip_id\naudio/1.wav,{clip(folder, 2)}\n", "12", 2),
        ("sounds.txt", lambda folder: f"{probe(folder / 'audio/4.wav').pcm_sha256}", "4", 1),
        ("harmless.txt", lambda folder: "r99\n", "", 0),
    ],
)
def test_exclusion_lists_keep_clips_out_by_id_path_or_recording(
    tmp_path: Path, pool: Path, file: str, write: Callable[[Path], str], gone: str, hit: int
) -> None:
    """Evaluation clips in the pool: the student has heard the test."""
    (tmp_path / file).write_text(write(tmp_path))
    found = scanned(pool, exclude=(str(tmp_path / file),))
    assert sorted(by_file(found, "label")) == [f"{i}.wav" for i in range(6) if str(i) not in gone]
    assert set(found.manifest.captions.caption) == {f"tone {i}" for i in range(6) if str(i) not in gone}
    said = found.exclusions[str(tmp_path / file)]
    assert (said["hit"], said["clips"], found.counts["excluded"]) == (hit, len(gone), len(gone))
    assert (name(found) == name(scanned(pool))) == (not gone)


def clip(folder: Path, number: int) -> str:
    answer = probe(folder / "audio" / f"{number}.wav")
    return answer.clip_id  # type: ignore[union-attr]


def test_an_excluded_sound_is_kept_out_in_any_container_and_under_any_name(tmp_path: Path) -> None:
    """An evaluation clip that somebody packed again as FLAC, or copied."""
    a, _ = tones(tmp_path / "pool", 2)
    soundfile.write(tmp_path / "pool" / "again.flac", *soundfile.read(tmp_path / "pool" / a, dtype="int16"))
    shutil.copy(tmp_path / "pool" / a, tmp_path / "pool" / "copy.wav")
    (tmp_path / "list.txt").write_text("copy.wav")
    found = scanned(tmp_path / "pool", exclude=(str(tmp_path / "list.txt"),))
    assert sorted(by_file(found, "label")) == ["1.wav"] and found.counts["excluded"] == 2


def test_the_clips_of_another_manifest_are_an_exclusion_list(tmp_path: Path, pool: Path) -> None:
    rows = [("path",), ("audio/0.wav",), ("audio/1.wav",)]
    evaluation = make(Store(tmp_path / "store"), scanned(write_csv(tmp_path / "evaluation.csv", rows)))
    found = scanned(pool, exclude=(str(evaluation.path / "clips.parquet"),))
    assert sorted(by_file(found, "label")) == ["2.wav", "3.wav", "4.wav", "5.wav"]


@pytest.mark.parametrize(
    ("file", "content", "gone"),
    [
        ("train.csv", "audiocap_id,youtube_id,start_time,caption\n1,--PJHxphWEs,30,speech\n", {"0.wav"}),
        ("UrbanSound8K.csv", "slice_file_name,fsID\nx.wav,100032\n", {"1.wav"}),
        ("blacklist.json", '{"AudioSet": ["Y--PJHxphWEs.wav"], "FreeSound": ["100032"]}', {"0.wav", "1.wav"}),
        ("blacklist.json", '{"AudioSet": ["--PJHxphWEs"], "FreeSound": [100032]}', {"0.wav", "1.wav"}),
        ("names.txt", "Y--PJHxphWEs.wav\n", {"0.wav"}),
        ("ids.txt", "youtube:--PJHxphWEs\nfreesound:100032\n", {"0.wav", "1.wav"}),
        ("ids.txt", "--PJHxphWEs\nFreesound: 100032.0\nnan\n", {"0.wav", "1.wav"}),
        ("ids.csv", "recording_id\n100032.0\nnan\n", {"1.wav"}),
        ("fs.csv", 'freesound_id\n1.00032e+05\n""\n', {"1.wav"}),
    ],
)
def test_lists_are_read_as_corpora_publish_them(tmp_path: Path, file: str, content: str, gone: set[str]) -> None:
    """A list that must first be rewritten is left out, and AudioCaps' test clips are in the pool."""
    (tmp_path / file).write_text(content)
    sounds = ["youtube:--PJHxphWEs", "freesound:100032", "freesound:1000320"]
    rows = [("path", "recording_id"), *zip(tones(tmp_path, 3), sounds, strict=True)]
    found = scanned(write_csv(tmp_path / "pool.csv", rows), exclude=(str(tmp_path / file),))
    assert set(by_file(found, "label")) == {"0.wav", "1.wav", "2.wav"} - gone
    said = found.exclusions[str(tmp_path / file)]
    assert (said["hit"], said["clips"]) == (len(gone), len(gone))


@pytest.mark.parametrize(
    ("own", "listed", "without_place"),
    [
        ("100032", "freesound:100032", 1),
        ("freesound:100032", "100032", 1),
        ("freesound:100032", "freesound:100032", None),
        ("100032", "100032", None),
    ],
)
def test_a_list_that_names_other_places_than_the_source_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, own: str, listed: str, without_place: int | None
) -> None:
    """The README's `100032` and the corpora's `freesound:100032`: what was meant is found, and said."""
    rows = [("path", "recording_id"), *zip(tones(tmp_path, 2), [own, "tut:7"], strict=True)]
    (tmp_path / "list.txt").write_text(f"{listed}\nfreesound:7\n")
    with caplog.at_level("WARNING", "clapcur"):
        found = scanned(write_csv(tmp_path / "pool.csv", rows), exclude=(str(tmp_path / "list.txt"),))
    assert found.counts["excluded"] == 1
    assert found.exclusions[str(tmp_path / "list.txt")].get("without_place") == without_place
    assert ("they are compared without it" in caplog.text) == (without_place is not None)


@pytest.mark.parametrize("write", [str, str.upper])
def test_a_hash_in_a_list_may_be_in_capitals(tmp_path: Path, pool: Path, write: Callable[[str], str]) -> None:
    (tmp_path / "ids.txt").write_text(write(clip(tmp_path, 3)))
    assert scanned(pool, exclude=(str(tmp_path / "ids.txt"),)).counts["excluded"] == 1


def test_ids_labels_and_folds_are_what_they_mean_and_not_how_they_were_typed(tmp_path: Path) -> None:
    """Pandas makes floats of whole numbers beside a gap: `1.0` and `1` were two folds and two recordings."""
    files = tones(tmp_path, 4)
    cells = [("1.0", "3.0", "1000.0"), ("1", "3", "1000"), ("nan", "NaN", "unknown"), (" 2 ", "none", "Freesound:007")]
    rows = [("path", "fold", "label", "recording_id"), *((file, *row) for file, row in zip(files, cells, strict=True))]
    found = scanned(write_csv(tmp_path / "t.csv", rows))
    assert by_file(found, "fold") == dict(zip(files, ["1", "1", "", "2"], strict=True))
    assert by_file(found, "label") == dict(zip(files, ["3", "3", "", "none"], strict=True))
    assert by_file(found, "recording_id") == dict(zip(files, ["1000", "1000", "", "freesound:7"], strict=True))


def test_a_json_list_of_another_form_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('{"ids": ["1"]}')
    rows = [("path",), *((name,) for name in tones(tmp_path, 1))]
    with pytest.raises(ManifestError, match="must be JSON with lists named audioset, freesound"):
        scanned(write_csv(tmp_path / "pool.csv", rows), exclude=(str(tmp_path / "list.json"),))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("gone.txt", None, "does not exist; without it"),
        ("empty.txt", "# nothing\n", "is empty: nothing would be excluded"),
        (
            "table.csv",
            "title\nx\n",
            r"needs one of the columns clip_id, pcm_sha256, path, recording_id, fsID, .*, YTID; it has \['title'\]",
        ),
    ],
)
def test_an_exclusion_list_that_cannot_work_is_an_error(
    tmp_path: Path, pool: Path, file: str, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(ManifestError, match=said):
        scanned(pool, exclude=(str(tmp_path / file),))


def test_a_pool_that_is_excluded_to_the_last_clip_is_an_error(tmp_path: Path, pool: Path) -> None:
    (tmp_path / "all.txt").write_text("r0\nr2\nr4")
    with pytest.raises(ManifestError, match="all its 6 clips are excluded or forgotten"):
        scanned(pool, exclude=(str(tmp_path / "all.txt"),))


# --- identity and payload ------------------------------------------------------------------------------------------


def test_the_order_of_rows_is_no_part_of_a_manifest(tmp_path: Path, pool: Path) -> None:
    """The same pool listed in another order would be embedded again, and never be recognised."""
    header, *rows = pool.read_text().splitlines()
    made = [make(Store(tmp_path / "store 1"), scanned(pool))]
    random.Random(1).shuffle(rows)
    pool.write_text("\n".join([header, *rows]))
    made.append(make(Store(tmp_path / "store 2"), scanned(pool, **{"audio_folder": str(tmp_path)})))
    one, two = made
    assert one.id == two.id
    for file in (*PAYLOAD, LOCATIONS):
        assert (one.path / file).read_bytes() == (two.path / file).read_bytes(), file


def test_a_pool_that_moves_keeps_its_name_and_its_clips_are_found_where_they_are(tmp_path: Path) -> None:
    """A moved folder: all embeddings are made again, or a stored path leads nowhere after an hour of training."""
    for folder in ("audio", "audio/deep"):
        tones(tmp_path / "here" / folder, 3)
    (tmp_path / "here" / "audio" / "bad.wav").write_text("no audio")
    store = Store(tmp_path / "store")
    first = make(store, scanned(tmp_path / "here", max_bad_fraction=0.2))
    payload = {file: (first.path / file).read_bytes() for file in PAYLOAD}
    os.rename(tmp_path / "here", tmp_path / "there")
    os.rename(tmp_path / "there" / "audio" / "1.wav", tmp_path / "there" / "renamed.wav")
    moved = scanned(tmp_path / "there", max_bad_fraction=0.2)
    second = make(store, moved)
    assert second == first and refresh_locations(second, moved) is False, "they were refreshed already"
    assert {file: (second.path / file).read_bytes() for file in PAYLOAD} == payload
    assert {Path(path).is_file() for path in Manifest.open(second).paths.values()} == {True}
    (second.path / LOCATIONS).unlink()
    assert refresh_locations(second, moved) is True and Manifest.open(second).paths == moved.manifest.paths


def test_locations_of_another_manifest_are_refused(tmp_path: Path, pool: Path) -> None:
    artifact = make(Store(tmp_path / "store"), scanned(pool))
    with pytest.raises(ArtifactError, match="hold different clips"):
        refresh_locations(
            artifact,
            scanned(tmp_path / "audio", exclude=(str(write_csv(tmp_path / "x.csv", [("path",), ("0.wav",)])),)),
        )


def test_what_a_manifest_means_changes_its_name(tmp_path: Path, pool: Path) -> None:
    """An old artifact handed out for a pool with another label, caption, rule or file."""
    text = pool.read_text()
    names = {"as it is": name(scanned(pool))}
    names["rules"] = name(
        scanned(pool, rules=from_dict(IngestConfig, {"source": "", "rules": {"min_duration_s": 0}}).rules)
    )
    for what, old, new in (
        ("caption", "tone 3", "tone three"),
        ("recording", "r4", "r44"),
        ("pair", "tone 1", "tone 0"),
    ):
        pool.write_text(text.replace(old, new))
        names[what] = name(scanned(pool))
    for what, more in (("bad file", "audio/gone.wav,x,r0"), ("another pair", "audio/0.wav,tone 5,r0")):
        pool.write_text(f"{text}{more}\r\n")
        names[what] = name(scanned(pool, max_bad_fraction=0.2))
    pool.write_text(text)
    content = bytearray((tmp_path / "audio/0.wav").read_bytes())
    content[1000] ^= 1  # the lowest bit of one sample
    (tmp_path / "audio/0.wav").write_bytes(content)
    names["bytes"] = name(scanned(pool))
    assert len(set(names.values())) == len(names), names


def test_what_says_how_and_where_does_not_change_the_name(tmp_path: Path, pool: Path) -> None:
    expected = name(scanned(pool))
    alone = scan(IngestConfig(source=str(pool), num_workers=1, max_bad_fraction=0.5))
    cached = scanned(pool, tmp_path / "probes.db")
    assert {name(alone), name(cached), name(scanned(pool, tmp_path / "probes.db"))} == {expected}


def test_the_payload_reads_back_as_it_was_scanned(tmp_path: Path, pool: Path) -> None:
    pool.write_text(pool.read_text() + "gone.wav,lost,\r\n")
    found = scanned(pool, max_bad_fraction=0.2)
    artifact = make(Store(tmp_path / "store"), found)
    opened = Manifest.open(artifact)
    for table in ("clips", "captions", "pairs", "locations"):
        pd.testing.assert_frame_equal(getattr(opened, table), getattr(found.manifest, table))
    assert pd.read_parquet(artifact.path / "quarantine.parquet").values.tolist() == [
        ["gone.wav", "missing", "no such file"]
    ]
    record = artifact.record
    assert record.counts["clips"] == 6 and record.facts["quarantine"] == {"missing": 1}
    assert set(record.files) == set(PAYLOAD), "where clips lie is no part of what they are"
    clips = opened.clips
    assert clips.clip_id.tolist() == sorted(clips.clip_id)
    assert (clips.duration_s == 0.1).all() and (clips.sample_rate == 16_000).all() and (clips.num_channels == 1).all()


def test_tables_have_the_same_types_whether_they_are_full_or_empty(tmp_path: Path, pool: Path) -> None:
    """An empty label column read as floats: no clip of a merged pool equals its own label any more."""
    (tmp_path / "captions.txt").write_text("wind")
    store = Store(tmp_path / "store")
    opened = [
        Manifest.open(make(store, scanned(source))) for source in (pool, tmp_path / "captions.txt", tmp_path / "audio")
    ]
    for table in ("clips", "captions", "pairs", "locations"):
        types = [getattr(manifest, table).dtypes.to_dict() for manifest in opened]
        assert types[0] == types[1] == types[2], table
    assert (opened[2].clips[["label", "fold", "recording_id"]] == "").all(axis=None)


# --- the memory of probes ------------------------------------------------------------------------------------------


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the names of the files that are decoded; commit after every four."""
    names: list[str] = []

    def spy(path: str, rules: Any) -> Any:
        names.append(Path(path).name)
        return probe(path, rules)

    monkeypatch.setattr(probes, "probe", spy)
    monkeypatch.setattr(probes, "CHUNK", 4)
    return names


def test_an_unchanged_file_is_not_decoded_again_and_a_changed_one_is(tmp_path: Path, probed: list[str]) -> None:
    """A pool of a million decoded at every run, or a file that was replaced and keeps its old hash."""
    tones(tmp_path / "pool", 6)
    soundfile.write(tmp_path / "pool" / "bad.wav", np.zeros(1000), 8000)
    cache = tmp_path / "cache" / "probes.db"
    first = scanned(tmp_path / "pool", cache, max_bad_fraction=0.2)
    assert len(probed) == 7
    probed.clear()
    again = scanned(tmp_path / "pool", cache, max_bad_fraction=0.2)
    assert (probed, name(again), again.counts) == ([], name(first), first.counts)
    write_tone(tmp_path / "pool" / "3.wav", 999, seed=9, duration_s=0.1)  # the same size, other bytes
    os.utime(tmp_path / "pool" / "4.wav", ns=(1, 1))
    soundfile.write(tmp_path / "pool" / "bad.wav", np.zeros(1001), 8000)
    changed = scanned(tmp_path / "pool", cache, max_bad_fraction=0.2)
    assert sorted(probed) == ["3.wav", "4.wav", "bad.wav"] and name(changed) != name(first)
    probed.clear()
    rules = from_dict(IngestConfig, {"source": "", "rules": {"min_duration_s": 0.01}}).rules
    scanned(tmp_path / "pool", cache, rules=rules, max_bad_fraction=0.2)
    assert len(probed) == 7, "an answer holds for the rules that it was given under"


def test_a_killed_ingest_goes_on_where_it_was(tmp_path: Path, probed: list[str]) -> None:
    tones(tmp_path / "pool", 10)

    def kill(done: int, total: int) -> None:
        assert total == 10
        if done == 8:
            raise KeyboardInterrupt

    cache = tmp_path / "probes.db"
    with pytest.raises(KeyboardInterrupt):
        scan(IngestConfig(source=str(tmp_path / "pool")), cache, kill)
    assert len(probed) == 8
    probed.clear()
    steps: list[tuple[int, int]] = []
    found = scan(IngestConfig(source=str(tmp_path / "pool")), cache, lambda done, total: steps.append((done, total)))
    assert sorted(probed) == ["8.wav", "9.wav"], "what was on disk is not probed again"
    assert steps == [(4, 10), (8, 10), (10, 10)]
    assert name(found) == name(scanned(tmp_path / "pool"))


def test_a_file_that_was_missing_or_could_not_be_read_is_looked_at_again(
    tmp_path: Path, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that was down, or a right to read that was not given: the clips stay in quarantine for ever."""
    files = tones(tmp_path, 2)
    table = write_csv(tmp_path / "t.csv", [("path",), *((file,) for file in files)])
    os.rename(tmp_path / files[0], tmp_path / "away")
    assert scanned(table, tmp_path / "probes.db", max_bad_fraction=0.5).counts["clips"] == 1
    os.rename(tmp_path / "away", tmp_path / files[0])
    assert scanned(table, tmp_path / "probes.db").counts["clips"] == 2

    def fails(path: str) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(opening, "open_regular", fails)
    with pytest.raises(ManifestError, match="2 of the 2 rows .*unreadable: Permission denied"):
        scanned(table, tmp_path / "other.db")
    monkeypatch.undo()
    assert scanned(table, tmp_path / "other.db").counts["clips"] == 2


@pytest.mark.parametrize("damage", ["text", "overwritten", "truncated"])
def test_a_broken_memory_costs_time_only(tmp_path: Path, probed: list[str], damage: str) -> None:
    """A cache that nobody needs to have stops every later run."""
    tones(tmp_path / "pool", 9)
    cache = tmp_path / "probes.db"
    expected = name(scanned(tmp_path / "pool", cache))
    content = cache.read_bytes()
    assert len(content) >= 2 * 4096
    spoilt = {
        "text": b"not a database, only text " * 300,
        "overwritten": content[:4096] + b"\xa5" * (len(content) - 4096),
        "truncated": content[:5000],
    }
    cache.write_bytes(spoilt[damage])
    probed.clear()
    with pytest.warns(UserWarning, match="probes.db is damaged .* and is rebuilt"):
        assert name(scanned(tmp_path / "pool", cache)) == expected
    assert len(probed) == 9
    probed.clear()
    assert name(scanned(tmp_path / "pool", cache)) == expected and not probed, "and remembers again"


def test_a_memory_that_cannot_be_written_costs_time_only(tmp_path: Path, probed: list[str]) -> None:
    tones(tmp_path / "pool", 2)
    (tmp_path / "probes.db").mkdir()
    with pytest.warns(UserWarning, match="cannot be used"):
        assert scanned(tmp_path / "pool", tmp_path / "probes.db").counts["clips"] == 2


def test_the_memory_is_an_ordinary_sqlite_file_with_one_row_a_clip(tmp_path: Path, probed: list[str]) -> None:
    """A row for every change of every file: a memory that grows for ever."""
    tones(tmp_path / "pool", 3)
    for run in range(3):
        os.utime(tmp_path / "pool" / "0.wav", ns=(run, run))
        scanned(tmp_path / "pool", tmp_path / "probes.db")
    with sqlite3.connect(tmp_path / "probes.db") as connection:
        rows = connection.execute("SELECT path, size, mtime_ns FROM probes ORDER BY path").fetchall()
    connection.close()
    assert len(rows) == 3 and rows[0] == (str(tmp_path / "pool" / "0.wav"), 3244, 2)


# --- config --------------------------------------------------------------------------------------------------------


def test_a_config_reads_from_plain_values_and_names_what_it_does_not_know() -> None:
    values: Mapping[str, Any] = {
        "source": "pool.csv",
        "columns": {"caption": ["caption_1", "caption_2"], "recording_id": "freesound_id", "label": None},
        "rules": {"max_duration_s": 30},
        "exclude": ["esc50.txt"],
    }
    config = from_dict(IngestConfig, values)
    assert config.columns.caption == ("caption_1", "caption_2") and config.columns.label is None
    assert config.rules.max_duration_s == 30 and config.exclude == ("esc50.txt",)
    with pytest.raises(ValueError, match="unknown key 'columns.captions'; did you mean 'caption'"):
        from_dict(IngestConfig, {"source": "x", "columns": {"captions": "c"}})
    for wrong in ({"max_bad_fraction": 5}, {"num_workers": -1}):
        with pytest.raises(ValueError, match="got"):
            from_dict(IngestConfig, {"source": "x", **wrong})
    with pytest.raises(TypeError, match="list of paths"):
        IngestConfig(source="x", exclude="esc50.txt")  # type: ignore[arg-type]


# --- real data -----------------------------------------------------------------------------------------------------


@pytest.mark.shared_data("esc10")
def test_real_clips_keep_the_recordings_they_were_cut_from(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    """ESC clips of one Freesound recording on both sides of a split; the column has to be named to be read."""
    with open(shared_data("esc10") / "manifest.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    column = {title: header.index(title) for title in ("path", "label", "fold", "freesound_id")}
    rows = sorted(rows, key=lambda row: row[column["freesound_id"]])[:24]
    table = write_csv(tmp_path / "some.csv", [header, *rows])
    found = scanned(table, audio_folder=str(shared_data("esc10")), columns=Columns(recording_id="freesound_id"))
    assert (found.counts["clips"], found.counts["quarantined"]) == (24, 0)
    for title, ours in (("label", "label"), ("fold", "fold"), ("freesound_id", "recording_id")):
        assert by_file(found, ours) == {Path(row[column["path"]]).name: row[column[title]] for row in rows}
    recordings = {row[column["freesound_id"]] for row in rows}
    assert set(found.manifest.groups.values()) == recordings and len(recordings) < 24
    assert (found.manifest.clips.duration_s == 5).all() and (found.manifest.clips.sample_rate == 32_000).all()


@pytest.mark.shared_data("captions/clotho", "captions/audiocaps")
def test_real_captions_come_in_whole(shared_data: Callable[[str], Path]) -> None:
    """Clotho has commas, quotes and 3,839 clips of five captions each (Drossos et al. 2020), AudioCaps 49,838 rows."""
    clotho = scanned(
        shared_data("captions/clotho") / "clotho_captions_development.csv",
        columns=Columns(path=None, caption=tuple(f"caption_{i}" for i in range(1, 6))),
    )
    assert (clotho.counts["rows"], clotho.counts["quarantined"]) == (3839, 0)
    with open(shared_data("captions/clotho") / "clotho_captions_development.csv", encoding="utf-8", newline="") as file:
        texts = {
            normalise_caption(text) for row in csv.DictReader(file) for key, text in row.items() if "caption" in key
        }
    assert set(clotho.manifest.captions.caption) == texts
    audiocaps = scanned(shared_data("captions/audiocaps") / "train.csv")
    assert (audiocaps.counts["rows"], audiocaps.counts["quarantined"], audiocaps.counts["clips"]) == (49_838, 0, 0)


def test_a_size_that_a_header_only_promises_does_not_pass(tmp_path: Path) -> None:
    """A download that broke off: half a clip with the caption of the whole."""
    (file,) = tones(tmp_path, 1)
    tones(tmp_path / "good", 9)
    content = bytearray((tmp_path / file).read_bytes())
    content[40:44] = struct.pack("<I", 2 * int.from_bytes(content[40:44], "little"))
    (tmp_path / file).write_bytes(content)
    assert quarantined(scanned(tmp_path)) == {file: "truncated"}
