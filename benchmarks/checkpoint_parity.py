"""Checkpoints of other projects: the embeddings that their own packages compute, beside ours.

No weights of theirs are needed. Each package builds its own model, random weights take the place of the trained ones,
the package's own code saves and embeds, `load_checkpoint` loads, and the two embeddings of the same clip and the same
captions are compared; then `save_checkpoint` gives the model back and the package loads that. Each comparison runs
whose package can be imported. Beside the project's own environment::

    python -m venv parity --system-site-packages      # or add the packages to a copy of the environment
    parity/bin/pip install --no-deps panns-inference msclap laion-clap torchlibrosa torchvision
    parity/bin/pip install librosa h5py ftfy braceexpand webdataset wget regex
    HF_HUB_OFFLINE=1 PYTHONPATH=. parity/bin/python benchmarks/checkpoint_parity.py

``--no-deps``, for msclap and laion-clap ask for a numpy and a transformers of 2024; what they import works with ours,
but for one call that is filled in below. BLAT is no package: ``--blat FOLDER`` names a clone of wsntxxn/BLAT, which
needs ``pip install einops timm wget``.
"""

import argparse
import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from tiny_checkpoints import (  # noqa: E402
    CAPTIONS,
    bert_source,
    clip,
    from_shapes,
    gpt2_source,
    roberta_source,
    scramble,
    write_clip,
)

from clapcur.errors import CheckpointError  # noqa: E402
from clapcur.models.checkpoints import load_checkpoint, save_checkpoint  # noqa: E402
from clapcur.models.clap import Clap  # noqa: E402
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, TextConfig  # noqa: E402
from clapcur.models.formats.files import write_tensors  # noqa: E402

TOLERANCE = 1e-5
WIDE = {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
"""Of the text encoders: what the packages fix, and little beside it."""


class Comparisons:
    """The largest differences, as they are found."""

    def __init__(self) -> None:
        self.failed = False

    def add(self, what: str, theirs: np.ndarray | Tensor, ours: np.ndarray | Tensor) -> None:
        """Print how far two embeddings are apart, and remember whether that is too far."""
        theirs, ours = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
        difference = float(np.abs(theirs - ours).max())
        spread = float(np.abs(theirs - theirs.mean(axis=0)).max())
        self.failed |= not difference <= TOLERANCE or spread < 30 * TOLERANCE
        print(f"{what:<58} {difference:9.1e}   (rows differ among each other by {spread:.2g})")

    def say(self, what: str, holds: bool) -> None:
        """Print whether something holds."""
        self.failed |= not holds
        print(f"{what:<58} {'yes' if holds else 'NO'}")


def unit(rows: Tensor) -> Tensor:
    """Return rows of length 1."""
    return nn.functional.normalize(rows.float(), dim=-1).detach()


def randomised(model: nn.Module) -> nn.Module:
    """Scramble the weights, but for the front end, which is no weight that anybody learned."""
    state = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if "_extractor." not in name and not name.endswith(("attn_mask", "attn.bias", "masked_bias"))
    }
    scramble(state)
    return model.eval()


@contextmanager
def tiny_encoder(cls: type, folder: Path) -> Iterator[None]:
    """Let a package that names a text model on the Hub get a small one with random weights, of the right width."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    def model(*names: Any, **options: Any) -> Any:
        config = AutoConfig.from_pretrained(folder)
        config.update({key: value for key, value in wide_of(config).items()})
        config.save_pretrained(folder)
        return AutoModel.from_config(config)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with (
        mock.patch.object(cls, "from_pretrained", staticmethod(model)),
        mock.patch.object(AutoTokenizer, "from_pretrained", staticmethod(lambda *names, **options: tokenizer)),
    ):
        yield


def wide_of(config: Any) -> dict[str, int]:
    """Return the sizes under the names that a config has for them."""
    if config.model_type == "gpt2":
        return {"n_embd": 768, "n_layer": 1, "n_head": 2}
    return WIDE


def compare_panns(folder: Path, result: Comparisons) -> None:
    """PANNs' Cnn14, at its own rate and as a 44.1 kHz model that swallowed its filters."""
    from panns_inference.models import Cnn14

    sizes = {"window_size": 1024, "hop_size": 320, "mel_bins": 64, "fmin": 50, "fmax": 14000, "classes_num": 527}
    published = randomised(Cnn14(sample_rate=32000, **sizes))
    write_tensors(published.state_dict(), folder / "cnn14.pth", "model")
    text = TextConfig(hidden_size=16, vocab_size=100)
    waves = torch.randn(3, 64000) * torch.logspace(-2, -1, 3)[:, None]

    def features(model: Clap) -> Tensor:
        with torch.inference_mode():
            found: Tensor = model.audio(model.front_end(waves))
            return found / found.abs().max()

    model, _ = load_checkpoint(folder / "cnn14.pth", text=text, captions=CAPTIONS)
    with torch.inference_mode():
        theirs = published(waves)["embedding"]
    result.add("panns-inference, Cnn14 features at 32 kHz", theirs / theirs.abs().max(), features(model))
    fast = Cnn14(sample_rate=44100, **sizes)
    fast.load_state_dict(published.state_dict())
    config = ClapConfig(audio=AudioConfig(front_end=FrontEndConfig(sample_rate=44100)), text=text)
    model, report = load_checkpoint(folder / "cnn14.pth", config=config, captions=CAPTIONS, front_end="from_checkpoint")
    assert report.filters is not None and model.config.audio.front_end.filter_rate == 32000
    with torch.inference_mode():
        theirs = fast.eval()(waves)["embedding"]
    result.add("  as a 44.1 kHz model, filters of the file", theirs / theirs.abs().max(), features(model))


def compare_msclap(folder: Path, result: Comparisons, version: str = "2022") -> None:
    """MS-CLAP through its own wrapper: its loading, its reading of files, its padding of captions."""
    import msclap.CLAPWrapper as wrapper
    import msclap.models.clap as models
    import torchaudio

    seconds = {"2022": 5, "2023": 7}[version]
    tokenizer = (bert_source if version == "2022" else gpt2_source)(folder)
    paths = [folder / "long.wav", folder / "short.wav"]
    for path, duration in zip(paths, (seconds, 1.3), strict=True):
        write_clip(path, duration, 44100, seed=len(path.name) - 6)

    def read(path: Path | str) -> tuple[Tensor, int]:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(samples.T.copy()), rate

    def encode_plus(self: Any, text: str, **options: Any) -> Any:
        return self(text, truncation=True, **options)

    def opened(path: Path) -> Any:
        with (
            tiny_encoder(models.AutoModel, folder),
            mock.patch.object(type(tokenizer), "encode_plus", encode_plus, create=True),
        ):
            return wrapper.CLAPWrapper(path, version=version)

    def embedded(clap: Any) -> tuple[Tensor, Tensor]:
        with (
            mock.patch.object(torchaudio, "load", read),
            mock.patch.object(type(tokenizer), "encode_plus", encode_plus, create=True),
        ):
            return unit(clap.get_audio_embeddings(paths)), unit(clap.get_text_embeddings(list(CAPTIONS)))

    write_tensors({}, folder / "empty.pth", "model")
    clap = opened(folder / "empty.pth").clap
    randomised(clap)
    write_tensors(clap.state_dict(), folder / "released.pth", "model")
    audio, text = embedded(opened(folder / "released.pth"))
    ours, report = load_checkpoint(folder / "released.pth", text_source=folder, collapsed=True)
    result.add(f"msclap {version}, audio of files", audio, ours.embed_audio(paths))
    result.add(f"msclap {version}, captions", text, ours.embed_text(CAPTIONS))
    result.say(f"  every tensor accounted for ({report.format})", not report.unexpected)
    save_checkpoint(ours, folder / "back.pth", "msclap")
    back = torch.load(folder / "back.pth", weights_only=True)["model"]
    again = opened(folder / "empty.pth").clap
    again.load_state_dict(back)  # strictly, which the package itself does not ask for
    computed = [
        name for name in back if name.endswith(("melW", "stft.conv_real.weight", "stft.conv_imag.weight", "_mask"))
    ]
    differences = [float((back[name] - clap.state_dict()[name]).abs().max()) for name in computed]
    result.say(f"  given back, front end and masks equal ({len(computed)})", max(differences) < TOLERANCE)
    audio_again, text_again = embedded(opened(folder / "back.pth"))
    result.add("  given back, audio", audio_again, audio)
    result.add("  given back, captions", text_again, text)


def compare_laion(folder: Path, result: Comparisons, tower: str = "HTSAT-tiny") -> None:
    """LAION-CLAP through its own module: strict loading, quantised audio, captions padded to 77."""
    from laion_clap import CLAP_Module
    from transformers import RobertaModel

    tokenizer = roberta_source(folder, max_length=77)
    waves = [write_clip(folder / f"{seconds}.wav", seconds, 48000, int(seconds) % 4) for seconds in (10, 3.1)]

    def module() -> Any:
        with tiny_encoder(RobertaModel, folder):
            made = CLAP_Module(enable_fusion=False, device="cpu", amodel=tower)
        made.tokenize = tokenizer
        return made

    def embedded(made: Any) -> tuple[np.ndarray, np.ndarray]:
        audio = np.concatenate([made.get_audio_embedding_from_data([wave]) for wave in waves])
        return audio, made.get_text_embedding(list(CAPTIONS))

    theirs = module()
    randomised(theirs.model)
    state = {f"module.{name}": tensor for name, tensor in theirs.model.state_dict().items()}
    state["module.text_branch.embeddings.position_ids"] = torch.arange(82)[None]
    write_tensors(state, folder / "released.pt", "state_dict")
    fresh = module()
    fresh.load_ckpt(folder / "released.pt", verbose=False)
    audio, text = embedded(fresh)
    ours, _ = load_checkpoint(folder / "released.pt", text_source=folder, collapsed=True)
    paths = [folder / "10.wav", folder / "3.1.wav"]
    result.add(f"laion-clap {tower}, audio of files", audio, ours.embed_audio(paths))
    result.add(f"laion-clap {tower}, captions", text, ours.embed_text(CAPTIONS))
    save_checkpoint(ours, folder / "back.pt", "laion")
    back = torch.load(folder / "back.pt", weights_only=True)["state_dict"]
    original = theirs.model.state_dict()
    computed = [name for name in back if name.endswith(("melW", "attn_mask", "relative_position_index"))]
    same = [torch.allclose(back[name].float(), original[name].float(), atol=TOLERANCE) for name in computed]
    result.say(f"  given back, filters, masks and positions equal ({len(same)})", all(same))
    again = module()
    again.load_ckpt(folder / "back.pt", verbose=False)
    audio_again, text_again = embedded(again)
    result.add("  given back and loaded strictly, audio", audio_again, audio)
    result.add("  given back and loaded strictly, captions", text_again, text)
    fused = {**state, "module.audio_branch.patch_embed.fusion_model.x.weight": torch.zeros(1)}
    write_tensors(fused, folder / "fused.pt", "state_dict")
    try:
        load_checkpoint(folder / "fused.pt", text_source=folder)
        result.say("  fusion is refused", False)
    except CheckpointError as error:
        result.say("  fusion is refused", "fusion" in str(error))


def compare_blat(folder: Path, result: Comparisons, clone: Path) -> None:
    """BLAT through the code of a clone."""
    sys.path.insert(0, str(clone))
    from models.audio_encoder import Cnn14
    from models.audio_text_model import AudioTextClip
    from models.text_encoder import Bert
    from transformers import AutoModel

    tokenizer = bert_source(folder)
    with tiny_encoder(AutoModel, folder):
        text_encoder = Bert("prajjwal1/bert-medium")
    theirs = randomised(AudioTextClip(Cnn14(32000), text_encoder, 2048, text_encoder.embed_dim, 1024))
    write_tensors(theirs.state_dict(), folder / "model.pth", "state_dict")
    ours, _ = load_checkpoint(folder / "model.pth", text_source=folder, collapsed=True)
    path = folder / "clip.wav"
    waves = [write_clip(path.with_stem(f"clip{seed}"), 10, 32000, seed=seed) for seed in range(2)]
    tokens = tokenizer(list(CAPTIONS), padding="max_length", max_length=30, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        audio = theirs.encode_audio(
            waveform=torch.from_numpy(np.stack(waves)), wave_length=torch.tensor([320000, 320000])
        )
        text = theirs.encode_text(**tokens)
    result.add("BLAT, audio of files", audio, ours.embed_audio([path.with_stem(f"clip{seed}") for seed in range(2)]))
    result.add("BLAT, captions", text, ours.embed_text(CAPTIONS))


def write_golden(path: Path) -> None:
    """Write what the tests of HTSAT's own names compare to: a tiny tower of either package, names and answers.

    The weights are `tiny_checkpoints.from_shapes` of the names, so that a test makes the same ones.
    """
    import importlib.metadata
    import json
    from types import SimpleNamespace

    from laion_clap.clap_module.htsat import HTSAT_Swin_Transformer as Laion
    from laion_clap.training.data import float32_to_int16, int16_to_float32
    from msclap.models import config as msclap_config
    from msclap.models.htsat import HTSAT_Swin_Transformer as Msclap

    sizes: dict[str, Any] = {"embed_dim": 8, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
    laion_config = SimpleNamespace(
        sample_rate=48000, window_size=1024, hop_size=480, mel_bins=64, fmin=50, fmax=14000, class_num=5
    )
    golden = {}
    for name, package, cls, config, rate, seconds in (
        ("laion", "laion-clap", Laion, laion_config, 48000, 10),
        ("msclap", "msclap", Msclap, msclap_config, 44100, 7),
    ):
        tower = cls(config=config, num_classes=5, **sizes).eval()
        shapes = {key: list(tensor.shape) for key, tensor in tower.state_dict().items() if "_extractor." not in key}
        ours = {k: t for k, t in from_shapes(shapes).items() if not k.endswith(("_mask", "position_index"))}
        lacking, unknown = tower.load_state_dict(ours, strict=False)
        assert not unknown and all("_extractor" in k or k.endswith(("_mask", "position_index")) for k in lacking)
        waves = [clip(seconds, rate, seed) for seed in range(2)]
        with torch.inference_mode():
            if name == "laion":
                rough = np.stack([int16_to_float32(float32_to_int16(wave)) for wave in waves])
                rows = tower({"waveform": torch.from_numpy(rough)}, device="cpu")["embedding"]
            else:
                rows = tower(torch.from_numpy(np.stack(waves)))["latent_output"]
        golden[name] = {
            "made by": f"{package} {importlib.metadata.version(package)}",
            "shapes": shapes,
            "features": [[round(float(value), 7) for value in row] for row in unit(rows)],
        }
    path.write_text(json.dumps(golden, indent=None, separators=(",", ":")).replace('"shapes":', '\n"shapes":') + "\n")


def main() -> None:
    """Run each comparison whose package is there; exit 1 where one disagrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blat", type=Path, help="a clone of wsntxxn/BLAT")
    parser.add_argument("--golden", type=Path, help="write tests/htsat_golden.json anew, and compare nothing")
    parser.add_argument("--only", help="part of a comparison's name")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if arguments.golden:
        return write_golden(arguments.golden)
    result = Comparisons()
    comparisons: list[tuple[str, str, Callable[[Path, Comparisons], None]]] = [
        ("panns_inference", "panns", compare_panns),
        ("msclap", "msclap-2022", compare_msclap),
        ("msclap", "msclap-2023", lambda folder, result: compare_msclap(folder, result, "2023")),
        ("laion_clap", "laion-htsat", compare_laion),
        ("laion_clap", "laion-pann", lambda folder, result: compare_laion(folder, result, "PANN-14")),
    ]
    if arguments.blat:
        comparisons.append(("torch", "blat", lambda folder, result: compare_blat(folder, result, arguments.blat)))
    for package, name, compare in comparisons:
        if arguments.only and arguments.only not in name:
            continue
        if importlib.util.find_spec(package) is None:
            print(f"{name}: {package} is not installed, left out")
            continue
        with tempfile.TemporaryDirectory() as folder:
            compare(Path(folder), result)
    sys.exit(result.failed)


if __name__ == "__main__":
    main()
