"""Pseudo-label: each clip of a pool gets the class that teacher, tags and recording together say."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from tiny_clap import CAPTIONS, CONFIG

from clapcur.data.class_names import prompts
from clapcur.data.generated import read_generated
from clapcur.data.manifest import Manifest
from clapcur.data.tags import Tags
from clapcur.errors import DataError, EmptySetError
from clapcur.methods.pseudo_labels import class_posterior, mean_of_groups, tag_evidence
from clapcur.models.clap import Clap
from clapcur.stages.pseudo_label import STAGE, PseudoLabelConfig
from clapcur.store.artifacts import Store
from clapcur.testing import clips_table, commit, embeddings, manifest

NAMES = ("dog_bark", "siren", "rain")
CONFIG_OF = PseudoLabelConfig(
    class_names=NAMES, phrasings=("{}", "the sound of {}"), by_recording=False, min_share=1.0, device="cpu"
)


class Scene:
    """A pool of twelve clips of six recordings, a teacher and tags."""

    def __init__(self, folder):
        self.store, rng = Store(folder / "store"), np.random.default_rng(5)
        self.clips = [f"clip{index:02d}" for index in range(12)]
        self.recordings = [f"r{index // 2}" if index < 10 else "" for index in range(12)]
        pool = manifest(self.store, "pool", clips_table(self.clips, recording_id=self.recordings))
        self.model = Clap.create(CONFIG, CAPTIONS).eval()  # fresh: it calls all texts nearly alike
        checkpoint = commit(self.store, "checkpoint", "teacher", lambda work: self.model.save(work.path))
        self.prompts_KD = self.model.embed_text(prompts(NAMES))
        self.rows_ND = rng.standard_normal((12, self.prompts_KD.shape[1])).astype(np.float32)
        self.rows_ND /= np.linalg.norm(self.rows_ND, axis=1, keepdims=True)
        self.tag_names = ["Bark", "Siren", "Rain", "Speech"]
        self.probability_NT = rng.random((12, 4)) * (rng.random((12, 4)) > 0.3)
        self.inputs = {
            "pool": pool, "checkpoint": checkpoint,
            "pool_embeddings": embeddings(self.store, "pool", self.clips, self.rows_ND),
            "prompt_embeddings": embeddings(self.store, "prompts", list(prompts(NAMES)), self.prompts_KD),
        }  # fmt: skip
        self.tags = commit(self.store, "tags", "tags", self._write_tags)

    def _write_tags(self, work):
        cells = [(clip, tag) for clip in range(12) for tag in range(4) if self.probability_NT[clip, tag] > 0]
        table = pd.DataFrame(
            {
                "clip_id": [self.clips[clip] for clip, _ in cells], "class": [tag for _, tag in cells],
                "probability": [self.probability_NT[cell] for cell in cells],
            }
        ).astype({"class": np.int32, "probability": np.float32})  # fmt: skip
        names = pd.DataFrame({"name": self.tag_names, "mid": ""})
        Tags.of(names, table, self.clips, lambda mean_K: np.full(len(mean_K), 0.5)).write(work.path)

    def run(self, config=CONFIG_OF, **inputs):
        given = {**self.inputs, **inputs}
        work = self.store.open(STAGE.key(config, given))
        return self.store.commit(work, STAGE.compute(given, config, work), 0.0)

    def best(self, posterior_NK):
        return {
            clip: NAMES[index].replace("_", " ") for clip, index in zip(self.clips, posterior_NK.argmax(1), strict=True)
        }

    @property
    def alone_NK(self):
        return class_posterior(self.rows_ND @ self.prompts_KD.T, self.model.scale().item())


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene(tmp_path_factory.mktemp("scene"))


def classes_of(made):
    """Return the class of each clip by the caption that is its name alone."""
    opened = Manifest.open(made)
    text = dict(zip(opened.captions.caption_id, opened.captions.caption, strict=True))
    known = {name.replace("_", " ") for name in NAMES}
    return {pair.clip_id: text[pair.caption_id] for pair in opened.pairs.itertuples() if text[pair.caption_id] in known}


def test_each_clip_is_paired_with_every_phrasing_of_its_most_probable_class(scene):
    made = scene.run()
    assert classes_of(made) == scene.best(scene.alone_NK)
    opened = Manifest.open(made)
    text = dict(zip(opened.captions.caption_id, opened.captions.caption, strict=True))
    for clip, name in classes_of(made).items():
        said = {text[pair.caption_id] for pair in opened.pairs.itertuples() if pair.clip_id == clip}
        assert said == {f"this is a sound of {name}", name, f"the sound of {name}"}
    counts = made.record.counts
    assert counts["clips"] == counts["pool_clips"] == 12 and counts["unsure"] == 0
    assert sum(counts[f"class.{name}"] for name in ("dog bark", "siren", "rain")) == 12


def test_tags_are_a_second_opinion(scene):
    made = scene.run(tags=scene.tags)
    names_TD = scene.model.embed_text([f"this is a sound of {name}" for name in scene.tag_names])
    mean_T = scene.probability_NT.astype(np.float32).mean(axis=0)
    from scipy.sparse import csr_array

    evidence_NK = tag_evidence(csr_array(scene.probability_NT), mean_T, names_TD @ scene.prompts_KD.T)
    expected = class_posterior(scene.rows_ND @ scene.prompts_KD.T, scene.model.scale().item(), evidence_NK)
    assert classes_of(made) == scene.best(expected)
    assert read_generated(made).strength.to_numpy()[::3] == pytest.approx(expected.max(axis=1), rel=1e-5)
    assert not np.allclose(expected, scene.alone_NK, atol=1e-7)
    changed = (expected.argmax(1) != scene.alone_NK.argmax(1)).mean()
    assert made.record.metrics["changed"] == pytest.approx(changed)


def test_the_clips_of_a_recording_get_one_class(scene):
    made = scene.run(dataclasses.replace(CONFIG_OF, by_recording=True))
    found = classes_of(made)
    assert found == scene.best(mean_of_groups(scene.alone_NK, np.array(scene.recordings, object)))
    for first in range(0, 10, 2):
        assert found[scene.clips[first]] == found[scene.clips[first + 1]]


def test_an_unsure_clip_gets_no_label_and_is_listed(scene):
    limit = float(np.median(scene.alone_NK.max(axis=1)))
    made = scene.run(dataclasses.replace(CONFIG_OF, min_probability=limit, min_share=0.0))
    sure = {clip for clip, p in zip(scene.clips, scene.alone_NK.max(axis=1), strict=True) if p >= limit}
    assert set(classes_of(made)) == sure and made.record.counts["unsure"] == 12 - len(sure) > 0
    table = read_generated(made)
    assert set(table.clip_id) == set(scene.clips) and set(table[table.verdict == "unsure"].clip_id).isdisjoint(sure)
    first = table.iloc[0]
    assert first.tags.split("; ")[0].startswith(first.caption.removeprefix("this is a sound of "))


def test_a_teacher_that_is_never_sure_labels_the_most_probable_clips(scene, caplog):
    """A threshold for ten classes is out of reach for fifty, and the run ended after its training."""
    probability_N = scene.alone_NK.max(axis=1)
    assert probability_N.max() < 0.5
    made = scene.run(dataclasses.replace(CONFIG_OF, min_share=0.25))
    assert set(classes_of(made)) == {scene.clips[index] for index in np.argsort(-probability_N)[:3]}
    assert made.record.metrics["threshold"] == pytest.approx(np.sort(probability_N)[-3])
    assert (
        "0 of 12 clips are of one class with a probability of 0.50; the most probable 25 % get a label" in caplog.text
    )


def test_what_cannot_be_labelled_is_said_in_one_line(scene):
    with pytest.raises(EmptySetError, match=r"none of 12 clips .* probability of 1, the highest is 0\.\d+; lower"):
        scene.run(dataclasses.replace(CONFIG_OF, min_probability=1.0, min_share=0.0))
    with pytest.raises(DataError, match="expected the embeddings of 2 class prompts, got 3"):
        scene.run(dataclasses.replace(CONFIG_OF, class_names=NAMES[:2]))
    with pytest.raises(ValueError, match="in \\[0, 1\\], got 80; a percentage"):
        PseudoLabelConfig(min_probability=80)
    with pytest.raises(ValueError, match="{}"):
        PseudoLabelConfig(phrasings=("a sound",))
