"""Contamination: evaluation clips that a model has learned from, or is about to learn from.

A clip is known from another clip if it

- is the same: its bytes (clip id) or its samples (in another container) are equal;
- was cut from the same recording (`clapcur.data.recordings`): ESC-50 and UrbanSound8K share 94 Freesound recordings;
- sounds the same: its embedding is nearer to the other's than those of clips that are known to differ ever are.

Only the first two are certain. The third depends on the model; `calibrated_threshold` finds the minimum similarity.
Ingest excludes the recordings in a list, curation excludes evaluation clips from every Improvement-Set, and evaluation
states for each score whether the checkpoint learned from its clips.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clapcur.data.compositions import Compositions
from clapcur.data.embeddings import EmbeddingTable
from clapcur.data.improvement_set import ImprovementSet
from clapcur.data.recordings import asked_as, known_as, place_differs, recording_id, without_place
from clapcur.data.scores import Contamination
from clapcur.errors import ArtifactError, EmptySetError
from clapcur.store.artifacts import ANCESTOR, Artifact, Store

log = logging.getLogger("clapcur")

REASONS = ("clip", "recording", "near_duplicate")  # in this order; a clip is counted under the first that applies
NUM_EXAMPLES = 5
IDENTITY = ["clip_id", "pcm_sha256", "recording_id"]
LEAST_DIFFERENT = 100  # minimum number of clips for a meaningful tail of their similarities; ours
MOST_DIFFERENT = 5000  # maximum number of clips that are compared with each other to find the threshold; ours
PASSED_ON = ("init", "teacher")  # roles through which a checkpoint inherits what another one learned
LEARNED_FROM = ("teacher_pairs", "improvement_set", "replay", "compositions")
READ_OF = {  # roles of the inputs that are read for each kind of artifact
    "checkpoint": (*PASSED_ON, *LEARNED_FROM),
    "improvement_set": ("pool", "teacher_pairs", "teacher_clip_embeddings", "evaluation_embeddings"),
    "compositions": ("clips", "pool", "teacher_pairs"),
}


def recording_ids(clips: pd.DataFrame) -> NDArray[np.object_]:
    """Return the recording of each clip, as `recording_id` writes it; "" if unknown."""
    row_N, values = pd.factorize(clips.recording_id, use_na_sentinel=False)
    return np.array([recording_id(value) for value in values], object)[row_N]


def names_of(clips: pd.DataFrame, keys_of: Callable[[str], tuple[str, ...]] = known_as) -> pd.DataFrame:
    """Return the names and keys of the clips of a manifest: columns clip_id, reason, name and key, one row per key.

    Parameters
    ----------
    clips : DataFrame
    keys_of : callable
        `clapcur.data.recordings.known_as`, or `asked_as` on the other side of a comparison.
    """
    recordings = recording_ids(clips)
    parts = [("clip", clips.clip_id, clips.clip_id), ("clip", clips.clip_id, clips.pcm_sha256)]
    is_known = recordings != ""
    by_recording = pd.DataFrame({"clip_id": clips.clip_id[is_known], "name": recordings[is_known]}, dtype="str")
    by_recording["key"] = by_recording.name.map({name: keys_of(name) for name in by_recording.name.unique()})
    tables = [
        pd.DataFrame({"clip_id": clip, "reason": reason, "name": name, "key": name}, dtype="str")
        for reason, clip, name in parts
    ]
    tables.append(by_recording.explode("key").assign(reason="recording")[tables[0].columns].astype("str"))
    return pd.concat(tables, ignore_index=True).dropna()


def known_by(names: pd.DataFrame, others: Set[str]) -> pd.DataFrame:
    """Return the rows of `names` whose name is among `others`; an empty name never matches."""
    return names[names.name.isin(set(others) - {""})]


def with_twins(clip_ids: Set[str], clips: pd.DataFrame) -> set[str]:
    """Return the clips and all clips with the same samples as one of them: the same sound in another container."""
    samples = set(clips.pcm_sha256[clips.clip_id.isin(clip_ids)].dropna())
    return set(clip_ids) | set(clips.clip_id[clips.pcm_sha256.isin(samples)])


@dataclass(frozen=True)
class Overlap:
    """Which clips of one table are known from another."""

    matches: pd.DataFrame
    # clip_id, other_clip_id, reason, name (hash, recording id or similarity), other_place (whether the recordings match
    # without the place, which one of the two lacks); one row per clip and reason, with the first match
    checked: tuple[str, ...] = REASONS[:2]
    # reasons that were checked
    threshold: float | None = None
    # similarity at or above which a clip counts as a near duplicate
    nearest_N: NDArray[np.float32] | None = None
    # similarity of each clip to the nearest other clip, if near duplicates were checked

    def reason_of(self) -> dict[str, str]:
        """Return the first reason that applies to each clip."""
        found: dict[str, str] = {}
        for reason in REASONS:
            for clip in self.clips(reason):
                found.setdefault(clip, reason)
        return found

    def clips(self, reason: str) -> set[str]:
        """Return the clips to which a reason applies, even if another one does, too."""
        return set(self.matches.clip_id[self.matches.reason == reason])

    def counts(self) -> dict[str, int]:
        """Return the number of clips by their first reason."""
        reasons = list(self.reason_of().values())
        return {reason: reasons.count(reason) for reason in self.checked}

    def examples(self) -> dict[str, list[dict[Hashable, Any]]]:
        """Return the first few matches of each reason."""
        columns = ["clip_id", "other_clip_id", "name"]
        return {
            reason: self.matches.loc[self.matches.reason == reason, columns].head(NUM_EXAMPLES).to_dict("records")
            for reason in self.checked
        }

    def with_near_duplicates(self, of: "Overlap") -> "Overlap":
        """Return this overlap with the near duplicates of another overlap added."""
        near = of.matches[of.matches.reason == "near_duplicate"]
        both = pd.concat([self.matches, near]).drop_duplicates(["clip_id", "reason"], ignore_index=True)
        return Overlap(both, of.checked, of.threshold, of.nearest_N)

    def as_json(self) -> dict[str, Any]:
        """Return the facts that are stored in a card or a score."""
        said = {"num_clips": sum(self.counts().values()), "by_reason": self.counts(), "examples": self.examples()}
        if without := int(self.matches.other_place.sum()):
            said["recordings_compared_without_place"] = without
        return said | ({"near_duplicate_threshold": self.threshold} if self.threshold is not None else {})


def overlap(
    clips: pd.DataFrame,
    others: pd.DataFrame,
    rows_ND: NDArray[np.float32] | None = None,
    other_rows_MD: NDArray[np.float32] | None = None,
    near_duplicate: float | None = None,
) -> Overlap:
    """Find the clips in one table that are known from another table.

    Parameters
    ----------
    clips, others : DataFrame
        Clips tables of manifests.
    rows_ND, other_rows_MD : array, shapes (N, D) and (M, D), optional
        Their unit embeddings from one checkpoint, in the order of the tables.
    near_duplicate : float in [-1, 1], optional
        Similarity at or above which two clips count as the same sound. Without it, or without rows, the check is
        skipped.

    Notes
    -----
    A clip with the same samples as a clip that shares a recording is matched, too, whatever its own recording id is.
    """
    own, foreign = names_of(clips), names_of(others, asked_as).drop_duplicates(["reason", "key"])
    matches = own.merge(
        foreign.rename(columns={"clip_id": "other_clip_id", "name": "other_name"}), on=["reason", "key"]
    )
    matches["other_place"] = (matches.reason == "recording") & (matches.name != matches.other_name)
    matches = matches.drop(columns=["key", "other_name"])
    if place_differs(own.name[own.reason == "recording"], foreign.name[foreign.reason == "recording"]):
        log.warning(
            "one side names the origin of its recordings (freesound:100032) and the other does not (100032): they are "
            "compared without it; write both the same way"
        )
    by_recording = matches[matches.reason == "recording"]
    twins = with_twins(set(by_recording.clip_id), clips) - set(by_recording.clip_id)
    matches = pd.concat([matches, *_as_their_twins(twins, clips, by_recording)], ignore_index=True)
    nearest_N, threshold = None, None
    if near_duplicate is not None and rows_ND is not None and other_rows_MD is not None:
        threshold = near_duplicate
        if len(rows_ND) and len(other_rows_MD):
            from clapcur.methods.similarity import top_k  # an ingest needs only names, not torch

            similarity_N1, index_N1 = top_k(rows_ND, other_rows_MD, 1)
            nearest_N, near = similarity_N1[:, 0], similarity_N1[:, 0] >= near_duplicate
            found = {
                "clip_id": clips.clip_id.to_numpy()[near],
                "other_clip_id": others.clip_id.to_numpy()[index_N1[near, 0]],
                "reason": "near_duplicate",
                "name": [f"{value:.4f}" for value in nearest_N[near]],
            }
            matches = pd.concat([matches, pd.DataFrame(found, dtype="str")], ignore_index=True)
    matches["other_place"] = matches.other_place.astype("boolean").fillna(False).astype(bool)
    matches = matches.sort_values(["clip_id", "reason", "other_place", "other_clip_id", "name"])
    first = matches.drop_duplicates(["clip_id", "reason"], ignore_index=True)
    checked = REASONS if threshold is not None else REASONS[:2]
    columns = ["clip_id", "other_clip_id", "reason", "name", "other_place"]
    return Overlap(first[columns], checked, threshold, nearest_N)


def _as_their_twins(twins: Set[str], clips: pd.DataFrame, matches: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the matches of `twins`, copied from the clips with the same samples."""
    if twins:
        sound = dict(zip(clips.clip_id, clips.pcm_sha256, strict=True))
        matched = matches.assign(sound=matches.clip_id.map(sound)).drop_duplicates("sound")
        of_twins = pd.DataFrame({"clip_id": sorted(twins)})
        of_twins["sound"] = of_twins.clip_id.map(sound)
        yield of_twins.merge(matched.drop(columns="clip_id"), on="sound").drop(columns="sound")


# --- near duplicates -------------------------------------------------------------------------------------------------

NearDuplicate = float | Literal["calibrated"] | None
# audio similarity at or above which two clips count as the same sound; "calibrated": found from clips that are known
# to differ; None: the check is skipped


def check_near_duplicate(value: NearDuplicate) -> None:
    """Reject values that are not similarities; values up to 2, which no similarity reaches, mean never."""
    if isinstance(value, (int, float)) and not -1 <= value <= 2:
        raise ValueError(f"near_duplicate must be a cosine in [-1, 1], 'calibrated' or null, got {value:g}")


def near_duplicate_threshold(
    value: NearDuplicate, clips: pd.DataFrame, rows_ND: NDArray[np.float32]
) -> tuple[float | None, NDArray[np.float32] | None]:
    """Return the threshold for a setting, and the similarities from which it was calibrated, if it was.

    Parameters
    ----------
    value : NearDuplicate
    clips : DataFrame
        Clips; those with different recording ids are known to differ.
    rows_ND : array, shape (N, D)
        Their unit embeddings, in the order of the table.
    """
    if value != "calibrated":
        return value, None
    chosen, recordings = known_to_differ(clips)
    similarity_N = nearest_different(rows_ND[chosen], recordings)
    return calibrated_threshold(similarity_N), similarity_N


def known_to_differ(clips: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Return the row numbers of up to `MOST_DIFFERENT` distinct sounds of known recordings, and these recordings."""
    recordings = np.array([without_place(name) for name in recording_ids(clips)], str)
    is_known = (recordings != "") & ~clips.pcm_sha256.duplicated().to_numpy()
    chosen = np.flatnonzero(is_known)[:MOST_DIFFERENT]  # clip ids are hashes: the first ones are a random sample
    return chosen, recordings[chosen]


def nearest_different(
    rows_ND: NDArray[np.float32], groups_N: NDArray[np.str_], block: int = 1024
) -> NDArray[np.float32]:
    """Return the similarity of each clip to the nearest clip of another group, shape (N,).

    Parameters
    ----------
    rows_ND : array, shape (N, D)
        Unit rows.
    groups_N : array, shape (N,)
        The recording of each clip, or its sound if that is unknown: clips in a group may sound the same.
    """
    _, group_N = np.unique(groups_N, return_inverse=True)
    if len(np.unique(group_N)) < 2:
        return np.empty(0, np.float32)
    found = []
    for start in range(0, len(rows_ND), block):
        similarity = rows_ND[start : start + block] @ rows_ND.T
        similarity[group_N[start : start + block, None] == group_N[None, :]] = -1
        found.append(similarity.max(axis=1))
    return np.concatenate(found).astype(np.float32)


def calibrated_threshold(similarity_N: NDArray[np.float32], false_alarms: float = 0.001) -> float:
    """Return the threshold that similarities of clips that are known to differ hardly ever reach.

    Parameters
    ----------
    similarity_N : array, shape (N,)
        Similarity of each clip to the nearest clip that is known to differ (`nearest_different`).
    false_alarms : float in [0, 1)
        Share of the clips that may reach the threshold.

    Raises
    ------
    EmptySetError
        There are fewer than `LEAST_DIFFERENT` clips.
    """
    if not 0 <= false_alarms < 1:
        raise ValueError(f"false_alarms must be a fraction in [0, 1), got {false_alarms:g}; a percentage?")
    if len(similarity_N) < LEAST_DIFFERENT:
        raise EmptySetError(
            f"a threshold for near duplicates needs {LEAST_DIFFERENT} clips that are known to differ (from several "
            f"recordings), got {len(similarity_N)}; give near_duplicate as a similarity"
        )
    falling = np.sort(similarity_N)[::-1]
    first_that_must_pass = falling[int(false_alarms * len(falling))]
    return float(min(np.nextafter(first_that_must_pass, np.float32(2)), np.float32(1)))


# --- what a checkpoint learned from ----------------------------------------------------------------------------------


@dataclass
class LearnedFrom:
    """Every clip that a checkpoint learned from, including those of its teacher and its ancestors."""

    clips: pd.DataFrame
    # clip_id, pcm_sha256, recording_id
    unknown: list[str] = field(default_factory=list)
    # checkpoints without a record of their training, and lost artifacts
    sets: list[Artifact] = field(default_factory=list)
    # the Improvement-Sets that it learned from


def ancestors(store: Store, checkpoint: Artifact) -> dict[str, Artifact]:
    """Return the artifacts that `learned_from` and `near_duplicates_by` read, by role ``ancestor.ID``, if not lost."""
    found: dict[str, Artifact] = {}
    waiting = [checkpoint]
    while waiting:
        artifact = waiting.pop()
        inputs = artifact.record.inputs
        for name in (inputs[role] for role in READ_OF.get(artifact.kind, ()) if role in inputs):
            if name not in found:
                try:
                    found[name] = store.find(name)
                except ArtifactError:
                    continue
                waiting.append(found[name])
    return {f"{ANCESTOR}{name}": artifact for name, artifact in sorted(found.items())}


def learned_from(checkpoint: Artifact, known: Mapping[str, Artifact]) -> LearnedFrom:
    """Return the clips that a checkpoint learned from, according to its record and those of its ancestors.

    Clips of held-out pairs count, too: they were used to select the weights. Of a pool, only the clips in the
    Improvement-Set count.

    Parameters
    ----------
    checkpoint : Artifact
    known : mapping of str to Artifact
        Its ancestors by id, as `ancestors` finds them; missing ones are reported as unknown.
    """
    seen, waiting = set(), [checkpoint.id]
    known = {**known, checkpoint.id: checkpoint}
    learned = LearnedFrom(pd.DataFrame(columns=IDENTITY, dtype="str"))
    tables: dict[str, pd.DataFrame] = {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in known:
            learned.unknown.append(f"checkpoint {name}")
            continue
        inputs: Mapping[str, str] = known[name].record.inputs
        if not any(role in inputs for role in (*LEARNED_FROM, *PASSED_ON)):
            learned.unknown.append(f"checkpoint {name}")  # imported: what it was trained on is not recorded
        waiting += [inputs[role] for role in PASSED_ON if role in inputs]
        for role in LEARNED_FROM:
            if role in inputs and inputs[role] not in tables:
                try:
                    made = known[inputs[role]]
                    tables[made.id] = _clips_of(made, known)
                except (KeyError, FileNotFoundError):
                    learned.unknown.append(f"{role} {inputs[role]}")
                else:
                    learned.sets += [made] if made.kind == "improvement_set" else []
    learned.clips = pd.concat([learned.clips, *tables.values()]).drop_duplicates(ignore_index=True)
    learned.unknown = sorted(set(learned.unknown))
    return learned


def known_to(
    checkpoint: Artifact, known: Mapping[str, Artifact], evaluation_id: str, clips: pd.DataFrame
) -> tuple[Contamination, dict[str, str]]:
    """Return which evaluation clips a checkpoint has learned from.

    Parameters
    ----------
    checkpoint : Artifact
    known : mapping of str to Artifact
        Its ancestors by id, as `ancestors` finds them.
    evaluation_id : str
        Id of the evaluation manifest: sets that were curated against it know their near duplicates.
    clips : DataFrame
        Clips table of a manifest.

    Returns
    -------
    Contamination
    dict of str to str
        The first reason for each known clip.
    """
    learned = learned_from(checkpoint, known)
    found = overlap(clips, learned.clips)
    for near in near_duplicates_by(learned.sets, known, evaluation_id, clips):
        found = found.with_near_duplicates(near)
    reasons = found.reason_of()
    status = "contaminated" if reasons else "unknown" if learned.unknown else "clean"
    return Contamination(status=status, **found.as_json(), unknown=learned.unknown), reasons


def couples_trained_on(checkpoint: Artifact, known: Mapping[str, Artifact]) -> set[tuple[str, str]] | None:
    """Return the couples of classes whose order a checkpoint, or one that it started from, was trained on.

    None if none of them was trained on compositions. `known` are its ancestors by id, as `ancestors` finds them.
    """
    found: set[tuple[str, str]] | None = None
    name: str | None = checkpoint.id
    known = {**known, checkpoint.id: checkpoint}
    while name in known:
        inputs = known[name].record.inputs
        if (composed := known.get(inputs.get("compositions", ""))) is not None:
            trained = Compositions.open(composed).of_split("train")
            found = (found or set()) | set(zip(trained.class_a, trained.class_b, strict=True))
        name = inputs.get("init")
    return found


def near_duplicates_by(
    sets: Iterable[Artifact], known: Mapping[str, Artifact], evaluation_id: str, clips: pd.DataFrame
) -> Iterator[Overlap]:
    """Yield the near duplicates of teacher clips among evaluation clips, for sets that were curated against these.

    The inputs of such a set include the teacher's embeddings of both, and its config has the threshold.

    Parameters
    ----------
    sets : iterable of Artifact
        Improvement-Sets.
    known : mapping of str to Artifact
        Ancestors by id, as `ancestors` finds them; a set whose inputs are not among them is skipped.
    evaluation_id : str
        Id of the evaluation manifest.
    clips : DataFrame
        Clips table of the evaluation.
    """
    for made in sets:
        inputs, value = made.record.inputs, made.record.config.get("near_duplicate")
        roles = ("teacher_pairs", "teacher_clip_embeddings", "evaluation_embeddings")
        if value is None or inputs.get("evaluation") != evaluation_id or not set(roles) <= set(inputs):
            continue
        try:
            pairs, own, foreign = (known[inputs[role]] for role in roles)
            heard = pd.read_parquet(pairs.path / "clips.parquet", columns=IDENTITY)
            rows_ND = EmbeddingTable.open(own).select(heard.clip_id.tolist())
            rows_MD = EmbeddingTable.open(foreign).select(clips.clip_id.tolist())
        except (KeyError, FileNotFoundError):  # deleted since: `Overlap.checked` shows what was checked
            continue
        threshold, _ = near_duplicate_threshold(value, heard, rows_ND)
        yield overlap(clips, heard, rows_MD, rows_ND, threshold)


def _clips_of(made: Artifact, known: Mapping[str, Artifact]) -> pd.DataFrame:
    """Return the clips of a manifest, or those that are in an Improvement-Set or in compositions."""
    if made.kind == "manifest":
        return pd.read_parquet(made.path / "clips.parquet", columns=IDENTITY)
    is_composed = made.kind == "compositions"
    table = Compositions.open(made).sources if is_composed else ImprovementSet.open(made).pairs(["clip_id"])
    chosen = set(table.clip_id)
    inputs = made.record.inputs
    manifests = [known[inputs[role]] for role in ("clips", "pool", "teacher_pairs") if role in inputs]
    clips = pd.concat([_clips_of(manifest, known) for manifest in manifests]).drop_duplicates("clip_id")
    return clips[clips.clip_id.isin(chosen)]
