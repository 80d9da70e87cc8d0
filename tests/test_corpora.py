"""Corpora: what is read from copies in their official layout, what is missing from them, and the published counts."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from building import write_tone

from clapcur.class_names import CLASS_LISTS, LISTS, class_list, find_class_names, readable
from clapcur.config import from_dict, signature
from clapcur.corpora import CORPORA, Copy, find_corpus, read_copy
from clapcur.errors import DataError, ManifestError
from clapcur.ingest import IngestConfig, scan
from clapcur.recipes import experiment_from_file

REFERENCE_LISTS = {
    "esc50": "esc", "urbansound8k": "us8k_ordered", "tut2017": "tut2017_ordered", "tau2019": "tauuas2019_ordered",
    "vggsound": "vggsound_ordered",
}  # fmt: skip


def write_csv(path: Path, rows: Iterable[Sequence[object]], delimiter: str = ",", encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def tone(path: Path, seed: int) -> None:
    write_tone(path, 200 + 50 * seed, seed=seed, duration_s=0.1)


def by_path(copy: Copy) -> dict[str, tuple[object, ...]]:
    return {entry.path: (entry.captions, entry.label, entry.fold, entry.recording_id) for entry in copy.entries}


def esc50(folder: Path) -> Path:
    rows = [
        ("1-100032-A-0.wav", 1, 0, "dog", True, 100032, "A"),
        ("1-172649-A-40.wav", 1, 40, "helicopter", True, 172649, "A"),
        ("5-172649-B-33.wav", 5, 33, "door_wood_creaks", False, 172649, "B"),
    ]
    write_csv(
        folder / "meta/esc50.csv", [("filename", "fold", "target", "category", "esc10", "src_file", "take"), *rows]
    )
    for seed, row in enumerate(rows):
        tone(folder / "audio" / row[0], seed)
    return folder


def urbansound8k(folder: Path) -> Path:
    header = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    rows = [
        ("100032-3-0-0.wav", 100032, 0.0, 0.3, 1, 5, 3, "dog_bark"),
        ("100263-2-0-117.wav", 100263, 58.5, 62.5, 1, 10, 2, "children_playing"),
    ]
    write_csv(folder / "metadata/UrbanSound8K.csv", [header, *rows])
    for seed, row in enumerate(rows):
        tone(folder / f"audio/fold{row[5]}" / row[0], seed)
    return folder


# --- one corpus at a time --------------------------------------------------------------------------------------------


def test_esc50_gives_label_fold_and_freesound_id(tmp_path: Path) -> None:
    """The take and the target look like ids; taken for the recording, fragments of one sound would be split."""
    copy = read_copy(find_corpus("esc50"), esc50(tmp_path))
    assert by_path(copy) == {
        "audio/1-100032-A-0.wav": ((), "dog", "1", "freesound:100032"),
        "audio/1-172649-A-40.wav": ((), "helicopter", "1", "freesound:172649"),
        "audio/5-172649-B-33.wav": ((), "door_wood_creaks", "5", "freesound:172649"),
    }


def test_urbansound8k_finds_each_slice_in_the_folder_of_its_fold(tmp_path: Path) -> None:
    copy = read_copy(find_corpus("urbansound8k"), urbansound8k(tmp_path))
    assert by_path(copy) == {
        "audio/fold5/100032-3-0-0.wav": ((), "dog_bark", "5", "freesound:100032"),
        "audio/fold10/100263-2-0-117.wav": ((), "children_playing", "10", "freesound:100263"),
    }
    assert not copy.missing


# --- the published lists ---------------------------------------------------------------------------------------------


def published(corpus: str, table: Path, folder: Path) -> Copy:
    """Lay the published list of a corpus into a folder where each of its files is there, without a sound in it."""
    names = {"esc50": "meta/esc50.csv", "urbansound8k": "metadata/UrbanSound8K.csv"}
    place = folder / names[corpus]
    place.parent.mkdir(parents=True)
    place.write_bytes(table.read_bytes())
    for entry in find_corpus(corpus).read(folder, ()):
        (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / entry.path).touch()
    return read_copy(find_corpus(corpus), folder)


@pytest.mark.shared_data("meta/esc50", "meta/urbansound8k")
@pytest.mark.parametrize(
    ("corpus", "table", "clips", "recordings"),
    [("esc50", "meta/esc50/esc50.csv", 2000, 1524), ("urbansound8k", "meta/urbansound8k/UrbanSound8K.csv", 8732, 1297)],
)
def test_the_published_list_is_complete(corpus, table, clips, recordings, tmp_path, shared_data) -> None:
    """A wrong count of a fold would call a whole copy short, or a short one whole."""
    copy = published(corpus, shared_data(table), tmp_path)
    assert (len(copy.entries), copy.num_expected, copy.missing, set(copy.unlisted.values())) == (clips, clips, (), {0})
    assert len({entry.recording_id for entry in copy.entries}) == recordings
    assert {readable(entry.label) for entry in copy.entries} == set(copy.corpus.class_names)
    assert str(copy).endswith("all are listed; every listed file is there")


# --- what is missing -------------------------------------------------------------------------------------------------


def test_a_short_copy_is_an_error_that_counts_and_names_what_is_missing(tmp_path: Path) -> None:
    """A tenth of ESC-50 that passes for ESC-50 gives an accuracy that nobody can compare."""
    (esc50(tmp_path) / "audio/1-100032-A-0.wav").unlink()
    with pytest.raises(ManifestError) as error:
        scan(IngestConfig(source=str(tmp_path), corpus="esc50"))
    for said in (
        "1998 of the 2000 rows", "2,000 clips were published", "398 of 1", "399 of 5",
        "1 files are absent: audio/1-100032-A-0.wav",
    ):  # fmt: skip
        assert said in str(error.value)


def test_what_is_missing_is_in_the_record_of_a_copy_that_was_allowed(tmp_path: Path) -> None:
    """Once the limit is raised, the record is the only place that can say how much of the corpus this was."""
    (esc50(tmp_path) / "audio/1-100032-A-0.wav").unlink()
    found = scan(IngestConfig(source=str(tmp_path), corpus="esc50", folds=("1", "5"), max_bad_fraction=1))
    expected = {"clips": 2, "rows": 3, "published": 800, "absent": 1, "without_recording": 0}
    assert {name: found.counts[name] for name in expected} == expected
    assert found.reasons == {"missing": 1, "not_listed": 2}
    assert set(found.quarantine.detail) >= {"398 clips of 1", "399 clips of 5"}


def test_folds_take_a_part_of_a_corpus_and_expect_no_more(tmp_path: Path) -> None:
    copy = read_copy(find_corpus("esc50"), esc50(tmp_path), ("5",))
    assert [entry.path for entry in copy.entries] == ["audio/5-172649-B-33.wav"]
    assert copy.unlisted == {"5": 399}


def test_a_list_with_more_clips_than_were_published_is_refused(tmp_path: Path) -> None:
    """A list that was pasted twice would count every clip twice."""
    row = ("1-1-A-0.wav", 1, 0, "dog", True, 1, "A")
    header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    write_csv(tmp_path / "meta/esc50.csv", [header, *[row] * 401])
    with pytest.raises(ManifestError, match="ESC-50 has 400 clips in 1, this copy lists 401"):
        read_copy(find_corpus("esc50"), tmp_path)


def test_a_clip_of_an_unknown_fold_is_refused(tmp_path: Path) -> None:
    """Left out as a fold that was not asked for, it would be gone without a word."""
    esc50(tmp_path)
    table = tmp_path / "meta/esc50.csv"
    table.write_text(table.read_text().replace(".wav,5,", ".wav,55,"))
    with pytest.raises(ManifestError, match=r"5-172649-B-33.wav in fold '55', but ESC-50 has 1, 2, 3, 4, 5"):
        read_copy(find_corpus("esc50"), tmp_path)


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_folder_that_is_no_copy_is_refused_with_what_it_should_hold(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is no copy of .*; give the folder that holds it"):
        read_copy(find_corpus(corpus), tmp_path)
    with pytest.raises(ManifestError, match="there is no folder .*; it should hold"):
        read_copy(find_corpus(corpus), tmp_path / "nowhere")


def test_a_copy_without_any_audio_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    """The list alone lies in many repositories; two thousand missing files are a wrong folder, not a bad copy."""
    esc50(tmp_path / "full")
    (tmp_path / "list/meta").mkdir(parents=True)
    (tmp_path / "full/meta/esc50.csv").rename(tmp_path / "list/meta/esc50.csv")
    with pytest.raises(ManifestError, match="holds no audio of ESC-50: audio/1-100032-A-0.wav and 2 others"):
        scan(IngestConfig(source=str(tmp_path / "list"), corpus="esc50", max_bad_fraction=1))


def test_another_table_under_the_right_name_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "meta/esc50.csv", [("path", "label"), ("a.wav", "dog")])
    with pytest.raises(
        ManifestError, match="is not that of ESC-50: it has no column filename, fold, category, src_file"
    ):
        read_copy(find_corpus("esc50"), tmp_path)


# --- in an experiment ------------------------------------------------------------------------------------------------


def test_an_experiment_names_a_corpus_its_folds_and_its_class_names(tmp_path: Path) -> None:
    """Fold 1 written as a number is the same fold; a path relative to the file is the same copy."""
    esc50(tmp_path / "ESC-50")
    (tmp_path / "own.yaml").write_text(
        "pairs: pairs.csv\nclass_names: esc50\nrows: [{strategy: teacher}]\n"
        "evaluation: {source: ESC-50, corpus: esc50, folds: [1], max_bad_fraction: 1}\n"
    )
    experiment = experiment_from_file(tmp_path / "own.yaml")
    assert experiment.class_names == class_list("esc50")
    found = scan(experiment.evaluation)
    assert sorted(found.manifest.clips.label) == ["dog", "helicopter"]
    assert set(found.manifest.clips.recording_id) == {"freesound:100032", "freesound:172649"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "x", "corpus": "esc50", "metadata": "t.csv"}, "knows its own files: leave out metadata"),
        ({"source": "pool:field", "corpus": "esc50"}, "a corpus lies in a folder"),
        ({"source": "x", "folds": ["1"]}, "folds are chosen of a corpus"),
    ],
)
def test_settings_that_a_corpus_would_not_look_at_are_refused(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(IngestConfig, values)


def test_an_unknown_corpus_or_fold_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no corpus 'esc-50'; there are esc50, urbansound8k"):
        scan(IngestConfig(source=str(tmp_path), corpus="esc-50"))
    with pytest.raises(ManifestError, match="no fold or split '6'; it has 1, 2, 3, 4, 5"):
        scan(IngestConfig(source=str(tmp_path), corpus="esc50", folds=("6",)))


# --- class names -----------------------------------------------------------------------------------------------------


def reference_list(path: Path) -> list[str]:
    """Read a label encoder of the reference code: lines of 'name' => index, then its own notes."""
    lines = [line.split(" => ") for line in path.read_text().split("====")[0].splitlines()]
    return [name.strip("'") for name, index in sorted(lines, key=lambda line: int(line[1]))]


@pytest.mark.shared_data("meta/label_lists/clap_curation")
@pytest.mark.parametrize("name", CLASS_LISTS)
def test_class_names_are_the_references_in_its_order_and_spelling(name: str, shared_data) -> None:
    """`clapping hands` for `clapping` moves a class by tens of points, and nothing looks wrong."""
    path = shared_data(f"meta/label_lists/clap_curation/label_encoder_{REFERENCE_LISTS[name]}.txt")
    assert list(class_list(name)) == reference_list(path)
    assert signature(reference_list(path)) == CLASS_LISTS[name]


def test_every_list_of_class_names_is_the_one_that_its_signature_names(tmp_path: Path, monkeypatch) -> None:
    assert {path.stem for path in LISTS.glob("*.txt")} == set(CLASS_LISTS)
    assert {name: len(class_list(name)) for name in CLASS_LISTS} == {
        "esc50": 50, "tau2019": 10, "tut2017": 15, "urbansound8k": 10, "vggsound": 308,
    }  # fmt: skip
    (tmp_path / "esc50.txt").write_text("\n".join(sorted(class_list("esc50"))))
    monkeypatch.setattr("clapcur.class_names.LISTS", tmp_path)
    with pytest.raises(DataError, match="were changed"):
        class_list("esc50")


def test_a_name_that_is_neither_a_list_nor_a_file_says_which_lists_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'esc-50' is neither a file .* shipped: esc50, tau2019"):
        find_class_names("esc-50", tmp_path)
    (tmp_path / "own").write_text("one\nother\n")
    assert find_class_names("own", tmp_path) == ("one", "other")
