"""The command line: ``clapcur <command>``.

The result goes to stdout, as a table for people or, with ``--json``, as one line; progress and log lines go to stderr.
Help appears at once, because heavy libraries are imported inside the commands.

==== =====================================================================================
exit meaning
==== =====================================================================================
0    done
1    something outside the program is wrong: a file, a manifest, a checkpoint
2    wrong usage: an option, or a value in a config
130  stopped by Ctrl-C
143  stopped by SIGTERM; a training has saved its state, and the same command continues from it
==== =====================================================================================

Every error is one line. For one that we expect, it says what to do; any other means a bug, ours or a library's, and
the line names the log file with its traceback (`clapcur.cli.logs`). ``--verbose`` shows the traceback as well, and
`CLAPCUR_TRACEBACK=1` shows it for every error.
"""

import gc
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from clapcur.cli import (
    auditioning,
    captioning,
    checkpoints,
    collecting,
    corpora,
    doctor,
    experiments,
    labelling,
    landing,
    logs,
    looking,
    ordering,
    planning,
    searching,
    servers,
    sharing,
    stages,
    tracing,
)
from clapcur.errors import ClapcurError, Interrupted, printable
from clapcur.servers.supervisor import ProcessError
from clapcur.store.artifacts import why_not_written

DONE, FAILED, USAGE, CTRL_C, TERMINATED = 0, 1, 2, 130, 143
PROBE_BYTES = 2**20  # with less free space SQLite cannot work
ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(str(ROOT / package) + os.sep for package in ("clapcur", "flows", "tasks"))

SECTIONS = {
    "Full pipeline": ("demo", "init", "label", "plan", "improve", "compare"),
    "Stages": (
        "download", "captions", "ingest", "adopt", "train-teacher", "embed", "tag", "train-captioner", "caption",
        "pseudo-label",
        "curate", "audition", "marks", "map", "train-student", "evaluate", "post-train", "zste", "report",
    ),
    "Use a model": ("classify", "search", "export", "push", "pull"),
    "Lineage": ("ls", "show", "trace", "impact", "pairs", "why"),
    "New audio": ("up", "land", "watch", "recurate", "forget"),
    "Maintenance": ("doctor", "gc", "verify", "sync", "catalog"),
}  # fmt: skip


class Grouped(TyperGroup):
    """Lists the commands by purpose."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of the help."""
        for title, names in SECTIONS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            width = formatter.width - 6 - max(map(len, self.list_commands(ctx)))
            with formatter.section(title):
                formatter.write_dl([(name, one.get_short_help_str(width)) for name, one in commands if one is not None])


app = typer.Typer(
    name="clapcur",
    cls=Grouped,
    help="Improve an audio-text model on your own recordings, without labels, and trace every training pair.",
    epilog="\b\nExample:\n  clapcur demo\n  clapcur improve my-sounds.yaml\n  clapcur trace STUDENT",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help appears sooner, without importing rich
)
catalog_app = typer.Typer(
    help="Repair the catalog, the index of the store.",
    epilog="\b\nExample:\n  clapcur catalog rebuild",
    rich_markup_mode=None,
)

COMMANDS = (
    ("demo", experiments.demo, "clapcur demo --seed 1"),
    (
        "init",
        experiments.init,
        "clapcur init my-sounds.yaml\n  clapcur init table2.yaml --recipe wang2023/table2 --dataset esc50 --data /data",
    ),
    (
        "improve",
        experiments.improve,
        "clapcur improve my-sounds.yaml\n  "
        "clapcur improve --pairs pairs.csv --pool recordings/ --classes classes.txt --evaluation labelled.csv",
    ),
    (
        "compare",
        experiments.compare,
        "clapcur compare my-sounds.yaml --seeds 0,1,2 --strategies du,ads\n  "
        "clapcur compare --recipe wang2023/table2 --dataset esc50 --data /data",
    ),
    ("label", labelling.label, "clapcur label recordings/ --classes classes.txt --num-clips 100"),
    ("download", corpora.download, "clapcur download esc50 data/"),
    (
        "ingest",
        stages.ingest,
        "clapcur ingest pairs.csv --caption-column text\n  clapcur ingest data/ESC-50 --corpus esc50 --role evaluation",
    ),
    (
        "adopt",
        checkpoints.adopt,
        "clapcur adopt laion/clap-htsat-unfused\n  clapcur adopt CLAP_weights_2022.pth --front-end from_checkpoint",
    ),
    ("train-teacher", stages.train_teacher, "clapcur train-teacher 3f2a9c --config my-sounds.yaml"),
    ("embed", stages.embed, "clapcur embed 81d0e4 3f2a9c --what audio\n  clapcur embed 81d0e4 --classes classes.txt"),
    (
        "curate",
        stages.curate,
        "clapcur curate --strategy ads --checkpoint 81d0e4 --pairs 3f2a9c --pool 77b1c2 \\\n"
        "      --classes classes.txt --evaluation 90aa41 --audio-threshold count:2000 --caption-threshold 0.7",
    ),
    (
        "audition",
        auditioning.audition,
        "clapcur audition c4e6f0 --num-pairs 300\n  clapcur audition c4e6f0 --label-studio tasks/",
    ),
    ("marks", auditioning.marks, "clapcur marks anna.csv ben.csv --output marks.csv"),
    ("map", auditioning.map_page, "clapcur map c4e6f0 map.html"),
    (
        "train-student",
        stages.train_student,
        "clapcur train-student --teacher 81d0e4 --set c4e6f0 --pairs 3f2a9c --pool 77b1c2 \\\n"
        "      --config my-sounds.yaml --soft-labels",
    ),
    ("evaluate", stages.evaluate, "clapcur evaluate 5be7d1 90aa41 --classes classes.txt"),
    (
        "post-train",
        ordering.post_train,
        "clapcur post-train 5be7d1 --clips c4e6f0\n  clapcur post-train 5be7d1 --clips labelled.csv --stages b",
    ),
    (
        "zste",
        ordering.zste,
        "clapcur zste 5be7d1 --clips 90aa41\n  clapcur zste my-clap/ --clips labelled.csv",
    ),
    ("report", stages.report, "clapcur report teacher=d3a1 continued=0c77 ads+sl=b2f9\n  clapcur report 6e5f0b"),
    ("export", checkpoints.export, "clapcur export 5be7d1 my-clap/ --format hf"),
    ("push", sharing.push, "clapcur push 5be7d1 my-org/my-clap --license cc-by-4.0"),
    ("pull", sharing.pull, "clapcur pull my-org/my-clap"),
    (
        "classify",
        looking.classify,
        "clapcur classify dog.wav recordings/ --model 5be7d1 --classes esc50\n  "
        'clapcur classify dog.wav --model clapcur-esc50@champion --classes "dog bark,rain,siren" --json',
    ),
    (
        "search",
        searching.search,
        'clapcur search "glass breaking" recordings/ --model 5be7d1\n  '
        "clapcur search dog.wav 9d02e7 --model clapcur-esc50@champion --json\n  "
        'clapcur search "glass breaking" recordings/ --model 5be7d1 --limit 50 --page hits.html',
    ),
    ("ls", looking.ls, "clapcur ls\n  clapcur ls checkpoint --limit 100"),
    ("show", looking.show_one, "clapcur show 5be7d1"),
    (
        "tag",
        captioning.tag,
        "clapcur tag 9d02e7 --tagger yamnet.safetensors\n  clapcur tag 9d02e7 --checkpoint 5be7d1 --classes esc50",
    ),
    ("captions", captioning.captions, "clapcur captions book.txt.gz\n  clapcur captions subtitles/ --least-score 0.7"),
    ("train-captioner", captioning.train_captioner, "clapcur train-captioner 71aa40 --checkpoint 5be7d1"),
    (
        "caption",
        captioning.caption,
        "clapcur caption 71aa40\n  clapcur caption 71aa40 --checkpoint 5be7d1\n"
        "  clapcur caption 71aa40 --way captioner --captioner 0d93b2",
    ),
    (
        "pseudo-label",
        captioning.pseudo_label,
        "clapcur pseudo-label 9d02e7 --checkpoint 5be7d1 --classes esc50 --tags 71aa40",
    ),
    ("trace", tracing.trace, "clapcur trace 5be7d1\n  clapcur trace 5be7d1 --pairs --json > pairs.jsonl"),
    ("impact", tracing.impact, "clapcur impact recordings/dog.wav"),
    (
        "pairs",
        tracing.pairs,
        'clapcur pairs c4e6f0 --class "dog bark" --sort similarity --limit 10\n  '
        "clapcur pairs c4e6f0 --to webdataset --output my-pairs",
    ),
    ("why", tracing.why, "clapcur why 5be7d1 41c09e"),
    ("sync", tracing.sync, "clapcur sync"),
    ("gc", collecting.gc, "clapcur gc\n  clapcur gc --reports 3 --keep 5be7d1 --delete"),
    ("verify", collecting.verify, "clapcur verify --all\n  clapcur verify 5be7d1 41c09e --json"),
    ("doctor", doctor.doctor, "clapcur doctor\n  clapcur doctor --json"),
    ("up", servers.up, "clapcur up\n  clapcur up --prefect-port 4300 --no-gpu"),
    ("land", landing.land, "clapcur land recordings/2026-11 --pool field"),
    ("watch", landing.watch, "clapcur watch inbox/ --pool field"),
    ("plan", planning.plan, "clapcur plan my-sounds.yaml"),
    ("recurate", landing.recurate, "clapcur recurate my-sounds.yaml"),
    ("forget", landing.forget, 'clapcur forget 9f3a01 recordings/voice.wav --reason "asked on 3 May"'),
)
for name, command, example in COMMANDS:
    app.command(name, epilog=f"\b\nExample:\n  {example}")(logs.logged(name, command))
catalog_app.command("rebuild", epilog="\b\nExample:\n  clapcur catalog rebuild")(
    logs.logged("catalog rebuild", tracing.rebuild)
)
app.add_typer(catalog_app, name="catalog")


def _print_version(value: bool) -> None:
    if value:
        from clapcur import __version__

        print(f"clapcur {__version__}")
        raise typer.Exit


@app.callback()
def _clapcur(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version."),
    quiet: logs.QuietOption = False,
    verbose: logs.VerboseOption = False,
) -> None:
    logs.current().ask(quiet, verbose)


def main() -> None:
    """Run the command that this process's arguments name.

    Importing torch and Prefect creates a million permanent objects. Running the garbage collector less often, and not
    at exit, saves a fifth of the time of a comparison whose results all exist.
    """
    gc.set_threshold(5_000)
    code = run_by_torchrun(sys.argv[1:]) if "TORCHELASTIC_RUN_ID" in os.environ else run(sys.argv[1:])
    gc.freeze()
    sys.exit(code)


def run_by_torchrun(arguments: Sequence[str]) -> int:
    """Run one command in the first of torchrun's processes; the other processes join its trainings."""
    from clapcur.stages.train import torchrun

    if not torchrun.is_launcher():
        return run(arguments)
    if torchrun.rank() == 0:
        with torchrun.leading():
            return run(arguments)
    from clapcur.stages.train.helper import attend

    attend()
    return DONE


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; an error becomes one line on stderr."""
    arguments = arguments or ["--help"]
    log = logs.new(arguments)
    code = FAILED
    try:
        code = _exit_code(app(list(arguments), prog_name="clapcur", standalone_mode=False))
    except Exception as error:
        if os.environ.get("CLAPCUR_TRACEBACK"):
            log.write(logging.ERROR, "stopped by an error", error)
            raise
        line, code, is_expected = _explained(error, arguments)
        if is_expected:
            log.write(logging.ERROR, printable(line), error)
        elif log.path is not None or log.volume == "verbose":
            log.write(logging.CRITICAL, "unexpected error", error)
            if log.volume == "verbose":
                traceback.print_exception(error)
            where = f"its traceback is in {log.path}" if log.path else "its traceback is above"
            line = f"error: {line}. This is a bug, of clapcur or of a library; {where}"
        else:  # nowhere to keep the traceback
            raise
        return _say(line, code)
    finally:
        log.end(code)
    return _say(*_stopped(KeyboardInterrupt())) if code == CTRL_C else code


def _explained(error: Exception, arguments: Sequence[str]) -> tuple[str, int, bool]:
    """Return the line about an error, the exit code, and whether it is an error that we expect."""
    if isinstance(error, typer.TyperException):
        return _usage(error, arguments), USAGE, True
    if stop := next((cause for cause in _causes(error) if isinstance(cause, (Interrupted, KeyboardInterrupt))), None):
        return *_stopped(stop), True
    if isinstance(error, ProcessError) and (refused := _refused_by_home()):  # the cause
        return f"error: {refused}; {error}", FAILED, True
    if isinstance(error, ClapcurError):
        return f"error: {error}", FAILED, True
    if why := why_not_written(error):
        return f"error: {why} ({error}); finished work is kept: fix this and run again", FAILED, True
    if type(error).__module__.startswith("pyarrow"):
        said = f"cannot read a table: {error}; `clapcur verify --all` finds the damaged files"
        return f"error: {said}", FAILED, True
    if isinstance(error, OSError):
        said = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        return f"error: {said}", FAILED, True
    if isinstance(error, (ValueError, TypeError)) and _is_raised_by_us(error):
        return f"error: {error}", USAGE, True
    if refused := _refused_by_home():  # servers and databases in the home fail with errors of their own
        return f"error: {refused}; finished work is kept: fix this and run again", FAILED, True
    if (database := _database_error(error)) is not None:
        said = f"the catalog database does not respond ({database}); finished work is kept"
        return f"error: {said}: run again once the database is up", FAILED, True
    return "".join(traceback.format_exception_only(error)).strip(), FAILED, False


def _stopped(stop: BaseException) -> tuple[str, int]:
    if isinstance(stop, Interrupted):
        return f"interrupted: {stop}", TERMINATED
    return "interrupted; finished work is kept: run the same command again to resume", CTRL_C


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes.

    Ctrl-C and schedulers signal the whole process group. Prefect's temporary server then stops too, so the error here
    may be that it does not respond, with the interrupt as its cause.
    """
    waiting, seen = [error], set()
    while waiting:
        if (one := waiting.pop()) is not None and id(one) not in seen:
            seen.add(id(one))
            waiting += [one.__context__, one.__cause__]
            yield one


def _database_error(error: BaseException) -> BaseException | None:
    """Return the driver's error if a database could not be reached or disconnected; None for any other error."""
    if "sqlalchemy" not in sys.modules:  # help must not import it
        return None
    from sqlalchemy.exc import InterfaceError, OperationalError

    return error.orig if isinstance(error, (InterfaceError, OperationalError)) else None


def _exit_code(returned: object) -> int:
    return returned if isinstance(returned, int) else DONE


def _say(line: str, code: int) -> int:
    print(printable(" ".join(line.split())), file=sys.stderr, flush=True)
    return code


def _usage(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """Return a usage error as one line that names the command for help."""
    named = [argument for argument in arguments if not argument.startswith("-")]
    command = [argument for argument in named[:1] if argument in {name for name, *_ in COMMANDS}]
    said = error.format_message().removeprefix("Invalid value: ").rstrip(".")
    return f"error: {said}; see `{' '.join(['clapcur', *command, '--help'])}`"


def _refused_by_home() -> str | None:
    """Return why nothing can be written to the home of this process; None if writing works or there is no home."""
    home = Path(os.environ.get("CLAPCUR_HOME") or ".clapcur")
    if not home.is_dir():
        return None
    probe = home / f".{os.getpid()}.probe.tmp"
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as error:
        return f"{why_not_written(error, home) or error.strerror}: cannot write to {home}"
    finally:
        with suppress(OSError):
            probe.unlink()
    return None


def _is_raised_by_us(error: BaseException) -> bool:
    """Return whether our own code raised the error, to reject a value, and not a library that we call."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(OURS)
