"""What is shipped: a wheel with one name in it, and sources that are complete, in a folder where nothing is ours."""

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import urllib.request
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from source_tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Build both archives as a release does: the sources from the checkout, the wheel from the sources."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-o", folder, ROOT], check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel into an environment of its own, which has this one's other packages but not our checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    theirs = dict.fromkeys(
        path for path in (sysconfig.get_path("purelib"), *sys.path) if path.endswith("site-packages")
    )
    (site / "others.pth").write_text("\n".join(theirs))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-qq", "--no-deps"]
    subprocess.run([*pip, "--ignore-installed", "--no-index", wheel], check=True)
    return folder / "bin"


@pytest.fixture
def strange_folder(tmp_path, monkeypatch):
    """Enter a folder as an Invoke and Prefect user has it: tasks.py, flows/ and deployments/ of their own."""
    for name in ("tasks.py", "flows/__init__.py", "deployments/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise ImportError('this one is the user\\'s')\n")
    return tmp_path


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "PYTHON"))}
    return kept | {"OMP_NUM_THREADS": "1"} | more


def test_the_wheel_installs_one_name(wheel):
    """`tasks` or `flows` at the top of site-packages hide a user's own, or are hidden by them."""
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"clapcur"}


def test_the_wheel_holds_every_file_of_the_package(wheel):
    """A page without its style, or a package without py.typed, is only missed by whoever installs it."""
    tracked = subprocess.run(
        ["git", "ls-files", "clapcur", "flows", "tasks", "deployments"], cwd=ROOT, capture_output=True
    )
    if tracked.returncode:
        pytest.skip("no git here, which knows the files")
    paths = [Path(path) for path in tracked.stdout.decode().split() if not (ROOT / path).is_symlink()]
    expected = {str(path if path.parts[0] == "clapcur" else Path("clapcur", path)) for path in paths}
    assert expected - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_the_sources_hold_what_the_tests_and_the_image_need(dist):
    """Tests that read docker-compose.yml stopped at collection when they were run from the archive."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True)
    if tracked.returncode:
        pytest.skip("no git here, which knows the files")
    (sources,) = dist.glob("*.tar.gz")
    held = {name.split("/", 1)[1] for name in tarfile.open(sources).getnames() if "/" in name}
    expected = {path for path in tracked.stdout.decode().split() if not (ROOT / path).is_symlink()}
    assert expected - held == set()


def test_what_is_written_about_the_package_is_complete(wheel):
    """A page on an index without a licence, an address or a version is one that nobody installs from."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    about = Parser().parsestr(archive.read(name).decode())
    assert about["License-Expression"] == "MIT" and about["Requires-Python"] == ">=3.11"
    assert len(about.get_all("Project-URL")) >= 3 and "Typing :: Typed" in about.get_all("Classifier")


def test_the_demo_starts_in_a_folder_with_tasks_and_flows_of_its_own(installed, strange_folder):
    """With top-level packages the first import ended in "'tasks' is not a package"."""
    with open(strange_folder / "out.txt", "w") as out:
        home = {"CLAPCUR_HOME": str(strange_folder / "home")}
        demo = subprocess.Popen(
            [installed / "clapcur", "demo"], cwd=strange_folder, env=environment(**home), stdout=out, stderr=out
        )
        try:
            wait_until(
                lambda: list(strange_folder.glob("home/store/manifest/*/record.json")) or demo.poll() is not None, 120
            )
        finally:
            demo.send_signal(signal.SIGTERM)
            demo.wait(60)
    assert list(strange_folder.glob("home/store/manifest/*/record.json")), (strange_folder / "out.txt").read_text()


def test_the_servers_start_in_a_folder_with_tasks_and_flows_of_its_own(installed, strange_folder):
    """The servers, the worker and the deployments are programs of their own: each imports flows and tasks anew."""
    ports = [free_port(), free_port()]
    command = [installed / "clapcur", "up", "--no-gpu", "--home", strange_folder / "home"]
    options = ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    with open(strange_folder / "out.txt", "w") as out:
        up = subprocess.Popen([*command, *options], cwd=strange_folder, env=environment(), stdout=out, stderr=out)
        try:
            wait_until(lambda: (strange_folder / "home" / "servers.json").exists() or up.poll() is not None, 150)
            assert up.poll() is None, (strange_folder / "out.txt").read_text()
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/api/health") as answer:
                assert answer.status == 200
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(60)
    assert not re.search(r"ImportError|ModuleNotFoundError", (strange_folder / "out.txt").read_text())


def wait_until(happens, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.2)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
