"""A take-down: remove clips from every pool, list what they influenced, and rebuild what is in use without them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow

from clapcur.data.manifest import Manifest
from clapcur.data.recordings import asked_as, recording_id
from clapcur.errors import ArtifactError, DataError
from clapcur.experiments.config import Experiment
from clapcur.flows.recurate import recurate
from clapcur.lineage import pools
from clapcur.lineage.queries import clips_named, clips_of_recording, impact
from clapcur.stages.tombstone import Tombstone
from clapcur.store.home import Home
from clapcur.tasks.pool import grow
from clapcur.tasks.tombstone import bury

log = logging.getLogger("clapcur")


@flow(name="forget", flow_run_name="forget")
def forget(clips: Sequence[str], reason: str = "", experiments: Sequence[Experiment] = ()) -> list[dict[str, Any]]:
    """Take clips down.

    Parameters
    ----------
    clips : sequence of str
        Clip ids, first digits of one (at least 6), paths of audio files, or recording ids. A recording id takes down
        every clip of the recording, including clips that are cut from it later.
    reason : str
        Reason, stored in the record.
    experiments : sequence of Experiment
        Experiments whose students are in use; those that a clip influenced are curated and trained again.

    Returns
    -------
    list of dict
        The result of `clapcur.lineage.queries.impact` for each clip, and for every clip with the same sound:
        everything that it influenced before it was taken down.

    Raises
    ------
    ArtifactError
        A name is ambiguous.
    DataError
        A name refers to no known clip.
    """
    home = Home.open()
    touched: dict[str, dict[str, Any]] = {}
    stones = []
    for name in clips:
        recording = recording_of(home, name)
        told = [impact(home, clip) for clip in (clips_of_recording(home, recording) if recording else [name])]
        sounds = {one["clip_id"]: sound_of(home, one) for one in told}
        names = {*sounds, *filter(None, sounds.values()), *(asked_as(recording) if recording else ())}
        told += [impact(home, clip) for clip in clips_named(home, names) if clip not in sounds]
        stones += [
            Tombstone(clip_id=clip, pcm_sha256=sound, recording_id=recording, reason=reason)
            for clip, sound in sounds.items()
        ]
        touched |= {one["clip_id"]: one for one in told}
    for stone in stones:  # only after every name was resolved
        bury(stone)
    for name in pools.names(home):
        if touched.keys() & set(Manifest.open(pools.head(home, name)).clips.clip_id):
            grow(name)
    for experiment in experiments:
        recurate(experiment)
    return list(touched.values())


def recording_of(home: Home, name: str) -> str:
    """Return the id of the recording that a name refers to; empty if it refers to a clip.

    Raises
    ------
    ArtifactError
        The name could refer to either.
    """
    if Path(name).is_file() or not clips_of_recording(home, name):
        return ""
    try:
        clip = impact(home, name)["clip_id"]
    except (ArtifactError, DataError):
        return recording_id(name)
    raise ArtifactError(
        f"{name!r} is both a recording and the start of the clip id {clip[:16]}; give the recording with its origin, "
        "such as freesound:100032, or more digits of the clip id"
    )


def sound_of(home: Home, told: dict[str, Any]) -> str:
    """Return the hash of a clip's samples, from a manifest that lists it; empty if no such manifest can be read.

    Raises
    ------
    DataError
        No manifest and no Improvement-Set has the clip.
    """
    for entry in told["manifests"]:
        try:
            clips = Manifest.open(home.store.find(entry["id"])).clips
        except (ArtifactError, OSError) as error:
            log.warning("cannot read the samples of the clip %s from %s: %s", told["clip_id"], entry["id"], error)
            continue
        return str(clips[clips.clip_id == told["clip_id"]].pcm_sha256.iloc[0])
    if told["manifests"] or told["improvement_sets"]:
        return ""
    raise DataError(f"the clip {told['clip_id']} is in no manifest of {home.root}")
