"""The command line: what programs read on stdout, what people read when something is wrong, and how fast it answers."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import sqlalchemy as sa
import typer
from addressed_sounds import sound, write_tar
from command_runs import run

from clapcur import cli
from clapcur.audio.addresses import readable
from clapcur.data.improvement_set import SCHEMA
from clapcur.data.manifest import Manifest, caption_id
from clapcur.errors import Interrupted
from clapcur.lineage import pools
from clapcur.store.artifacts import Stage, write_atomic
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home
from clapcur.store.record import Outcome
from clapcur.testing import clips_table, commit, manifest, report_line, report_table, write_tones

COMMANDS = [name for name, _, _ in cli.COMMANDS]
HEAVY = ("torch", "transformers", "mlflow", "prefect", "pandas", "pyarrow", "matplotlib", "faiss", "sqlalchemy", "rich")
CLIPS = [f"{index:064x}" for index in range(0xABCDE0, 0xABCDE0 + 30)]
CAPTIONS = ["a dog barks", "rain falls"]

pytestmark = pytest.mark.usefixtures("leaves_no_trace")


def cost_s(*arguments: object) -> float:
    """Run a command as people do and return its time on a core: other tests share the cores, and slow its clock."""
    before = os.times()
    assert run(*arguments).returncode == 0
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def trained(store, name, inputs, **config):
    """Make a checkpoint of nothing but its record."""
    stage = Stage("train", "1", "checkpoint", lambda inputs, config, work: Outcome())
    key = stage.key({"name": name, "held_out": 0.0, **config}, inputs)
    tags = {"row": name, "seed": config.get("seed", 0)}
    return store.commit(store.open(key), Outcome(), time.time(), tags=tags)


@pytest.fixture
def lineage(home):
    """Make a home with a teacher, a set of 30 pairs, a student and its scores; gives their ids."""
    store = home.store
    pool = manifest(store, "pool", clips_table(CLIPS))
    pairs = manifest(store, "pairs", clips_table(["f" * 64]), [("f" * 64, text) for text in CAPTIONS])

    def write(work):
        rows = [
            (clip, caption_id(CAPTIONS[index % 2]), 0.5 + index / 100, ["dog", "rain"][index % 2], 0.9, 0)
            for index, clip in enumerate(CLIPS)
        ]
        pd.DataFrame(rows, columns=SCHEMA.names).to_parquet(work.path / "pairs.parquet", index=False)

    teacher = trained(store, "teacher", {"teacher_pairs": pairs}, seed=3)
    chosen = commit(store, "improvement_set", "ads", write, {"teacher_pairs": pairs, "pool": pool})
    inputs = {"init": teacher, "teacher_pairs": pairs, "improvement_set": chosen, "pool": pool}
    student = trained(store, "ads", inputs, learning_rate=0.001, seed=3)
    scores = commit(
        store, "scores", "scores", lambda work: write_atomic(work.path / "scores.json", "{}"), {"checkpoint": student}
    )
    catalog = Catalog.open(home)
    catalog.rebuild(store)
    catalog.set_run(student.id, "5eed" * 8)
    made = {"pool": pool, "pairs": pairs, "teacher": teacher, "set": chosen, "student": student, "scores": scores}
    return {name: artifact.id for name, artifact in made.items()}


# -- help


@pytest.mark.parametrize("command", [*([name] for name in COMMANDS), ["catalog"], ["catalog", "rebuild"], []])
def test_every_command_has_help_with_an_example_of_itself(answer, command):
    """Help without a line to copy sends people to the source."""
    code, out, _ = answer(*command, "--help")
    assert code == 0
    example = out.partition("Example:\n")[2]
    assert example.strip().startswith(" ".join(["clapcur", *command]))


def test_every_command_is_listed_once_with_a_whole_line(answer, monkeypatch):
    """A line that ends in dots leaves people guessing what they would get."""
    monkeypatch.setenv("COLUMNS", "80")
    listed = re.findall(
        r"^  ([a-z][a-z-]+)  +(\S.*)$", answer("--help")[1].partition("Full pipeline:")[2], re.MULTILINE
    )
    assert sorted(name for name, _ in listed) == sorted([*COMMANDS, "catalog"])
    assert [line for _, line in listed if not re.fullmatch(r"[A-Z].*[^.]\.", line)] == []


def test_the_examples_are_commands_that_parse(monkeypatch):
    """An example with an option that was renamed is worse than none: every one is run up to its first line of code."""
    group = typer.main.get_command(cli.app)
    for name, _, example in cli.COMMANDS:
        for line in example.replace("\\\n", " ").splitlines():
            words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line.partition(" > ")[0])]
            assert words[:2] == ["clapcur", name]
            group.commands[name].make_context(name, words[2:], resilient_parsing=False)


def test_no_help_imports_anything_heavy():
    """One import at the top of a file makes every `--help` take seconds."""
    code = (
        "import sys; from clapcur import cli\n"
        f"for name in {COMMANDS}: assert cli.run([name, '--help']) == 0\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("command", [(), ("curate",)])
def test_help_answers_in_under_a_second(command):
    """People ask for help while they type."""
    assert cost_s(*command, "--help") < 1


def test_version_and_no_arguments(answer):
    """`clapcur` alone must say what there is to do."""
    assert answer("--version")[1].startswith("clapcur 0.")
    assert answer()[0:2] == answer("--help")[0:2]


# -- wrong usage and other people's errors


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["trace"], 2, "Missing argument"),
        (["trace", "x", "--nope"], 2, "No such option: --nope"),
        (["bogus"], 2, "No such command 'bogus'"),
        (["curate", "--strategy", "all"], 2, "du"),
        (["improve"], 2, "give an experiment file, or --pairs, --classes as well; see `clapcur improve"),
        (["improve", "a.yaml", "--pool", "b"], 2, "not both"),
        (["improve", "absent.yaml"], 1, "absent.yaml does not exist; create one with `clapcur init`"),
        (["compare", "absent.yaml", "--seeds", "0"], 1, "absent.yaml does not exist"),
        (["improve", "--pairs", "p.csv", "--classes", "c", "--evaluation", "e"], 1, "--pairs p.csv does not exist"),
        (["ingest", "nowhere.csv"], 1, "nowhere.csv' does not exist"),
        (["ingest", ".", "--max-bad", "70"], 2, "max_bad_fraction must be in [0, 1], got 70"),
        (["embed", "abcd"], 2, "give either a manifest or --classes"),
        (["evaluate", "abcd", "abcd"], 2, "give either --classes or --retrieval"),
        (["train-teacher", "abcd", "--config", "absent.yaml"], 1, "absent.yaml does not exist"),
        (["train-teacher", "abcd", "--config", "list.yaml"], 1, "must hold a mapping, got list"),
        (["train-teacher", "abcd", "--config", "typo.yaml"], 2, "did you mean 'batch_size'?"),
        (["report", "ads=+"], 1, "'+'"),
        (["report", "adss=abcd"], 2, "expected a row such as ads+sl=SCORES"),
        (["trace", "abcdef"], 1, "no artifact and no MLflow run has the id 'abcdef'"),
        (["impact", "nowhere.wav"], 1, "expected an audio file, a clip id or its first"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(answer, home, tmp_path, monkeypatch, arguments, code, said):
    """A traceback tells a user that the program is broken, when it is a path that is."""
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("- 1\n")
    Path("typo.yaml").write_text("num_examples: 100\nbatch_siz: 4\n")
    got, out, err = answer(*arguments)
    assert (got, out) == (code, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("70", "threshold must be a cosine in [-1, 1], got 70; a percentage?"),
        ("count:0", "count must be at least 1, got 0"),
        ("count:2.5", "a cosine such as 0.7, count:2000 or precision:0.8, got 'count:2.5'"),
        ("precision:80", "precision must be in (0, 1], got 80"),
        ("similarity:0.7", "got 'similarity:0.7'"),
        ("nan", "got 'nan'"),
        ("much", "got 'much'"),
    ],
)
def test_a_threshold_without_a_meaning_is_refused_before_anything_runs(answer, home, tmp_path, text, said):
    """A threshold of 70 drops every pair, after hours of embedding."""
    (tmp_path / "classes.txt").write_text("dog\nrain\n")
    options = ["--checkpoint", "abcd", "--pairs", "abcd", "--pool", "abcd", "--classes", tmp_path / "classes.txt"]
    code, _, err = answer("curate", "--strategy", "ads", *options, "--audio-threshold", text)
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("0.7", "similarity", 0.7),
        ("-1", "similarity", -1.0),
        ("count:2000", "count", 2000),
        ("precision:0.8", "precision", 0.8),
    ],
)
def test_a_threshold_is_read_in_three_ways(text, field, value):
    """A count that is taken for a cosine, or the other way round, keeps everything or nothing."""
    from clapcur.cli.arguments import threshold

    assert getattr(threshold(text), field) == value


def test_a_wrong_kind_of_artifact_is_named(answer, lineage):
    """An id of the wrong kind would fail far below, on a file that is not there."""
    code, _, err = answer(
        "train-student", "--teacher", lineage["set"], "--pairs", lineage["pairs"], "--config", "x.yaml"
    )
    assert code == 1 and "x.yaml" in err
    code, _, err = answer("embed", lineage["set"], lineage["pairs"])
    assert code == 1 and f"expected a checkpoint, got the improvement set {lineage['set']}" in err
    code, _, err = answer("caption", lineage["set"])
    assert code == 1 and f"expected tags, got the improvement set {lineage['set']}" in err


def test_a_process_exits_with_the_code_and_without_a_traceback(tmp_path):
    """The entry point itself, not only the function below it, must keep the promise to scripts."""
    done = run("trace", "abcd", "--home", tmp_path / "absent")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: no clapcur home found at {tmp_path / 'absent'}; give --home or set CLAPCUR_HOME\n"
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted; finished work is kept: run the same command again to resume"),
        (Interrupted("stopped at step 5 of 9; the state is saved"), 143, "interrupted: stopped at step 5 of 9"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.npy"), 1, "the disk is full"),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), 1, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/no/such/x"), 1, "error: Permission denied: /no/such/x"),
        (ValueError("two\nlines"), 2, "error: two lines"),
        (
            sa.exc.OperationalError("SELECT 1", {}, ConnectionError("the database system is\nshutting down")),
            1,
            "error: the catalog database does not respond (the database system is shutting down)",
        ),
    ],
)
def test_every_end_has_its_exit_code(answer, lineage, monkeypatch, error, code, said):
    """A scheduler retries what was stopped, and must not retry what can never work."""
    import clapcur.lineage.queries

    # raised in a file of ours, as a judgement of a value is
    program = compile("def fail(*arguments):\n    raise error\n", clapcur.lineage.queries.__file__, "exec")
    names = {"error": error}
    exec(program, names)
    monkeypatch.setattr(clapcur.lineage.queries, "trace", names["fail"])
    got, out, err = answer("trace", lineage["student"])
    assert (got, out) == (code, "") and err.count("\n") == 1 and said in err


@pytest.mark.parametrize(("stop", "code"), [(Interrupted("stopped at step 5 of 9"), 143), (KeyboardInterrupt(), 130)])
def test_a_stop_is_a_stop_whatever_fails_because_of_it(answer, lineage, monkeypatch, stop, code):
    """Ctrl-C takes Prefect's server down too: what comes up to the command line is that it does not answer."""
    import clapcur.lineage.queries

    def fail(home, name):
        try:
            raise stop
        except BaseException:
            try:
                raise ConnectionRefusedError("refused")
            except OSError as error:
                raise RuntimeError("the server does not answer") from error

    monkeypatch.setattr(clapcur.lineage.queries, "trace", fail)
    got, _, err = answer("trace", lineage["student"])
    assert got == code and err.startswith("interrupted") and err.count("\n") == 1


@pytest.fixture
def buggy(lineage, monkeypatch):
    """Let `trace` fail as a library fails; gives the artifact to ask for."""
    import clapcur.lineage.queries

    monkeypatch.setattr(clapcur.lineage.queries, "trace", lambda home, name: json.loads("{"))
    return lineage["student"]


def test_a_bug_keeps_its_traceback_in_the_log_file(answer, buggy):
    """A ValueError from a library below us is no usage error: told in one line alone it could not be found."""
    code, out, err = answer("trace", buggy)
    assert (code, out, err.count("\n")) == (1, "", 1)
    path = Path(re.search(r"JSONDecodeError: Expecting .* This is a bug.* its traceback is in (\S+)$", err)[1])
    text = path.read_text()
    assert "Traceback (most recent call last)" in text and "json.decoder.JSONDecodeError" in text
    assert text.splitlines()[-1].endswith(" s") and "exit code 1 after" in text


def test_verbose_shows_the_traceback_of_a_bug(answer, buggy):
    """Who asked for everything must not be sent to a file."""
    err = answer("trace", buggy, "--verbose")[2]
    assert "Traceback (most recent call last)" in err and "This is a bug" in err.splitlines()[-1]


def test_a_bug_without_a_log_file_is_raised(home, buggy, leaves_no_trace):
    """Otherwise its traceback would be lost."""
    (home.root / "logs").write_text("in the way of a folder")
    with pytest.raises(json.JSONDecodeError):
        cli.run(["trace", buggy])


# -- what programs rely on


def test_trace_gives_the_tree_down_to_the_manifests(answer, lineage):
    """Another shape breaks every script that asks what made a model."""
    code, out, err = answer("trace", lineage["student"][:6], "--json")
    tree = json.loads(out)
    assert code == 0 and err == "" and out.count("\n") == 1
    assert (tree["id"], tree["kind"], tree["role"]) == (lineage["student"], "checkpoint", "")
    below = {node["role"]: node for node in tree["inputs"]}
    assert {role: node["id"] for role, node in below.items()} == {
        "init": lineage["teacher"], "teacher_pairs": lineage["pairs"], "improvement_set": lineage["set"],
        "pool": lineage["pool"],
    }  # fmt: skip
    assert {node["role"] for node in below["improvement_set"]["inputs"]} == {"teacher_pairs", "pool"}
    keys = {"id", "kind", "role", "inputs"}
    assert all(keys <= node.keys() <= keys | {"repeated", "lost"} for node in [tree, *tree["inputs"]])


def test_an_mlflow_run_names_its_artifact_too(answer, lineage):
    """What people copy from the MLflow page is a run id."""
    assert json.loads(answer("trace", "5eed" * 8, "--json")[1])["id"] == lineage["student"]


def test_trace_pairs_gives_every_pair_as_a_line(answer, lineage):
    """A list cut to what fits a table would pass for all pairs."""
    lines = [json.loads(line) for line in answer("trace", lineage["set"], "--pairs", "--json")[1].splitlines()]
    assert [line["clip_id"] for line in lines] == CLIPS
    fields = ["clip_id", "caption_id", "caption", "path", "similarity", "class", "class_similarity"]
    assert list(lines[1])[:7] == fields
    assert lines[1] | {"source": "", "role": ""} == {
        "clip_id": CLIPS[1], "caption_id": caption_id("rain falls"), "caption": "rain falls",
        "path": f"/nowhere/{CLIPS[1]}.wav", "similarity": pytest.approx(0.51), "class": "rain",
        "class_similarity": pytest.approx(0.9), "source": "", "role": "",
    }  # fmt: skip


def test_impact_gives_ids_of_everything_that_a_clip_touched(answer, lineage):
    """A take-down request is answered from this list."""
    code, out, _ = answer("impact", CLIPS[0], "--json")
    assert code == 0 and out.count("\n") == 1
    assert json.loads(out) == {
        "clip_id": CLIPS[0], "tags": [], "improvement_sets": [lineage["set"]], "compositions": [],
        "captioners": [], "checkpoints": [lineage["student"]],
        "scores": [lineage["scores"]], "models": [],
    }  # fmt: skip


def test_trace_and_impact_answer_in_under_two_seconds(lineage, home):
    """Both are asked in a hurry; what is imported for MLflow or torch alone takes longer."""
    for arguments in (["trace", lineage["student"]], ["impact", CLIPS[0]]):
        assert cost_s(*arguments) < 2


def test_tables_for_people_name_what_was_found(answer, lineage):
    """An empty table looks like an answer."""
    code, out, _ = answer("trace", lineage["student"])
    assert code == 0 and all(lineage[name] in out for name in ("student", "teacher", "set", "pairs", "pool"))
    code, out, _ = answer("impact", CLIPS[0])
    assert code == 0 and all(lineage[name] in out for name in ("student", "set", "scores", "pool"))
    assert f"trained on improvement_set {lineage['set']}" in out


# -- pairs


def test_pairs_are_chosen_by_class_and_clip(answer, lineage):
    """An audition of the wrong class's pairs judges the wrong captions."""
    rain = [json.loads(line) for line in answer("pairs", lineage["set"], "--class", "rain", "--json")[1].splitlines()]
    assert [line["clip_id"] for line in rain] == CLIPS[1::2][::-1]
    (one,) = answer("pairs", lineage["set"], "--clip", CLIPS[4], "--json")[1].splitlines()
    assert json.loads(one)["clip_id"] == CLIPS[4]
    code, _, err = answer("pairs", lineage["set"], "--class", "siren")
    assert code == 1 and "no pair is of class 'siren'; the classes of these pairs are dog, rain" in err


@pytest.mark.parametrize("limit", [[], ["--limit", "3"]])
@pytest.mark.parametrize(("sort", "order"), [([], -1), (["--sort", "similarity"], -1), (["--sort", "none"], 1)])
def test_the_most_similar_pairs_come_first(answer, lineage, limit, sort, order):
    """The best pairs of a set are what people listen to first; README says so of the command without options."""
    out = answer("pairs", lineage["set"], *sort, *limit, "--json")[1]
    clips = [json.loads(line)["clip_id"] for line in out.splitlines()]
    assert clips == CLIPS[::order][: 3 if limit else None]


def test_a_table_of_pairs_is_short_and_says_of_how_many(answer, lineage):
    """A million pairs in a terminal help nobody, and twenty must not pass for all."""
    out = answer("pairs", lineage["set"])[1]
    assert "20 of 30 pairs" in out and CLIPS[29][:12] in out
    assert "30 of 30 pairs" in answer("pairs", lineage["set"], "--limit", 50)[1]


def test_pairs_as_csv_can_be_read_back(answer, lineage):
    """A caption with a comma shifts the columns of a hand-made CSV."""
    import io

    table = pd.read_csv(io.StringIO(answer("pairs", lineage["student"], "--csv")[1]))
    assert table.clip_id.tolist() == CLIPS[::-1] and set(table.caption) == set(CAPTIONS)
    assert answer("pairs", lineage["set"], "--csv", "--json")[0] == 2


# -- why


def test_why_follows_an_input_down_to_what_differs_in_it(answer, home, lineage):
    """Another init is no answer when it is the teacher's seed that changed."""
    store = home.store
    teacher = trained(store, "teacher", {"teacher_pairs": store.find(lineage["pairs"])}, seed=4)
    inputs = {role: store.find(name) for role, name in store.find(lineage["student"]).record.inputs.items()}
    student = trained(store, "ads", {**inputs, "init": teacher}, learning_rate=0.002, seed=3)
    Catalog.open(home).rebuild(store)
    found = json.loads(answer("why", student.id, lineage["student"], "--json")[1])
    assert (found["id"], found["other"]) == (student.id, lineage["student"])
    assert found["differences"] == [
        "config.learning_rate: 0.001 -> 0.002",
        f"init: {lineage['teacher']} -> {teacher.id}",
        "init > config.seed: 3 -> 4",
    ]
    nearest = json.loads(answer("why", student.id, "--json")[1])
    assert nearest["other"] == lineage["student"]  # and not the teacher, which shares less
    assert "the same key" in answer("why", student.id, student.id)[1]


def test_why_says_when_there_is_nothing_to_compare_with(answer, lineage):
    """The oldest of its kind differs from nothing."""
    code, _, err = answer("why", lineage["set"])
    assert code == 1 and "found no earlier improvement_set to compare" in err


# -- catalog, init, rows


def test_catalog_rebuild_counts_what_the_store_holds(answer, home, lineage):
    """An index that is behind its store answers wrongly without a sign."""
    trained(home.store, "new", {})
    assert json.loads(answer("catalog", "rebuild", "--json")[1]) == {"artifacts": 7}


def test_the_file_that_init_writes_is_an_experiment(answer, tmp_path, monkeypatch):
    """A starter with a key that no longer exists fails in the newcomer's first minute."""
    from clapcur.config import describe
    from clapcur.experiments.config import Experiment, experiment_from_file
    from clapcur.experiments.starter_file import BLOCKS, SHOWN

    monkeypatch.chdir(tmp_path)
    assert answer("init", "mine.yaml")[0] == 0
    Path("classes.txt").write_text("dog bark\nrain\n")
    text = Path("mine.yaml").read_text()
    experiment = experiment_from_file("mine.yaml")
    assert experiment.class_names == ("dog bark", "rain") and experiment.curation.audio_threshold.count == 2000
    assert experiment.captioning is None and experiment.checkpoint is None and experiment.curation.hubness is None
    names = "|".join([field for _, field, _, _ in SHOWN] + list(BLOCKS.values()))
    offered = re.sub(rf"^#   ({names}):", r"  \1:", text, flags=re.MULTILINE)  # of a block that is left out
    offered = re.sub(rf"^( *)# ({names}):", r"\1\2:", offered, flags=re.MULTILINE)
    Path("all.yaml").write_text(offered)
    everything = experiment_from_file("all.yaml")
    assert everything.captions is not None and everything.teacher.num_examples == 25_600
    assert everything.curation.distinct_clips == 0.98 and everything.curation.hubness.method == "csls"
    assert everything.captioning.tagger.source.endswith("yamnet.safetensors") and everything.soft_labels.beta == 0.7
    for field in ("pairs", "evaluation", "curation"):
        said = describe(Experiment)[field].split(".")[0].replace("`", "")
        assert f"# {said}" in text, "the comments are the texts of the fields"
    code, _, err = answer("init", "mine.yaml")
    assert code == 1 and "already exists" in err and Path("mine.yaml").read_text() == text


def test_strategies_choose_rows_and_keep_the_bases():
    """A comparison without teacher or control has nothing to compare with."""
    from clapcur.cli.experiments import rows_named
    from clapcur.data.rows import PAPER_ROWS

    def named(text: str) -> list[str]:
        return [row.name for row in rows_named(SimpleNamespace(rows=PAPER_ROWS), text)]

    assert named("ads") == ["teacher", "continued", "ads", "ads+sl"]
    assert named("DU, ads+sl") == ["teacher", "continued", "du", "du+sl", "ads+sl"]
    assert named("pl") == ["teacher", "continued", "pl"], "a row that the config lacks"
    assert named("ads+sl,pl+sl") == ["teacher", "continued", "ads+sl", "pl+sl"]
    with pytest.raises(typer.BadParameter, match="unknown row adds; the rows are teacher, continued, sl, du"):
        named("adds")


def test_rows_for_programs_have_the_run_and_the_set_of_their_checkpoint(home, lineage, monkeypatch):
    """The promise of `--json`: exactly these fields, one object per row and seed."""
    from clapcur.cli.experiments import scored_rows
    from clapcur.data.report_table import ReportTable, SeedScores
    from clapcur.data.scores import NOT_ON_RECORD
    from clapcur.store.artifacts import Artifact

    def seed(checkpoint, improvement_set):
        return SeedScores(
            seed=3, accuracy=0.5, interval=(0.4, 0.6), transductive=0.7, scores=lineage["scores"],
            checkpoint=checkpoint, improvement_set=improvement_set, contamination=NOT_ON_RECORD,
        )  # fmt: skip

    table = [
        report_line("teacher", by_seed=[seed(lineage["teacher"], None)]),
        report_line("ADS+SL", by_seed=[seed(lineage["student"], lineage["set"])]),
    ]
    monkeypatch.setattr(ReportTable, "open", lambda report: report_table(table))
    assert scored_rows(Artifact("report", "x", "x"), home) == [
        {"strategy": "teacher", "soft_labels": False, "seed": 3, "accuracy": 0.5, "interval": (0.4, 0.6),
         "transductive": 0.7, "checkpoint": lineage["teacher"], "improvement_set": None, "mlflow_run_id": None},
        {"strategy": "ads", "soft_labels": True, "seed": 3, "accuracy": 0.5, "interval": (0.4, 0.6),
         "transductive": 0.7, "checkpoint": lineage["student"], "improvement_set": lineage["set"],
         "mlflow_run_id": "5eed" * 8},
    ]  # fmt: skip


def test_the_home_of_an_option_is_the_home_of_the_flows(tmp_path, monkeypatch):
    """Flows find their home in the environment: an older value there would split one run over two homes."""
    from clapcur.cli.console import open_home

    for name in Home(tmp_path).environment():
        monkeypatch.setenv(name, os.environ.get(name, "kept"))
    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "other"))
    assert open_home(tmp_path / "mine").root == tmp_path / "mine"
    assert os.environ["CLAPCUR_HOME"] == str(tmp_path / "mine") and Home.open().root == tmp_path / "mine"
    assert os.environ["PREFECT_HOME"] != str(tmp_path / "mine" / "prefect")  # what a user has set stays


def test_stdout_is_kept_for_the_result(capsys):
    """A library's greeting in front of the JSON breaks every script that reads it."""
    from clapcur.cli.console import print_json, working

    with working():
        print("hello from a library")
    print_json({"a": "ä"})
    said = capsys.readouterr()
    assert said.out == '{"a": "ä"}\n' and said.err == "hello from a library\n"


# -- the stages, one command each


@pytest.fixture
def sounds(tmp_path, monkeypatch):
    """Write tones with captions, noises with labels, class names and an experiment with towers of next to nothing."""
    monkeypatch.chdir(tmp_path)
    write_tones(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_stages_by_hand_make_the_very_artifacts_of_the_flow(answer, home, sounds):
    """A command that wires one input or one option otherwise makes other students, and nobody sees why."""

    def made(*arguments):
        code, out, err = answer(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    pairs = made("ingest", "pairs.csv", "--role", "pairs")["id"]
    labelled = made("ingest", "labelled.csv", "--role", "evaluation")["id"]
    config = ("--config", "tones.yaml", "--seed", 5)
    teacher = made("train-teacher", pairs, *config)["id"]
    known = ("--checkpoint", teacher, "--pairs", pairs, "--evaluation", labelled)
    rules = ("--classes", "classes.txt", "--config", "tones.yaml")
    chosen = made("curate", "--strategy", "ds", *known, *rules)
    assert chosen["counts"]["pairs"] > 0
    assert made("audition", chosen["id"], "--seed", 5)["counts"]["embedded"] > 0
    student = made(
        "train-student", "--teacher", teacher, "--set", chosen["id"], "--pairs", pairs, *config, "--soft-labels"
    )
    scores = {
        name: made("evaluate", checkpoint, labelled, "--classes", "classes.txt")
        for name, checkpoint in (("teacher", teacher), ("ds+sl", student["id"]))
    }
    assert scores["ds+sl"]["protocol"]["num_clips"] == 4 and len(scores["ds+sl"]["interval"]) == 2
    rows = [f"{name}.seed5={score['id']}" for name, score in scores.items()]
    report = made("report", *rows, "--title", "tones")

    done = run("compare", "tones.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "home": str(home.root), "verdict": report["verdict"], "rows": report["rows"],
    }  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if " -> " in line]
    assert len(lines) == 17 and [line for line in lines if "(reused" not in line] == []
    assert [row["checkpoint"] for row in report["rows"]] == [teacher, student["id"]]
    assert report["rows"][1]["improvement_set"] == chosen["id"]
    assert all(re.fullmatch("[0-9a-f]{32}", row["mlflow_run_id"]) for row in report["rows"])

    retrieval = made("evaluate", student["id"], pairs, "--retrieval")
    assert 0 <= retrieval["metrics"]["text_to_audio.recall_at_1"] <= 1
    assert made("embed", teacher, "--classes", "classes.txt")["counts"]["rows"] == 2
    assert answer("report", report["report"])[1].count("\n") > 5


# -- landings


def test_a_landing_says_what_it_could_not_use(answer, home, tmp_path):
    """Ten files landed, nine were in the pool, and nobody heard of the tenth."""
    drop = tmp_path / "drop"
    drop.mkdir()
    for number in range(10):
        (drop / f"{number}.flac").write_bytes(sound(number))
    (drop / "broken.flac").write_bytes(b"fLaC, and then nothing")
    code, out, err = answer("land", drop, "--pool", "field")
    assert code == 0, err
    assert re.search(r"unreadable +1 *\n", out) and re.search(r"broken\.flac +unreadable", out), out
    told = json.loads(answer("land", drop, "--pool", "field", "--json")[1])
    assert told["quarantine"] == {"unreadable": 1} and told["counts"]["clips"] == 10


# -- shards


def test_shards_land_like_files(answer, home, tmp_path):
    """A command that takes folders and tables only: a pool of shards would need a script around it."""
    drops = tmp_path / "drops"
    drops.mkdir()
    write_tar(drops / "0.tar", {"a.flac": sound(0), "a.txt": b"a dog barks"})
    code, out, err = answer("land", drops / "0.tar", "--pool", "field", "--json")
    assert code == 0 and json.loads(out)["counts"]["clips"] == 1, err
    write_tar(drops / "1.tar", {"b.flac": sound(1)})
    code, _, err = answer("watch", drops, "--pool", "field", "--settle", "0.1", "--every", "0.1", "--once")
    assert code == 0, err
    landed = Manifest.open(pools.head(home, "field"))
    assert {readable(place) for place in landed.paths.values()} == {f"{drops}/0.tar/a.flac", f"{drops}/1.tar/b.flac"}
    assert landed.captions.caption.tolist() == ["a dog barks"]
    code, out, err = answer("impact", next(place for place in landed.paths.values() if "b.flac" in place), "--json")
    assert code == 0 and json.loads(out)["clip_id"] == hashlib.sha256(sound(1)).hexdigest(), err
