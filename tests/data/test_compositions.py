"""Composed clips: the same bytes every time, nothing but the order tells the order, and no recording on both sides."""

import dataclasses
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from composing import CLASSES, RATE, SMALL, composed, improvement_set, sounds, write_sound
from hypothesis import given, settings
from hypothesis import strategies as st

from clapcur.audio import WaveformCache, load_audio
from clapcur.audio.composing import LEVEL, audible_part, both_at_once, one_after_the_other, one_sound, sized
from clapcur.data.composed_captions import (
    CONNECTORS,
    OPPOSITE,
    captions_of,
    meanings,
    phrase,
    phrasings,
    replaced_phrase,
    reversed_meaning,
)
from clapcur.data.compositions import KINDS, Compositions, CompositionsCard, Renderer, item_id, meaning_of
from clapcur.data.manifest import Manifest
from clapcur.errors import ArtifactError, EmptySetError, ManifestError
from clapcur.stages.compose import ComposeConfig, compose, unseen_couples
from clapcur.store.artifacts import Store
from clapcur.store.record import Outcome
from clapcur.testing import clips_table, commit, manifest


class Scene:
    """A store with labelled sounds and what is composed of them."""

    def __init__(self, folder):
        self.store, self.folder = Store(folder / "store"), folder
        self.clips = sounds(self.store, folder)
        self.artifact = composed(self.store, {"clips": self.clips})
        self.compositions = Compositions.open(self.artifact)

    def renderer(self):
        return Renderer(self.compositions, Manifest.open(self.clips).paths, WaveformCache(2**28))


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"))


def items(compositions, kinds=KINDS):
    return [
        (group, kind, item_id(group.group_id, kind)) for group in compositions.groups.itertuples() for kind in kinds
    ]


# --- waveforms -------------------------------------------------------------------------------------------------------


@given(
    lengths=st.tuples(st.integers(20, 400), st.integers(20, 400)), num_samples=st.integers(40, 300),
    offset=st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_kind_has_the_length_and_the_level_that_all_have(lengths, num_samples, offset):
    """A sequence that is twice as long as an overlap is known without listening."""
    rng = np.random.default_rng(sum(lengths))
    one, other = (rng.standard_normal(n).astype(np.float32) * 10.0**-i for i, n in enumerate(lengths))
    for made in (
        one_sound(one, num_samples, offset, RATE),
        one_after_the_other(one, other, num_samples, (offset, offset), RATE),
        both_at_once(one, other, num_samples, (offset, offset), RATE),
    ):
        assert made.shape == (num_samples,) and made.dtype == np.float32
        assert np.sqrt(np.square(made, dtype=np.float64).mean()) == pytest.approx(LEVEL, rel=1e-5)


def test_a_sequence_is_the_first_sound_and_then_the_second():
    """An order that is turned somewhere between caption and waveform trains the reverse."""
    low, high = (np.sin(2 * np.pi * f * np.arange(RATE) / RATE).astype(np.float32) for f in (200, 3000))
    made = one_after_the_other(low, high, RATE, (0.0, 0.0), RATE)
    loudest = [np.argmax(np.abs(np.fft.rfft(half))) * 2 for half in (made[: RATE // 2], made[RATE // 2 :])]
    assert loudest == pytest.approx([200, 3000], abs=10)


def test_an_overlap_is_the_same_whichever_sound_is_given_first():
    """Else "A while B" and "B while A" would be two sounds."""
    rng = np.random.default_rng(0)
    one, other = (rng.standard_normal(n).astype(np.float32) for n in (300, 900))
    assert np.array_equal(
        both_at_once(one, other, 500, (0.2, 0.7), RATE), both_at_once(other, one, 500, (0.7, 0.2), RATE)
    )


def test_both_sounds_of_an_overlap_are_equally_loud():
    """A quiet sound under a loud one is no pair of sounds, but the loud one."""
    loud, quiet = (
        g * np.sin(2 * np.pi * f * np.arange(RATE) / RATE).astype(np.float32) for g, f in ((1, 200), (0.01, 3000))
    )
    spectrum = np.abs(np.fft.rfft(both_at_once(loud, quiet, RATE, (0.0, 0.0), RATE)))
    assert spectrum[200] == pytest.approx(spectrum[3000], rel=0.02)


def test_silence_at_both_ends_is_trimmed_and_that_within_stays(tmp_path):
    """A barking dog pauses; the pause is part of it."""
    bark, pause = np.full(1600, 0.5, np.float32), np.zeros(1600, np.float32)
    waveform = np.concatenate([pause, bark, pause, bark, pause, pause])
    assert audible_part(waveform, RATE) == pytest.approx((0.1, 0.4))
    assert audible_part(np.zeros(1600, np.float32), RATE) == (0.0, 0.0)


def test_a_short_clip_is_repeated_without_a_gap():
    """Zeros behind a short clip would tell its length."""
    made = sized(np.ones(100, np.float32), 1000, 0.5)
    assert made.min() > 0.5


def test_a_cut_that_would_fall_into_a_pause_is_made_where_the_sound_is():
    """Half a sequence of silence has no second sound, and its caption says that it has."""
    rng = np.random.default_rng(0)
    waveform = np.concatenate([0.3 * rng.standard_normal(1000), np.zeros(5000)]).astype(np.float32)
    waveform[-1] = 0.3
    assert np.abs(sized(waveform, 800, 0.5)).mean() > 0.5
    steady = rng.standard_normal(6000).astype(np.float32)
    assert np.allclose(
        sized(steady, 800, 0.5) / steady[2600:3400], sized(steady, 800, 0.5)[0] / steady[2600], rtol=1e-4
    )


# --- captions --------------------------------------------------------------------------------------------------------


def test_a_sequence_is_told_from_both_ends():
    """That "A before B" and "B after A" mean the same: a table that splits them makes one the enemy of the other."""
    said = set(phrasings(("sequence", "dog", "bell"), "{}").values())
    assert said == {
        "dog before bell", "dog and then bell", "dog followed by bell", "bell after dog", "bell preceded by dog"
    }  # fmt: skip
    assert {"dog while bell", "bell while dog"} < set(phrasings(("overlap", "dog", "bell"), "{}").values())


def test_swapping_the_events_twice_is_nothing():
    """T(T(x)) is x, or a reversed caption is not the reverse."""
    meaning = ("sequence", "dog", "bell")
    assert reversed_meaning(meaning) == ("sequence", "bell", "dog")
    assert reversed_meaning(reversed_meaning(meaning)) == meaning


@pytest.mark.parametrize("connector", CONNECTORS["sequence"])
def test_a_replaced_caption_has_the_same_names_in_the_same_places_and_says_the_reverse(connector):
    """A replaced caption that is still true counts a model that reads as one that does not."""
    meaning = ("sequence", "dog before noon", "bell after six")
    right, wrong = phrase(meaning, connector, "{}"), replaced_phrase(meaning, connector, "{}")
    assert wrong in phrasings(reversed_meaning(meaning), "{}").values()
    assert (right.index("dog") < right.index("bell")) == (wrong.index("dog") < wrong.index("bell"))
    assert OPPOSITE[connector] in CONNECTORS["sequence"]


def test_no_caption_has_two_meanings():
    """A caption that is right for two kinds is a false negative in every batch."""
    table = captions_of(meanings(sorted(CLASSES)))
    assert table.caption_id.is_unique
    assert len(table) == 4 * 3 + 12 * 5 + 6 * 6
    assert len(captions_of(meanings(sorted(CLASSES)), connectors=("before", "after"))) == 4 * 3 + 12 * 2 + 6 * 6


# --- the data type and the stage -------------------------------------------------------------------------------------


def test_the_same_item_is_the_same_bytes_from_another_process_of_thought(scene):
    """Nothing is on disk: bytes that differ between two readings make a training that cannot be resumed."""
    first, second = scene.renderer(), scene.renderer()
    for _, _, name in items(scene.compositions)[:40]:
        assert first.render(name, 8000).tobytes() == second.render(name, 8000).tobytes()
    again = Compositions.open(composed(Store(scene.folder / "other"), {"clips": scene.clips}))
    pd.testing.assert_frame_equal(again.groups, scene.compositions.groups)


def guessed_from_length_and_level(waveforms, kinds) -> float:
    """Return how often the commonest kind of a length and level is right, on a half that it was not counted on."""
    level_db = [20 * np.log10(np.sqrt(np.square(w, dtype=np.float64).mean())) for w in waveforms]
    table = pd.DataFrame({"length": map(len, waveforms), "level": np.round(level_db, 2), "kind": kinds})
    table = table.sample(frac=1.0, random_state=0, ignore_index=True)
    half = len(table) // 2
    train, test = table[:half], table[half:]
    known = train.groupby(["length", "level"]).kind.agg(lambda kind: kind.mode()[0])
    by_length = train.groupby(pd.cut(train.length, 8), observed=True).kind.agg(lambda kind: kind.mode()[0])
    bins = pd.cut(test.length, by_length.index.categories) if len(by_length) > 1 else None
    coarse = dict(zip(test.index, bins.map(by_length), strict=True)) if bins is not None else {}
    guess = [
        known.get((row.length, row.level), coarse.get(row.Index, train.kind.mode()[0])) for row in test.itertuples()
    ]
    return float((np.array(guess) == test.kind).mean())


def test_length_and_level_do_not_betray_the_kind(scene):
    """A classifier that sees these two alone must guess: else the loss falls and no order is learned."""
    renderer, found = scene.renderer(), items(scene.compositions)
    waveforms = [renderer.render(name, RATE) for _, _, name in found]
    right = guessed_from_length_and_level(waveforms, [kind for _, kind, _ in found])
    assert len(found) == 300
    assert right < 1 / 5 + 3 * np.sqrt(0.2 * 0.8 / 150)


def test_length_and_level_betray_the_kind_of_plain_concatenation_and_overlay(scene):
    """The twin: the same classifier on clips put together as the authors do, sequence against overlay."""
    places = Manifest.open(scene.clips).paths
    waveforms, kinds = [], []
    for group in scene.compositions.groups.itertuples():
        one, other = (load_audio(places[clip], RATE) for clip in (group.clip_a, group.clip_b))
        waveforms += [np.concatenate([one, other]), one + np.resize(other, len(one))]
        kinds += ["forward", "overlap"]
    assert guessed_from_length_and_level(waveforms, kinds) > 0.8


def test_no_recording_is_on_both_sides_and_each_side_uses_its_own_clips(scene):
    """Another take of a recording is nearly the same sound: a test that has it is no test."""
    sources = scene.compositions.sources
    sides = {split: set(sources.recording[sources.split == split]) for split in ("train", "held_out")}
    assert sides["train"] and sides["held_out"] and not sides["train"] & sides["held_out"]
    assert len(sources) > len(sides["train"]) + len(sides["held_out"])  # several takes of a recording


def test_a_build_with_a_recording_on_both_sides_fails(scene):
    """The one fault that makes all scores wrong must not pass silently."""
    good = scene.compositions
    sources = good.sources.copy()
    taken = sources[sources.split == "train"].iloc[0]
    sources.loc[sources.clip_id == taken.clip_id, "split"] = "held_out"
    with pytest.raises(
        ManifestError, match=f"1 source recordings are both in training and held out.*{taken.recording}"
    ):
        dataclasses.replace(good, sources=sources)


def test_a_group_with_a_clip_of_the_other_side_fails(scene):
    """Splitting the clips and pairing over the split is the same leak."""
    good = scene.compositions
    groups = good.groups.copy()
    of_test = good.sources[good.sources.split == "held_out"].clip_id.iloc[0]
    groups.loc[groups.index[groups.split == "train"][0], "clip_a"] = of_test
    with pytest.raises(ManifestError, match="1 groups use a clip that is not a source of their split"):
        dataclasses.replace(good, groups=groups)


def test_groups_are_of_two_classes_and_recordings_and_unseen_couples_are_held_out(scene):
    """A couple that is trained on and called unseen makes order look general."""
    groups, sources = scene.compositions.groups, scene.compositions.sources.set_index("clip_id")
    assert (groups.class_a < groups.class_b).all()
    assert (groups.clip_a.map(sources.recording) != groups.clip_b.map(sources.recording)).all()
    assert (groups.clip_a.map(sources["class"]) == groups.class_a).all()
    assert not groups.duplicated(["clip_a", "clip_b"]).any()
    train, test = (scene.compositions.of_split(split) for split in ("train", "held_out"))
    assert not train.is_unseen.any() and 0 < test.is_unseen.sum() < len(test)
    couples = [
        set(zip(table.class_a, table.class_b, strict=True)) for table in (train, test[test.is_unseen])
    ]  # fmt: skip
    assert not couples[0] & couples[1]
    assert set(train.class_a) | set(train.class_b) == set(CLASSES)


def test_unseen_couples_are_the_same_whatever_the_seed_and_leave_each_class_one_that_is_trained_on():
    """A test that is composed later, of other clips, must hold out the same couples."""
    names = [f"class {i}" for i in range(10)]
    chosen = unseen_couples(names, 0.25)
    assert len(chosen) == 11 and chosen == unseen_couples(names[::-1], 0.25)
    assert unseen_couples(["a", "b"], 0.9) == set()
    seen = set(combinations(names, 2)) - unseen_couples(names, 0.9)
    assert {name for couple in seen for name in couple} == set(names)


def test_everything_held_out_is_a_test_alone(scene):
    """What ZSTE scores needs no training side."""
    made = Compositions.open(composed(scene.store, {"clips": scene.clips}, dataclasses.replace(SMALL, held_out=1.0)))
    assert set(made.groups.split) == {"held_out"} and set(made.sources.split) == {"held_out"}


def test_the_meaning_of_an_item_goes_with_its_waveform(scene):
    """Captions of the wrong kind would be learned just as well."""
    renderer = scene.renderer()
    for group, kind, name in items(scene.compositions, ("forward", "reversed")):
        waveform = renderer.render(name, RATE)
        _, first, second = meaning_of(group.class_a, group.class_b, kind)
        for half, label in ((waveform[:6000], first), (waveform[-6000:], second)):
            loudest = np.argmax(np.abs(np.fft.rfft(half))) * RATE / 6000
            assert min(CLASSES, key=lambda c, f=loudest: abs(np.log(CLASSES[c] / max(f, 1)))) == label


def test_an_item_shorter_than_the_window_is_followed_by_silence(scene):
    """Repeated to fill it, "A, then B" would be heard as "B, then A" as well."""
    name = items(scene.compositions)[2][2]
    window = scene.renderer().window(name, RATE, 2 * RATE)
    assert np.array_equal(window[:RATE], scene.renderer().render(name, RATE)) and not window[RATE:].any()


def test_an_improvement_set_gives_the_clips_and_their_classes_without_any_label(scene):
    """The new part: nobody labelled these clips."""
    clips = Manifest.open(scene.clips).clips
    unlabelled = clips.assign(label="")
    pool = manifest(scene.store, "pool", unlabelled, paths=Manifest.open(scene.clips).paths)
    rows = [(c.clip_id, f"a {c.label} sounds", c.label, 0.5) for c in clips.itertuples()]
    rows += [(c.clip_id, "an engine sounds", "engine", 0.4) for c in clips.itertuples() if c.label != "engine"]
    chosen = improvement_set(scene.store, pool, rows)
    made = Compositions.open(composed(scene.store, {"improvement_set": chosen, "pool": pool}))
    sources = made.sources.set_index("clip_id")["class"]
    assert sources.to_dict() == dict(zip(clips.clip_id, clips.label, strict=True))
    few = dataclasses.replace(SMALL, most_per_class=5)
    made = Compositions.open(composed(scene.store, {"improvement_set": chosen, "pool": pool}, few))
    assert made.sources["class"].value_counts().to_dict() == dict.fromkeys(CLASSES, 5)


def test_short_clips_are_left_out_and_counted_with_their_reason(scene):
    """A clip that is dropped silently changes a class nobody looks at."""
    paths = dict(Manifest.open(scene.clips).paths)
    clips = Manifest.open(scene.clips).clips
    paths["brief"] = write_sound(scene.folder / "brief.wav", 600.0, 7, duration_s=0.1)
    table = pd.concat([clips, clips_table(["brief"], label=["dog"])], ignore_index=True).sort_values("clip_id")
    made = composed(scene.store, {"clips": manifest(scene.store, "with a brief one", table, paths=paths)})
    assert made.record.counts["left_out.too_short"] == 1
    assert CompositionsCard.open(made).left_out == [{"clip_id": "brief", "reason": "too_short"}]


@pytest.mark.parametrize(
    ("classes", "changes", "config", "error", "message"),
    [
        ({"dog": 600.0}, {}, {}, EmptySetError, r"at least two classes, but the training clips have 1 \('dog'\)"),
        (
            CLASSES,
            {"duration_s": 0.1},
            {},
            EmptySetError,
            r"16 of 16 clips cannot be .* less than 0.3 s of audible sound",
        ),
        (
            CLASSES,
            {},
            {"class_names": ("dog", "bell")},
            ManifestError,
            "of 4 classes, but 2 names were given.*'engine'",
        ),
    ],
)
def test_what_cannot_be_composed_is_said_in_one_line(tmp_path, classes, changes, config, error, message):
    """Each names what is needed, not where it failed."""
    store = Store(tmp_path / "store")
    clips = sounds(store, tmp_path, classes, recordings=4, takes=1, **changes)
    with pytest.raises(error, match=message) as caught:
        composed(store, {"clips": clips}, dataclasses.replace(SMALL, **config))
    assert "\n" not in str(caught.value)


def test_clips_without_labels_and_a_set_without_classes_are_refused(scene):
    """DU chose its captions for no class: their nearest class means nothing."""
    clips = Manifest.open(scene.clips).clips
    pool = manifest(scene.store, "no labels", clips.assign(label=""), paths=Manifest.open(scene.clips).paths)
    with pytest.raises(ManifestError, match="has no labels"):
        composed(scene.store, {"clips": pool})
    rows = [(c.clip_id, "a dog", "dog", 0.5) for c in clips.itertuples()]
    made = improvement_set(scene.store, pool, rows, "du")
    assert made.record.config == {"name": f"du of {pool.id}"}
    with pytest.raises(ManifestError, match="is DU, whose pairs have no class"):
        compose({"improvement_set": _with_strategy(scene.store, made, "du"), "pool": pool}, SMALL, None)


def _with_strategy(store, made, strategy):
    from clapcur.store.artifacts import Stage

    stage = Stage("curate", "t", "improvement_set", None)
    work = store.open(stage.key({"strategy": strategy}, {}))
    (work.path / "pairs.parquet").write_bytes((made.path / "pairs.parquet").read_bytes())
    return store.commit(work, Outcome(), 0.0)


def test_compositions_of_a_newer_schema_and_other_kinds_are_refused(scene):
    """An old program that reads a new recipe renders something else silently."""
    with pytest.raises(ArtifactError, match="expected an artifact of kind compositions, got the manifest"):
        Compositions.open(scene.clips)

    def write(work):
        scene.compositions.write(work.path, [], [])
        (work.path / "card.json").write_text('{"schema": 99, "duration_s": 1.0}')

    with pytest.raises(ArtifactError, match="schema 99, but this version of clapcur reads schemas up to 1"):
        Compositions.open(commit(scene.store, "compositions", "newer", write))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("duration_s", 0.4, "duration_s must be between"), ("held_out", 20, "held_out must be a fraction"),
        ("unseen_couples", -0.1, "unseen_couples must be a fraction"), ("num_groups", 0, "num_groups must be at least "
                                                                                         "1"),
        ("connectors", ("until",), "connectors must be among before, .*'until'"),
        ("prompt", "a sound", "the prompt must contain"), ("seed", -1, "seed must be"),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(field, value, message):
    """Found when the config is read, not an hour later."""
    with pytest.raises(ValueError, match=message):
        ComposeConfig(**{field: value})
