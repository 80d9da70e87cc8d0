"""search: the clips that are most similar to words or to a sound."""

import json

import pytest
from tiny_clap import CONFIG

from clapcur.models.clap import Clap
from clapcur.testing import write_tone

FREQUENCIES_HZ = (300, 500, 900, 1600, 2500, 4000)


@pytest.fixture
def model(tmp_path):
    Clap.create(CONFIG, captions=["low hum", "high whistle", "rain"], seed=1).eval().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sounds(tmp_path):
    for index, frequency_hz in enumerate(FREQUENCIES_HZ):
        write_tone(tmp_path / f"sounds/{index}.wav", frequency_hz, seed=index)
    return tmp_path / "sounds"


def found(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_sound_finds_itself_first_and_words_find_what_the_model_says(answer, home, model, sounds):
    code, out, err = answer("search", sounds / "3.wav", sounds, "--model", model, "--json")
    assert code == 0, err
    rows = found(out)
    assert rows[0]["path"] == str(sounds / "3.wav") and rows[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert len(rows) == len(FREQUENCIES_HZ)
    code, out, err = answer("search", "high whistle", sounds, "--model", model, "--json", "--limit", 4)
    assert code == 0, err
    loaded, paths = (
        Clap.create(CONFIG, captions=["low hum", "high whistle", "rain"], seed=1).eval(),
        sorted(sounds.iterdir()),
    )
    cosines = (loaded.embed_audio(paths) @ loaded.embed_text(["high whistle"]).T)[:, 0]
    expected = sorted(zip(cosines.tolist(), map(str, paths), strict=True), reverse=True)[:4]
    assert [row["path"] for row in found(out)] == [path for _, path in expected]
    assert [row["similarity"] for row in found(out)] == pytest.approx([cosine for cosine, _ in expected], abs=1e-5)
    code, out, err = answer("search", "high whistle", sounds, "--model", model, "--limit", 2)
    assert code == 0 and out.count(".wav") == 2, err


def test_the_next_search_embeds_nothing_again(answer, home, model, sounds):
    """An index that is made for every question makes a search in a large pool take hours."""
    assert answer("search", "rain", sounds, "--model", model)[0] == 0
    before = {one.id for one in home.store}
    assert answer("search", "low hum", sounds, "--model", model)[0] == 0
    assert {one.id for one in home.store} == before


def test_a_sound_that_is_not_there_is_no_text(answer, home, model, sounds):
    code, _, err = answer("search", "dog.wav", sounds, "--model", model)
    assert code == 1 and "there is no audio file dog.wav" in err
    code, _, err = answer("search", "dog", "nowhere", "--model", model)
    assert code == 1 and "nowhere" in err
