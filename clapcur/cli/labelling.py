"""The command that makes an evaluation set: a page for labelling a sample of a pool."""

from pathlib import Path
from typing import Annotated

import typer

from clapcur.cli.arguments import CLASSES_HELP
from clapcur.cli.console import HomeOption, JsonOption, open_home, print_json, show, working
from clapcur.errors import DataError


def label(
    pool: Annotated[
        str,
        typer.Argument(
            help="Clips to label from: a folder, a table, a URL, pool:NAME or a manifest's id.", show_default=False
        ),
    ],
    classes: Annotated[str, typer.Option(help=CLASSES_HELP)],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "--checkpoint",
            help="Choose the clips evenly over the classes that this model "
            "predicts: an id, a file or a folder; default: at random.",
        ),
    ] = "",
    num_clips: Annotated[int, typer.Option(min=1, help="Number of clips, at most one of each recording.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draw.")] = 0,
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="Page to write.")] = Path("label.html"),
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a page to label a sample of a pool, by ear.

    The page is one HTML file that needs no server. Play each clip, choose its class by key or click, and export a table
    for `improve --evaluation`. The page does not show what a model predicts, which would bias the labels. Labelled
    clips, and other clips of their recordings, are never put into an Improvement-Set.
    """
    if html.exists():
        raise DataError(f"{html} already exists; give another file with --html")
    from clapcur.data.class_names import find_class_names

    names = find_class_names(classes, Path.cwd())
    where = open_home(home)
    with working():
        from clapcur.data.class_names import check_class_names
        from clapcur.data.manifest import Manifest
        from clapcur.flows.given import checkpoint_of, pool_of
        from clapcur.flows.steps import predicted_classes
        from clapcur.stages.audition import AuditionConfig
        from clapcur.stages.audition.labelling import choose_clips, labelling_page

        names = check_class_names(names)
        given = pool_of(where, pool)
        manifest = Manifest.open(given)
        predicted = predicted_classes(checkpoint_of(where, model), given, names) if model else None
        chosen = choose_clips(manifest.groups, num_clips, seed, predicted)
        if not chosen:
            raise DataError(f"{pool} has no clip to label; give a folder or a table with audio")
        drawn = "at random" if predicted is None else "evenly over the classes that a model predicts"
        how = (
            f"{len(chosen)} of {len(manifest.clips):,} clips, chosen {drawn} with seed {seed}, at most one of each "
            "recording."
        )
        page, counts = labelling_page(manifest, chosen, names, how, AuditionConfig(seed=seed))
        html.write_text(page, encoding="utf-8")
    if as_json:
        print_json({"page": html.absolute().as_uri(), "pool": given.id, **counts})
        return
    if counts["embedded"] < counts["clips"]:
        show(
            f"{counts['embedded']} of {counts['clips']} clips can be played on the page; it gives the reason for each "
            "other clip"
        )
    show(f"{how} Label them, export labels.csv, and run `clapcur improve` with --evaluation labels.csv.")
    show(f"open {html.absolute().as_uri()}")
