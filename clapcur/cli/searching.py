"""The command that finds clips by what they sound like, or captions by what they describe: search."""

from pathlib import Path
from typing import Annotated

import typer

from clapcur.cli.console import HomeOption, JsonOption, columns_table, open_home, print_json, show, working
from clapcur.errors import DataError


def search(
    query: Annotated[str, typer.Argument(help="Words such as 'glass breaking', or an audio file.", show_default=False)],
    clips: Annotated[
        str,
        typer.Argument(
            help="Clips to search, or captions: a manifest, or a table, folder or text file that `ingest` accepts.",
            show_default=False,
        ),
    ],
    model: Annotated[str, typer.Option(help="Checkpoint: an id, or a file or folder.")],
    captions: Annotated[
        bool,
        typer.Option("--captions", help="Search the captions instead of the clips; needless if there are no clips."),
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Number of clips or captions to show.")] = 10,
    num_crops: Annotated[int, typer.Option(min=1, help="Number of windows per clip to average.")] = 1,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Write an HTML page for listening to the clips.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the clips or captions nearest to words or a sound.

    The search is exact; similarity is the cosine of the two embeddings. The embeddings of clips and captions are kept,
    so that the next search in them takes seconds. With --page, the clips can be played: the page is one HTML file that
    needs no server.
    """
    if not query.strip():
        raise typer.BadParameter("the query is empty; give words such as 'glass breaking', or an audio file")
    sound = Path(query)
    where = open_home(home)
    with working():
        from clapcur.data.embeddings import EmbeddingTable
        from clapcur.data.manifest import Manifest
        from clapcur.flows.given import checkpoint_of, clips_of
        from clapcur.listening.hits_page import as_html
        from clapcur.methods.similarity import top_k
        from clapcur.models.clap import load_model
        from clapcur.stages.embed import EmbedConfig
        from clapcur.stages.ingest.rows import AUDIO_SUFFIXES
        from clapcur.store.artifacts import write_atomic
        from clapcur.tasks.embed import embed

        if sound.suffix.lower() in AUDIO_SUFFIXES and not sound.is_file():
            raise DataError(f"there is no audio file {sound}; to search for words, leave out {sound.suffix}")
        checkpoint, manifest = checkpoint_of(where, model), clips_of(where, clips)
        opened, inputs = Manifest.open(manifest), {"checkpoint": checkpoint, "manifest": manifest}
        if captions and opened.captions.empty:
            raise DataError(
                f"{clips} has no captions to search; give a table or text file that has, or omit --captions"
            )
        is_text = captions or opened.clips.empty
        if is_text and page is not None:
            raise DataError("--page is for listening to clips, and captions are searched; omit it")
        if is_text:
            embedded = embed(EmbedConfig(what="captions"), inputs, "caption")
            text_of = dict(zip(opened.captions.caption_id, opened.captions.caption, strict=True))
        else:
            embedded, text_of = embed(EmbedConfig(what="audio", num_crops=num_crops), inputs, "pool"), opened.paths
        table = EmbeddingTable.open(embedded)
        loaded = load_model(checkpoint.path)
        wanted = loaded.embed_audio([sound], num_crops) if sound.is_file() else loaded.embed_text([query])
        similarity_1K, index_1K = top_k(wanted, table.rows_ND, min(limit, len(table.ids)))
        found = [(float(cosine), table.ids[index]) for cosine, index in zip(similarity_1K[0], index_1K[0], strict=True)]
        if page is not None:
            write_atomic(page.absolute(), as_html(query, found, opened, model=checkpoint.id))
    if as_json:
        what, named = ("caption_id", "caption") if is_text else ("clip_id", "path")
        for cosine, name in found:
            print_json({what: name, named: text_of[name], "similarity": cosine})
        return
    if is_text:
        show(columns_table(("similarity", "caption"), [(f"{cosine:.3f}", text_of[name]) for cosine, name in found]))
    else:
        rows = [(f"{cosine:.3f}", name[:12], text_of[name]) for cosine, name in found]
        show(columns_table(("similarity", "clip", "path"), rows))
    if page is not None:
        show(f"open {page.absolute().as_uri()}")
