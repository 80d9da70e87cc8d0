"""Time the same clips as files of their own, in tar shards and in Parquet: `load_audio` and ingest, side by side.

Makes short clips of noise, half FLAC and half WAV, in a temporary folder. The forms take turns in each round, so that
whatever else the machine does hits all of them; the figures are medians over the rounds. Everything is in the page
cache, as it is when a pool that fits there is read a second time. Of Parquet's row groups an eighth of the pool is
kept, as of a pool that is larger than the memory; then rows at random cost a row group each.

    python benchmarks/containers.py --clips 2000 --rounds 5
"""

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from clapcur.audio import addresses, cells, load_audio
from clapcur.stages.ingest import IngestConfig, scan

RATE = 16_000  # Hz; as it is loaded, so that resampling hides nothing
CLIPS_PER_SHARD = 500
CLIPS_PER_GROUP = 100  # what Hugging Face writes for audio


def encoded_clips(count: int) -> dict[str, bytes]:
    """Return clips of 1 to 4 s by file name."""
    rng = np.random.default_rng(0)
    clips = {}
    for number in range(count):
        kind = ("flac", "wav")[number % 2]
        file = io.BytesIO()
        noise = rng.normal(0, 0.1, int(rng.uniform(1, 4) * RATE))
        soundfile.write(file, noise, RATE, format=kind.upper(), subtype="PCM_16")
        clips[f"{number:05d}.{kind}"] = file.getvalue()
    return clips


def write_files(folder: Path, clips: dict[str, bytes]) -> None:
    """Write each clip into a file of its own."""
    for name, content in clips.items():
        (folder / name).write_bytes(content)


def write_tars(folder: Path, clips: dict[str, bytes]) -> None:
    """Write tar shards."""
    for first in range(0, len(clips), CLIPS_PER_SHARD):
        with tarfile.open(folder / f"{first:05d}.tar", "w") as tar:
            for name in list(clips)[first : first + CLIPS_PER_SHARD]:
                info = tarfile.TarInfo(name)
                info.size = len(clips[name])
                tar.addfile(info, io.BytesIO(clips[name]))


def write_parquet(folder: Path, clips: dict[str, bytes]) -> None:
    """Write Parquet files as Hugging Face does."""
    for first in range(0, len(clips), CLIPS_PER_SHARD):
        rows = [{"bytes": clips[name], "path": name} for name in list(clips)[first : first + CLIPS_PER_SHARD]]
        pq.write_table(pa.table({"audio": rows}), folder / f"{first:05d}.parquet", row_group_size=CLIPS_PER_GROUP)


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def clips_per_s(places: Sequence[str], num_threads: int) -> float:
    """Return how many clips are loaded in a second, by so many threads."""

    def load(place: str) -> int:
        return len(load_audio(place, RATE))

    with ThreadPoolExecutor(num_threads) as pool:
        return len(places) / seconds(lambda: sum(pool.map(load, places)))


def main() -> None:
    """Make the clips in all forms, time them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000, help="default: 2000")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    options = parser.parse_args()
    clips = encoded_clips(options.clips)
    cells.KEPT_BYTES = sum(map(len, clips.values())) // 8
    forms = {"files": write_files, "tar shards": write_tars, "Parquet": write_parquet}
    columns = {
        "in order, clips/s": (False, 1),
        "at random, clips/s": (True, 1),
        f"at random, {options.threads} threads, clips/s": (True, options.threads),
    }
    with tempfile.TemporaryDirectory() as temporary:
        places, figures = {}, {}
        for form, write in forms.items():
            folder = Path(temporary, form)
            folder.mkdir()
            write(folder, clips)
            config = IngestConfig(source=str(folder), num_workers=options.threads)
            cache = folder.with_suffix(".db")
            figures[form, "ingest, s"] = [seconds(lambda config=config, cache=cache: scan(config, cache))]
            figures[form, "ingest again, s"] = [seconds(lambda config=config, cache=cache: scan(config, cache))]
            places[form] = sorted(scan(config, cache).manifest.locations.path, key=addresses.reading_order)
        for number in range(options.rounds):
            shuffled = np.random.default_rng(number).permutation(options.clips)
            for column, (is_random, num_threads) in columns.items():
                for form, found in places.items():
                    asked = [found[index] for index in shuffled] if is_random else found
                    figures.setdefault((form, column), []).append(clips_per_s(asked, num_threads))
    titles = [*columns, "ingest, s", "ingest again, s"]
    print(f"{options.clips} clips, {sum(map(len, clips.values())) / 1e6:.0f} MB, median of {options.rounds} rounds\n")
    print("| |", " | ".join(titles), "|")
    print("|---|" + "--:|" * len(titles))
    for form in forms:
        values = [statistics.median(figures[form, title]) for title in titles]
        texts = [
            f"{value:,.0f}" if "clips/s" in title else f"{value:.2f}"
            for title, value in zip(titles, values, strict=True)
        ]
        print(f"| {form} |", " | ".join(texts), "|")


if __name__ == "__main__":
    main()
