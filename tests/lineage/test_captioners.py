"""Captioners in the lineage: what a clip that one learned from touches, and what a take-down of it makes outdated."""

from types import SimpleNamespace

import pandas as pd
import pytest

from clapcur.data.generated import GENERATED, manifest_of, write_generated
from clapcur.data.manifest import Manifest, caption_id
from clapcur.data.takedowns import check_clean, why_tainted
from clapcur.errors import OutdatedError
from clapcur.lineage.queries import impact, trace, trace_pairs
from clapcur.store.artifacts import Stage
from clapcur.store.home import Home
from clapcur.store.record import Outcome
from clapcur.tasks.common import SHAPED_BY_CLIPS
from clapcur.testing import clips_table, commit, manifest

CLIP = {name: f"{index:x}" * 64 for index, name in enumerate(("learned", "listed", "wild", "other", "strange"), 10)}


def write_nothing(work):
    (work.path / "model.safetensors").write_text("weights")


@pytest.fixture
def made(tmp_path) -> SimpleNamespace:
    """Two captioners with other pairs; from the first a pool's captions, a set chosen from them, and a student."""
    store = Home(tmp_path).store
    pool = manifest(store, "pool", clips_table([CLIP["wild"]]))
    tower = commit(store, "checkpoint", "tower", write_nothing)
    found = SimpleNamespace(home=Home(tmp_path), store=store, pool=pool, tower=tower)

    def captioner(name, clips, tags_of=None):
        pairs = manifest(store, f"pairs {name}", clips_table(clips), [(clips[0], f"a {name}")])
        tags = commit(store, "tags", f"tags {name}", write_nothing, {"manifest": tags_of or pairs})
        inputs = {"checkpoint": tower, "pairs": pairs, "tags": tags}
        return commit(store, "captioner", name, write_nothing, inputs), pairs

    found.captioner, found.pairs = captioner("first", [CLIP["learned"], CLIP["listed"]])
    found.other, _ = captioner("other", [CLIP["other"]])
    found.strange, _ = captioner("strange", [CLIP["other"]], manifest(store, "more", clips_table([CLIP["strange"]])))
    found.captions = captions(found, "captions", found.captioner)
    found.set = commit(store, "improvement_set", "set", write_pairs, {"pool": pool, "generated": found.captions})
    found.student = commit(store, "checkpoint", "student", write_nothing, {"improvement_set": found.set})
    found.teacher = commit(store, "checkpoint", "teacher", write_nothing, {"teacher_pairs": found.captions})
    return found


def captions(made, name, captioner):
    """Write what a captioner generated for the pool."""
    text = f"a sound that {name} names"

    def write(work):
        row = (CLIP["wild"], caption_id(text), text, "captioner", "Dog", 2.0, 0.5, 0.4, "kept")
        table = pd.DataFrame([row], columns=GENERATED.names)
        manifest_of(Manifest.open(made.pool), table).write(work.path)
        write_generated(table, work.path)

    tags = commit(made.store, "tags", "pool tags", write_nothing, {"manifest": made.pool})
    return commit(made.store, "manifest", name, write, {"pool": made.pool, "tags": tags, "captioner": captioner})


def write_pairs(work):
    pair = {"clip_id": [CLIP["wild"]], "caption_id": ["caption"]}
    pd.DataFrame(pair).to_parquet(work.path / "pairs.parquet")


def touched(made, name):
    """Return the ids that a clip touched by kind, with the reason of each."""
    answer = impact(made.home, CLIP[name])
    lists = {kind: found for kind, found in answer.items() if kind not in ("clip_id", "unread")}
    return {kind: {entry["id"]: entry["because"] for entry in found} for kind, found in lists.items()}


def test_a_clip_that_a_captioner_learned_from_touches_all_that_its_captions_made(made):
    """Who answers a take-down request must name the students that learned from captions a clip helped to write."""
    found = touched(made, "learned")
    ((captioner, because),) = found["captioners"].items()
    assert captioner == made.captioner.id and because.startswith("learned from")
    assert found["manifests"] == {
        made.pairs.id: "lists it", made.captions.id: f"captioner is {made.captioner.id}",
    }  # fmt: skip
    assert found["improvement_sets"] == {made.set.id: f"generated is {made.captions.id}"}
    assert found["checkpoints"].keys() == {made.student.id, made.teacher.id}
    assert touched(made, "other")["captioners"].keys() == {made.other.id, made.strange.id}
    assert touched(made, "other")["checkpoints"] == {}


def test_a_clip_of_the_tags_alone_touches_the_captioner_too(made):
    """Whether a tag is given depends on its mean over all clips of the manifest that was tagged."""
    assert touched(made, "strange")["captioners"].keys() == {made.strange.id}
    assert "of the tags" in why_tainted(made.store, made.strange, {CLIP["strange"]})


def test_trace_leads_from_a_student_to_the_pairs_of_the_captioner(made):
    names = str(trace(made.home, made.student.id))
    assert all(one.id in names for one in (made.captions, made.captioner, made.pairs, made.tower))
    assert made.other.id not in names
    (pair,) = trace_pairs(made.home, made.captions.id)
    assert (pair["way"], pair["tags"], pair["verdict"]) == ("captioner", "Dog", "kept")


@pytest.mark.parametrize("name", ["learned", "listed"])
def test_a_take_down_of_a_clip_of_the_pairs_makes_everything_behind_the_captioner_outdated(made, name):
    """Weights that learned from a clip keep it, in whatever they write."""
    forgotten = {CLIP[name]}
    for artifact in (made.captioner, made.set, made.student, made.teacher):
        assert f"the pairs {made.pairs.id} holds the clip" in why_tainted(made.store, artifact, forgotten), artifact
    for artifact in (made.other, made.strange, made.tower):
        assert why_tainted(made.store, artifact, forgotten) == ""


def test_a_take_down_of_another_clip_leaves_the_captioner_alone(made):
    """A guard that refuses everything is switched off."""
    assert why_tainted(made.store, made.captioner, {CLIP["other"]}) == ""
    assert why_tainted(made.store, made.student, {CLIP["other"]}) == ""
    assert why_tainted(made.store, made.captioner, {CLIP["wild"]}) == ""
    assert "holds the clip" in why_tainted(made.store, made.student, {CLIP["wild"]})


def test_captions_that_were_merged_are_followed_to_their_captioner(made):
    """Merged with pairs of one's own, generated captions look like any others."""
    pairs = Manifest.open(made.captions)
    stage = Stage("merge", "1", "manifest", lambda inputs, config, work: Outcome())
    inputs = {"part00": made.pool, "part01": made.captions}
    work = made.store.open(stage.key({}, inputs))
    pairs.write(work.path)
    merged = made.store.commit(work, Outcome(), 0.0)
    teacher = commit(made.store, "checkpoint", "on merged", write_nothing, {"teacher_pairs": merged})
    assert f"the pairs {made.pairs.id}" in why_tainted(made.store, teacher, {CLIP["learned"]})
    assert why_tainted(made.store, teacher, {CLIP["other"]}) == ""


HANDS = {
    "merged": {"part00": "own", "part01": "captions"},
    "merged under other names": {"theirs": "captions", "mine": "own"},
    "merged twice": {"part00": "own", "part01": "merged"},
    "landed in a pool": {"parent": "own", "landing": "captions"},
    "retrieved": {"pool": "own", "captions": "captions"},
}


def passed_on(made, hand):
    """Return a manifest that has the captions by one of the `HANDS`, and a student that learned from it."""
    own = manifest(made.store, "own", clips_table([CLIP["strange"]]), [(CLIP["strange"], "one's own")])
    from_ = {"own": own, "captions": made.captions}
    if "merged" in HANDS[hand].values():
        from_["merged"] = copied(made, "merged once", {"part00": own, "part01": made.captions})
    merged = copied(made, hand, {role: from_[name] for role, name in HANDS[hand].items()})
    return merged, commit(made.store, "checkpoint", f"student {hand}", write_nothing, {"teacher_pairs": merged})


def copied(made, name, inputs):
    pairs = Manifest.open(made.captions)
    return commit(made.store, "manifest", name, lambda work: pairs.write(work.path), inputs)


@pytest.mark.parametrize("hand", HANDS)
def test_captions_are_followed_into_whatever_has_them(made, hand):
    """A manifest that was merged by hand looks like one's own captions; a take-down must reach the students of it."""
    merged, student = passed_on(made, hand)
    found = touched(made, "learned")
    assert merged.id in found["manifests"] and student.id in found["checkpoints"]
    assert f"the pairs {made.pairs.id}" in why_tainted(made.store, student, {CLIP["learned"]})
    assert why_tainted(made.store, student, {CLIP["other"]}) == ""
    unconcerned = touched(made, "other")
    assert merged.id not in unconcerned["manifests"] and student.id not in unconcerned["checkpoints"]


@pytest.mark.parametrize("role", ["captioner", "pairs", "checkpoint", "tags"])
def test_captions_that_an_influenced_model_wrote_scored_or_guided_are_followed(made, role):
    """A model that learned from a clip also decides which captions others learn from."""
    model = made.teacher  # learned from captions of the first captioner
    others = manifest(made.store, "others", clips_table([CLIP["strange"]]))
    inputs = {"pool": others}
    if role == "tags":
        tags = commit(made.store, "tags", "zero-shot", write_nothing, {"manifest": others, "checkpoint": model})
        inputs |= {"tags": tags}
    elif role == "pairs":  # of a second captioner
        tags = commit(made.store, "tags", "again", write_nothing, {"manifest": made.captions})
        second = {"checkpoint": made.tower, "pairs": made.captions, "tags": tags}
        inputs |= {"captioner": commit(made.store, "captioner", "second", write_nothing, second)}
    else:
        inputs |= {role: made.captioner if role == "captioner" else model}
    written = copied(made, f"by {role}", inputs)
    student = commit(made.store, "checkpoint", f"student by {role}", write_nothing, {"teacher_pairs": written})
    found = touched(made, "learned")
    assert written.id in found["manifests"] and student.id in found["checkpoints"]
    assert f"the pairs {made.pairs.id}" in why_tainted(made.store, student, {CLIP["learned"]})
    assert student.id not in touched(made, "other")["checkpoints"]
    assert why_tainted(made.store, student, {CLIP["other"]}) == ""


def test_earlier_captions_of_a_pool_only_saved_work(made):
    """Every version of a pool would otherwise be outdated with the first."""
    inputs = {"pool": made.pool, "captioner": made.other, "previous": made.captions}
    later = copied(made, "later", inputs)
    student = commit(made.store, "checkpoint", "of later", write_nothing, {"teacher_pairs": later})
    assert why_tainted(made.store, student, {CLIP["learned"]}) == ""
    assert student.id not in touched(made, "learned")["checkpoints"]
    assert student.id in touched(made, "other")["checkpoints"]


def test_a_clip_of_the_pool_without_a_caption_touches_the_captions_of_the_others(made):
    """The tags that guided them are relative to the mean over all clips of the pool."""
    pool = manifest(made.store, "two", clips_table([CLIP["wild"], CLIP["strange"]]))
    written = copied(made, "of two", {"pool": pool, "captioner": made.other})
    student = commit(made.store, "checkpoint", "of two", write_nothing, {"teacher_pairs": written})
    found = touched(made, "strange")
    assert found["manifests"][written.id] == f"was written for the pool {pool.id}"
    assert student.id in found["checkpoints"] and why_tainted(made.store, student, {CLIP["strange"]})


def test_embeddings_of_the_sounds_of_captioned_clips_are_not_shaped_by_the_captions(made):
    stage = Stage("embed", "1", "embeddings", lambda inputs, config, work: Outcome())
    for what, is_tainted in (("audio", False), ("captions", True)):
        key = stage.key({"what": what}, {"checkpoint": made.tower, "manifest": made.captions})
        assert bool(why_tainted(made.store, key, {CLIP["learned"]})) == is_tainted, what


def test_a_captioner_is_not_finished_with_a_clip_that_was_taken_down(made, monkeypatch):
    """A take-down may fall between any two steps of a training."""
    assert "captioner" in SHAPED_BY_CLIPS
    monkeypatch.setattr("clapcur.data.takedowns.forgotten_names", lambda store: {CLIP["learned"]})
    stage = Stage("captioner", "1", "captioner", lambda inputs, config, work: Outcome())
    with pytest.raises(OutdatedError, match="captioner was stopped because the pairs"):
        check_clean(made.store, stage.key({}, {"pairs": made.pairs, "checkpoint": made.tower}), is_written=False)
