"""Ids of recordings: two spellings of one id, and what is no id at all."""

import logging

import numpy as np
import pandas as pd
import pytest

from clapcur.data.recordings import asked_as, known_as, place_differs, recording, recording_id
from clapcur.data.tables import whole_number
from clapcur.methods.contamination import overlap
from clapcur.testing import clips_table


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (" 100032 ", "100032"),
        ("100032.0", "100032"),
        (100032, "100032"),
        (np.int64(100032), "100032"),
        (100032.0, "100032"),
        (np.float32(100032), "100032"),
        (1e17, "100000000000000000"),
        ("1.00032e5", "100032"),
        ("1.00032E+05", "100032"),
        ("1e5", "100000"),
        ("Freesound: 100032.0", "freesound:100032"),
        ("FREESOUND:000123", "freesound:123"),
        ("https://freesound.org/people/somebody/sounds/100032/", "freesound:100032"),
        ("https://www.youtube.com/watch?v=--PJHxphWEs&t=30", "youtube:--PJHxphWEs"),
        ("000123", "000123"),
        ("1234567e012", "1234567e012"),
        ("youtube:1234567e012", "youtube:1234567e012"),
        ("youtube:-1e1", "youtube:-1e1"),
        ("-1234567890", "-1234567890"),
        ("12345e67", "12345e67"),
        ("1.5", "1.5"),
        ("cafe\u0301", "caf\u00e9"),
        ("0", "0"),
    ],
)
def test_an_id_is_read_alike_however_it_was_written(written: object, meant: str) -> None:
    """Compared as typed, one recording is two, and its clips are on both sides of an evaluation."""
    assert recording_id(written) == meant
    assert recording_id(meant) == meant, "reading it again changes nothing"


@pytest.mark.parametrize(
    "written",
    ["", " ", "nan", "NaN", "None", "NA", "n/a", "null", "unknown", "Unknown", "-1", "-1.0", "<NA>", "freesound:nan"]
    + ["freesound:0", "youtube:None", None, float("nan"), np.nan, pd.NA, pd.NaT],
)  # fmt: skip
def test_what_stands_for_a_missing_value_is_no_id(written: object) -> None:
    """As an id, `nan` is the largest recording of a table, and excludes a whole pool."""
    assert recording_id(written) == ""


def test_an_id_without_a_place_meets_that_id_of_every_place_and_places_do_not_meet() -> None:
    def meet(one: str, other: str) -> bool:
        return not set(known_as(one)).isdisjoint(asked_as(other))

    assert meet("100032", "100032") and meet("100032", "freesound:100032") and meet("freesound:100032", "100032")
    assert meet("freesound:7", "freesound:7")
    assert not meet("freesound:7", "tut:7") and not meet("7", "freesound:8") and not meet("freesound:7", "8")


def test_a_corpus_writes_the_place_before_the_id() -> None:
    assert recording("freesound", 100032.0) == "freesound:100032"
    assert recording("youtube", "12345e+0678") == "youtube:12345e+0678"


@pytest.mark.parametrize(
    ("text", "meant"), [("1.0", "1"), ("3.", "3"), ("1.25", "1.25"), ("dog", "dog"), ("-2.0", "-2")]
)
def test_a_whole_number_loses_its_point(text: str, meant: str) -> None:
    assert whole_number(text) == meant


@pytest.mark.parametrize(
    ("mine", "theirs", "known", "without_place"),
    [
        (["100032", "100038"], ["100032", "100038"], 2, 0),
        (["100032.0", "100038.0"], ["100032", "100038"], 2, 0),
        ([100032.0, np.nan], ["100032", "100038"], 1, 0),
        (["100032", "100038"], ["freesound:100032", "freesound:100038"], 2, 2),
        (["Freesound:100032", "100038"], ["freesound:100032", "freesound:100038"], 2, 1),
        (["tut:100032", "tut:100038"], ["freesound:100032", "freesound:100038"], 0, 0),
        (["nan", "nan"], ["nan", "7"], 0, 0),
        (["unknown", "None"], ["unknown", "None"], 0, 0),
    ],
)
def test_the_guard_sees_one_recording_in_two_spellings(
    mine: list[object], theirs: list[str], known: int, without_place: int
) -> None:
    """The clips that both tables share would be trained on and scored."""
    clips = clips_table([f"e{number}" for number in range(2)], recording_id=theirs)
    found = overlap(clips, clips_table([f"m{number}" for number in range(2)], recording_id=mine))
    assert len(found.reason_of()) == known
    assert found.as_json()["by_reason"] == {"clip": 0, "recording": known}
    assert found.as_json().get("recordings_compared_without_place", 0) == without_place


def test_the_guard_says_that_one_side_names_no_places(caplog: pytest.LogCaptureFixture) -> None:
    ids = {"recording_id": ["freesound:1", "freesound:2"]}
    with caplog.at_level(logging.WARNING, "clapcur"):
        overlap(clips_table(["a", "b"], **ids), clips_table(["c", "d"], **ids))
        assert not caplog.messages
        overlap(clips_table(["a", "b"], **ids), clips_table(["c", "d"], recording_id=["1", "9"]))
    assert "one side names the origin of its recordings" in caplog.text
    assert not place_differs(["freesound:1", "2"], ["1", "2"]) and not place_differs([""], ["freesound:1"])
