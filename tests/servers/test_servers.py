"""Processes that live and die together, with small programs in the place of servers."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from waiting import wait_until

from clapcur.errors import ClapcurError
from clapcur.servers import local as servers
from clapcur.servers.supervisor import ProcessError, Processes, Program
from clapcur.store.home import Home, is_locked

WAITS = "import time; print('here', flush=True); time.sleep(60)"


def program(name, code, is_ready=lambda: True):
    """Return a Python program of a few lines."""
    return Program(name, [sys.executable, "-I", "-S", "-c", code], dict(os.environ), is_ready)


def lives(pid):
    """Return whether a process does anything yet; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def numbers_in(path):
    """Return the process numbers that a program has written, once it has."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return [int(number) for number in path.read_text().split()]


def with_child(path):
    """Return the code of a program that starts another one and writes both their numbers."""
    return (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-I', '-S', '-c', {WAITS!r}])\n"
        f"open({str(path)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}\\n')\n"
        "time.sleep(60)\n"
    )


def test_what_a_program_started_ends_with_it(tmp_path):
    """A server's own worker that lives on keeps the port, and the next start fails."""
    with Processes(tmp_path) as processes:
        processes.start(program("server", with_child(tmp_path / "pids")))
        pids = numbers_in(tmp_path / "pids")
        assert all(map(lives, pids))
    assert not any(map(lives, pids))


def test_nothing_outlives_a_parent_that_was_killed(tmp_path):
    """SIGKILL leaves no time to tidy up: without the watchdog both servers would run on, unseen."""
    code = f"""
        import os, sys, time
        from pathlib import Path
        from clapcur.servers.supervisor import Processes, Program
        with Processes(Path({str(tmp_path)!r})) as processes:
            command = [sys.executable, "-I", "-S", "-c", {with_child(tmp_path / "pids")!r}]
            processes.start(Program("server", command, dict(os.environ)))
            time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    pids = numbers_in(tmp_path / "pids")
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(lives, pids)))


def test_a_program_that_ignores_the_request_is_killed(tmp_path):
    """One process that hangs must not keep the command from ending."""
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS
    processes = Processes(tmp_path, grace_s=0.3)
    with processes:
        processes.start(program("server", stubborn))
        wait_until(lambda: "here" in (tmp_path / "server.log").read_text())
        started = time.monotonic()
    assert time.monotonic() - started < 5


def test_what_dies_is_started_again_with_nothing_left_of_before(tmp_path):
    """A server that is out of memory once must not take the page, or the other servers' work, with it."""
    lives_and_dies = f"open({str(tmp_path / 'starts')!r}, 'a').write('x')\n" + with_child(tmp_path / "pids")
    told = []
    with Processes(tmp_path) as processes:
        processes.start(program("worker cpu", WAITS))
        processes.start(program("mlflow server", lives_and_dies))
        first = numbers_in(tmp_path / "pids")

        def say(text):
            told.append(text)
            if len(told) > 1:
                raise KeyboardInterrupt
            (tmp_path / "pids").unlink()
            threading.Thread(target=lambda: os.kill(numbers_in(tmp_path / "pids")[0], signal.SIGKILL)).start()

        os.kill(first[0], signal.SIGKILL)
        with pytest.raises(KeyboardInterrupt):
            processes.supervise(say)
        assert not any(map(lives, first)), "what the dead one had started holds its port"
    assert (tmp_path / "starts").read_text() == "xx"
    assert all("mlflow server died (exit -9) and is restarted" in text for text in told)


def test_what_dies_again_and_again_ends_all_with_its_last_words(tmp_path):
    """A page that stopped answering tells nobody why; the end of the log does."""
    with Processes(tmp_path) as processes:
        processes.start(program("mlflow server", WAITS))
        processes.start(program("worker cpu", "import sys; print('no such pool'); sys.exit(3)"))
        told = []
        with pytest.raises(ProcessError, match=r"worker cpu died 4 times \(exit 3\).*worker-cpu\.log") as caught:
            processes.supervise(told.append)
    assert caught.value.last_lines == 4 * ["no such pool"]
    assert len(told) == 3


def test_waiting_for_a_server_ends_when_it_dies_and_when_it_takes_too_long(tmp_path):
    """Waiting three minutes for a process that is dead helps nobody."""
    with Processes(tmp_path) as processes:
        processes.start(program("server", "raise SystemExit('port taken')", lambda: False))
        with pytest.raises(ProcessError, match="server died"):
            processes.wait_ready(60)
    with Processes(tmp_path) as processes:
        processes.start(program("slow", WAITS, lambda: False))
        with pytest.raises(ProcessError, match="slow was not ready after 0 s"):
            processes.wait_ready(0.2)


def test_a_program_that_is_run_to_its_end_fails_loudly(tmp_path):
    """Deployments that were not registered would be missed only in the browser."""
    with Processes(tmp_path) as processes:
        processes.run(program("deployments", "print('two deployments')"), 30)
        with pytest.raises(ProcessError, match="deployments failed"):
            processes.run(program("deployments", "raise SystemExit(1)"), 30)
        processes.check()  # what ended is no longer watched


# -- ports


def test_a_taken_port_is_replaced_where_it_was_the_default_and_refused_where_it_was_named():
    with socket.socket() as taken:
        taken.bind((servers.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert servers.is_free(servers.choose_port(None, port, "--prefect-port"))
        with pytest.raises(ClapcurError, match=f"port {port} is in use; choose another one with --prefect-port"):
            servers.choose_port(port, 4200, "--prefect-port")
    assert servers.choose_port(port, 4200, "--prefect-port") == port


# -- one home, one set of servers


def addresses(home):
    """Return the addresses that the servers of a home write down."""
    return servers.LocalServers(home=home, prefect_port=4201, mlflow_port=5001, folder=home.root).addresses()


def test_a_second_set_of_servers_is_refused_with_the_addresses_of_the_first(home):
    """Two Prefect servers on one SQLite file wait for each other for ever."""
    with servers.sole(home):
        home.servers_file.write_text(json.dumps(addresses(home)))
        with pytest.raises(
            ClapcurError, match=r"already running .*127\.0\.0\.1:4201, MLflow at http://127\.0\.0\.1:5001"
        ):
            with servers.sole(home):
                pass
    with servers.sole(home):
        assert not home.servers_file.exists()


def test_the_other_commands_use_running_servers_and_forget_dead_ones(home):
    """An address of servers that were killed would make every command wait for nobody."""
    code = "import sys, time; from clapcur.servers import local as servers; from clapcur.store.home import Home\n"
    code += "with servers.sole(Home.open()): print(flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    home.servers_file.write_text(json.dumps(addresses(home)))
    assert is_locked(home.servers_lock)
    assert home.mlflow_uri == "http://127.0.0.1:5001"
    assert home.environment()["PREFECT_API_URL"] == "http://127.0.0.1:4201/api"
    holder.kill()
    holder.communicate()
    assert home.mlflow_uri == home.mlflow_database
    assert "PREFECT_API_URL" not in home.environment()


def test_the_environment_outranks_running_servers(home, monkeypatch):
    """Whoever names a server means it."""
    with servers.sole(home):
        home.servers_file.write_text(json.dumps(addresses(home) | {"CLAPCUR_DATABASE_URL": "postgresql://a/b"}))
        assert home.database_url == "postgresql://a/b"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
        monkeypatch.setenv("CLAPCUR_DATABASE_URL", "sqlite:///own.db")
        assert home.mlflow_uri == "http://elsewhere:5000"
        assert home.database_url == "sqlite:///own.db"


def test_each_server_has_a_database_of_its_own_beside_the_catalog(tmp_path):
    """Prefect and MLflow both keep their schema's version in a table of one name: in one database each breaks both."""
    local = servers.LocalServers(
        home=Home(tmp_path), prefect_port=1, mlflow_port=2, folder=tmp_path,
        database_url="postgresql://me:secret@db/clapcur", artifact_root="s3://bucket/mlflow",
    )  # fmt: skip
    prefect = local.prefect_server().environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    assert prefect == "postgresql+asyncpg://me:secret@db/clapcur_prefect"
    mlflow = local.mlflow_server()
    assert mlflow.environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg://me:secret@db/clapcur_mlflow"
    assert "s3://bucket/mlflow" in mlflow.command
    assert local.worker("cpu").environment["CLAPCUR_DATABASE_URL"] == "postgresql://me:secret@db/clapcur"


def test_no_command_line_holds_a_secret(tmp_path):
    """Every user of a machine can read every command line of it."""
    local = servers.LocalServers(
        home=Home(tmp_path), prefect_port=1, mlflow_port=2, folder=tmp_path, database_url="postgresql://me:secret@db/c"
    )
    password = local.home.login.partition(":")[2]
    for program in (local.prefect_server(), local.mlflow_server(), local.worker("cpu"), local.registration()):
        words = " ".join(program.command)
        assert "secret" not in words and password not in words


def test_a_gpu_trains_one_model_at_a_time(tmp_path):
    """Two trainings on one GPU run out of its memory, both of them."""
    local = servers.LocalServers(home=Home(tmp_path), prefect_port=1, mlflow_port=2, folder=tmp_path, has_gpu=True)
    command = list(local.worker("gpu").command)
    assert command[command.index("--limit") + 1] == "1"
    assert local.environment()["CLAPCUR_MODEL_POOL"] == "gpu"


def test_a_signal_during_the_end_hurries_it(tmp_path):
    """Who presses Ctrl-C twice does not want to wait for the grace period."""
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS
    with Processes(tmp_path, grace_s=30) as processes:
        processes.start(program("server", stubborn))
        wait_until(lambda: "here" in (tmp_path / "server.log").read_text())
        helper = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                "-c",
                f"""if True:
            import os, time
            time.sleep(0.5)
            os.kill({os.getpid()}, {int(signal.SIGINT)})""",
            ]
        )
        started = time.monotonic()
    assert time.monotonic() - started < 10
    helper.wait()


@pytest.mark.parametrize(("before", "hears_hangup"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_ctrl_c_is_heard_in_a_script_too_and_nohup_is_obeyed(before, hears_hangup):
    """A shell ignores SIGINT for what it starts in a script's background, and the servers would outlive the script."""
    from clapcur.cli.servers import listen_for_the_end

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, before) for number in numbers}
    try:
        listen_for_the_end()
        for number in numbers:
            if number != signal.SIGHUP or hears_hangup:
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(number)
        assert hears_hangup or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
