"""The commands that write pages for listening to a set: its pairs, and a map of its clips."""

from pathlib import Path
from typing import Annotated

import typer

from clapcur.cli.arguments import find
from clapcur.cli.console import HomeOption, JsonOption, open_home, print_json, show, show_artifact, working

MOST_POINTS = 5000  # more points than that cover each other, and are slow to draw


def audition(
    improvement_set: Annotated[
        str, typer.Argument(metavar="SET", help="Improvement-Set: an id or its first digits.", show_default=False)
    ],
    num_pairs: Annotated[
        int, typer.Option(min=1, help="Number of pairs on the page, spread evenly over the classes.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draw; another seed selects other pairs.")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a page for listening to the pairs of a set and marking them.

    The page is one HTML file that needs no server. Play each clip, see its spectrogram, caption and scores, mark wrong
    pairs, and export the marks.
    """
    where = open_home(home, must_exist=True)
    source = find(where, improvement_set, "improvement_set")
    with working():
        from clapcur.stages.audition import AuditionConfig
        from clapcur.tasks.audition import audition as run

        config = AuditionConfig(num_pairs=num_pairs, seed=seed)
        made = run(config, source)
    page = (made.path / "audition.html").as_uri()
    if as_json:
        show_artifact(made, as_json, page=page)
        return
    show_artifact(made, as_json)
    counts = made.record.counts
    if counts["embedded"] < counts["clips"]:
        show(
            f"{counts['embedded']:,} of {counts['clips']:,} clips can be played on the page; it gives the reason for "
            "each other clip"
        )
    show(f"open {page}")


def map_page(
    improvement_set: Annotated[
        str, typer.Argument(metavar="SET", help="Improvement-Set: an id or its first digits.", show_default=False)
    ],
    page: Annotated[Path, typer.Argument(metavar="FILE", help="HTML file to write.")] = Path("map.html"),
    num_clips: Annotated[
        int,
        typer.Option(min=2, max=MOST_POINTS, help="Maximum number of clips on the map; a sample if there are more."),
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample.")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a map of the clips that a set was chosen from.

    Each clip is a point in the space of the model, reduced to its first two principal components; click it to play it.
    Colours show the class, the similarity, or which clips were chosen. The page is one HTML file that needs no server.
    """
    where = open_home(home, must_exist=True)
    source = find(where, improvement_set, "improvement_set")
    with working():
        from clapcur.listening.map_page import as_html
        from clapcur.store.artifacts import write_atomic

        write_atomic(page.absolute(), as_html(where.store, source, num_clips, seed))
    address = page.absolute().as_uri()
    print_json({"id": source.id, "page": address}) if as_json else show(f"open {address}")
