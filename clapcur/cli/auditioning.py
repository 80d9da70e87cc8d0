"""The command that writes a page for listening to the pairs of a set."""

from typing import Annotated

import typer

from clapcur.cli.arguments import find
from clapcur.cli.completion import artifacts
from clapcur.cli.console import HomeOption, JsonOption, open_home, show, show_artifact, working


def audition(
    improvement_set: Annotated[
        str,
        typer.Argument(
            metavar="SET",
            help="Improvement-Set: an id or its first digits.",
            show_default=False,
            autocompletion=artifacts("improvement_set"),
        ),
    ],
    num_pairs: Annotated[
        int, typer.Option(min=1, help="Number of pairs on the page, spread evenly over the classes.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draw; another seed selects other pairs.")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a page to listen to the pairs of a set.

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
