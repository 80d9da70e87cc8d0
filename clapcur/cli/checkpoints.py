"""The commands that take in somebody else's checkpoint and give one of ours out in their form."""

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
Form = Literal["clapcur", "msclap", "laion", "hf", "onnx"]


def adopt(
    source: Annotated[
        str, typer.Argument(help="A file of weights, a folder, or a ClapModel's name on the Hub.", show_default=False)
    ],
    front_end: Annotated[
        FrontEnd | None,
        typer.Option(help="Mel filters to hear with, where the file stores others than its family computes."),
    ] = None,
    text_source: Annotated[
        str | None, typer.Option(help="Folder or Hub name of the text encoder's config and tokenizer.")
    ] = None,
    pickled: Annotated[
        bool, typer.Option("--pickled", help="Read a file that may run code: only from people you trust.")
    ] = False,
    collapsed: Annotated[
        bool, typer.Option("--collapsed", help="Take a model whose text tower tells nothing apart.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import a pretrained checkpoint as a teacher.

    Microsoft's CLAP of 2022 and 2023, clap_curation, LAION-CLAP, Hugging Face's ClapModel and BLAT are known by what
    is in the file. Prints the id of the checkpoint, which the other commands take; what became of every tensor is in
    its adopted.json.
    """
    from clapcur.stages.adopt import AdoptConfig

    open_home(home)
    with working():
        from clapcur.tasks.adopt import adopt as run

        place = str(Path(source).absolute()) if Path(source).exists() else source
        config = AdoptConfig(
            source=place, front_end=front_end, text_source=text_source, pickled=pickled, collapsed=collapsed
        )
        made = run(config, {})
    show_artifact(made, as_json)
    if not as_json:
        show(f"what became of every tensor: {made.path / 'adopted.json'}")


def export(
    checkpoint: Checkpoint,
    path: Annotated[Path, typer.Argument(help="A file for msclap and laion, else a folder.", show_default=False)],
    form: Annotated[Form, typer.Option("--format", help="Whose form; hf is Hugging Face's ClapModel.")] = "clapcur",
    ignore_int16: Annotated[
        bool, typer.Option("--ignore-int16", help="Between forms that round to 16 bits and those that do not.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint in another project's format.

    A form that cannot say all that the model is, is refused, and the message says which can.
    """
    if path.exists():
        raise DataError(f"{path} exists already; name another place")
    found = find(open_home(home), checkpoint, "checkpoint")
    with working():
        from clapcur.models.checkpoints import save_checkpoint
        from clapcur.models.clap import load_model

        save_checkpoint(load_model(found.path, device="cpu"), path, form, ignore_int16=ignore_int16)
    if as_json:
        print_json({"path": str(path), "format": form, "checkpoint": found.id})
    else:
        show(facts_table({"wrote": path, "format": form, "checkpoint": found.id}))
