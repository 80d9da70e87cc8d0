"""The captioner of BLAT: frames of a frozen audio tower and the tags of a clip to captions; and its folder.

A saved captioner is a folder that needs nothing else: ``model.safetensors`` (front end, audio tower and decoder),
``captioner.json`` (configs and names of the classes) and ``text/`` (the tokenizer). Nothing is pickled.

Shapes: N clips, W windows of a clip, T samples of a window, L frames of all windows, C channels, K classes, S tokens,
V vocabulary.

References
----------
Xu et al. 2023, BLAT, arXiv:2303.07902; wsntxxn/AudioCaption, whose decoder with keyword probabilities this follows.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clapcur.config import check_seed, from_dict, frozen, to_dict
from clapcur.data.tags import VectorForm
from clapcur.errors import CheckpointError
from clapcur.methods.devices import pick_device
from clapcur.models.clap import Clap, evaluating, seeded
from clapcur.models.config import AudioConfig, ClapConfig
from clapcur.models.folder import load_weights, save_weights
from clapcur.models.front_end import LogMel
from clapcur.models.prefetch import OnBad, Window, on_device, read_ahead
from clapcur.models.text import load_tokenizer, train_tokenizer
from clapcur.models.towers import build_audio_tower, for_inference, frames_of
from clapcur.sequences import list_of_paths, list_of_texts
from clapcur.store.artifacts import check_payload

FORMAT = "clapcur.captioner/1"
DESCRIPTION = "captioner.json"
APOSTROPHE = re.compile(r"(?<=\w) ?' ?(?=(s|t|m|re|ll|ve|d)\b)")  # that the tokenizer put spaces around
IGNORED = -100  # target of a token that is no part of the caption


@frozen
class CaptionerConfig:
    """The size of a captioner, and what it is told of a clip."""

    hidden_size: int = 256
    """Width of the decoder; as in wsntxxn/AudioCaption."""
    num_layers: int = 2
    """Number of transformer layers; as in wsntxxn/AudioCaption."""
    num_heads: int = 4
    """Number of attention heads; as in wsntxxn/AudioCaption."""
    dropout: float = 0.2
    """Dropout probability; as in wsntxxn/AudioCaption."""
    vocab_size: int = 5000
    """Maximum number of word pieces in the vocabulary, which is learned from the captions."""
    max_tokens: int = 40
    """Maximum number of tokens of a caption, including its start and its end; longer captions are truncated."""
    num_windows: int = 1
    """Number of windows of the audio tower per clip, whose frames are put one after the other. 1 is the centre; more
    are spread evenly over the clip."""
    tag_vector: VectorForm = "given"
    """What the captioner is told of the tags. given: 1 for each tag that is assigned; probability: the probability of
    each class."""

    def __post_init__(self) -> None:
        """Refuse a decoder that could not be built."""
        for name in ("hidden_size", "num_layers", "num_heads", "vocab_size", "num_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads, got {self.hidden_size} and {self.num_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens must be at least 3, got {self.max_tokens}: start and end take two")


@frozen
class Decoding:
    """How captions are chosen among all that are possible."""

    way: Literal["beam", "sample"] = "beam"
    """beam: the most probable captions; sample: captions drawn at random by their probability."""
    num_beams: int = 3
    """Number of beams, at least that of the captions; as in wsntxxn/AudioCaption."""
    temperature: float = 1.0
    """Temperature of sampling; below 1, probable words become more probable."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if self.num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, got {self.num_beams}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be above 0 and finite, got {self.temperature}")


@frozen
class HearingConfig:
    """How a captioner hears: the audio half of the CLAP that its tower comes from."""

    audio: AudioConfig
    """The audio tower."""
    window_s: float
    """Window of the tower, in seconds."""
    short: Literal["repeat", "repeatpad", "pad"]
    """How a shorter clip fills the window, as in `ClapConfig`."""

    @classmethod
    def of(cls, config: ClapConfig) -> "HearingConfig":
        """Return how a CLAP hears; its order head, which is behind the frames, is left out."""
        return cls(audio=replace(config.audio, order_head=None), window_s=config.window_s, short=config.short)


class Captioner(nn.Module):
    """Captions of clips, guided by tags.

    Make one with `Captioner.create` or `load_captioner`.

    Parameters
    ----------
    config : CaptionerConfig
    hearing : HearingConfig
    tokenizer : transformers.BertTokenizer
    class_names : sequence of str
        Classes of the tag vector, in its order.

    Attributes
    ----------
    front_end, audio
        Waveform to log-mel to frames; frozen.
    decoder : TagGuidedBert
        All that learns.
    """

    def __init__(
        self, config: CaptionerConfig, hearing: HearingConfig, tokenizer: Any, class_names: Sequence[str]
    ) -> None:
        from transformers import BertConfig

        from clapcur.models.tag_guided_bert import TagGuidedBert

        super().__init__()
        self.config, self.hearing, self.class_names = config, hearing, tuple(class_names)
        if not self.class_names or len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"a captioner needs distinct class names for its tags, got {len(self.class_names)}")
        self.tokenizer = tokenizer
        self.tokenizer.padding_side = "right"
        self.front_end = LogMel(hearing.audio.front_end)
        self.audio = build_audio_tower(hearing.audio).requires_grad_(False)
        decoder = BertConfig(
            vocab_size=len(tokenizer), hidden_size=config.hidden_size, num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads, intermediate_size=4 * config.hidden_size,
            hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=config.max_tokens, type_vocab_size=1, is_decoder=True, add_cross_attention=True,
            tie_word_embeddings=False, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
        )  # fmt: skip
        self.decoder = TagGuidedBert(decoder, self.audio.num_features, len(self.class_names))

    @classmethod
    def create(
        cls, config: CaptionerConfig, model: Clap, captions: Iterable[str], class_names: Sequence[str], seed: int = 0
    ) -> "Captioner":
        """Make a captioner with a fresh decoder and the audio tower of a CLAP.

        Parameters
        ----------
        config : CaptionerConfig
        model : Clap
            Its audio tower is copied, in evaluation mode; it stays as it is.
        captions : sequence of str
            What the vocabulary is learned from, in any order.
        class_names : sequence of str
            Classes of the tag vector, in its order.
        seed : int
            Of the decoder's weights.

        Raises
        ------
        ValueError
            There is no text in the captions, or no class.
        """
        tokenizer = train_tokenizer(captions, config.vocab_size)
        tokenizer.model_max_length = config.max_tokens
        with seeded(seed):
            made = cls(config, HearingConfig.of(model.config), tokenizer, class_names)
        made.front_end.load_state_dict(model.front_end.state_dict())
        weights = {name: w for name, w in model.audio.state_dict().items() if not name.startswith("order_head.")}
        made.audio.load_state_dict(weights)
        made.audio.eval()
        return made.to(model.logit_scale.device)

    def train(self, mode: bool = True) -> "Captioner":
        """Switch dropout of the decoder; the audio tower stays in evaluation mode."""
        super().train(mode)
        self.audio.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.tag_projection.weight.device

    # -- files in, frames out

    def hear(
        self, paths: Iterable[Path | str], batch_size: int = 16, num_workers: int = 0,
        clip_ids: Mapping[Any, str] | None = None, on_bad: OnBad | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield the frames of files, a batch at a time; the next files are decoded meanwhile.

        Parameters
        ----------
        paths : sequence of path
        batch_size : int
            Files at a time; no part of the result beyond rounding.
        num_workers : int
            Threads that decode; 0 is one per CPU.
        clip_ids, on_bad
            As in `clapcur.models.prefetch.read_ahead`.

        Yields
        ------
        Tensor, shape (N, L, C), float32
            On the captioner's device.

        Raises
        ------
        clapcur.errors.DataError
            A file is missing or cannot be used, and there is no `on_bad`.
        """
        listed, front_end, count = list_of_paths("paths", paths), self.hearing.audio.front_end, self.config.num_windows
        offsets = [0.5] if count == 1 else [index / (count - 1) for index in range(count)]
        num_samples = round(self.hearing.window_s * front_end.sample_rate)
        window = Window(front_end.sample_rate, num_samples, offsets, self.hearing.short)
        batches = (listed[start : start + batch_size] for start in range(0, len(listed), batch_size))
        tower = for_inference(self.audio)
        decoded = read_ahead(
            batches, window, num_workers=num_workers, pin=self.device.type == "cuda", clip_ids=clip_ids, on_bad=on_bad
        )
        with closing(decoded):
            for crops_NWT in on_device(decoded, self.device):
                yield self.frames(crops_NWT, tower)

    @torch.no_grad()
    def frames(self, crops_NWT: Tensor, tower: nn.Module | None = None) -> Tensor:
        """Return the frames of windows, those of a clip one after the other, shape (N, L, C), float32.

        Parameters
        ----------
        crops_NWT : Tensor, shape (N, W, T)
            At the rate of the front end.
        tower : Module, optional
            A faster form of the audio tower.
        """
        logmel = self.front_end(crops_NWT.flatten(0, 1))
        frames = frames_of(self.audio if tower is None else tower, logmel)
        return frames.unflatten(0, crops_NWT.shape[:2]).flatten(1, 2)

    # -- frames and tags in, logits or captions out

    def tokenize(self, captions: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Return what the decoder reads and what it should say, each of shape (N, S - 1).

        These are all tokens but the last, and all but the first, where padding is `IGNORED`.

        Raises
        ------
        TypeError
            A single string, or a caption that is none.
        """
        encoded = self.tokenizer(
            list_of_texts("captions", captions), padding=True, truncation=True, max_length=self.config.max_tokens,
            return_tensors="pt",
        )  # fmt: skip
        tokens_NS, mask_NS = encoded["input_ids"], encoded["attention_mask"]
        return tokens_NS[:, :-1], tokens_NS.masked_fill(mask_NS == 0, IGNORED)[:, 1:]

    def logits(self, frames_NLC: Tensor, tags_NK: Tensor, tokens_NS: Tensor) -> Tensor:
        """Return the logits of the word behind each token, shape (N, S, V).

        Parameters
        ----------
        frames_NLC : Tensor, shape (N, L, C)
        tags_NK : Tensor, shape (N, K)
            Zeros where nothing is known of a clip.
        tokens_NS : Tensor, shape (N, S)
            The caption so far, from its start; padding is on the right.
        """
        heard_NLD = self.decoder.heard(frames_NLC)
        output = self.decoder(tokens_NS, tags=tags_NK, encoder_hidden_states=heard_NLD, use_cache=False)
        logits_NSV: Tensor = output.logits
        return logits_NSV

    def generate(
        self, frames_NLC: Tensor, tags_NK: Tensor, num_captions: int = 1, decoding: Decoding | None = None,
        seed: int = 0, clip_ids: Sequence[str] | None = None,
    ) -> list[list[str]]:  # fmt: skip
        """Return captions of clips, the most probable first where they come of a beam search.

        Parameters
        ----------
        frames_NLC : Tensor, shape (N, L, C)
        tags_NK : Tensor, shape (N, K)
        num_captions : int
            Captions of a clip; of sampled ones some may be equal.
        decoding : Decoding, optional
            A beam search where not given.
        seed : int
            Of sampling; the generators of torch are left as they were.
        clip_ids : sequence of str, length N, optional
            What is drawn for a clip depends on its id and the seed, not on the clips beside it. By default, their
            places are their ids.

        Returns
        -------
        list of list of str
            For each clip `num_captions` of them.
        """
        from transformers import DynamicCache, EncoderDecoderCache

        from clapcur.models.tag_guided_bert import GumbelNoise

        decoding = decoding or Decoding()
        check_seed(seed)
        if num_captions < 1:
            raise ValueError(f"num_captions must be at least 1, got {num_captions}")
        if len(frames_NLC) != len(tags_NK) or tags_NK.shape[1:] != (len(self.class_names),):
            raise ValueError(
                f"expected a tag vector of {len(self.class_names)} classes for each of {len(frames_NLC)} clips, got "
                f"shape {tuple(tags_NK.shape)}"
            )
        clip_ids = [str(place) for place in range(len(frames_NLC))] if clip_ids is None else clip_ids
        if len(clip_ids) != len(frames_NLC):
            raise ValueError(f"expected an id for each of {len(frames_NLC)} clips, got {len(clip_ids)}")
        ids = self.tokenizer
        config = self.decoder.config
        with evaluating(self.decoder), torch.no_grad():
            heard_NLD, tags_NK = self.decoder.heard(frames_NLC.to(self.device)), tags_NK.to(self.device)
            how: dict[str, Any]
            if decoding.way == "beam":
                how = {"num_beams": max(decoding.num_beams, num_captions), "num_return_sequences": num_captions}
            else:  # one row for each caption
                heard_NLD, tags_NK = (each.repeat_interleave(num_captions, dim=0) for each in (heard_NLD, tags_NK))
                names = [f"{seed} {clip} {number}" for clip in clip_ids for number in range(num_captions)]
                how = {"num_beams": 1, "logits_processor": [GumbelNoise(decoding.temperature, names)]}
            starts_N1 = torch.full((len(tags_NK), 1), ids.cls_token_id, device=self.device)
            decoder: Any = self.decoder  # the types of transformers do not know a decoder with cross-attention
            tokens = decoder.generate(
                starts_N1, attention_mask=torch.ones_like(starts_N1), tags=tags_NK, encoder_hidden_states=heard_NLD,
                past_key_values=EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config)),
                do_sample=False, max_length=self.config.max_tokens, min_new_tokens=1,
                pad_token_id=ids.pad_token_id, eos_token_id=ids.sep_token_id,
                suppress_tokens=[ids.pad_token_id, ids.unk_token_id, ids.cls_token_id, ids.mask_token_id], **how,
            )  # fmt: skip
        texts = [APOSTROPHE.sub("'", text) for text in ids.batch_decode(tokens, skip_special_tokens=True)]
        return [texts[start : start + num_captions] for start in range(0, len(texts), num_captions)]

    # -- folders

    def save(self, folder: Path | str) -> None:
        """Write a folder that `load_captioner` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.backend_tokenizer.no_padding()  # left over from the last batch; files must not depend on it
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.save_pretrained(folder / "text")
        save_weights(self, folder / "model.safetensors")
        said = {
            "format": FORMAT, "captioner": to_dict(self.config), "hearing": to_dict(self.hearing),
            "class_names": list(self.class_names),
        }  # fmt: skip
        (folder / DESCRIPTION).write_text(json.dumps(said, indent=1) + "\n")


def load_captioner(folder: Path | str, device: str = "auto") -> Captioner:
    """Load a captioner that `Captioner.save` wrote, in evaluation mode.

    Parameters
    ----------
    folder : path
    device : str
        "auto" takes the first GPU if there is one; else as torch names it.

    Raises
    ------
    CheckpointError
        A file is missing or damaged, or weights and config do not belong together.
    DamagedArtifact
        The folder is an artifact, and a file of it is not what was written.
    """
    folder = Path(folder)
    check_payload(folder)
    config, hearing, class_names = _read_description(folder / DESCRIPTION)
    try:
        tokenizer = load_tokenizer(folder / "text")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'text'} holds no tokenizer: {' '.join(str(error).split())}") from None
    with seeded(0):  # the fresh weights are overwritten; the generator stays as it was
        captioner = Captioner(config, hearing, tokenizer, class_names)
    load_weights(captioner, folder / "model.safetensors")
    return captioner.to(pick_device(device)).eval()


def _read_description(path: Path) -> tuple[CaptionerConfig, HearingConfig, list[str]]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a captioner: it has no {path.name}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(said, Mapping) or said.get("format") != FORMAT:
        raise CheckpointError(f'{path} is not the description of a clapcur captioner ("format": "{FORMAT}")')
    try:
        config = from_dict(CaptionerConfig, said["captioner"], "captioner")
        hearing = from_dict(HearingConfig, said["hearing"], "hearing")
        if {"captioner": to_dict(config), "hearing": json.loads(json.dumps(to_dict(hearing)))} != {
            name: said[name] for name in ("captioner", "hearing")
        }:
            raise ValueError("it lacks settings of the captioner, and a default might differ from what it learned with")
        return config, hearing, list_of_texts("class_names", said["class_names"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from None
