"""The report: every number against one worked out by hand on four clips, and a page that stands alone."""

import csv
import html
import io
import json
import re
import time
from html.parser import HTMLParser

import pandas as pd
import pytest
from browser import chromium

from clapcur.data.report_table import Change, ReportTable
from clapcur.data.scores import Contamination
from clapcur.errors import ArtifactError, DataError
from clapcur.stages.report import STAGE, ReportConfig, ReportRow, render
from clapcur.store.artifacts import Artifact, Stage, Store, write_atomic
from clapcur.store.record import Outcome
from clapcur.testing import commit, report_line, report_table

LABELS = ["dog", "dog", "rain", "rain"]
GROUPS = ["walk", "walk", "storm", "storm"]  # two recordings of two clips each
PROTOCOL = {
    "task": "zero-shot classification", "prompt": "this is a sound of {}", "num_classes": 2, "num_clips": 4,
    "num_recordings": 2, "class_names_sha256": "c" * 64, "crops": 1, "interval": "bootstrap over recordings, 95%",
    "seed": 0,
}  # fmt: skip

# which of the four clips each checkpoint gets right
TEACHER = {0: [1, 0, 0, 0], 1: [1, 1, 0, 0]}
CONTINUED = {0: [1, 0, 1, 0], 1: [0, 1, 1, 0]}
ADS_SL = {0: [1, 1, 1, 0], 1: [1, 1, 1, 1]}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def checkpoint(store, name, seed, improvement_set=None, num_examples=640):
    """Make a checkpoint of nothing but its record, as a training leaves it."""
    stage = Stage("train", "1", "checkpoint", lambda inputs, config, work: Outcome())
    inputs = {"improvement_set": improvement_set} if improvement_set else {}
    key = stage.key({"name": name, "seed": seed, "num_examples": num_examples, "selection": "held_out"}, inputs)
    return store.get(key) or store.commit(store.open(key), Outcome(), time.time())


CLEAN = {"status": "clean", "num_clips": 0, "by_reason": {"clip": 0, "recording": 0}, "examples": {}, "unknown": []}


def scores(store, name, right, made=None, labels=LABELS, contamination=CLEAN, **protocol):
    """Make scores of a checkpoint that is right on these clips; transductively it is right on the first clip too."""
    made = made or checkpoint(store, name, 0)
    wrong = {"dog": "rain", "rain": "dog", "bell": "rain"}

    def predictions(right):
        return [label if is_right else wrong[label] for label, is_right in zip(labels, right, strict=True)]

    def write(work):
        said = {
            "accuracy": sum(right) / 4,
            "interval": [0.0, 1.0],
            "transductive": 0.5,
            "protocol": PROTOCOL | protocol,
            "contamination": contamination,
        }
        write_atomic(work.path / "scores.json", json.dumps(said))
        table = {
            "clip_id": [f"clip-{index}" for index in range(len(labels))], "group": GROUPS, "label": labels,
            "predicted": predictions(right), "transductive": predictions([1, *right[1:]]),
        }  # fmt: skip
        # the stage may write its clips in any order
        pd.DataFrame(table).sample(frac=1, random_state=len(name)).to_parquet(work.path / "predictions.parquet")

    return commit(store, "scores", name, write, {"checkpoint": made})


def make_report(store, config, inputs) -> Artifact:
    inputs = inputs | {
        f"checkpoint.{role}": store.find(one.record.inputs["checkpoint"])
        for role, one in inputs.items()
        if one.kind == "scores"
    }
    work = store.open(STAGE.key(config, inputs))
    return store.commit(work, STAGE.compute(inputs, config, work), time.time())


def comparison(store, **rows):
    """Make a report; the keywords are the rows' names, their values what is right by seed."""
    lines, inputs = [], {}
    for name, by_seed in rows.items():
        strategy, _, soft = name.partition("_")
        for seed, right in by_seed.items():
            role = f"scores.{name}.seed{seed}"
            chosen = None
            if strategy in ("du", "ds", "ads"):
                chosen = commit(
                    store, "improvement_set", role, lambda work: write_atomic(work.path / "card.json", "{}")
                )
            inputs[role] = scores(store, role, right, checkpoint(store, name, seed, chosen))
            is_soft = bool(soft) or strategy == "sl"
            lines.append(ReportRow(strategy=strategy, soft_labels=is_soft, seed=seed, scores=role))
    return make_report(store, ReportConfig(title="four clips", rows=tuple(lines)), inputs)


def row(report, name):
    return next(line for line in ReportTable.open(report).rows if line.name == name)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("report") / "store")
    return comparison(store, ads_sl=ADS_SL, continued=CONTINUED, teacher=TEACHER)


def test_accuracy_is_the_mean_over_seeds_and_sd_their_spread(report):
    """A pooled or a last-seed accuracy looks as plausible."""
    assert row(report, "teacher").accuracy == pytest.approx((0.25 + 0.5) / 2)
    assert row(report, "ADS+SL").accuracy == pytest.approx((0.75 + 1.0) / 2)
    assert row(report, "teacher").sd == pytest.approx(0.25 / 2**0.5)  # of 0.25 and 0.5, divisor n - 1
    assert row(report, "ADS+SL").num_seeds == 2


def test_the_interval_draws_whole_recordings(report):
    """Clips of one recording are alike: drawn singly they make the interval too narrow.

    Of two recordings the bootstrap draws the first twice, the second twice (a quarter each) or both: the 95 % interval
    goes from the worse recording's mean to the better one's.
    """
    assert row(report, "ADS+SL").interval == pytest.approx([0.75, 1.0])  # storm: (1 + 1 + 0 + 1) / 4, walk: 1
    assert row(report, "teacher").interval == pytest.approx([0.0, 0.75])  # storm: 0, walk: (1 + 0 + 1 + 1) / 4


def test_changes_pair_every_seed_with_the_base_of_the_same_seed(report):
    """Seeds differ by more than strategies do: unpaired, the gain drowns in them."""
    gain = row(report, "ADS+SL")
    assert gain.vs_teacher.change == pytest.approx(((0.75 - 0.25) + (1.0 - 0.5)) / 2)
    assert gain.vs_teacher.interval == pytest.approx([0.25, 0.75])  # walk: (0 + 1 + 0 + 0) / 4, storm: 3 / 4
    assert gain.vs_continued.change == pytest.approx(((0.75 - 0.5) + (1.0 - 0.5)) / 2)
    assert gain.vs_continued.interval == pytest.approx([0.25, 0.5])  # storm: (0 + 0 + 0 + 1) / 4, walk: 2 / 4
    assert gain.vs_teacher.num_seeds == 2


def test_a_student_that_changes_nothing_has_no_interval_around_zero(store):
    """The interval of a change is that of the differences: as good as equal must read as equal."""
    report = comparison(store, teacher=TEACHER, continued=TEACHER)
    assert row(report, "continued").vs_teacher == Change(change=0.0, interval=(0.0, 0.0), num_seeds=2)


def test_teacher_and_control_are_not_compared_with_themselves(report):
    """A change of +0.0 in the teacher's line would be read as a result."""
    assert row(report, "teacher").vs_teacher is None and row(report, "teacher").vs_continued is None
    assert row(report, "continued").vs_continued is None
    assert row(report, "continued").vs_teacher.change == pytest.approx((0.5 + 0.5 - 0.25 - 0.5) / 2)


def test_transductive_accuracy_stands_apart_and_changes_against_the_teachers(report):
    """Mixed with the inductive score it would claim a gain that needs the whole batch."""
    gain = row(report, "ADS+SL")
    assert gain.transductive == pytest.approx((0.75 + 1.0) / 2)
    control = row(report, "continued")  # its seed 1 is wrong on the first clip, transductively right
    assert control.transductive == pytest.approx((0.5 + 0.75) / 2)
    assert control.transductive_vs_teacher.change == pytest.approx((0.5 - 0.25 + 0.75 - 0.5) / 2)


def test_seeds_without_a_partner_are_left_out_of_the_change(store):
    """A third student seed compared with another seed's teacher is no paired comparison."""
    report = comparison(store, teacher=TEACHER, ads={**ADS_SL, 2: [0, 0, 0, 0]})
    assert row(report, "ADS").num_seeds == 3
    assert row(report, "ADS").vs_teacher.change == pytest.approx(0.5)
    assert row(report, "ADS").vs_teacher.num_seeds == 2


def test_one_teacher_is_the_base_of_every_seed(store):
    """Students of several seeds may come from one teacher: each is compared with it."""
    report = comparison(store, teacher={0: TEACHER[0]}, ads=ADS_SL)
    assert row(report, "ADS").vs_teacher.change == pytest.approx(((0.75 - 0.25) + (1.0 - 0.25)) / 2)


def test_rows_stand_in_the_papers_order_whatever_order_they_came_in(store):
    """Tables that are read side by side must have their rows in one order."""
    one = {0: [1, 0, 0, 0]}
    names = ("ads_sl", "du", "sl", "ds_sl", "teacher", "ads", "du_sl", "continued", "ds")
    report = comparison(store, **dict.fromkeys(names, one))
    order = ["teacher", "continued", "SL", "DU", "DU+SL", "DS", "DS+SL", "ADS", "ADS+SL"]
    assert [line.name for line in ReportTable.open(report).rows] == order


def test_a_score_without_a_teacher_has_no_change(store):
    """A comparison without its base must not invent one."""
    report = comparison(store, ads=ADS_SL)
    assert row(report, "ADS").vs_teacher is None
    assert not (report.path / "per_class.png").exists()


def test_every_seed_keeps_the_ids_that_made_it(report):
    """A number without its checkpoint and set cannot be traced."""
    store = Store(report.path.parents[1])
    line = row(report, "ADS+SL").by_seed[1]
    scored = store.find(line.scores).record
    assert scored.inputs["checkpoint"] == line.checkpoint
    assert store.find(line.checkpoint).record.inputs["improvement_set"] == line.improvement_set
    assert line.seed == 1 and line.accuracy == 1.0 and line.interval == (0.0, 1.0)
    assert row(report, "teacher").by_seed[0].improvement_set is None


def test_the_record_has_the_accuracy_of_every_row_under_names_that_mlflow_takes(report):
    """MLflow refuses a whole batch of metrics for one name with a plus in it."""
    metrics = report.record.metrics
    assert metrics == pytest.approx({"accuracy.teacher": 0.375, "accuracy.continued": 0.5, "accuracy.ads_sl": 0.875})
    assert all(re.fullmatch(r"[\w.\-/ ]+", name) for name in metrics)


@pytest.mark.parametrize(
    ("difference", "complaint"),
    [
        (
            {"prompt": "a recording of {}"},
            r"different protocols \(prompt: 'this is a sound of \{\}' and 'a recording of",
        ),
        ({"class_names_sha256": "d" * 64}, "class_names_sha256"),
        ({"crops": 5}, "crops: 1 and 5"),
        ({"labels": ["bell", *LABELS[1:]]}, "different clips or labels"),
    ],
)
def test_rows_under_different_protocols_are_refused(store, difference, complaint):
    """A prompt alone moves accuracy by more than any strategy: such rows cannot are in one table."""
    inputs = {"a": scores(store, "a", TEACHER[0]), "b": scores(store, "b", ADS_SL[0], **difference)}
    rows = (ReportRow(strategy="teacher", scores="a"), ReportRow(strategy="ads", scores="b"))
    with pytest.raises(DataError, match=complaint):
        make_report(store, ReportConfig(title="unlike", rows=rows), inputs)


def test_unequal_budgets_are_said_aloud(store):
    """A row that saw twice the examples wins for that reason."""
    inputs = {
        "a": scores(store, "a", TEACHER[0]),
        "b": scores(store, "b", ADS_SL[0], checkpoint(store, "b", 0, num_examples=640)),
        "c": scores(store, "c", ADS_SL[1], checkpoint(store, "c", 0, num_examples=1280)),
    }
    rows = tuple(ReportRow(strategy=s, scores=role) for s, role in (("teacher", "a"), ("du", "b"), ("ads", "c")))
    made = make_report(store, ReportConfig(title="unlike", rows=rows), inputs)
    assert "UNEQUAL sample budgets (640, 1,280 pairs)" in (made.path / "table.md").read_text()


def test_what_is_no_zero_shot_score_is_refused(store):
    """Retrieval scores have an accuracy of nothing."""

    def write(work):
        write_atomic(work.path / "scores.json", json.dumps({"protocol": PROTOCOL | {"task": "retrieval"}}))

    inputs = {"a": commit(store, "scores", "retrieval", write, {"checkpoint": checkpoint(store, "x", 0)})}
    config = ReportConfig(title="x", rows=(ReportRow(strategy="teacher", scores="a"),))
    with pytest.raises(ArtifactError, match="expected zero-shot scores, .* scores of retrieval"):
        make_report(store, config, inputs)
    with pytest.raises(ArtifactError, match="expected an artifact of kind scores, got the checkpoint"):
        made = checkpoint(store, "x", 0)
        make_report(store, config, {"a": made, "checkpoint.a": made})
    with pytest.raises(ValueError, match="missing inputs of the report: a, checkpoint.a"):
        make_report(store, config, {})


def test_a_row_twice_is_refused():
    """The second would silently take the place of the first."""
    twice = ReportRow(strategy="ads", soft_labels=True, seed=3, scores="x")
    with pytest.raises(ValueError, match=r"repeated: ADS\+SL of seed 3"):
        ReportConfig(title="x", rows=(twice, twice))
    with pytest.raises(ValueError, match="at least one row"):
        ReportConfig(title="x", rows=())


def test_the_csv_holds_the_tables_numbers(report):
    """A file that people compute with must not be rounded, nor shifted by a column."""
    lines = {line["name"]: line for line in csv.DictReader(io.StringIO((report.path / "table.csv").read_text()))}
    for name in ("teacher", "continued", "ADS+SL"):
        expected, line = row(report, name), lines[name]
        assert float(line["accuracy"]) == expected.accuracy
        assert [float(line["interval_low"]), float(line["interval_high"])] == list(expected.interval)
    assert float(lines["ADS+SL"]["vs_teacher_low"]) == pytest.approx(0.25)
    assert lines["teacher"]["vs_teacher"] == "" and lines["teacher"]["vs_teacher_high"] == ""


def test_the_markdown_table_is_whole_and_marks_what_is_clear(report):
    """A row with a cell too few breaks the table where it is pasted."""
    text = (report.path / "table.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 and len({line.count("|") for line in lines}) == 1
    assert "| ADS+SL | 87.5 ± 17.7 | 75.0 to 100.0 | **+50.0 (+25.0 to +75.0)** |" in lines[-1]
    assert "| continued | 50.0 ± 0.0 |" in lines[-2] and "**" not in lines[-2]
    assert "equal sample budgets: every row except the teacher saw 640 more pairs" in text


class Links(HTMLParser):
    """Collects everything that a page would load, and its text."""

    def __init__(self):
        super().__init__()
        self.loads, self.text, self.tags = [], "", set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


def test_the_page_loads_nothing_and_names_every_checkpoint(report):
    """A report is mailed and opened years later: an external style or image would be gone, or call home."""
    page = (report.path / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert len(links.loads) == 2 and all(link.startswith("data:image/png;base64,") for link in links.loads)
    assert "url(" not in page and "@import" not in page and not links.tags & {"script", "link", "iframe"}
    for _, seed in ReportTable.open(report).seeds:
        assert seed.checkpoint in links.text and seed.scores in links.text
    for number in ("87.5", "+25.0 to +75.0", "37.5"):
        assert number in links.text


def test_text_of_others_cannot_become_markup(store):
    """A dataset may be named by a stranger."""
    inputs = {"a": scores(store, "a", TEACHER[0])}
    rows = (ReportRow(strategy="teacher", scores="a"),)
    made = make_report(store, ReportConfig(title="<script>x</script>", rows=rows, note="a & <b>"), inputs)
    page = (made.path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "a &amp; &lt;b&gt;" in page


def test_the_same_scores_make_the_same_bytes(tmp_path):
    """A report that differs by its time of making cannot be checked by recomputing it."""
    made = [comparison(Store(tmp_path / name), teacher=TEACHER, ads=ADS_SL) for name in ("one", "two")]
    digests = [{name: entry["sha256"] for name, entry in report.record.files.items()} for report in made]
    assert made[0].id == made[1].id and digests[0] == digests[1]
    assert set(digests[0]) == {
        "table.json", "table.csv", "table.md", "accuracy.png", "per_class.png", "report.html"
    }  # fmt: skip


def test_no_two_columns_have_one_name(report):
    """Two columns "vs teacher" look as if one number stood in the table twice."""
    for text, cell in (
        ((report.path / "table.md").read_text().splitlines()[2].strip("| "), r"\s*\|\s*"),
        (re.findall(r"<thead>(.*?)</thead>", (report.path / "report.html").read_text(), re.S)[0], r"<[^>]+>+\s*"),
    ):
        names = [name for name in re.split(cell, text) if name]
        assert len(names) == len(set(names)) >= 6 and "transductive vs teacher" in names


@pytest.mark.parametrize("width", [1280, 390])
def test_no_width_hides_a_number_of_the_page(report, width):
    """On a phone, the columns to the right are never seen: each row becomes a block that names its numbers."""
    with chromium() as browser:
        browser.open((report.path / "report.html").as_uri())
        browser.size(width)
        assert browser.cut_off() == []
        hidden = browser.run(
            "[...document.querySelectorAll('td')].filter((cell) => {const box = cell.getBoundingClientRect();"
            "return box.width < 1 || box.right > document.documentElement.clientWidth}).length"
        )
        assert hidden == 0
        unnamed = "[...document.querySelectorAll('td')].filter((cell) => !cell.dataset.column).length"
        assert browser.run(unnamed) == 0
        assert [role for role, name in browser.controls() if not name] == []


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_table_shows_every_number(report, width):
    """A cell that is cut off shows another number: at the usual 80 columns it must break instead."""
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render(ReportTable.open(report).rows))
    shown = console.file.getvalue()
    for text in ("ADS+SL", "87.5 ±17.7", "75.0-100.0", "+50.0", "[+25.0,+75.0]", "+37.5", "[+25.0,+50.0]"):
        assert text in shown


def test_only_a_report_has_a_table(store):
    """Another kind's folder has no table.json, which would be told as a lost file."""
    with pytest.raises(ArtifactError, match="expected an artifact of kind report, got the checkpoint"):
        ReportTable.open(checkpoint(store, "x", 0))


def test_a_row_whose_clips_its_checkpoint_has_learned_from_is_marked_wherever_it_is_shown(store):
    """A contaminated accuracy looks like any other, only better."""
    from rich.console import Console

    known = CLEAN | {"status": "contaminated", "num_clips": 3, "by_reason": {"clip": 1, "recording": 2}}
    inputs = {
        "a": scores(store, "a", TEACHER[0]),
        "b": scores(store, "b", ADS_SL[0]),
        "c": scores(store, "c", ADS_SL[1], contamination=known),
        "d": scores(store, "d", ADS_SL[1], contamination=CLEAN | {"status": "unknown"}),
    }
    rows = (
        ReportRow(strategy="teacher", scores="a"),
        *(ReportRow(strategy="ads", seed=seed, scores=role) for seed, role in enumerate("bc")),
        ReportRow(strategy="du", scores="d"),
    )
    made = make_report(store, ReportConfig(title="leak", rows=rows), inputs)
    spoilt = Contamination(status="contaminated", num_clips=3, by_reason={"clip": 1, "recording": 2})
    assert row(made, "ADS").contamination == spoilt, "one seed spoils the mean"
    said = "† CONTAMINATED: ADS was trained on 3 of its evaluation clips (1 by the clip itself, 2 by"
    text = (made.path / "table.md").read_text()
    assert "| ADS † |" in text and said in text and "| teacher |" in text
    assert "no contamination: teacher was not trained on these clips" in text
    assert "contamination unknown: no record of whether DU was trained on these clips" in text
    page = Links()
    page.feed((made.path / "report.html").read_text())
    assert "ADS †" in page.text and said in page.text
    lines = {line["name"]: line for line in csv.DictReader(io.StringIO((made.path / "table.csv").read_text()))}
    assert (lines["ADS"]["contamination"], lines["ADS"]["contaminated_clips"]) == ("contaminated", "3")
    assert (lines["teacher"]["contamination"], lines["teacher"]["contaminated_clips"]) == ("clean", "0")
    console = Console(width=120, file=io.StringIO(), color_system=None)
    console.print(render(ReportTable.open(made).rows))
    shown = " ".join(console.file.getvalue().split())
    assert "ADS †" in shown and "trained on 3 of its evaluation clips" in shown


def changed_by(points, low, high):
    return Change(change=points / 100, interval=(low / 100, high / 100), num_seeds=1)


@pytest.mark.parametrize(
    ("lines", "said", "to_use"),
    [
        (
            {"ADS+SL": {"vs_teacher": changed_by(-4.0, -11.7, 2.5)}},
            "ADS+SL is not better than its teacher: -4.0 [-11.7, +2.5] points. Keep the teacher. The interval spans "
            "14 points: more evaluation clips from more recordings would narrow it.",
            "teacher",
        ),
        (
            {"DS": {"vs_teacher": changed_by(-4.0, -6.0, -2.0)}},
            "DS is worse than its teacher: -4.0 [-6.0, -2.0] points. Keep the teacher.",
            "teacher",
        ),
        (
            {"ADS": {"vs_teacher": changed_by(5, 2, 8), "vs_continued": changed_by(3, 1, 5)}},
            "ADS is better than its teacher: +5.0 [+2.0, +8.0] points. Use ADS.",
            "ADS",
        ),
        (
            {
                "DU": {"vs_teacher": changed_by(1, -1, 3), "accuracy": 0.51},
                "ADS": {"vs_teacher": changed_by(5, 2, 8), "vs_continued": changed_by(0.4, -1, 2), "accuracy": 0.55},
            },
            "ADS is better than its teacher: +5.0 [+2.0, +8.0] points. It is not better than the continued teacher "
            "(+0.4 [-1.0, +2.0]): the gain may come from more training instead of the new pairs. It is the best of 2 "
            "students; the interval does not correct for this selection. Use ADS.",
            "ADS",
        ),
        (
            {
                "ADS": {
                    "vs_teacher": changed_by(5, 2, 8),
                    "contamination": Contamination(status="contaminated", num_clips=3, by_reason={"clip": 3}),
                }
            },
            "ADS is better than its teacher: +5.0 [+2.0, +8.0] points. The scores of ADS are contaminated: some "
            "evaluation clips were used in training. Use ADS.",
            "ADS",
        ),
    ],
)
def test_the_verdict_says_in_words_which_model_to_use(lines, said, to_use):
    """It recommended the best student, which had lost 4 points against its teacher."""
    rows = [report_line("teacher"), report_line("continued")]
    table = report_table([*rows, *(report_line(name, **fields) for name, fields in lines.items())])
    assert table.verdict.text == said
    assert table.verdict.line.name == to_use and table.verdict.checkpoint == "c"


def test_without_a_teacher_or_a_student_there_is_no_verdict():
    assert report_table([report_line("teacher"), report_line("continued")]).verdict is None
    assert report_table([report_line("ADS", vs_teacher=None)]).verdict is None


def test_the_verdict_is_on_every_page_and_in_the_record(report):
    verdict = ReportTable.open(report).verdict
    assert verdict.text == report.record.facts["verdict"]
    assert verdict.text in (report.path / "table.md").read_text().replace("**", "")
    page = (report.path / "report.html").read_text()
    assert f'<p class="verdict">{html.escape(verdict.text)}</p>' in page
