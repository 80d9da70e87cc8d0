"""Time and weigh the curate stage over synthetic embeddings: a large set, and the next version of a grown pool.

The rows lie around shared directions, so that clips and captions find each other; everything else is as the stages
write it. Each curation runs in a process of its own, whose peak of resident memory is told.

    python benchmarks/curation.py --clips 100000 --captions 20000 --pairs 20000000     # memory of a large set
    python benchmarks/curation.py --clips 100000 --captions 20000 --grow 0.01          # a pool that grew by 1 %

With ``--clips-per-second`` (what ``benchmarks/embedding.py`` prints for your teacher and device) the second table tells
what the whole re-curation costs: embedding, join and card.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from join import unit_rows  # the benchmark beside this one
from numpy.typing import NDArray

from clapcur.data.embeddings import write_shard
from clapcur.data.manifest import CAPTIONS, CLIPS, PAIRS, PLACES, caption_id, write_table
from clapcur.methods.thresholds import Threshold
from clapcur.stages.curate import STAGE, CurateConfig
from clapcur.store.artifacts import LOCATIONS, Artifact, Key, Store
from clapcur.store.record import Outcome

CLASSES = tuple(f"class {number}" for number in range(20))
SHARD = 8192


def commit(store: Store, kind: str, name: str, write: Callable[[Path], None]) -> Artifact:
    """Make one artifact as a stage would."""
    work = store.open(Key(kind, "benchmark", "1", {"name": name}, {}))
    write(work.path)
    return store.commit(work, Outcome(), time.time(), tags={"name": name})


def manifest(store: Store, name: str, clips: list[str], texts: list[str]) -> Artifact:
    """Write clips, captions and, where there are as many of both, pairs."""

    def write(folder: Path) -> None:
        table = pd.DataFrame({"clip_id": clips, "pcm_sha256": clips, "duration_s": 5.0, "sample_rate": 44_100})
        table = table.assign(num_channels=1, bytes=441_044, recording_id="", label="", fold="")
        write_table(table, CLIPS, folder / "clips.parquet")
        captions = pd.DataFrame({"caption_id": [caption_id(text) for text in texts], "caption": texts}, dtype="str")
        pairs = captions.assign(clip_id=clips)[["clip_id", "caption_id"]] if len(clips) == len(texts) else None
        write_table(captions.sort_values("caption_id"), CAPTIONS, folder / "captions.parquet")
        write_table(pd.DataFrame(columns=PAIRS.names) if pairs is None else pairs, PAIRS, folder / "pairs.parquet")
        write_table(pd.DataFrame({"clip_id": clips, "path": clips}), PLACES, folder / LOCATIONS)

    return commit(store, "manifest", name, write)


def embeddings(store: Store, name: str, ids: list[str], rows_ND: NDArray[np.float32]) -> Artifact:
    """Write a table of embeddings."""

    def write(folder: Path) -> None:
        for index, start in enumerate(range(0, len(ids), SHARD)):
            write_shard(folder, index, rows_ND[start : start + SHARD])
        pd.DataFrame({"id": ids, "text": ""}).to_parquet(folder / "ids.parquet", index=False)

    return commit(store, "embeddings", name, write)


def world(store: Store, num_clips: int, num_captions: int, dim: int) -> dict[str, Artifact]:
    """Return the inputs of a DU curation but for the pool: a few teacher pairs, captions, prompts."""
    teacher = [f"{number:064x}" for number in range(200)]
    texts = [f"a sound that is number {number}" for number in range(200)]
    free = [f"a caption that is number {number}" for number in range(num_captions - 200)]
    ids = [caption_id(text) for text in texts]
    return {
        "teacher_pairs": manifest(store, "teacher", teacher, texts),
        "teacher_clip_embeddings": embeddings(store, "teacher clips", teacher, unit_rows(200, dim, 10)),
        "teacher_caption_embeddings": embeddings(store, "teacher captions", ids, unit_rows(200, dim, 11)),
        "captions": manifest(store, "captions", [], free),
        "caption_embeddings": embeddings(
            store, "captions", [caption_id(text) for text in free], unit_rows(len(free), dim, 12)
        ),
        "prompt_embeddings": embeddings(store, "prompts", list(CLASSES), unit_rows(len(CLASSES), dim, 13)),
    }


def run(store: Store, inputs: Mapping[str, Artifact], config: CurateConfig) -> tuple[Artifact, dict[str, Any]]:
    """Curate in a process of its own; return the set, and seconds and memory."""
    queue: Any = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=_curate, args=(store, inputs, config, queue))
    process.start()
    artifact, told = queue.get()
    process.join()
    return artifact, told


def _curate(store: Store, inputs: Mapping[str, Artifact], config: CurateConfig, queue: Any) -> None:
    started = time.perf_counter()
    work = store.open(STAGE.key(config, inputs))
    outcome = STAGE.compute(inputs, config, work)
    artifact = store.commit(work, outcome, time.time())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    queue.put((artifact, {"seconds": time.perf_counter() - started, "gib": peak, "pairs": outcome.counts["pairs"]}))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--grow", type=float, default=0.0, help="share of clips that land afterwards")
    parser.add_argument("--clips-per-second", type=float, help="how fast clips are embedded")
    a = parser.parse_args()
    config = CurateConfig(
        strategy="du", class_names=CLASSES, held_out=0.0, audio_threshold=Threshold(count=a.pairs), near_duplicate=None
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        inputs = world(store, a.clips, a.captions, a.dim)
        num_new = round(a.grow * a.clips)
        rng = np.random.default_rng(1)
        names = [rng.bytes(32).hex() for _ in range(a.clips + num_new)]
        rows_ND = unit_rows(len(names), a.dim, 2)
        earlier: dict[str, Artifact] = {}
        print("| | clips embedded | s, curate | s, embed and curate | GiB, most | pairs |")
        print("|---|---|---|---|---|---|")
        for what, count in (("all", a.clips), ("grown", len(names)), ("anew, to compare", len(names))):
            if what != "all" and not num_new:
                break
            order = np.argsort(names[:count])
            ids = [names[index] for index in order]
            pool = {
                "pool": manifest(store, f"pool of {count}", ids, []),
                "pool_embeddings": embeddings(store, f"rows of {count}", ids, rows_ND[order]),
            }
            parent = earlier if what == "grown" else {}
            artifact, told = run(store, {**inputs, **pool, **parent}, config)
            earlier = {"parent": artifact, "parent_pool": pool["pool"]}
            embedded = num_new if what == "grown" else count
            whole = f"{told['seconds'] + embedded / a.clips_per_second:,.1f}" if a.clips_per_second else "-"
            print(
                f"| {what} | {embedded:,} | {told['seconds']:.1f} | {whole} | {told['gib']:.2f} | {told['pairs']:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
