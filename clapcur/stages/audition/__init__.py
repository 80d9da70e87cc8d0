"""Audition: Improvement-Set -> a page for listening to its pairs and marking wrong ones.

The page has a few hundred pairs, spread evenly over classes, taken from just above the threshold, from the top and at
random (see `clapcur.stages.audition.choosing`), each with its audio, spectrogram, caption, scores, class and source. It
is one HTML file without a server, on disk or in MLflow, and exports the marks for `clapcur.data.marks`. Pairs just
below a threshold would be worth hearing too, but an Improvement-Set does not have them.

Audio is included as long as the page stays within its size limit; a clip of several pairs is included once. For a clip
whose file is missing or cannot be decoded, the page shows the reason instead. Which files were missing is not part of
the artifact's identity: after files are restored, use another seed to make a page with them.

Payload: ``audition.html`` and ``pairs.csv`` (which pairs, why, and how many pairs each represents). Inputs:
``improvement_set``, and the manifests that it was curated from, by role; see `audition_inputs`.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from clapcur.audio import UnusableAudio
from clapcur.config import check_seed, frozen
from clapcur.data.generated import read_generated
from clapcur.data.improvement_set import Card, ImprovementSet
from clapcur.data.manifest import Manifest
from clapcur.errors import ArtifactError
from clapcur.pages import size_of
from clapcur.progress import progress
from clapcur.stages.audition.choosing import choose_pairs
from clapcur.stages.audition.clip import MP3_RATES, as_mp3, as_spectrogram, load_excerpt
from clapcur.stages.audition.html import as_html, cut_by
from clapcur.store.artifacts import Artifact, Stage, Store, Workspace, write_atomic
from clapcur.store.record import Outcome

PAGE_FULL = "not embedded: the page has reached its size limit"
HEAD_ROOM = 1024  # bytes reserved for the line of the page that counts clips without audio
ID_COLUMNS = ["clip_id", "caption_id"]
TABLE_COLUMNS = (
    "clip_id", "caption_id", "similarity", "class", "class_similarity", "rank", "threshold", "margin", "reason",
    "weight", "caption", "path", "sound", "tags",
)  # fmt: skip


@frozen
class AuditionConfig:
    """Which pairs are on the page, and how much of their audio."""

    num_pairs: int = 200
    """Total number of pairs, spread evenly over the classes."""
    seed: int = 0
    """Seed of the random draw."""
    border: float = 0.3
    """Fraction of a class's pairs that are taken from its lowest scores."""
    top: float = 0.2
    """Fraction that is taken from its highest scores; the rest is drawn at random."""
    sample_rate: int = 22_050
    """Sample rate of the audio in the page, in Hz; half of it is the highest audible frequency."""
    max_seconds: float = 10.0
    """Maximum length of an excerpt, in seconds; longer clips are cut to their middle."""
    max_bytes: int = 18 * 2**20
    """Maximum size of the page, in MiB; files up to 20 MiB are sent to MLflow."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        check_seed(self.seed)
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs must be at least 1, got {self.num_pairs}")
        if not (self.border >= 0 and self.top >= 0 and self.border + self.top < 1):
            raise ValueError(
                f"border and top must be fractions with a sum below 1, got {self.border:g} and {self.top:g}; without "
                "randomly drawn pairs, the marks say nothing about the rest of the set"
            )
        if self.sample_rate not in MP3_RATES:
            raise ValueError(f"sample_rate must be one that MP3 supports ({MP3_RATES} Hz), got {self.sample_rate}")
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be above 0, got {self.max_seconds:g}")


OF_PAIRS = ("teacher_pairs", "captions", "generated", "pool")  # roles of the manifests that describe the pairs of a set


def audition_inputs(store: Store, improvement_set: Artifact) -> dict[str, Artifact]:
    """Return the inputs of an audition by role: the set, and the manifests of its pairs that its record names.

    Raises
    ------
    ArtifactError
        The artifact is not an Improvement-Set, or a manifest is not in the store.
    """
    if improvement_set.kind != "improvement_set":
        raise ArtifactError(f"expected an improvement_set, got the {improvement_set.kind} {improvement_set.id}")
    record = improvement_set.record
    roles = ("teacher_pairs",) if record.config["strategy"] == "ds" else OF_PAIRS
    manifests = {role: store.find(record.inputs[role]) for role in roles if role in record.inputs}
    return {"improvement_set": improvement_set, **manifests}


def audition(inputs: Mapping[str, Artifact], config: AuditionConfig, work: Workspace) -> Outcome:
    """Choose the pairs, and write the page with their audio.

    Inputs by role: ``improvement_set``, and the manifests that it was curated from; see `audition_inputs`.

    Raises
    ------
    ManifestError
        A manifest contradicts itself.
    ArtifactError
        The clip or caption of a pair is in none of the manifests.
    ValueError
        Even without audio, the pairs exceed the size limit of the page.
    """
    source = inputs["improvement_set"]
    chosen_from = ImprovementSet.open(source)
    card = chosen_from.card
    manifests = [Manifest.open(artifact) for role, artifact in inputs.items() if role != "improvement_set"]
    scored = chosen_from.pairs(["similarity", "class", "class_similarity", "rank"])
    scored["score"] = scored["class_similarity" if cut_by(card.strategy) == "caption" else "similarity"]
    thresholds = _class_thresholds(source, card, scored)
    pairs = _with_texts(_chosen_pairs(chosen_from, scored, thresholds, config), manifests, source)
    if "generated" in inputs:
        written = read_generated(inputs["generated"]).drop_duplicates(["clip_id", "caption_id"])
        pairs = pairs.merge(written[["clip_id", "caption_id", "tags"]], on=["clip_id", "caption_id"], how="left")
    facts = _facts(source, card, thresholds, pairs, config)
    shown = pairs[[name for name in TABLE_COLUMNS if name in pairs and name not in ("rank", "weight", "path")]]
    records = json.loads(shown.to_json(orient="records", double_precision=6))
    clips = silent_clips(pairs, manifests, config)
    room = config.max_bytes - HEAD_ROOM - len(as_html(facts, records, clips).encode())
    if room < 0:
        raise ValueError(
            f"a page of {config.num_pairs} pairs needs {config.max_bytes - room:,} bytes even without audio, but "
            f"max_bytes is {config.max_bytes:,}; raise it, or lower num_pairs"
        )
    embed_sounds(clips, room, config)
    write_atomic(work.path / "audition.html", as_html(facts, records, clips))
    kinds = {clip: entry.get("kind", "embedded") for clip, entry in clips.items()}
    table = pairs.assign(sound=pairs["clip_id"].map(kinds))
    table = table[[name for name in TABLE_COLUMNS if name in table]]
    write_atomic(work.path / "pairs.csv", table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    of_kind = pd.Series(kinds).value_counts().to_dict()
    counts = {"pairs": len(pairs), "clips": len(clips), "embedded": 0}
    return Outcome(counts=counts | {str(kind).replace(" ", "_"): int(count) for kind, count in of_kind.items()})


def _class_thresholds(source: Artifact, card: Card, scored: pd.DataFrame) -> dict[str, float]:
    """Return the threshold for the pairs of each class.

    DS with a count shared by its classes has one threshold per class, which its card does not list; the lowest kept
    score is used instead.
    """
    cut, config = cut_by(card.strategy), source.record.config
    thresholds = dict.fromkeys(card.class_coverage, card.thresholds[cut])
    if cut == "caption" and config["even_classes"] and config["caption_threshold"]["count"] is not None:
        lowest = scored.groupby("class")["score"].min()
        return {**thresholds, **{str(name): float(low) for name, low in lowest.items()}}
    return {**thresholds, **(card.class_thresholds or {})}


def _chosen_pairs(
    source: ImprovementSet, scored: pd.DataFrame, thresholds: Mapping[str, float], config: AuditionConfig
) -> pd.DataFrame:
    """Return the chosen pairs, alternating between classes, with threshold and margin; only their ids are read."""
    chosen = choose_pairs(
        scored["score"].to_numpy(), scored["class"].to_numpy(object), config.num_pairs,
        border=config.border, top=config.top, seed=config.seed,
    )  # fmt: skip
    wanted = np.sort(chosen["row"].to_numpy())
    found, start = [], 0
    for block in source.blocks(ID_COLUMNS):
        here = wanted[(wanted >= start) & (wanted < start + len(block))]
        if len(here):
            found.append(block.take(here - start).to_pandas().set_index(here))
        start += len(block)
    pairs = chosen[["row", "reason", "weight"]].join(pd.concat(found), on="row").join(scored, on="row")
    threshold = pairs["class"].map(thresholds)
    return pairs.assign(threshold=threshold, margin=pairs["score"] - threshold).drop(columns=["row", "score"])


def _with_texts(pairs: pd.DataFrame, manifests: Iterable[Manifest], source: Artifact) -> pd.DataFrame:
    """Return the pairs with the text of each caption and the path of each clip."""
    captions: dict[str, str] = {}
    paths: dict[str, str] = {}
    for manifest in manifests:
        captions |= dict(zip(manifest.captions.caption_id, manifest.captions.caption, strict=True))
        paths |= {clip: str(path) for clip, path in manifest.paths.items()}
    for what, known in (("clip_id", paths), ("caption_id", captions)):
        if unknown := sorted(set(pairs[what]) - set(known)):
            raise ArtifactError(
                f"{len(unknown)} chosen pairs of {source.id} have a {what} that is in none of its manifests, such as "
                f"{unknown[0]}; give the manifests that it was curated from"
            )
    return pairs.assign(caption=pairs["caption_id"].map(captions), path=pairs["clip_id"].map(paths))


def _facts(
    source: Artifact, card: Card, thresholds: Mapping[str, float], pairs: pd.DataFrame,
    config: AuditionConfig,
) -> dict[str, Any]:  # fmt: skip
    """Return the facts about the set for the head of the page."""
    here = pairs["class"].value_counts().to_dict()
    classes = [
        {"name": name, "threshold": thresholds[name], "here": here.get(name, 0), **coverage}
        for name, coverage in card.class_coverage.items()
    ]
    return {
        "set": source.id, "strategy": card.strategy, "thresholds": card.thresholds, "classes": classes,
        "num_pairs": card.counts["pairs"], "num_clips": card.counts["clips"],
        "num_captions": card.counts["captions"], "seed": config.seed,
    }  # fmt: skip


def silent_clips(
    pairs: pd.DataFrame, manifests: Iterable[Manifest], config: AuditionConfig
) -> dict[str, dict[str, str]]:
    """Return the page's entry for each clip, in the order of the pairs, without audio.

    Parameters
    ----------
    pairs : DataFrame
        With columns ``clip_id`` and ``path``.
    manifests : iterable of Manifest
        Manifests that describe the clips.
    config : AuditionConfig
    """
    paths = dict(zip(pairs["clip_id"], pairs["path"], strict=True))
    table = pd.concat([manifest.clips for manifest in manifests])
    durations = dict(zip(table["clip_id"], table["duration_s"], strict=True))
    recordings = dict(zip(table["clip_id"], table["recording_id"], strict=True))
    return {clip: silent_clip(path, durations[clip], recordings[clip], config) for clip, path in paths.items()}


def silent_clip(path: str, duration_s: float, recording_id: str, config: AuditionConfig) -> dict[str, str]:
    """Return a page's entry for a clip without audio: ``path``, ``recording_id``, ``excerpt``, ``kind``, ``note``.

    Parameters
    ----------
    path : str
    duration_s : float
        Duration of the whole clip, in s.
    recording_id : str
        The recording that the clip was cut from; may be empty.
    config : AuditionConfig
    """
    is_cut = duration_s > config.max_seconds
    return {
        "path": path,
        "recording_id": recording_id,
        "excerpt": f"{'middle ' + format(config.max_seconds, 'g') + ' of ' if is_cut else ''}{duration_s:.1f} s",
        "kind": "left out",
        "note": PAGE_FULL,
    }


def embed_sounds(clips: dict[str, dict[str, str]], room: int, config: AuditionConfig, with_images: bool = True) -> None:
    """Add audio and spectrogram to the clips, one by one, until the next does not fit on the page.

    Parameters
    ----------
    clips : dict of str to dict
        Entries by clip id, as `silent_clip` returns them. Those that get audio have ``audio`` and ``image`` (base64)
        instead of ``kind`` and ``note``; for those that cannot be decoded, these two give the reason.
    room : int
        Maximum number of bytes to add to the page.
    config : AuditionConfig
    with_images : bool
        Whether to add spectrograms.
    """
    with progress("audition", len(clips), "clips") as advance:
        for name, silent in clips.items():
            try:
                waveform = load_excerpt(silent["path"], config.sample_rate, config.max_seconds, clip_id=name)
            except UnusableAudio as problem:
                is_missing = problem.reason == "missing"
                note = "file not found" if is_missing else f"{problem.reason}: {problem.detail}"
                entry = silent | {"kind": problem.reason.replace("_", " "), "note": note}
            else:
                media = {"audio": as_mp3(waveform, config.sample_rate)}
                if with_images:
                    media["image"] = as_spectrogram(waveform, config.sample_rate)
                entry = {part: text for part, text in silent.items() if part not in ("kind", "note")}
                entry |= {part: base64.b64encode(content).decode() for part, content in media.items()}
            room -= size_of(entry) - size_of(silent)
            if room < 0:
                return
            clips[name] = entry
            advance()


STAGE = Stage("audition", "2", "audition", audition)
