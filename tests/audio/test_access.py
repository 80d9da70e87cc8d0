"""Which addresses may be read: nobody's table makes this machine ask another, and nothing makes it wait or fill up."""

import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from addressed_sounds import content, sound, write_tar
from ingest_tools import make, pairs, quarantined, scanned, tones, write_csv
from pyarrow import parquet

from clapcur.audio import Problem, probe, stores
from clapcur.audio.access import Roots, open_regular
from clapcur.audio.addresses import cell_address
from clapcur.errors import DataError, ManifestError
from clapcur.stages.ingest import IngestConfig, shards
from clapcur.store.artifacts import Store

CHAINS = ("simplecache::{0}", "blockcache::{0}", "filecache://x::{0}", "zip://a.wav::{0}", "reference://::{0}")


class Web(ThreadingHTTPServer):
    """A web server on this machine that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.server.files.get(self.path)
        place = self.server.redirects.get(self.path)
        self.send_response(302 if place else 200 if body is not None else 404)
        if place:
            self.send_header("Location", place)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# --- tables ---------------------------------------------------------------------------------------------------------


def test_a_table_makes_this_machine_ask_nobody(tmp_path: Path, web: Web) -> None:
    """A table of somebody else's looks through the network that only this machine is in."""
    web.files["/a.wav"] = sound(0, "WAV")
    (file,) = tones(tmp_path, 1)
    url = f"{web.url}/a.wav"
    places = [url, *(chain.format(url) for chain in CHAINS), f"{web.url}/a.tar", f"{web.url}/a.tar#bytes=0-9&name=a"]
    places += [f"{web.url}/b.parquet#row=0&column=audio", "file:///etc/passwd", "nosuchstore://a/b.wav"]
    found = scanned(write_csv(tmp_path / "t.csv", [("path",), (file,), *((place,) for place in places)]),
                    max_bad_fraction=1)  # fmt: skip
    assert web.asked == []
    assert found.counts["clips"] == 1 and found.counts["quarantined"] == len(places)
    assert set(found.reasons) == {"not_allowed"}


def test_a_table_names_objects_under_the_roots_that_the_config_allows(tmp_path: Path, web: Web) -> None:
    web.files |= {f"/{folder}/a.wav": sound(seed, "WAV") for seed, folder in enumerate(("pool", "pool2", "other"))}
    table = write_csv(tmp_path / "t.csv", [("path",), *((f"{web.url}{file}",) for file in web.files)])
    found = scanned(table, roots=[f"{web.url.replace('http', 'HTTP')}/pool/"], max_bad_fraction=1)
    assert list(found.manifest.paths.values()) == [f"{web.url}/pool/a.wav"]
    assert {place.split()[1] for place in web.asked} == {"/pool/a.wav"}
    assert scanned(table, roots=[web.url]).counts["clips"] == 3
    with pytest.raises(ManifestError, match="3 of the 3 rows .*not_allowed.*under none of the allowed roots; add"):
        scanned(table)


@pytest.mark.parametrize(
    "path",
    [
        "http://host/pool/../x.wav", "http://host/pool/%2e%2E/x.wav", "http://host/pool/a/..\\..\\x.wav", 
        "http://host@other/pool/x.wav", "http://host.other/pool/x.wav", "http://host/pool2/x.wav", "https://host/pool/x.wav",
        "http://host/x.wav", "s3://host/pool/x.wav", "http://host/pool/x.zip::file:///etc", "reference://host/pool/x",
    ],
)  # fmt: skip
def test_no_way_of_writing_a_url_leads_out_of_a_root(path: str) -> None:
    assert Roots.of(["http://host/pool/"]).refusal(path)


@pytest.mark.parametrize("path", ["http://host/pool/x.wav", "HTTP://Host/pool/a..b/x.wav", "http://host/pool"])
def test_what_is_under_a_root_is_allowed(path: str) -> None:
    assert Roots.of(["http://HOST/pool/"]).refusal(path) == Roots.of(["http://host/pool"]).refusal(path) == ""


def test_every_store_may_be_allowed_by_its_protocol() -> None:
    assert Roots.of(["s3://"]).refusal("s3://any/x.wav") == ""
    assert Roots.of(["s3://"]).refusal("s3a://any/x.wav")


def test_the_command_takes_roots(
    tmp_path: Path, home: Any, web: Web, answer: Callable[..., tuple[int, str, str]]
) -> None:
    web.files["/a.wav"] = sound(0, "WAV")
    table = write_csv(tmp_path / "t.csv", [("path",), (f"{web.url}/a.wav",)])
    for command in (["ingest", table], ["land", table, "--pool", "field"]):
        code, _, said = answer(*command)
        assert code == 1 and "not_allowed" in said
        code, said, _ = answer(*command, "--root", web.url)
        assert code == 0


@pytest.mark.parametrize("root", ["pool", "reference://a/b", "zip://a::http://b", "file:///"])
def test_a_root_that_cannot_be_one_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match="root"):
        IngestConfig(source="t.csv", roots=("/", root))


def test_roots_are_a_list() -> None:
    """A text passes for a list of its letters, the first of which is the root of all folders."""
    with pytest.raises(TypeError, match="roots must be a list"):
        IngestConfig(source="t.csv", roots="/pool")  # type: ignore[arg-type]


def test_folders_are_kept_to_through_links(tmp_path: Path) -> None:
    for folder in ("pool", "private"):
        tones(tmp_path / folder, 1)
    (tmp_path / "pool" / "out.wav").symlink_to(tmp_path / "private" / "0.wav")
    (tmp_path / "pool" / "in.wav").symlink_to("0.wav")
    names = ["pool/0.wav", "pool/in.wav", "pool/out.wav", "private/0.wav", "pool/../private/0.wav", "private/gone.wav"]
    (tmp_path / "tables").mkdir()
    table = write_csv(tmp_path / "tables" / "t.csv", [("path",), *((f"{tmp_path}/{name}",) for name in names)])
    found = scanned(table, roots=[str(tmp_path / "pool")], max_bad_fraction=1)
    assert found.counts["clips"] == 1 and found.counts["rows"] == 6 and found.reasons == {"not_allowed": 4}


@pytest.mark.parametrize("name", ["a.\0wav", "\0", "a.tar#\0.wav"])
def test_a_name_with_a_nul_costs_its_row_alone(tmp_path: Path, name: str) -> None:
    """Every call to the system answers such a name with a ValueError: one damaged cell ended the whole ingest."""
    tones(tmp_path, 1)
    for table in (tmp_path / "t.parquet", tmp_path / "t.jsonl"):
        rows = pa.table({"path": ["0.wav", name]})
        if table.suffix == ".parquet":
            parquet.write_table(rows, table)
        else:
            table.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
        found = scanned(table, max_bad_fraction=0.5)
        assert found.counts["clips"] == 1 and list(found.quarantine.reason) == ["not_allowed"]
        assert "NUL" in found.quarantine.detail[0]
    with pytest.raises(FileNotFoundError):
        open_regular(str(tmp_path / name))


@pytest.mark.parametrize(
    "url",
    [
        "reference://x",
        "zip://a::http://h/b",
        "simplecache::http://127.0.0.1:9/a.wav",
        "simplecache://x",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_store_is_refused_wherever_it_comes_from(url: str) -> None:
    """The documents of reference:// were code once."""
    for attempt in (lambda: stores.filesystem(url), lambda: scanned_url(url)):
        with pytest.raises(DataError, match="cannot be read: "):
            attempt()


def scanned_url(url: str) -> Any:
    from clapcur.stages.ingest import scan

    return scan(IngestConfig(source=url))


# --- servers --------------------------------------------------------------------------------------------------------


def test_a_redirect_is_not_followed(tmp_path: Path, web: Web) -> None:
    """A server that may be asked sends us to one that may not."""
    web.redirects["/a.wav"], web.files["/secret.wav"] = f"{web.url}/secret.wav", sound(0, "WAV")
    answer = probe(f"{web.url}/a.wav")
    assert isinstance(answer, Problem) and answer.reason == "unreadable" and "redirects" in answer.detail
    assert {place.split()[1] for place in web.asked} == {"/a.wav"}


def test_an_object_of_the_web_is_read_and_one_that_is_not_there_is_missing(web: Web) -> None:
    web.files["/a.wav"] = sound(0, "WAV", 3_000_000)
    assert content(f"{web.url}/a.wav") == web.files["/a.wav"]
    answer = probe(f"{web.url}/b.wav")
    assert isinstance(answer, Problem) and answer.reason == "missing"


def test_a_body_that_is_packed_is_not_unpacked(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    web.files["/a.wav"] = gzip.compress(bytes(10_000_000))
    original = Answer.send_header
    monkeypatch.setattr(
        Answer, "end_headers",
        lambda self: (original(self, "Content-Encoding", "gzip"), BaseHTTPRequestHandler.end_headers(self)),
    )  # fmt: skip
    assert content(f"{web.url}/a.wav") == web.files["/a.wav"]


def test_a_server_that_does_not_answer_is_asked_a_few_times_and_then_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds for each of a million clips."""
    monkeypatch.setattr(stores, "TIMEOUT_S", 0.2)
    files = tones(tmp_path, 2)
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        silent.settimeout(30)

        def accept() -> None:
            while True:
                try:
                    connections.append(silent.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        rows = [("path",), *((f"{url}/{number}.wav",) for number in range(100)), *((file,) for file in files)]
        found = scanned(write_csv(tmp_path / "t.csv", rows), roots=["/", url], max_bad_fraction=1)
        silent.shutdown(socket.SHUT_RDWR)
        thread.join()
    for one in connections:
        one.close()
    assert found.counts["clips"] == 2 and found.reasons == {"unreadable": 100}
    assert len(connections) < 20
    assert sum("not retrying" in detail for detail in found.quarantine.detail) > 90


def test_a_server_that_answers_again_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = stores._Silent()
    for _ in range(stores.MAX_TRIES):
        silent.check("http://a")
        silent.note("http://a", answered=False)
    silent.check("http://b")
    with pytest.raises(ConnectionError, match="http://a did not respond 3 times in a row"):
        silent.check("http://a")
    monkeypatch.setattr(stores.time, "monotonic", lambda: float("inf"))
    silent.check("http://a")
    silent.note("http://a", answered=True)
    monkeypatch.undo()
    silent.check("http://a")


# --- what is no regular file ----------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_nothing_in_a_folder_makes_an_ingest_hang_or_stop(tmp_path: Path) -> None:
    """A pipe that nobody writes into is waited for without end."""
    pool = tmp_path / "pool"
    tones(pool, 2)
    (pool / "new\nline.wav").write_bytes(sound(7, "WAV"))
    for name in ("pipe.tar", "pipe.wav", "pipe.parquet"):
        os.mkfifo(pool / name)
    (pool / "zero.wav").symlink_to("/dev/zero")
    (pool / "loop.wav").symlink_to("loop.wav")
    (pool / "gone.wav").symlink_to("nowhere")
    (pool / "memory.wav").symlink_to("/proc/self/mem")
    (pool / "folder.wav").mkdir()
    (pool / "album.wav").mkdir()
    (pool / "album.wav" / "in.wav").write_bytes(sound(8, "WAV"))
    (pool / "again").symlink_to(".")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{os.open(pool, os.O_PATH)}/socket.wav")
        found = scanned(pool, max_bad_fraction=1)
    assert quarantined(found) == dict.fromkeys(
        ["pipe.tar", "pipe.wav", "pipe.parquet", "zero.wav", "loop.wav", "folder.wav", "socket.wav"], "unreadable"
    ) | {"gone.wav": "missing", "memory.wav": "empty"}
    assert {Path(path).name for path in found.manifest.paths.values()} == {"0.wav", "1.wav", "new\nline.wav", "in.wav"}


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(ManifestError, match="a.tar' is neither a file nor a folder"):
        scanned(tmp_path / "a.tar")


def test_a_table_may_name_what_is_no_file(tmp_path: Path) -> None:
    (file,) = tones(tmp_path, 1)
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.tar")
    places = ["folder.wav", "pipe.tar", "/dev/zero", "/dev/stdin", "pipe.tar#bytes=0-9&name=x.wav"]
    found = scanned(write_csv(tmp_path / "t.csv", [("path",), (file,), *((place,) for place in places)]),
                    max_bad_fraction=1)  # fmt: skip
    assert found.counts["clips"] == 1 and found.reasons == {"unreadable": 5}


def test_a_name_that_is_not_utf8_is_in_quarantine_escaped(tmp_path: Path) -> None:
    """Neither Parquet nor JSON can hold it: one such file ended an ingest of a million."""
    pool = tmp_path / "pool"
    tones(pool, 3)
    for name in (b"caf\xe9.wav", b"caf\xe9.tar", b"caf\xe9.parquet"):
        Path(os.fsdecode(os.fsencode(pool) + b"/" + name)).write_bytes(sound(9, "WAV"))
    found = scanned(pool, max_bad_fraction=0.5)
    assert quarantined(found) == {f"caf\\udce9.{kind}": "unreadable" for kind in ("wav", "tar", "parquet")}
    artifact = make(Store(tmp_path / "store"), found)
    assert artifact.record.counts["clips"] == 3


def test_a_source_whose_name_is_not_utf8_is_one_clear_error(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "a.wav").write_bytes(sound(0, "WAV"))
    with pytest.raises(ManifestError, match=r"caf\\udce9 is not UTF-8; rename it"):
        scanned(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which may become somebody who may not read")
def test_what_may_not_be_read_is_in_quarantine() -> None:
    """os.walk passes over a folder that it may not list, silently."""
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)
        pool = Path(scratch, "pool")
        tones(pool, 1)
        tones(pool / "closed", 1)
        (pool / "secret.wav").write_bytes(sound(1, "WAV"))
        (pool / "secret.wav").chmod(0)
        (pool / "closed").chmod(0)
        os.seteuid(65534)
        try:
            found = scanned(pool, max_bad_fraction=1)
        finally:
            os.seteuid(0)
    assert quarantined(found) == {"closed": "unreadable", "secret.wav": "unreadable"}
    assert set(found.quarantine.detail) == {"Permission denied"} and found.counts["clips"] == 1


# --- memory ---------------------------------------------------------------------------------------------------------

SCAN = """
import json, resource, sys
from clapcur.stages.ingest import IngestConfig, scan
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
most = (int(status["VmSize"].split()[0]) + 1024 * 1024) * 1024
resource.setrlimit(resource.RLIMIT_AS, (most, most))
found = scan(IngestConfig(source=sys.argv[1], max_bad_fraction=1, num_workers=1))
print(json.dumps({"clips": found.counts["clips"], "bad": found.quarantine.values.tolist()}))
"""


def scanned_in_little_memory(source: Path) -> Any:
    """Scan in a process that may take 1 GiB more than its imports did, with clips of up to 64 MiB."""
    import json

    done = subprocess.run(
        [sys.executable, "-c", SCAN, str(source)], capture_output=True, text=True, timeout=100, check=False,
        env=os.environ | {"CLAPCUR_MAX_CLIP_BYTES": str(2**26), "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def with_giants(path: Path, giants: dict[str, int], members: dict[str, bytes]) -> Path:
    """Write a tar whose giant members are holes in the file."""
    with open(path, "wb") as file:
        for name, size in giants.items():
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.seek(-(-size // 512) * 512, os.SEEK_CUR)
        inner = io.BytesIO()
        with tarfile.open(fileobj=inner, mode="w") as tar:
            for name, encoded in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(encoded)
                tar.addfile(info, io.BytesIO(encoded))
        file.write(inner.getvalue())
    return path


def test_giant_members_of_a_tar_are_named_and_not_read(tmp_path: Path) -> None:
    """60 GB of caption were read into memory, and the machine with them."""
    members = {"a.wav": sound(0, "WAV"), "a.txt": b"rain"}
    with_giants(tmp_path / "a.tar", {"b.txt": 60 * 10**9, "c.json": 2**21, "d.wav": 5 * 10**9}, members)
    found = scanned_in_little_memory(tmp_path / "a.tar")
    assert found["clips"] == 1
    assert {name: reason for name, reason, _ in found["bad"]} == dict.fromkeys(
        ["a.tar/b.txt", "a.tar/c.json", "a.tar/d.wav"], "too_large"
    )


def test_many_descriptions_that_fill_the_memory_together_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("CLAPCUR_MAX_CLIP_BYTES", "100000")
    texts = {f"{number}.txt": b"x" * 60_000 for number in range(3)}
    found = scanned(write_tar(tmp_path / "a.tar", texts | {"0.flac": sound(0)}), max_bad_fraction=1)
    assert quarantined(found) == {"a.tar/1.txt": "too_large", "a.tar/2.txt": "too_large"}


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_a_tar_that_states_a_giant_size_is_not_read(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.wav": sound(0, "WAV")})
    info = tarfile.TarInfo("b")
    info.type, info.size = kind, 60 * 10**9
    with open(path, "r+b") as file:
        file.truncate(-(-(512 + len(sound(0, "WAV"))) // 512) * 512)
        file.seek(0, os.SEEK_END)
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(61 * 10**9)
    found = scanned_in_little_memory(path)
    assert found["clips"] == 1
    ((name, reason, detail),) = found["bad"]
    assert (name, reason) == ("a.tar", "truncated") and "a header of 60,000,000,000 bytes" in detail


@pytest.mark.timeout(60)
def test_no_damage_of_a_header_stops_or_hangs_the_list(tmp_path: Path, rng: np.random.Generator) -> None:
    """The parser of Python raises whatever it meets: ValueError, IndexError, RecursionError."""
    path = write_tar(tmp_path / "a.tar", {"a" * 150 + ".txt": b"x", "b.txt": b"y"})
    with tarfile.open(path, "a") as tar:
        sparse = tarfile.TarInfo("c.txt")
        sparse.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(sparse)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(1500):
        spoilt = whole.copy()
        places = 512 * rng.integers(0, 12, 3) + rng.choice([100, 124, 156, 257, 386, 482], 3)
        spoilt[places + rng.integers(0, 12, 3)] = rng.choice([0, 48, 55, 83, 120, 128, 255], 3)
        for start in set(places // 512 * 512):  # with a right sum, or the header is not read at all
            header = spoilt[start : start + 512]
            header[148:156] = 32
            header[148:156] = np.frombuffer(b"%06o\0 " % header.sum(dtype=int), np.uint8)
        path.write_bytes(spoilt.tobytes())
        shards.list_tar(str(path))


def test_a_member_of_negative_size_ends_the_list(tmp_path: Path) -> None:
    """A tar that leads back to its own start is read without end."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for seed in range(2):
            info = tarfile.TarInfo(f"{seed}.wav")
            info.size, info.pax_headers = len(sound(seed, "WAV")), {"size": "-4096"} if seed else {}
            tar.addfile(info, io.BytesIO(sound(seed, "WAV")))
    assert quarantined(scanned(path, max_bad_fraction=1))["a.tar"] == "truncated"


def test_a_compressed_tar_is_never_unpacked(tmp_path: Path) -> None:
    import gzip

    tones(tmp_path, 1)
    with gzip.open(tmp_path / "bomb.tar", "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(bytes(10**6))
    (tmp_path / "plain.tgz").write_bytes(write_tar(tmp_path / "t", {"a.wav": sound(0, "WAV")}).read_bytes())
    found = scanned(tmp_path, max_bad_fraction=1)
    assert quarantined(found) == {"bomb.tar": "unreadable", "plain.tgz": "unreadable"}
    assert "rename it to .tar" in " ".join(found.quarantine.detail)


def test_parquet_that_unpacks_to_more_than_may_be_is_named_and_not_read(tmp_path: Path) -> None:
    """A value that is stored once and is in a thousand rows, a giant cell, and a giant row group of zeros."""
    large, encoded = bytes(30 * 2**20), sound(0)
    small = pa.array([encoded], pa.large_binary())
    for name, column in {
        "repeated": pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([large])),
        "cell": pa.array([bytes(2**27 - 2**20), encoded], pa.large_binary()),
        "group": pa.array([large] * 5, pa.large_binary()),
        "fine": small,
    }.items():
        parquet.write_table(
            pa.table({"audio": column}), tmp_path / f"{name}.parquet", compression="zstd", store_schema=False
        )
    found = scanned_in_little_memory(tmp_path)
    reasons = {(name.partition("#")[0], reason) for name, reason, _ in found["bad"]}
    assert reasons == {(f"{name}.parquet", "too_large") for name in ("repeated", "cell", "group")}
    assert found["clips"] == 1


def test_a_caption_of_parquet_that_is_no_caption_stops_nothing(tmp_path: Path) -> None:
    bad_text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe")]
    )
    captions = pa.concat_arrays([pa.array(["rain"]), bad_text, pa.array(["x" * 2_000_000, "wind"])])
    table = {"audio": [sound(seed) for seed in range(4)], "caption": captions, "label": [["a"], None, None, None]}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    found = scanned(tmp_path / "a.parquet", max_bad_fraction=1)
    rows = {cell_address("a.parquet", row, "audio"): why for row, why in enumerate(
        ["wrong_type", "unreadable", "too_large"])}  # fmt: skip
    assert quarantined(found) == rows
    assert found.counts["clips"] == 4 and [caption for _, caption in pairs(found)] == ["wind"]


def test_an_object_that_is_too_large_is_not_read_to_its_end(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAPCUR_MAX_CLIP_BYTES", "100000")
    web.files["/a.wav"] = bytes(200_000)
    answer = probe(f"{web.url}/a.wav")
    assert isinstance(answer, Problem) and answer.reason == "too_large"
    assert "bytes, more than the 100,000 that CLAPCUR_MAX_CLIP_BYTES allows" in answer.detail


@pytest.mark.parametrize("value", ["0", "-1", "1G", "1.5"])
def test_a_limit_that_is_none_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CLAPCUR_MAX_CLIP_BYTES", value)
    with pytest.raises(DataError, match="CLAPCUR_MAX_CLIP_BYTES must be a positive number of bytes"):
        scanned(write_tar(tmp_path / "a.tar", {"a.wav": sound(0)}))


# --- names that occur twice -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (["x.wav", "x.txt", "x.wav", "x.txt"], {}),
        (["x.wav", "x.txt", "x.txt"], {}),
        (["x.wav", "x.wav", "x.txt"], {}),
        (["x.wav", "x.json", "x.wav", "x.json"], {}),
        (["x.wav", "x.wav"], {}),
        (["x.wav", "x.txt", "y.wav", "y.txt"], {"x.wav": "1", "y.wav": "3"}),
        (["d/x.wav", "d/x.txt", "x.wav", "x.txt"], {"d/x.wav": "1", "x.wav": "3"}),
    ],
)
def test_no_clip_has_the_caption_of_another_of_its_name(
    tmp_path: Path, members: list[str], expected: dict[str, str]
) -> None:
    """The first clip got the second one's caption."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, name in enumerate(members):
            text = f'{{"text": "{number}"}}' if name.endswith("json") else str(number)
            encoded = sound(number, "WAV") if name.endswith("wav") else text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(encoded)
            tar.addfile(info, io.BytesIO(encoded))
    found = scanned(tmp_path / "a.tar", max_bad_fraction=1)
    described = found.manifest.pairs.merge(found.manifest.captions).merge(found.manifest.locations)
    names = [path.partition("name=")[2] for path in described.path]
    assert dict(zip(names, described.caption, strict=True)) == expected
    assert found.counts["clips"] == sum(name.endswith("wav") for name in members)
    is_bad = len(members) > 2 and not expected
    assert quarantined(found) == ({"a.tar/x.wav": "duplicate_name"} if is_bad else {})
    assert not is_bad or "more than one member is named x." in found.quarantine.detail[0]


# --- the odd inputs -------------------------------------------------------------------------------------------------


def made(script: Path, *arguments: object) -> None:
    subprocess.run([sys.executable, str(script), *map(str, arguments)], check=True, timeout=100)


def test_odd_tars_give_their_right_answers(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    made(shared_data("odd_inputs/make_tars.py"), tmp_path / "tars")
    (tmp_path / "whole").mkdir()
    expected = {
        "dots": (2, {}), "duplicate_names": (2, {"x.wav": "duplicate_name"}),
        "json_types": (2, {"y.wav": "wrong_type"}), "json_list_label": (1, {"x.wav": "wrong_type"}),
        "bad_json": (3, {"x.wav": "unreadable", "y.wav": "unreadable", "z.wav": "empty_caption"}),
        "utf16_text": (1, {"x.txt": "unreadable"}), "apple": (1, {}), "zero_size": (1, {"x.wav": "empty"}),
        "abs_and_dotdot": (3, {}), "weird_names": (4, {}),
        "links": (1, {"y.wav": "unreadable", "z.wav": "unreadable"}), "latin1_name": (1, {}),
    }  # fmt: skip
    for name, (clips, bad) in expected.items():
        found = scanned(tmp_path / "tars" / f"{name}.tar", max_bad_fraction=1)
        assert found.counts["clips"] == clips, name
        said = {path.removeprefix(f"{name}.tar/"): why for path, why in quarantined(found).items()}
        assert {path: why for path, why in said.items() if path in bad} == bad, name
        make(Store(tmp_path / "store"), found)


def test_odd_names_are_all_in_but_the_one_that_is_not_utf8(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    made(shared_data("odd_inputs/make_names.py"), tmp_path / "names", 1)
    found = scanned(tmp_path / "names")
    assert quarantined(found) == {"caf\\udce9.wav": "unreadable"}
    assert found.counts["clips"] == len(os.listdir(tmp_path / "names")) - 1
    make(Store(tmp_path / "store"), found)


def test_parquet_that_names_files_and_holds_none_reads_the_files(tmp_path: Path) -> None:
    """The state of a Hugging Face data set before `embed_external_files`; `make_parquet.py` of the odd inputs."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    here = [Path(file).name for file in tones(tmp_path, 10)]
    rows = pa.array([{"bytes": None, "path": file} for file in (*here, "gone.wav")], kind)
    captions = [f"sound {number}" for number in range(11)]
    parquet.write_table(pa.table({"audio": rows, "caption": captions}), tmp_path / "a.parquet")
    found = scanned(tmp_path / "a.parquet")
    assert found.counts["clips"] == 10
    assert [Path(path).name for path in quarantined(found)] == ["gone.wav"]
    assert sorted(found.manifest.captions.caption) == sorted(captions[:10])
