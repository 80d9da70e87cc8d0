"""Adopt: a checkpoint of another project -> a checkpoint of ours, which can be used like any other.

The identity of the result is the content of the files, the chosen mel filters, and the source of the text encoder's
config and tokenizer; not the location or the names of the files.

Payload: the model folder (see `clapcur.models.clap`) and ``adopted.json``, which lists how every tensor was used (see
`clapcur.models.checkpoints.LoadReport`).
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from clapcur.config import canonical, check_seed, frozen
from clapcur.data.manifest import Manifest
from clapcur.errors import CheckpointError
from clapcur.models.config import ClapConfig
from clapcur.models.hub import check_source
from clapcur.store.artifacts import Artifact, Stage, Workspace, sha256_file
from clapcur.store.record import Outcome

VERSION = "1"
READ = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.json", "*.txt", "*.model")
"""What of a folder makes a model; the rest (pictures, READMEs, events) may change."""


@frozen
class AdoptConfig:
    """Which checkpoint, and how it is read; `clapcur.models.checkpoints.load_checkpoint` tells more."""

    source: str
    """Weights file, folder, or name of a ClapModel on the Hugging Face Hub."""
    front_end: Literal["from_config", "from_checkpoint"] | None = None
    """Which mel filters to use if those in the file differ from those computed from the config."""
    text_source: str | None = None
    """Config and tokenizer of the text encoder: a folder or a name on the Hub; None: the model family's default."""
    model: ClapConfig | None = None
    """The rest of the model, for weights of PANNs or YAMNet, which are an audio tower only."""
    pickled: bool = False
    """Load a pickle file, which can run code; only for files from a source you trust."""
    collapsed: bool = False
    """Accept a model whose text tower gives all texts the same embedding."""
    partial: bool = False
    """Accept a checkpoint that lacks a tower, to start a training from it."""
    adapter: str | None = None
    """File of low-rank adapters that were trained on this checkpoint, which `clapcur export --format adapter` wrote:
    the checkpoint becomes that student."""
    seed: int = 0
    """Seed of the weights that a partial checkpoint lacks."""

    def __post_init__(self) -> None:
        """Reject an invalid seed."""
        check_seed(self.seed)

    @property
    def needs_captions(self) -> bool:
        """Whether a fresh text tower must learn its vocabulary from the teacher's captions."""
        return self.model is not None and self.model.text.source == "bert-tiny"


def stage_for(config: AdoptConfig) -> tuple[Stage, dict[str, Any]]:
    """Return the stage that reads this checkpoint and the config that names its artifact.

    Raises
    ------
    CheckpointError
        Nothing exists at the source.
    """
    identity: dict[str, Any] = {
        "source": fingerprint(config.source),
        "front_end": config.front_end,
        "text_source": fingerprint(config.text_source) if config.text_source else None,
        "model": canonical(config.model) if config.model else None,
        "seed": config.seed if config.partial else None,
    }
    if config.adapter is not None:
        identity["adapter"] = fingerprint(config.adapter)

    def compute(inputs: Mapping[str, Artifact], _: Any, work: Workspace) -> Outcome:
        return adopt(inputs, config, work)

    return Stage("adopt", VERSION, "checkpoint", compute), identity


def adopt(inputs: Mapping[str, Artifact], config: AdoptConfig, work: Workspace) -> Outcome:
    """Read the checkpoint and write it in our format.

    Inputs by role: ``teacher_pairs`` (manifest) if a small text tower with fresh weights learns its vocabulary.

    Raises
    ------
    CheckpointError
        As `load_checkpoint`; or the checkpoint lacks a tower and `partial` is not set.
    """
    from clapcur.models.adapters import with_adapter
    from clapcur.models.checkpoints import load_checkpoint

    captions = sorted(Manifest.open(inputs["teacher_pairs"]).captions.caption) if config.needs_captions else None
    model, report = load_checkpoint(
        config.source, front_end=config.front_end, text_source=config.text_source, config=config.model,
        captions=captions, pickled=config.pickled, collapsed=config.collapsed, seed=config.seed,
    )  # fmt: skip
    if report.fresh and not config.partial:
        raise CheckpointError(
            f"{config.source} ({report.format}) lacks {len(report.fresh)} weights of a complete model, such as "
            f"{report.fresh[0]}, which would be random: train it on captioned clips first (set `teacher` as well as "
            "`checkpoint`)"
        )
    if Path(model.config.text.source).is_dir():  # its content is saved with the model, so its location is irrelevant
        text = dataclasses.replace(model.config.text, source="text")
        model.config = dataclasses.replace(model.config, text=text)
    if config.adapter is not None:
        model = with_adapter(model, config.adapter)
    model.save(work.path)
    told = {name: value for name, value in report.to_dict().items() if name != "source"}  # the location is irrelevant
    (work.path / "adopted.json").write_text(json.dumps(told, indent=1))
    kinds = {"taken": report.mapped, "ignored": report.ignored, "fresh": report.fresh}
    metrics = {"logit_scale": model.scale().item()}
    if report.text is not None:
        metrics["text_cosine"] = report.text.mean
    counts = {f"{name}_tensors": len(tensors) for name, tensors in kinds.items()}
    return Outcome(counts=counts, metrics=metrics, facts={"format": report.format})


def check_place(config: AdoptConfig) -> None:
    """Raise CheckpointError if the checkpoint, or a text model or adapter that it names, is missing; read none."""
    if config.adapter is not None and not Path(config.adapter).is_file():
        raise CheckpointError(f"the adapter {config.adapter} is not there; export --format adapter writes such a file")
    for source, what in ((config.source, "checkpoint"), (config.text_source, "text model")):
        if source is not None and not Path(source).exists():
            check_source(source, what)


def fingerprint(source: str) -> dict[str, Any]:
    """Return the identity of a source, independent of its location: file hashes, or name and commit on the Hub."""
    path = Path(source)
    if path.is_file():
        return {"sha256": sha256_file(path)}
    if path.is_dir():
        found = sorted({file for pattern in READ for file in path.glob(f"**/{pattern}") if file.is_file()})
        if not found:
            raise CheckpointError(f"{source} holds no checkpoint: expected one of {', '.join(READ)}")
        return {"files": {str(file.relative_to(path)): sha256_file(file) for file in found}}
    check_source(source, "checkpoint")
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    try:
        config = cached_file(source, "config.json")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {source} not found: expected a file, a folder, or a name on the Hub that is cached or can be "
            f"downloaded (is HF_HUB_OFFLINE set?): {' '.join(str(error).split())}"
        ) from error
    return {"hub": source, "commit": extract_commit_hash(config, None)}
