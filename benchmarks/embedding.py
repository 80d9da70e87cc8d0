"""Time the embedding of clips and captions: against its own limits, and against a loop as the reference writes it.

Makes a corpus of noise and tones in a temporary folder (WAV and FLAC of 5 to 10 s at 44.1 and 32 kHz) and a model of
the published size with random weights (Cnn14 and BERT-base at 44.1 kHz), and prints Markdown. Every part hears the
same clips, one after the other in one process::

    python benchmarks/embedding.py                        # a few minutes on two quiet cores
    python benchmarks/embedding.py --device cuda --precision bfloat16 --clips 4000 --batch 256

The reference is the embedding loop of the paper's code as we understand it (zhepeiw/clap_curation,
`microsoft_curation_toemb.py`): one file after the other, in float32, with the STFT as two convolutions, in batches that
nothing is decoded beside, captions padded to 100 tokens. It is written anew here.
"""

import argparse
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from numpy.typing import NDArray
from torch import Tensor, nn

from clapcur.audio import fit, load_audio
from clapcur.config import frozen
from clapcur.methods.devices import device_name, pick_device
from clapcur.models.clap import Clap
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, TextConfig
from clapcur.stages.embed import STAGE, EmbedConfig
from clapcur.stages.ingest import IngestConfig, scan, stage_for
from clapcur.store import runner
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.home import Home

RATE = 44_100
WINDOW_S = 5.0
CNN14_GFLOP = 27.6  # of a window of 5 s at 44.1 kHz: two for each multiplication and addition of its layers
PADDED_TOKENS = 100
WORDS = "a the dog cat bird rain wind car train barks sings falls loud soft near far and then in behind water".split()


def write_clips(folder: Path, count: int) -> list[Path]:
    """Write clips of 5 to 10 s, every other one a FLAC, at two rates."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        rate = (44_100, 44_100, 32_000)[index % 3]
        time_s = np.arange(int(rate * rng.uniform(5, 10))) / rate
        noise = np.convolve(rng.standard_normal(len(time_s)), np.ones(8) / 8, "same")
        waveform = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 5000) * time_s) + 0.1 * noise
        paths.append(folder / f"{index:05d}.{('wav', 'flac')[index % 2]}")
        soundfile.write(paths[-1], waveform, rate, subtype="PCM_16")
    return paths


def write_captions(count: int) -> list[str]:
    """Return captions of 5 to 18 words, about as long as AudioCaps'."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 18))) for _ in range(count)]


def build_model(captions: Sequence[str]) -> Clap:
    """Return a model of the published size."""
    front_end = FrontEndConfig(sample_rate=RATE)
    text = TextConfig(hidden_size=768, num_layers=12, num_heads=12)
    config = ClapConfig(audio=AudioConfig(front_end=front_end, width="full"), text=text, window_s=WINDOW_S)
    return Clap.create(config, captions).eval()


def seconds(work: Callable[[], object], device: torch.device, repeat: int = 1) -> float:
    """Return the seconds of the fastest of several calls."""
    best = math.inf
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


# -- the reference's loop


class ConvFrontEnd(nn.Module):
    """Log-mel frames by way of two convolutions with the rows of a discrete Fourier transform."""

    def __init__(self, model: Clap) -> None:
        super().__init__()
        config = model.config.audio.front_end
        self.hop, self.half, self.amin = config.hop_samples, config.n_fft // 2, config.amin
        bins_F1 = torch.arange(self.half + 1, dtype=torch.float64)[:, None]
        angle_FT = 2 * math.pi * bins_F1 * torch.arange(config.n_fft, dtype=torch.float64) / config.n_fft
        window_T = torch.hann_window(config.n_fft, dtype=torch.float64)
        self.register_buffer("real", (angle_FT.cos() * window_T).float()[:, None])
        self.register_buffer("imaginary", (-angle_FT.sin() * window_T).float()[:, None])
        self.register_buffer("mel", model.front_end.mel_filters.cpu())

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """Return frames, shape (B, L, M), in dB."""
        padded_B1T = F.pad(waveform_BT[:, None], (self.half, self.half), mode="reflect")
        parts = [F.conv1d(padded_B1T, kernel, stride=self.hop) for kernel in (self.real, self.imaginary)]
        power_BLF = (parts[0] ** 2 + parts[1] ** 2).transpose(1, 2)
        return 10 * torch.log10((power_BLF @ self.mel).clamp(min=self.amin))


class Reference:
    """The loop: decode a batch, one file after the other, then compute it, and nothing beside."""

    def __init__(self, model: Clap, device: torch.device) -> None:
        self.model, self.device = model, device
        self.front_end = ConvFrontEnd(model).to(device)
        self.tower = model.audio.to(memory_format=torch.contiguous_format)
        self.rate, self.resample = RATE, nn.Identity()

    def read(self, path: Path) -> Tensor:
        """Return a window of a file; the resampler is built again whenever the rate is not that of the last file."""
        waveform_TC, rate = soundfile.read(path, dtype="float32", always_2d=True)
        waveform = torch.from_numpy(waveform_TC).mean(dim=1)
        if rate != RATE:
            if rate != self.rate:
                self.resample = torchaudio.transforms.Resample(rate, RATE)
            waveform = self.resample(waveform)
        self.rate = rate
        num_samples = int(WINDOW_S * RATE)
        random.seed(123)
        start = random.randrange(max(1, len(waveform) - num_samples))
        return waveform.repeat(-(-num_samples // len(waveform)))[start : start + num_samples]

    @torch.no_grad()
    def embed_audio(self, paths: Sequence[Path], batch: int) -> NDArray[np.float16]:
        """Return rows of files."""
        rows = []
        for start in range(0, len(paths), batch):
            waveform_BT = torch.stack([self.read(path) for path in paths[start : start + batch]]).to(self.device)
            features = self.model.audio_projection(self.tower(self.front_end(waveform_BT)))
            rows.append(F.normalize(features, dim=1).half().cpu().numpy())
        return np.concatenate(rows)

    @torch.no_grad()
    def embed_text(self, captions: Sequence[str], batch: int) -> NDArray[np.float16]:
        """Return rows of captions, each padded to 100 tokens."""
        rows = []
        for start in range(0, len(captions), batch):
            encoded = self.model.text.tokenizer(
                list(captions[start : start + batch]), padding="max_length", max_length=PADDED_TOKENS, truncation=True,
                return_tensors="pt",
            )  # fmt: skip
            features = self.model.project_text(self.model.text.features(dict(encoded)))
            rows.append(features.half().cpu().numpy())
        return np.concatenate(rows)


# -- ours


def decode(path: Path) -> None:
    """Decode, resample and cut one file, and throw it away."""
    fit(load_audio(path, RATE), int(WINDOW_S * RATE))


def decode_with(pool: Executor, paths: Sequence[Path]) -> float:
    """Return the seconds that a pool of workers needs for all files, after a first few."""
    list(pool.map(decode, paths[:8]))
    started = time.perf_counter()
    list(pool.map(decode, paths, chunksize=4))
    return time.perf_counter() - started


def in_memory(model: Clap, num_clips: int, batch: int, device: torch.device, parts: bool) -> dict[str, float]:
    """Return seconds a clip from windows in the device's memory: all of the encoder and, where asked, of its parts."""
    from clapcur.models.towers import for_inference

    windows = 0.1 * torch.randn(batch, 1, int(WINDOW_S * RATE), device=device)
    plain, folded = model.audio, for_inference(model.audio)
    rounds = max(1, min(8, num_clips // batch))

    def each(work: Callable[[], object]) -> float:
        work()
        return seconds(lambda: [work() for _ in range(rounds)], device) / rounds / batch

    with model._evaluating():
        logmel = model.front_end(windows[:, 0])
        told = {"front end and tower": each(lambda: model._encode_clips(folded, windows, batch))}
        if parts:
            told["front end"] = each(lambda: model.front_end(windows[:, 0]))
            told["tower, batch norms as they are"] = each(lambda: plain(logmel))
            told["tower, batch norms folded"] = each(lambda: folded(logmel))
            try:
                compiled = torch.compile(folded)
                started = time.perf_counter()
                compiled(logmel)
                cold_s = time.perf_counter() - started
                told[f"the same, compiled (in {cold_s:.0f} s)"] = each(lambda: compiled(logmel))
            except RuntimeError as error:  # no compiler on this machine
                print(f"torch.compile: {type(error).__name__}", file=sys.stderr)
    return told


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the GFLOP/s of this machine in a product of large matrices."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    torch.mm(a, b)
    return 2 * size**3 / seconds(lambda: torch.mm(a, b), device, repeat=5) / 1e9


@frozen
class Nothing:
    """The config of a checkpoint that nobody trained."""


def as_artifacts(home: Home, model: Clap, clips: Path) -> dict[str, Artifact]:
    """Put the model and the clips into a store, as the stage wants them."""

    def save(inputs: object, config: object, work: Workspace) -> dict[str, object]:
        model.save(work.path)
        return {}

    checkpoint = runner.run(Stage("random", "1", "checkpoint", save), Nothing(), {}, home)
    ingest, identity = stage_for(scan(IngestConfig(source=str(clips))))
    return {"checkpoint": checkpoint, "manifest": runner.run(ingest, identity, {}, home)}


def row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print("|", " | ".join(f"{cell:,.1f}" if isinstance(cell, float) else str(cell) for cell in cells), "|", flush=True)


def main() -> None:
    """Measure, and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--clips", type=int, default=240, help="clips in the corpus")
    parser.add_argument("--captions", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64, help="ours")
    parser.add_argument("--reference-batch", type=int, default=120, help="the reference's is 400, where it fits")
    parser.add_argument("--no-parts", action="store_true", help="leave out the rows that say where the time goes")
    options = parser.parse_args()
    device, num_cpus = pick_device(options.device), os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        home, clips = Home.open(Path(folder) / "home"), Path(folder) / "clips"
        clips.mkdir()
        paths, captions = write_clips(clips, options.clips), write_captions(options.captions)
        audio_s = sum(soundfile.info(path).duration for path in paths)
        model = build_model(captions)
        inputs = as_artifacts(home, model, clips)
        model.to(device).precision = options.precision
        print(
            f"\n{device_name(device)}, {num_cpus} CPUs, {torch.get_num_threads()} threads of torch, {options.precision}"
        )
        print(f"\n{len(paths)} clips of {audio_s / len(paths):.1f} s\n")
        row("", "clips/s", "x real time")
        row("---", "--:", "--:")

        def told(name: str, clips_per_s: float) -> float:
            row(name, clips_per_s, clips_per_s * audio_s / len(paths))
            return clips_per_s

        for number in sorted({1, num_cpus}):
            with ThreadPoolExecutor(number) as pool:
                decoding = told(f"decoding alone, {number} threads", len(paths) / decode_with(pool, paths))
        with ProcessPoolExecutor(num_cpus) as processes:
            told(f"decoding alone, {num_cpus} processes", len(paths) / decode_with(processes, paths))
        for name, each_s in in_memory(model, len(paths), options.batch, device, not options.no_parts).items():
            rate = told(f"{name}, from memory", 1 / each_s)
            if name == "front end and tower":
                computing = rate
        on_gpu = device.type == "cuda"
        limit = min(decoding, computing) if on_gpu else 1 / (1 / decoding + 1 / computing)
        told("limit: the slower of the two" if on_gpu else "limit: both, on the same cores", limit)
        config = EmbedConfig(
            what="audio", batch_size=options.batch, device=str(device), precision=options.precision
        )  # fmt: skip
        metrics = runner.run(STAGE, config, inputs, home).record.metrics
        ours = told("`embed`, the stage from files to shards", metrics["rows_per_s"])
        reference = Reference(build_model(captions).to(device), device)
        reference.embed_audio(paths[:4], 4)
        spent_s = seconds(lambda: reference.embed_audio(paths, options.reference_batch), device)
        theirs = told(f"the reference's loop, batches of {options.reference_batch}", len(paths) / spent_s)
        half = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
        matrices = matrix_rate(device, half)
        waiting, teraflops = metrics["waiting_share"], computing * CNN14_GFLOP / 1e3
        print(f"\n- `embed` reaches {ours / limit:.0%} of the limit, and waits for data {waiting:.0%} of the time")
        print(f"- `embed` is {ours / theirs:.1f} times as fast as the reference's loop")
        print(
            f"- from memory Cnn14 does {teraflops:,.2f} TFLOP/s, {1e3 * teraflops / matrices:.0%} of what this machine "
            f"does in a product of large matrices ({matrices / 1e3:,.2f})\n"
        )
        row(f"{len(captions)} captions", "captions/s")
        row("---", "--:")
        model.embed_text(captions[:64])
        ours = len(captions) / seconds(lambda: model.embed_text(captions), device)
        row("ours: neighbours in length, padded to the longest", ours)
        theirs = len(captions) / seconds(lambda: reference.embed_text(captions, 256), device)
        row(f"the reference's: all padded to {PADDED_TOKENS} tokens", theirs)
        print(f"\n- ours are {ours / theirs:.1f} times as fast")


if __name__ == "__main__":
    main()
