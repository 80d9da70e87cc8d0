"""The model: two towers, two projections, one temperature; and the folder it is saved to.

A saved model is a folder that needs nothing else, neither the network nor the text model it was
made from: `model.safetensors` (all weights), `config.json` (`ClapConfig`) and `text/` (the text
encoder's config and tokenizer). Nothing is pickled, and weights load by exact names and shapes.

Shapes: B batch, N clips, M captions, K classes, T samples, L frames, F features, D embedding.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from clapcur.audio.arrays import list_of_clips
from clapcur.audio.throughput import Pace
from clapcur.config import check_seed
from clapcur.data.class_names import PROMPT, alike, prompts, readable
from clapcur.methods.devices import pick_device, pick_precision
from clapcur.models.config import MAX_SCALE, ClapConfig, OrderHeadConfig
from clapcur.models.folder import load_weights, read_config, save_weights, write_config
from clapcur.models.front_end import LogMel
from clapcur.models.order_head import Pooled
from clapcur.models.prefetch import OnBad, Window, on_device, read_ahead, to_host
from clapcur.models.projections import build_projection
from clapcur.models.text import TextTower, build_text_tower, load_text_tower
from clapcur.models.towers import build_audio_tower, for_inference
from clapcur.sequences import list_of_texts
from clapcur.store.artifacts import check_payload

if TYPE_CHECKING:
    import pandas as pd

Precision = Literal["float32", "bfloat16"]
AudioClip = Path | str | ArrayLike | tuple[ArrayLike, int]
MANY_CLIPS = 16  # ours: from here on the faster form of the tower repays its making


class Clap(nn.Module):
    """Audio and captions in one space, where the cosine says how well they fit.

    Make one with `Clap.create` or `load_model`.

    Parameters
    ----------
    config : ClapConfig
    text : TextTower
        What `config.text` describes.

    Attributes
    ----------
    front_end, audio, audio_projection
        Waveform to log-mel to features to embedding.
    text, text_projection
        Captions to features to embedding.
    logit_scale : Parameter, shape ()
        Logarithm of what similarities are multiplied with before a softmax.
    id : str or None
        Id of the artifact that it was loaded from.
    """

    def __init__(self, config: ClapConfig, text: TextTower) -> None:
        super().__init__()
        self.config = config
        self.precision: Precision = "float32"
        self.id: str | None = None
        self.front_end = LogMel(config.audio.front_end)
        self.audio = build_audio_tower(config.audio)
        self.audio_projection = build_projection(config, self.audio.num_features)
        self.text = text
        self.text_projection = build_projection(config, text.num_features)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(config.initial_temperature)))

    def __repr__(self) -> str:
        """Return one line; the modules have their own: ``model.audio``, ``model.text``."""
        audio = self.config.audio
        tower = "HTSAT" if audio.htsat else "YAMNet" if audio.yamnet else f"Cnn14 {audio.width}"
        said = {
            "id": self.id, "audio": tower, "text": self.config.text.source, "embedding_dim": self.config.embedding_dim,
            "sample_rate": audio.front_end.sample_rate, "window_s": self.config.window_s,
        }  # fmt: skip
        return f"Clap({', '.join(f'{name}={value!r}' for name, value in said.items() if value is not None)})"

    @classmethod
    def create(cls, config: ClapConfig, captions: Iterable[str] | None = None, seed: int = 0) -> "Clap":
        """Make a model with fresh weights, and with the pretrained text encoder if one is named.

        Parameters
        ----------
        config : ClapConfig
        captions : sequence of str, optional
            What the vocabulary of "bert-tiny" is learned from, in any order; else unused.
        seed : int
            The same seed gives the same weights; torch's global generator is left as it was.

        Raises
        ------
        ValueError
            "bert-tiny" without captions.
        CheckpointError
            The named text model cannot be loaded.
        """
        with seeded(seed):
            return cls(config, build_text_tower(config.text, captions))

    def with_order_head(self, head: OrderHeadConfig | None = None, seed: int = 0) -> "Clap":
        """Return this model with an order-aware pooling, with the same embeddings until it learns.

        Parameters
        ----------
        head : OrderHeadConfig, optional
        seed : int
            Of the head's weights.

        Raises
        ------
        ValueError
            There is one already.
        """
        if self.config.audio.order_head is not None:
            raise ValueError("the model already has an order head and cannot have a second one; train the existing one")
        audio = replace(self.config.audio, order_head=head or OrderHeadConfig())
        with seeded(seed):
            made = Clap(replace(self.config, audio=audio), self.text)
        lacking = made.load_state_dict(self.state_dict(), strict=False)
        assert not lacking.unexpected_keys and all(key.startswith("audio.order_head.") for key in lacking.missing_keys)
        made.precision = self.precision
        return made.to(self.logit_scale.device).train(self.training)

    # -- tensors in, tensors out: for training

    def encode_audio(self, waveform_BT: Tensor) -> Tensor:
        """Return unit rows, shape (B, D), float32, of windows at the front end's rate."""
        return self.encode_logmel(self.front_end(waveform_BT))

    def encode_logmel(self, logmel_BLM: Tensor) -> Tensor:
        """Return unit rows, shape (B, D), float32, of what the front end gives."""
        return _unit(self.audio_projection(self.audio(logmel_BLM)))

    def encode_pooled(self, pooled: Pooled) -> Tensor:
        """Return unit rows, shape (B, D), float32, of what the audio tower's `trunk` gave.

        With a frozen trunk in evaluation mode that can be computed once and kept.
        """
        return _unit(self.audio_projection(self.audio.head(pooled)))

    def encode_text(self, captions: Iterable[str] | dict[str, Tensor]) -> Tensor:
        """Return unit rows, shape (B, D), float32, of captions or of what `text.tokenize` gave."""
        return self.project_text(self.text_features(captions))

    def text_features(self, captions: Iterable[str] | dict[str, Tensor]) -> Tensor:
        """Return what the text encoder alone gives, shape (B, F).

        With a frozen encoder in evaluation mode these can be computed once and kept.
        """
        tokens = captions if isinstance(captions, dict) else self.text.tokenize(captions)
        return self.text.features(tokens)

    def project_text(self, features_BF: Tensor) -> Tensor:
        """Return unit rows, shape (B, D), float32, of text features."""
        return _unit(self.text_projection(features_BF))

    def scale(self) -> Tensor:
        """Return what similarities are multiplied with, shape (): exp(logit_scale)."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Cut the scale at 100, in place; to be called after every optimiser step.

        The reference clamps the logits instead, which lets the scale run away and takes the
        gradient from every pair at the limit.
        """
        self.logit_scale.clamp_(max=math.log(MAX_SCALE))

    # -- files, waveforms and captions in, arrays out: for use

    def embed_audio(
        self, clips: Iterable[AudioClip], num_crops: int = 1, batch_size: int = 32, *, sample_rate: int | None = None
    ) -> NDArray[np.float32]:
        """Embed audio files and waveforms; the same sound gives the same row, whatever is beside it.

        Parameters
        ----------
        clips : sequence of path, array or (array, int)
            Anything that can be iterated; rows come in its order. An array has shape (T,), or (T, C) with C channels
            as `soundfile.read` returns it, and is float (full scale 1), int16 or int32; a pair also has its sample
            rate. Arrays are averaged to mono and resampled like files.
        num_crops : int
            Windows of `config.window_s` per clip. 1 is its centre; more are spread evenly from
            its start to its end, averaged and made unit again. `config.short` says how a shorter clip fills one.
        batch_size : int
            Windows at a time; no part of the result beyond rounding.
        sample_rate : int, optional
            Sample rate of the arrays that have none of their own, in Hz. Files have theirs.

        Returns
        -------
        NDArray, shape (N, D), float32
            Unit rows.

        Raises
        ------
        clapcur.errors.DataError
            A file is missing or cannot be used; an array is empty or has samples that are not finite.
        TypeError, ValueError
            An array has another type or shape, or no sample rate.
        """
        listed = list_of_clips("clips", clips, sample_rate)
        return next(self.embed_each([listed], num_crops, batch_size, fold=len(listed) >= MANY_CLIPS))

    def embed_each(
        self, groups: Iterable[Iterable[Any]], num_crops: int = 1, batch_size: int = 32, num_workers: int = 0,
        pace: Pace | None = None, fold: bool = True, clip_ids: Mapping[Any, str] | None = None,
        on_bad: OnBad | None = None,
    ) -> Iterator[NDArray[np.float32]]:  # fmt: skip
        """Embed groups of audio files, one after the other; the next files are decoded meanwhile.

        Parameters
        ----------
        groups : sequence of sequences of path or Sound
        num_crops, batch_size : int
            As in `embed_audio`; no batch reaches over two groups, so that a group's rows are the same alone.
        num_workers : int
            Threads that decode; 0 is one per CPU.
        pace : Pace, optional
            Is told the seconds of audio and how long they were waited for.
        fold : bool
            Take the form of the tower that is faster and gives rows equal to rounding; making it costs as much as
            a clip or two.
        clip_ids, on_bad
            As in `clapcur.models.prefetch.read_ahead`; the row of a file that `on_bad` is told of means nothing.

        Yields
        ------
        NDArray, shape (N, D), float32
            Unit rows of a group.

        Raises
        ------
        clapcur.errors.DataError
            A file is missing or cannot be used.
        """
        if num_crops < 1 or batch_size < 1:
            raise ValueError(f"num_crops and batch_size must be at least 1, got {num_crops} and {batch_size}")
        listed = [list_of_clips("clips", paths) for paths in groups]
        offsets = [0.5] if num_crops == 1 else np.linspace(0, 1, num_crops).tolist()
        front_end, device = self.config.audio.front_end, self.logit_scale.device
        window = Window(front_end.sample_rate, self.config.num_samples, offsets, self.config.short)
        clips_at_a_time = max(1, batch_size // num_crops)
        batches = (
            paths[start : start + clips_at_a_time]
            for paths in listed
            for start in range(0, len(paths), clips_at_a_time)
        )
        tower = for_inference(self.audio) if fold else self.audio
        decoded = read_ahead(
            batches, window, num_workers=num_workers, pin=device.type == "cuda", pace=pace, clip_ids=clip_ids,
            on_bad=on_bad,
        )  # fmt: skip
        with closing(decoded):
            encoded = (self._encode_clips(tower, crops, batch_size) for crops in on_device(decoded, device))
            rows = to_host(encoded)
            for paths in listed:
                parts = [part_ND.numpy() for part_ND in islice(rows, -(-len(paths) // clips_at_a_time))]
                yield np.concatenate([np.zeros((0, self.config.embedding_dim), np.float32), *parts])

    def _encode_clips(self, tower: nn.Module, crops_NCT: Tensor, batch_size: int) -> Tensor:
        """Return unit rows of clips, shape (N, D): the mean over their crops, at most `batch_size` at a time."""
        with self._evaluating():
            windows = crops_NCT.flatten(0, 1).split(batch_size)
            parts = [_unit(self.audio_projection(tower(self.front_end(part_BT)))) for part_BT in windows]
            return _unit(torch.cat(parts).unflatten(0, crops_NCT.shape[:2]).mean(dim=1))

    def embed_text(self, captions: Iterable[str], batch_size: int = 256) -> NDArray[np.float32]:
        """Embed captions.

        Parameters
        ----------
        captions : sequence of str
            A list, an array, a Series or whatever can be iterated; rows come in its order.
        batch_size : int
            Captions at a time; no part of the result beyond rounding.

        Returns
        -------
        NDArray, shape (M, D), float32
            Unit rows.
        """
        captions = list_of_texts("captions", captions)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        rows_MD = np.zeros((len(captions), self.config.embedding_dim), np.float32)
        by_length = np.argsort([len(text) for text in captions], kind="stable")  # alike lengths need little padding
        with self._evaluating():
            for start in range(0, len(captions), batch_size):
                chosen = by_length[start : start + batch_size]
                rows_MD[chosen] = self.encode_text([captions[index] for index in chosen]).cpu().numpy()
        return rows_MD

    def classify(
        self,
        clips: Iterable[AudioClip],
        class_names: Iterable[str],
        prompt: str = PROMPT,
        transductive: bool = False,
        num_crops: int = 1,
        *,
        sample_rate: int | None = None,
    ) -> "pd.DataFrame":
        """Return which class each clip sounds like, among classes given by name alone.

        Parameters
        ----------
        clips : sequence of path, array or (array, int)
            As in `embed_audio`.
        class_names : sequence of str
            `_` and `/` are read as spaces.
        prompt : str
            The caption of a class; ``{}`` is the place of its name.
        transductive : bool
            Let the clips help each other: probabilities from `metrics.transductive_posteriors`,
            which needs some clips of most classes and depends on which clips are given together.
        num_crops : int
            As in `embed_audio`.
        sample_rate : int, optional
            As in `embed_audio`.

        Returns
        -------
        DataFrame, one row a clip
            ``path``, for an array its place, such as ``clips[3]``; ``class``, the most probable, as given; its cosine
            ``similarity`` and ``probability``; then the probability of each class, in a column of its readable name.

        Raises
        ------
        ValueError
            No class, the same class twice, or a prompt without ``{}``.
        clapcur.errors.DataError
            As in `embed_audio`.
        """
        import pandas as pd
        from scipy.special import softmax

        listed, class_names = list_of_clips("clips", clips, sample_rate), list_of_texts("class_names", class_names)
        columns = [readable(name) for name in class_names]
        if not columns or alike(columns):
            raise ValueError(f"class names must be distinct, ignoring case, got {class_names}")
        audio_ND = self.embed_audio(listed, num_crops)
        text_KD = self.embed_text(prompts(class_names, prompt))
        scale, similarity_NK = self.scale().item(), audio_ND @ text_KD.T
        if transductive:
            from clapcur.methods.metrics import transductive_posteriors

            probability_NK = transductive_posteriors(audio_ND, text_KD, logit_scale=scale)
        else:
            probability_NK = softmax(scale * similarity_NK, axis=1)
        best_N = probability_NK.argmax(axis=1)
        each = np.arange(len(best_N))
        answer = {
            "path": [str(clip) for clip in listed],
            "class": [class_names[best] for best in best_N],
            "similarity": similarity_NK[each, best_N],
            "probability": probability_NK[each, best_N],
        }
        for name, probability_N in zip(columns, probability_NK.T, strict=True):
            answer[f"{name} (class)" if name in answer else name] = probability_N
        return pd.DataFrame(answer)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Switch dropout and gradients off; every module gets back the mode that it had."""
        half = self.precision == "bfloat16"
        with (
            evaluating(self),
            torch.inference_mode(),
            torch.autocast(self.logit_scale.device.type, torch.bfloat16, enabled=half),
        ):
            yield

    # -- folders

    def save(self, folder: Path | str) -> None:
        """Write a folder that `load_model` reads, without the network or the original text model."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.text.save(folder / "text")
        save_weights(self, folder / "model.safetensors")
        write_config(self.config, folder / "config.json")


def load_model(folder: Path | str, device: str = "auto", precision: Precision = "float32") -> Clap:
    """Load a model that `Clap.save` wrote, in evaluation mode.

    Parameters
    ----------
    folder : path
    device : str
        "auto" takes the first GPU if there is one; else as torch names it.
    precision : {"float32", "bfloat16"}
        Of the towers in `embed_audio`, `embed_text` and `classify`; the front end and the rows are
        float32 always.

    Raises
    ------
    CheckpointError
        A file is missing or damaged, or weights and config do not belong together.
    DamagedArtifact
        The folder is an artifact, and a file of it is not what was written.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be 'float32' or 'bfloat16', got {precision!r}")
    folder = Path(folder)
    check_payload(folder)
    config = read_config(folder / "config.json")
    with seeded(0):  # the fresh weights are overwritten; the generator stays as it was
        model = Clap(config, load_text_tower(folder / "text", config.text))
    load_weights(model, folder / "model.safetensors")
    model.precision = precision
    place = pick_device(device)
    pick_precision(precision, place)  # warns where this device emulates it
    return model.to(place).eval()


def _unit(rows_BD: Tensor) -> Tensor:
    """Return rows of length 1, in float32 also under autocast."""
    return F.normalize(rows_BD.float(), dim=-1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generator that makes weights, which is the CPU's, and restore it afterwards."""
    check_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode; every part gets back the mode that it had."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, was_training in training.items():
            part.training = was_training
