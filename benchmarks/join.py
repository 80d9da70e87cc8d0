"""Time the curation join beside its peers, in one run and with the same pairs: Markdown on stdout.

Unit rows at random around shared directions, so that there are pairs to find. The peers: faiss' exact range search on
the CPU, a plain torch float32 product of the whole, and the loop of the paper's code (tiles of a product, ``nonzero``,
lists of Python; float16 on a GPU). Every peer is asked for the same threshold, and the sets are compared.

    python benchmarks/join.py                                            # 20,000 clips x 2,000 captions
    python benchmarks/join.py --clips 100000 --captions 20000 --no-peers # the rate at the size of a real pool
    python benchmarks/join.py --device cuda --clips 1000000 --captions 100000

On a CPU whose OpenBLAS was pinned to an older kernel, unset OPENBLAS_CORETYPE for a fair figure of faiss.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from clapcur.methods.similarity import similar_pairs, threshold_for_count
from clapcur.methods.similarity.histogram import similarity_histogram
from clapcur.methods.similarity.screening import PRECISIONS, Screen, fastest_precision

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def unit_rows(count: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Return rows around 200 directions, shape (count, dim)."""
    centres = np.random.default_rng(0).standard_normal((200, dim)).astype(np.float32)
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(200, size=count)] * rng.uniform(0.2, 0.8, (count, 1)).astype(np.float32)
    rows += rng.standard_normal((count, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def ours(audio: NDArray[np.float32], text: NDArray[np.float32], threshold: float, device: str) -> Pairs:
    """Find the pairs with clapcur."""
    blocks = list(similar_pairs(audio, text, threshold, device=device))
    return np.concatenate([b.audio_index for b in blocks]), np.concatenate([b.text_index for b in blocks])


def faiss_range_search(audio: NDArray[np.float32], text: NDArray[np.float32], threshold: float) -> Pairs:
    """Find the pairs with faiss, whose comparison is strict."""
    import faiss

    index = faiss.IndexFlatIP(text.shape[1])
    index.add(text)
    limits, _, found = index.range_search(audio, float(np.nextafter(np.float32(threshold), np.float32(-1))))
    return np.repeat(np.arange(len(audio)), np.diff(limits).astype(np.int64)), found


def whole_product(audio: NDArray[np.float32], text: NDArray[np.float32], threshold: float, device: str) -> Pairs:
    """Find the pairs with one float32 product, which must fit into memory."""
    product = torch.from_numpy(audio).to(device) @ torch.from_numpy(text).to(device).T
    clip, caption = (product >= threshold).nonzero(as_tuple=True)
    return clip.cpu().numpy(), caption.cpu().numpy()


def loop_of_the_paper(audio: NDArray[np.float32], text: NDArray[np.float32], threshold: float, device: str) -> Pairs:
    """Find the pairs as the paper's code does: tiles (float16 on a GPU), nonzero, one dict for each pair."""
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    texts = torch.from_numpy(text).to(device, dtype)
    rows = []
    for start in range(0, len(audio), 4096):
        product = torch.from_numpy(audio[start : start + 4096]).to(device, dtype) @ texts.T
        for clip, caption in (product >= threshold).nonzero().tolist():
            rows.append({"clip": start + clip, "caption": caption})
    return np.array([row["clip"] for row in rows]), np.array([row["caption"] for row in rows])


def seconds(work: Callable[[], Pairs], rounds: int, device: str) -> tuple[list[float], Pairs]:
    """Time some rounds after one that warms up."""
    found, taken = work(), []
    for _ in range(rounds):
        started = time.perf_counter()
        found = work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return taken, found


def product_rates(device: str, dim: int) -> dict[str, float]:
    """Return the rate of a product of this dimension in each precision, in GFLOP/s: the best of several shapes."""
    rates = {}
    for dtype in PRECISIONS:
        best = 0.0
        for size in (1024, 4096) if device == "cpu" else (8192, 16384):
            rows = torch.from_numpy(unit_rows(4096 if device == "cpu" else 32768, dim, 1)).to(device)
            screen = Screen(rows, dtype)
            low, _ = screen.rows(rows[:size])
            for _ in range(6):
                if device != "cpu":
                    torch.cuda.synchronize()
                started = time.perf_counter()
                screen.product(low, slice(0, len(rows)))
                if device != "cpu":
                    torch.cuda.synchronize()
                best = max(best, 2 * size * len(rows) * dim / (time.perf_counter() - started) / 1e9)
        rates[str(dtype).removeprefix("torch.")] = best
    return rates


def main() -> None:
    """Print the rates of the device and one line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--captions", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=20_000, help="how many pairs the threshold is to let through")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-peers", action="store_true")
    a = parser.parse_args()
    audio, text = unit_rows(a.clips, a.dim, 1), unit_rows(a.captions, a.dim, 2)
    sample = similarity_histogram(audio[:1000], text, device=a.device)
    threshold = threshold_for_count(sample, max(1, a.pairs * min(1000, a.clips) // a.clips))
    ways: dict[str, Callable[[], Pairs]] = {"clapcur": lambda: ours(audio, text, threshold, a.device)}
    if not a.no_peers:
        ways |= {
            "faiss IndexFlatIP.range_search, CPU": lambda: faiss_range_search(audio, text, threshold),
            "torch float32, the whole product": lambda: whole_product(audio, text, threshold, a.device),
            "the paper's loop": lambda: loop_of_the_paper(audio, text, threshold, a.device),
        }
    rates = product_rates(a.device, a.dim)
    chosen = str(fastest_precision(torch.device(a.device), a.clips * a.captions * a.dim)).removeprefix("torch.")
    name = torch.cuda.get_device_name() if a.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    print(f"{a.clips:,} clips x {a.captions:,} captions x {a.dim} on {a.device} ({name}); tiles in {chosen}")
    print("products, GFLOP/s: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()) + "\n")
    print("| | s, median | least to most | GFLOP/s | of the best product | times clapcur | pairs | same set |")
    print("|---|---|---|---|---|---|---|---|")
    results = {name: seconds(work, a.rounds, a.device) for name, work in ways.items()}
    own = statistics.median(results["clapcur"][0])
    expected = set(zip(*(x.tolist() for x in results["clapcur"][1]), strict=True)) if not a.no_peers else set()
    for name, (taken, (clip, caption)) in results.items():
        median = statistics.median(taken)
        rate = 2 * a.clips * a.captions * a.dim / median / 1e9
        differs = len(expected ^ set(zip(clip.tolist(), caption.tolist(), strict=True))) if expected else 0
        print(
            f"| {name} | {median:.2f} | {min(taken):.2f} to {max(taken):.2f} | {rate:,.0f} "
            f"| {rate / max(rates.values()):.0%} | {median / own:.1f} | {len(clip):,} "
            f"| {'yes' if not differs else f'{differs} pairs differ'} |"
        )


if __name__ == "__main__":
    main()
