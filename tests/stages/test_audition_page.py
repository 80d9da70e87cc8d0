"""The audition page in a real browser: what is heard, hidden, sorted, marked and exported."""

import csv
import io
import json
import time
from collections.abc import Iterator

import pytest
from audition_tools import CLASSES, Audition, make_audition
from browser import Browser, chromium

from clapcur.data.marks import read_marks
from clapcur.store.artifacts import Store

CAPTIONS = "[...document.querySelectorAll('.pair')].map(row => row.querySelector('.caption').textContent)"
SIMILARITIES = "[...document.querySelectorAll('.scores strong')].map(cell => Number(cell.textContent))"
ROWS = "document.querySelectorAll('.pair').length"
EXPORTED = "document.getElementById('csv').value"


@pytest.fixture(scope="module")
def audition(tmp_path_factory: pytest.TempPathFactory) -> Audition:
    """Make a page of 12 pairs in three classes, one clip of which is not at its place."""
    folder = tmp_path_factory.mktemp("audition")
    return make_audition(Store(folder / "store"), folder / "sounds", num_pairs=12, missing=1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, audition: Audition) -> Browser:
    """Open the page from disk, with nothing marked."""
    browser.open(audition.page.as_uri())
    browser.run("localStorage.clear()")
    browser.open(audition.page.as_uri())
    return browser


def choose(page: Browser, control: str, value: str) -> None:
    """Set a control of the page as a user does, whose change the page is told."""
    page.run(
        f"(() => {{ const box = document.getElementById('{control}'); box.value = {json.dumps(value)};"
        "box.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def exported(page: Browser) -> list[dict[str, str]]:
    page.run("document.getElementById('as-text').click()")
    text = page.run(EXPORTED)
    page.run("document.getElementById('close').click()")
    return list(csv.DictReader(io.StringIO(text)))


def test_every_sound_decodes_and_every_spectrogram_shows(page, audition):
    """A page whose sounds are of a kind that browsers refuse looks whole until somebody presses play."""
    widths = page.run(
        "Promise.all([...document.querySelectorAll('.pair:not(.silent)')].map(async (row) => {"
        "  await row.querySelector('img').decode();"
        "  return row.querySelector('img').naturalWidth;"
        "}))"
    )
    assert widths and set(widths) == {256}
    lasting = []
    for index in range(len(widths)):
        page.run(f"document.querySelectorAll('.pair:not(.silent) .play')[{index}].click()")
        page.wait("document.getElementById('player').readyState >= 2 && document.querySelector('.pair.playing')")
        lasting.append(page.run("document.getElementById('player').duration"))
        page.run("document.querySelector('.pair.playing .play').click()")
        page.wait("document.getElementById('player').paused")
    assert lasting == pytest.approx([audition.seconds] * len(lasting), abs=0.12)
    assert page.complaints() == []


def test_the_playhead_moves_and_a_click_on_the_spectrogram_seeks(page):
    """A decoded sound that does not run is silence; a seek that misses sends the ear to the wrong place."""
    page.run("document.querySelector('.pair:not(.silent) .play').click()")
    page.wait("document.getElementById('player').currentTime > 0.05")
    box = page.run("(() => { const b = document.querySelector('.pair.playing .scope').getBoundingClientRect();"
                   "return [b.left, b.top, b.width, b.height]; })()")  # fmt: skip
    page.run(
        "document.querySelector('.pair.playing .scope').dispatchEvent(new MouseEvent('click', "
        f"{{clientX: {box[0] + 0.5 * box[2]}, clientY: {box[1] + 5}, bubbles: true}}))"
    )
    half = page.run("document.getElementById('player').duration / 2")
    page.wait(f"document.getElementById('player').currentTime >= {half - 0.01}")
    page.wait("parseFloat(document.querySelector('.pair.begun').style.getPropertyValue('--at')) > 0.45")


def test_the_page_asks_for_nothing_but_itself(page, audition):
    """One font or script from elsewhere tells others who listens, and is gone years later."""
    page.run("document.querySelector('.pair:not(.silent) .play').click()")
    assert {url for url in page.requested() if not url.startswith("data:")} == {audition.page.as_uri()}


def test_a_class_a_reason_and_words_hide_the_other_rows(page, audition):
    """A filter that hides too little mixes classes, one that hides too much hides pairs nobody hears."""
    pairs = audition.pairs
    assert page.run(ROWS) == len(pairs) == 12
    choose(page, "class", "rain")
    assert sorted(page.run(CAPTIONS)) == sorted(pairs.caption[pairs["class"] == "rain"])
    choose(page, "reason", "border")
    expected = pairs[(pairs["class"] == "rain") & (pairs.reason == "border")]
    assert page.run(ROWS) == len(expected) > 0
    assert page.run("document.getElementById('shown').textContent") == f"{len(expected)} of 12 pairs"
    choose(page, "class", "")
    choose(page, "reason", "")
    choose(page, "search", "FALLS rain")
    assert sorted(page.run(CAPTIONS)) == sorted(pairs.caption[pairs.caption.str.contains("falls")])
    choose(page, "search", "no such words")
    assert page.run(ROWS) == 0 and not page.run("document.getElementById('none').hidden")


def test_orders(page, audition):
    """Text order would put 0.9 before 0.10, and an order that does nothing is not noticed among random scores."""
    similarity = audition.pairs.similarity.round(3)
    assert page.run(SIMILARITIES) == similarity.tolist()  # as chosen: the classes in turn
    choose(page, "sort", "similarity-down")
    assert page.run(SIMILARITIES) == sorted(similarity, reverse=True)
    choose(page, "sort", "similarity-up")
    assert page.run(SIMILARITIES) == sorted(similarity)
    choose(page, "sort", "class")
    classes = page.run("[...document.querySelectorAll('.about b')].map(cell => cell.textContent)")
    assert classes == sorted(audition.pairs["class"])
    choose(page, "sort", "class_similarity-up")
    scores = page.run("[...document.querySelectorAll('.scores .to-class')].map(cell => cell.textContent)")
    assert [float(text.split()[-1]) for text in scores] == sorted(audition.pairs.class_similarity.round(3))


def test_keys_move_mark_and_play(page, audition):
    """Hundreds of pairs are heard with the keyboard or not at all; keys typed into the search are words."""
    first, second = audition.pairs.iloc[0], audition.pairs.iloc[1]
    page.run("document.getElementById('follow').checked = false")
    page.press("x")
    page.press("j")
    page.press("r")
    assert [(row["clip_id"], row["mark"]) for row in exported(page)] == [
        (first.clip_id, "wrong"), (second.clip_id, "right")
    ]  # fmt: skip
    page.press("r")  # again: taken back
    page.press("k")
    assert [row["mark"] for row in exported(page)] == ["wrong"]
    assert page.run("document.querySelector('[aria-current=true] .caption').textContent") == first.caption
    page.press(" ")
    page.wait("document.querySelector('[aria-current=true].playing')")
    page.press(" ")
    page.wait("document.getElementById('player').paused")
    page.press("/")
    page.press("x")
    assert page.run("document.getElementById('search').value") == "x"
    assert len(exported(page)) == 1


def test_the_export_is_a_table_that_can_be_read(page, audition, tmp_path):
    """Marks that do not come back by id judge other pairs than those that were heard."""
    expected = audition.pairs.sort_values(["clip_id", "caption_id"]).head(5)
    for clip, caption in zip(expected.clip_id, expected.caption_id, strict=True):
        index = audition.index(clip, caption)
        page.run(f"document.querySelectorAll('.pair')[{index}].querySelector('[data-mark=wrong]').click()")
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), eventsEnabled=False)
    page.run("document.getElementById('export').click()")
    path = tmp_path / f"marks-{audition.set_id}.csv"
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = list(csv.DictReader(io.StringIO(path.read_text())))
    assert sorted(zip(*expected[["caption", "path"]].T.values, strict=True)) == sorted(
        (line["caption"], line["path"]) for line in lines
    )  # for people
    marks = read_marks(path)
    assert marks.mark.tolist() == ["wrong"] * 5
    assert (
        marks[["clip_id", "caption_id", "class"]].values.tolist()
        == expected[["clip_id", "caption_id", "class"]].values.tolist()
    )
    assert marks.similarity.tolist() == pytest.approx(expected.similarity.tolist(), abs=1e-6)


def test_marks_are_there_when_the_page_is_opened_again(page, audition):
    """An hour of listening must not end with a closed tab."""
    page.press("x")
    page.open(audition.page.as_uri())
    assert [row["mark"] for row in exported(page)] == ["wrong"]
    assert page.run("document.querySelector('.pair').dataset.mark") == "wrong"
    choose(page, "mark", "wrong")
    assert page.run(ROWS) == 1
    choose(page, "mark", "none")
    assert page.run(ROWS) == 11


def test_a_pair_without_its_file_says_so(page, audition):
    """A dead play button reads as a broken page."""
    assert page.run("document.querySelectorAll('.pair.silent').length") == audition.num_silent > 0
    assert page.run("document.querySelector('.pair.silent .why').textContent") == "file not found"
    assert page.run("document.querySelector('.pair.silent .play').disabled")
    assert page.run("document.querySelector('.pair.silent .place').textContent").endswith(".wav")


def test_it_works_in_the_artifact_view_of_mlflow(browser, audition, tmp_path):
    """MLflow shows the page from a blob in a frame that may only run scripts: storage throws, downloads are dropped."""
    outer = tmp_path / "mlflow.html"
    outer.write_text("<!doctype html><iframe id=html sandbox=allow-scripts width=900 height=600></iframe>")
    browser.open(outer.as_uri())
    browser.run(
        f"document.getElementById('html').src = URL.createObjectURL(new Blob([{json.dumps(audition.page.read_text())}],"
        "{type: 'text/html'}))"
    )
    with browser.inside_frame():
        browser.wait("document.readyState === 'complete' && document.querySelector('.pair') !== null")
        with pytest.raises(RuntimeError, match="sandboxed"):
            browser.run("localStorage.length")
        assert not browser.run("document.getElementById('unsaved').hidden")
        browser.run("document.querySelector('.pair:not(.silent) .play').click()")
        browser.wait("document.getElementById('player').currentTime > 0.05")
        assert browser.run("document.getElementById('player').duration") == pytest.approx(audition.seconds, abs=0.12)
        browser.run("document.querySelector('.pair [data-mark=wrong]').click()")
        (row,) = exported(browser)
        assert (row["clip_id"], row["mark"]) == (audition.pairs.clip_id[0], "wrong")
        browser.run("document.getElementById('export').click()")
        assert browser.run("document.getElementById('text').open")
        assert browser.run(EXPORTED).count("\n") == 2


@pytest.mark.parametrize("width", [1280, 700, 380])
def test_no_width_cuts_the_page(page, width):
    """MLflow gives the page half a window; a phone less. What sticks out to the right is not seen."""
    page.size(width)
    assert page.cut_off() == []


def test_controls_have_names(page, audition):
    """Without a name that tells the pairs apart, a screen reader says "play" two hundred times."""
    controls = page.controls()
    assert [role for role, name in controls if not name] == []
    captions = audition.pairs.caption
    for word in ("play “{}”", "right: “{}”", "wrong: “{}”"):
        assert sum(name in [word.format(text) for text in captions] for _, name in controls) == len(captions)
    assert {("checkbox", "play as you move"), ("searchbox", "search"), ("combobox", "class")} <= set(controls)
    assert set(CLASSES) <= set(page.run("[...document.getElementById('class').options].map(option => option.value)"))
