"""What a student costs to train and to send: every weight against low-rank adapters against the projections alone.

One model of the paper's size, Cnn14 at full width and a text tower of BERT-base's, takes a few steps on noise and
random captions in a process for each way to train; soft labels are left out, since a teacher costs the same in each.
Prints Markdown.

    python benchmarks/adapters.py                                 # under ten minutes on two cores
    python benchmarks/adapters.py --width tiny --steps 1          # does it run
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

import torch
from training_step import TEXT, random_batches, random_captions

from clapcur.models.adapters import add_adapters, digest_of, save_adapter
from clapcur.models.clap import Clap
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, LoraConfig, Tower
from clapcur.stages.train.config import TrainConfig
from clapcur.stages.train.features import AudioFeatures, TextFeatures
from clapcur.stages.train.loop import make_optimiser
from clapcur.stages.train.ranks import Ranks
from clapcur.stages.train.step import ContrastiveStep, Loaded

WAYS = ("all", "lora", "projections")


def measure(adapt: str, width: str, batch: int, micro_batch: int, steps: int) -> dict[str, float]:
    """Take the steps of one way to train; return its memory, time and sizes."""
    captions = random_captions(200)
    made = ClapConfig(audio=AudioConfig(front_end=FrontEndConfig(), width=width), text=TEXT[width])
    model = Clap.create(made, captions=sorted(captions.values()))
    loaded = resident_mib()
    config = TrainConfig(
        num_examples=batch * 1000, batch_size=batch, micro_batch=micro_batch, adapt=adapt, learning_rate=1e-4
    )
    whole = sum(weight.numel() for weight in model.parameters())
    base, learning = digest_of(model), None
    if adapt == "lora":
        learning = add_adapters(model, LoraConfig(), get_args(Tower))
    for tower in config.frozen:
        getattr(model, tower).requires_grad_(False)
    learned = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    is_text_frozen = "text" in config.frozen
    step = ContrastiveStep(
        model, None, TextFeatures(model, captions, is_text_frozen), AudioFeatures(model, "audio" in config.frozen),
        make_optimiser(model, config), config, Ranks(0, 1, torch.device("cpu")), learning,
    )  # fmt: skip
    times = []
    batches = random_batches(config, made.num_samples, captions)
    for _ in range(steps + 1):
        drawn, waveform = next(batches)
        given = Loaded(waveform, step.text.prepare(drawn.caption_ids))
        start = time.perf_counter()
        step(drawn, given)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    with tempfile.TemporaryDirectory() as folder:
        if adapt == "all":
            model.save(folder)
        else:
            save_adapter(model, Path(folder) / "sent", base)
        sent = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 2**20
    return {
        "learned": learned, "whole": whole, "loaded_mib": loaded, "peak_mib": peak, "sent_mib": sent,
        "step_s": statistics.median(times[1:]),
    }  # fmt: skip


def resident_mib() -> float:
    """Return the memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Measure each way in a process of its own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", choices=TEXT, default="full")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one that is not")
    parser.add_argument("--json", action="store_true", help="print a line for each way instead of the table")
    args = parser.parse_args()
    found = {}
    context = multiprocessing.get_context("spawn")
    for adapt in WAYS:  # a process each: its largest memory is that of this way
        with context.Pool(1) as pool:
            found[adapt] = pool.apply(measure, (adapt, args.width, args.batch, args.micro_batch, args.steps))
    if args.json:
        print("\n".join(json.dumps({"adapt": adapt} | figures) for adapt, figures in found.items()))
        return
    print(f"Cnn14 {args.width}, batch {args.batch} in micro-batches of {args.micro_batch}; float32, ")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| adapt | weights that learn | memory above the loaded model | file | step |\n|---|--:|--:|--:|--:|")
    for adapt, one in found.items():
        print(
            f"| {adapt} | {one['learned'] / 1e6:.2f} M of {one['whole'] / 1e6:.0f} M "
            f"| {one['peak_mib'] - one['loaded_mib']:,.0f} MiB | {one['sent_mib']:.1f} MiB | {one['step_s']:.1f} s |"
        )


if __name__ == "__main__":
    main()
