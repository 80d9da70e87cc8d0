"""What a curation can do beyond the paper: doubles, hubs, clusters; and thresholds that a sample is enough to guess."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from curation_world import CLASSES, all_captions, as_set, run
from curation_world import world as world  # noqa: PLC0414  # the fixture
from hypothesis import given, settings
from hypothesis import strategies as st

from clapcur.data.improvement_set import SCHEMA, ImprovementSetWriter
from clapcur.errors import DataError
from clapcur.methods.hubness import Correction, Hubness, hub_statistics
from clapcur.methods.near_duplicates import duplicate_of
from clapcur.methods.thresholds import Threshold
from clapcur.stages.curate import CurateConfig, pool_join
from clapcur.stages.curate.config import Approximate
from clapcur.testing import clips_table, embeddings, manifest

LOOSE = {"strategy": "du", "audio_threshold": Threshold(similarity=0.5)}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# -- thresholds by count


@pytest.mark.parametrize("even_classes", [False, True])
@pytest.mark.parametrize("count", [3, 60, 1500])
def test_a_threshold_that_is_guessed_on_a_sample_keeps_the_same_pairs(
    world, tmp_path, monkeypatch, count, even_classes
):
    """A guess that is too high would drop pairs, and nobody would count them."""
    rng = np.random.default_rng(0)
    clips = sorted(f"p{i:04d}" for i in range(1200))
    rows = unit(world.centres[rng.integers(3, size=1200)] + 0.3 * rng.standard_normal((1200, 8)))
    inputs = world.inputs()
    inputs["pool"] = manifest(world.store, "many", clips_table(clips))
    inputs["pool_embeddings"] = embeddings(world.store, "many", clips, rows)
    asked = {"strategy": "du", "audio_threshold": Threshold(count=count), "even_classes": even_classes}
    whole = run(world, tmp_path, inputs, **asked)
    assert world.card["histogram"]["clips"] == 1200
    monkeypatch.setattr(pool_join, "COUNTED_PAIRS", 1)
    sampled = run(world, tmp_path, inputs, **asked)
    assert world.card["histogram"]["clips"] == 256 and world.card["histogram"]["of_clips"] == 1200
    pd.testing.assert_frame_equal(sampled, whole)
    everything = run(world, tmp_path, inputs, strategy="du", audio_threshold=Threshold(similarity=-1.0))
    groups = everything.groupby("class") if even_classes else [("", everything)]
    share = count // 3 if even_classes else count
    assert as_set(whole) == set().union(*(as_set(own.nlargest(share, "similarity")) for _, own in groups))


# -- doubles


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)).filter(any), min_size=1, max_size=12),
    threshold=st.sampled_from([0.5, 0.9, 0.9999]),
)
def test_a_row_goes_when_one_before_it_that_stays_is_as_near(rows, threshold):
    rows = unit(np.array(rows, float))
    stays: list[int] = []
    for index, row in enumerate(rows):
        if not any(
            np.float32(row.astype(float) @ rows[other].astype(float)) >= np.float32(threshold) for other in stays
        ):
            stays.append(index)
    found = duplicate_of(rows, threshold)
    assert np.flatnonzero(found == np.arange(len(rows))).tolist() == stays
    assert all(found[found] == found) and all(found <= np.arange(len(rows)))


def test_clusters_of_a_large_table_find_the_same_copies(monkeypatch):
    """K-means must not tear equal rows apart."""
    monkeypatch.setattr("clapcur.methods.near_duplicates.CLUSTER_ROWS", 60)
    rng = np.random.default_rng(0)
    rows = unit(rng.standard_normal((150, 16)))
    copied = np.concatenate([rows, rows[rng.permutation(150)[:50]]])
    found = duplicate_of(copied, 0.9999)
    np.testing.assert_array_equal(copied[found], copied)
    assert (found == np.arange(200)).sum() == 150


def test_of_doubles_in_the_pool_one_enters_and_the_others_are_counted(world, tmp_path):
    """A clip that was uploaded ten times would be learned ten times."""
    world.rows["pool"][[5, 20, 30]] = world.rows["pool"][2]
    before = run(world, tmp_path, **LOOSE)
    after = run(world, tmp_path, **LOOSE, distinct_clips=0.99999)
    gone = {world.pool_clips[i] for i in (5, 20, 30)}
    assert as_set(after) == {pair for pair in as_set(before) if pair[0] not in gone} and len(after) < len(before)
    assert world.card["exclusions"]["double"] == 3


def test_of_captions_that_say_the_same_one_is_used(world, tmp_path):
    world.rows["caption"][:] = world.rows["caption"][0]
    pairs = run(world, tmp_path, **(LOOSE | {"audio_threshold": Threshold(similarity=-1.0)}), distinct_captions=0.99999)
    assert len(set(pairs.caption_id) & set(world.free_ids)) == 1
    assert set(world.caption_ids) <= set(pairs.caption_id)


# -- hubs


def hubby(seed=0):
    """Clips and captions of a space with a common direction, near which some captions lie: hubs."""
    rng = np.random.default_rng(seed)
    common = 3 * unit(rng.standard_normal((1, 24)))
    audio = rng.standard_normal((300, 24)) / 5 + common
    text = rng.standard_normal((80, 24)) / 5 + common * rng.uniform(0.2, 1.5, (80, 1))
    return unit(audio), unit(text)


def test_offsets_are_the_published_corrections():
    """Against their formulas over whole matrices."""
    audio, text = hubby()
    cosine = audio.astype(float) @ text.T
    near_audio = np.sort(cosine, axis=1)[:, -4:].mean(axis=1)
    near_text = np.sort(cosine, axis=0)[-4:].mean(axis=0)
    own, other = Correction.measure(Hubness(neighbours=4), audio, text).offsets(audio)
    csls = 2 * cosine - near_audio[:, None] - near_text
    ours = 2 * (cosine - own[:, None] - other)
    np.testing.assert_allclose(ours - ours.mean(), csls - csls.mean(), atol=1e-6)
    assert abs(own.mean()) < 1e-6 and abs(other.mean()) < 1e-6, "thresholds keep their size"

    tau = 0.1
    own, other = Correction.measure(Hubness(method="inverted_softmax", temperature=tau), audio, text).offsets(audio)
    inverted = np.exp(cosine / tau) / np.exp(cosine / tau).sum(axis=0)
    ours = np.exp((cosine - other) / tau)
    np.testing.assert_allclose(ours / ours.sum(), inverted / inverted.sum(), rtol=1e-5)
    assert not own.any()


@pytest.mark.parametrize("method", ["csls", "inverted_softmax"])
def test_a_correction_takes_the_crowd_from_the_hubs(method):
    audio, text = hubby()
    found = hub_statistics(audio, text, Correction.measure(Hubness(method=method), audio, text))
    assert found["before"]["skewness"] > 1.1 and found["after"]["skewness"] < 0.8
    assert found["after"]["never"] < found["before"]["never"]
    assert found["after"]["largest"] < found["before"]["largest"]


@pytest.mark.parametrize("extra", [{}, {"max_per_clip": 3}, {"max_per_caption": 4}])
def test_a_corrected_set_is_chosen_by_the_corrected_similarity(world, tmp_path, extra):
    """And the card says what the correction did, or nobody could tell whether it was worth it."""
    asked = {"strategy": "du", "audio_threshold": Threshold(count=50), "hubness": Hubness(neighbours=5)}
    pairs = run(world, tmp_path, **asked, **extra)
    names, rows = all_captions(world)
    ids = sorted(names)
    text = rows[[names.index(name) for name in ids]]
    own, other = Correction.measure(asked["hubness"], world.rows["pool"], text).offsets(world.rows["pool"])
    table = pd.DataFrame(world.rows["pool"] @ text.T - own[:, None] - other, world.pool_clips, ids).stack()
    table = table.rename("score").rename_axis(["clip_id", "caption_id"]).reset_index()
    for column, cap in (("caption_id", extra.get("max_per_caption")), ("clip_id", extra.get("max_per_clip"))):
        table = table.sort_values("score", ascending=False)
        table = table if cap is None else table.groupby(column).head(cap)
    assert as_set(pairs) == as_set(table.nlargest(50, "score"))
    assert set(world.card["hubness"]) == {"before", "after"} and len(pairs) == 50


def test_a_precision_is_calibrated_on_the_similarities_that_are_compared(world, tmp_path):
    asked = {"strategy": "du", "held_out": 0.5, "audio_threshold": Threshold(precision=0.9)}
    run(world, tmp_path, **asked, hubness=Hubness(neighbours=5))
    corrected = world.card["calibration"]
    run(world, tmp_path, **asked)
    assert corrected["precision"] >= 0.9 and corrected["similarity"] != world.card["calibration"]["similarity"]


# -- clusters


def test_the_card_says_what_an_approximate_search_missed(world, tmp_path):
    exact = run(world, tmp_path, **LOOSE)
    whole = run(world, tmp_path, **LOOSE, approximate=Approximate(num_clusters=6, num_probes=6))
    pd.testing.assert_frame_equal(whole, exact)
    assert world.card["approximate"] == {"clips": 40, "pairs": len(exact), "recall": 1.0}
    some = run(world, tmp_path, **LOOSE, approximate=Approximate(num_clusters=12, num_probes=1))
    assert as_set(some) < as_set(exact)
    assert world.card["approximate"]["recall"] == pytest.approx(len(some) / len(exact))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"distinct_clips": 99}, r"distinct_clips must be a cosine in \[-1, 1\] or null, got 99; a percentage"),
        ({"strategy": "ds", "hubness": Hubness()}, "apply to a search in a pool, which DS does not do"),
    ],
)
def test_options_without_a_meaning_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        CurateConfig(**({"strategy": "du", "class_names": CLASSES} | asked))
    with pytest.raises(ValueError, match="1 <= num_probes <= num_clusters and num_checked > 0, got 3, 2 and 1000"):
        Approximate(num_clusters=2, num_probes=3)


# -- the stream


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"), st.sampled_from("dr")), min_size=1),
    size=st.integers(1, 5),
)
def test_counts_of_a_stream_are_those_of_the_whole_however_it_is_cut(tmp_path_factory, rows, size):
    """A clip that continues in the next table is one clip."""
    rows = sorted(rows)
    folder = tmp_path_factory.mktemp("stream")
    table = pa.table([[*column] for column in zip(*((c, t, 0.5, k, 0.5, 0) for c, t, k in rows), strict=True)], SCHEMA)
    with ImprovementSetWriter(folder) as writer:
        for start in range(0, len(rows), size):
            writer.add(table.slice(start, size))
    whole = table.to_pandas()
    assert writer.counts() == {
        "pairs": len(rows), "clips": whole.clip_id.nunique(), "captions": whole.caption_id.nunique(),
    }  # fmt: skip
    for name, found in writer.class_coverage(("d", "r")).items():
        own = whole[whole["class"] == name]
        assert found == {"pairs": len(own), "clips": own.clip_id.nunique()}
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "pairs.parquet"), whole)
    json.dumps(writer.class_coverage(("d", "r")))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.01, -1.5])
@pytest.mark.parametrize("column", ["similarity", "class_similarity"])
def test_a_similarity_that_is_no_cosine_is_no_pair(tmp_path, column, value):
    """One NaN in an embedding table gave pairs that no threshold had chosen."""
    pairs = pa.table([["c"], ["t"], [1.0004], ["rain"], [-1.0], [0]], schema=SCHEMA)
    place = SCHEMA.names.index(column)
    with ImprovementSetWriter(tmp_path) as writer:
        writer.add(pairs)  # rounding of half precision
        with pytest.raises(DataError, match=r"must be a cosine in \[-1, 1\], got .* for the clip c and the caption t"):
            writer.add(pairs.set_column(place, SCHEMA.field(place), pa.array([value], pa.float32())))
    assert writer.num_pairs == 1
