"""Zero-shot and retrieval scores of small embedding tables, against counting by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from clapcur.config import signature
from clapcur.data.class_names import prompts
from clapcur.data.manifest import caption_id
from clapcur.errors import DataError, ManifestError
from clapcur.stages.evaluate import MAX_CONFUSION, STAGE, EvaluateConfig, _check_finite, _confusion, evaluate
from clapcur.store.artifacts import Store
from clapcur.testing import clips_table, commit, embeddings, manifest, rewrite_record

CLASSES = ("dog_bark", "rain", "siren")
READABLE = ("dog bark", "rain", "siren")
CLIPS = [f"clip{i}" for i in range(6)]
LABELS = ["dog_bark", "dog_bark", "rain", "rain", "siren", "siren"]
ROWS = np.array([[9, 1, 0], [1, 9, 0], [0, 9, 1], [1, 8, 1], [0, 1, 9], [9, 0, 1]], float)  # 4 of 6 are right


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def checkpoint(store: Store):
    def write(work):
        save_file({"logit_scale": np.array(np.log(14.0), np.float32)}, work.path / "model.safetensors")

    return commit(store, "checkpoint", "teacher", write)


def audio(store: Store, rows=ROWS):
    table = embeddings(store, "audio", CLIPS, rows)
    rewrite_record(table, config={"num_crops": 1})
    return table


def run(store: Store, labels=LABELS, **settings):
    clips = clips_table(CLIPS, label=labels, fold=["1", "1", "1", "2", "2", "2"], recording_id=list("aabbcd"))
    inputs = {
        "checkpoint": checkpoint(store),
        "audio_embeddings": audio(store),
        "prompt_embeddings": embeddings(store, "prompts", prompts(CLASSES), np.eye(3)),
        "evaluation": manifest(store, f"evaluation {labels}", clips),
    }
    config = EvaluateConfig(class_names=CLASSES, **settings)
    work = store.open(STAGE.key(config, inputs))
    outcome = evaluate(inputs, config, work)
    return json.loads((work.path / "scores.json").read_text()), work.path, outcome


def test_accuracy_is_the_share_of_clips_nearest_to_their_own_prompt(store):
    """Prompts in another order than the class names would score chance and look like a bad model."""
    scores, folder, outcome = run(store)
    assert scores["accuracy"] == pytest.approx(4 / 6) == outcome.metrics["accuracy"]
    assert scores["per_class"] == {"dog bark": 0.5, "rain": 1.0, "siren": 0.5}
    assert scores["per_fold"] == {"1": pytest.approx(2 / 3), "2": pytest.approx(2 / 3)}
    assert scores["confusion"] == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]
    table = pd.read_parquet(folder / "predictions.parquet").set_index("clip_id")
    assert table.predicted.to_dict() == dict(
        zip(CLIPS, ["dog bark", "rain", "rain", "rain", "siren", "dog bark"], strict=True)
    )


def test_every_score_carries_its_protocol(store):
    """A number without prompt, class names, crops and counts cannot be compared with any other."""
    scores, _, _ = run(store, prompt="the sound of {}")
    protocol = scores["protocol"]
    assert (protocol["prompt"], protocol["crops"]) == ("the sound of {}", 1)
    assert (protocol["num_clips"], protocol["num_recordings"], protocol["num_classes"]) == (6, 4, 3)
    assert protocol["class_names_sha256"] == signature(list(READABLE))
    low, high = scores["interval"]
    assert 0 <= low < scores["accuracy"] < high <= 1


def test_labels_never_enter_the_transductive_prediction(store):
    """A transduction that sees labels would lift every score and be worth nothing."""
    _, folder, _ = run(store)
    _, other_folder, _ = run(store, labels=LABELS[::-1])
    one, other = (pd.read_parquet(f / "predictions.parquet").set_index("clip_id") for f in (folder, other_folder))
    assert one.transductive.to_dict() == other.transductive.to_dict()
    assert one.label.to_dict() != other.label.to_dict()


def test_a_label_without_a_class_name_is_an_error_that_names_both(store):
    """Clips that are dropped because of a spelling would raise the score silently."""
    with pytest.raises(ManifestError, match="dogbark.*class names are dog bark, rain, siren"):
        run(store, labels=["dogbark", *LABELS[1:]])


def test_duplicate_class_names_are_refused():
    """Two prompts of one class would split its clips."""
    with pytest.raises(DataError, match="repeated: 'dog bark'"):
        EvaluateConfig(class_names=("dog_bark", "dog bark", "rain"))


def test_retrieval_counts_a_clip_with_several_captions_once_per_caption(store):
    """With five captions a clip, other conventions differ by points (worked out by hand)."""
    pairs = [("clip0", "a"), ("clip0", "b"), ("clip1", "c")]
    texts = {"a": [1, 0], "b": [0, 1], "c": [0.6, 0.8]}
    ids = sorted(caption_id(text) for text in texts)
    rows = {caption_id(text): row for text, row in texts.items()}
    inputs = {
        "checkpoint": checkpoint(store),
        "audio_embeddings": audio(store, np.tile([[1.0, 0.1], [0.1, 1.0]], (3, 1))),
        "caption_embeddings": embeddings(store, "captions", ids, np.array([rows[name] for name in ids])),
        "evaluation": manifest(store, "retrieval", clips_table(["clip0", "clip1"]), pairs),
    }
    config = EvaluateConfig(task="retrieval")
    work = store.open(STAGE.key(config, inputs))
    evaluate(inputs, config, work)
    scores = json.loads((work.path / "scores.json").read_text())
    # a finds clip0 and c finds clip1, b finds clip1 first; clip0's nearest caption is a, clip1's nearest is b
    assert scores["metrics"]["text_to_audio.recall_at_1"] == pytest.approx(2 / 3)
    assert scores["metrics"]["audio_to_text.recall_at_1"] == pytest.approx(1 / 2)
    assert scores["metrics"]["text_to_audio.map_at_10"] == pytest.approx((1 + 0.5 + 1) / 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    """A NaN compares as neither better nor worse, and no table shows why."""
    table = pd.DataFrame({"clip_id": ["a", "b"], "similarity": [0.5, 0.25]})
    _check_finite({"accuracy": 0.5, "interval": [0.25, 0.75], "per_class": {"rain": 1.0}, "protocol": {}}, table)
    for scores in ({"accuracy": value}, {"interval": [0.25, value]}, {"per_class": {"rain": value}}):
        with pytest.raises(DataError, match="these scores are not finite: (accuracy|interval|per_class.rain);"):
            _check_finite(scores, table)
    with pytest.raises(DataError, match="not finite: similarity;"):
        _check_finite({}, table.assign(similarity=[0.5, value]))


def test_of_very_many_classes_the_most_confused_are_kept():
    """A confusion matrix of 20,000 classes has 400 million numbers, of which a few hundred say something."""
    names = tuple(f"class {index}" for index in range(MAX_CONFUSION + 3))
    labels = np.arange(len(names))
    predicted = labels.copy()
    predicted[-1] = 1
    confusion, kept = _confusion(predicted, labels, names)
    assert len(confusion) == len(kept) == MAX_CONFUSION
    assert confusion[-1][1] == 1 and kept[-1] == names[-1]
    assert np.sum(confusion) == MAX_CONFUSION
    assert _confusion(np.array([0, 1]), np.array([1, 1]), names[:2]) == ([[0, 0], [1, 1]], None)
