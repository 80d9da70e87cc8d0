"""What a command says beside its result: --quiet, --verbose, and the log file in the home."""

import contextlib
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from addressed_sounds import sound
from command_runs import run

from clapcur import __version__, progress
from clapcur.cli import logs
from clapcur.cli.console import open_home
from clapcur.redaction import is_secret, redacted
from clapcur.store import runner
from clapcur.store.artifacts import Stage
from clapcur.store.record import Outcome

SECRETS = [
    ("postgresql://clapcur:hunter2/x@y@db/clapcur", "postgresql://clapcur:***@db/clapcur"),
    ("--database-url=postgresql+psycopg://me:hunter2@h:5432/d?x=1", "--database-url=postgresql+psycopg://me:***@h:5432/d?x=1"),
    ("at https://hunter2hunter2hunter2@host/simple.", "at https://***@host/simple."),
    ("host=h user=u password=hunter2 dbname=d", "host=h user=u password=*** dbname=d"),
    ('{"api_key": "hunter2", "n": 3}', '{"api_key": "***", "n": 3}'),
    ("https://b.s3/x?X-Amz-Signature=hunter2&part=1", "https://b.s3/x?X-Amz-Signature=***&part=1"),
    ("clapcur up --auth-token hunter2 --json", "clapcur up --auth-token *** --json"),
    ("Authorization: Basic aHVudGVyMjpodW50ZXIy", "Authorization: Basic ***"),
    ("got hf_hunter2hunter2hunter2 from the Hub", "got *** from the Hub"),
]  # fmt: skip
HARMLESS = [
    "s3://bucket/a:b@c.wav", "http://127.0.0.1:5000/#/experiments/1", "max_tokens=77, tokenizer=gpt2", "a key: 3",
    'clapcur search "a password is whispered"', "sqlite:////data/.clapcur/catalog.db", "user@host:/path",
]  # fmt: skip


@pytest.fixture
def drop(tmp_path):
    """Write a folder with one sound to land."""
    folder = tmp_path / "my drop"
    folder.mkdir()
    (folder / "a.flac").write_bytes(sound(0))
    return folder


def logged(home, command):
    """Return the text of the one log file of a command."""
    (path,) = (home.root / "logs").glob(f"*-{command}.log")
    return path.read_text()


# -- --quiet and --verbose


@pytest.mark.parametrize("place", ["before", "after"])
def test_quiet_leaves_the_result_alone(answer, home, drop, place):
    """A cron job that mails every line is one that nobody reads."""
    land = ("land", drop, "--pool", "field", "--json")
    code, out, err = answer("--quiet", *land) if place == "before" else answer(*land, "-q")
    assert (code, err) == (0, "") and '"clips": 1' in out
    code, again, err = answer(*land)
    assert code == 0 and again == out and "reused" in err, "a later command is not quiet"


def test_quiet_still_says_what_is_wrong(answer, home):
    code, out, err = answer("-q", "trace", "0123456789ab")
    assert (code, out) == (1, "") and err.startswith("error: no artifact")


def test_verbose_adds_debug_lines_with_times(answer, home, drop):
    """A command that hangs must show where."""
    plain = answer("land", drop, "--pool", "field")[2]
    code, _, err = answer("land", drop, "--pool", "field", "--verbose")
    lines = err.splitlines()
    assert code == 0 and len(lines) > len(plain.splitlines())
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} \S", line) for line in lines), err
    assert any(f"home {home.root}" in line for line in lines) and "looking for the manifest" in err


def test_quiet_and_verbose_exclude_each_other(answer, home):
    for arguments in (["-q", "ls", "-v"], ["ls", "-q", "-v"], ["-q", "-v", "ls"]):
        code, _, err = answer(*arguments)
        assert code == 2 and err.startswith("error: give --quiet or --verbose, not both; see `clapcur ls --help`")


# -- the log file


def test_a_log_file_has_command_version_lines_and_exit_code(answer, home, drop):
    """What a user can send with a report, whatever they had on their screen."""
    assert answer("land", drop, "--pool", "field", "--quiet")[0] == 0
    lines = logged(home, "land").splitlines()
    assert f"$ clapcur land '{drop}' --pool field --quiet" in lines[0]
    assert f"clapcur {__version__}, Python {sys.version.split()[0]}" in lines[1] and f"home {home.root}" in lines[1]
    assert any("-> manifest" in line for line in lines)
    assert re.search(r"exit code 0 after \d+\.\d s$", lines[-1])
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO|WARNING) ", line) for line in lines)


def test_an_expected_error_has_its_traceback_in_the_log_file_only(answer, home):
    err = answer("trace", "0123456789ab")[2]
    text = logged(home, "trace")
    assert err.strip() in text and "ArtifactError" in text and "Traceback" in text and "Traceback" not in err


def test_no_log_file_has_a_password(answer, home, monkeypatch):
    """Log files are what people send to strangers."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    answer("trace", "postgresql://me:hunter2@host/db", "--verbose")
    answer("impact", "correct-horse")
    assert "postgresql://me:***@host/db" in logged(home, "trace") and "hunter2" not in logged(home, "trace")
    assert "$ clapcur impact ***" in logged(home, "impact") and "correct-horse" not in logged(home, "impact")


@pytest.mark.parametrize(("text", "shown"), SECRETS, ids=range(len(SECRETS)))
def test_secrets_are_hidden(text, shown):
    assert redacted(text) == shown and redacted(shown) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_is_kept(text):
    """A log without its paths helps nobody."""
    assert redacted(text) == text


def test_secret_variables_are_known_by_their_names():
    assert all(map(is_secret, ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "CLAPCUR_LOGIN", "X_API_KEY")))
    assert not any(map(is_secret, ("CLAPCUR_HOME", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "MONKEY", "AUTHOR")))


@pytest.mark.parametrize("arguments", [["--help"], ["ls", "--help"], ["--version"], ["trace"], ["bogus"]])
def test_nothing_is_logged_where_no_command_runs(answer, home, arguments):
    """Completion runs at every press of a key."""
    answer(*arguments)
    assert list(home.root.iterdir()) == []


def test_completion_logs_nothing(home):
    words = os.environ | {"_CLAPCUR_COMPLETE": "complete_bash", "COMP_WORDS": "clapcur trac", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", "from clapcur.cli import main; main()"]
    done = subprocess.run(command, env=words, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["trace"], done.stderr
    assert list(home.root.iterdir()) == []


@pytest.mark.parametrize("command", [["ls"], ["show", "0123456789ab"], ["trace", "0123456789ab"], ["gc"], ["verify"]])
def test_a_command_that_reads_makes_no_home_for_its_log(answer, tmp_path, command):
    """An empty home in the wrong folder says that there is nothing."""
    code, _, err = answer(*command, "--home", tmp_path / "absent")
    assert code == 1 and "no clapcur home found" in err and not (tmp_path / "absent").exists()


def test_a_new_home_has_the_log_of_the_command_that_made_it(answer, tmp_path, drop, monkeypatch):
    monkeypatch.delenv("CLAPCUR_HOME", raising=False)
    assert answer("land", drop, "--pool", "field", "--home", tmp_path / "new")[0] == 0
    (path,) = (tmp_path / "new" / "logs").glob("*-land.log")
    assert "$ clapcur land" in path.read_text()


def test_a_home_opened_after_a_command_has_no_log(answer, home, tmp_path):
    """A program that runs a command and then works on must not keep a file open."""
    assert answer("verify")[0] == 0
    open_home(tmp_path / "other")
    assert not (tmp_path / "other" / "logs").exists()


def test_a_log_that_cannot_be_written_changes_nothing(answer, home):
    (home.root / "logs").write_text("in the way of a folder")
    assert answer("verify")[0] == 0


def test_a_full_disk_ends_the_log_and_not_the_command(capsys, leaves_no_trace):
    """The standard library prints a traceback for every line that it cannot write."""
    log = logging.getLogger("clapcur")
    full = logs.LogFile(Path("/dev/full"))
    log.handlers[:], log.propagate = [full], False
    log.warning("a line")
    assert log.handlers == []
    full.close()
    assert capsys.readouterr().err == ""


def test_old_log_files_are_deleted_and_no_others(answer, home):
    """A command a minute would fill the disk within a year; a server's log is not ours to delete."""
    folder = home.root / "logs"
    folder.mkdir()
    names = [f"20200101T0000{number:02d}-ls.log" for number in range(logs.KEPT + 5)]
    for name in (*names, f"{names[1]}.1", "prefect server.log", "20200101-notes.log", "20200101T000000-ls.txt"):
        (folder / name).touch()
    running = logs.LogFile(folder / names[0])  # of a command that has run since then
    try:
        assert answer("verify")[0] == 0
    finally:
        running.close()
    left = {path.name for path in folder.iterdir()}
    (new,) = folder.glob("*-verify.log")
    assert left == {
        new.name, names[0], *names[6:], "prefect server.log", "20200101-notes.log", "20200101T000000-ls.txt"
    }  # fmt: skip


def test_a_log_file_has_a_largest_size(tmp_path):
    """`clapcur watch` runs for months."""
    file = logs.LogFile(tmp_path / "x.log")
    for number in range(3 * logs.MAX_BYTES // 100_000):
        file.handle(logging.LogRecord("clapcur", logging.INFO, "", 0, f"{number} {'x' * 100_000}", (), None))
    file.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"x.log", "x.log.1"} and max(sizes.values()) <= logs.MAX_BYTES


def test_two_commands_of_one_second_have_a_file_each(home):
    for _ in range(2):
        assert run("verify", "--home", home.root).returncode == 0
    assert len(list((home.root / "logs").iterdir())) == 2


# -- progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (274, "4 min 34 s"), (7500, "2 h 5 min"), (273_700, "3 d 4 h")],
)
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            (1250, "steps", 400, 300, 100.0, "loss 1.32"),
            "400 of 1,250 steps (32 %), 3.0 steps/s, 4 min 43 s left, loss 1.32",
        ),
        ((10, "clips", 2, 2, 60.0), "2 of 10 clips (20 %), 30.0 s per clip, 4 min 0 s left"),
        ((None, "sentences", 5000, 5000, 10.0), "5,000 sentences, 500.0 sentences/s"),
        ((0, "clips", 0, 0, 0.0), "0 of 0 clips (0 %)"),
    ],
)
def test_a_line_of_progress_has_rate_and_time_left(arguments, text):
    """A resumed training must not count the steps of the run before it into its speed."""
    assert progress.line("train", *arguments) == f"train: {text}"


def test_progress_names_the_artifact_and_goes_to_the_log(home, answer, monkeypatch, caplog):
    """Twelve trainings that are all called "train" leave nobody knowing which one runs."""
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)

    def compute(inputs, config, work):
        for description in ("train", "hear"):
            with progress.progress(description, 2, "steps") as advance:
                advance(1, "loss 0.5")
        return Outcome()

    stage = Stage("train", "1", "checkpoint", compute)
    with caplog.at_level(logging.INFO, "clapcur"):
        runner.run(stage, {"n": 1}, {}, home, tags={"row": "ads+sl", "seed": 3})
    train, hear, made = (record.getMessage() for record in caplog.records if record.levelno == logging.INFO)
    assert train.startswith("train ads+sl seed 3: 1 of 2 steps (50 %), ") and train.endswith(" left, loss 0.5")
    assert hear.startswith("train ads+sl seed 3: hear: 1 of 2 steps (50 %), ")
    assert made.startswith("train ads+sl seed 3 -> checkpoint ") and "(made, " in made


TERMINAL = """
import sys, time
from clapcur import progress
from clapcur.cli import logs
progress.LOG_EVERY_S = 0.0
progress.show("quiet" not in sys.argv)
logs.show_lines("quiet" if "quiet" in sys.argv else "normal")
with progress.task("train [ads+sl] seed 0"), progress.progress("train", 3, "steps") as advance:
    with progress.progress("probe", 2, "clips") as other:  # of a second thread
        advance(1, "loss [0.5]")
        other(1)
        time.sleep(0.3)
"""


@pytest.mark.parametrize("volume", ["normal", "quiet"])
def test_a_terminal_shows_a_bar_and_no_lines(volume):
    """Two bars at once, and brackets in a name, ended in an error of the library that draws them."""
    ours, theirs = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    command = [sys.executable, "-c", TERMINAL, volume]
    done = subprocess.run(command, stderr=theirs, env=environment, timeout=60)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while more := os.read(ours, 2**16):
            shown += more
    os.close(ours)
    assert done.returncode == 0, shown
    if volume == "quiet":
        assert shown == b""
    else:
        assert b"train [ads+sl] seed 0" in shown and b"1/3 steps" in shown and b"loss [0.5]" in shown
        assert b"1/2 clips" in shown and b"(33 %)" not in shown
