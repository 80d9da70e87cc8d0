"""Tiled similarity against an obvious loop, faiss and numpy, with ragged tiles and many ties."""

import math

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clapcur.methods.similarity import (
    Clusters,
    best_class,
    caption_floor,
    screening,
    similar_pairs,
    similarity_histogram,
    threshold_for_count,
    top_k,
)
from clapcur.methods.similarity.join import Join
from clapcur.methods.similarity.screening import PRECISIONS, Screen, fastest_precision, full_sums

precisions = st.sampled_from([None, *PRECISIONS])


def unit(rows):
    """Make rows unit vectors in float32."""
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_rows(num_rows, dim, seed):
    """Seeded directions."""
    return unit(np.random.default_rng(seed).standard_normal((num_rows, dim)))


def cosine(a, b):
    """One exact dot product, rounded once to float32: what a similarity is defined as."""
    return np.float32(math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True)))


def slow_pairs(audio, text, threshold, cap=None, floor=None):
    """Every pair, one at a time."""
    floor = np.full(len(text), -2, np.float32) if floor is None else floor
    pairs = []
    for i, a in enumerate(audio):
        hits = [(cosine(a, t), j) for j, t in enumerate(text)]
        hits = [(s, j) for s, j in hits if s >= np.float32(threshold) and s >= floor[j]]
        best_first = sorted(hits, key=lambda hit: (-hit[0], hit[1]))[:cap]
        pairs += [(i, j, s, rank) for rank, (s, j) in enumerate(best_first)]
    return pairs


def rows_of(blocks):
    """Lay blocks end to end as tuples."""
    return [pair for b in blocks for pair in zip(b.audio_index, b.text_index, b.similarity, b.rank, strict=True)]


def slow_top_k(queries, keys, k):
    """Sort all keys of each query."""
    ranked = [sorted((-cosine(q, key), j) for j, key in enumerate(keys))[:k] for q in queries]
    similarity = [[-s for s, _ in row] for row in ranked]
    return np.array(similarity, np.float32), np.array([[j for _, j in row] for row in ranked])


@st.composite
def tables(draw):
    """Rows on a coarse grid: equal rows, equal similarities and zeros are common."""
    entry = st.integers(-2, 2)
    row = st.tuples(entry, entry, entry).filter(any)
    audio = draw(st.lists(row, min_size=1, max_size=7))
    text = draw(st.lists(row, min_size=1, max_size=9))
    return unit(audio), unit(text)


@st.composite
def joins(draw):
    """Two tables, and a threshold that often is exactly the similarity of a pair."""
    audio, text = draw(tables())
    pair = draw(st.integers(0, len(audio) - 1)), draw(st.integers(0, len(text) - 1))
    on_a_pair = float(np.clip(cosine(audio[pair[0]], text[pair[1]]), -1, 1))
    return audio, text, draw(st.sampled_from([on_a_pair, -1.0, 0.0, 0.7, 1.0]))


@given(
    join=joins(),
    tile=st.tuples(st.integers(1, 8), st.integers(1, 10)),
    budget=st.integers(1, 70),
    cap=st.none() | st.integers(1, 10),
    cap_per_caption=st.none() | st.integers(1, 8),
    precision=precisions,
)
@settings(max_examples=120, deadline=None)
def test_pairs_equal_an_obvious_loop_for_ragged_tiles(join, tile, budget, cap, cap_per_caption, precision):
    """A pair lost at the seam of two tiles, or in the rounding of a bfloat16 product, is missed by nobody."""
    audio, text, threshold = join
    floor = None if cap_per_caption is None else caption_floor(audio, text, cap_per_caption)
    found = similar_pairs(
        audio, text, threshold,
        cap_per_clip=cap, caption_floor_M=floor, tile=tile, max_pairs_per_block=budget, precision=precision,
    )  # fmt: skip
    assert rows_of(found) == slow_pairs(audio, text, threshold, cap, floor)


@given(
    rows=tables(),
    k=st.integers(1, 9),
    tile=st.tuples(st.integers(1, 8), st.integers(1, 10)),
    backend=st.sampled_from(["faiss", "torch"]),
    precision=precisions,
)
@settings(max_examples=60, deadline=None)
def test_top_k_equals_sorting_everything_for_both_backends(rows, k, tile, backend, precision):
    """Two backends with two rules for ties make the choice of backend a hidden setting."""
    queries, keys = rows
    k = min(k, len(keys))
    similarity, index = top_k(queries, keys, k, backend=backend, tile=tile, precision=precision)
    slow_similarity, slow_index = slow_top_k(queries, keys, k)
    np.testing.assert_array_equal(index, slow_index)
    np.testing.assert_array_equal(similarity, slow_similarity)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("num_copies", [5, 70, 300])
def test_more_ties_than_candidates_still_keep_the_lowest_indices(backend, num_copies):
    """A caption that stands 300 times: which copies a search keeps must not be left to chance."""
    keys = np.concatenate([random_rows(40, 16, 0), np.tile(random_rows(1, 16, 1), (num_copies, 1))])
    keys = keys[np.random.default_rng(2).permutation(len(keys))]
    queries = np.concatenate([random_rows(6, 16, 3), random_rows(1, 16, 1)])
    found = top_k(queries, keys, 4, backend=backend, tile=(3, 50))
    for ours, slow in zip(found, slow_top_k(queries, keys, 4), strict=True):
        np.testing.assert_array_equal(ours, slow)


def test_pairs_equal_a_range_search_of_faiss():
    """An independent library over the same rows; its comparison is strict, ours is not."""
    audio, text = random_rows(60, 24, 0), random_rows(90, 24, 1)
    threshold = 0.25
    index = faiss.IndexFlatIP(24)
    index.add(text)
    limits, similarity, found = index.range_search(audio, threshold)
    clip = np.repeat(np.arange(60), np.diff(limits).astype(int))
    theirs = dict(zip(zip(clip, found, strict=True), similarity, strict=True))
    assert len(theirs) > 400 and np.abs(similarity - threshold).min() > 1e-6
    ours = {(i, j): s for i, j, s, _ in rows_of(similar_pairs(audio, text, threshold, tile=(7, 11)))}
    assert ours.keys() == theirs.keys()
    assert all(abs(ours[pair] - theirs[pair]) < 1e-6 for pair in ours)


def test_a_pair_at_the_threshold_is_kept_and_faiss_drops_it():
    """The paper's code compares with >=; a strict one loses the pair that set the threshold."""
    audio, text = np.eye(4, dtype=np.float32), np.full((1, 4), 0.5, np.float32)
    index = faiss.IndexFlatIP(4)
    index.add(text)
    assert len(index.range_search(audio, 0.5)[2]) == 0
    assert rows_of(similar_pairs(audio, text, 0.5)) == [(i, 0, 0.5, 0) for i in range(4)]
    assert rows_of(similar_pairs(audio, text, float(np.nextafter(np.float32(0.5), 1)))) == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pairs_within_rounding_of_the_threshold_are_decided_exactly(precision):
    """Sums in float32 decide such pairs by tile shape, device and number of threads; in bfloat16 by chance."""
    rng = np.random.default_rng(0)
    anchor, aside = np.linalg.qr(rng.standard_normal((512, 2)))[0].T
    angle = math.acos(0.5) + rng.uniform(-2e-7, 2e-7, 1500)
    text = unit(np.cos(angle)[:, None] * anchor + np.sin(angle)[:, None] * aside)
    audio = unit(anchor[None])
    expected = slow_pairs(audio, text, 0.5)
    assert 300 < len(expected) < 1200
    for tile in ((1, 1500), (1, 64), (1, 7)):
        assert rows_of(similar_pairs(audio, text, 0.5, tile=tile, precision=precision)) == expected


@pytest.mark.parametrize("limits", [{}, {"cap_per_clip": 2}, {"floors": True}, {"cap_per_clip": 1, "floors": True}])
@pytest.mark.parametrize("threshold", [0.3, -1.0])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rare_pairs_are_found_wherever_they_lie_in_a_wide_tile(precision, threshold, limits):
    """Groups of texts are asked for their best first: a group that is passed over, or cut off at the end, is lost."""
    audio, text = random_rows(30, 48, 0), random_rows(300, 48, 1)
    floor = np.random.default_rng(2).uniform(0.2, 0.5, 300).astype(np.float32) if limits.get("floors") else None
    cap = limits.get("cap_per_clip")
    expected = slow_pairs(audio, text, threshold, cap, floor)
    found = similar_pairs(
        audio, text, threshold, cap_per_clip=cap, caption_floor_M=floor, tile=(30, 300), precision=precision
    )
    assert rows_of(found) == expected
    if threshold > 0 or cap:
        assert 10 < len(expected) < 30 * 300 / 50


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_no_product_is_further_off_than_its_bound_says(precision):
    """Random rows are far inside any bound; these lose the same way in every entry, so that nothing cancels."""
    eps = torch.finfo(precision).eps
    alike = np.full((2, 1024), (1 + 0.49 * eps) / 32)  # all are rounded down to 1/32
    alike[1, :1000] = (1 + 0.51 * eps) / 32  # and these up
    alike[:, 1000:] = np.sqrt((1 - (alike[:, :1000] ** 2).sum(axis=1, keepdims=True)) / 24)
    rows = torch.from_numpy(np.concatenate([alike.astype(np.float32), random_rows(64, 1024, 0)]))
    screen = Screen(rows, precision)
    low, error = screen.rows(rows)
    off = (low.double() @ screen.text_MD.double().T - rows.double() @ rows.double().T).abs()
    assert 0.5 * error < off.max() < error < 1.1 * eps
    computed = screen.product(low, slice(0, len(rows))).double()
    allowed = error + eps / 2 * computed.abs()
    assert ((computed - rows.double() @ rows.double().T).abs() <= allowed).all()


def test_a_large_search_measures_the_device_and_a_product_that_lies_is_not_taken(monkeypatch):
    """A device that sums bfloat16 in bfloat16 breaks the proof, and would lose pairs silently."""
    cpu = torch.device("cpu")
    assert fastest_precision(cpu, 1000) == torch.float32
    product = Screen.product

    def coarse(self, rows_RD, columns):
        out = product(self, rows_RD, columns)
        return out if self.dtype == torch.float32 else out + 0.02

    monkeypatch.setattr(Screen, "product", coarse)
    screening._measured.cache_clear()
    assert fastest_precision(cpu, 2**40) == torch.float32
    monkeypatch.undo()
    screening._measured.cache_clear()
    assert fastest_precision(cpu, 2**40) in PRECISIONS


@given(
    join=joins(),
    seed=st.integers(0, 99),
    precision=precisions,
    cap=st.none() | st.integers(1, 6),
    tile=st.tuples(st.integers(1, 8), st.integers(1, 10)),
)
@settings(max_examples=60, deadline=None)
def test_offsets_are_taken_from_every_cosine_before_anything_is_compared(join, seed, precision, cap, tile):
    """A correction that only moves the threshold, or is lost in a low precision, would keep the hubs."""
    audio, text, threshold = join
    rng = np.random.default_rng(seed)
    own, other = (rng.uniform(-0.5, 0.5, len(rows)).astype(np.float32) for rows in (audio, text))
    expected = []
    for i, a in enumerate(audio):
        exact = [math.fsum(float(x) * float(y) for x, y in zip(a, t, strict=True)) for t in text]
        scores = [np.float32(c - (float(own[i]) + float(other[j]))) for j, c in enumerate(exact)]
        hits = sorted((-s, j) for j, s in enumerate(scores) if s >= np.float32(threshold))[:cap]
        expected += [(i, j, -s, rank) for rank, (s, j) in enumerate(hits)]
    found = similar_pairs(
        audio, text, threshold, offsets=(own, other), cap_per_clip=cap, tile=tile, precision=precision
    )
    assert rows_of(found) == expected


@pytest.mark.parametrize("cap", [None, 3])
def test_looking_into_all_clusters_is_exact_and_into_some_finds_most(cap):
    """An approximate search must miss pairs and nothing else: no wrong one, no other order or rank."""
    centres = random_rows(12, 32, 0)
    rng = np.random.default_rng(1)
    audio, text = (unit(centres[rng.integers(12, size=n)] + 0.15 * rng.standard_normal((n, 32))) for n in (90, 400))
    exact = rows_of(similar_pairs(audio, text, 0.6, cap_per_clip=cap))
    whole = Clusters.of(text, 12, 12)
    assert rows_of(similar_pairs(audio, text, 0.6, cap_per_clip=cap, clusters=whole, tile=(17, 13))) == exact
    some = {pair[:3] for pair in rows_of(similar_pairs(audio, text, 0.6, clusters=Clusters.of(text, 12, 2)))}
    everything = {pair[:3] for pair in rows_of(similar_pairs(audio, text, 0.6))}
    assert some < everything and len(some) > 0.8 * len(everything)
    with pytest.raises(ValueError, match="expected num_probes <= num_clusters <= 400 texts, got 13 and 12"):
        Clusters.of(text, 12, 13)


def test_tiles_and_threads_leave_every_bit_alone():
    """An Improvement-Set that depends on the machine cannot be reproduced from its record."""
    audio, text = random_rows(70, 100, 0), random_rows(130, 100, 1)
    threads = torch.get_num_threads()
    results = []
    try:
        for num_threads, tile, budget in (
            (1, (2048, 8192), 10**6),
            (2, (13, 29), 97),
            (1, (70, 1), 10),
        ):
            torch.set_num_threads(num_threads)
            blocks = similar_pairs(audio, text, 0.05, tile=tile, max_pairs_per_block=budget)
            results.append(rows_of(blocks))
    finally:
        torch.set_num_threads(threads)
    assert len(results[0]) > 2000
    assert results[0] == results[1] == results[2]


@pytest.mark.gpu
def test_the_gpu_finds_the_same_bits_as_the_cpu():
    """An artifact's identity leaves the device out: both must then write the same bytes."""
    audio, text = random_rows(300, 128, 0), random_rows(500, 128, 1)
    text[400:] = text[:100]
    floor = caption_floor(audio, text, 20)
    np.testing.assert_array_equal(caption_floor(audio, text, 20, device="cuda"), floor)
    for limits in ({}, {"cap_per_clip": 5, "caption_floor_M": floor}):
        cpu, gpu = (rows_of(similar_pairs(audio, text, 0.1, device=device, **limits)) for device in ("cpu", "cuda"))
        assert len(cpu) > 1000 and cpu == gpu
    for ours, theirs in zip(top_k(audio, text, 7, backend="torch", device="cuda"), top_k(audio, text, 7), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_blocks_and_proposals_never_exceed_the_budget(monkeypatch):
    """A low threshold on a large pool must cost time, not memory."""
    audio, text = random_rows(50, 4, 0), random_rows(40, 4, 1)
    scored = []
    score = Join._score

    def spy(self, audio_RD, offset_R, clip_P, text_P):
        scored.append((len(audio_RD), len(clip_P)))
        return score(self, audio_RD, offset_R, clip_P, text_P)

    monkeypatch.setattr(Join, "_score", spy)
    for budget in (5, 60, 333):
        scored.clear()
        blocks = list(similar_pairs(audio, text, 0.0, tile=(16, 9), max_pairs_per_block=budget))
        assert max(len(block) for block in blocks) <= budget
        assert min(len(block) for block in blocks) > 0
        assert all(found <= budget for clips, found in scored if clips > 1)
        assert sum(clips for clips, _ in scored) == 50
        assert rows_of(blocks) == slow_pairs(audio, text, 0.0)
    assert max(clips for clips, _ in scored) > 1


def test_blocks_grow_again_after_a_dense_stretch(monkeypatch):
    """One dense clip at the start must not make the rest of the pool crawl clip by clip."""
    text = random_rows(64, 8, 0)
    audio = np.concatenate([np.tile(text[:1], (8, 1)), np.tile(-text[:1], (200, 1))])
    sizes = []
    score = Join._score
    monkeypatch.setattr(Join, "_score", lambda self, a, *rest: sizes.append(len(a)) or score(self, a, *rest))
    list(similar_pairs(audio, text, 0.9, tile=(64, 64), max_pairs_per_block=4))
    assert min(sizes) <= 4 and max(sizes) == 64 and sum(sizes) == 208


def test_an_evenly_dense_pool_is_not_searched_again_and_again(monkeypatch):
    """Blocks that grow as soon as they fit are refused every other time: twice the work."""
    text = random_rows(64, 8, 0)
    audio = np.tile(text[:1], (400, 1))
    proposals = []
    propose = Join._propose

    def spy(self, audio_RD, offset_R):
        proposals.append(propose(self, audio_RD, offset_R))
        return proposals[-1]

    monkeypatch.setattr(Join, "_propose", spy)
    blocks = list(similar_pairs(audio, text, 0.9999, tile=(64, 64), max_pairs_per_block=10))
    assert sum(map(len, blocks)) == 400
    assert sum(found is None for found in proposals) == 3  # 64, 32, 16 and then 8 throughout


def test_a_cap_finds_few_proposals_even_without_a_threshold(monkeypatch):
    """The five best captions of each clip, at no threshold, must not score every pair twice."""
    audio, text = random_rows(30, 32, 0), random_rows(600, 32, 1)
    num_scored = []
    score = Join._score
    monkeypatch.setattr(
        Join,
        "_score",
        lambda self, a, o, c, t: num_scored.append(len(c)) or score(self, a, o, c, t),
    )
    found = rows_of(similar_pairs(audio, text, -1.0, cap_per_clip=5, tile=(30, 60)))
    assert found == slow_pairs(audio, text, -1.0, cap=5)
    assert sum(num_scored) < 30 * 600 / 10


@given(join=joins(), lower=st.floats(-1, 1))
@settings(max_examples=40, deadline=None)
def test_a_higher_threshold_keeps_a_subset(join, lower):
    """Stored pairs are filtered again at a higher threshold in place of a new search."""
    audio, text, threshold = join
    high, low = max(threshold, lower), min(threshold, lower)
    kept = {pair[:3] for pair in rows_of(similar_pairs(audio, text, high))}
    loose = {pair[:3] for pair in rows_of(similar_pairs(audio, text, low))}
    assert kept == {pair for pair in loose if pair[2] >= np.float32(high)}


@given(join=joins(), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_rows_does_not_matter(join, seed):
    """A pool whose files are listed in another order must give the same Improvement-Set."""
    audio, text, threshold = join
    rng = np.random.default_rng(seed)
    clips, texts = rng.permutation(len(audio)), rng.permutation(len(text))
    plain = {pair[:3] for pair in rows_of(similar_pairs(audio, text, threshold))}
    mixed = rows_of(similar_pairs(audio[clips], text[texts], threshold, tile=(2, 3)))
    assert {(clips[i], texts[j], s) for i, j, s, _ in mixed} == plain


def test_the_floor_of_a_caption_is_its_kth_best_clip():
    """A floor that is off by one bit drops the very clip that set it."""
    audio, text = random_rows(40, 12, 0), random_rows(25, 12, 1)
    for k in (1, 6, 39):
        expected = [sorted((cosine(a, t) for a in audio), reverse=True)[k - 1] for t in text]
        floor = caption_floor(audio, text, k)
        np.testing.assert_array_equal(floor, np.array(expected, np.float32))
        pairs = rows_of(similar_pairs(audio, text, -1.0, caption_floor_M=floor, tile=(9, 4)))
        np.testing.assert_array_equal(np.bincount([j for _, j, _, _ in pairs], minlength=25), k)
    np.testing.assert_array_equal(caption_floor(audio, text, 40), np.full(25, -np.inf, np.float32))


def test_both_caps_hold_together_and_ranks_count_what_is_kept():
    """A rank that counts dropped pairs makes 'the best caption of each clip' drop the clip."""
    audio, text = random_rows(30, 8, 4), random_rows(20, 8, 5)
    floor = caption_floor(audio, text, 4)
    pairs = rows_of(similar_pairs(audio, text, 0.1, cap_per_clip=2, caption_floor_M=floor))
    assert pairs == slow_pairs(audio, text, 0.1, cap=2, floor=floor)
    assert {rank for *_, rank in pairs} == {0, 1}
    assert all(s >= floor[j] and s >= np.float32(0.1) for _, j, s, _ in pairs)


def test_the_best_class_is_the_argmax_and_of_equal_prompts_the_first():
    """Class names that are listed twice would split their captions at random."""
    prompts = random_rows(5, 16, 0)
    prompts[3] = prompts[1]
    text = np.concatenate([random_rows(50, 16, 1), prompts])
    index, similarity = best_class(text, prompts)
    np.testing.assert_array_equal(index, (text.astype(np.float64) @ prompts.T).argmax(axis=1))
    assert list(index[-5:]) == [0, 1, 2, 1, 4]
    assert [cosine(t, prompts[k]) for t, k in zip(text, index, strict=True)] == list(similarity)


@given(rows=tables(), tile=st.tuples(st.integers(1, 8), st.integers(1, 10)), bins=st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_the_histogram_counts_every_pair_once_in_its_bin(rows, tile, bins):
    """A pair that falls between two bins, or beyond 1 by rounding, shifts every threshold."""
    audio, text = rows
    counts = similarity_histogram(audio, text, num_bins=bins, tile=tile)
    exact = np.array([cosine(a, t) for a in audio for t in text], np.float64)
    assert counts.sum() == len(exact) and counts.dtype == np.int64
    at_or_above = np.cumsum(counts[::-1])[::-1]
    for edge, count in zip(np.linspace(-1, 1, bins + 1)[1:-1], at_or_above[1:], strict=True):
        assert (exact >= edge + 1e-6).sum() <= count <= (exact >= edge - 1e-6).sum()


def test_the_histogram_agrees_with_numpy():
    """The counts of a whole pool, whose every bin is checked nowhere else."""
    audio, text = random_rows(80, 10, 0), random_rows(70, 10, 1)
    exact = audio.astype(np.float64) @ text.T
    for limits in ((-1.0, 1.0), (-0.25, 0.75)):
        counts = similarity_histogram(audio, text, num_bins=64, range=limits, tile=(33, 17))
        expected, _ = np.histogram(np.clip(exact, *limits), bins=64, range=limits)
        np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("target", [1, 10, 500, 5599, 5600])
def test_a_threshold_by_count_lets_that_many_through_and_one_bin_higher_fewer(target):
    """A guess that lets too few through costs a second search of everything."""
    audio, text = random_rows(80, 10, 0), random_rows(70, 10, 1)
    threshold = threshold_for_count(similarity_histogram(audio, text), target)
    kept, higher = (sum(map(len, similar_pairs(audio, text, t))) for t in (threshold, threshold + 1e-4))
    assert higher < target <= kept


def test_a_threshold_by_count_of_hand_made_bins():
    """An off-by-one between edges and bins moves the threshold by a bin."""
    counts = np.array([5, 0, 3, 2])
    for target, edge in {1: 0.5, 2: 0.5, 3: 0.0, 5: 0.0, 6: -1.0, 10: -1.0, 11: -1.0}.items():
        assert threshold_for_count(counts, target) == edge
    assert threshold_for_count(counts, 2, range=(0.0, 1.0)) == 0.75
    with pytest.raises(ValueError, match="target must be at least 1, got 0"):
        threshold_for_count(counts, 0)


def test_autocast_and_low_matmul_precision_do_not_reach_the_products():
    """TF32 or bfloat16, chosen for training, moves cosines by 1e-3 and drops pairs."""
    audio, text = random_rows(40, 64, 0), random_rows(50, 64, 1)
    expected, counts = slow_pairs(audio, text, 0.1), similarity_histogram(audio, text, num_bins=400)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with full_sums():
            assert torch.get_float32_matmul_precision() == "highest"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert rows_of(similar_pairs(audio, text, 0.1)) == expected
            np.testing.assert_array_equal(similarity_histogram(audio, text, num_bins=400), counts)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_memory_maps_tensors_and_half_precision_rows_give_the_same_pairs(tmp_path):
    """A read-only memory map is how a large pool arrives; torch warns of it, or copies it whole."""
    audio, text = random_rows(20, 16, 0).astype(np.float16), random_rows(30, 16, 1)
    np.save(tmp_path / "audio.npy", audio)
    mapped = np.load(tmp_path / "audio.npy", mmap_mode="r")
    expected = slow_pairs(audio.astype(np.float32), text, 0.2)
    assert rows_of(similar_pairs(mapped, text, 0.2, tile=(6, 7))) == expected
    np.save(tmp_path / "text.npy", text)
    mapped_text = np.load(tmp_path / "text.npy", mmap_mode="r")
    assert rows_of(similar_pairs(mapped, mapped_text, 0.2)) == expected
    tensors = torch.from_numpy(audio), torch.from_numpy(text).requires_grad_()
    assert rows_of(similar_pairs(*tensors, 0.2)) == expected


def test_results_have_the_documented_types():
    """Rows of one type on one machine and another on the next change the bytes of an artifact."""
    audio, text = random_rows(5, 4, 0), random_rows(6, 4, 1)
    (block,) = similar_pairs(audio, text, -1.0)
    types = [x.dtype for x in (block.audio_index, block.text_index, block.similarity, block.rank)]
    assert types == [np.int64, np.int64, np.float32, np.int32] and len(block) == 30
    for backend in ("faiss", "torch"):
        assert [x.dtype for x in top_k(audio, text, 2, backend=backend)] == [np.float32, np.int64]
    assert [x.dtype for x in best_class(text, audio)] == [np.int64, np.float32]
    assert caption_floor(audio, text, 2).dtype == np.float32


def test_an_empty_side_gives_no_pairs():
    """An empty table has no dimension to check; a crash here ends a night's run at its end."""
    rows, nothing = random_rows(3, 4, 0), np.zeros((0, 0), np.float32)
    for audio, text in ((rows, nothing), (nothing, rows), (nothing, nothing)):
        assert list(similar_pairs(audio, text, 0.5)) == []
        assert similarity_histogram(audio, text, num_bins=10).tolist() == [0] * 10
    assert [x.shape for x in top_k(nothing, rows, 2)] == [(0, 2), (0, 2)]
    assert caption_floor(nothing, rows, 1).tolist() == [-np.inf] * 3
    assert caption_floor(rows, nothing, 1).shape == (0,)


@pytest.mark.parametrize("threshold", [70, -1.5, float("nan")])
def test_a_threshold_that_is_no_cosine_is_refused_at_the_call(threshold):
    """A percentage drops every pair, and a generator would tell so only when it is read."""
    rows = random_rows(3, 4, 0)
    with pytest.raises(ValueError, match=rf"cosine in \[-1, 1\], got {threshold:g}; a percentage\?"):
        similar_pairs(rows, rows, threshold)


def test_rows_that_are_not_unit_vectors_are_refused():
    """Products of features are no cosines: a threshold of 0.7 would keep nearly everything."""
    rows = random_rows(5, 4, 0)
    features, broken = 3 * rows, rows.copy()
    broken[3] = np.nan
    with pytest.raises(ValueError, match="audio rows must be unit vectors, row 0 has norm 3"):
        similar_pairs(features, rows, 0.5)
    with pytest.raises(ValueError, match="text rows must be unit vectors, row 3 has norm nan"):
        similarity_histogram(rows, broken)
    with pytest.raises(ValueError, match="key rows must be unit vectors, row 3"):
        top_k(rows, broken, 1)
    with pytest.raises(ValueError, match="query rows must be unit vectors, row 0"):
        best_class(features, rows)
    with pytest.raises(ValueError, match=r"audio rows must have the shape \(number, D\), got \(4,\)"):
        similar_pairs(rows[0], rows, 0.5)
    assert len(rows_of(similar_pairs(1.0009 * rows, rows, -1.0))) == 25


def test_other_mistakes_of_the_caller_are_refused_with_what_came():
    """A k of 0, or rows of two models, would give an empty or a meaningless answer."""
    rows, other = random_rows(5, 4, 0), random_rows(5, 3, 0)
    with pytest.raises(ValueError, match="from one model, got 4 and 3 dimensions"):
        similar_pairs(rows, other, 0.5)
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"between 1 and the number of keys, 5, got {k}"):
            top_k(rows, rows, k)
    with pytest.raises(ValueError, match="backend must be 'faiss' or 'torch', got 'annoy'"):
        top_k(rows, rows, 1, backend="annoy")
    for name in ("cap_per_clip", "max_pairs_per_block"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            similar_pairs(rows, rows, 0.5, **{name: 0})
    for floor in (np.zeros(4), np.full(5, np.nan)):
        with pytest.raises(ValueError, match="caption_floor_M must hold one number per text, 5"):
            similar_pairs(rows, rows, 0.5, caption_floor_M=floor)
