"""The commands that import checkpoints of other projects, and export ours in their formats."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from clapcur.cli.arguments import Checkpoint, find
from clapcur.cli.console import (
    HomeOption,
    JsonOption,
    facts_table,
    open_home,
    print_json,
    show,
    show_artifact,
    working,
)
from clapcur.errors import DataError

FrontEnd = Literal["from_config", "from_checkpoint"]
Form = Literal["clapcur", "msclap", "laion", "hf", "onnx", "adapter"]
FILES = ("msclap", "laion", "adapter")  # formats of a single file


def adopt(
    source: Annotated[
        str, typer.Argument(help="A weights file, a folder, or the name of a ClapModel on the Hub.", show_default=False)
    ],
    front_end: Annotated[
        FrontEnd | None,
        typer.Option(help="Which mel filters to use if those in the file differ from those computed from the config."),
    ] = None,
    text_source: Annotated[
        str | None, typer.Option(help="Config and tokenizer of the text encoder: a folder or a name on the Hub.")
    ] = None,
    pickled: Annotated[
        bool,
        typer.Option(
            "--pickled", help="Load a pickle file, which can run code; only for files from a source you trust."
        ),
    ] = False,
    collapsed: Annotated[
        bool,
        typer.Option(
            "--collapsed", help="Accept a model whose text tower has collapsed: all texts get the same embedding."
        ),
    ] = False,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Low-rank adapters that were trained on this checkpoint; gives that student."),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import a pretrained checkpoint as a teacher.

    Detects the format from the file contents: Microsoft's CLAP 2022 and 2023, clap_curation, LAION-CLAP, Hugging
    Face's ClapModel, and BLAT. Prints the id of the checkpoint, to pass to other commands. adopted.json lists how each
    tensor was mapped.
    """
    from clapcur.stages.adopt import AdoptConfig

    open_home(home)
    with working():
        from clapcur.tasks.adopt import adopt as run

        place = str(Path(source).absolute()) if Path(source).exists() else source
        config = AdoptConfig(
            source=place, front_end=front_end, text_source=text_source, pickled=pickled, collapsed=collapsed,
            adapter=str(adapter.absolute()) if adapter else None,
        )  # fmt: skip
        made = run(config, {})
    show_artifact(made, as_json)
    if not as_json:
        show(f"mapping of every tensor: {made.path / 'adopted.json'}")


def export(
    checkpoint: Checkpoint,
    path: Annotated[
        Path,
        typer.Argument(
            help="Output path: a file for msclap, laion and adapter, otherwise a folder.", show_default=False
        ),
    ],
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="Output format; hf is Hugging Face's ClapModel, adapter what a student with adapt: lora learned.",
        ),
    ] = "clapcur",
    ignore_int16: Annotated[
        bool, typer.Option("--ignore-int16", help="Ignore whether the front end rounds waveforms to 16 bits.")
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(help="Licence of the weights for the card, such as cc-by-4.0.", show_default=False),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint in another project's format.

    Fails if the format cannot represent the model; the message lists the formats that can. The card says what the model
    was trained on and its scores: README.md in a folder, or a file with the suffix .md beside a file.
    """
    card = path.with_suffix(".md") if form in FILES else path / "README.md"
    for one in (path, card):
        if one.exists():
            raise DataError(f"{one} already exists; choose another path")
    where = open_home(home)
    found = find(where, checkpoint, "checkpoint")
    with working():
        from clapcur.lineage.cards import model_card
        from clapcur.models.adapters import copy_adapter
        from clapcur.models.checkpoints import save_checkpoint
        from clapcur.models.clap import load_model

        if form == "adapter":
            copy_adapter(found.path, path)
        else:
            save_checkpoint(load_model(found.path, device="cpu"), path, form, ignore_int16=ignore_int16)
        card.write_text(model_card(where, found, form, path.name, license), encoding="utf-8")
    if as_json:
        print_json({"path": str(path), "format": form, "checkpoint": found.id})
    else:
        show(facts_table({"wrote": path, "format": form, "checkpoint": found.id}))
