"""The home: who may look into it, that its name may be anything, and what works where nothing can be written."""

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import chain
import pytest

from clapcur.cli.console import command_line
from clapcur.errors import ArtifactError
from clapcur.lineage.queries import impact, trace
from clapcur.store import database
from clapcur.store.artifacts import Store, write_atomic
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home, sqlite_url
from clapcur.tracking import deliver, sync

CLAPCUR = Path(sys.executable).with_name("clapcur")
ODD_NAMES = ["what?", "a?b=c&d", "a#b", "50%", "50%3F", "with space", "Übung 音", "semi;colon", "quo'te\""]


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o777])
def test_a_new_home_is_open_to_its_owner_alone_whatever_the_umask(tmp_path, umask):
    """Captions and recordings in it may be private, and everybody on the machine could read them."""
    before = os.umask(umask)
    try:
        home = Home.open(tmp_path / "home")
    finally:
        os.umask(before)
    assert mode_of(home.root) == 0o700


@pytest.mark.parametrize(("said", "mode"), [("0750", 0o750), ("770", 0o770), ("0o2770", 0o2770), ("0700", 0o700)])
def test_a_new_home_may_be_opened_to_others(tmp_path, monkeypatch, said, mode):
    """A team that shares a machine shares a home."""
    monkeypatch.setenv("CLAPCUR_HOME_MODE", said)
    assert mode_of(Home.open(tmp_path / "deep" / "home").root) == mode


@pytest.mark.parametrize("said", ["", "rwx", "0999", "0077", "-700", "7", "00700700"])
def test_a_mode_that_is_none_or_shuts_the_owner_out_is_refused(tmp_path, monkeypatch, said):
    """A home that nobody can enter fails in whatever is written first."""
    monkeypatch.setenv("CLAPCUR_HOME_MODE", said)
    with pytest.raises(ValueError, match="CLAPCUR_HOME_MODE must be a file mode such as 0700"):
        Home.open(tmp_path / "home")


def test_a_home_that_exists_keeps_its_mode(tmp_path, monkeypatch):
    """Whoever opened it to a group would find it shut after the next command."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o755)
    monkeypatch.setenv("CLAPCUR_HOME_MODE", "0700")
    assert mode_of(Home.open(tmp_path / "home").root) == 0o755


def test_a_file_in_the_place_of_a_home_is_said_to_be_one(tmp_path, answer):
    """A traceback of pathlib says the same in thirty lines."""
    (tmp_path / "home").write_text("")
    code, _, err = answer("sync", "--home", tmp_path / "home")
    assert code == 1 and err.count("\n") == 1


@pytest.mark.parametrize("name", ODD_NAMES)
def test_catalog_and_mlflow_are_inside_a_home_of_any_name(tmp_path, monkeypatch, name):
    """With a ? in its path the catalog was a file beside the home, and the same one for every home of that name."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    home = Home.open(place / name)
    made = chain.teacher_only(home)
    delivery = deliver(home)
    assert (delivery.delivered, delivery.waiting) == (len(list(home.store)), 0)
    assert [path.name for path in place.iterdir()] == [name]
    assert {"catalog.db", "mlflow.db"} <= {path.name for path in home.root.iterdir()}
    run = Catalog.open(home).run_of(made["teacher_scores"].id)
    (figure,) = home.mlflow_artifacts.rglob("confusion.png")
    assert run in figure.parts
    assert sync(home, rebuild=True).waiting == 0


def test_an_address_of_a_plain_path_stays_as_people_know_it(tmp_path):
    """It is in the commands that they copy."""
    assert sqlite_url(tmp_path / "mlflow.db", "sqlite+pysqlite") == f"sqlite:///{tmp_path}/mlflow.db"
    odd = Home.open(tmp_path / "what?")
    assert odd.mlflow_database == f"sqlite+pysqlite:///file:{tmp_path}/what%3F/mlflow.db?uri=true"
    assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" in odd.environment()
    assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in Home.open(tmp_path / "plain").environment()


def test_a_command_to_copy_is_quoted_for_the_shell(tmp_path):
    """A home with a space in its name made two words of it."""
    home = Home.open(tmp_path / "my $home")
    assert shlex.split(f"{command_line('clapcur', home)} up")[0] == f"CLAPCUR_HOME={home.root}"


@pytest.fixture
def read_only(home, monkeypatch):
    """Make an experiment in a home that takes nothing more, as this process sees it."""
    made = chain.experiment(home)
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **options: mode != os.W_OK and may(path, mode, **options))
    return made


def test_a_read_only_catalog_is_a_copy_that_answers_and_is_written_nowhere(home, read_only):
    """SQLite writes beside its file even to read it."""
    before = (home.root / "catalog.db").read_bytes()
    assert trace(home, read_only["student"].id)["id"] == read_only["student"].id
    assert impact(home, chain.clip("pool-1"))["checkpoints"][0]["id"] == read_only["student"].id
    Catalog.open(home).set_run(read_only["student"].id, "5eed" * 8)
    assert Catalog.open(home).run_of(read_only["student"].id) is None
    assert (home.root / "catalog.db").read_bytes() == before
    with pytest.raises(ArtifactError, match="cannot rebuild the catalog of .*: it is read-only here"):
        Catalog.open(home).rebuild(home.store)


@pytest.mark.parametrize("content", [None, b"", b"no database" * 100])
def test_a_read_only_home_needs_no_catalog(home, read_only, content):
    """The store is the truth: a backup of it alone can be asked."""
    for path in home.root.glob("catalog.db*"):
        path.unlink()
    if content is not None:
        (home.root / "catalog.db").write_bytes(content)
    assert trace(home, read_only["student"].id[:6])["id"] == read_only["student"].id


def test_a_home_that_can_be_written_is_no_copy(home):
    """A copy would forget every run that MLflow was told of."""
    made = chain.teacher_only(home)
    Catalog.open(home).set_run(made["teacher"].id, "5eed" * 8)
    assert Catalog.open(home).run_of(made["teacher"].id) == "5eed" * 8
    assert not database.is_read_only(home.root / "catalog.db")


def mounted(script, *arguments):
    """Run a shell script where it may mount; skips the test where that is not allowed."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs `unshare -m`: mounts of its own")
    program = f'set -e; clapcur() {{ "{CLAPCUR}" "$@"; }}; {script}'
    command = ["unshare", "-m", "bash", "-c", program, "bash", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_every_command_that_reads_works_in_a_home_that_is_mounted_read_only(home):
    """A home on a backup, or on a disk that fell back to reading after an error."""
    from clapcur.testing import write_tones

    made = chain.experiment(home)
    for path in home.root.glob("catalog.db-*"):
        path.unlink()
    tones = write_tones(home.root.with_name("tones"))
    script = """
        mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"
        clapcur trace $2 >&2; clapcur trace $2 --pairs >&2; clapcur pairs $3 >&2; clapcur why $2 >&2
        clapcur impact $4 >&2; clapcur gc >&2; clapcur ls >&2; clapcur show $2 >&2; clapcur verify --json
        set +e
        for command in "gc --delete --grace 0" "catalog rebuild" "forget $4" "compare $5" up; do
            clapcur $command 2>&1 >&2 | tail -n 1
        done
    """
    done = mounted(script, home.root, made["student"].id, made["set"].id, chain.clip("pool-1"), tones)
    assert done.returncode == 0, done.stderr
    verified, *refused = done.stdout.splitlines()
    assert json.loads(verified)["damaged"] == [] and not (home.root / "logs").exists()
    assert len(refused) == 5 and all("read-only" in line and line.startswith("error: ") for line in refused)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("size_kib", [64, 300, 3000])
def test_a_full_disk_is_said_in_one_line_and_leaves_no_half_artifact(tmp_path, size_kib):
    """SQLite, MLflow and Prefect each have an error of their own for it, none of which says so."""
    from clapcur.testing import write_tones

    (tmp_path / "mount").mkdir()
    write_tones(tmp_path / "tones")
    script = """
        mount -t tmpfs -o size=$3k none "$1"
        export CLAPCUR_HOME="$1/home"
        set +e
        clapcur ingest "$2/pairs.csv" >/dev/null 2>&1
        clapcur compare "$2/tones.yaml" 2>&1 >/dev/null | grep "^error: "
        clapcur up --no-gpu 2>&1 >/dev/null | grep "^error: "
        for record in $(find "$1" -name record.json); do cat $record | tr -d "\\n"; echo; done
    """
    done = mounted(script, tmp_path / "mount", tmp_path / "tones", size_kib)
    of_compare, of_up, *records = done.stdout.splitlines()
    for said in (of_compare, of_up):
        assert said.startswith("error: ") and "the disk is full" in said, done.stdout + done.stderr
    assert all(json.loads(record)["record_sha256"] for record in records)


def test_an_unknown_error_in_a_full_home_names_the_home(home, answer, monkeypatch, tmp_path):
    """A server that could not write told of a timeout."""
    import clapcur.lineage.queries

    def fail(where, name):
        raise RuntimeError("timed out while attempting to connect")

    monkeypatch.setattr(clapcur.lineage.queries, "trace", fail)
    assert "RuntimeError: timed out while attempting to connect. This is a bug" in answer("trace", "0123456789ab")[2]
    write = Path.write_bytes

    def refuse(path, content):
        if path.name.endswith(".probe.tmp"):
            raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    code, _, err = answer("trace", "0123456789ab")
    assert code == 1 and err.startswith(f"error: the disk is full: cannot write to {home.root}")


def test_a_write_that_fails_leaves_no_temporary_file(tmp_path, monkeypatch):
    """On a full disk each try would take a little more of what is left."""

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "record.json", "{}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_homes_at_two_places_make_the_same_bytes_in_every_stage(tmp_path):
    """A time or a path in a payload makes every repaired artifact another one."""
    from clapcur.testing import write_tones

    def digests(name):
        home, tones = tmp_path / name / "home", tmp_path / "tones"
        environment = {**os.environ, "CLAPCUR_HOME": str(home)}

        def clapcur(*command):
            done = subprocess.run([CLAPCUR, *map(str, command)], env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr

        clapcur("compare", tones / "tones.yaml")
        clapcur("land", tones / "pairs", "--pool", "field")
        (chosen,) = home.glob("store/improvement_set/*")
        clapcur("audition", chosen.name)
        student = max(home.glob("store/checkpoint/*"))
        clapcur("export", student.name, tmp_path / name / "model")
        clapcur("adopt", tmp_path / name / "model")
        records = [artifact.record for artifact in Store(home / "store")]
        return {(one.stage, one.id): one.files for one in records}

    write_tones(tmp_path / "tones")
    one, two = digests("one"), digests("two/deeper")
    assert {stage for stage, _ in one} >= {
        "ingest", "train", "embed", "curate", "evaluate", "report", "pool", "audition", "adopt"
    }  # fmt: skip
    assert one == two
