"""Labels for an evaluation set: which clips are chosen, the page in a real browser, and its table as evaluation set."""

import csv
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from browser import Browser, chromium
from tiny_yamnet import SMALL
from typer.testing import CliRunner

from clapcur.cli import app
from clapcur.data.improvement_set import ImprovementSet
from clapcur.data.manifest import Manifest
from clapcur.data.report_table import ReportTable
from clapcur.experiments.config import experiment_from_file
from clapcur.flows.improve import improve
from clapcur.models.clap import Clap
from clapcur.stages.audition.labelling import choose_clips
from clapcur.store.home import Home
from clapcur.testing import write_tone, write_tones

pytestmark = pytest.mark.usefixtures("leaves_no_trace")  # of the log that a command writes
CLASSES = ['low "hum", deep', *(f"class {index}" for index in range(2, 12)), "<b>whistle"]
PRESSED = "[...document.querySelectorAll('[aria-pressed=true]')].map(button => Number(button.dataset.answer))"
PLACE = "document.getElementById('place').textContent"


def test_one_clip_of_each_recording_is_chosen_evenly_over_the_predicted_classes() -> None:
    """Clips of one recording are no independent evidence, and a rare class is not in a random sample."""
    groups = {f"c{index:03}": f"r{index // 2}" for index in range(400)}
    predicted = {clip: "rare" if int(group[1:]) < 12 else "common" for clip, group in groups.items()}
    chosen = choose_clips(groups, 20, seed=3, predicted=predicted)
    assert len({groups[clip] for clip in chosen}) == len(chosen) == 20
    assert Counter(predicted[clip] for clip in chosen) == {"rare": 10, "common": 10}
    assert [predicted[clip] for clip in chosen] != sorted(predicted[clip] for clip in chosen), "the order tells"
    assert choose_clips(groups, 20, seed=3, predicted=predicted) == chosen
    assert choose_clips(dict(reversed(groups.items())), 20, seed=3, predicted=predicted) == chosen
    assert choose_clips(groups, 20, seed=4, predicted=predicted) != chosen


def test_a_small_class_gives_all_it_has_and_a_small_pool_all_its_recordings() -> None:
    groups = {f"c{index}": f"r{index}" for index in range(30)}
    predicted = {clip: "rare" if clip in ("c1", "c2") else "common" for clip in groups}
    assert Counter(predicted[clip] for clip in choose_clips(groups, 10, 0, predicted)) == {"rare": 2, "common": 8}
    assert sorted(choose_clips(groups, 100, 0)) == sorted(groups)
    assert len(choose_clips(groups, 7, 0)) == 7


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a table of 10 clips, two of each recording, the last clip without a file."""
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    lines = ["path,recording_id"]
    for index in range(10):
        write_tone(tmp_path / f"sounds/{index}, a.wav", 300 + 300 * index, seed=50 + index, duration_s=1.5)
        lines.append(f'"sounds/{index}, a.wav",freesound:{100 + index // 2}')
    (tmp_path / "pool.csv").write_text("\n".join(lines))
    (tmp_path / "many.txt").write_text("\n".join(CLASSES))
    return tmp_path / "pool.csv"


def label(*arguments: str) -> dict:
    result = CliRunner().invoke(app, ["label", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    said: dict = json.loads(result.stdout.splitlines()[-1])
    return said


def data_of(page: Path) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    found: dict = json.loads(text)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def exported(page: Browser) -> str:
    page.run("document.getElementById('as-text').click()")
    text: str = page.run("document.getElementById('csv').value")
    page.run("document.getElementById('close').click()")
    page.wait("document.activeElement.id !== 'csv'")
    return text


@pytest.fixture
def page(browser: Browser, pool: Path) -> Browser:
    """Open the page of five clips, one of each recording."""
    assert label("pool.csv", "--classes", "many.txt") | {"pool": ""} == {
        "page": (pool.parent / "label.html").as_uri(), "pool": "", "clips": 5, "embedded": 5,
    }  # fmt: skip
    browser.open((pool.parent / "label.html").as_uri())
    browser.run("localStorage.clear()")
    browser.open((pool.parent / "label.html").as_uri())
    return browser


def test_a_person_labels_with_keys_and_clicks_and_exports_the_table(page: Browser, pool: Path) -> None:
    clips = list(data_of(pool.parent / "label.html")["clips"].values())
    assert exported(page) == "path,label,recording_id\n"
    page.press("1")
    assert page.run(PLACE) == "clip 2 of 5" and page.run(PRESSED) == []
    page.press("0")
    page.run("document.querySelector('[data-answer=\"11\"]').click()")
    page.press("u")
    page.press("k")
    assert page.run(PLACE) == "clip 4 of 5" and page.run(PRESSED) == [-2]
    page.press("j")
    page.press("/")
    page.run(
        "(() => { const box = document.getElementById('search'); box.value = 'CLASS 1';"
        "box.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    shown = "[...document.querySelectorAll('#classes button')].filter(one => !one.hidden).length"
    assert page.run(shown) == 2, "class 10 and class 11"
    page.press("1")
    assert page.run(PRESSED) == [], "a digit is part of what is searched for"
    page.press("Enter")
    assert page.run("document.getElementById('count').textContent") == "3 with a class, 1 none of these, 1 unsure"
    rows = list(csv.DictReader(io.StringIO(exported(page))))
    assert [row["label"] for row in rows] == [CLASSES[0], CLASSES[11], "class 11"]
    assert [(row["path"], row["recording_id"]) for row in rows] == [
        (clips[index]["path"], clips[index]["recording_id"]) for index in (0, 2, 4)
    ]
    page.open((pool.parent / "label.html").as_uri())
    assert len(exported(page).splitlines()) == 4, "the labels are there after the page was closed"
    page.press("k")
    page.run("document.getElementById('next').click()")
    page.run("document.querySelector('[data-answer=\"-1\"]').click()")
    assert len(exported(page).splitlines()) == 4 and page.run(PLACE) == "clip 2 of 5", "a second click takes it back"
    assert page.complaints() == [] and [url for url in page.requested() if not url.startswith(("file:", "data:"))] == []


def test_the_sound_plays_and_the_playhead_moves(page: Browser) -> None:
    page.press(" ")
    page.wait("document.getElementById('player').currentTime > 0.05 && document.querySelector('.clip.playing')")
    assert page.run("document.getElementById('player').duration") == pytest.approx(1.5, abs=0.12)
    assert page.run("document.getElementById('play').getAttribute('aria-label')") == "pause"
    page.press(" ")
    page.wait("document.getElementById('player').paused")
    assert float(page.run("document.getElementById('clip').style.getPropertyValue('--at')")) > 0


@pytest.mark.parametrize("width", [1280, 390])
def test_no_width_cuts_the_page_and_every_control_has_a_name(page: Browser, width: int) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    assert page.run("document.documentElement.scrollWidth") <= width
    nameless = page.run(
        "[...document.querySelectorAll('button, input, textarea')].filter((control) =>"
        "!(control.textContent.trim() || control.getAttribute('aria-label') || control.labels?.length)).length"
    )
    assert nameless == 0
    assert page.run("[...document.querySelectorAll('img')].every((image) => image.alt)")


def test_a_model_chooses_but_its_predictions_are_not_on_the_page(pool: Path) -> None:
    """A listener who sees or can guess a prediction tends to agree with it."""
    folder = pool.parent
    (folder / "clap").mkdir()
    Clap.create(SMALL, captions=["low hum", "high whistle"], seed=0).save(folder / "clap")
    assert label("pool.csv", "--classes", "many.txt", "--model", "clap", "--num-clips", "3")["clips"] == 3
    data = data_of(folder / "label.html")
    assert set(data) == {"id", "classes", "clips"}
    fields = {"path", "recording_id", "excerpt", "audio", "image"}
    assert all(set(clip) == fields for clip in data["clips"].values())
    home = Home.open()
    assert {one.record.stage for one in home.store} == {"ingest", "adopt", "embed"}


def test_a_clip_in_a_shard_can_be_evaluated_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with tarfile.open(tmp_path / "pool.tar", "w") as shard:
        for index in range(3):
            shard.add(write_tone(tmp_path / f"{index}.wav", 300 + 300 * index, seed=index), f"{index}.wav")
    (tmp_path / "classes.txt").write_text("hum\nwhistle\n")
    assert label("pool.tar", "--classes", "classes.txt")["embedded"] == 3
    clips = data_of(tmp_path / "label.html")["clips"]
    table = io.StringIO()
    csv.writer(table).writerows([("path", "label", "recording_id")] + [
        (clip["path"], "hum", clip["recording_id"]) for clip in clips.values()
    ])  # fmt: skip
    (tmp_path / "labels.csv").write_text(table.getvalue())
    result = CliRunner().invoke(app, ["ingest", "labels.csv", "--role", "evaluation", "--json"])
    manifest = Manifest.open(Home.open().store.find(json.loads(result.stdout)["id"]))
    assert set(manifest.clips.clip_id) == set(clips) and set(manifest.clips.label) == {"hum"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["pool.csv", "--classes", "nowhere.txt"], 1, "nowhere.txt"),
        (["nowhere/", "--classes", "many.txt"], 1, "nowhere/"),
        (["pool.csv", "--classes", "many.txt", "--html", "many.txt"], 1, "many.txt already exists"),
    ],
)
def test_wrong_input_is_one_line(
    pool: Path, answer: Callable[..., tuple[int, str, str]], arguments: list[str], code: int, said: str
) -> None:
    status, _, err = answer("label", *arguments)
    assert status == code and said in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_was_labelled_is_evaluated_on_and_never_trained_on(
    browser: Browser, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label that comes from the pool would measure memory, if a clip of its recording stayed in a set."""
    folder = pool.parent
    config = write_tones(folder)
    label("pool.csv", "--classes", "classes.txt", "--num-clips", "3")
    browser.open((folder / "label.html").as_uri())
    browser.run("localStorage.clear()")
    browser.open((folder / "label.html").as_uri())
    for key in "121":
        browser.press(key)
    (folder / "labels.csv").write_text(exported(browser))
    paths = ["--pairs", "pairs.csv", "--pool", "pool.csv", "--classes", "classes.txt", "--evaluation", "labels.csv"]
    tried = CliRunner().invoke(app, ["improve", *paths, "--dry-run", "--json"])
    assert tried.exit_code == 0, tried.output

    values = yaml.safe_load(config.read_text()) | {"pool": "pool.csv", "evaluation": "labels.csv"}
    config.write_text(yaml.safe_dump(values))
    table = ReportTable.open(improve.fn(experiment_from_file(config)))
    assert table.is_measured and table.protocol.num_clips == 3
    assert {line.contamination.status for line in table.rows} == {"clean"}
    home = Home.open()
    student = next(line for line in table.rows if line.row.is_student)
    chosen = ImprovementSet.open(home.store.find(student.by_seed[0].improvement_set))
    recordings = {row["recording_id"] for row in csv.DictReader(io.StringIO((folder / "labels.csv").read_text()))}
    (heard,) = [
        Manifest.open(one) for one in home.store.of_kind("manifest")
        if one.record.stage == "ingest" and one.record.tags["role"] == "pool"
    ]  # fmt: skip
    trained_on = set(chosen.pairs(["clip_id"])["clip_id"])
    assert len(trained_on) == 4 and len(recordings) == 3
    assert not {heard.groups[clip] for clip in trained_on} & recordings
