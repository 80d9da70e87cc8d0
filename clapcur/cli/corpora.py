"""The command that downloads a corpus."""

from pathlib import Path
from typing import Annotated

import typer

from clapcur.cli.console import JsonOption, print_json, show


def download(
    corpus: Annotated[
        str, typer.Argument(help="Corpus: audiocaps, clotho, macs, esc50, fsd50k or urbansound8k.", show_default=False)
    ],
    folder: Annotated[Path, typer.Argument(help="Folder of all corpora; created if missing.", show_default=False)],
    fold: Annotated[list[str] | None, typer.Option(help="Split of AudioCaps or Clotho; repeatable.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Download a corpus and verify it.

    Uses aac-datasets and soundata, which provide URLs and checksums: pip install 'clapcur[corpora]'. Files that are
    already present are not downloaded again. Check the licence of each corpus in docs/corpora.md.
    """
    from clapcur.corpora.downloading import download as fetch

    source = fetch(corpus, folder, tuple(fold or ()))
    if as_json:
        print_json({"corpus": corpus, "source": str(source)})
    else:
        show(
            "To use it as pairs, pool or evaluation in an experiment file:", f"  {{source: {source}, corpus: {corpus}}}"
        )
