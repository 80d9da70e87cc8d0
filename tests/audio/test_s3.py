"""S3: a pool in a bucket of a real object store, read by the client in pyarrow."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from addressed_sounds import sound, write_tar
from shard_tools import member_names, scanned_url

from clapcur.audio import Problem, load_audio, probe
from clapcur.errors import ManifestError

boto3 = pytest.importorskip("boto3", reason="needs the package boto3, which is not installed")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in listening]
    for server in listening:
        server.close()
    return ports


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["boto3.resources.base.ServiceResource"]:
    """Start an object store, and give an empty bucket in it."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        pytest.skip("needs the program weed, which is absent")
    ports = dict(zip(("master", "volume", "filer", "s3"), zip(*[iter(free_ports(8))] * 2, strict=True), strict=True))
    command = [weed, "server", f"-dir={tmp_path}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
    command += ["-master.volumePreallocate=false", "-master.volumeSizeLimitMB=64", "-volume.max=0", "-filer", "-s3"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    for name, (port, grpc) in ports.items():
        command += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc}"]
    for name, value in {
        "AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "a secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3'][0]}", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            found = boto3.resource("s3").Bucket("sounds")
            deadline = time.monotonic() + 60
            while True:
                try:
                    found.create()
                    found.put_object(Key="ready")  # the volume is the last to come up
                    break
                except Exception:
                    if time.monotonic() > deadline or server.poll() is not None:
                        raise
                    time.sleep(0.2)
            yield found
        finally:
            server.kill()  # there is nothing to keep, and it takes its time to say goodbye


def test_a_pool_in_a_bucket_is_ingested_and_read(bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that only works with our own idea of a store."""
    clips = {f"{number}.flac": sound(number) for number in range(3)}
    bucket.put_object(Key="pool/deep/a.tar", Body=write_tar(tmp_path / "a.tar", clips).read_bytes())
    pd.DataFrame({"audio": [sound(3)], "caption": ["rain"]}).to_parquet(tmp_path / "b.parquet")
    bucket.put_object(Key="pool/b.parquet", Body=(tmp_path / "b.parquet").read_bytes())
    bucket.put_object(Key="pool/a name with # and %20.wav", Body=sound(4, "WAV"))
    found = scanned_url("s3://sounds/pool", tmp_path / "probes.db")
    assert found.counts["clips"] == 5 and found.counts["pairs"] == 1
    assert member_names(found) > set(clips)
    for place in found.manifest.paths.values():
        assert len(load_audio(place, 16_000)) == 4000
    cut = write_tar(tmp_path / "a.tar", clips).read_bytes()[:-12_000]
    bucket.put_object(Key="pool/deep/a.tar", Body=cut)
    again = scanned_url("s3://sounds/pool", tmp_path / "probes.db", max_bad_fraction=0.5)
    assert again.reasons == {"truncated": 2} and again.counts["clips"] == 4, "the object has another size and time"
    assert probe("s3://sounds/pool/gone.wav") == probe("s3://nobody/a.wav") == Problem("missing", "no such file")
    with pytest.raises(ManifestError, match="s3://sounds/nothing does not exist"):
        scanned_url("s3://sounds/nothing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a wrong one")
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"] + "/")  # another client
    with pytest.raises(ManifestError, match="s3://sounds/pool cannot be read: .*ACCESS_DENIED"):
        scanned_url("s3://sounds/pool")
