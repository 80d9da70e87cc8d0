"""Generated captions: the words of tags, the rules by which captions stay, and the manifest that comes of them."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from clapcur.data.generated import KEPT, is_generated, read_generated
from clapcur.data.manifest import Manifest, caption_id
from clapcur.data.tags import Tag, Tags
from clapcur.errors import DataError, EmptySetError
from clapcur.methods.hearing import stems
from clapcur.models import clap
from clapcur.stages.caption import CaptionConfig, caption, stage_for
from clapcur.stages.caption.rules import chosen, is_sane, says_a_tag
from clapcur.stages.caption.template import phrased, read_descriptions
from clapcur.stages.caption.words import mentions, synonyms
from clapcur.store.artifacts import Store
from clapcur.testing import clips_table, commit, embeddings, manifest

NAMES = ("Dog", "Bark", "Rain on surface", "Fire engine, fire truck (siren)", "Silence")


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def tags_of(store, given, name="tags", pool=None):
    """Make tags: clip -> {class: probability}, thresholds of 0.1."""
    import pandas as pd

    rows = [(clip, NAMES.index(tag), value) for clip, found in given.items() for tag, value in found.items()]
    table = pd.DataFrame(rows, columns=["clip_id", "class", "probability"]).astype({"class": np.int32})
    names = pd.DataFrame({"name": NAMES, "mid": ""})
    tags = Tags.of(names, table, sorted(given), lambda means: np.full(5, 0.1))
    return commit(store, "tags", name, lambda work: tags.write(work.path), {"manifest": pool} if pool else {})


GIVEN = {
    "a": {"Dog": 0.9, "Bark": 0.5},
    "b": {"Rain on surface": 0.3},
    "c": {"Silence": 0.9, "Fire engine, fire truck (siren)": 0.2},
    "d": {"Dog": 0.05},  # below its threshold: no tag
}


@pytest.fixture
def pool(store):
    return manifest(store, "pool", clips_table(list("abcd"), recording_id=["r1", "r2", "r3", "r4"]))


def run(store, config, inputs):
    stage, identity = stage_for(config)
    work = store.open(stage.key(identity, inputs))
    return store.commit(work, caption(inputs, config, work), 0.0)


@pytest.mark.parametrize(
    ("name", "phrases"),
    [
        ("Fire engine, fire truck (siren)", ("fire engine", "fire truck")),
        ("Child speech, kid speaking", ("child speech", "kid speaking")),
        ("Vehicle horn, car horn, honking", ("vehicle horn", "car horn", "honking")),
        ("dog_bark", ("dog bark",)),
        ("Dog", ("dog",)),
    ],
)
def test_a_class_is_called_what_its_name_lists(name, phrases):
    assert synonyms(name) == phrases


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("two dogs are barking at a door", "Bark", True),
        ("a dog barks", "Dog", True),
        ("a hotdog stand", "Dog", False),
        ("a truck of the fire brigade", "Fire engine, fire truck (siren)", True),
        ("fire crackles", "Fire engine, fire truck (siren)", False),
        ("it is raining on a tin surface", "Rain on surface", True),
        ("someone is running", "Run", True),
        ("bees buzz", "Bee, wasp, etc.", True),
    ],
)
def test_a_caption_mentions_a_class_by_its_words_whatever_their_endings(text, name, expected):
    assert mentions(stems(text), name) == expected
    assert says_a_tag(text, [Tag("Cowbell", 0.5, 2.0), Tag(name, 0.5, 2.0)]) == expected


@pytest.mark.parametrize(
    ("text", "sane"),
    [
        ("a dog barks", True),
        ("dog", True),
        ("a dog barks with 0.83", False),
        ("dog [0.5] and rain", False),
        ("rain rain rain on a roof", False),
        ("a dog a dog a dog a dog", False),
        ("", False),
        (" ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(40)), False),
        ("see https://example.org", False),
    ],
)
def test_a_text_that_is_no_caption_is_refused(text, sane):
    """Six captions of a hundred of a public corpus held raw probabilities."""
    assert is_sane(text, 1, 30) == sane


@pytest.mark.parametrize(
    ("verdicts", "similarity", "tag", "least", "most", "above", "expected"),
    [
        (["", "", ""], [0.5, 0.6, 0.7], 0.4, None, 2, True, ["kept", "kept", "not_needed"]),
        (["", "", ""], [0.3, 0.6, 0.7], 0.4, None, 2, True, ["below_tag", "kept", "kept"]),
        (["", "", ""], [0.1, 0.3, 0.2], 0.4, None, 2, True, ["below_tag", "best", "below_tag"]),
        (["", "", ""], [0.1, 0.3, 0.2], 0.4, None, 2, False, ["kept", "kept", "not_needed"]),
        (["", "", ""], [0.1, 0.3, 0.2], 0.4, 0.25, 2, False, ["too_far", "kept", "too_far"]),
        (["", "", ""], [0.1, 0.2, 0.2], 0.4, 0.25, 2, True, ["too_far", "too_far", "too_far"]),
        (["no_tag", "", ""], [0.9, 0.6, 0.5], 0.4, None, 1, True, ["no_tag", "kept", "not_needed"]),
        (["", "no_caption"], [np.nan, np.nan], np.nan, 0.5, 2, True, ["kept", "no_caption"]),
    ],
)
def test_which_captions_of_a_clip_stay(verdicts, similarity, tag, least, most, above, expected):
    assert chosen(verdicts, similarity, tag, least, most, above) == expected


def test_phrasings_name_the_tags_in_many_ways_and_never_one_twice():
    """One sentence for all clips of a class would make each the other's negative."""
    tags = [Tag("Child speech, kid speaking", 0.5, 5.0), Tag("Dog", 0.4, 3.0)]
    found = {
        text for seed in range(20)
        for text in phrased(tags, 3, {"Dog": "a domestic animal"}, np.random.default_rng(seed))
    }  # fmt: skip
    assert {"dog", "the sound of child speech and dog", "kid speaking with dog in the background"} <= found | {"dog"}
    assert any("a domestic animal" in text for text in found) and len(found) > 10
    assert all(says_a_tag(text, tags) or "domestic" in text for text in found)
    one = phrased(tags, 3, {}, np.random.default_rng(3))
    assert one == phrased(tags, 3, {}, np.random.default_rng(3)) and len(set(one)) == len(one)
    assert " and " in one[0] or " with " in one[0], "those that name more come first"


def test_descriptions_of_the_ontology_are_cut_to_what_can_be_said(tmp_path):
    entries = [
        {"name": "Stream", "description": "Sounds of a body of water with a current. Not a river."},
        {"name": "Speech", "description": "Speech is vocalised, i.e. spoken, form of communication"},
        {"name": "Sine", "description": "A tone of 440 Hz."},
        {"name": "Dog", "description": "Any sounds coming from the familiar, domesticated canid."},
    ]
    path = tmp_path / "ontology.json"
    path.write_text(json.dumps(entries))
    assert read_descriptions(path) == {"Stream": "a body of water with a current"}
    path.write_text("{}")
    assert read_descriptions(path) == {}
    path.write_text('[{"id": 3}]')
    with pytest.raises(DataError, match="is not an ontology: expected a list of classes"):
        read_descriptions(path)
    with pytest.raises(DataError, match="does not exist"):
        stage_for(CaptionConfig(ontology=str(tmp_path / "none.json")))


def test_a_pool_becomes_pairs_without_a_model(store, pool):
    """A caption for a clip without a tag would be made up; a clip's id is the pool's, so that guards know it."""
    made = run(store, CaptionConfig(), {"pool": pool, "tags": tags_of(store, GIVEN)})
    found = Manifest.open(made)
    assert found.clips.clip_id.tolist() == ["a", "b", "c"] and found.pairs.groupby("clip_id").size().max() == 2
    assert found.clips.recording_id.tolist() == ["r1", "r2", "r3"] and set(found.paths) == {"a", "b", "c"}
    table = read_generated(made)
    assert is_generated(made) and not is_generated(pool)
    kept = table[table.verdict.isin(KEPT)]
    assert set(zip(kept.clip_id, kept.caption_id, strict=True)) == set(
        zip(found.pairs.clip_id, found.pairs.caption_id, strict=True)
    )
    assert (kept.caption_id == kept.caption.map(caption_id)).all()
    assert table[table.clip_id == "a"].tags.unique().tolist() == ["Dog; Bark"]
    assert (
        not table.caption.str.contains("silence").any()
        and table[table.clip_id == "c"].caption.str.contains("fire").all()
    )
    assert table.similarity.isna().all() and made.record.counts["tagged_clips"] == 3
    again = run(Store(store.root.with_name("again")), CaptionConfig(), {"pool": pool, "tags": tags_of(store, GIVEN)})
    assert read_generated(again).equals(table)


def test_evaluation_clips_and_their_recordings_get_no_caption(store, pool):
    """A teacher that learns from generated captions is not guarded by any curation."""
    evaluation = manifest(store, "evaluation", clips_table(["z", "b"], recording_id=["r1", "other"]))
    made = run(store, CaptionConfig(), {"pool": pool, "tags": tags_of(store, GIVEN), "evaluation": evaluation})
    assert Manifest.open(made).clips.clip_id.tolist() == ["c"]
    counts = made.record.counts
    assert (counts["excluded.evaluation_recording"], counts["excluded.evaluation_clip"]) == (1, 1)
    whole = manifest(store, "all", clips_table(list("abc")))
    with pytest.raises(EmptySetError, match="3 have a tag, 3 are evaluation clips or share a recording"):
        run(store, CaptionConfig(), {"pool": pool, "tags": tags_of(store, GIVEN), "evaluation": whole})


class Reader:
    """A model whose rows of texts are known."""

    def __init__(self, rows):
        self.rows = rows

    def embed_text(self, texts):
        return np.stack([self.rows(text) for text in texts]).astype(np.float32)


def direction(text):
    """Texts that name a dog are near (1, 0, 0), those with rain near (0, 1, 0), others near (0, 0, 1)."""
    row = np.array([("dog" in text) * 1.0, ("rain" in text) * 1.0, 0.1])
    return row / np.linalg.norm(row)


@pytest.fixture
def judged(store, pool, monkeypatch):
    """Give inputs with a model: the clips a and b are a dog and rain; c has no embedding."""
    monkeypatch.setattr(clap, "load_model", lambda path, device: Reader(direction))
    rows = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    return {
        "pool": pool, "tags": tags_of(store, GIVEN), "checkpoint": SimpleNamespace(id="model", path=None),
        "pool_embeddings": embeddings(store, "p", ["a", "b"], rows),
    }  # fmt: skip


def test_a_model_says_how_near_captions_are(store, judged):
    inputs = judged
    config = dataclasses.replace(CaptionConfig(), num_captions=2, least_similarity=0.9)
    stage, identity = stage_for(config)
    work = store.open(stage.key(identity, {}))
    outcome = caption(inputs, config, work)
    import pandas as pd

    from clapcur.data.generated import FILE

    table = pd.read_parquet(work.path / FILE)
    assert outcome.counts["not_embedded"] == 1 and set(table.clip_id) == {"a", "b"}
    for row in table.itertuples():
        wanted = direction(row.caption)[0 if row.clip_id == "a" else 1]
        assert row.similarity == pytest.approx(wanted, abs=1e-6)
        assert (row.verdict == "too_far") == (wanted < 0.9)
    assert outcome.metrics["similarity"] == pytest.approx(table[table.verdict.isin(KEPT)].similarity.mean())


def test_the_nearest_caption_that_mentions_a_tag_is_retrieved(store, judged):
    """The nearest caption alone is DU; one that mentions a tag is what the tagger agrees with."""
    texts = [
        "a dog barks at rain",
        "rain falls on a tin surface",
        "the dog is loud",
        "wind",
        "rain on the surface of a lake",
    ]
    captions = manifest(store, "captions", captions=texts)
    ids = Manifest.open(captions).captions.caption_id.tolist()
    listed = dict(zip(ids, Manifest.open(captions).captions.caption, strict=True))
    rows = np.stack([direction(listed[name]) for name in ids])
    inputs = judged | {"captions": captions, "caption_embeddings": embeddings(store, "c", ids, rows)}
    config = CaptionConfig(way="retrieve", num_captions=1, above_tag=False)
    stage, identity = stage_for(config)
    work = store.open(stage.key(identity, {}))
    caption(inputs, config, work)
    import pandas as pd

    table = pd.read_parquet(work.path / "generated.parquet")
    kept = dict(zip(table.clip_id[table.verdict == "kept"], table.caption[table.verdict == "kept"], strict=True))
    assert kept["a"] == "the dog is loud" and "surface" in kept["b"]
    assert "wind" not in set(table.caption)
    with pytest.raises(DataError, match="retrieving captions needs a model"):
        caption({"pool": judged["pool"], "tags": judged["tags"]}, config, work)
    with pytest.raises(DataError, match="no captions to retrieve"):
        caption(judged, config, work)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_captions": 0}, "num_captions must be at least 1"),
        ({"least_similarity": 70.0}, "a percentage"),
        ({"most_words": 1, "least_words": 3}, "less than least_words"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CaptionConfig(**settings)


def test_a_pool_without_tags_says_what_to_lower(store, pool):
    with pytest.raises(EmptySetError, match="0 have a tag; lower the tag thresholds"):
        run(store, CaptionConfig(), {"pool": pool, "tags": tags_of(store, {"d": {"Dog": 0.05}})})
