"""Scores of captions: CIDEr-D as another library computes it, and how varied captions are."""

import numpy as np
import pytest

from clapcur.methods.caption_scores import cider_d, distinct_share, vocabulary_size

SAID = {  # captions, what people wrote, and CIDEr-D as aac-metrics 0.6.0 computes it
    "a dog barks while rain falls": (
        ["a dog is barking in the rain", "rain falls while a dog barks loudly"], 2.7017393167669477
    ),
    "a man speaks and a crowd claps": (
        ["a man gives a speech and people applaud", "a man speaks and a crowd claps", "someone talks"],
        3.6982644068757864,
    ),
    "rain falls on a roof": (["rain falls on a roof"], 10.0),
    "an engine idles": (
        ["a car engine is running idle and then accelerates away down the road"], 0.11431782791585791
    ),
    "wind": (["the wind blows", "wind"], 2.0564884454618304),
    "birds sing birds sing birds sing": (["birds sing", "many birds sing in a tree"], 1.0476446006609068),
}  # fmt: skip
REFERENCES = [references for references, _ in SAID.values()]


def test_cider_d_equals_that_of_another_library():
    """A clip that is forgotten in the count of documents, or a length in words, moves every figure a little."""
    np.testing.assert_allclose(cider_d(list(SAID), REFERENCES), [score for _, score in SAID.values()], rtol=1e-12)


def test_case_and_punctuation_are_no_part_of_a_caption():
    shouted = [f"{text.upper()}." for text in SAID]
    np.testing.assert_allclose(cider_d(shouted, REFERENCES), cider_d(list(SAID), REFERENCES))


def test_the_score_of_a_clip_does_not_depend_on_the_order_of_the_clips():
    order = np.random.default_rng(0).permutation(len(SAID))
    moved = cider_d([list(SAID)[index] for index in order], [REFERENCES[index] for index in order])
    np.testing.assert_allclose(moved, cider_d(list(SAID), REFERENCES)[order])


def test_what_is_in_every_reference_scores_nothing():
    """A captioner that says "a sound" of everything must not look right."""
    references = [["a sound of rain"], ["a sound of wind"], ["a sound of dogs"]]
    assert cider_d(["a sound"] * 3, references).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        (["rain"], [["rain"]], "at least 2 clips, got 1"),
        (["rain", "wind"], [["rain"]], "references for each of 2 captions, got 1"),
        (["rain", "wind"], [["rain"], []], "clip 1 has no reference"),
    ],
)
def test_what_cannot_be_scored_is_refused(captions, references, message):
    with pytest.raises(ValueError, match=message):
        cider_d(captions, references)


def test_how_varied_captions_are():
    """A collapsed captioner says one sentence of everything, with a good loss."""
    captions = ["A dog barks.", "a dog barks", "it's raining", "a dog barks loudly"]
    assert distinct_share(captions) == 3 / 4
    assert vocabulary_size(captions) == len({"a", "dog", "barks", "it's", "raining", "loudly"})
    with pytest.raises(ValueError, match="at least one caption"):
        distinct_share([])
