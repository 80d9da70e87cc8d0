"""The commands that send a model to the Hugging Face Hub, and bring one from it."""

import tempfile
from pathlib import Path
from typing import Annotated

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


def push(
    checkpoint: Checkpoint,
    name: Annotated[str, typer.Argument(help="Name on the Hub, ORG/NAME.", show_default=False)],
    license: Annotated[
        str | None,
        typer.Option(help="Licence of the weights, as the Hub names it, such as cc-by-4.0.", show_default=False),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a repository that only its owners see.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Add a version to a repository that exists already.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a model to the Hugging Face Hub, with a card.

    The card says what the model was trained on (sets with ids, thresholds, counts), its scores with their intervals,
    how to load it, and its limits. Uses the token of `hf auth login` or HF_TOKEN, and the Hub of HF_ENDPOINT.
    """
    where = open_home(home, must_exist=True)
    found = find(where, checkpoint, "checkpoint")
    from clapcur.data.takedowns import why_tainted

    if why := why_tainted(where.store, found):
        raise DataError(f"the checkpoint {found.id} was not uploaded: {why}")
    with working(), tempfile.TemporaryDirectory() as folder:
        from clapcur.lineage.cards import model_card
        from clapcur.models import hub
        from clapcur.models.clap import load_model

        hub.check_upload(name)
        load_model(found.path, device="cpu").save(folder)
        card = model_card(where, found, "clapcur", f"{hub.PREFIX}{name}", license)
        Path(folder, "README.md").write_text(card, encoding="utf-8")
        url = hub.upload(Path(folder), name, private=private, update=update, message=f"Upload {found.id}")
    if as_json:
        print_json({"url": url, "checkpoint": found.id})
    else:
        show(facts_table({"wrote": url, "checkpoint": found.id, "load": f'clapcur.load("hf:{name}")'}))


def pull(
    name: Annotated[str, typer.Argument(help="Name on the Hub, ORG/NAME.", show_default=False)],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download a model from the Hugging Face Hub into the home.

    Prints the id of the checkpoint, to pass to other commands. For models of other projects, `clapcur adopt` has
    options.
    """
    from clapcur.stages.adopt import AdoptConfig

    open_home(home)
    with working():
        from clapcur.models import hub
        from clapcur.tasks.adopt import adopt

        name = name.removeprefix(hub.PREFIX)
        made = adopt(AdoptConfig(source=str(hub.download(name) or name)), {})
    show_artifact(made, as_json)
