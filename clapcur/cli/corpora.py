"""The command that fetches a corpus."""

from pathlib import Path
from typing import Annotated

import typer

from clapcur.cli.console import JsonOption, print_json, show


def download(
    corpus: Annotated[
        str, typer.Argument(help="audiocaps, clotho, macs, esc50, fsd50k or urbansound8k.", show_default=False)
    ],
    folder: Annotated[Path, typer.Argument(help="Where corpora lie; made where it is missing.", show_default=False)],
    fold: Annotated[list[str] | None, typer.Option(help="A split of AudioCaps or Clotho; again for several.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Download a corpus and verify it.

    By aac-datasets and soundata, which know addresses and checksums: pip install 'clapcur[corpora]'. What is there
    already is not fetched again. Mind the licence of each corpus, docs/corpora.md names it.
    """
    from clapcur.corpora.downloading import download as fetch

    source = fetch(corpus, folder, tuple(fold or ()))
    if as_json:
        print_json({"corpus": corpus, "source": str(source)})
    else:
        show("In an experiment, as pairs, pool or evaluation:", f"  {{source: {source}, corpus: {corpus}}}")
