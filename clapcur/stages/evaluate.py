"""Evaluate: embeddings x class prompts -> zero-shot scores; or embeddings x captions -> retrieval scores.

Zero-shot accuracy is the fraction of clips whose nearest class prompt is their label. Every score has its protocol:
prompt, class names and their hash, crops, numbers of clips and recordings, seed and interval. The transductive score
(text-anchored EM over the whole batch of clips, arXiv 2606.17160) is reported separately, because it needs the batch;
labels are not used.

A score also reports contamination (`clapcur.methods.contamination`): whether its clips were in the pairs and
Improvement-Sets of the checkpoint's training, or of any checkpoint that it was made from, according to their records. A
checkpoint of another project has no such records, so its contamination is unknown. If one of these sets was curated
against the scored clips, near duplicates of the teacher's clips are searched in the embeddings that the curation used.

Inputs by role: ``checkpoint``; ``audio_embeddings``; ``evaluation``: a labelled manifest, with ``prompt_embeddings``,
or a manifest with pairs, with ``caption_embeddings``; and the artifacts that the checkpoint was made from, by the roles
of `clapcur.methods.contamination.ancestors`.
"""

import dataclasses
import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import safe_open

from clapcur.config import check_seed, frozen, signature
from clapcur.data.class_names import PROMPT, check_class_names, check_prompt, readable
from clapcur.data.embeddings import EmbeddingTable
from clapcur.data.manifest import Manifest
from clapcur.data.scores import (
    PREDICTIONS,
    RANKS,
    ZERO_SHOT,
    Contamination,
    Protocol,
    RetrievalScores,
    Scores,
    ZeroShotScores,
)
from clapcur.errors import DataError, ManifestError
from clapcur.methods.contamination import known_to
from clapcur.methods.metrics import (
    accuracy,
    bootstrap_interval,
    confusion_matrix,
    mean_average_precision_at_k,
    per_class_accuracy,
    predict,
    recall_at_k,
    transductive_posteriors,
)
from clapcur.methods.plots import confusion_figure
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.record import Outcome

NUM_RESAMPLES = 2000
LEVEL = 0.95
MAX_CONFUSION = 500  # classes of a confusion matrix, whose size is the square of this
MOST_NAMED = 5  # maximum number of labels and classes in a message


@frozen
class EvaluateConfig:
    """What to score, and by which protocol."""

    task: Literal["zero_shot", "retrieval"] = "zero_shot"
    """Task to score: zero-shot classification or retrieval."""
    class_names: tuple[str, ...] = ()
    """Class names; every label of the evaluation manifest must be one of them."""
    prompt: str = PROMPT
    """Class prompt; {} is replaced by the class name."""
    seed: int = 0
    """Seed of the bootstrap over source recordings."""

    def __post_init__(self) -> None:
        """Reject a zero-shot evaluation without classes."""
        check_seed(self.seed)
        if self.task == "zero_shot":
            check_class_names(self.class_names)
            check_prompt(self.prompt)


def evaluate(inputs: Mapping[str, Artifact], config: EvaluateConfig, work: Workspace) -> Outcome:
    """Write ``scores.json`` and ``predictions.parquet`` (or, for retrieval, ``ranks.parquet``).

    Inputs by role: see `clapcur.stages.evaluate`.

    Raises
    ------
    DataError
        A score is not finite.
    """
    manifest = Manifest.open(inputs["evaluation"])
    audio = EmbeddingTable.open(inputs["audio_embeddings"])
    scores: Scores
    if config.task == "retrieval":
        found, table = _retrieval(inputs, manifest, audio)
        scores, name, metrics = found, RANKS, found.metrics
    else:
        scored, table = _zero_shot(inputs, config, manifest, audio)
        names = scored.confusion_classes or check_class_names(config.class_names)
        confusion_figure(scored.confusion, names, work.path / "confusion.png")
        scores, name = scored, PREDICTIONS
        metrics = {key: value for key, value in vars(scored).items() if isinstance(value, float)}
    scores = dataclasses.replace(scores, contamination=_contamination(inputs, manifest, table))
    _check_finite(dataclasses.asdict(scores), table)
    table.to_parquet(work.path / name, index=False)
    scores.write(work.path)
    counts = {"clips": scores.protocol.num_clips, "contaminated": scores.contamination.num_clips}
    return Outcome(counts=counts, metrics=metrics)


def _check_finite(scores: Mapping[str, Any], table: pd.DataFrame) -> None:
    """Reject scores that are not finite: they compare as neither better nor worse, and no table would show why."""
    columns = {name: table[name].to_numpy() for name in table.columns if table[name].dtype.kind == "f"}
    spoilt = [name for name, value in _numbers(scores) if not np.isfinite(value)]
    spoilt += [name for name, values in columns.items() if not np.isfinite(values).all()]
    if spoilt:
        raise DataError(
            f"these scores are not finite: {', '.join(spoilt[:5])}; their embeddings contain NaN or infinity: "
            "embed the clips again"
        )


def _numbers(scores: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of nested mappings and lists, with the names that lead to it."""
    for name, value in scores.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        for item in items:
            if isinstance(item, Mapping):
                yield from _numbers(item, f"{path}{name}.")
            elif isinstance(item, float):
                yield f"{path}{name}", item


def _contamination(inputs: Mapping[str, Artifact], manifest: Manifest, table: pd.DataFrame) -> Contamination:
    """Return which scored clips the checkpoint was trained on, and mark them in the table of predictions."""
    is_classified = "clip_id" in table
    scored = set(table.clip_id) if is_classified else set(manifest.pairs.clip_id)
    clips = manifest.clips[manifest.clips.clip_id.isin(scored)].reset_index(drop=True)
    known = {artifact.id: artifact for artifact in inputs.values()}
    said, reasons = known_to(inputs["checkpoint"], known, inputs["evaluation"].id, clips)
    of_others = None
    if is_classified:
        table["known_by"] = [reasons.get(clip, "") for clip in table.clip_id]
        others = table[table.known_by == ""]
        if reasons and len(others):
            of_others = float((others.predicted == others.label).mean())
    return dataclasses.replace(said, accuracy_of_others=of_others)


def _zero_shot(
    inputs: Mapping[str, Artifact], config: EvaluateConfig, manifest: Manifest, audio: EmbeddingTable
) -> tuple[ZeroShotScores, pd.DataFrame]:
    names = check_class_names(config.class_names)
    clips = manifest.clips[manifest.clips.clip_id.isin(set(audio.ids))].reset_index(drop=True)
    labels_N = label_index(clips, names)
    rows_ND = audio.select(clips.clip_id.tolist())
    prompts_KD = EmbeddingTable.open(inputs["prompt_embeddings"]).rows_ND
    groups = clips.clip_id.map(manifest.groups).to_numpy(str)
    predicted_N = predict(rows_ND, prompts_KD)
    with safe_open(inputs["checkpoint"].path / "model.safetensors", "np") as weights:
        logit_scale = float(np.exp(weights.get_tensor("logit_scale")))
    posteriors_NK = transductive_posteriors(rows_ND, prompts_KD, logit_scale=logit_scale)
    transductive_N = posteriors_NK.argmax(axis=1)

    def interval(predicted: NDArray[np.int64]) -> tuple[float, float]:
        low, high = bootstrap_interval(
            predicted == labels_N, groups, level=LEVEL, num_resamples=NUM_RESAMPLES, seed=config.seed
        )
        return float(low), float(high)

    recall = per_class_accuracy(predicted_N, labels_N, len(names))
    confusion, confusion_classes = _confusion(predicted_N, labels_N, names)
    scores = ZeroShotScores(
        accuracy=float(accuracy(predicted_N, labels_N)),
        interval=interval(predicted_N),
        macro_accuracy=float(np.nanmean(recall)),
        transductive=float(accuracy(transductive_N, labels_N)),
        transductive_interval=interval(transductive_N),
        per_class={name: float(value) for name, value in zip(names, recall, strict=True) if np.isfinite(value)},
        per_fold={
            str(fold): float(accuracy(predicted_N[rows], labels_N[rows]))
            for fold, rows in clips.groupby("fold").indices.items()
        },
        confusion=confusion,
        confusion_classes=confusion_classes,
        protocol=Protocol(
            task=ZERO_SHOT, prompt=config.prompt, num_classes=len(names), class_names_sha256=signature(list(names)),
            interval=f"bootstrap over recordings, {LEVEL:.0%}", seed=config.seed,
            **_protocol(inputs, clips, manifest),
        ),
    )  # fmt: skip
    similarity_NK = rows_ND @ prompts_KD.T
    table = pd.DataFrame(
        {
            "clip_id": clips.clip_id,
            "group": groups,
            "fold": clips.fold,
            "label": [names[i] for i in labels_N],
            "predicted": [names[i] for i in predicted_N],
            "similarity": similarity_NK.max(axis=1),
            "label_similarity": similarity_NK[np.arange(len(labels_N)), labels_N],
            "transductive": [names[i] for i in transductive_N],
        }
    )
    return scores, table


def _confusion(
    predicted_N: NDArray[np.int64], labels_N: NDArray[np.int64], names: tuple[str, ...]
) -> tuple[list[list[int]], list[str] | None]:
    """Return the confusion matrix; with very many classes, only the most confused ones, with their names."""
    if len(names) <= MAX_CONFUSION:
        return confusion_matrix(predicted_N, labels_N, len(names)).tolist(), None
    is_wrong_N = predicted_N != labels_N
    wrong_K = sum(np.bincount(rows[is_wrong_N], minlength=len(names)) for rows in (predicted_N, labels_N))
    chosen = np.sort(np.argsort(-wrong_K, kind="stable")[:MAX_CONFUSION])
    place_K = np.full(len(names), -1)
    place_K[chosen] = np.arange(len(chosen))
    both_N = (place_K[predicted_N] >= 0) & (place_K[labels_N] >= 0)
    cell_N = place_K[labels_N[both_N]] * len(chosen) + place_K[predicted_N[both_N]]
    counts = np.bincount(cell_N, minlength=len(chosen) ** 2).reshape(len(chosen), len(chosen))
    return counts.tolist(), [names[index] for index in chosen]


def label_index(clips: pd.DataFrame, names: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the index of each clip's label among the class names.

    Raises
    ------
    ManifestError
        A label is not a class name; the message suggests similar names.
    """
    place = {name: index for index, name in enumerate(names)}
    labels = [readable(label) for label in clips.label]
    if unknown := Counter(label for label in labels if label not in place):
        said = [
            f"{label or '(no label)'} ({count}{did_you_mean(label, names)})"
            for label, count in sorted(unknown.items())[:MOST_NAMED]
        ]
        raise ManifestError(
            f"{unknown.total()} of {len(labels)} clips have a label that is not among the {len(names)} class names: "
            f"{', '.join(said)}; the class names are {', '.join(names[:MOST_NAMED])}"
            + (", ..." if len(names) > MOST_NAMED else "")
            + "; fix the label column or the class names"
        )
    return np.array([place[label] for label in labels], np.int64)


def did_you_mean(label: str, names: Sequence[str]) -> str:
    """Return a question that suggests a class name similar to a label; "" if there is none."""
    by_case = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(label.casefold(), by_case, n=1)
    return f"; did you mean {by_case[near[0]]!r}?" if near else ""


def _retrieval(
    inputs: Mapping[str, Artifact], manifest: Manifest, audio: EmbeddingTable
) -> tuple[RetrievalScores, pd.DataFrame]:
    """Score caption-to-audio and audio-to-caption retrieval; a clip may have several captions."""
    if manifest.pairs.empty:
        raise ManifestError(
            "retrieval needs an evaluation manifest with captions, got one without; ingest it with a caption column"
        )
    captions = EmbeddingTable.open(inputs["caption_embeddings"])
    clips = manifest.clips[manifest.clips.clip_id.isin(set(manifest.pairs.clip_id))].reset_index(drop=True)
    texts = manifest.captions[manifest.captions.caption_id.isin(set(manifest.pairs.caption_id))].reset_index(drop=True)
    similarity_NM = audio.select(clips.clip_id.tolist()) @ captions.select(texts.caption_id.tolist()).T
    row = pd.Series(range(len(clips)), clips.clip_id)
    column = pd.Series(range(len(texts)), texts.caption_id)
    relevant_NM = np.zeros(similarity_NM.shape, bool)
    relevant_NM[row[manifest.pairs.clip_id].to_numpy(), column[manifest.pairs.caption_id].to_numpy()] = True
    metrics: dict[str, float] = {}
    for direction, similarity, relevant in (
        ("text_to_audio", similarity_NM.T, relevant_NM.T),
        ("audio_to_text", similarity_NM, relevant_NM),
    ):
        for k in (1, 5, 10):
            metrics[f"{direction}.recall_at_{k}"] = float(recall_at_k(similarity, relevant, k))
        metrics[f"{direction}.map_at_10"] = float(mean_average_precision_at_k(similarity, relevant, 10))
    protocol = Protocol(task="retrieval", num_captions=len(texts), **_protocol(inputs, clips, manifest))
    best = similarity_NM.argmax(axis=0)
    table = pd.DataFrame({"caption_id": texts.caption_id, "nearest_clip_id": clips.clip_id.to_numpy()[best]})
    return RetrievalScores(protocol=protocol, metrics=metrics), table


def _protocol(inputs: Mapping[str, Artifact], clips: pd.DataFrame, manifest: Manifest) -> dict[str, Any]:
    """Return the part of the protocol that both tasks share."""
    return {
        "crops": inputs["audio_embeddings"].record.config["num_crops"],
        "num_clips": len(clips),
        "num_recordings": len({manifest.groups[clip] for clip in clips.clip_id}),
    }


STAGE = Stage("evaluate", "3", "scores", evaluate)
