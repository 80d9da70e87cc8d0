"""Tables with the quirks of real corpora, beside short tones: each is read rightly, or refused in one helpful line."""

import logging
import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from source_tree import ROOT

from clapcur.config import read_mapping
from clapcur.data.class_names import read_class_names
from clapcur.errors import ClapcurError, DataError, ManifestError
from clapcur.methods.contamination import overlap
from clapcur.stages.ingest import Columns, IngestConfig, Scan, scan

pytestmark = pytest.mark.shared_data("odd_inputs")


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """Write the tables and their sounds."""
    script = ROOT.parent / "shared/data/odd_inputs/make_tables.py"
    if not script.exists():
        pytest.skip("needs shared/data/odd_inputs beside the checkout, which is absent")
    folder = tmp_path_factory.mktemp("odd")
    run(script, folder)
    return folder


def run(script: Path, *arguments: object) -> None:
    before = sys.argv
    sys.argv = [str(script), *map(str, arguments)]
    try:
        runpy.run_path(str(script))
    finally:
        sys.argv = before


def scanned(path: Path, **options: object) -> Scan:
    return scan(IngestConfig(source=str(path), **options))  # type: ignore[arg-type]


def captions(found: Scan) -> set[str]:
    return set(found.manifest.captions.caption)


WORDS = {"a dog barks", "rain falls", "a siren wails", "wind blows"}


@pytest.mark.parametrize(
    "name",
    ["semicolon", "tab", "sep_line", "bom", "utf16", "cr_only", "crlf", "pandas_index", "trailing_commas", "backslash"]
    + ["case", "ids_float", "ids_nan"],
)
def test_a_table_in_a_customary_form_is_read(odd: Path, name: str) -> None:
    found = scanned(odd / f"{name}.csv")
    assert captions(found) == WORDS
    assert (found.counts["clips"], found.counts["pairs"], found.counts["quarantined"]) == (12, 12, 0)


@pytest.mark.parametrize(("name", "pairs", "texts"), [("list_cells", 36, 12), ("numpy_list_cells", 24, 8)])
def test_a_list_in_a_cell_is_several_captions(odd: Path, name: str, pairs: int, texts: int) -> None:
    """The text `['a', 'b']` as a caption teaches brackets."""
    found = scanned(odd / f"{name}.csv")
    assert (found.counts["pairs"], len(captions(found))) == (pairs, texts)
    assert {text[:-2] for text in captions(found)} == WORDS


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('["a dog\'s bark", "rain"]', {"a dog's bark", "rain"}),
        ('[\'it\\\'s\', "say \\"hi\\""]', {"it's", 'say "hi"'}),
        ("['one']", {"one"}),
        ("['one',]", {"one"}),
        ("['a, b', 'c]']", {"a, b", "c]"}),
        ("['a', '', 'b']", {"a", "b"}),
        ("[/bold] [red]rain[/red]", {"[/bold] [red]rain[/red]"}),
        ("[music] 'quoted' [end]", {"[music] 'quoted' [end]"}),
        ("'quoted' and 'again'", {"'quoted' and 'again'"}),
    ],
)
def test_lists_are_told_from_captions_with_brackets(tmp_path: Path, cell: str, expected: set[str]) -> None:
    (tmp_path / "t.csv").write_text('caption\n"' + cell.replace('"', '""') + '"\n')
    assert captions(scanned(tmp_path / "t.csv")) == expected


@pytest.mark.parametrize("cell", ["['a', 'b' ... 'c']", "['a', 3, 'b']", "['a', ..."])
def test_a_list_that_is_cut_is_no_caption(tmp_path: Path, cell: str) -> None:
    (tmp_path / "t.csv").write_text(f'caption\nrain\n"{cell}"\n')
    found = scanned(tmp_path / "t.csv", max_bad_fraction=1)
    assert (captions(found), found.reasons) == ({"rain"}, {"unreadable_captions": 1})


def test_captions_over_several_columns_are_named(odd: Path) -> None:
    """Without a word, a table of pairs is ingested as a pool, and its captions are gone."""
    with pytest.raises(
        ManifestError, match=r"but has caption_1, caption_2, caption_3, caption_4, caption_5; set `columns: "
    ):
        scanned(odd / "wide.csv")
    five = tuple(f"caption_{number}" for number in range(1, 6))
    assert scanned(odd / "wide.csv", columns=Columns(caption=five)).counts["pairs"] == 60
    assert scanned(odd / "wide.csv", columns=Columns(caption=None)).counts["captions"] == 0


def test_an_empty_cell_beside_captions_is_a_gap_and_no_bad_row(odd: Path) -> None:
    found = scanned(odd / "wide_ragged.csv", columns=Columns(caption=("caption_1", "caption_2", "caption_3")))
    assert (found.counts["clips"], found.counts["pairs"], found.counts["quarantined"]) == (12, 32, 0)


def test_a_file_name_may_begin_or_end_with_a_space(odd: Path) -> None:
    for table in ("sp2/leading_space.csv", "leading_space.csv"):
        found = scanned(odd / table)
        assert captions(found) == {"people talk", "a tone"} and found.counts["quarantined"] == 0
        assert " typical neighborhood in a town.wav" in {Path(path).name for path in found.manifest.paths.values()}
    (odd / "spaces.csv").write_text("path,caption\n sp/other.wav ,a tone\nsp/trailing space .wav,rain\n")
    assert scanned(odd / "spaces.csv").counts["clips"] == 2


def test_a_path_in_another_unicode_form_names_its_file(odd: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A Mac wrote the names, something else the table."""
    with caplog.at_level(logging.WARNING, "clapcur"):
        assert scanned(odd / "nfc.csv").counts["clips"] == 3
    assert "3 paths are spelled differently on disk" in caplog.text


def test_a_spelling_is_never_preferred_to_the_file_that_is_named(tmp_path: Path, odd: Path) -> None:
    r"""`a\b.wav` is a name on Linux, and `s0.WAV` another file than `s0.wav`."""
    for name in ("a\\b.wav", "s0.WAV"):
        (tmp_path / name).write_bytes((odd / "a/s0.wav").read_bytes())
    (tmp_path / "a").mkdir()
    for name in ("a/b.wav", "s0.wav"):
        (tmp_path / name).write_bytes((odd / "a/s1.wav").read_bytes())
    (tmp_path / "t.csv").write_text("path,label\na\\b.wav,x\ns0.WAV,x\na/b.wav,y\ns0.wav,y\n")
    found = scanned(tmp_path / "t.csv")
    assert (found.counts["clips"], found.counts["quarantined"]) == (2, 0)
    assert set(found.manifest.clips.label) == {"x", "y"}


def test_a_file_that_is_absent_is_said_with_the_one_that_may_be_meant(
    odd: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "clapcur"), pytest.raises(ManifestError, match="missing 12"):
        scanned(odd / "no_extension.csv")
    assert "12 files are missing, such as 'a/s0'; did you mean 'a/s0.wav'?" in caplog.text
    (odd / "capital.csv").write_text("path\nA/S1.wav\na/S1.wav\n")
    with caplog.at_level(logging.WARNING, "clapcur"), pytest.raises(ManifestError, match="missing 2"):
        scanned(odd / "capital.csv")
    assert "did you mean 'a/s1.wav'?" in caplog.text


def test_metadata_of_a_folder_finds_its_files_in_every_spelling(odd: Path) -> None:
    for table, folder in (("backslash.csv", "a"), ("case.csv", "a"), ("nfc.csv", "nfd")):
        found = scanned(odd / folder, metadata=str(odd / table), audio_folder=str(odd))
        assert (found.counts["without_metadata"], found.counts["without_file"]) == (0, 0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cp1252.csv", r"line 2, is not UTF-8 \(byte 0xe9"),
        ("cp1252_late.csv", r"line 2502, is not UTF-8 \(byte 0xe9"),
        ("bad_utf8.jsonl", "line 1, is not UTF-8"),
        ("no_header.csv", "is that a row. The first line must name the columns"),
        ("unquoted_comma.csv", "3 cells, but the header has 2"),
        ("backslash_quote.csv", "line 2: .*is a quote unclosed or not doubled"),
        ("array.jsonl", "expected a JSON object"),
        ("array.json", "expected a table"),
        ("nested.jsonl", "column 'path': expected one value"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(odd: Path, name: str, said: str) -> None:
    with pytest.raises(ManifestError, match=said) as raised:
        scanned(odd / name)
    assert "\n" not in str(raised.value)


def test_json_without_an_end_is_one_line(tmp_path: Path) -> None:
    for text in ("[" * 100_000, '{"a": ' * 100_000, '{"path": ' + "9" * 5000 + "}"):
        (tmp_path / "t.jsonl").write_text(text)
        with pytest.raises(ManifestError, match="line 1: not JSON"):
            scanned(tmp_path / "t.jsonl")


def test_ids_of_two_tables_meet(odd: Path) -> None:
    """`1000.0` beside a gap and `1000` are one recording."""
    mine, theirs = (scanned(odd / f"ids_{name}.csv").manifest.clips for name in ("float", "int"))
    assert set(mine.recording_id) == {*map(str, range(1000, 1011)), ""}
    others = theirs.assign(clip_id=theirs.clip_id.str[::-1], pcm_sha256="p" + theirs.pcm_sha256)
    assert len(overlap(others, mine).clips("recording")) == 11


@pytest.mark.parametrize("word", ["nan", "None", "NA", "unknown", "-1", "null_text"])
def test_a_word_for_a_missing_id_names_no_recording(odd: Path, word: str) -> None:
    found = scanned(odd / f"ids_{word}.csv").manifest
    assert set(found.clips.recording_id) == {""} and len(set(found.groups.values())) == 12


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("classes.csv", "looks like a table: its first line is 'index,display_name'"),
        ("classes_case.txt", "each class name must occur once; repeated: 'dog bark' and 'Dog Bark'"),
        ("classes_cp1252.txt", "line 1, is not UTF-8"),
        ("classes_one.txt", "at least two class names"),
        ("classes_empty.txt", "at least two class names"),
        ("classes_slash.txt", "'dog bark' and 'dog bark'"),
        ("nothing.txt", "does not exist"),
        ("a", "is a folder"),
    ],
)
def test_a_class_list_that_is_none_is_refused(odd: Path, name: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_class_names(odd / name)


@pytest.mark.parametrize(
    "text",
    ["0,dog bark\n1,rain\n", "index\tname\n0\tdog\n", '["dog bark", "rain"]\n', '"0";"dog"\n"1";"rain"\n'],
)
def test_a_table_without_its_suffix_is_no_class_list(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match="looks like a table"):
        read_class_names(tmp_path / "classes.txt")


def test_class_names_with_commas_digits_and_signs_are_names(tmp_path: Path, odd: Path) -> None:
    names = ("people eating, chewing", "808 drum", "3-phase motor, humming", "[red] alert")
    (tmp_path / "classes.txt").write_text("\n".join(names))
    assert read_class_names(tmp_path / "classes.txt") == names
    assert read_class_names(odd / "classes_utf16.txt") == ("dog bark", "rain")
    assert len(read_class_names(odd / "classes_odd.txt")) == 9
    (tmp_path / "two.txt").write_text("cafe\u0301\ncaf\u00e9\n")
    with pytest.raises(DataError, match="must occur once"):
        read_class_names(tmp_path / "two.txt")


def test_an_exclusion_list_in_another_encoding_is_one_line(odd: Path, shared_data: Callable[[str], Path]) -> None:
    for name in ("ex.json", "classes_cp1252.txt"):
        with pytest.raises(ClapcurError, match=f"{name}.*is not UTF-8") as raised:
            scanned(odd / "ids_int.csv", exclude=(str(shared_data(f"odd_inputs/files/{name}")),))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["[]", '{"freesound": 5}', '{"freesound": null}', "5", '{"freesound": [', "[" * 99_999]
)
def test_an_exclusion_list_of_another_form_is_one_line(odd: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ManifestError, match="must be JSON with lists named"):
        scanned(odd / "ids_int.csv", exclude=(str(tmp_path / "list.json"),))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_and_configs_may_begin_with_a_byte_order_mark(odd: Path, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.txt").write_text("1003\n", encoding=encoding)
    (tmp_path / "list.json").write_text('{"freesound": ["1004"]}', encoding=encoding)
    lists = (str(tmp_path / "list.txt"), str(tmp_path / "list.json"))
    assert scanned(odd / "ids_int.csv", exclude=lists).counts["excluded"] == 2
    (tmp_path / "c.yaml").write_text("name: caf\u00e9\n", encoding=encoding)
    assert read_mapping(tmp_path / "c.yaml") == {"name": "caf\u00e9"}


def test_a_config_in_another_encoding_is_one_line(shared_data: Callable[[str], Path]) -> None:
    with pytest.raises(DataError, match="y_cp1252.yaml, line .* is not UTF-8"):
        read_mapping(shared_data("odd_inputs/files/y_cp1252.yaml"))


def test_the_files_that_a_parquet_table_names_are_read(
    odd: Path, tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    """Hugging Face's audio column before the files are embedded: a path and no bytes."""
    here = os.getcwd()
    os.chdir(odd)
    try:
        run(shared_data("odd_inputs/make_parquet.py"), odd / "out.parquet", "a/s0.wav", odd / "a/s1.wav")
    finally:
        os.chdir(here)
    found = scanned(odd / "out.parquet")
    assert (found.counts["clips"], found.counts["pairs"], found.counts["quarantined"]) == (2, 2, 0)
    assert sorted(found.manifest.paths.values()) == [str(odd / "a/s0.wav"), str(odd / "a/s1.wav")]


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        (
            "cells.csv",
            ["path,caption", *["a/s1.wav,rain"] * 10, "a/s2.wav,rain, falls"],
            "3 cells, but the header has 2",
        ),
        ("cut.jsonl", [*['{"path": "a/s1.wav", "caption": "rain"}'] * 10, '{"path": "a/s2'], "line 11: not JSON"),
        ("deep.jsonl", ["[" * 100_000, *['{"path": "a/s1.wav", "caption": "rain"}'] * 10], "line 1: not JSON that can"),
        ("list.jsonl", ["[1]", *['{"path": "a/s1.wav", "caption": "rain"}'] * 10], "line 1: expected a JSON object"),
        ("long.csv", ["path,caption", *["a/s1.wav,rain"] * 10, f"a/s2.wav,{'rain ' * 50_000}"], "more than 100,000"),
    ],
)
def test_one_broken_row_never_stops_the_rest(odd: Path, name: str, lines: list[str], said: str) -> None:
    """A table of a million captions was refused for a comma in one of them."""
    (odd / name).write_text("\n".join(lines) + "\n")
    found = scanned(odd / name)
    assert found.counts["pairs"] == 1 and found.counts["quarantined"] == 1
    assert re.search(said, found.quarantine.detail.item())


def test_the_row_that_is_long_is_named_and_the_others_are_in(odd: Path) -> None:
    found = scanned(odd / "caption_200k.csv")
    assert (found.counts["clips"], found.counts["pairs"]) == (12, 11)
    assert found.reasons == {"too_long": 1}


def test_a_caption_holds_no_nul(odd: Path) -> None:
    """PostgreSQL takes no text with one, and C ends its texts there."""
    assert set(scanned(odd / "nul.csv").manifest.captions.caption) == {
        "a dog barks", "rain falls", "a siren wails", "wind blows",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer.* `git lfs pull`"),
        ("<!DOCTYPE html>\n<html><body>Please log in</body></html>\n", "a web page"),
    ],
)
@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl", "pairs.parquet", "sound.wav"])
def test_what_was_not_downloaded_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    """A clone without its large files, or a download behind a login, was "Format not recognised"."""
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=said):
        scanned(tmp_path if name.endswith(".wav") else tmp_path / name)
