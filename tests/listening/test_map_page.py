"""The map of a set in a real browser: what is a point, what colours it, what a click plays, and the table beside it."""

import json

import numpy as np
import pytest
from audition_tools import CLASSES, improvement_set
from browser import chromium

from clapcur.errors import ArtifactError
from clapcur.listening.map_page import as_html, map_of
from clapcur.stages.audition import AuditionConfig
from clapcur.store.artifacts import Store
from clapcur.store.catalog import Catalog

NUM_CLIPS, NUM_UNCHOSEN = 12, 3


def unit_rows(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 6))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_set(store, sounds, missing=0):
    rows = unit_rows(NUM_CLIPS + len(CLASSES))
    return improvement_set(store, sounds, NUM_CLIPS, missing=missing, rows_ND=rows, num_unchosen=NUM_UNCHOSEN)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("map")
    store = Store(folder / "store")
    source = make_set(store, folder / "sounds", missing=1)
    path = folder / "map.html"
    path.write_text(as_html(store, source))
    return store, source, path


def test_points_are_the_clips_with_their_best_pair(made):
    """A clip with several pairs is one point, with the pair that it is most similar to."""
    store, source, _ = made
    found = map_of(store, source, 100, seed=0)
    assert (found.num_clips, found.num_chosen, len(found.points)) == (NUM_CLIPS, NUM_CLIPS - NUM_UNCHOSEN, NUM_CLIPS)
    first = found.points.iloc[0]
    assert (first["class"], first.caption, first.num_pairs) == ("dog", CLASSES["dog"], 2)
    assert first.similarity == pytest.approx(0.9)
    last = found.points.iloc[-1]
    assert (last["class"], last.caption, last.num_pairs) == ("", "", 0)
    rows = unit_rows(NUM_CLIPS + len(CLASSES))
    clips, prompts = rows[:NUM_CLIPS], rows[NUM_CLIPS:]
    assert found.points.nearest.tolist() == [list(CLASSES)[index] for index in (clips @ prompts.T).argmax(axis=1)]
    _, singular, axes = np.linalg.svd(clips - clips.mean(axis=0), full_matrices=False)
    expected = (clips - clips.mean(axis=0)) @ axes[:2].T
    for index, name in enumerate("xy"):
        sign = np.sign(found.points[name] @ expected[:, index])
        assert found.points[name].to_numpy() == pytest.approx(sign * expected[:, index], abs=1e-5)
        assert found.prompts[name].mean() == pytest.approx(0, abs=1e-6)
    sample = map_of(store, source, 6, seed=0)
    assert len(sample.points) == 6 and set(sample.points["class"]) == {*CLASSES, ""}
    assert sample.plane.explained == found.plane.explained  # of all clips, not of the sample


def test_a_map_is_seen_heard_and_read(made):
    """What the colours mean, what a click plays and what the table says must be one thing."""
    _, _, path = made
    with chromium() as browser:
        browser.open(path.as_uri())
        browser.size(1280)
        browser.run("dispatchEvent(new Event('resize'))")
        assert browser.run("document.querySelectorAll('circle').length") == NUM_CLIPS
        assert browser.run("document.querySelectorAll('circle.no').length") == NUM_UNCHOSEN
        assert browser.run("document.querySelectorAll('tbody tr').length") == NUM_CLIPS
        labels = browser.run("[...document.querySelectorAll('.mark text')].map(text => text.textContent)")
        assert labels == list(CLASSES)
        clip = browser.run("document.querySelector('circle:not(.no):last-of-type').dataset.clip")
        middle = (
            f"(() => {{ const box = document.querySelector('circle[data-clip={clip}]').getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        x, y = browser.run(middle)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        browser.wait(f"document.querySelector('circle.playing')?.dataset.clip === '{clip}'")
        browser.wait("document.getElementById('player').currentTime > 0")
        tip = browser.run("document.getElementById('tip').textContent")
        row = browser.run(f"[...document.querySelector('tr[data-clip={clip}]').cells].map(cell => cell.textContent)")
        assert row[5] in tip and f"{row[2]}, similarity {row[3]}" in tip
        assert browser.run("document.getElementById('now').textContent").startswith("playing: " + row[5])

        browser.run("document.getElementById('list').open = true")
        browser.run("document.querySelectorAll('tbody .play')[2].click()")  # the table plays, too
        playing = browser.run("document.querySelectorAll('tbody .play')[2].closest('tr').dataset.clip")
        browser.wait(f"document.querySelector('circle.playing')?.dataset.clip === '{playing}'")
        assert browser.run("document.querySelectorAll('tbody .why').length") == 1
        assert browser.run("document.querySelector('tbody .why').textContent") == "file not found"

        browser.run("document.querySelector('.by-class button').click()")
        shown = browser.run(
            "[...document.querySelectorAll('tbody tr:not([hidden])')].map(row => row.cells[2].textContent)"
        )
        assert shown == ["dog"] * 3 and browser.run("document.querySelectorAll('circle.dim').length") == NUM_CLIPS - 3
        fills = {}
        for by in ("class", "similarity", "chosen"):
            browser.run(f"document.getElementById('by').value = {json.dumps(by)}")
            browser.run("document.getElementById('by').dispatchEvent(new Event('input', {bubbles: true}))")
            colours = "[...document.querySelectorAll('circle:not(.no)')].map(dot => getComputedStyle(dot).fill)"
            fills[by] = len(set(browser.run(colours)))
        assert fills == {"class": len(CLASSES), "similarity": NUM_CLIPS - NUM_UNCHOSEN, "chosen": 1}

        assert {url for url in browser.requested() if not url.startswith("data:")} == {path.as_uri()}
        assert browser.complaints() == []
        assert [role for role, name in browser.controls() if not name] == []
        for width in (1280, 390):
            browser.size(width)
            assert browser.cut_off() == []


def test_the_page_says_what_it_cannot_show(made):
    """Two axes of six are not the whole picture, and a sample is not the whole set."""
    store, source, path = made
    first, second = map_of(store, source, 100, 0).plane.explained
    text = path.read_text()
    assert f"{100 * first:.1f} % + {100 * second:.1f} %" in text and "are a sample" not in text
    assert "1 of 12 clips cannot be played here" in text
    assert "a &lt;b&gt;bell&lt;/b&gt; rings" in text and "<b>bell" not in text
    assert "The clips on the map are a sample with seed 3" in as_html(store, source, 6, seed=3)
    small = as_html(store, source, config=AuditionConfig(max_bytes=len(text.encode()) * 2 // 3))
    assert len(small.encode()) <= len(text.encode()) * 2 // 3 and "size limit" in small
    with pytest.raises(ValueError, match="give a lower --num-clips"):
        as_html(store, source, config=AuditionConfig(max_bytes=1000))


def test_a_set_without_embeddings_has_no_map(tmp_path):
    store = Store(tmp_path / "store")
    with pytest.raises(ArtifactError, match="was made without pool embeddings"):
        map_of(store, improvement_set(store, tmp_path / "sounds"), 10, 0)


def test_the_command_writes_the_page(home, answer, tmp_path):
    source = make_set(home.store, tmp_path / "sounds")
    Catalog.open(home).rebuild(home.store)
    code, out, err = answer("map", source.id[:6], tmp_path / "set.html", "--num-clips", 5)
    assert code == 0 and (tmp_path / "set.html").as_uri() in out, err
    assert (tmp_path / "set.html").read_text().count("<tr data-clip") == 5
