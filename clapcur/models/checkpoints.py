"""Reading and writing checkpoints: from released models to ours, and back to their formats.

`load_checkpoint` recognises a file by the names of its tensors, never by the file name, and accounts for every tensor:
each is mapped, is ignored for a reason given in the report, or raises an error.

`save_checkpoint` writes a format only if it can represent the whole model: it reads back what it is about to write,
and compares.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from clapcur.errors import CheckpointError
from clapcur.methods.devices import pick_device
from clapcur.models.clap import Clap, load_model, seeded
from clapcur.models.collapse import COLLAPSED, PROMPTS, TextSpread, text_collapse
from clapcur.models.config import ClapConfig, TextConfig
from clapcur.models.formats import blat, files, hugging_face, laion, msclap, onnx_files, panns, yamnet
from clapcur.models.formats.ledger import Ask, Filters, FrontEndChoice, Ledger, Reading
from clapcur.models.text import blank_encoder, build_text_tower, load_tokenizer

FAMILIES = (hugging_face, laion, msclap, blat, panns, yamnet)
AUDIO_ALONE = (panns, yamnet)  # formats without a text tower: a config defines that tower and the shared space
SaveFormat = Literal["clapcur", "msclap", "laion", "hf", "onnx"]


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint was loaded; `to_dict` returns plain JSON values."""

    source: str
    format: str
    container: str
    # place of the tensors in the file
    pickled: bool
    # whether the file was allowed to run code
    mapped: dict[str, str]
    # name in the file -> our name
    ignored: dict[str, str]
    # name in the file -> why it is not needed
    fresh: tuple[str, ...]
    # our names that such files never have: fresh weights, or those of the given text model
    front_end: Literal["from_config", "from_checkpoint"]
    filters: Filters | None
    # how the stored filterbank compares with the computed one; None if none is stored
    text: TextSpread | None
    # None if the text tower is fresh
    missing: tuple[str, ...] = ()
    # our names that the file should have; always empty, since a missing tensor is an error
    unexpected: tuple[str, ...] = ()
    # unknown names in the file; always empty, since an unknown tensor is an error

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


def load_checkpoint(
    source: Path | str,
    *,
    front_end: FrontEndChoice = None,
    text_source: Path | str | None = None,
    config: ClapConfig | None = None,
    text: TextConfig | None = None,
    captions: Sequence[str] | None = None,
    pickled: bool = False,
    collapsed: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Clap, LoadReport]:
    """Load a model that clapcur or another project saved.

    Supported are MS-CLAP 2022 and 2023, clap_curation, LAION-CLAP and `ClapModel` without fusion, BLAT, PANNs' Cnn14
    and YAMNet (audio towers only), and folders written by `Clap.save`.

    Parameters
    ----------
    source : path or str
        A weights file, a folder, or the name of a `ClapModel` on the Hub.
    front_end : {"from_config", "from_checkpoint"}, optional
        Which mel filters to use if the file stores others than its family's config computes. Required only in that
        case; "from_checkpoint" is what the release's own code does.
    text_source : path or str, optional
        A folder with the config and the tokenizer of the text encoder, whose weights are in the checkpoint. Default:
        the Hub name of the model that the family starts from; for a `ClapModel` its own folder.
    config : ClapConfig, optional
        For audio towers only: everything except the audio tower's weights and width. Default: `ClapConfig()`.
    text : TextConfig, optional
        For audio towers only: the text tower, instead of `config.text`.
    captions : sequence of str, optional
        For audio towers only, with the text source "bert-tiny": the captions from which its vocabulary is learned.
    pickled : bool
        Read a file that contains more than tensors. Opening such a file can run any code: only use it for files from
        people you trust.
    collapsed : bool
        Load a model even if its text tower has collapsed, see `text_collapse`.
    seed : int
        For audio towers only: seed of the weights that the file does not have.
    device : str
        As in `load_model`.

    Returns
    -------
    Clap
        In evaluation mode.
    LoadReport

    Raises
    ------
    CheckpointError
        The file is damaged, of an unknown family, incomplete, or has unknown tensors; it requires `pickled`,
        `front_end` or `collapsed`; or the text encoder's config and tokenizer are not available.
    ValueError
        An argument for audio towers was given with another checkpoint, or `front_end` is invalid.
    """
    if front_end not in (None, "from_config", "from_checkpoint"):
        raise ValueError(f"front_end must be 'from_config', 'from_checkpoint' or None, got {front_end!r}")
    if is_ours(Path(source)):
        _refuse_for_others({"config": config, "text": text, "captions": captions}, "a clapcur folder")
        return _load_ours(Path(source), front_end, device)
    tensors, container, folder = files.read_source(source, pickled)
    ledger = Ledger(tensors)
    family = next((each for each in FAMILIES if each.recognises(ledger)), None)
    if family is None:
        raise CheckpointError(
            f"{source} has an unknown format; supported are MS-CLAP, clap_curation, LAION-CLAP, ClapModel, BLAT, "
            "PANNs, "
            f"YAMNet and clapcur. It has {len(tensors)} tensors, such as {', '.join(sorted(tensors)[:6])}"
        )
    if family not in AUDIO_ALONE:
        _refuse_for_others({"config": config, "text": text, "captions": captions}, family.__name__.split(".")[-1])
    elif text is not None:
        config = dataclasses.replace(config or ClapConfig(), text=text)
    with seeded(seed):
        reading = family.read(ledger, _ask(front_end, text_source, config, captions, folder))
        model = Clap(reading.config, reading.text)
    if family not in AUDIO_ALONE:  # record the text source that the caller gave
        described = dataclasses.replace(reading.config.text, source=str(text_source or reading.config.text.source))
        model.config = dataclasses.replace(reading.config, text=described)
    fresh = _fill(model, ledger, reading, source)
    model.eval()
    spread = None if family in AUDIO_ALONE else text_collapse(model)
    if spread and spread.mean > COLLAPSED and not collapsed:
        raise CheckpointError(
            f"the text tower of {source} has collapsed: the prompts of {len(PROMPTS)} different sounds have a mean "
            f"cosine of {spread.mean:.4f} (minimum {spread.least:.4f}), so captions cannot be distinguished. Is "
            "text_source the right tokenizer? To load it anyway, pass collapsed=True"
        )
    filters = reading.filters
    report = LoadReport(
        source=str(source),
        format=reading.format,
        container=container,
        pickled=pickled,
        mapped=ledger.mapped,
        ignored=ledger.ignored,
        fresh=fresh,
        front_end=filters.used if filters else "from_config",
        filters=filters,
        text=spread,
    )
    return model.to(pick_device(device)), report


def save_checkpoint(
    model: Clap, path: Path | str, format: SaveFormat = "clapcur", *, ignore_int16: bool = False
) -> None:
    """Write a model in a format that clapcur or another project reads.

    Parameters
    ----------
    model : Clap
    path : path
        A file for "msclap" and "laion" (safetensors if the name ends in .safetensors, otherwise torch's format), a
        folder for the others.
    format : {"clapcur", "msclap", "laion", "hf", "onnx"}
        "msclap" is the format of 2022 or of 2023, depending on the model's towers. "onnx" is for a runtime without
        torch and cannot be read back; it needs the packages onnx and onnxscript.
    ignore_int16 : bool
        Write even if the format's own code rounds waveforms to 16 bits and the model does not, or vice versa:
        LAION-CLAP does, Hugging Face does not. Embeddings then differ slightly, most for quiet clips.

    Raises
    ------
    CheckpointError
        The format cannot represent this model (the message explains why, and which formats can), or a package is not
        installed.
        ValueError
            The format is unknown.
    """
    path = Path(path)
    if format == "clapcur":
        model.save(path)
    elif format == "onnx":
        onnx_files.save(model, path)
    elif format in FORMS:
        if why := refusal(model, format, ignore_int16):
            can = [name for name in ("clapcur", *FORMS) if name == "clapcur" or not refusal(model, name, True)]
            raise CheckpointError(f"the format {format!r} cannot represent this model: {why}; use {' or '.join(can)}")
        if format == "hf":
            hugging_face.save(model, path)
        else:
            tensors = FORMS[format].write(dict(model.state_dict()), model.config)
            files.write_tensors(tensors, path, {"msclap": "model", "laion": "state_dict"}[format])
    else:
        raise ValueError(f"format must be one of clapcur, {', '.join(FORMS)}, onnx, got {format!r}")


FORMS: dict[str, Any] = {"msclap": msclap, "laion": laion, "hf": hugging_face}
"""Forms of other projects that can be written."""


def refusal(model: Clap, format: str, ignore_int16: bool = False) -> str | None:
    """Return why a format of another project cannot represent a model; None if it can.

    The tensors are written and read back in memory, and the resulting model is compared with the original.

    Parameters
    ----------
    model : Clap
    format : str
        One of `FORMS`.
    ignore_int16 : bool
        Accept a format whose own code treats the rounding of waveforms to 16 bits differently.
    """
    family, config = FORMS[format], model.config
    if config.audio.order_head is not None:
        return "it cannot store the order head of the audio tower"
    if config.audio.yamnet is not None:
        return "its audio tower is YAMNet"
    encoder = model.text.encoder
    if why := family.refusal(config, encoder.config.model_type):
        return str(why)
    rounds = format == "laion"
    if config.audio.front_end.int16 != rounds and not ignore_int16:
        return (
            f"its front end {'does not round' if rounds else 'rounds'} waveforms to 16 bits, but that of this format "
            f"{'does' if rounds else 'does not'} (to write it anyway, use ignore_int16=True or --ignore-int16)"
        )
    if format == "hf":
        return None  # its folder is complete, and models that it cannot represent were refused above
    state = dict(model.state_dict())
    ledger = Ledger(family.write(state, config))

    def blank(name: str) -> tuple[Any, Any]:
        return encoder, model.text.tokenizer

    ask = Ask(blank, lambda name: model.text.tokenizer, lambda text: model.text, "from_checkpoint")
    try:
        again = family.read(ledger, ask).config
    except CheckpointError as error:
        return str(error)
    differing = [
        f"{name} {ours!r} would become {theirs!r}"
        for name, ours, theirs in _differences(config, again)
        if name != "audio.front_end.int16"
    ]
    if differing:
        return "its files cannot store " + "; ".join(differing)
    lost = [name for name in state if name not in ledger.taken or not torch.equal(ledger.taken[name], state[name])]
    assert not lost and not ledger.unexpected, (lost, ledger.unexpected)
    return None


def is_ours(folder: Path) -> bool:
    """Return whether a folder was written by `Clap.save`."""
    return (folder / "text").is_dir() and (folder / "config.json").is_file()


def _load_ours(folder: Path, front_end: FrontEndChoice, device: str) -> tuple[Clap, LoadReport]:
    if front_end == "from_checkpoint":
        raise CheckpointError("a clapcur folder stores no filterbank; load it with front_end='from_config'")
    model = load_model(folder, device)
    names = {name: name for name in model.state_dict()}
    return model, LoadReport(
        source=str(folder), format="clapcur", container="safetensors", pickled=False, mapped=names, ignored={},
        fresh=(), front_end="from_config", filters=None, text=text_collapse(model),
    )  # fmt: skip


def _refuse_for_others(given: dict[str, Any], family: str) -> None:
    if named := [name for name, value in given.items() if value is not None]:
        raise ValueError(
            f"{', '.join(named)} apply only to weights of PANNs or YAMNet, but this is {family}, which has its own"
        )


def _ask(
    front_end: FrontEndChoice, text_source: Path | str | None, config: ClapConfig | None,
    captions: Sequence[str] | None, folder: str | None,
) -> Ask:  # fmt: skip
    def named(look: Callable[[str], Any]) -> Callable[[str], Any]:
        def found(name: str) -> Any:
            try:
                return look(str(text_source or name))
            except (CheckpointError, OSError, ValueError) as error:
                raise CheckpointError(
                    f"a checkpoint has the weights of its text encoder, but not its config and tokenizer, and those of "
                    f"{text_source or name} cannot be loaded; give a folder that holds them as text_source: {error}"
                ) from error

        return found

    return Ask(
        named(blank_encoder),
        named(load_tokenizer),
        lambda text: build_text_tower(text, captions),
        front_end,
        config,
        folder,
    )


def _fill(model: Clap, ledger: Ledger, reading: Reading, source: Path | str) -> tuple[str, ...]:
    """Load the tensors into the model, and return our names that keep fresh weights."""
    expected = model.state_dict()
    missing = sorted(expected.keys() - ledger.taken.keys())
    fresh = tuple(name for name in missing if name.startswith(reading.fresh)) if reading.fresh else ()
    problems = {
        "missing": [name for name in missing if name not in fresh],
        "unexpected": ledger.unexpected + sorted(ledger.taken.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
            for name, tensor in sorted(ledger.taken.items())
            if name in expected and tensor.shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{kind}: {', '.join(names[:10])}{f' and {len(names) - 10} more' if len(names) > 10 else ''}"
            for kind, names in problems.items()
            if names
        )
        hint = ""
        if any("text.encoder" in name for name in problems["of another shape"] + problems["missing"]):
            hint = f"; was it trained with the text model {reading.config.text.source} (text_source)?"
        raise CheckpointError(f"{source}, read as {reading.format}, does not fit; {listed}{hint}")
    weights = {name: tensor.to(expected[name].dtype) for name, tensor in ledger.taken.items()}
    model.load_state_dict(expected | weights)
    return fresh


def _differences(ours: ClapConfig, theirs: ClapConfig) -> list[tuple[str, Any, Any]]:
    """List the differing settings that affect an embedding: not dropout, nor the source of the text model."""
    found = []
    for name, one, other in (
        *((f"audio.front_end.{f.name}", ours.audio.front_end, theirs.audio.front_end)
          for f in dataclasses.fields(ours.audio.front_end)),
        *((name, ours, theirs) for name in ("window_s", "short", "projection", "embedding_dim")),
        *((f"text.{name}", ours.text, theirs.text) for name in ("pooling", "suffix", "max_tokens")),
    ):  # fmt: skip
        field = name.split(".")[-1]
        if getattr(one, field) != getattr(other, field):
            found.append((name, getattr(one, field), getattr(other, field)))
    if ours.audio.htsat and theirs.audio.htsat and ours.audio.htsat.picture != theirs.audio.htsat.picture:
        found.append(("audio.htsat.picture", ours.audio.htsat.picture, theirs.audio.htsat.picture))
    return found
