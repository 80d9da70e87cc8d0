"""What `clapcur doctor` checks: the installation, the machine, the home and the servers. Nothing here writes."""

import base64
import difflib
import json
import os
import platform
import shutil
import sqlite3
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from threading import Thread
from typing import Any, Literal
from urllib.parse import urlsplit

from clapcur.redaction import HIDDEN, is_secret, redacted
from clapcur.store.home import Home, open_to_read

IMPORT_S, FILES_S, ANSWER_S = 40.0, 20.0, 5.0  # longest wait for a library, for the files of a home, for a server
GIB = 2**30
LITTLE_SPACE, NO_SPACE = 10 * GIB, 1 * GIB  # free bytes on the disk of the home

SHOWN_PACKAGES = ("torch", "torchaudio", "transformers", "faiss-gpu", "soundfile", "mlflow", "prefect")
VARIABLES = (
    "CLAPCUR_HOME", "CLAPCUR_HOME_MODE", "CLAPCUR_DATABASE_URL", "CLAPCUR_MLFLOW_PAGES", "CLAPCUR_LOGIN",
    "CLAPCUR_GUARD_HOSTS", "CLAPCUR_AUDIO_FOLDERS", "CLAPCUR_MAX_CLIP_BYTES", "CLAPCUR_MAX_TEXT_BYTES",
    "CLAPCUR_FAN_OUT", "CLAPCUR_FOLDER", "CLAPCUR_MODEL_POOL", "CLAPCUR_TRACEBACK",
)  # fmt: skip
OTHERS = (
    "MLFLOW_", "PREFECT_", "HF_", "AWS_", "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HTTP_PROXY",
    "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "PYTHONPATH",
)  # fmt: skip

TORCH = """
import json, torch
from clapcur.methods.devices import has_bfloat16
gpus = []
for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    free, total = torch.cuda.mem_get_info(index)
    gpus.append([torch.cuda.get_device_name(index), free, total, has_bfloat16(torch.device("cuda", index))])
try:
    import pynvml
    pynvml.nvmlInit()
    driver = pynvml.nvmlSystemGetDriverVersion() if pynvml.nvmlDeviceGetCount() else None
except Exception:
    driver = None
found = {"cuda": torch.version.cuda, "gpus": gpus, "driver": driver, "bfloat16": has_bfloat16(torch.device("cpu"))}
print(json.dumps(found))
"""
FAISS = "import faiss, json; print(json.dumps(faiss.get_num_gpus()))"
SOUNDFILE = """
import json, soundfile
print(json.dumps([soundfile.__libsndfile_version__, list(soundfile.available_formats())]))
"""

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Line:
    """What one check found, and what to do about it."""

    topic: str
    status: Status
    found: str
    advice: str = ""


Check = Callable[[], Iterator[Line]]


def examine(home: Home) -> list[Line]:
    """Run all checks at the same time, each for a limited time.

    Parameters
    ----------
    home : Home
        It may not exist.
    """
    checks: list[tuple[str, float, Check]] = [
        ("versions", ANSWER_S, versions),
        ("torch", IMPORT_S, machine),
        ("faiss", IMPORT_S, faiss),
        ("audio", IMPORT_S, audio),
        ("extras", ANSWER_S, extras),
        ("home", ANSWER_S, lambda: folder(home)),
        ("size of the home", FILES_S, lambda: size(home)),
        ("store", FILES_S, lambda: store(home)),
        ("catalog", FILES_S, lambda: catalog(home)),
        ("moved home", FILES_S, lambda: moved(home)),
        ("MLflow", 2 * ANSWER_S, lambda: mlflow(home)),
        ("Prefect", 4 * ANSWER_S, lambda: prefect(home)),
        ("environment", ANSWER_S, environment),
    ]
    started = [_started(*check) for check in checks]
    return [line for finish in started for line in finish()]


def _started(topic: str, limit_s: float, check: Check) -> Callable[[], list[Line]]:
    """Start a check in a thread of its own; the result waits for it, up to the limit, and returns what it found."""
    found: list[Line] = []

    def work() -> None:
        try:
            found.extend(check())
        except Exception as error:  # the other checks must still be shown
            said = " ".join(str(error).split()) or "no message"
            found.append(Line(topic, "problem", redacted(f"{type(error).__name__}: {said}")))

    thread = Thread(target=work, daemon=True)  # one that hangs must not keep the process
    thread.start()

    def finish() -> list[Line]:
        thread.join(limit_s)
        late = [Line(topic, "problem", f"no answer within {limit_s:g} s", "is a disk, a server or a driver hanging?")]
        return found if not thread.is_alive() else [*found, *late]

    return finish


# -- the installation


def versions() -> Iterator[Line]:
    """Compare every package with the range that clapcur's own metadata asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    from clapcur import __version__

    try:
        ours = metadata.metadata("clapcur")
    except metadata.PackageNotFoundError:
        yield Line("clapcur", "warning", f"{__version__}, not installed: ranges are not checked", "pip install .")
        return
    yield Line("clapcur", "ok", f"{__version__}, in {Path(__file__).resolve().parents[1]}")
    python, asked = platform.python_version(), ours["Requires-Python"] or ""
    yield _version("python", python, SpecifierSet(asked).contains(python, prereleases=True), asked)
    for requirement in map(Requirement, metadata.requires("clapcur") or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        asked = str(requirement.specifier)
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            advice = f"pip install '{requirement.name}{asked}'"
            yield Line(requirement.name, "problem", f"not installed; {asked or 'any version'} is needed", advice)
            continue
        is_inside = requirement.specifier.contains(version, prereleases=True)
        if requirement.name in SHOWN_PACKAGES or not is_inside:
            yield _version(requirement.name, version, is_inside, asked)


def _version(name: str, version: str, is_inside: bool, asked: str) -> Line:
    if is_inside:
        return Line(name, "ok", f"{version} ({asked})")
    advice = "use another Python" if name == "python" else f"pip install '{name}{asked}'"
    return Line(name, "problem", f"{version}, supported is {asked}", advice)


def extras() -> Iterator[Line]:
    """Check which optional extras are complete, and whether ffmpeg is installed."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires("clapcur") or ()]
        names = metadata.metadata("clapcur").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:  # `versions` says so
        return
    for name in names:
        if name == "dev":
            continue
        needed = [one for one in requirements if one.marker and one.marker.evaluate({"extra": name})]
        missing = [
            one.name for one in needed if one.marker and not one.marker.evaluate({"extra": ""}) and _lacks(one.name)
        ]
        found = f"not installed: {', '.join(missing)}" if missing else "installed"
        yield Line(f"extra {name}", "ok", found, f"if needed: pip install 'clapcur[{name}]'" if missing else "")
    program = shutil.which("ffmpeg")
    yield Line("ffmpeg", "ok", program or "not installed; only `clapcur download audiocaps` needs it")


def _lacks(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return True
    return False


def machine() -> Iterator[Line]:
    """Import torch, and describe the GPUs and the CPU."""
    found = _probe(TORCH)
    if isinstance(found, str):
        yield Line("torch import", "problem", found, "reinstall torch and torchaudio of one version")
        return
    cuda = found["cuda"]
    if found["gpus"]:
        for name, free, total, has_bfloat16 in found["gpus"]:
            what = f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, CUDA {cuda}, "
            yield Line("GPU", "ok", f"{what}{'bfloat16' if has_bfloat16 else 'no bfloat16'}")
    elif found["driver"] and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        said = f"driver {found['driver']} lists a GPU, but torch (CUDA {cuda}) cannot use it"
        yield Line("GPU", "problem", said, "update NVIDIA's driver, or install a torch for its CUDA version")
    else:
        yield Line("GPU", "ok", f"none; models run on the CPU (torch is built for CUDA {cuda})")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    speed = "bfloat16" if found["bfloat16"] else "no bfloat16: `precision: auto` uses float32"
    yield Line("CPU", "ok", f"{usable} of {os.cpu_count()} cores, {speed}")


def faiss() -> Iterator[Line]:
    """Import faiss."""
    found = _probe(FAISS)
    if isinstance(found, str):
        yield Line("faiss import", "problem", found, "reinstall faiss-gpu")
    else:
        yield Line("faiss import", "ok", f"works, with {found} GPUs")


def audio() -> Iterator[Line]:
    """Import soundfile, and name the formats of its libsndfile."""
    found = _probe(SOUNDFILE)
    if isinstance(found, str):
        yield Line("libsndfile", "problem", found, "pip install --force-reinstall soundfile")
        return
    version, formats = found
    wanted = ("WAV", "FLAC", "OGG", "MP3")
    missing = [name for name in wanted if name not in formats]
    said = f"{version} reads {', '.join(name for name in wanted if name in formats)} and {len(formats)} formats in all"
    if missing:
        yield Line("libsndfile", "warning", f"{said}, not {', '.join(missing)}", "pip install --upgrade soundfile")
    else:
        yield Line("libsndfile", "ok", said)


def _probe(code: str) -> Any:
    """Return the JSON that a program prints in a process of its own, which may crash or hang; else what went wrong."""
    try:
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=IMPORT_S - 5)
    except subprocess.TimeoutExpired:
        return f"no answer within {IMPORT_S - 5:g} s"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return redacted(last)
    return json.loads(done.stdout.splitlines()[-1])


# -- the home


def folder(home: Home) -> Iterator[Line]:
    """Check the folder of the home and its disk."""
    root = home.root
    if not root.exists():
        yield Line(
            "home", "warning", f"{root} does not exist", "the first command that writes creates it; or set CLAPCUR_HOME"
        )
        return
    if not root.is_dir():
        yield Line("home", "problem", f"{root} is not a folder", "move the file away, or set CLAPCUR_HOME")
        return
    mode = stat.S_IMODE(root.stat().st_mode)
    is_writable = os.access(root, os.W_OK) and not os.statvfs(root).f_flag & os.ST_RDONLY
    others = "" if mode & 0o077 == 0 else ", other users may enter it"
    if is_writable:
        yield Line("home", "ok", f"{root}, mode {mode:04o}{others}")
    else:
        said = f"{root} is read-only for this user: only commands that read work"
        yield Line("home", "problem", said, "check the owner of the folder and how its disk is mounted")
    free = shutil.disk_usage(root).free
    status: Status = "problem" if free < NO_SPACE else "warning" if free < LITTLE_SPACE else "ok"
    advice = "" if status == "ok" else "free some space; `clapcur gc` lists what no kept model needs"
    yield Line("disk", status, f"{free / GIB:.1f} GiB free", advice)


def size(home: Home) -> Iterator[Line]:
    """Add up the files of the home."""
    if not home.root.is_dir():
        return
    total = 0
    for path, _, names in os.walk(home.root):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:  # deleted in the meantime
                continue
    yield Line("size of the home", "ok", f"{total / GIB:.2f} GiB")


def store(home: Home) -> Iterator[Line]:
    """Check that every record can be read and that its files have their sizes; `verify` hashes them."""
    if not home.root.is_dir():
        return
    count, bad = 0, []
    for artifact in home.store:
        record = artifact.record
        count += 1
        sizes = {name: entry["bytes"] for name, entry in record.files.items()}
        if any(not _has_size(artifact.path / name, wanted) for name, wanted in sizes.items()):
            bad.append(f"{artifact.kind} {artifact.id}")
    if bad:
        said = f"{len(bad)} of {count:,} artifacts lack a file, or have one of another size: {_few(bad)}"
        yield Line("payloads", "problem", said, "`clapcur verify --all` shows how to recompute them")
    for broken, why in home.store.damaged_records().items():
        advice = f"`clapcur verify {broken.name}` shows how to recompute it"
        yield Line("records", "problem", why.split("; the artifact is treated")[0], advice)
    if not bad:
        yield Line("payloads", "ok", f"{count:,} artifacts have all their files (sizes; `clapcur verify` hashes them)")


def _has_size(path: Path, wanted: int) -> bool:
    return path.is_file() and path.stat().st_size == wanted


def catalog(home: Home) -> Iterator[Line]:
    """Compare the catalog with the store, and look for pending records and stale leases."""
    from sqlalchemy.exc import SQLAlchemyError

    from clapcur.store.catalog import Catalog

    if not home.root.is_dir():
        return
    file, where = home.root / "catalog.db", redacted(home.database_url)
    made = {artifact.id: artifact.record.finished for artifact in home.store}
    if where.startswith("sqlite"):
        if not file.exists():
            status: Status = "warning" if made else "ok"
            said = f"there is none, but {len(made):,} artifacts" if made else "there is none yet, and no artifact"
            yield Line("catalog", status, said, "run `clapcur catalog rebuild`" if made else "")
            return
        if why := _unreadable(file):
            advice = f"move {file} away and run `clapcur catalog rebuild`"
            yield Line("catalog", "problem", f"{file} cannot be read: {why}", advice)
            return
    try:
        index = Catalog.peek(home)
        known, waiting, left = index.finished(), index.num_waiting(), index.stale_leases()
    except SQLAlchemyError as error:
        said = " ".join(str(getattr(error, "orig", error)).split())
        yield Line(
            "catalog",
            "problem",
            redacted(f"{where} does not answer: {said}"),
            "start its server, or check CLAPCUR_DATABASE_URL",
        )
        return
    damaged = {path.name for path in home.store.damaged_records()}
    missing = [name for name, finished in made.items() if known.get(name) != finished]
    surplus = [name for name in known if name not in made and name not in damaged]
    if missing or surplus:
        said = f"{_number(missing)} of the store missing in it, {_number(surplus)} in it missing in the store"
        yield Line("catalog", "problem", f"{said}: {_few(missing + surplus)}", "run `clapcur catalog rebuild`")
    else:
        yield Line("catalog", "ok", f"{where} agrees with the store on {len(known):,} artifacts")
    if waiting:
        yield Line("outbox", "warning", f"not in MLflow yet: {waiting:,}", "run `clapcur sync`")
    else:
        yield Line("outbox", "ok", "every record was sent to MLflow")
    if left:
        said = f"{len(left)} left by processes that were killed: {_few(left)}"
        yield Line("leases", "warning", said, "nothing: the next command that needs one takes it over")
    else:
        yield Line("leases", "ok", "none is stale")


def _unreadable(file: Path) -> str | None:
    try:
        with closing(open_to_read(file)) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return str(error)
    return None


def moved(home: Home) -> Iterator[Line]:
    """Look for former locations of the home in MLflow's file."""
    import sqlalchemy as sa

    from clapcur.tracking.moved import former_roots

    if not home.mlflow_file.exists() or not home.mlflow_uri.startswith("sqlite"):
        return
    if why := _unreadable(home.mlflow_file):
        advice = "move it away and run `clapcur sync --rebuild`"
        yield Line("MLflow's file", "problem", f"{home.mlflow_file} cannot be read: {why}", advice)
        return
    engine = sa.create_engine("sqlite://", creator=lambda: open_to_read(home.mlflow_file), poolclass=sa.NullPool)
    before = former_roots(engine, home)
    if before:
        said = f"MLflow still names {', '.join(map(str, before))}, where this home was before"
        yield Line("moved home", "warning", said, "run `clapcur sync`")


def _number(found: list[str]) -> str:
    return f"{len(found):,} artifact{'s' * (len(found) != 1)}"


def _few(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


# -- the servers


def mlflow(home: Home) -> Iterator[Line]:
    """Ask MLflow's server, if there is one, for its version."""
    address = home.mlflow_uri
    shown = redacted(address)
    if not address.startswith("http"):
        yield Line("MLflow", "ok", f"no server; runs are in {shown}")
        return
    servers = home.servers()
    known = {name: os.environ.get(name) or servers.get(name, "") for name in _LOGIN}
    login = ":".join(known.values()) if all(known.values()) else None
    answer = _ask(f"{address.rstrip('/')}/version", login)
    if isinstance(answer, Refusal):
        yield Line(
            "MLflow", "problem", f"{shown}: {answer.why}", "start it with `clapcur up`, or check MLFLOW_TRACKING_URI"
        )
        return
    yield _same_version("MLflow", shown, answer.strip().strip('"'), metadata.version("mlflow"))


_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def prefect(home: Home) -> Iterator[Line]:
    """Ask Prefect's server, if there is one, for its version and its workers."""
    servers = home.servers()
    address = os.environ.get("PREFECT_API_URL") or servers.get("PREFECT_API_URL")
    if not address:
        yield Line("Prefect", "ok", "no server; a command that runs a flow starts its own")
        return
    shown, address = redacted(address), address.rstrip("/")
    login = os.environ.get("PREFECT_API_AUTH_STRING") or servers.get("PREFECT_API_AUTH_STRING")
    answer = _ask(f"{address}/admin/version", login)
    if isinstance(answer, Refusal):
        yield Line(
            "Prefect", "problem", f"{shown}: {answer.why}", "start it with `clapcur up`, or check PREFECT_API_URL"
        )
        return
    yield _same_version("Prefect", shown, answer.strip().strip('"'), metadata.version("prefect"))
    pools = _ask(f"{address}/work_pools/filter", login, {})
    names = [] if isinstance(pools, Refusal) else [pool["name"] for pool in json.loads(pools)]
    polling = []
    for name in names:
        workers = _ask(f"{address}/work_pools/{name}/workers/filter", login, {})
        if not isinstance(workers, Refusal):
            polling += [f"{one['name']} ({name})" for one in json.loads(workers) if one.get("status") == "ONLINE"]
    if polling:
        yield Line("workers", "ok", f"polling: {', '.join(polling)}")
    else:
        said = f"none is polling {' or '.join(names)}" if names else "there is no work pool"
        yield Line(
            "workers",
            "warning",
            f"{said}: flows started on Prefect's page wait",
            "run `clapcur up`, or `prefect worker start`",
        )


@dataclass(frozen=True)
class Refusal:
    """Why a server did not answer."""

    why: str


def _ask(url: str, login: str | None, body: Mapping[str, Any] | None = None) -> str | Refusal:
    request = urllib.request.Request(url, headers={"Content-Type": "application/json"})
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    if body is not None:
        request.data = json.dumps(body).encode()
    is_here = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")  # a proxy cannot reach our loopback
    handlers = [urllib.request.ProxyHandler({})] if is_here else []
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=ANSWER_S) as answer:
            return str(answer.read(2**20).decode(errors="replace"))
    except urllib.error.HTTPError as error:
        is_login = error.code in (401, 403)
        return Refusal(
            f"it rejects the login (HTTP {error.code})" if is_login else f"it answers with HTTP {error.code}"
        )
    except (urllib.error.URLError, OSError, ValueError) as error:
        return Refusal(redacted(f"no answer: {getattr(error, 'reason', error)}"))


def _same_version(name: str, where: str, server: str, client: str) -> Line:
    if server == client:
        return Line(name, "ok", f"{where} answers, version {server}")
    said = f"{where} has version {server}, the client here {client}"
    return Line(name, "warning", said, "install the same version on both sides")


# -- the environment


def environment() -> Iterator[Line]:
    """List the variables that affect clapcur, with secrets hidden."""
    for name, value in sorted(os.environ.items()):
        if not name.startswith(("CLAPCUR_", *OTHERS)) or not value:
            continue
        shown = HIDDEN if is_secret(name) else redacted(value)
        if name.startswith("CLAPCUR_") and name not in VARIABLES:
            close = difflib.get_close_matches(name, VARIABLES, 1)
            hint = f"did you mean {close[0]}?" if close else "see docs/environment.md"
            yield Line(name, "warning", f"{shown}: clapcur does not know this variable", hint)
        else:
            yield Line(name, "ok", shown)
