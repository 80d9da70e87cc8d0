"""Caption: tags x clips -> a manifest of the clips with captions that were generated for them.

==========  =======================================================================================================
template    the clip's tags in a few phrasings
retrieve    the nearest existing caption among those that mention one of the clip's tags
captioner   what a trained captioner says of the sound, with the clip's tags as a guide (BLAT)
==========  =======================================================================================================

Each caption that was tried is recorded with its verdict (`clapcur.data.generated`): kept, or rejected because the text
is no caption, mentions no tag, is too dissimilar to the clip, is less similar than the name of its tag, or is not
needed. The manifest has the kept pairs. It is a manifest like any other: a teacher can be trained on it alone, and
curation can select from it.

Inputs by role: ``pool`` and ``tags``; for similarities ``checkpoint`` with ``pool_embeddings``; for retrieval also
``captions`` with ``caption_embeddings``; for a captioner ``captioner``; optionally ``evaluation``,
whose clips and recordings are left out.

A clip without a tag gets no caption, except by a captioner, which hears it; the rules that compare a caption with the
clip's tags then do not apply. If earlier captions of the same captioner are given (``previous`` with
``previous_tags``), they are reused for the clips whose tags are the same; the other ways only look up or phrase.

Sources: guiding captions by tags is from BLAT (arXiv 2303.07902); the rules are from AudioSetCaps and Wang et al. 2023.
Neither template nor retrieval is BLAT's captioner; `clapcur.stages.captioner` trains one.
"""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.config import added, canonical, check_seed, frozen, machine
from clapcur.data.class_names import PROMPT, check_prompt
from clapcur.data.embeddings import EmbeddingTable
from clapcur.data.generated import GENERATED, KEPT, manifest_of, write_generated
from clapcur.data.manifest import Manifest, caption_id, normalise_caption
from clapcur.data.tags import Tag, Tags
from clapcur.errors import DataError, EmptySetError
from clapcur.methods.contamination import overlap
from clapcur.progress import progress
from clapcur.stages.caption.generate import generated
from clapcur.stages.caption.retrieve import retrieved
from clapcur.stages.caption.rules import chosen, is_sane, says_a_tag
from clapcur.stages.caption.template import phrased, read_descriptions
from clapcur.stages.caption.words import synonyms
from clapcur.store.artifacts import Artifact, Stage, Workspace, sha256_file
from clapcur.store.record import Outcome

VERSION = "2"
MORE_TRIES = 2  # additional captions; the best of all is kept if none is similar enough (AudioSetCaps)
UNSAID = (  # classes of AudioSet that only describe the place of recording, or that there is a sound
    "Silence", "Sound effect", "Noise", "Inside, small room", "Inside, large room or hall", "Inside, public space",
    "Outside, urban or manmade", "Outside, rural or natural", "Field recording", "Environmental noise", "Echo",
    "Reverberation",
)  # fmt: skip
log = logging.getLogger("clapcur")

__all__ = ["CaptionConfig", "caption", "stage_for"]


@frozen
class CaptionConfig:
    """How captions are generated, and which stay."""

    way: Literal["template", "retrieve", "captioner"] = "template"
    """Where captions come from. template: phrase the tags; retrieve: take the nearest existing caption that mentions a
    tag; captioner: generate them from sound and tags, with a captioner that was trained on captioned clips."""
    num_captions: int = 2
    """Maximum number of captions per clip."""
    most_tags: int = 3
    """Maximum number of tags per clip; the strongest are used."""
    unsaid: tuple[str, ...] = UNSAID
    """Tags that do not describe a sound source; no caption names them."""
    least_similarity: float | None = None
    """Minimum cosine of clip and caption, scored by `checkpoint`; null: no minimum."""
    above_tag: bool = True
    """Keep only captions that are at least as similar to the clip as the name of its strongest tag; if there are none,
    keep the most similar one. Applies only if a checkpoint scores the captions, and to clips with a tag."""
    mention_tag: bool = True
    """Keep only captions that mention one of the clip's tags; applies to clips with a tag."""
    least_words: int = 1
    """Minimum number of words in a caption."""
    most_words: int = 30
    """Maximum number of words in a caption."""
    ontology: str | None = None
    """AudioSet's ontology.json, whose descriptions give more phrasings of a tag; null: only the names."""
    prompt: str = PROMPT
    """Prompt for comparing a tag with the clip; {} is replaced by the name of the tag."""
    seed: int = 0
    """Seed of the choice of phrasings, and of the captions that are sampled."""
    decoding: Literal["beam", "sample"] = added("beam")
    """How a captioner chooses its captions. beam: the most probable ones; sample: drawn at random by their
    probability."""
    num_beams: int = added(3)
    """Number of beams of a captioner, at least that of the captions that are tried; for decoding: beam."""
    temperature: float = added(1.0)
    """Temperature of a captioner; below 1, probable words become more probable; for decoding: sample."""
    device: str = machine("auto")
    """Device of the scoring model; auto: the first GPU, or the CPU if there is none."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        check_seed(self.seed)
        check_prompt(self.prompt)
        for name in ("num_captions", "most_tags", "least_words", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, got {self.temperature:g}")
        if self.most_words < self.least_words:
            raise ValueError(f"most_words {self.most_words} is less than least_words {self.least_words}")
        if self.least_similarity is not None and not -1 <= self.least_similarity <= 1:
            raise ValueError(
                f"least_similarity must be a cosine in [-1, 1], got {self.least_similarity:g}; a percentage?"
            )


def stage_for(config: CaptionConfig) -> tuple[Stage, dict[str, Any]]:
    """Return the stage, and the config that identifies its artifact: the ontology is identified by its content.

    Raises
    ------
    DataError
        The ontology file is missing.
    """
    identity = canonical(config)
    if config.ontology is not None:
        if not Path(config.ontology).is_file():
            raise DataError(f"the ontology {config.ontology} does not exist; it is AudioSet's ontology.json")
        identity["ontology"] = sha256_file(Path(config.ontology))

    def compute(inputs: Mapping[str, Artifact], _: Any, work: Workspace) -> Outcome:
        return caption(inputs, config, work)

    return Stage("caption", VERSION, "manifest", compute), identity


def caption(inputs: Mapping[str, Artifact], config: CaptionConfig, work: Workspace) -> Outcome:
    """Write the manifest of the clips with a kept caption, and all captions that were tried.

    Inputs by role: see `clapcur.stages.caption`.

    Raises
    ------
    EmptySetError
        No clip has a tag that a caption could name, or no caption is kept.
    DataError
        Retrieval lacks captions or a model; a captioner is missing, or cannot hear too many clips.
    """
    pool, tags = Manifest.open(inputs["pool"]), Tags.open(inputs["tags"])
    given, counts = _to_caption(pool, tags, config)
    if "evaluation" in inputs:
        known = overlap(pool.clips, Manifest.open(inputs["evaluation"]).clips)
        excluded = known.reason_of()
        given = {clip: found for clip, found in given.items() if clip not in excluded}
        counts |= {f"excluded.evaluation_{reason}": number for reason, number in known.counts().items()}
    judge = _Judge.of(inputs, config)
    if judge is not None:
        lacking = [clip for clip in given if clip not in judge.rows]
        given = {clip: found for clip, found in given.items() if clip in judge.rows}
        counts |= {"not_embedded": len(lacking)} if lacking else {}
    if not given:
        raise EmptySetError(
            f"cannot caption any of the {len(pool.clips)} clips of the pool {inputs['pool'].id}: {_why_none(counts)}"
        )
    if config.way == "captioner":
        tried = _generated(inputs, config, given, pool, tags, work, counts)
    else:
        tried = _tried(inputs, config, given, judge)
    table = _judged(tried, given, config, judge)
    kept = table[table.verdict.isin(KEPT)]
    if kept.empty:
        reasons = ", ".join(f"{name} {number}" for name, number in Counter(table.verdict).most_common())
        raise EmptySetError(
            f"no caption is left of {len(table)} ({reasons.replace('_', ' ')}); relax the caption rules"
        )
    manifest_of(pool, kept).write(work.path)
    write_generated(table, work.path)
    counts |= {
        "clips": kept.clip_id.nunique(), "captions": kept.caption_id.nunique(), "pairs": len(kept), "tried": len(table),
    }  # fmt: skip
    if without_tag := kept.clip_id[kept.tags == ""].nunique():
        counts["captioned_without_tag"] = without_tag
    counts |= {f"verdict.{name}": int(number) for name, number in sorted(Counter(table.verdict).items())}
    metrics = {"distinct_captions": kept.caption_id.nunique() / len(kept)}
    if judge is not None:
        metrics["similarity"] = float(kept.similarity.mean())
    return Outcome(counts=counts, metrics=metrics)


def _to_caption(pool: Manifest, tags: Tags, config: CaptionConfig) -> tuple[dict[str, list[Tag]], dict[str, int]]:
    """Return the clips that can get a caption with their tags, and the counts of those with and without a tag."""
    found = tags.given(config.most_tags, config.unsaid)
    known = sorted(set(pool.clips.clip_id) & set(tags.clip_ids))
    given = {clip: found[clip] for clip in known if clip in found}
    counts = {"pool_clips": len(pool.clips), "tagged_clips": len(given)}
    if untagged := len(known) - len(given):
        counts["untagged_clips"] = untagged
        is_heard = config.way == "captioner"
        consequence = "the captioner hears them all the same" if is_heard else "they get no caption"
        log.info("%d of %d clips have no tag: %s", untagged, len(known), consequence)
        if is_heard:
            given = {clip: found.get(clip, []) for clip in known}
    return given, counts


@dataclass(frozen=True)
class _Judge:
    """The model that scores texts against clips."""

    rows: Mapping[str, NDArray[np.float32]]
    # unit rows of the clips
    embed_text: Any

    @classmethod
    def of(cls, inputs: Mapping[str, Artifact], config: CaptionConfig) -> "_Judge | None":
        """Return the model; None if none is given."""
        if "checkpoint" not in inputs:
            if config.way == "retrieve":
                raise DataError("retrieving captions needs a model: give `checkpoint` with `pool_embeddings`")
            return None
        from clapcur.models.clap import load_model

        table = EmbeddingTable.open(inputs["pool_embeddings"])
        model = load_model(inputs["checkpoint"].path, config.device)
        return cls(dict(zip(table.ids, table.rows_ND, strict=True)), model.embed_text)


def _tried(
    inputs: Mapping[str, Artifact], config: CaptionConfig, given: Mapping[str, Sequence[Tag]], judge: "_Judge | None"
) -> dict[str, list[str]]:
    """Return the captions of each clip in the order in which they are tried."""
    most = config.num_captions + MORE_TRIES
    if config.way == "retrieve":
        if "captions" not in inputs:
            raise DataError("no captions to retrieve from: give `captions` with `caption_embeddings`")
        assert judge is not None
        captions = Manifest.open(inputs["captions"]).captions
        rows_MD = EmbeddingTable.open(inputs["caption_embeddings"]).select(captions.caption_id.tolist())
        return retrieved(given, judge.rows, captions.caption.tolist(), rows_MD, most)
    descriptions = read_descriptions(Path(config.ontology)) if config.ontology else {}
    found = {}
    with progress("caption", len(given), "clips") as advance:
        for clip, tags in given.items():
            digest = hashlib.sha256(f"{config.seed} {clip}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:8]))
            found[clip] = phrased(tags, config.most_tags, descriptions, rng)[:most]
            advance(1)
    return found


def _generated(
    inputs: Mapping[str, Artifact], config: CaptionConfig, given: Mapping[str, Sequence[Tag]], pool: Manifest,
    tags: Tags, work: Workspace, counts: dict[str, int],
) -> dict[str, list[str]]:  # fmt: skip
    """Return what a captioner says of each clip; add to the counts what it cannot hear or know, and what it reused."""
    from clapcur.models.captioner import Decoding

    if "captioner" not in inputs:
        raise DataError("no captioner to generate captions with: give `captioner`, or choose another way")
    decoding = Decoding(way=config.decoding, num_beams=config.num_beams, temperature=config.temperature)
    before = (inputs["previous"], inputs["previous_tags"]) if "previous" in inputs else None
    found = generated(
        inputs["captioner"], sorted(given), pool, tags, config.num_captions + MORE_TRIES, decoding, config.seed,
        config.device, work, before,
    )  # fmt: skip
    said = {
        "not_heard": len(found.not_heard), "unknown_classes": found.unknown_classes, "reused_clips": found.num_reused,
    }  # fmt: skip
    counts |= {name: number for name, number in said.items() if number}
    return found.captions


def _judged(
    tried: Mapping[str, Sequence[str]],
    given: Mapping[str, Sequence[Tag]],
    config: CaptionConfig,
    judge: "_Judge | None",
) -> pd.DataFrame:
    """Return all captions with their cosines and verdicts, sorted by clip."""
    names = {clip: config.prompt.format(synonyms(tags[0].name)[0]) for clip, tags in given.items() if tags}
    row_of: dict[str, NDArray[np.float32]] = {}
    if judge is not None:
        texts = sorted({text for captions in tried.values() for text in captions} | set(names.values()))
        row_of = dict(zip(texts, judge.embed_text(texts), strict=True))
    rows = []
    for clip in sorted(tried):
        captions, tags = [normalise_caption(text) for text in tried[clip]], given[clip]
        verdicts = [_by_text(text, tags, config) for text in captions]
        similarity, tag_similarity = [np.nan] * len(captions), np.nan
        if judge is not None:
            similarity = [float(judge.rows[clip] @ row_of[text]) for text in tried[clip]]
            tag_similarity = float(judge.rows[clip] @ row_of[names[clip]]) if tags else np.nan
        verdicts = chosen(
            verdicts, similarity, tag_similarity, config.least_similarity, config.num_captions, config.above_tag
        )
        said, strength = "; ".join(tag.name for tag in tags), tags[0].strength if tags else np.nan
        rows += [
            (clip, caption_id(text), text, config.way, said, strength, near, tag_similarity, verdict)
            for text, near, verdict in zip(captions, similarity, verdicts, strict=True)
        ]
    return pd.DataFrame(rows, columns=GENERATED.names)


def _by_text(text: str, tags: Sequence[Tag], config: CaptionConfig) -> str:
    if not is_sane(text, config.least_words, config.most_words):
        return "no_caption"
    return "no_tag" if config.mention_tag and tags and not says_a_tag(text, tags) else ""


def _why_none(counts: Mapping[str, int]) -> str:
    excluded = sum(number for name, number in counts.items() if name.startswith("excluded."))
    said = f"{counts['tagged_clips']} have a tag"
    if excluded:
        said += f", {excluded} are evaluation clips or share a recording with one"
    if counts.get("not_embedded"):
        said += f", {counts['not_embedded']} have no embedding"
    return said + "; lower the tag thresholds (least, factor), or use another tagger"
