"""What is called with a sequence: a Series is read by its places, a generator once, a lone text not at all."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from clapcur.data.class_names import check_class_names, prompts
from clapcur.methods import losses, metrics, similarity
from clapcur.models.clap import Clap
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, TextConfig
from clapcur.sequences import list_of, list_of_paths, list_of_texts
from clapcur.testing import write_tone

TEXTS = ["a dog barks", "rain falls on a roof", "a siren wails"]
FORMS = [
    tuple,
    np.array,
    lambda values: np.array(values, object),
    lambda values: pd.Series(values, index=[2, 0, 1]),
    lambda values: pd.Series(values, index=["x", "y", "z"]),
    lambda values: pd.Index(values),
    lambda values: pa.chunked_array([values]),
    lambda values: (value for value in values),
    lambda values: map(str, values),
]
WRONG = ["a text", b"bytes", Path("file"), {"a", "b"}, {"a": 1}, pd.DataFrame({"a": ["b"]}), 7, None, np.array("a")]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_sequence_keeps_its_order(form):
    assert list_of("values", form(TEXTS)) == TEXTS
    assert list_of_texts("values", form(TEXTS)) == TEXTS
    assert list_of_paths("values", form(TEXTS)) == TEXTS


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: type(value).__name__)
def test_what_is_no_sequence_is_refused(wrong):
    """A lone text passes for a sequence of letters, a table for one of its column names."""
    with pytest.raises(TypeError, match="values must be a list"):
        list_of("values", wrong)


@pytest.mark.parametrize("gap", [None, float("nan"), pd.NA, 3])
def test_a_gap_in_texts_is_named_by_its_place(gap):
    with pytest.raises(TypeError, match="values must be strings, but item 1 is"):
        list_of_texts("values", ["a", gap])
    with pytest.raises(TypeError, match="values must be paths, but item 1 is"):
        list_of_paths("values", [Path("a"), gap])


@pytest.fixture(scope="module")
def model():
    front_end = FrontEndConfig(sample_rate=16_000, n_fft=512, hop_samples=320, num_mels=40, f_max=7800.0)
    config = ClapConfig(
        audio=AudioConfig(front_end=front_end, width="tiny"),
        text=TextConfig(source="bert-tiny", pooling="mean", hidden_size=16, num_layers=1, vocab_size=100),
        embedding_dim=16, window_s=0.7,
    )  # fmt: skip
    return Clap.create(config, TEXTS).eval()


@pytest.mark.parametrize("form", FORMS)
def test_a_model_gives_rows_in_the_order_of_the_values(model, form, tmp_path):
    """Indexed by label, a shuffled Series permutes the rows, and `classify` names the wrong class."""
    files = [str(write_tone(tmp_path / f"{hz}.wav", hz, seed=hz)) for hz in (300, 900, 2700)]
    np.testing.assert_allclose(model.embed_text(form(TEXTS)), model.embed_text(TEXTS), atol=1e-6)
    np.testing.assert_allclose(model.embed_audio(form(files)), model.embed_audio(files), atol=1e-6)
    pd.testing.assert_frame_equal(model.classify(form(files), form(TEXTS)), model.classify(files, TEXTS))
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_text(form(TEXTS)), model.encode_text(TEXTS))
    (rows,) = model.embed_each(iter([form(files)]))
    np.testing.assert_allclose(rows, model.embed_audio(files), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_model_is_made_from_captions_in_any_form(model, form):
    """A generator that a check has used up would leave a vocabulary silently."""
    made = Clap.create(model.config, form(TEXTS))
    assert made.text.tokenizer.get_vocab() == model.text.tokenizer.get_vocab()


def test_a_lone_text_or_path_is_refused_by_the_model(model):
    for call in (model.embed_text, model.embed_audio, lambda value: model.classify([], value), model.encode_text):
        with pytest.raises(TypeError, match="wrap it in a list"):
            call("dog.wav")


@pytest.mark.parametrize("form", FORMS)
def test_class_names_and_pairs_come_in_any_form(form):
    assert check_class_names(form(TEXTS)) == tuple(TEXTS)
    assert prompts(form(TEXTS), "{}!") == tuple(f"{text}!" for text in TEXTS)
    target = losses.hard_target(form(TEXTS), form(["1", "2", "2"]), form="identical")
    torch.testing.assert_close(target, losses.hard_target(TEXTS, ["1", "2", "2"], form="identical"))
    for lone in (check_class_names, prompts, lambda name: losses.hard_target(name, ["1"])):
        with pytest.raises(TypeError, match="wrap it in a list"):
            lone("rain")


TABLES = [
    list,
    lambda rows: rows.tolist(),
    lambda rows: pd.DataFrame(rows, index=np.arange(len(rows))[::-1] * 1.5),
    torch.from_numpy,
]  # fmt: skip


@pytest.mark.parametrize("form", TABLES)
def test_similarities_and_scores_take_rows_in_any_form(form, rng):
    """A table with an index of numbers is sliced by label."""
    audio, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.standard_normal((2, 6, 4)))
    audio, text = audio.astype(np.float32), text.astype(np.float32)
    for found, expected in (
        (similarity.top_k(form(audio), form(text), 2), similarity.top_k(audio, text, 2)),
        (similarity.best_class(form(audio), form(text)), similarity.best_class(audio, text)),
        ((similarity.caption_floor(form(audio), form(text), 2),), (similarity.caption_floor(audio, text, 2),)),
        ((similarity.similarity_histogram(form(audio), form(text), num_bins=9),),
         (similarity.similarity_histogram(audio, text, num_bins=9),)),
        ((metrics.predict(form(audio), form(text)),), (metrics.predict(audio, text),)),
        ((metrics.transductive_posteriors(form(audio), form(text)),), (metrics.transductive_posteriors(audio, text),)),
    ):  # fmt: skip
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    blocks = [
        list(similarity.similar_pairs(form(audio), form(text), 0.0)),
        list(similarity.similar_pairs(audio, text, 0.0)),
    ]
    assert [block.text_index.tolist() for block in blocks[0]] == [block.text_index.tolist() for block in blocks[1]]


@pytest.mark.parametrize("form", [list, tuple, np.array, lambda values: pd.Series(values, index=[3, 1, 0, 2])])
def test_scores_of_clips_are_read_by_place(form):
    predicted, label, group = [0, 1, 1, 0], [0, 1, 0, 0], ["a", "b", "b", "c"]
    assert metrics.accuracy(form(predicted), form(label)) == 0.75
    assert metrics.confusion_matrix(form(predicted), form(label), 2).tolist() == [[2, 1], [0, 1]]
    expected = metrics.bootstrap_interval(predicted, group, num_resamples=50)
    assert metrics.bootstrap_interval(form(predicted), form(group), num_resamples=50) == expected
    assert metrics.paired_change(form(predicted), form(label), form(group), num_resamples=50)[0] == -0.25
