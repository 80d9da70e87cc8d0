"""Pseudo-label: pool x teacher x class names (x tags) -> a manifest of the pool's clips, each paired with its class.

Each clip is paired with its most likely class, in a few phrasings, using the evidence of
`clapcur.methods.pseudo_labels`: the teacher's similarities, the probabilities of a tagger, and the other clips of the
same recording. The manifest is one of generated captions (`clapcur.data.generated`); its table has the most probable
classes of every clip, and whether the clip was kept. No label is read.

Inputs by role: ``pool``, ``checkpoint`` (the teacher), ``pool_embeddings``, ``prompt_embeddings`` of the class names
and, optionally, ``tags``.

Sources: pseudo-labels are from Lee 2013 ("Pseudo-Label: the simple and efficient semi-supervised learning method"); the
combination of evidence is ours, measured in docs/results/us8k.md.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.config import frozen, machine
from clapcur.data.class_names import PROMPT, check_class_names, check_prompt, prompts, readable
from clapcur.data.embeddings import EmbeddingTable
from clapcur.data.generated import GENERATED, manifest_of, write_generated
from clapcur.data.manifest import Manifest, caption_id, normalise_caption
from clapcur.data.tags import Tags
from clapcur.errors import DataError, EmptySetError
from clapcur.methods.pseudo_labels import class_posterior, mean_of_groups, tag_evidence
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.record import Outcome

if TYPE_CHECKING:
    from clapcur.models.clap import Clap

log = logging.getLogger("clapcur")
SHOWN_CLASSES = 3  # per clip, in the table of all clips


@frozen
class PseudoLabelConfig:
    """How the class of each clip is found, and how it is written as a caption."""

    class_names: tuple[str, ...] = ()
    """Names of the classes; those of the experiment, where it has some."""
    prompt: str = PROMPT
    """Class prompt; {} is replaced by the class name. It is one of the phrasings."""
    phrasings: tuple[str, ...] = ("{}", "the sound of {}", "a recording of {}", "{} is heard")
    """Further ways to write a class as a caption; {} is replaced by its name."""
    by_recording: bool = True
    """Average the probabilities over the clips of a recording, where the pool names recordings."""
    min_probability: float = 0.5
    """Minimum probability of the best class for a clip to get a label."""
    min_share: float = 0.5
    """Fraction of the clips that get a label in any case, the most probable first; for a teacher that is never sure, or
    many classes."""
    device: str = machine("auto")
    """Device of the teacher, which reads the names of tags; auto takes the first GPU if there is one."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        for template in (self.prompt, *self.phrasings):
            check_prompt(template)
        if self.class_names:
            check_class_names(self.class_names)
        for name in ("min_probability", "min_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name):g}; a percentage?")

    @property
    def templates(self) -> tuple[str, ...]:
        """All phrasings, the prompt first."""
        return tuple(dict.fromkeys((self.prompt, *self.phrasings)))


def pseudo_label(inputs: Mapping[str, Artifact], config: PseudoLabelConfig, work: Workspace) -> Outcome:
    """Write the manifest of the clips that were assigned a class, and the probabilities of all clips.

    Inputs by role: see `clapcur.stages.pseudo_label`.

    Raises
    ------
    DataError
        The number of prompt embeddings does not match the number of classes.
    EmptySetError
        No clip reaches `min_probability`.
    """
    from clapcur.models.clap import load_model

    pool, names = Manifest.open(inputs["pool"]), check_class_names(config.class_names)
    clips, similarity_NK = _similarities(inputs, pool, len(names))
    teacher = load_model(inputs["checkpoint"].path, config.device)
    evidence_NK = None
    if "tags" in inputs:
        evidence_NK = _tag_evidence(Tags.open(inputs["tags"]), clips.clip_id.tolist(), teacher, config)
    posterior_NK = class_posterior(similarity_NK, teacher.scale().item(), evidence_NK)
    if config.by_recording:
        posterior_NK = mean_of_groups(posterior_NK, clips.recording_id.to_numpy(object))
    best_N = posterior_NK.argmax(axis=1)
    probability_N = posterior_NK.max(axis=1)
    threshold = _threshold(probability_N, config)
    kept_N = probability_N >= threshold
    if not kept_N.any():
        raise EmptySetError(
            f"none of {len(clips)} clips of the pool {inputs['pool'].id} is of one class with a probability of "
            f"{config.min_probability:g}, the highest is {probability_N.max(initial=0):.3f}; lower min_probability or "
            "raise min_share"
        )
    table = _table(clips.clip_id.tolist(), posterior_NK, similarity_NK, kept_N, config)
    write_generated(table, work.path)
    manifest_of(pool, table[table.verdict == "kept"]).write(work.path)
    of_class = Counter(names[index] for index in best_N[kept_N])
    teacher_N = np.asarray(similarity_NK).argmax(axis=1)
    return Outcome(
        counts={
            "pool_clips": len(pool.clips), "clips": int(kept_N.sum()), "unsure": int((~kept_N).sum()),
            **{f"class.{readable(name)}": of_class[name] for name in names},
        },
        metrics={
            "threshold": threshold,
            "probability": float(probability_N[kept_N].mean()),
            "changed": float((best_N != teacher_N)[kept_N].mean()),  # class differs from the teacher's
        },
    )  # fmt: skip


def _threshold(probability_N: NDArray[np.float64], config: PseudoLabelConfig) -> float:
    """Return the minimum probability of a kept label: the configured one, or less if too few clips reach it."""
    at_least = math.ceil(config.min_share * len(probability_N))
    if not at_least:
        return config.min_probability
    of_share = float(np.sort(probability_N)[-at_least])
    if of_share < config.min_probability:
        log.warning(
            "%d of %d clips are of one class with a probability of %.2f; the most probable %.0f %% get a label, from "
            "%.3f", (probability_N >= config.min_probability).sum(), len(probability_N), config.min_probability,
            100 * config.min_share, of_share,
        )  # fmt: skip
    return min(of_share, config.min_probability)


def _similarities(
    inputs: Mapping[str, Artifact], pool: Manifest, num_classes: int
) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    """Return the clips that have an embedding, sorted, and their cosines with the class prompts, shape (N, K)."""
    audio = EmbeddingTable.open(inputs["pool_embeddings"])
    prompts_KD = EmbeddingTable.open(inputs["prompt_embeddings"]).rows_ND
    if len(prompts_KD) != num_classes:
        raise DataError(
            f"expected the embeddings of {num_classes} class prompts, got {len(prompts_KD)}; embed those of the names"
        )
    clips = pool.clips[pool.clips.clip_id.isin(audio.ids)].sort_values("clip_id", ignore_index=True)
    return clips, audio.select(clips.clip_id.tolist()) @ prompts_KD.T


def _tag_evidence(tags: Tags, clip_ids: list[str], teacher: "Clap", config: PseudoLabelConfig) -> NDArray[np.float64]:
    """Return the tagger's evidence for each class, shape (N, K); 0 for clips that it did not process."""
    from scipy.sparse import csr_array

    place = {name: row for row, name in enumerate(clip_ids)}
    heard = tags.tags[tags.tags.clip_id.isin(clip_ids)]
    cells = heard.clip_id.map(place).to_numpy(), heard["class"].to_numpy()
    probability_NT = csr_array((heard.probability.to_numpy(float), cells), shape=(len(clip_ids), len(tags.classes)))
    names_TD = teacher.embed_text([config.prompt.format(readable(name)) for name in tags.classes.name])
    prompts_KD = teacher.embed_text(prompts(config.class_names, config.prompt))
    return tag_evidence(probability_NT, tags.classes["mean"].to_numpy(), names_TD @ prompts_KD.T)


def _table(
    clip_ids: list[str], posterior_NK: NDArray[np.float64], similarity_NK: NDArray[np.float32],
    kept_N: NDArray[np.bool_], config: PseudoLabelConfig,
) -> pd.DataFrame:  # fmt: skip
    """Return one row per clip and phrasing, in the form of generated captions."""
    shown = [readable(name) for name in config.class_names]
    captions = [[normalise_caption(text) for text in prompts(config.class_names, t)] for t in config.templates]
    rows = []
    for clip, posterior_K, similarity_K, kept in zip(clip_ids, posterior_NK, similarity_NK, kept_N, strict=True):
        order = np.argsort(-posterior_K, kind="stable")[:SHOWN_CLASSES]
        told = "; ".join(f"{shown[index]} {posterior_K[index]:.2f}" for index in order)
        best, verdict = int(order[0]), "kept" if kept else "unsure"
        for texts in captions:
            rows.append(
                (clip, caption_id(texts[best]), texts[best], "pseudo-label", told, float(posterior_K[best]),
                 float(similarity_K[best]), np.nan, verdict)
            )  # fmt: skip
    return pd.DataFrame(rows, columns=GENERATED.names)


STAGE = Stage("pseudo_label", "1", "manifest", pseudo_label)
