"""Taking over an earlier set must give what scoring everything anew would give."""

import pandas as pd
import pyarrow as pa
import pytest
from curation_world import CLASSES, World, as_set
from hypothesis import given, settings
from hypothesis import strategies as st

from clapcur.data.improvement_set import ImprovementSet
from clapcur.data.set_diff import aligned, merged
from clapcur.methods.thresholds import Threshold
from clapcur.stages import curate as module
from clapcur.stages.curate import CurateConfig, pool_join
from clapcur.store.artifacts import Artifact, Store
from clapcur.testing import clips_table, embeddings, manifest


def make(world: World, config: CurateConfig, clips: list[str], earlier: tuple[Artifact, Artifact] | None = None):
    """Curate over these clips of the pool and return the set and its pool."""
    rows = world.rows["pool"][[world.pool_clips.index(name) for name in clips]]
    inputs = world.inputs()
    name = f"pool{len(clips)}-{clips[0]}"
    inputs["pool"] = manifest(world.store, name, clips_table(clips))
    inputs["pool_embeddings"] = embeddings(world.store, f"rows-{name}", clips, rows)
    if earlier:
        inputs |= {"parent": earlier[0], "parent_pool": earlier[1]}
    work = world.store.open(module.STAGE.key(config, inputs))
    outcome = module.curate(inputs, config, work)
    return world.store.commit(work, outcome, 0.0), inputs["pool"]


@pytest.mark.parametrize("even_classes", [False, True])
@pytest.mark.parametrize("cap", [None, 1, 3])
@pytest.mark.parametrize("threshold", [Threshold(count=30), Threshold(similarity=0.7)])
@pytest.mark.parametrize("strategy", ["du", "ads"])
def test_a_grown_pool_gives_the_set_of_scoring_everything(tmp_path, strategy, threshold, cap, even_classes):
    world = World(Store(tmp_path / "store"))
    config = CurateConfig(
        strategy=strategy, class_names=CLASSES, held_out=0.0, audio_threshold=threshold, max_per_clip=cap,
        caption_threshold=Threshold(count=30), even_classes=even_classes,
    )  # fmt: skip
    first, middle = world.pool_clips[1::2], sorted([*world.pool_clips[1::2], *world.pool_clips[::4]])
    v1 = make(world, config, first)
    v2 = make(world, config, middle, v1)
    v3 = make(world, config, world.pool_clips, v2)
    anew, _ = make(world, config, world.pool_clips)
    grown, full = ImprovementSet.open(v3[0]).pairs(), ImprovementSet.open(anew).pairs()
    pd.testing.assert_frame_equal(grown, full)
    told = v3[0].record.counts
    before, after = as_set(ImprovementSet.open(v2[0]).pairs()), as_set(full)
    assert (told["added"], told["removed"]) == (len(after - before), len(before - after))


def test_only_the_new_clips_are_scored(tmp_path, monkeypatch):
    world = World(Store(tmp_path / "store"))
    config = CurateConfig(strategy="du", class_names=CLASSES, held_out=0.0, audio_threshold=Threshold(count=30))
    v1 = make(world, config, world.pool_clips[:30])
    scored = []
    join = pool_join.similar_pairs
    monkeypatch.setattr(
        pool_join, "similar_pairs", lambda rows, *rest, **more: scored.append(len(rows)) or join(rows, *rest, **more)
    )
    make(world, config, world.pool_clips, v1)
    assert set(scored) == {10}


@pytest.mark.parametrize("why", ["a clip left", "another config", "a cap per caption"])
def test_all_clips_are_scored_where_the_earlier_set_cannot_tell(tmp_path, why):
    """A clip that leaves makes room for pairs that the earlier set did not keep."""
    world = World(Store(tmp_path / "store"))
    base = {"strategy": "du", "class_names": CLASSES, "held_out": 0.0, "audio_threshold": Threshold(count=30)}
    of_then = dict(base, max_per_clip=2) if why == "another config" else base
    now = dict(base, max_per_caption=2) if why == "a cap per caption" else base
    v1 = make(world, CurateConfig(**of_then), world.pool_clips[:30])
    clips = world.pool_clips[5:] if why == "a clip left" else world.pool_clips
    v2, _ = make(world, CurateConfig(**now), clips, v1)
    anew, _ = make(world, CurateConfig(**now), clips)
    pd.testing.assert_frame_equal(ImprovementSet.open(v2).pairs(), ImprovementSet.open(anew).pairs())


def test_what_changed_is_listed_with_the_pairs(tmp_path):
    world = World(Store(tmp_path / "store"))
    config = CurateConfig(strategy="du", class_names=CLASSES, held_out=0.0, audio_threshold=Threshold(count=30))
    v1 = make(world, config, world.pool_clips[:30])
    v2, _ = make(world, config, world.pool_clips, v1)
    before, after = as_set(ImprovementSet.open(v1[0]).pairs()), as_set(ImprovementSet.open(v2).pairs())
    table = pd.read_parquet(v2.path / "changes.parquet")
    assert as_set(table[table.change == "added"]) == after - before
    assert as_set(table[table.change == "removed"]) == before - after
    assert len(table) == len(before ^ after) > 0


SORTED = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 9)), max_size=30).map(sorted)


def in_blocks(rows, size):
    schema = pa.schema([("clip_id", pa.string()), ("rank", pa.int64())])
    table = pa.table([[clip for clip, _ in rows], [rank for _, rank in rows]], schema=schema)
    return (table.slice(start, size) for start in range(0, len(table), size))


def tuples(table):
    return list(zip(table["clip_id"].to_pylist(), table["rank"].to_pylist(), strict=True))


@settings(max_examples=200, deadline=None)
@given(one=SORTED, other=SORTED, sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_aligned_tables_cover_the_same_clips_and_lose_nothing(one, other, sizes):
    found = list(aligned(in_blocks(one, sizes[0]), in_blocks(other, sizes[1])))
    for side, rows in enumerate((one, other)):
        assert [row for tables in found for row in tuples(tables[side])] == rows
    seen: set[str] = set()
    for tables in found:
        clips = {clip for table in tables for clip, _ in tuples(table)}
        assert not clips & seen
        seen |= clips


@settings(max_examples=100, deadline=None)
@given(rows=SORTED, mine=st.sets(st.sampled_from("abcdefgh")), size=st.integers(1, 7))
def test_merged_streams_are_one_sorted_stream(rows, mine, size):
    one, other = [row for row in rows if row[0] in mine], [row for row in rows if row[0] not in mine]
    assert [row for table in merged(in_blocks(one, size), in_blocks(other, size)) for row in tuples(table)] == rows


def test_pair_blocks_are_the_file(tmp_path):
    world = World(Store(tmp_path / "store"))
    made, _ = make(
        world,
        CurateConfig(strategy="du", class_names=CLASSES, held_out=0.0, audio_threshold=Threshold(similarity=0.0)),
        world.pool_clips,
    )
    pd.testing.assert_frame_equal(
        pa.concat_tables(ImprovementSet.open(made).blocks()).to_pandas(), ImprovementSet.open(made).pairs()
    )
