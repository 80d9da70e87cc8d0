"""search: the clips that are most similar to words or to a sound."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from browser import chromium
from tiny_clap import CONFIG

from clapcur.data.manifest import Manifest, caption_id, captions_table
from clapcur.listening.hits_page import as_html
from clapcur.models.clap import Clap
from clapcur.stages.audition import AuditionConfig
from clapcur.testing import clips_table, write_tone

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


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_a_sound_finds_its_nearest_captions(answer, home, model, sounds, tmp_path, suffix):
    """A search that embeds the captions as anything else, or ranks the clips, has plausible numbers too."""
    texts = ["low hum", "high whistle", "rain", "a low hum in the rain"]
    table = tmp_path / f"captions.{suffix}"
    table.write_text("\n".join((["caption"] if suffix == "csv" else []) + texts))
    code, out, err = answer("search", sounds / "3.wav", table, "--model", model, "--json", "--limit", 3)
    assert code == 0, err
    loaded = Clap.create(CONFIG, captions=["low hum", "high whistle", "rain"], seed=1).eval()
    cosines = (loaded.embed_audio([sounds / "3.wav"]) @ loaded.embed_text(texts).T)[0]
    expected = sorted(zip(cosines.tolist(), texts, strict=True), reverse=True)[:3]
    assert [row["caption"] for row in found(out)] == [text for _, text in expected]
    assert [row["similarity"] for row in found(out)] == pytest.approx([cosine for cosine, _ in expected], abs=1e-5)
    assert all(row["caption_id"] == caption_id(row["caption"]) for row in found(out))
    before = {one.id for one in home.store}
    code, out, err = answer("search", "rain", table, "--model", model, "--limit", 1)
    assert code == 0 and out.split()[-1] == "rain" and {one.id for one in home.store} == before, err


def test_captions_beside_clips_are_searched_when_asked_for(answer, home, model, sounds, tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"path,caption\n{sounds / '0.wav'},low hum\n{sounds / '5.wav'},high whistle\n")
    asked = ("search", "high whistle", pairs, "--model", model, "--json")
    code, out, err = answer(*asked)
    assert code == 0 and {"path", "clip_id", "similarity"} == found(out)[0].keys(), err
    code, out, err = answer(*asked, "--captions")
    assert code == 0 and [row["caption"] for row in found(out)] == ["high whistle", "low hum"], err
    code, _, err = answer("search", "rain", sounds, "--model", model, "--captions")
    assert code == 1 and "has no captions to search" in err


def test_the_next_search_embeds_nothing_again(answer, home, model, sounds):
    """An index that is made for every question makes a search in a large pool take hours."""
    assert answer("search", "rain", sounds, "--model", model)[0] == 0
    before = {one.id for one in home.store}
    assert answer("search", "low hum", sounds, "--model", model)[0] == 0
    assert {one.id for one in home.store} == before


def test_a_sound_that_is_not_there_is_no_text(answer, home, model, sounds):
    code, _, err = answer("search", "dog.wav", sounds, "--model", model)
    assert code == 1 and "there is no audio file dog.wav" in err
    code, _, err = answer("search", " ", sounds, "--model", model)
    assert code == 2 and "the query is empty" in err
    code, _, err = answer("search", "dog", "nowhere", "--model", model)
    assert code == 1 and "nowhere" in err


# -- the page


@pytest.fixture
def page(answer, home, model, sounds, tmp_path):
    """Search for one of the sounds, and write the page."""
    path = tmp_path / "hits.html"
    code, out, err = answer("search", sounds / "3.wav", sounds, "--model", model, "--limit", 5, "--page", path)
    assert code == 0 and path.as_uri() in out, err
    return path


def test_the_hits_are_heard_on_a_page_that_needs_nothing_else(page, sounds):
    """A page that loses a sound, or that asks somebody else for one, fails in front of the people it was sent to."""
    with chromium() as browser:
        browser.open(page.as_uri())
        scores = browser.run("[...document.querySelectorAll('.scores strong')].map(cell => Number(cell.textContent))")
        names = browser.run("[...document.querySelectorAll('li .caption')].map(cell => cell.textContent)")
        assert scores == sorted(scores, reverse=True) and len(scores) == 5 and scores[0] == 1.0
        assert names[0] == "3.wav" and len(set(names)) == 5
        assert browser.run("document.querySelectorAll('.silent').length") == 0
        for index in (0, 1, 5):  # the query, then the hits
            browser.run(f"document.querySelectorAll('.play')[{index}].click()")
            browser.wait("document.getElementById('player').readyState >= 2")
            browser.wait(f"document.querySelectorAll('.pair')[{index}].matches('.playing')")
            assert browser.run("document.getElementById('player').duration") == pytest.approx(0.6, abs=0.12)
            assert browser.run("document.querySelectorAll('.playing').length") == 1
            label = browser.run(f"document.querySelectorAll('.play')[{index}].getAttribute('aria-label')")
            assert label.startswith("pause ")
        browser.run("document.querySelectorAll('.play')[5].click()")
        browser.wait("document.getElementById('player').paused && !document.querySelector('.playing')")
        assert {url for url in browser.requested() if not url.startswith("data:")} == {page.as_uri()}
        assert browser.complaints() == []
        assert [role for role, name in browser.controls() if not name] == []
        for width in (1280, 390):
            browser.size(width)
            assert browser.cut_off() == []


def test_the_page_keeps_its_size_and_says_which_clips_cannot_be_played(sounds):
    """A page of thousands of hits must open, and a dead button reads as a broken page."""
    write_tone(sounds / "<b>bold & low.wav", 200, seed=9)
    paths = [str(path) for path in sorted(sounds.iterdir())]
    clips = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    manifest = Manifest(
        clips=clips_table(clips, duration_s=[0.6] * len(clips)),
        captions=captions_table([]),
        pairs=pd.DataFrame({"clip_id": [], "caption_id": []}, dtype="str"),
        locations=pd.DataFrame({"clip_id": clips, "path": paths}),
    )
    hits = [(0.9 - 0.1 * index, clip) for index, clip in enumerate(clips)]
    whole = as_html("<i>rain</i>", hits, manifest, model="m")
    assert whole.count("data:image/png") == len(clips) and "cannot be played here" not in whole
    assert "&lt;b&gt;bold &amp; low.wav" in whole and "<b>bold" not in whole and "<i>rain" not in whole
    limit = len(whole.encode()) * 2 // 3
    less = as_html("rain", hits, manifest, model="m", config=AuditionConfig(max_bytes=limit))
    assert len(less.encode()) <= limit and 0 < less.count("data:image/png") < len(clips)
    assert f"{less.count('size limit')} of {len(clips)} clips cannot be played here" in less
    with pytest.raises(ValueError, match="give a lower --limit"):
        as_html("rain", hits, manifest, model="m", config=AuditionConfig(max_bytes=5000))
