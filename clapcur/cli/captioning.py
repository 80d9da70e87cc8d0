"""The commands about text: tag, caption and pseudo-label describe audio; captions finds captions in any text."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from clapcur.cli.arguments import find
from clapcur.cli.completion import artifacts
from clapcur.cli.console import (
    HomeOption,
    JsonOption,
    columns_table,
    open_home,
    print_json,
    show,
    show_artifact,
    working,
)
from clapcur.data.class_names import PROMPT, find_class_names, prompts
from clapcur.errors import ArtifactError
from clapcur.store.artifacts import Artifact

SHOWN = 12  # rows of a table of classes or captions


def tag(
    manifest: Annotated[str, typer.Argument(help="Manifest of the clips, as printed by `ingest`.", show_default=False)],
    tagger: Annotated[
        Path | None, typer.Option(help="Weights of YAMNet (safetensors), or of PANNs' Cnn14 with its classifier head.")
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            help="With --tagger: table of its classes (index, mid, display_name); default: the list next to the "
            "weights. With --table: table of AudioSet's ids and names."
        ),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="Instead of --tagger: a CLAP that tags zero-shot with --classes.")
    ] = "",
    classes: Annotated[str, typer.Option(help="With --checkpoint: class names, a file or a list such as esc50.")] = "",
    table: Annotated[Path | None, typer.Option(help="Instead of --tagger: a table of known tags per clip.")] = None,
    factor: Annotated[float, typer.Option(help="Threshold of a tag, as a multiple of its mean probability.")] = 3.0,
    least: Annotated[float, typer.Option(help="Minimum threshold: a tag is never given below it.")] = 0.02,
    most: Annotated[float, typer.Option(help="Maximum threshold: a tag is always given at or above it.")] = 0.5,
    num_windows: Annotated[
        int, typer.Option(min=1, help="Number of 10 s windows per clip; 1 is the centre of the clip.")
    ] = 1,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tag clips with AudioSet's classes, or with your own.

    Each class has its own threshold, relative to its mean probability over all clips, because a tagger is confident
    about a dog and never about steady noise.
    """
    if sum(map(bool, (tagger, checkpoint, table))) != 1:
        raise typer.BadParameter("give exactly one of --tagger, --checkpoint and --table")
    if bool(checkpoint) != bool(classes):
        raise typer.BadParameter("--checkpoint and --classes go together: give both or neither")
    class_names = find_class_names(classes, Path.cwd()) if classes else ()
    where = open_home(home)
    clips = find(where, manifest, "manifest")
    with working():
        from clapcur.flows.steps import embed_prompts
        from clapcur.stages.embed import EmbedConfig
        from clapcur.stages.tag import TagConfig
        from clapcur.stages.tagger import TaggerConfig
        from clapcur.tasks.embed import embed
        from clapcur.tasks.tag import adopt_tagger
        from clapcur.tasks.tag import tag as run

        config = TagConfig(
            factor=factor, least=least, most=most, num_windows=num_windows, class_names=class_names,
            table=str(table.absolute()) if table else None,
            classes=str(names.absolute()) if names and table else None,
        )  # fmt: skip
        inputs = {"manifest": clips}
        if tagger is not None:
            listed = str(names.absolute()) if names else None
            inputs["tagger"] = adopt_tagger(TaggerConfig(source=str(tagger.absolute()), classes=listed))
        elif checkpoint:
            model = find(where, checkpoint, "checkpoint")
            inputs["checkpoint"] = model
            both = {"checkpoint": model, "manifest": clips}
            inputs["audio_embeddings"] = embed(EmbedConfig(what="audio"), both, "pool")
            inputs["prompt_embeddings"] = embed_prompts(model, prompts(class_names, PROMPT))
        made = run(config, inputs, "pool")
    if not as_json:
        show_tags(made)
    show_artifact(made, as_json)


def train_captioner(
    tags: Annotated[
        str,
        typer.Argument(
            help="Tags of captioned clips: the id printed by `tag`.",
            show_default=False,
            autocompletion=artifacts("tags"),
        ),
    ],
    checkpoint: Annotated[str, typer.Option(help="A CLAP, whose audio tower hears.", show_default=False)],
    num_examples: Annotated[int, typer.Option(min=1, help="Sample budget: total number of pairs seen.")] = 100_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs per step.")] = 32,
    num_windows: Annotated[
        int, typer.Option(min=1, help="Number of windows of the tower per clip; 1 is the centre of the clip.")
    ] = 1,
    held_out: Annotated[
        float, typer.Option(help="Fraction of the recordings that is held out and chooses the weights.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the weights and batches.")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a captioner that writes captions from the sound.

    The captioner also reads the tags of a clip (BLAT). Learns from the clips of the tagged manifest that have
    captions. `caption --way captioner` captions others with it. A training that was stopped resumes with the same
    command.
    """
    where = open_home(home)
    given, model = find(where, tags, "tags"), find(where, checkpoint, "checkpoint")
    pairs = where.store.find(given.record.inputs["manifest"])
    with working():
        from clapcur.models.captioner import CaptionerConfig
        from clapcur.stages.captioner import CaptionerTraining
        from clapcur.tasks.captioner import train_captioner as run

        config = CaptionerTraining(
            captioner=CaptionerConfig(num_windows=num_windows), num_examples=num_examples, batch_size=batch_size,
            held_out=held_out, seed=seed,
        )  # fmt: skip
        made = run(config, {"checkpoint": model, "pairs": pairs, "tags": given})
    if not as_json:
        show_captioner(made)
    show_artifact(made, as_json)


def caption(
    tags: Annotated[
        str, typer.Argument(help="Tags: the id printed by `tag`.", show_default=False, autocompletion=artifacts("tags"))
    ],
    way: Annotated[
        Literal["template", "retrieve", "captioner"],
        typer.Option(
            help="template: phrase the tags; retrieve: the nearest existing caption that mentions a tag; captioner: "
            "generated from sound and tags by --captioner."
        ),
    ] = "template",
    captioner: Annotated[str, typer.Option(help="For --way captioner: the id printed by `train-captioner`.")] = "",
    decoding: Annotated[
        Literal["beam", "sample"],
        typer.Option(help="For --way captioner. beam: the most probable captions; sample: drawn at random."),
    ] = "beam",
    temperature: Annotated[
        float, typer.Option(help="For --decoding sample: below 1, probable words become more probable.")
    ] = 1.0,
    checkpoint: Annotated[
        str, typer.Option(help="A CLAP that scores captions against clips; required for --way retrieve.")
    ] = "",
    captions: Annotated[str, typer.Option(help="Manifest of captions, for --way retrieve.")] = "",
    evaluation: Annotated[str, typer.Option(help="Evaluation manifest; its clips and recordings are left out.")] = "",
    num_captions: Annotated[int, typer.Option(min=1, help="Maximum number of captions per clip.")] = 2,
    most_tags: Annotated[int, typer.Option(min=1, max=3, help="Maximum number of tags in a caption.")] = 3,
    least_similarity: Annotated[float | None, typer.Option(help="Minimum cosine of clip and caption.")] = None,
    ontology: Annotated[
        Path | None, typer.Option(help="AudioSet's ontology.json, for more phrasings of a tag.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of phrasings, and of sampling.")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate captions for tagged clips.

    Keeps only captions that are well formed, mention a tag and match their clip. The result is a manifest of pairs, to
    train a teacher on or to pass to `curate --generated`.
    """
    where = open_home(home)
    given = find(where, tags, "tags")
    if way == "retrieve" and not (checkpoint and captions):
        raise typer.BadParameter("--way retrieve needs --captions and --checkpoint")
    if bool(captioner) != (way == "captioner"):
        raise typer.BadParameter("--way captioner and --captioner go together: give both or neither")
    with working():
        from clapcur.stages.caption import CaptionConfig
        from clapcur.stages.embed import EmbedConfig
        from clapcur.tasks.caption import caption as run
        from clapcur.tasks.embed import embed

        pool = where.store.find(given.record.inputs["manifest"])
        config = CaptionConfig(
            way=way, num_captions=num_captions, most_tags=most_tags, least_similarity=least_similarity, seed=seed,
            ontology=str(ontology.absolute()) if ontology else None, decoding=decoding, temperature=temperature,
        )  # fmt: skip
        inputs = {"pool": pool, "tags": given}
        if captioner:
            inputs["captioner"] = find(where, captioner, "captioner")
        if evaluation:
            inputs["evaluation"] = find(where, evaluation, "manifest")
        if checkpoint:
            model = find(where, checkpoint, "checkpoint")
            inputs["checkpoint"] = model
            inputs["pool_embeddings"] = embed(
                EmbedConfig(what="audio"), {"checkpoint": model, "manifest": pool}, "pool"
            )
            if captions:
                existing = find(where, captions, "manifest")
                if not existing.record.counts.get("captions"):
                    raise ArtifactError(f"the manifest {existing.id} has no captions to retrieve")
                inputs["captions"] = existing
                both = {"checkpoint": model, "manifest": existing}
                inputs["caption_embeddings"] = embed(EmbedConfig(what="captions"), both, "caption")
        made = run(config, inputs, "generated")
    if not as_json:
        show_captions(made)
    show_artifact(made, as_json)


def show_tags(made: Artifact) -> None:
    """Print the classes that were assigned to the most clips, with their thresholds."""
    from clapcur.data.tags import Tags

    found = Tags.open(made).classes.sort_values(["clips", "name"], ascending=[False, True]).head(SHOWN)
    rows = [
        (row["name"], f"{row['clips']:,}", f"{row['mean']:.3f}", f"{row['threshold']:.3f}")
        for row in found.to_dict("records")
        if row["clips"]
    ]
    show(columns_table(("class", "clips", "mean", "threshold"), rows, right=("clips", "mean", "threshold")))


def show_captioner(made: Artifact) -> None:
    """Print the scores of the captions of held-out clips, with and without their tags."""
    figures = made.record.metrics
    rows = [
        (
            told, f"{figures[f'cider_d_{name}']:.2f}" if f"cider_d_{name}" in figures else "",
            f"{100 * figures[f'distinct_{name}']:.0f} %", f"{figures[f'words_{name}']:.0f}",
        )
        for told, name in (("with tags", "tagged"), ("without tags", "untagged"))
    ]  # fmt: skip
    columns = ("held-out clips", "CIDEr-D", "distinct captions", "words")
    show(columns_table(columns, rows, right=columns[1:]))


def show_captions(made: Artifact) -> None:
    """Print some of the captions that were kept, with the tags of their clips, and why others were not kept."""
    from clapcur.data.generated import KEPT, read_generated

    table = read_generated(made)
    kept = table[table.verdict.isin(KEPT)].drop_duplicates("clip_id").head(SHOWN)
    rows = [
        (row["caption"], row["tags"], "" if math.isnan(row["similarity"]) else f"{row['similarity']:.2f}")
        for row in kept.to_dict("records")
    ]
    show(columns_table(("caption", "tags of the clip", "cosine"), rows, right=("cosine",)))
    refused = table[~table.verdict.isin(KEPT)].drop_duplicates("verdict")
    if len(refused):
        told = refused.to_dict("records")
        examples = [(row["verdict"].replace("_", " "), row["caption"], row["tags"]) for row in told]
        show(columns_table(("not kept", "such as", "tags of the clip"), examples))


def captions(
    source: Annotated[
        Path,
        typer.Argument(
            help="Any text: .txt, .jsonl or .parquet, optionally compressed (.gz, .zst), or a folder of these.",
            show_default=False,
        ),
    ],
    column: Annotated[
        str | None, typer.Option(help="Text column of a table; default: text, caption, sentence or content.")
    ] = None,
    least_score: Annotated[
        float, typer.Option(help="Minimum score of a sentence: how much it resembles an audio caption, from 0 to 1.")
    ] = 0.5,
    least_words: Annotated[int, typer.Option(min=1, help="Minimum number of words in a sentence.")] = 3,
    most_words: Annotated[int, typer.Option(min=1, help="Maximum number of words in a sentence.")] = 30,
    as_json: JsonOption = False,
) -> None:
    """Show which sentences of a text would become captions.

    Gives the reasons why others would not. Writes nothing. To use the sentences, build a manifest with `ingest
    --text`, or set `captions: {source: FILE, text: {}}` in a config to use them as captions for DU and ADS.
    """
    from clapcur.stages.ingest import TextRules
    from clapcur.stages.ingest.general_text import sift

    rules = TextRules(column=column, least_score=least_score, least_words=least_words, most_words=most_words)
    found = sift(source, rules)
    if as_json:
        examples = {what: [text for _, text, _ in some] for what, some in found.examples.items()}
        print_json({"sentences": found.counts.total(), "counts": dict(found.counts), "examples": examples})
        return
    total = found.counts.total()
    rows = [
        (what.replace("_", " "), f"{number:,}", f"{100 * number / total:.1f} %")
        for what, number in found.counts.most_common()
    ]
    show(columns_table(("sentences", "number", "share"), rows, right=("number", "share")))
    shown = [
        (what.replace("_", " "), f"{score:.2f}" if score else "", text[:90])
        for what in ("kept", *(name for name, _ in found.counts.most_common() if name != "kept"))
        for _, text, score in found.examples[what][:3]
    ]
    show(columns_table(("such as", "score", ""), shown, right=("score",)))


def pseudo_label(
    pool: Annotated[str, typer.Argument(help="Manifest of the clips, as `ingest` named it.", show_default=False)],
    checkpoint: Annotated[str, typer.Option(help="The teacher.")],
    classes: Annotated[str, typer.Option(help="Class names: a file with one a line, or a list such as esc50.")],
    tags: Annotated[str, typer.Option(help="A second opinion: tags of the pool, as `tag` named them.")] = "",
    min_probability: Annotated[
        float, typer.Option(min=0, max=1, help="Clips whose best class is less probable get no label.")
    ] = 0.5,
    min_share: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of the clips that get a label in any case.")
    ] = 0.5,
    by_recording: Annotated[
        bool, typer.Option(help="Give all clips of a recording one opinion, where the pool names recordings.")
    ] = True,
    prompt: Annotated[str, typer.Option(help="Class prompt; {} is replaced by the class name.")] = PROMPT,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give each clip the class that it most likely is.

    Decides by the teacher, by tags and by the other clips of the recording. Gives a manifest of pairs, which
    `curate --strategy pl --generated` takes.
    """
    names = find_class_names(classes, Path.cwd())
    where = open_home(home)
    inputs = {"pool": find(where, pool, "manifest"), "checkpoint": find(where, checkpoint, "checkpoint")}
    if tags:
        inputs["tags"] = find(where, tags, "tags")
    with working():
        from clapcur.flows.steps import embed_prompts
        from clapcur.stages.embed import EmbedConfig
        from clapcur.stages.pseudo_label import PseudoLabelConfig
        from clapcur.tasks.embed import embed
        from clapcur.tasks.pseudo_label import pseudo_label as run

        both = {"checkpoint": inputs["checkpoint"], "manifest": inputs["pool"]}
        inputs["pool_embeddings"] = embed(EmbedConfig(what="audio"), both, "pool")
        inputs["prompt_embeddings"] = embed_prompts(inputs["checkpoint"], prompts(names, prompt))
        config = PseudoLabelConfig(
            class_names=names, prompt=prompt, by_recording=by_recording, min_probability=min_probability,
            min_share=min_share,
        )  # fmt: skip
        made = run(config, inputs)
    if not as_json:
        show_pseudo_labels(made)
    show_artifact(made, as_json)


def show_pseudo_labels(made: Artifact) -> None:
    """Print the most probable classes of one clip per class."""
    from clapcur.data.generated import read_generated
    from clapcur.data.manifest import Manifest

    table = read_generated(made).drop_duplicates("clip_id")
    paths = Manifest.open(made).paths
    shown = table[table.verdict == "kept"].sort_values("strength", ascending=False).groupby("caption").head(1)
    rows = [(Path(paths[row["clip_id"]]).name, row["tags"]) for row in shown.head(SHOWN).to_dict("records")]
    show(columns_table(("clip", "classes by probability"), rows))
