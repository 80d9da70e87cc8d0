"""Time the questions of lineage over millions of pairs: `clapcur trace`, `trace --pairs` and `impact`, goal 2 s each.

Makes a home in a temporary folder: a pool of clips, a table of captions, a teacher, and Improvement-Sets of as many
pairs each as wanted with a student of each. All ids are random, all payloads are as the stages write them. The times
are those of whole commands, the start of Python included.

    python benchmarks/lineage_times.py --sets 10 --pairs 1000000
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clapcur.data.improvement_set import PAIRS, ROW_GROUP, SCHEMA
from clapcur.data.manifest import CAPTIONS, CLIPS, PLACES, write_table
from clapcur.data.manifest import PAIRS as GIVEN_PAIRS
from clapcur.store.artifacts import LOCATIONS, Artifact, Key
from clapcur.store.catalog import Catalog
from clapcur.store.home import Home
from clapcur.store.record import Outcome

NUM_CLASSES = 50
COMMAND = [sys.executable, "-c", "from clapcur.cli import main; main()"]


def random_ids(rng: np.random.Generator, count: int) -> NDArray[np.object_]:
    """Return sorted ids of 64 hexadecimal digits, shape (count,)."""
    text = rng.bytes(32 * count).hex()
    return np.array(sorted(text[start : start + 64] for start in range(0, len(text), 64)), dtype=object)


def commit(
    home: Home, kind: str, stage: str, name: str, inputs: Mapping[str, Artifact], write: Callable[[Path], None],
    **counts: int,
) -> Artifact:  # fmt: skip
    """Make one artifact as a stage would."""
    ids = {role: artifact.id for role, artifact in inputs.items()}
    work = home.store.open(Key(kind, stage, "1", {"name": name}, ids))
    write(work.path)
    return home.store.commit(work, Outcome(counts=counts), time.time(), tags={"name": name})


def write_manifest(folder: Path, clips: NDArray[np.object_], captions: NDArray[np.object_]) -> None:
    """Write the tables of a manifest without pairs."""
    table = pd.DataFrame({"clip_id": clips, "pcm_sha256": clips, "duration_s": 4.0, "sample_rate": 16_000})
    table = table.assign(num_channels=1, bytes=128_044, recording_id=clips, label="", fold="")
    write_table(table, CLIPS, folder / "clips.parquet")
    texts = [f"the sound of a thing that is called {name[:8]}" for name in captions]
    write_table(pd.DataFrame({"caption_id": captions, "caption": texts}), CAPTIONS, folder / "captions.parquet")
    write_table(pd.DataFrame({"clip_id": [], "caption_id": []}, dtype="str"), GIVEN_PAIRS, folder / PAIRS)
    paths = [f"/audio/pool/{name[:2]}/{name}.wav" for name in clips]
    write_table(pd.DataFrame({"clip_id": clips, "path": paths}), PLACES, folder / LOCATIONS)


def write_set(
    folder: Path, rng: np.random.Generator, count: int, clips: NDArray[np.object_], captions: NDArray[np.object_]
) -> None:
    """Write the pairs of an Improvement-Set: clips drawn with replacement, in the order of their ids."""
    drawn = np.sort(rng.integers(len(clips), size=count))
    classes = np.array([f"class {number}" for number in range(NUM_CLASSES)], dtype=object)
    columns = [
        clips[drawn], captions[rng.integers(len(captions), size=count)],
        rng.uniform(0.3, 0.9, count).astype(np.float32), classes[rng.integers(NUM_CLASSES, size=count)],
        rng.uniform(0.5, 1.0, count).astype(np.float32), np.zeros(count, np.int32),
    ]  # fmt: skip
    table = pa.Table.from_arrays(
        [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )
    pq.write_table(table, folder / PAIRS, row_group_size=ROW_GROUP, compression="zstd")


def build(home: Home, num_sets: int, num_pairs: int, num_clips: int, num_captions: int) -> tuple[str, str]:
    """Make the home and return the id of a student and of a clip that its set holds."""
    rng = np.random.default_rng(0)
    clips, captions, none = random_ids(rng, num_clips), random_ids(rng, num_captions), np.array([], dtype=object)
    pool = commit(home, "manifest", "ingest", "pool", {}, lambda at: write_manifest(at, clips, none), clips=num_clips)
    texts = commit(
        home, "manifest", "ingest", "captions", {}, lambda at: write_manifest(at, none, captions), captions=num_captions
    )
    teacher = commit(home, "checkpoint", "train", "teacher", {"teacher_pairs": texts}, lambda at: None)
    rows = {
        what: commit(
            home, "embeddings", "embed", what, {"checkpoint": teacher, "manifest": source}, lambda at: None, rows=0
        )
        for what, source in (("pool", pool), ("captions", texts))
    }
    student = ""
    for number in range(num_sets):
        inputs = {"pool": pool, "captions": texts, "pool_embeddings": rows["pool"]}
        inputs |= {"caption_embeddings": rows["captions"]}
        chosen = commit(
            home, "improvement_set", "curate", f"set {number}", inputs,
            lambda at: write_set(at, rng, num_pairs, clips, captions), pairs=num_pairs,
        )  # fmt: skip
        inputs = {"improvement_set": chosen, "init": teacher, "pool": pool, "captions": texts}
        student = commit(home, "checkpoint", "train", f"student {number}", inputs, lambda at: None).id
        print(f"set {number + 1} of {num_sets}: {num_pairs:,} pairs", file=sys.stderr, flush=True)
    Catalog.open(home).rebuild(home.store)
    held = pq.ParquetFile(chosen.path / PAIRS).read_row_group(0, columns=["clip_id"])["clip_id"][-1].as_py()
    return student, held


def seconds(arguments: list[str], home: Home, lines: int | None, repeats: int) -> list[float]:
    """Return how long a command takes until it ends, or until `lines` lines of it were read, as by ``head``."""
    environment = {**os.environ, "CLAPCUR_HOME": str(home.root)}
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            if lines is None:
                shown = len(process.stdout.read())
            else:
                shown = sum(len(process.stdout.readline()) for _ in range(lines))
                taken.append(time.perf_counter() - began)
                process.stdout.close()
                process.kill()
        if lines is None:
            taken.append(time.perf_counter() - began)
        if not shown or (lines is None and process.returncode):
            raise SystemExit(f"{arguments} failed")
    return taken


def main() -> None:
    """Build, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=1_000_000, help="of each set")
    parser.add_argument("--clips", type=int, default=500_000, help="of the pool")
    parser.add_argument("--captions", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clapcur-lineage-") as folder:
        home = Home.open(folder)
        began = time.perf_counter()
        student, clip = build(home, given.sets, given.pairs, given.clips, given.captions)
        size = sum(path.stat().st_size for path in home.store.root.rglob("*.parquet"))
        took = time.perf_counter() - began
        print(f"built in {took:.0f} s, {size / 2**20:,.0f} MiB of Parquet", file=sys.stderr)
        questions = {
            "trace": (["trace", student], None),
            "trace --pairs --json | head": (["trace", student, "--pairs", "--json"], 10),
            "trace --pairs": (["trace", student, "--pairs"], None),
            "impact": (["impact", clip], None),
        }
        for name, (arguments, lines) in questions.items():
            times = seconds(arguments, home, lines, given.repeats)
            result = {"command": name, "median_s": round(statistics.median(times), 2)}
            print(json.dumps(result | {"times_s": [round(one, 2) for one in times]}), flush=True)


if __name__ == "__main__":
    main()
