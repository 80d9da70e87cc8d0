"""Corpora: what is read from copies in their official layout, what is missing from them, and the published counts."""

from pathlib import Path

import pytest
from corpus_copies import audioset, clotho, esc50, fsd50k, macs, tone, tut2017, urbansound8k, write_csv
from hypothesis import given
from hypothesis import strategies as st
from source_tree import ROOT

from clapcur.config import from_dict, signature
from clapcur.corpora import CORPORA, Copy, Entry, find_corpus, read_copy
from clapcur.corpora.fsd50k import caption as fsd50k_caption
from clapcur.data.class_names import CLASS_LISTS, LISTS, class_list, find_class_names, readable
from clapcur.data.recordings import recording, youtube_ids
from clapcur.errors import DataError, ManifestError
from clapcur.experiments.config import experiment_from_file
from clapcur.stages.ingest import IngestConfig, scan

REFERENCE_LISTS = {
    "esc50": "esc", "urbansound8k": "us8k_ordered", "tut2017": "tut2017_ordered", "tau2019": "tauuas2019_ordered",
    "vggsound": "vggsound_ordered",
}  # fmt: skip


def by_path(copy: Copy) -> dict[str, tuple[object, ...]]:
    return {entry.path: (entry.captions, entry.label, entry.fold, entry.recording_id) for entry in copy.entries}


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


def test_clotho_gives_five_captions_and_the_freesound_id_of_its_metadata(tmp_path: Path) -> None:
    """The metadata is in another encoding than the captions; a name that differs by it would lose its recording."""
    copy = read_copy(find_corpus("clotho"), clotho(tmp_path))
    texts = tuple(f"rain falls {letter}, hard" for letter in "abcde")
    assert by_path(copy) == {
        "clotho_audio_files/development/Rain, heavy.wav": (texts, "", "development", "freesound:123"),
        "clotho_audio_files/development/Évora.wav": (("a bell",) * 5, "", "development", ""),
    }
    found = scan(IngestConfig(source=str(tmp_path), corpus="clotho", max_bad_fraction=1))
    assert (found.counts["pairs"], found.counts["without_recording"]) == (6, 1), "five equal captions are one pair"


def test_clotho_unpacked_side_by_side_is_the_same_copy(tmp_path: Path) -> None:
    clotho(tmp_path / "made")
    flat = tmp_path / "flat"
    (tmp_path / "made/clotho_csv_files").rename(flat)
    (tmp_path / "made/clotho_audio_files/development").rename(flat / "development")
    copy = read_copy(find_corpus("clotho"), flat)
    assert [entry.path for entry in copy.entries] == ["development/Rain, heavy.wav", "development/Évora.wav"]
    assert not copy.missing


def audiocaps(folder: Path) -> Path:
    header = ("audiocap_id", "youtube_id", "start_time", "caption")
    rows = [(1, "7fmOlUlwoNg", 20, "a rattle"), (2, "6BJ455B1aAs", 0, "a rocket"), (3, "7fmOlUlwoNg", 20, "vibrations")]
    write_csv(folder / "csv_files_v1/test.csv", [header, *rows])
    write_csv(folder / "csv_files_v1/train.csv", [header, (4, "--PJHxphWEs", 30, "speech, and music")])
    tone(folder / "audio_32000Hz/test/7fmOlUlwoNg_20.flac", 1)
    tone(folder / "audio_32000Hz/train/--PJHxphWEs_30.wav", 2)
    return folder


def test_audiocaps_gathers_the_captions_of_a_clip_and_its_youtube_id(tmp_path: Path) -> None:
    """A row is a caption, not a clip: five clips where there is one would be five recordings."""
    copy = read_copy(find_corpus("audiocaps"), audiocaps(tmp_path), ("test",))
    assert by_path(copy) == {
        "audio_32000Hz/test/7fmOlUlwoNg_20.flac": (("a rattle", "vibrations"), "", "test", "youtube:7fmOlUlwoNg"),
        "audio_32000Hz/test/6BJ455B1aAs_0.flac": (("a rocket",), "", "test", "youtube:6BJ455B1aAs"),
    }
    assert copy.missing == ("audio_32000Hz/test/6BJ455B1aAs_0.flac",)
    (train,) = read_copy(find_corpus("audiocaps"), tmp_path).entries
    assert (train.path, train.captions) == ("audio_32000Hz/train/--PJHxphWEs_30.wav", ("speech, and music",))


def test_audiocaps_at_two_rates_is_refused(tmp_path: Path) -> None:
    """Whichever came first would be taken, and another machine might list them in another order."""
    (audiocaps(tmp_path) / "audio_48000Hz/train").mkdir(parents=True)
    with pytest.raises(ManifestError, match=r"several sample rates \(audio_32000Hz, audio_48000Hz\)"):
        read_copy(find_corpus("audiocaps"), tmp_path)


def test_macs_gives_every_sentence_and_the_place_of_the_recording(tmp_path: Path) -> None:
    """The numbers behind the place are those of a segment; segments of one place would be on both sides."""
    copy = read_copy(find_corpus("macs"), macs(tmp_path))
    assert by_path(copy) == {
        "audio/airport-barcelona-0-0-a.wav": (
            ("people talk in a hall", "steps: many"), "", "full", "tau:barcelona-0",
        ),
        "audio/street_traffic-lyon-1040-31-a.wav": (("cars",), "", "full", "tau:lyon-1040"),
    }  # fmt: skip


def test_fsd50k_gives_title_and_description_as_the_caption(tmp_path: Path) -> None:
    fsd50k(tmp_path)
    assert by_path(read_copy(find_corpus("fsd50k"), tmp_path)) == {
        "FSD50K.dev_audio/64760.wav": (("guitar 1.wav A riff in E. 5",), "", "train", "freesound:64760")
    }
    assert by_path(read_copy(find_corpus("fsd50k"), tmp_path, ("val", "eval"))) == {
        "FSD50K.dev_audio/16399.wav": (("",), "", "val", "freesound:16399"),
        "FSD50K.eval_audio/37199.wav": (("Rain on a roof",), "", "eval", "freesound:37199"),
    }
    found = scan(IngestConfig(source=str(tmp_path), corpus="fsd50k", folds=("val",), max_bad_fraction=1))
    assert found.reasons == {"empty_caption": 1, "not_listed": 1}, "a clip that nobody described is counted"


@pytest.mark.parametrize(
    ("title", "description", "expected"),
    [
        ("a_b", "c,d", "a b cd"),
        ("x", "<a href='1'>one</a> and <a href='2'>two</a> end", "x end"),
        ("x", "<a>one</a> kept\n<a>two</a>", "x kept"),
        ("", "", ""),
    ],
)
def test_text_of_fsd50k_is_cleaned_as_the_reference_cleans_it(title, description, expected) -> None:
    """Greedy within a line, not beyond it: what is between two links goes, the next line stays."""
    assert fsd50k_caption(title, description) == expected


def test_audioset_finds_files_by_youtube_id_however_they_are_named(tmp_path: Path) -> None:
    """One habit of naming that is not known, and a whole copy counts as missing."""
    copy = read_copy(find_corpus("audioset"), audioset(tmp_path))
    assert {entry.recording_id: entry.path for entry in copy.entries} == {
        "youtube:--PJHxphWEs": "part00/Y--PJHxphWEs.wav",
        "youtube:-0RWZT-miFs": "part01/-0RWZT-miFs_420000_430000.flac",
        "youtube:7fmOlUlwoNg": "7fmOlUlwoNg_20.wav",
        "youtube:YbcdefghijK": "YbcdefghijK.wav",
        "youtube:gone_video0": "unbalanced_train_segments/Ygone_video0.wav",
    }
    assert copy.missing == ("unbalanced_train_segments/Ygone_video0.wav",)
    assert copy.unlisted == {"unbalanced_train": 2_041_784}


@pytest.mark.shared_data("meta/audioset")
def test_the_published_evaluation_list_of_audioset_is_complete(tmp_path: Path, shared_data) -> None:
    table = shared_data("meta/audioset/official_eval_segments_requoted.csv").read_bytes()
    (tmp_path / "eval_segments.csv").write_bytes(table)
    tone(tmp_path / "Y--4gqARaEJE.wav", 1)
    copy = read_copy(find_corpus("audioset"), tmp_path, ("eval",))
    assert (len(copy.entries), copy.unlisted, len(copy.missing)) == (20_371, {"eval": 0}, 20_370)
    assert copy.entries[0] == Entry("Y--4gqARaEJE.wav", (), "", "eval", "youtube:--4gqARaEJE")


def test_tut2017_gives_the_session_that_a_segment_was_cut_from(tmp_path: Path) -> None:
    """Segments of one session sound alike; an interval that draws them one by one would be far too narrow."""
    top = "TUT-acoustic-scenes-2017"
    assert by_path(read_copy(find_corpus("tut2017"), tut2017(tmp_path))) == {
        f"{top}-development/audio/b020_90_100.wav": ((), "beach", "development", "tut:b020"),
        f"{top}-development/audio/b020_100_110.wav": ((), "beach", "development", "tut:b020"),
        f"{top}-evaluation/audio/0.wav": ((), "cafe/restaurant", "evaluation", "tut:a031"),
        f"{top}-evaluation/audio/1.wav": ((), "tram", "evaluation", "tut:a147"),
    }


def test_the_map_of_tut2017_is_read_in_either_order_and_may_be_absent(tmp_path: Path) -> None:
    """Read the wrong way round, no evaluation clip would have a recording, and nothing would look wrong."""
    path = tut2017(tmp_path) / "TUT-acoustic-scenes-2017-evaluation/evaluation_setup/map.txt"
    there = read_copy(find_corpus("tut2017"), tmp_path).entries
    rows = [line.split("\t")[::-1] for line in path.read_text().splitlines()]
    write_csv(path, rows, "\t")
    assert read_copy(find_corpus("tut2017"), tmp_path).entries == there
    path.unlink()
    found = scan(IngestConfig(source=str(tmp_path), corpus="tut2017", max_bad_fraction=1))
    assert found.counts["without_recording"] == 2
    assert {readable(label) for label in found.manifest.clips.label} <= set(class_list("tut2017"))


@pytest.mark.shared_data("captions")
@pytest.mark.parametrize(
    ("split", "clips", "captions"), [("train", 49_838, 49_838), ("val", 495, 2475), ("test", 975, 4875)]
)
def test_the_published_captions_of_audiocaps_are_complete(split, clips, captions, tmp_path, shared_data) -> None:
    (tmp_path / f"{split}.csv").write_bytes(shared_data(f"captions/audiocaps/{split}.csv").read_bytes())
    entries = list(find_corpus("audiocaps").read(tmp_path, (split,)))
    assert (len(entries), sum(len(entry.captions) for entry in entries)) == (clips, captions)
    assert find_corpus("audiocaps").expected(split, clips) == clips
    assert len({entry.recording_id for entry in entries}) == clips, "one clip of each video"


@pytest.mark.shared_data("captions")
@pytest.mark.parametrize(("split", "clips"), [("development", 3839), ("validation", 1045), ("evaluation", 1045)])
def test_the_published_captions_of_clotho_are_complete(split, clips, tmp_path, shared_data) -> None:
    name = f"clotho_captions_{split}.csv"
    (tmp_path / name).write_bytes(shared_data(f"captions/clotho/{name}").read_bytes())
    (tmp_path / split).mkdir()
    write_csv(tmp_path / f"clotho_metadata_{split}.csv", [("file_name", "sound_id")])
    entries = list(find_corpus("clotho").read(tmp_path, (split,)))
    assert (len(entries), sum(len(entry.captions) for entry in entries)) == (clips, 5 * clips)
    assert find_corpus("clotho").expected(split, clips) == clips


# --- recordings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", " ", "Not found", "NA", "nan"])
def test_what_stands_for_no_recording_is_none(name: str) -> None:
    """All clips of the recording "Not found" would count as one recording, and all be excluded for one of them."""
    assert recording("freesound", name) == ""


@given(
    st.from_regex(r"[A-Za-z0-9_-]{11}", fullmatch=True),
    st.sampled_from(["", "Y"]),
    st.sampled_from(["", "_30", "_30.000_40.000"]),
)
def test_a_youtube_id_is_among_those_that_a_name_may_mean(video: str, prefix: str, times: str) -> None:
    assert video in youtube_ids(prefix + video + times)


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
    assert str(copy).endswith("all are listed; no listed file is missing")


# --- what is missing -------------------------------------------------------------------------------------------------


def test_a_short_copy_is_an_error_that_counts_and_names_what_is_missing(tmp_path: Path) -> None:
    """A tenth of ESC-50 that passes for ESC-50 gives an accuracy that nobody can compare."""
    (esc50(tmp_path) / "audio/1-100032-A-0.wav").unlink()
    with pytest.raises(ManifestError) as error:
        scan(IngestConfig(source=str(tmp_path), corpus="esc50"))
    for said in (
        "1998 of the 2000 rows", "2,000 clips were published", "398 of 1", "399 of 5",
        "1 files are missing: audio/1-100032-A-0.wav",
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
    with pytest.raises(ManifestError, match="ESC-50 has 400 clips in 1, but this copy lists 401"):
        read_copy(find_corpus("esc50"), tmp_path)


def test_a_clip_of_an_unknown_fold_is_refused(tmp_path: Path) -> None:
    """Left out as a fold that was not asked for, it would be gone silently."""
    esc50(tmp_path)
    table = tmp_path / "meta/esc50.csv"
    table.write_text(table.read_text().replace(".wav,5,", ".wav,55,"))
    with pytest.raises(ManifestError, match=r"5-172649-B-33.wav in fold '55', but ESC-50 has 1, 2, 3, 4, 5"):
        read_copy(find_corpus("esc50"), tmp_path)


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_folder_that_is_no_copy_is_refused_with_what_it_should_hold(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is not a copy of .*; give the folder that holds it"):
        read_copy(find_corpus(corpus), tmp_path)
    with pytest.raises(ManifestError, match="folder .* not found; it should hold"):
        read_copy(find_corpus(corpus), tmp_path / "nowhere")


def test_a_copy_without_any_audio_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    """The list alone is in many repositories; two thousand missing files are a wrong folder, not a bad copy."""
    esc50(tmp_path / "full")
    (tmp_path / "list/meta").mkdir(parents=True)
    (tmp_path / "full/meta/esc50.csv").rename(tmp_path / "list/meta/esc50.csv")
    with pytest.raises(ManifestError, match="holds no audio of ESC-50: audio/1-100032-A-0.wav and 2 others"):
        scan(IngestConfig(source=str(tmp_path / "list"), corpus="esc50", max_bad_fraction=1))


def test_another_table_under_the_right_name_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "meta/esc50.csv", [("path", "label"), ("a.wav", "dog")])
    with pytest.raises(
        ManifestError, match="is not a table of ESC-50: it has no column filename, fold, category, src_file"
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
        ({"source": "x", "corpus": "esc50", "metadata": "t.csv"}, "lists its own files: omit metadata"),
        ({"source": "pool:field", "corpus": "esc50"}, "the source of a corpus must be a folder"),
        ({"source": "x", "folds": ["1"]}, "folds need `corpus`, got 1 without it"),
    ],
)
def test_settings_that_a_corpus_would_not_look_at_are_refused(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(IngestConfig, values)


def test_an_unknown_corpus_or_fold_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="unknown corpus 'esc-50'; the corpora are audiocaps, clotho, macs"):
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
    monkeypatch.setattr("clapcur.data.class_names.LISTS", tmp_path)
    with pytest.raises(DataError, match="were modified"):
        class_list("esc50")


def test_a_name_that_is_neither_a_list_nor_a_file_says_which_lists_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'esc-50' is neither a file .* built-in list: esc50, tau2019"):
        find_class_names("esc-50", tmp_path)
    (tmp_path / "own").write_text("one\nother\n")
    assert find_class_names("own", tmp_path) == ("one", "other")


# --- the page that lists them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORPORA)
def test_the_table_in_the_docs_has_the_counts_of_the_corpus(name: str) -> None:
    """A number that was mended in the module only leaves people with a copy that looks wrong."""
    lines = (ROOT / "docs/corpora.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"| `{name}` |") and line.count("|") == 7)
    corpus = CORPORA[name]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[3] == (str(len(corpus.class_names)) if corpus.class_names else "")
    each = {f"{fold} {versions[0]:,}" for fold, versions in corpus.clips.items()}
    total = {"1 to 5, 400 each", f"{sum(versions[0] for versions in corpus.clips.values()):,} in all"}
    assert all(said in cells[2] for said in each) or any(said in cells[2] for said in total)
    assert corpus.recordings.split()[0] in cells[5] or cells[5] in corpus.recordings


def test_every_corpus_says_what_a_reader_must_know() -> None:
    for corpus in CORPORA.values():
        assert corpus.licence and corpus.recordings and corpus.departures and corpus.layout
        assert set(corpus.folds) <= set(corpus.clips)
