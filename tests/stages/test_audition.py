"""The audition: which pairs are heard, what the page holds, what a table of marks may say."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from audition_tools import (
    CLASSES,
    improvement_set,
    make,
    make_audition,
    store,  # noqa: F401  # a fixture
)
from hypothesis import given
from hypothesis import strategies as st

from clapcur.data.marks import read_marks
from clapcur.errors import ArtifactError, DataError
from clapcur.stages.audition import STAGE, AuditionConfig, audition_inputs
from clapcur.stages.audition.choosing import choose_pairs, even_shares
from clapcur.stages.audition.clip import HEIGHT, WIDTH, as_mp3, as_spectrogram, load_excerpt
from clapcur.store.artifacts import Store

RATE = 22_050


# -- choosing

SETS = st.lists(st.tuples(st.sampled_from("abcde"), st.floats(-1, 1, width=32)), min_size=1, max_size=120)


def choose(pairs, num_pairs, border=0.3, top=0.2, seed=0):
    classes, scores = zip(*pairs, strict=True)
    return choose_pairs(
        np.array(scores, np.float32), np.array(classes, object), num_pairs, border=border, top=top, seed=seed
    )


@given(SETS, st.integers(1, 150), st.integers(0, 3))
def test_so_many_pairs_as_asked_for_each_once_evenly_over_classes(pairs, num_pairs, seed):
    """A pair that comes twice is counted twice; a class that is passed over is never heard."""
    chosen = choose(pairs, num_pairs, seed=seed)
    assert len(chosen) == min(num_pairs, len(pairs)) and chosen.row.is_unique
    assert [pairs[row][0] for row in chosen.row] == chosen["class"].tolist()
    sizes = pd.Series([name for name, _ in pairs]).value_counts()
    taken = chosen["class"].value_counts().reindex(sizes.index, fill_value=0)
    short = taken[taken < sizes]  # classes that have more to give
    assert short.empty or taken.max() - short.min() <= 1


@given(SETS, st.integers(1, 150), st.integers(0, 3), st.sampled_from([(0.3, 0.2), (0, 0), (0.5, 0.45)]))
def test_the_weights_of_a_class_add_up_to_its_pairs(pairs, num_pairs, seed, shares):
    """Weights that do not make a precision estimated from marks wrong, by as much as the borders are over-heard."""
    chosen = choose(pairs, num_pairs, *shares, seed=seed)
    for name, table in chosen.groupby("class"):
        scores = sorted(score for other, score in pairs if other == name)
        assert table.weight.sum() == len(scores)
        by_reason = {reason: [pairs[row][1] for row in rows.row] for reason, rows in table.groupby("reason")}
        border, top = by_reason.get("border", []), by_reason.get("top", [])
        assert sorted(border) == scores[: len(border)] and len(border) == int(shares[0] * len(table))
        assert sorted(top) == scores[len(scores) - len(top) :] and len(top) == int(shares[1] * len(table))
        assert (table.weight[table.reason != "random"] == 1).all()


def test_the_draw_covers_the_range_and_is_fair():
    """A draw that follows the density of scores hears one corner of a set; one that favours a score is biased."""
    pairs = [("a", np.float32(score)) for score in np.linspace(0, 1, 100)]
    drawn = np.zeros(100)
    for seed in range(300):
        chosen = choose(pairs, 10, 0, 0, seed=seed)
        assert sorted(chosen.row // 10) == list(range(10))  # one out of each tenth
        drawn[chosen.row] += 1
    assert drawn.sum() == 3000 and drawn.min() > 10 and drawn.max() < 55  # 30 expected of each


def test_the_same_seed_chooses_the_same_and_another_one_others():
    pairs = [("ab"[index % 2], np.float32(index / 100)) for index in range(100)]
    one, again, other = choose(pairs, 20), choose(pairs, 20), choose(pairs, 20, seed=1)
    pd.testing.assert_frame_equal(one, again)
    assert set(one.row) != set(other.row)
    border = lambda table: set(table.row[table.reason == "border"])  # noqa: E731
    assert border(one) == border(other)


def test_whoever_stops_early_has_heard_every_class():
    """Sorted by class, the first hundred pairs would be of two classes; sorted by reason, all borders."""
    pairs = [("abcd"[index % 4], np.float32(index / 400)) for index in range(400)]
    chosen = choose(pairs, 80)
    for start in range(0, 80, 4):
        assert set(chosen["class"][start : start + 4]) == set("abcd")
    assert set(chosen.reason[:20]) == {"border", "top", "random"}


@pytest.mark.parametrize(
    ("sizes", "total", "shares"),
    [
        ({"a": 10, "b": 10}, 6, {"a": 3, "b": 3}),
        ({"a": 1, "b": 10, "c": 10}, 9, {"a": 1, "b": 4, "c": 4}),
        ({"a": 5, "b": 5, "c": 5}, 4, {"a": 2, "b": 1, "c": 1}),
        ({"a": 2, "b": 3}, 100, {"a": 2, "b": 3}),
        ({"a": 2, "b": 3}, 1, {"a": 1, "b": 0}),
    ],
)
def test_even_shares(sizes, total, shares):
    assert even_shares(sizes, total) == shares


# -- one clip


def test_sound_and_spectrogram_are_those_of_the_clip(tmp_path):
    """An upside-down or shifted spectrogram points the eye to another place than the ear."""
    time_s = np.arange(2 * RATE) / RATE
    low_then_high = np.where(time_s < 1, np.sin(2 * np.pi * 200 * time_s), np.sin(2 * np.pi * 6000 * time_s))
    waveform = (0.5 * low_then_high).astype(np.float32)
    heard, rate = soundfile.read(io.BytesIO(as_mp3(waveform, RATE)))
    assert rate == RATE and len(heard) == pytest.approx(len(waveform), abs=1200)
    assert np.corrcoef(heard[2000:20000], waveform[2000:20000])[0, 1] > 0.98
    from matplotlib.image import imread

    image = imread(io.BytesIO(as_spectrogram(waveform, RATE)), format="png")[..., :3].sum(axis=2)
    assert image.shape == (HEIGHT, WIDTH)
    early, late = image[:, 20:110].mean(axis=1), image[:, 150:240].mean(axis=1)
    assert early.argmax() > 0.8 * HEIGHT and late.argmax() < 0.35 * HEIGHT


def test_a_click_in_a_long_clip_is_seen(tmp_path):
    """One window for each column would skip most of a minute."""
    waveform = np.zeros(60 * RATE, np.float32)
    waveform[41 * RATE] = 1
    from matplotlib.image import imread

    image = imread(io.BytesIO(as_spectrogram(waveform, RATE)), format="png")[..., :3].sum(axis=(0, 2))
    assert abs(image.argmax() / WIDTH - 41 / 60) < 0.01


@pytest.mark.parametrize("num_samples", [1, 100, 5000])
def test_the_shortest_clip_has_sound_and_image(num_samples):
    waveform = np.full(num_samples, 0.25, np.float32)
    assert as_spectrogram(waveform, RATE).startswith(b"\x89PNG")
    assert len(soundfile.read(io.BytesIO(as_mp3(waveform, RATE)))[0]) > 0


def test_of_a_long_clip_the_middle_is_heard_without_clipping(tmp_path):
    """A decoder clips what is above full scale, which sounds like a fault of the recording."""
    ramp = np.linspace(-2, 2, 4 * RATE, dtype=np.float32)
    soundfile.write(tmp_path / "long.wav", ramp, RATE, subtype="FLOAT")
    excerpt = load_excerpt(tmp_path / "long.wav", RATE, 1.0)
    assert len(excerpt) == RATE
    np.testing.assert_allclose(excerpt, ramp[int(1.5 * RATE) : int(2.5 * RATE)], atol=1e-4)
    assert np.abs(load_excerpt(tmp_path / "long.wav", RATE, 10)).max() == pytest.approx(1)


# -- the page


def test_the_page_has_the_pairs_with_scores_thresholds_and_sounds(store, tmp_path):
    """Text and sound of two pairs that are exchanged look like a bad model."""
    source = improvement_set(store, tmp_path / "sounds", card={"class_thresholds": {"dog": 0.35, "rain": 0.4}})
    made = make(store, source, num_pairs=24)
    rows = {(row["clip_id"], row["caption_id"]): row for row in made.data["pairs"]}
    expected = pd.read_parquet(source.path / "pairs.parquet")
    assert len(rows) == len(expected) == 24
    thresholds = {"dog": 0.35, "rain": 0.4, "bell": 0.3}
    for pair in expected.to_dict("records"):
        row = rows[pair["clip_id"], pair["caption_id"]]
        assert row["caption"] == CLASSES[pair["class"]] and row["class"] == pair["class"]
        assert row["similarity"] == pytest.approx(pair["similarity"], abs=1e-6)
        assert row["class_similarity"] == pytest.approx(pair["class_similarity"], abs=1e-6)
        assert row["threshold"] == thresholds[pair["class"]]
        assert row["margin"] == pytest.approx(row["similarity"] - row["threshold"], abs=2e-6)
    for index, (clip, entry) in enumerate(sorted(made.data["clips"].items())):
        waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(entry["audio"])))
        loudest_hz = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))).argmax() * rate / len(waveform)
        assert loudest_hz == pytest.approx(300 + 100 * index, rel=0.08)
        assert Path(entry["path"]).name == f"{clip[-4:]}.wav" and entry["excerpt"] == "2.0 s"
    text = made.page.read_text()
    assert source.id in text and "ADS (augmented domain-specific)" in text and "0.300 to 0.400, by class" in text
    assert made.artifact.record.counts == {"pairs": 24, "clips": 12, "embedded": 12}


def test_a_clip_of_two_pairs_is_embedded_once(store, tmp_path):
    made = make_audition(store, tmp_path / "sounds", num_pairs=24)
    assert made.pairs.clip_id.duplicated().sum() == 12
    assert made.page.read_text().count('"audio":') == 12


def test_ds_is_cut_by_its_captions(store, tmp_path):
    """The audio scores of DS met no threshold: their lowest are no border."""
    source = improvement_set(store, tmp_path / "sounds", strategy="ds")
    with pytest.raises(ArtifactError, match="clip_id that is in none of its manifests"):
        make(store, source, num_pairs=9)  # the clips of this set are of the pool, those of DS are the teacher's
    inputs = audition_inputs(store, source)
    assert set(inputs) == {"improvement_set", "teacher_pairs"}
    inputs["pool"] = store.find(source.record.inputs["pool"])
    config = AuditionConfig(num_pairs=9, border=0.4)
    work = store.open(STAGE.key(config, inputs))
    STAGE.compute(inputs, config, work)
    pairs = pd.read_csv(work.path / "pairs.csv")
    everything = pd.read_parquet(source.path / "pairs.parquet")
    for name, table in pairs.groupby("class"):
        border = table[table.reason == "border"]
        lowest = everything.class_similarity[everything["class"] == name].min()
        assert border.class_similarity.tolist() == pytest.approx([lowest])
    assert '"cut":"caption"' in (work.path / "audition.html").read_text()
    assert pairs.margin.tolist() == pytest.approx((pairs.class_similarity - 0.7).tolist(), abs=2e-6)


def test_only_what_the_set_names_is_an_input(store, tmp_path):
    source = improvement_set(store, tmp_path / "sounds")
    assert set(audition_inputs(store, source)) == {"improvement_set", "teacher_pairs", "pool"}
    with pytest.raises(ArtifactError, match="expected an improvement_set, got the manifest"):
        audition_inputs(store, store.find(source.record.inputs["pool"]))


def test_the_page_keeps_its_size_and_says_what_has_no_room(store, tmp_path):
    """A page above 20 MiB is not shown by MLflow at all."""
    source = improvement_set(store, tmp_path / "sounds")
    full = make(store, source, num_pairs=24)
    size = full.page.stat().st_size
    per_clip = max(len(json.dumps(clip)) for clip in full.data["clips"].values())
    for limit in (size - per_clip, size - 6 * per_clip):
        made = make(store, source, num_pairs=24, max_bytes=limit)
        assert limit - 2 * per_clip - 1024 < made.page.stat().st_size <= limit
        silent = [clip for clip in made.data["clips"].values() if "audio" not in clip]
        assert silent and all("size limit" in clip["note"] for clip in silent)
        counts = made.artifact.record.counts
        assert counts["left_out"] == len(silent) and counts["embedded"] == 12 - len(silent)
        assert f"clips: {len(silent)} left out" in made.page.read_text()
        assert set(made.pairs["class"][made.pairs.sound == "embedded"]) == set(CLASSES)
    with pytest.raises(ValueError, match="needs .* bytes even without audio, but max_bytes is 9,000"):
        make(store, source, num_pairs=24, max_bytes=9000)


def test_what_cannot_be_heard_is_said_and_the_rest_is_heard(store, tmp_path):
    """One file that was moved must not cost the whole page."""
    source = improvement_set(store, tmp_path / "sounds", missing=2)
    (tmp_path / "sounds" / "00a5.wav").write_bytes(b"no sound")
    made = make(store, source, num_pairs=24)
    notes = {clip[-4:]: entry["note"] for clip, entry in made.data["clips"].items() if "note" in entry}
    assert notes["00a1"] == notes["00a2"] == "file not found"
    assert notes["00a5"].startswith("unreadable: ") and len(notes) == 3
    assert made.artifact.record.counts == {"pairs": 24, "clips": 12, "embedded": 9, "missing": 2, "unreadable": 1}
    assert "6 of 24 pairs cannot be played here; clips: 2 missing, 1 unreadable." in made.page.read_text()
    assert (made.pairs.sound == "missing").sum() == 4


def test_text_of_others_cannot_become_markup_or_script(store, tmp_path):
    """A caption is written by a stranger."""
    evil = "</script><script>alert(1)</script><!--"
    source = improvement_set(store, tmp_path / "sounds", classes={"<i>a</i>": evil, "b": "rain"})
    made = make(store, source, num_pairs=6)
    text = made.page.read_text()
    assert evil not in text and "<i>a" not in text and text.count("<script") == 2 and text.count("</script") == 2
    assert evil in {pair["caption"] for pair in made.data["pairs"]}


def test_the_same_set_makes_the_same_bytes(tmp_path):
    """An artifact that differs by its time of making cannot be checked by recomputing it."""
    made = [make_audition(Store(tmp_path / name), tmp_path / "sounds") for name in ("one", "two")]
    digests = [{name: entry["sha256"] for name, entry in one.artifact.record.files.items()} for one in made]
    assert digests[0] == digests[1] and set(digests[0]) == {"audition.html", "pairs.csv"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_pairs": 0}, "num_pairs must be at least 1, got 0"),
        ({"border": 0.6, "top": 0.4}, "fractions with a sum below 1, got 0.6 and 0.4"),
        ({"border": -0.1}, "got -0.1"),
        ({"sample_rate": 20_000}, "one that MP3 supports"),
        ({"max_seconds": 0.0}, "above 0, got 0"),
    ],
)
def test_values_without_a_meaning_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        AuditionConfig(**wrong)


# -- the command


def test_the_command_makes_the_page_and_says_where_it_is(home, tmp_path, capsys, monkeypatch):
    """A page nobody finds is not heard."""
    from clapcur.cli.auditioning import audition as command
    from clapcur.store.catalog import Catalog

    source = improvement_set(home.store, tmp_path / "sounds", missing=1)
    Catalog.open(home).rebuild(home.store)
    monkeypatch.setenv("COLUMNS", "400")
    command(source.id[:6], num_pairs=24, seed=1, as_json=True)
    said = json.loads(capsys.readouterr().out)
    page = Path(said["page"].removeprefix("file://"))
    assert page.name == "audition.html" and said["counts"]["pairs"] == 24
    assert source.id in page.read_text()
    command(source.id[:6], num_pairs=24, seed=1)
    shown = capsys.readouterr().out
    assert said["page"] in shown and said["id"] in shown
    (told,) = home.mlflow_artifacts.rglob("audition.html")
    assert told.read_bytes() == page.read_bytes()
    assert said["counts"]["missing"] == 1
    assert f"{said['counts']['embedded']} of {said['counts']['clips']} clips can be played" in shown


# -- marks

HEADER = "clip_id,caption_id,mark,similarity,class\n"


def write_marks(tmp_path, text):
    (tmp_path / "marks.csv").write_text(text, encoding="utf-8")
    return tmp_path / "marks.csv"


def test_marks_are_read_as_they_were_written(tmp_path):
    """An id of digits read as a number, or a class called "None" read as missing, names another pair."""
    path = write_marks(
        tmp_path, "\ufeff" + HEADER + '0012e4,b, wrong ,0.5,None\n"0001","b",right,,"a, b"\n0012e4,b,wrong,0.5,None\n'
    )
    marks = read_marks(path)
    assert marks.columns.tolist() == ["clip_id", "caption_id", "mark", "similarity", "class"]
    assert marks.clip_id.tolist() == ["0001", "0012e4"] and marks.mark.tolist() == ["right", "wrong"]
    assert marks["class"].tolist() == ["a, b", "None"]
    assert np.isnan(marks.similarity[0]) and marks.similarity[1] == 0.5


def test_other_columns_and_any_order_are_welcome(tmp_path):
    path = write_marks(tmp_path, "who,mark,class,similarity,caption_id,clip_id\nme,wrong,x,0.5,b,a\n")
    assert read_marks(path).to_dict("records") == [
        {"clip_id": "a", "caption_id": "b", "mark": "wrong", "similarity": 0.5, "class": "x"}
    ]


def test_marks_that_went_through_a_spreadsheet_are_the_same(tmp_path):
    """It writes semicolons, and people write capitals."""
    path = write_marks(tmp_path, HEADER.replace(",", ";") + "00AB; B ;Wrong;0.5;Dog\n")
    assert read_marks(path).to_dict("records") == [
        {"clip_id": "00ab", "caption_id": "b", "mark": "wrong", "similarity": 0.5, "class": "Dog"}
    ]


def test_a_table_without_marks_is_empty(tmp_path):
    marks = read_marks(write_marks(tmp_path, HEADER))
    assert len(marks) == 0 and marks.similarity.dtype == np.float64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clip_id;mark\na;wrong\n", "has no column caption_id, similarity, class; .* got clip_id, mark"),
        ("clip_id,caption_id,mark\na,b,wrong\n", "has no column similarity, class"),
        (HEADER + "a,b,wrong,0.5,x\na,c,bad,0.5,x\n", "line 3: mark must be wrong or right, got 'bad'"),
        (HEADER + "a,b,,0.5,x\n", "line 2: mark must be wrong or right, got ''"),
        (HEADER + "a,,wrong,0.5,x\n", "line 2: caption_id is empty"),
        (HEADER + "a,b,wrong,70,x\n", r"line 2: similarity must be a cosine in \[-1, 1\] or empty, got '70'"),
        (HEADER + "a,b,wrong,high,x\n", "got 'high'"),
        (
            HEADER + "a,b,wrong,0.5,x\na,b,right,0.5,x\n",
            r"marks 1 pairs both wrong and right, such as clip a with caption b \(lines 2 and 3\)",
        ),
        (HEADER + "a,b,wrong,0.5,x\n\n\n\na,b,bad,0.5,x\n", "line 6: mark must be wrong or right"),
        ("", "is empty: the first line must name the columns"),
    ],
)
def test_a_table_that_says_nothing_clear_is_refused(tmp_path, text, said):
    """A mark that is silently dropped leaves a wrong pair in the set."""
    with pytest.raises(DataError, match=said) as refused:
        read_marks(write_marks(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match="absent.csv does not exist; export it from the audition page"):
        read_marks(tmp_path / "absent.csv")
