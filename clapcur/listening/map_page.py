"""The map of an Improvement-Set: the clips that it was chosen from, in the space of the model that chose them.

One self-contained HTML file that needs no server: every clip is a point that can be played, in the plane of the first
two principal components of all clips. The prompts of the classes are shown too. Clips and prompts are each centred on
their own mean, because sounds and texts lie apart in the space of a CLAP model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from clapcur.data.embeddings import EmbeddingTable
from clapcur.data.improvement_set import ImprovementSet
from clapcur.data.manifest import Manifest
from clapcur.errors import ArtifactError
from clapcur.methods.embedding_map import Plane, principal_plane, stratified_sample
from clapcur.pages import render
from clapcur.stages.audition import AuditionConfig, audition_inputs, embed_sounds, silent_clip
from clapcur.store.artifacts import Artifact, Store

NOT_CHOSEN = ""  # class of a clip without a pair
SOURCES = ("pool", "teacher_pairs")  # roles of the manifests that list the clips
MARKUP = 300  # bytes reserved for the markup around each sound
GOLDEN_ANGLE = 137.508  # degrees between the hues of one class and the next; neighbours are far apart


@dataclass(frozen=True)
class SetMap:
    """A map before it is drawn.

    Attributes
    ----------
    points : DataFrame
        One row per clip on the map: clip_id, x, y, class (empty: not chosen), similarity and caption of its best pair,
        num_pairs, nearest (the class whose prompt is nearest).
    prompts : DataFrame
        One row per class: class, x, y.
    plane : Plane
    num_clips : int
        Clips that the set was chosen from.
    num_chosen : int
        Clips of these that have a pair.
    """

    points: pd.DataFrame
    prompts: pd.DataFrame
    plane: Plane
    num_clips: int
    num_chosen: int


def map_of(store: Store, improvement_set: Artifact, num_clips: int, seed: int) -> SetMap:
    """Return the map of a set.

    Parameters
    ----------
    store : Store
    improvement_set : Artifact
    num_clips : int
        Maximum number of clips on the map; a stratified sample by class if there are more.
    seed : int
        Seed of the sample.

    Raises
    ------
    ArtifactError
        The artifact is not an Improvement-Set, or its embeddings are not in the store.
    ValueError
        There are fewer than two clips, or all of them have the same embedding.
    """
    inputs = audition_inputs(store, improvement_set)
    record = improvement_set.record
    role = "teacher_clip_embeddings" if record.config["strategy"] == "ds" else "pool_embeddings"
    for name in (role, "prompt_embeddings"):
        if name not in record.inputs:
            raise ArtifactError(f"{improvement_set.id} was made without {name.replace('_', ' ')}; it has no map")
    clips, prompts = (EmbeddingTable.open(store.find(record.inputs[name])) for name in (role, "prompt_embeddings"))
    chosen = _best_pairs(ImprovementSet.open(improvement_set), inputs)
    best = chosen.reindex(clips.ids)
    class_N = best["class"].fillna(NOT_CHOSEN).to_numpy(object)
    plane = principal_plane(clips.rows_ND)
    shown = stratified_sample(class_N, num_clips, seed)
    rows_SD = clips.rows_ND[shown]
    names = np.array(record.config["class_names"], object)
    xy_S2 = plane.place(rows_SD)
    points = best.iloc[shown].reset_index(names="clip_id")
    points = points.assign(
        x=xy_S2[:, 0], y=xy_S2[:, 1], nearest=names[(rows_SD @ prompts.rows_ND.T).argmax(axis=1)],
        **{"class": class_N[shown]}, num_pairs=points.num_pairs.fillna(0).astype(int),
        caption=points.caption.fillna(""),
    )  # fmt: skip
    xy_K2 = plane.place(prompts.rows_ND, prompts.rows_ND.mean(axis=0, dtype=np.float64))
    places = pd.DataFrame({"class": names, "x": xy_K2[:, 0], "y": xy_K2[:, 1]})
    return SetMap(points, places, plane, len(clips.ids), int((class_N != NOT_CHOSEN).sum()))


def _best_pairs(source: ImprovementSet, inputs: Mapping[str, Artifact]) -> pd.DataFrame:
    """Return class, similarity and caption of the most similar pair of each clip, and its number of pairs, by clip."""
    pairs = source.pairs(["clip_id", "caption_id", "similarity", "class"])
    pairs = pairs.sort_values(["clip_id", "similarity", "caption_id"], ascending=[True, False, True])
    number = pairs.groupby("clip_id").size()
    best = pairs.drop_duplicates("clip_id").set_index("clip_id")
    wanted, texts = set(best.caption_id), dict[str, str]()
    for role, artifact in inputs.items():
        if role != "improvement_set":
            table = Manifest.open(artifact).captions
            table = table[table.caption_id.isin(wanted)]
            texts |= dict(zip(table.caption_id, table.caption, strict=True))
    return best.assign(caption=best.caption_id.map(texts), num_pairs=number)[
        ["class", "similarity", "caption", "num_pairs"]
    ]


def as_html(
    store: Store, improvement_set: Artifact, num_clips: int = 1000, seed: int = 0, config: AuditionConfig | None = None
) -> str:
    """Return the page as HTML; audio is included as long as the page stays within ``config.max_bytes``.

    Parameters
    ----------
    store : Store
    improvement_set : Artifact
    num_clips, seed
        See `map_of`.
    config : AuditionConfig, optional
        Sample rate and maximum length of an excerpt, and the maximum size of the page.

    Raises
    ------
    ArtifactError, ValueError
        See `map_of`; or even without audio, the clips exceed the size limit of the page.
    """
    config = config or AuditionConfig()
    found = map_of(store, improvement_set, num_clips, seed)
    manifests = [Manifest.open(one) for role, one in audition_inputs(store, improvement_set).items() if role in SOURCES]
    sounds = _silent_clips(found.points.clip_id, manifests, config)
    ordered = dict(zip(found.points.clip_id, _points(found), strict=True))

    def page() -> str:
        points = [point | _place(sounds[clip]) for clip, point in ordered.items()]
        return render(
            "map.html",
            set=improvement_set.id,
            strategy=improvement_set.record.config["strategy"].upper(),
            facts=_facts(found),
            explained=found.plane.explained,
            is_sample=len(points) < found.num_clips,
            seed=seed,
            classes=_classes(found),
            points=points,
            prompts=found.prompts.round(5).to_dict("records"),
            similarities=_range(found.points.similarity),
            num_silent=sum("audio" not in entry for entry in sounds.values()),
            sounds={clip: entry["audio"] for clip, entry in sounds.items() if "audio" in entry},
        )

    silent_bytes = len(page().encode())
    room = config.max_bytes - silent_bytes - MARKUP * len(sounds)
    if room < 0:
        raise ValueError(
            f"a map of {len(sounds):,} clips needs {silent_bytes:,} bytes even without audio, and may have "
            f"{config.max_bytes:,}; give a lower --num-clips"
        )
    drawn = np.random.default_rng(seed).permutation(list(sounds)).tolist()  # if not all fit, some of every class do
    mixed = {clip: sounds[clip] for clip in drawn}
    embed_sounds(mixed, room, config, with_images=False)
    sounds.update(mixed)
    return page()


def _silent_clips(clip_ids: pd.Series, manifests: list[Manifest], config: AuditionConfig) -> dict[str, dict[str, str]]:
    table = pd.concat([manifest.clips for manifest in manifests]).drop_duplicates("clip_id").set_index("clip_id")
    paths: dict[str, str] = {}
    for manifest in manifests:
        paths |= manifest.paths
    if unknown := sorted(set(clip_ids) - set(table.index)):
        raise ArtifactError(f"{len(unknown)} embedded clips are in no manifest of the set, such as {unknown[0]}")
    return {
        clip: silent_clip(str(paths[clip]), table.duration_s[clip], table.recording_id[clip], config)
        for clip in clip_ids
    }


def _points(found: SetMap) -> list[dict[str, Any]]:
    """Return the points as the page shows them, with values rounded to what can be seen."""
    code = {name: index for index, name in enumerate(found.prompts["class"])}
    return [
        {
            "clip_id": row["clip_id"], "x": round(row["x"], 5), "y": round(row["y"], 5), "class": row["class"],
            "code": code.get(row["class"], -1), "caption": row["caption"], "num_pairs": row["num_pairs"],
            "nearest": row["nearest"], "similarity": round(row["similarity"], 4) if row["class"] else None,
        }
        for row in found.points.to_dict("records")
    ]  # fmt: skip


def _place(entry: Mapping[str, str]) -> dict[str, str]:
    name = entry["path"].replace("\\", "/").rsplit("/", 1)[-1]
    return {"name": name, "path": entry["path"], "note": entry.get("note", "")}


def _classes(found: SetMap) -> list[dict[str, Any]]:
    """Return the classes of the legend: name, hue in degrees, and number of clips on the map."""
    counts = found.points["class"].value_counts().to_dict()
    return [
        {"name": name, "hue": round(index * GOLDEN_ANGLE % 360), "clips": int(counts.get(name, 0))}
        for index, name in enumerate(found.prompts["class"])
    ]


def _range(similarity: pd.Series) -> tuple[float, float]:
    known = similarity.dropna()
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)


def _facts(found: SetMap) -> dict[str, str]:
    first, second = found.plane.explained
    return {
        "clips": f"{found.num_clips:,}", "chosen": f"{found.num_chosen:,}",
        "on the map": f"{len(found.points):,}", "classes": f"{len(found.prompts):,}",
        "explained variance": f"{100 * first:.1f} % + {100 * second:.1f} %",
    }  # fmt: skip
