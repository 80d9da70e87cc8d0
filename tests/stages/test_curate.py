"""Curation against the rules of the paper, written out as loops."""

import matplotlib.image
import numpy as np
import pytest
from curation_world import (
    CLASSES,
    DIM,
    all_captions,
    as_set,
    run,
    world,  # noqa: F401  # a fixture
)

from clapcur.data.embeddings import EmbeddingTable
from clapcur.data.manifest import Manifest, caption_id
from clapcur.errors import EmptySetError
from clapcur.methods.contamination import LEAST_DIFFERENT
from clapcur.methods.thresholds import LEAST_SUPPORT, Threshold, precision_threshold
from clapcur.stages.curate import CurateConfig
from clapcur.testing import clips_table, embeddings, manifest


def test_du_is_every_clip_and_caption_at_or_above_the_threshold(world, tmp_path):
    """A lost tile or a strict comparison would drop pairs that the paper keeps."""
    ids, rows = all_captions(world)
    pairs = run(world, tmp_path, strategy="du", audio_threshold=Threshold(similarity=0.8))
    expected = {
        (clip, ids[m])
        for n, clip in enumerate(world.pool_clips)
        for m in range(len(ids))
        if world.rows["pool"][n] @ rows[m] >= 0.8
    }
    assert as_set(pairs) == expected and len(expected) > 50


def test_pairs_keep_class_similarities_and_rank_and_are_sorted_by_clip(world, tmp_path):
    """Without them there is no lineage and no new threshold without a new search."""
    pairs = run(world, tmp_path, strategy="du", audio_threshold=Threshold(similarity=0.7))
    ids, rows = all_captions(world)
    place = {name: index for index, name in enumerate(ids)}
    clip = {name: index for index, name in enumerate(world.pool_clips)}
    assert pairs.clip_id.is_monotonic_increasing
    for _, row in pairs.sample(30, random_state=0).iterrows():
        caption = rows[place[row.caption_id]]
        to_prompts = world.rows["prompt"] @ caption
        assert row["class"] == CLASSES[to_prompts.argmax()]
        assert row.class_similarity == pytest.approx(to_prompts.max(), abs=1e-6)
        to_captions = rows @ world.rows["pool"][clip[row.clip_id]]
        assert row.similarity == pytest.approx(to_captions[place[row.caption_id]], abs=1e-6)
        assert row["rank"] == (to_captions > to_captions[place[row.caption_id]]).sum()


def test_ds_is_the_training_pairs_with_a_caption_near_a_prompt(world, tmp_path):
    """DS that reads the pool, or the audio similarity, would be another set."""
    threshold = 0.9
    pairs = run(world, tmp_path, strategy="ds", caption_threshold=Threshold(similarity=threshold))
    near = (world.rows["teacher_caption"] @ world.rows["prompt"].T).max(axis=1) >= threshold
    expected = {(c, t) for c, t, keep in zip(world.teacher_clips, world.caption_ids, near, strict=True) if keep}
    assert as_set(pairs) == expected and 0 < len(expected) < 30


def test_ads_is_du_with_domain_captions_only(world, tmp_path):
    """ADS must use no caption below the caption threshold and lose none above it."""
    settings = {"audio_threshold": Threshold(similarity=0.6)}
    du = run(world, tmp_path, strategy="du", **settings)
    ads = run(world, tmp_path, strategy="ads", caption_threshold=Threshold(similarity=0.85), **settings)
    assert as_set(ads) == as_set(du[du.class_similarity >= 0.85])
    assert 0 < len(ads) < len(du)


def test_without_unpaired_captions_those_of_the_pairs_are_used(world, tmp_path):
    """The paper's DU and ADS have no other captions than the teacher's."""
    pairs = run(
        world, tmp_path, world.inputs(with_captions=False), strategy="du", audio_threshold=Threshold(similarity=0.5)
    )
    assert set(pairs.caption_id) <= set(world.caption_ids)


def test_a_higher_threshold_keeps_a_subset(world, tmp_path):
    """Thresholds that are not monotonous make every comparison of sets meaningless."""
    sets = [
        as_set(run(world, tmp_path, strategy="du", audio_threshold=Threshold(similarity=s))) for s in (0.5, 0.7, 0.9)
    ]
    assert sets[0] > sets[1] > sets[2]


def test_evaluation_clips_recordings_and_near_duplicates_never_enter(world, tmp_path):
    """One evaluation clip in the set and the score is contaminated without a sign."""
    pairs = run(
        world, tmp_path, world.inputs(with_evaluation=True), strategy="du", audio_threshold=Threshold(similarity=-1.0)
    )
    forbidden = {world.pool_clips[i] for i in (0, 1, 7, 10, 11)}
    assert set(pairs.clip_id) == set(world.pool_clips) - forbidden
    assert world.card["exclusions"] == {
        "held_out": 0, "evaluation_clip": 2, "evaluation_recording": 2, "evaluation_near_duplicate": 1,
    }  # fmt: skip
    assert world.outcome.counts["excluded.evaluation_recording"] == 2


def test_the_card_names_clips_by_reason_and_says_what_the_teacher_knows_already(world, tmp_path):
    """Excluded clips can be counted; the teacher's own pairs cannot be unlearned, and must at least be seen."""
    inputs = world.inputs(with_evaluation=True)
    known = clips_table(world.teacher_clips, recording_id=["rec5", *[""] * 29])
    pairs = list(zip(world.teacher_clips, world.texts, strict=True))
    inputs["teacher_pairs"] = manifest(world.store, "pairs that leak", known, pairs)
    run(world, tmp_path, inputs, strategy="du", audio_threshold=Threshold(similarity=0.5))
    said = world.card["contamination"]
    assert said["candidates"]["by_reason"] == {"clip": 2, "recording": 2, "near_duplicate": 1}
    (example, _) = said["candidates"]["examples"]["recording"]
    assert example == {"clip_id": world.pool_clips[10], "other_clip_id": "e0", "name": "rec5"}
    assert said["teacher_pairs"]["by_reason"] == {"clip": 0, "recording": 1, "near_duplicate": 0}
    assert said["candidates"]["near_duplicate_threshold"] == 0.9999


def test_without_an_evaluation_the_card_claims_no_guard(world, tmp_path):
    """Zero clips by every reason would read as if somebody had looked."""
    run(world, tmp_path, strategy="du", audio_threshold=Threshold(similarity=0.5))
    assert world.card["contamination"] == {} and set(world.card["exclusions"]) == {"held_out"}


def test_a_calibrated_threshold_comes_from_the_teachers_clips_of_different_recordings(world, tmp_path):
    """And finds the copy that was compressed, which the fixed 0.9999 does not."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((LEAST_DIFFERENT, DIM))
    ids = [f"t{i:03d}" for i in range(LEAST_DIFFERENT)]
    texts = [f"caption {i}" for i in range(LEAST_DIFFERENT)]
    inputs = world.inputs(with_captions=False, with_evaluation=True)
    clips = clips_table(ids, recording_id=[f"teacher {i}" for i in range(LEAST_DIFFERENT)])
    inputs["teacher_pairs"] = manifest(world.store, "many", clips, list(zip(ids, texts, strict=True)))
    inputs["teacher_clip_embeddings"] = embeddings(world.store, "many", ids, rows)
    captions = [caption_id(text) for text in texts]
    inputs["teacher_caption_embeddings"] = embeddings(world.store, "texts", captions, rows)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    nearest = np.sort((unit @ unit.T - 2 * np.eye(len(rows))).max(axis=1))[-1]
    run(world, tmp_path, inputs, strategy="du", near_duplicate="calibrated", audio_threshold=Threshold(similarity=-1.0))
    threshold = world.card["contamination"]["candidates"]["near_duplicate_threshold"]
    assert nearest < threshold < nearest + 1e-5
    found = world.rows["pool"] @ EmbeddingTable.open(inputs["evaluation_embeddings"]).rows_ND.T
    near = {clip for clip, value in zip(world.pool_clips, found.max(axis=1), strict=True) if value >= threshold}
    certain = {world.pool_clips[i] for i in (0, 1, 10, 11)}
    assert world.card["exclusions"]["evaluation_near_duplicate"] == len(near - certain) > 0


def test_the_figure_shows_how_near_candidates_come(world, tmp_path):
    """A threshold without the two crowds that it parts cannot be judged."""
    inputs = world.inputs(with_evaluation=True)
    run(world, tmp_path, inputs, strategy="du", audio_threshold=Threshold(similarity=0.5))
    (figure,) = tmp_path.glob("store/improvement_set/*/near_duplicates.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    image = matplotlib.image.imread(figure)
    assert image.ndim == 3 and 0 < (image[..., :3].min(axis=2) < 0.9).mean() < 0.5


def test_a_near_duplicate_similarity_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"near_duplicate must be a cosine in \[-1, 1\], 'calibrated' or null, got 99"):
        CurateConfig(strategy="du", class_names=CLASSES, near_duplicate=99)


def test_held_out_recordings_are_in_no_ds_pair(world, tmp_path):
    """A student that trains on what selects its checkpoint selects itself."""
    pairs = run(world, tmp_path, strategy="ds", held_out=0.4, caption_threshold=Threshold(similarity=0.0))
    held_out = Manifest.open(world.inputs()["teacher_pairs"]).held_out(0.4)
    assert held_out and not set(pairs.clip_id) & held_out
    assert world.card["exclusions"]["held_out"] == len(held_out)


def test_caps_keep_the_best_pairs_of_a_clip_and_of_a_caption(world, tmp_path):
    """A cap that keeps the first instead of the nearest would fill the set with chance."""
    free = run(world, tmp_path, strategy="du", audio_threshold=Threshold(similarity=0.6))
    by_clip = run(world, tmp_path, strategy="du", audio_threshold=Threshold(similarity=0.6), max_per_clip=2)
    expected = free.sort_values("similarity", ascending=False).groupby("clip_id").head(2)
    assert as_set(by_clip) == as_set(expected)
    by_caption = run(world, tmp_path, strategy="du", audio_threshold=Threshold(similarity=0.6), max_per_caption=3)
    expected = free.sort_values("similarity", ascending=False).groupby("caption_id").head(3)
    assert as_set(by_caption) == as_set(expected)


def test_a_threshold_by_count_keeps_about_that_many_pairs_and_never_more(world, tmp_path):
    """A target that overshoots would break the budget it is meant to fix."""
    pairs = run(world, tmp_path, strategy="du", audio_threshold=Threshold(count=300))
    assert 290 <= len(pairs) <= 300
    captions = run(
        world,
        tmp_path,
        strategy="ads",
        caption_threshold=Threshold(count=12),
        audio_threshold=Threshold(similarity=-1.0),
    )
    assert captions.caption_id.nunique() == 12


@pytest.mark.parametrize(
    "caps", [{"max_per_clip": 2}, {"max_per_caption": 2}, {"max_per_clip": 3, "max_per_caption": 4}]
)
def test_a_threshold_by_count_counts_what_the_caps_leave(world, tmp_path, caps):
    """A threshold found before the caps would leave half of the pairs that were asked for."""
    everything = run(world, tmp_path, strategy="du", audio_threshold=Threshold(similarity=-1.0), **caps)
    pairs = run(world, tmp_path, strategy="du", audio_threshold=Threshold(count=30), **caps)
    assert len(pairs) == 30
    assert as_set(pairs) == as_set(everything.nlargest(30, "similarity"))


@pytest.mark.parametrize("caps", [{}, {"max_per_clip": 3}, {"max_per_caption": 5}])
def test_even_classes_give_every_class_its_share(world, tmp_path, caps):
    """One threshold for all fills the set with the classes that a weak teacher is sure of and leaves the others out."""
    settings = {"strategy": "ads", "caption_threshold": Threshold(count=15), "audio_threshold": Threshold(count=60)}
    pairs = run(world, tmp_path, even_classes=True, **settings, **caps)
    assert world.card["counts"]["candidate_captions"] == 15
    assert pairs.groupby("class").caption_id.nunique().max() <= 5
    assert all(18 <= count <= 20 for count in pairs.groupby("class").size())
    everything = run(
        world, tmp_path, even_classes=True, **(settings | {"audio_threshold": Threshold(similarity=-1.0)}), **caps
    )
    for name, own in pairs.groupby("class"):
        best = everything[everything["class"] == name].nlargest(len(own), "similarity")
        assert as_set(own) == as_set(best)


@pytest.mark.parametrize("caps", [{"max_per_clip": 1}, {"max_per_clip": 3}, {"max_per_clip": 3, "max_per_caption": 4}])
def test_a_pair_below_the_threshold_of_its_class_frees_no_place(world, tmp_path, caps):
    """Every clip is of dog and rain, most are nearer to dog: below its threshold rain would take the free places."""
    rng = np.random.default_rng(3)
    dog, rain, other = world.centres
    nearness, noise = rng.uniform(0.7, 1.1, (40, 1)), rng.uniform(0, 2, (40, 1))
    for name, rows in {
        "pool": dog + nearness * rain + noise * other,
        "caption": np.where(np.arange(25)[:, None] % 2, dog, rain) + 0.1 * rng.standard_normal((25, DIM)),
        "teacher_caption": np.where(np.arange(30)[:, None] % 2, dog, rain) + 0.1 * rng.standard_normal((30, DIM)),
    }.items():
        world.rows[name] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    everything = run(world, tmp_path, strategy="du", audio_threshold=Threshold(similarity=-1.0), **caps)
    pairs = run(world, tmp_path, strategy="du", audio_threshold=Threshold(count=30), even_classes=True, **caps)
    expected = {
        pair for _, own in everything.groupby("class") for pair in as_set(own.nlargest(min(10, len(own)), "similarity"))
    }
    assert as_set(pairs) == expected
    assert len(pairs) <= 30


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "du", "audio_threshold": Threshold(count=30), "max_per_clip": 3},
        {"strategy": "ads", "audio_threshold": Threshold(similarity=0.5), "caption_threshold": Threshold(count=20)},
        {"strategy": "ds", "caption_threshold": Threshold(count=20)},
    ],
)
def test_a_pair_that_was_marked_wrong_does_not_enter(world, tmp_path, settings):
    before = run(world, tmp_path, **settings)
    heard = as_set(before.iloc[::3])
    marks = tuple((clip, caption, "wrong") for clip, caption in sorted(heard))
    after = run(world, tmp_path, marks=marks, **settings)
    assert not as_set(after) & heard and world.card["marked_wrong"] == len(heard) > 3
    if "max_per_clip" in settings:
        assert len(after) == 30, "others take their places"
    else:
        assert as_set(after) == as_set(before) - heard


def test_a_precision_goes_by_what_people_heard(world, tmp_path):
    """Where ears and prompts disagree, the ears are right."""
    everything = run(world, tmp_path, strategy="du", audio_threshold=Threshold(similarity=-1.0))
    heard = everything.sort_values("similarity")[::-1].iloc[::20]
    right = np.arange(len(heard)) < len(heard) // 2
    marks = tuple(
        (row.clip_id, row.caption_id, "right" if is_right else "wrong")
        for row, is_right in zip(heard.itertuples(), right, strict=True)
    )
    pairs = run(world, tmp_path, strategy="du", audio_threshold=Threshold(precision=0.8), marks=marks)
    found = precision_threshold(heard.similarity.to_numpy(np.float32), right, 0.8)
    expected = {"target": 0.8, "marked_pairs": len(heard), **found}
    assert world.card["calibration"] == pytest.approx(expected, abs=1e-6)
    assert pairs.similarity.min() >= found["similarity"] - 1e-6
    with pytest.raises(EmptySetError, match="none of the 1 marked pairs is from this pool"):
        run(world, tmp_path, strategy="du", audio_threshold=Threshold(precision=0.8), marks=(("x", "y", "right"),))


def test_a_threshold_by_precision_is_the_lowest_that_reaches_it():
    """Against the definition as a loop: another threshold would be below the target or waste pairs."""
    rng = np.random.default_rng(1)
    scores = np.round(rng.random(400), 2).astype(np.float32)
    agrees = rng.random(400) < scores
    found = precision_threshold(scores, agrees, 0.7)
    usable = [t for t in np.unique(scores) if (scores >= t).sum() >= LEAST_SUPPORT]
    reaching = [t for t in usable if agrees[scores >= t].mean() >= 0.7]
    assert found["similarity"] == pytest.approx(min(reaching))
    assert found["precision"] == pytest.approx(agrees[scores >= min(reaching)].mean())


def test_calibration_by_precision_reads_classes_of_captions_and_no_label(world, tmp_path):
    """The threshold must come from held-out pairs, and its evidence must be in the card."""
    run(world, tmp_path, strategy="du", held_out=0.5, audio_threshold=Threshold(precision=0.9))
    evidence = world.card["calibration"]
    assert evidence["precision"] >= 0.9 and evidence["support"] >= LEAST_SUPPORT
    assert world.card["thresholds"]["audio"] == pytest.approx(evidence["similarity"])


def test_an_unreachable_precision_names_the_best(world, tmp_path):
    """A silent fall-back to some threshold would fill the set with wrong pairs."""
    with pytest.raises(EmptySetError, match="the best is"):
        precision_threshold(np.linspace(0, 1, 100, dtype=np.float32), np.zeros(100, bool), 0.9)


def test_an_empty_set_says_which_threshold_would_give_pairs(world, tmp_path):
    """`0 pairs` alone leaves the user to guess."""
    with pytest.raises(EmptySetError, match=r"0\.9\d would give \d+"):
        run(world, tmp_path, strategy="du", audio_threshold=Threshold(similarity=1.0))
    with pytest.raises(EmptySetError, match="kept 0 of 30 captions"):
        run(world, tmp_path, strategy="ds", caption_threshold=Threshold(similarity=1.0))


def test_an_empty_set_says_what_was_left_out_as_evaluation(world, tmp_path):
    """A teacher to whom all sounds are alike makes every clip a near duplicate; no threshold would help."""
    inputs = world.inputs(with_evaluation=True)
    with pytest.raises(EmptySetError, match="no training pair.*left out: 30 as evaluation near duplicate"):
        run(world, tmp_path, inputs, strategy="ds", near_duplicate=-1.0, caption_threshold=Threshold(similarity=-1.0))
    with pytest.raises(EmptySetError, match="no clip is eligible: 2 as evaluation clip, 2 as evaluation recording"):
        run(world, tmp_path, inputs, strategy="du", near_duplicate=-1.0, audio_threshold=Threshold(similarity=-1.0))


def test_the_card_agrees_with_the_pairs(world, tmp_path):
    """A card that counts something else than the set misleads everyone who reads it."""
    pairs = run(world, tmp_path, strategy="du", audio_threshold=Threshold(similarity=0.75))
    card = world.card
    assert card["counts"]["pairs"] == len(pairs)
    assert card["counts"]["clips"] == pairs.clip_id.nunique()
    assert sum(c["pairs"] for c in card["class_coverage"].values()) == len(pairs)
    for name, coverage in card["class_coverage"].items():
        assert coverage["clips"] == pairs[pairs["class"] == name].clip_id.nunique()
    edges, counts = np.array(card["histogram"]["edges"]), np.array(card["histogram"]["counts"])
    assert counts[edges[:-1] >= 0.75 - 1e-9].sum() == len(pairs)
    assert card["top_captions"][0]["pairs"] == pairs.caption_id.value_counts().iloc[0]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Threshold(similarity=70), "a percentage"),
        (lambda: Threshold(), "exactly one of similarity, count and precision"),
        (lambda: Threshold(similarity=0.5, count=3), "one of"),
        (lambda: CurateConfig(strategy="du", class_names=CLASSES, max_per_clip=0), "max_per_clip"),
        (lambda: CurateConfig(strategy="ds", class_names=CLASSES, caption_threshold=Threshold(precision=0.5)), "audio"),
    ],
)
def test_thresholds_without_a_meaning_are_refused(make, message):
    """A threshold of 70 would drop every pair silently."""
    with pytest.raises(ValueError, match=message):
        make()
