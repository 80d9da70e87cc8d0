"""A take-down: the clip leaves every pool, is named wherever it went, and what is in use is made again without it."""

import logging
from collections.abc import Sequence
from typing import Any

from prefect import flow

from clapcur import pools
from clapcur.artifacts import Artifact
from clapcur.errors import DataError
from clapcur.home import Home
from clapcur.manifest import Manifest
from clapcur.recipes import Experiment
from clapcur.tombstone import Tombstone
from clapcur.trace import impact
from flows.recurate import recurate
from tasks.pool import grow
from tasks.tombstone import bury

log = logging.getLogger("clapcur")


@flow(name="forget", flow_run_name="forget")
def forget(clips: Sequence[str], reason: str = "", experiments: Sequence[Experiment] = ()) -> list[dict[str, Any]]:
    """Take clips down.

    Parameters
    ----------
    clips : sequence of str
        Clip ids, starts of one (6 digits) or paths of audio files.
    reason : str
        For the record.
    experiments : sequence of Experiment
        Those whose students are in use: they are curated and trained again where a clip touched them.

    Returns
    -------
    list of dict
        What `clapcur.trace.impact` tells of each clip: all that it touched before it was taken down.
    """
    home = Home.open()
    touched = [impact(home, clip) for clip in clips]
    for told in touched:
        bury(Tombstone(clip_id=told["clip_id"], pcm_sha256=sound_of(home, told), reason=reason))
    gone = {told["clip_id"] for told in touched}
    for name in pools.names(home):
        if gone & set(Manifest.open(pools.head(home, name)).clips.clip_id):
            grow(name)
    for experiment in experiments:
        recurate(experiment)
    return touched


def sound_of(home: Home, told: dict[str, Any]) -> str:
    """Return the hash of a clip's samples, from a manifest that lists it."""
    for entry in told["manifests"]:
        clips = Manifest.open(Artifact("manifest", entry["id"], entry["uri"])).clips
        return str(clips[clips.clip_id == told["clip_id"]].pcm_sha256.iloc[0])
    raise DataError(f"the clip {told['clip_id']} is in no manifest of {home.root}")
