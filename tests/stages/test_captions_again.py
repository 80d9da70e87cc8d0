"""Captions by a captioner of a pool that grows, of clips whose tags change, and of clips without a tag."""

import dataclasses
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from captioning_corpus import THINGS, CaptionedTones

from clapcur.data.generated import KEPT, read_generated
from clapcur.data.manifest import Manifest
from clapcur.data.tags import Tags
from clapcur.experiments.config import starter
from clapcur.flows.plan import plan
from clapcur.models.captioner import Captioner
from clapcur.models.clap import load_model
from clapcur.stages.caption import CaptionConfig, caption, stage_for
from clapcur.store.home import Home
from clapcur.tasks.caption import caption as caption_task
from clapcur.tasks.pool import grow
from clapcur.testing import commit, embeddings

BEAM = CaptionConfig(way="captioner", num_captions=2, mention_tag=False, device="cpu")
COLUMNS = ["clip_id", "class", "probability"]
SAMPLE = dataclasses.replace(BEAM, decoding="sample", temperature=1.5, seed=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> CaptionedTones:
    torch.set_num_threads(1)
    return CaptionedTones(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def captioner(corpus):
    return corpus.train()


@pytest.fixture
def heard(monkeypatch) -> list[str]:
    """Collect the paths of the clips that a captioner hears."""
    paths, hear = [], Captioner.hear

    def note(self, some, *arguments, **options):
        paths.extend(map(str, some))
        return hear(self, some, *arguments, **options)

    monkeypatch.setattr(Captioner, "hear", note)
    return paths


def tags_of(corpus, name, of, other=(), none=()):
    """Tag a manifest by its things; some clips have the other thing, and some have nothing."""
    clips = Manifest.open(of).clips.clip_id.tolist()
    things = {clip: THINGS.index(corpus.thing[clip]) ^ (clip in other) for clip in clips if clip not in none}
    table = pd.DataFrame([(clip, thing, 0.9) for clip, thing in things.items()], columns=COLUMNS)
    names = pd.DataFrame({"name": THINGS, "mid": ""})
    tags = Tags.of(names, table.astype({"class": np.int32}), clips, lambda mean_K: np.full(2, 0.5))
    return commit(corpus.store, "tags", name, lambda work: tags.write(work.path), {"manifest": of})


def captioned(corpus, config, name, **inputs):
    stage, identity = stage_for(config)
    key = dataclasses.replace(stage, version=name).key(identity, inputs)
    work = corpus.store.open(key)
    return corpus.store.commit(work, caption(inputs, config, work), 0.0)


def bits(made) -> dict[str, bytes]:
    return {name: (made.path / name).read_bytes() for name in made.record.files}


@pytest.mark.parametrize("config", [BEAM, SAMPLE], ids=["beam", "sample"])
def test_a_grown_pool_gets_the_captions_of_one_made_from_nothing(corpus, captioner, config, heard):
    """Captions that depend on the other clips of a batch change for the whole pool with every landing."""
    clips = Manifest.open(corpus.pool).clips.clip_id.tolist()
    pool = corpus.manifest_of("first version", clips[1::2])
    tags = tags_of(corpus, "first tags", pool)
    first = captioned(corpus, config, "first", pool=pool, tags=tags, captioner=captioner)
    grown = corpus.manifest_of("second version", clips)
    other, none = clips[1], clips[3]
    new_tags = tags_of(corpus, "second tags", grown, {other}, {none})
    given = {"pool": grown, "tags": new_tags, "captioner": captioner}
    heard.clear()
    made = captioned(corpus, config, "grown", **given, previous=first, previous_tags=tags)
    wanted = {str(corpus.paths[clip]) for clip in [*clips[::2], other, none]}
    assert set(heard) == wanted and len(heard) == 8 and made.record.counts["reused_clips"] == 4
    whole = captioned(corpus, config, "from nothing", **given)
    assert bits(made) == bits(whole) and len(heard) == 8 + 12
    before, now = (read_generated(one).set_index("clip_id").caption for one in (first, made))
    assert now.loc[clips[5]].equals(before.loc[clips[5]]) and not now.loc[[other]].equals(before.loc[[other]])


def test_a_clip_without_a_tag_is_captioned_by_its_sound(corpus, captioner):
    """The captioner learned half of its examples without tags; nobody else can caption these clips."""
    clips = Manifest.open(corpus.pool).clips.clip_id.tolist()
    tags = tags_of(corpus, "a few tags", corpus.pool, none=clips[:5])
    config = dataclasses.replace(BEAM, mention_tag=True)
    made = captioned(corpus, config, "untagged", pool=corpus.pool, tags=tags, captioner=captioner)
    table, counts = read_generated(made), made.record.counts
    untagged = table[table.clip_id.isin(clips[:5])]
    assert set(untagged.clip_id) == set(clips[:5]) and set(untagged.tags) == {""} and untagged.strength.isna().all()
    assert "no_tag" not in set(untagged.verdict) and untagged.verdict.isin(KEPT).any()
    assert table[~table.clip_id.isin(clips[:5])].strength.notna().all()
    assert (counts["tagged_clips"], counts["untagged_clips"]) == (7, 5)
    assert counts["captioned_without_tag"] == untagged[untagged.verdict.isin(KEPT)].clip_id.nunique()
    told = tags_of(corpus, "all tags", corpus.pool)
    guided = read_generated(captioned(corpus, config, "told", pool=corpus.pool, tags=told, captioner=captioner))
    assert not guided[guided.clip_id.isin(clips[:5])].caption.tolist() == untagged.caption.tolist()


def test_captions_of_a_clip_without_a_tag_need_only_be_near_enough(corpus, captioner):
    clips = Manifest.open(corpus.pool).clips.clip_id.tolist()
    tags = tags_of(corpus, "no tags", corpus.pool, none=clips)
    model = load_model(corpus.checkpoint.path, "cpu")
    rows_ND = model.embed_audio([corpus.paths[clip] for clip in clips])
    given = {"checkpoint": corpus.checkpoint, "pool_embeddings": embeddings(corpus.store, "rows", clips, rows_ND)}
    given |= {"pool": corpus.pool, "tags": tags, "captioner": captioner}
    table = read_generated(captioned(corpus, BEAM, "scored", **given))
    assert table.tag_similarity.isna().all() and set(table.verdict) <= {"kept", "not_needed", "no_caption"}
    least = float(table.similarity.median())
    strict = read_generated(captioned(corpus, dataclasses.replace(BEAM, least_similarity=least), "strict", **given))
    judged = strict[strict.verdict != "no_caption"]
    assert ((judged.similarity < least) == (judged.verdict == "too_far")).all() and (judged.verdict == "kept").any()


def test_clips_that_nobody_tagged_are_not_those_without_a_tag(corpus, captioner):
    """The tagger could not hear them."""
    clips = Manifest.open(corpus.pool).clips.clip_id.tolist()
    tags = tags_of(corpus, "of a part", corpus.manifest_of("a part", clips[:4]))
    made = captioned(corpus, BEAM, "part", pool=corpus.pool, tags=tags, captioner=captioner)
    assert set(read_generated(made).clip_id) == set(clips[:4]) and "untagged_clips" not in made.record.counts


def test_templates_skip_clips_without_a_tag_and_say_so(corpus, caplog):
    clips = Manifest.open(corpus.pool).clips.clip_id.tolist()
    tags = tags_of(corpus, "without", corpus.pool, none=clips[:5])
    with caplog.at_level(logging.INFO, "clapcur"):
        made = captioned(corpus, CaptionConfig(), "template", pool=corpus.pool, tags=tags)
    assert made.record.counts["untagged_clips"] == 5 and set(read_generated(made).clip_id) == set(clips[5:])
    assert "5 of 12 clips have no tag: they get no caption" in caplog.text


def test_the_task_finds_the_captions_of_the_version_before(corpus, captioner, heard, monkeypatch):
    """A flow that captions every version from nothing generates for hours what it has."""
    root = corpus.store.root.parent
    monkeypatch.setenv("CLAPCUR_HOME", str(root))
    assert Home.open().store.root == corpus.store.root
    clips = Manifest.open(corpus.pool).clips.clip_id.tolist()

    def asked(pool, tags, config=BEAM):
        heard.clear()
        return caption_task(config, {"pool": pool, "tags": tags, "captioner": captioner}, "generated"), len(heard)

    pool = grow("field", corpus.manifest_of("landed first", clips[:8]))
    tags = tags_of(corpus, "tags 1", pool)
    first, work = asked(pool, tags)
    assert work == 8 and "previous" not in first.record.inputs
    grown = grow("field", corpus.manifest_of("landed second", clips[8:]))
    tags_2 = tags_of(corpus, "tags 2", grown)
    inputs = {"pool": grown, "tags": tags_2, "captioner": captioner}
    table = root / "pairs.csv"
    pd.DataFrame({"path": [*corpus.paths.values()][:4], "caption": "a tone"}).to_csv(table, index=False)
    experiment = starter(name="any", pairs=table, pool=table, class_names="esc50")
    (step,) = plan(experiment, lambda _: caption_task(BEAM, inputs, "generated")).steps
    assert (step.unit, step.new, step.reused) == ("clips", 4, 8)
    second, work = asked(grown, tags_2)
    assert work == 4 and second.record.inputs["previous"] == first.id
    assert second.record.inputs["previous_tags"] == tags.id
    third, work = asked(grown, tags_of(corpus, "tags 3", grown, other=clips[:2]))
    assert work == 2 and third.record.inputs["previous"] == second.id, "tags may change within a version"
    assert [asked(*one) for one in ((pool, tags), (grown, tags_2))] == [(first, 0), (second, 0)], "an answer stays"
    _, work = asked(grown, tags_2, dataclasses.replace(BEAM, num_beams=5))
    assert work == 12, "other settings give other captions"
    assert "previous" not in asked(grown, tags_2, CaptionConfig())[0].record.inputs
