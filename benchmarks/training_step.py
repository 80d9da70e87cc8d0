"""Time one training step beside the reference's, at equal work, and show where the time of ours goes.

Both take the step of a student with soft labels on the same random clips and captions, with models of the same shape
and the same targets. The reference is written here in the plainest way, as the paper's code does it
(zhepeiw/clap_curation at 70f5d30): a short-time Fourier transform by convolution, captions padded to 100 tokens, both
towers of the teacher in every step, Adam without fusing; float32 on a CPU, float16 autocast with a gradient scaler on a
GPU, DataParallel where there are several. Ours is `clapcur.stages.train.step` as it runs in a training.

    python benchmarks/training_step.py                        # Cnn14 at a quarter of its width, for a CPU
    python benchmarks/training_step.py --width full --batch 128 --device cuda

The steps of the two alternate, so that a busy machine slows both; where others use it too, ``--clock cpu`` counts the
seconds that the processors worked for this process. Prints Markdown.
"""

import argparse
import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapcur.models.clap import Clap, pick_device
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, TextConfig
from clapcur.stages.train.config import SoftLabels, TrainConfig
from clapcur.stages.train.features import AudioFeatures, TextFeatures
from clapcur.stages.train.loop import make_optimiser
from clapcur.stages.train.ranks import Ranks
from clapcur.stages.train.sampling import Batch
from clapcur.stages.train.step import ContrastiveStep, Loaded, Teacher

TEXT = {  # BERT-base beside the full Cnn14, and for the others as much less as their Cnn14 is
    "full": TextConfig(hidden_size=768, num_layers=12, num_heads=12),
    "small": TextConfig(hidden_size=256, num_layers=6, num_heads=4),
    "tiny": TextConfig(hidden_size=128, num_layers=4, num_heads=2),
}
MAX_TOKENS = 100
BETA = 0.3


class ConvolvedLogMel(nn.Module):
    """Log-mel frames from an STFT that is a convolution with sines and cosines, as torchlibrosa's."""

    def __init__(self, config: FrontEndConfig, mel_filters_FM: Tensor):
        super().__init__()
        self.config = config
        phase = 2 * np.pi * np.outer(np.arange(config.n_fft // 2 + 1), np.arange(config.n_fft)) / config.n_fft
        window = np.hanning(config.n_fft + 1)[:-1]
        for name, kernel in (("real", np.cos(phase) * window), ("imaginary", -np.sin(phase) * window)):
            self.register_buffer(name, torch.tensor(kernel[:, None], dtype=torch.float32))
        self.register_buffer("mel_filters", mel_filters_FM)

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """Return log-mel frames, shape (B, L, M)."""
        half, hop = self.config.n_fft // 2, self.config.hop_samples
        padded_B1T = F.pad(waveform_BT[:, None], (half, half), mode="reflect")
        power_BFL = (
            F.conv1d(padded_B1T, self.real, stride=hop) ** 2 + F.conv1d(padded_B1T, self.imaginary, stride=hop) ** 2
        )
        mel_BLM = power_BFL.transpose(1, 2) @ self.mel_filters
        return 10 * torch.log10(mel_BLM.clamp(min=self.config.amin))


class Encoders(nn.Module):
    """Both towers as the reference calls them, in the layout of memory that torch gives them."""

    def __init__(self, model: Clap):
        super().__init__()
        self.front_end = ConvolvedLogMel(model.config.audio.front_end, model.front_end.mel_filters)
        self.model = model.to(memory_format=torch.contiguous_format)

    def forward(self, waveform_BT: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return audio and text rows, shape (B, D) each."""
        with torch.no_grad(), torch.autocast(waveform_BT.device.type, enabled=False):
            logmel_BLM = self.front_end(waveform_BT)
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.model.encode_logmel(logmel_BLM), self.model.encode_text(tokens)


class ReferenceStep:
    """The step of the paper's code."""

    def __init__(self, model: Clap, teacher: Clap, captions: dict[str, str], config: TrainConfig, device: torch.device):
        self.model, self.captions, self.config, self.device = model, captions, config, device
        wrap = nn.DataParallel if torch.cuda.device_count() > 1 and device.type == "cuda" else lambda module: module
        self.student, self.teacher = wrap(Encoders(model)), wrap(Encoders(teacher).eval())
        self.optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        self.is_half = device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.is_half)

    def __call__(self, batch: Batch, waveform_BT: Tensor) -> float:
        """Take one step, return its loss."""
        self.model.train()
        tokens = self.model.text.tokenizer(
            [self.captions[name] for name in batch.caption_ids],
            padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt",
        )  # fmt: skip
        inputs = [x.to(self.device) for x in (waveform_BT, tokens["input_ids"], tokens["attention_mask"])]
        with torch.autocast(self.device.type, torch.float16, enabled=self.is_half):
            audio_BD, text_BD = self.student(*inputs)
            with torch.no_grad():
                their_audio_BD, their_text_BD = self.teacher(*inputs)
            logits_BB = (self.model.scale() * audio_BD @ text_BD.T).clamp(max=100)
            eye_BB = torch.eye(len(logits_BB), device=self.device)
            loss = torch.zeros((), device=self.device)
            for rows_BB, theirs_BD in ((logits_BB, their_audio_BD), (logits_BB.T, their_text_BD)):
                target_BB = ((1 - BETA) * eye_BB + BETA * theirs_BD @ theirs_BD.T).clamp(min=0)
                loss = loss + F.kl_div(rows_BB.log_softmax(dim=1), target_BB, reduction="batchmean") / 2
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.item()


@dataclass
class OurStep:
    """Ours: what the loop does with a batch, tokens included, which a training makes ahead of the step."""

    step: ContrastiveStep

    def __call__(self, batch: Batch, waveform_BT: Tensor) -> float:
        """Take one step, return its loss."""
        return self.step(batch, self.load(batch, waveform_BT))["loss"]

    def load(self, batch: Batch, waveform_BT: Tensor) -> Loaded:
        """Return what the threads that decode ahead make of a batch."""
        loaded = Loaded(waveform_BT, self.step.text.prepare(batch.caption_ids))
        return loaded.pinned() if self.step.ranks.device.type == "cuda" else loaded


class Stopwatch:
    """Adds up the time inside named functions; waits for the device at every end."""

    def __init__(self, device: torch.device, now: Callable[[], float]):
        self.device, self.now, self.seconds = device, now, dict[str, float]()

    def wrap(self, owner: object, name: str, part: str) -> contextlib.AbstractContextManager[object]:
        """Time a function of an object or module inside the block."""
        inner: Callable[..., object] = getattr(owner, name)

        def timed(*args: object, **kwargs: object) -> object:
            wait_for(self.device)
            start = self.now()
            result = inner(*args, **kwargs)
            wait_for(self.device)
            self.seconds[part] = self.seconds.get(part, 0.0) + self.now() - start
            return result

        return patch.object(owner, name, timed)


def wait_for(device: torch.device) -> None:
    """Return when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def breakdown(
    ours: OurStep, batches: Iterator[tuple[Batch, Tensor]], count: int, now: Callable[[], float]
) -> dict[str, float]:
    """Return the mean seconds of each part of our step."""
    device = ours.step.ranks.device
    step, watch = ours.step, Stopwatch(device, now)
    parts = [
        (ours, "load", "captions to tokens (ahead of the step)"),
        (step.model.front_end, "forward", "front end"),
        (step.model, "encode_logmel", "audio tower, forward"),
        (step.model, "encode_text", "text tower, forward"),
        (step.teacher, "targets", "teacher and targets"),
        (torch.autograd, "grad", "loss, backward to the embeddings"),
        (torch.autograd, "backward", "towers, backward"),
        (nn.utils, "clip_grad_norm_", "gradient's norm"),
        (step.optimiser, "step", "optimiser"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(watch.wrap(owner, name, part))
        start = now()
        for _ in range(count):
            ours(*next(batches))
        wait_for(device)
        total = now() - start
    found = {part: watch.seconds[part] / count for _, _, part in parts}
    return found | {"rest (seeds, buffers, logits, data to the device)": total / count - sum(found.values())}


def random_batches(config: TrainConfig, num_samples: int, captions: dict[str, str]) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches of noise with captions for ever."""
    rng = np.random.default_rng(0)
    names = list(captions)
    for number in range(10**9):
        waveform = rng.standard_normal((config.batch_size, num_samples), dtype=np.float32) * 0.1
        chosen = [names[i] for i in rng.integers(len(names), size=config.batch_size)]
        clips = [f"{number} {i}" for i in range(config.batch_size)]
        batch = Batch(number % config.num_steps, "noise", clips, chosen, np.zeros(config.batch_size))
        yield batch, torch.from_numpy(waveform)


def random_captions(count: int) -> dict[str, str]:
    """Return captions of 5 to 25 words, as AudioCaps and Clotho have them."""
    rng = np.random.default_rng(1)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u")]
    words = ["".join(rng.choice(syllables, size=rng.integers(1, 4))) for _ in range(800)]
    return {f"caption {i}": " ".join(rng.choice(words, size=rng.integers(5, 26))) for i in range(count)}


def main() -> None:
    """Time both, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", choices=TEXT, default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each, after two that are not")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="of ours; default: bfloat16 on a GPU")
    parser.add_argument("--micro-batch", type=int, help="of ours")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    now = time.perf_counter if args.clock == "wall" else time.process_time
    device = pick_device(args.device)
    precision = args.precision or ("bfloat16" if device.type == "cuda" else "float32")
    model_config = ClapConfig(
        audio=AudioConfig(front_end=FrontEndConfig(sample_rate=44_100), width=args.width), text=TEXT[args.width]
    )
    captions = random_captions(2000)
    config = TrainConfig(
        num_examples=args.batch * 1000, batch_size=args.batch, precision=precision, micro_batch=args.micro_batch,
        soft_labels=SoftLabels(form="paper", beta=BETA), learning_rate=1e-5, warmup=0.0, optimiser="adam",
    )  # fmt: skip
    model = Clap.create(model_config, captions=sorted(captions.values()))
    twin, teacher, their_teacher = (copy.deepcopy(model).to(device) for _ in range(3))
    model.to(device)
    reference = ReferenceStep(twin, their_teacher, captions, config, device)
    step = ContrastiveStep(
        model, Teacher(teacher, captions, config.soft_labels), TextFeatures(model, captions, False),
        AudioFeatures(model, False), make_optimiser(model, config), config, Ranks(0, 1, device),
    )  # fmt: skip
    ours = OurStep(step)
    # A training meets each caption of an epoch before long; what the teacher makes of it is in the table by then.
    all_ids = list(captions)
    for start in range(0, len(all_ids), 200):
        step.teacher.remember(all_ids[start : start + 200])

    batches = random_batches(config, model_config.num_samples, captions)
    times: dict[str, list[float]] = {"reference": [], "ours": []}
    memory: dict[str, float] = {}
    for number in range(args.steps + 2):
        given = next(batches)
        for name, take in (("reference", reference), ("ours", ours)):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            start = now()
            take(*given)
            wait_for(device)
            if number >= 2:
                times[name].append(now() - start)
                if device.type == "cuda":
                    memory[name] = max(memory.get(name, 0.0), torch.cuda.max_memory_allocated(device) / 2**20)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"Cnn14 {args.width}, batch {args.batch}, clips of {model_config.window_s:g} s at 44.1 kHz, captions of 5 to "
        f"25 words; {where}, torch {torch.__version__}; ours in {precision}.\n"
    )
    print("| step | median | spread | samples/s | GPU memory | speed |\n|---|---|---|---|---|---|")
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, taken in times.items():
        spread, speed = f"{min(taken):.3f}-{max(taken):.3f} s", medians["reference"] / medians[name]
        room = f"{memory[name]:,.0f} MiB" if memory else "-"
        print(
            f"| {name} | {medians[name]:.3f} s | {spread} | {args.batch / medians[name]:.1f} | {room} | {speed:.2f} |"
        )
    print("\n| part of our step | time | share |\n|---|---|---|")
    found = breakdown(ours, batches, args.steps, now)
    for part, seconds in found.items():
        print(f"| {part} | {1000 * seconds:.1f} ms | {100 * seconds / sum(found.values()):.0f} % |")


if __name__ == "__main__":
    main()
