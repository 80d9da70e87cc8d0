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
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint in another project's format.

    Fails if the format cannot represent the model; the message lists the formats that can.
    """
    if path.exists():
        raise DataError(f"{path} already exists; choose another path")
    found = find(open_home(home), checkpoint, "checkpoint")
    with working():
        from clapcur.models.adapters import copy_adapter
        from clapcur.models.checkpoints import save_checkpoint
        from clapcur.models.clap import load_model

        if form == "adapter":
            copy_adapter(found.path, path)
        else:
            save_checkpoint(load_model(found.path, device="cpu"), path, form, ignore_int16=ignore_int16)
    if as_json:
        print_json({"path": str(path), "format": form, "checkpoint": found.id})
    else:
        show(facts_table({"wrote": path, "format": form, "checkpoint": found.id}))
