"""Pool: an earlier version of a growing collection of audio, and a landing -> the next version.

New audio is ingested like any other and then added to the pool. A version names its parent, so earlier embeddings and
curations can be found and reused. A clip that was taken down is removed in the next version.

Payload: that of a manifest (see `clapcur.data.manifest`). The location of a clip is taken from the newest input that
has it.
"""

import re
from collections.abc import Mapping

import pandas as pd

from clapcur.config import frozen
from clapcur.data.manifest import Manifest
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.record import Outcome

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


@frozen
class PoolConfig:
    """Which version of which pool."""

    name: str
    """Name of the pool."""
    version: int
    """Version number; 1 is the first."""
    forgotten: tuple[str, ...] = ()
    """Ids of clips that were taken down and are left out of this version."""

    def __post_init__(self) -> None:
        """Reject a name that is not valid in a path, and a version below 1."""
        check_pool_name(self.name)
        if self.version < 1:
            raise ValueError(f"version must be at least 1, got {self.version}")


def check_pool_name(name: str) -> str:
    """Return the name of a pool unchanged; raise ValueError if it is not valid."""
    if not NAME.fullmatch(name):
        raise ValueError(f"a pool name must be up to 40 letters, digits and _ . -, such as field-2026; got {name!r}")
    return name


def grow(inputs: Mapping[str, Artifact], config: PoolConfig, work: Workspace) -> Outcome:
    """Write the next version.

    Inputs by role, at least one: ``parent``, the previous version; ``landing``, the manifest of new audio. Clips of the
    landing that the parent has already, with the same id or as the same samples in another container, are skipped.
    """
    given = [Manifest.open(inputs[role]) for role in ("parent", "landing") if role in inputs]
    known_sounds = set(given[0].clips.pcm_sha256) if "parent" in inputs else set()
    clips = given[0].clips
    counts = {"known": 0, "same_sound": 0}
    if len(given) == 2:
        landed = given[1].clips
        is_known = landed.clip_id.isin(clips.clip_id)
        is_same_sound = landed.pcm_sha256.isin(known_sounds) & ~is_known
        counts = {"known": int(is_known.sum()), "same_sound": int(is_same_sound.sum())}
        clips = pd.concat([clips, landed[~is_known & ~is_same_sound]])
    before = set(given[0].clips.clip_id) if "parent" in inputs else set()
    clips = clips[~clips.clip_id.isin(config.forgotten)].sort_values("clip_id", ignore_index=True)
    pairs = _union([one.pairs for one in given], ["clip_id", "caption_id"])
    places = pd.concat([one.locations for one in reversed(given)]).drop_duplicates("clip_id")
    Manifest(
        clips=clips,
        captions=_union([one.captions for one in given], ["caption_id"]),
        pairs=pairs[pairs.clip_id.isin(clips.clip_id)].reset_index(drop=True),
        locations=places[places.clip_id.isin(clips.clip_id)].sort_values("clip_id", ignore_index=True),
    ).write(work.path)
    now = set(clips.clip_id)
    return Outcome(counts={"clips": len(now), "added": len(now - before), "forgotten": len(before - now), **counts})


def _union(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(tables).drop_duplicates(columns).sort_values(columns, ignore_index=True)


STAGE = Stage("pool", "1", "manifest", grow)
