"""Compositions: recipes that combine single sounds into groups of items; no audio is written to disk.

A group has two sounds A and B, of two classes, and five items that combine them:

========= =================== ======================
kind      what is heard       meaning
========= =================== ======================
first     A                   ("single", a, "")
second    B                   ("single", b, "")
forward   A, then B           ("sequence", a, b)
reversed  B, then A           ("sequence", b, a)
overlap   A and B at once     ("overlap", a, b)
========= =================== ======================

A is the sound whose class name sorts first, so that within a kind equal classes give equal meanings. An item is
rendered when it is read, with the same bytes every time, at the sample rate of the model; all items have the same
length and level.

Payload: ``sources.parquet`` (the clips, and which part of each is used; sorted by clip_id), ``groups.parquet``,
``captions.parquet`` (every phrasing of every meaning) and ``card.json`` (length and counts, for people).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from clapcur.audio import WaveformCache
from clapcur.audio.composing import both_at_once, one_after_the_other, one_sound
from clapcur.data.composed_captions import Meaning, phrasings
from clapcur.data.manifest import write_table
from clapcur.errors import ManifestError
from clapcur.store.artifacts import Artifact
from clapcur.store.payloads import Payload

READ_S = 30.0  # seconds read from the start of a clip; ours
Kind = Literal["first", "second", "forward", "reversed", "overlap"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SPLITS = ("train", "held_out")
SOURCES = pa.schema(
    {
        "clip_id": pa.string(), "recording": pa.string(), "class": pa.string(), "start_s": pa.float64(),
        "end_s": pa.float64(), "split": pa.string(), "similarity": pa.float32(),
    }
)  # fmt: skip
GROUPS = pa.schema(
    {
        "group_id": pa.string(), "split": pa.string(), "clip_a": pa.string(), "clip_b": pa.string(),
        "class_a": pa.string(), "class_b": pa.string(), "offset_a": pa.float64(), "offset_b": pa.float64(),
        "is_unseen": pa.bool_(),
    }
)  # fmt: skip
CAPTIONS = pa.schema({name: pa.string() for name in ("caption_id", "caption", "relation", "one", "other", "connector")})
TABLES = {"sources": SOURCES, "groups": GROUPS, "captions": CAPTIONS}


class Group(NamedTuple):
    """Two sounds that are combined; a row of ``groups.parquet``."""

    group_id: str
    split: str
    clip_a: str
    clip_b: str
    class_a: str
    class_b: str
    offset_a: float
    offset_b: float
    is_unseen: bool

    @staticmethod
    def of(groups: pd.DataFrame) -> "list[Group]":
        """Return the rows of a groups table."""
        columns = (groups[name].tolist() for name in Group._fields)
        return [Group(*values) for values in zip(*columns, strict=True)]

    def meaning(self, kind: Kind) -> Meaning:
        """Return the meaning of an item of this group."""
        return meaning_of(self.class_a, self.class_b, kind)


@dataclass(frozen=True, kw_only=True)
class CompositionsCard(Payload):
    """What people want to know about compositions before they train on them."""

    KIND = "compositions"
    FILE = "card.json"

    duration_s: float
    # of every item
    clips: dict[str, int] = field(default_factory=dict)
    # by split and class, such as "train dog"
    recordings: dict[str, int] = field(default_factory=dict)
    # by split; no recording is in both
    couples: list[dict[str, Any]] = field(default_factory=list)
    # split, the two classes, and the number of groups with them
    unseen_couples: list[tuple[str, str]] = field(default_factory=list)
    # pairs of classes that no training group has
    left_out: list[dict[str, str]] = field(default_factory=list)
    # clip_id and reason


@dataclass(frozen=True)
class Compositions:
    """The tables of one set of compositions, checked."""

    duration_s: float
    # of every item
    sources: pd.DataFrame
    # clip_id, recording, class, start_s, end_s (the part that is used), split, similarity (NaN for a labelled clip)
    groups: pd.DataFrame
    # group_id, split, the two clips and classes, their offsets, is_unseen (no training group has these classes)
    captions: pd.DataFrame
    # caption_id, caption, relation, one, other, connector

    @classmethod
    def open(cls, artifact: Artifact) -> "Compositions":
        """Read the compositions of a finished artifact.

        Raises
        ------
        ArtifactError
            The artifact is of another kind, or was written by a newer version.
        DamagedArtifact
            Its card is missing or was changed.
        ManifestError
            Its tables contradict each other.
        """
        card = CompositionsCard.open(artifact)
        tables = {name: pd.read_parquet(artifact.path / f"{name}.parquet") for name in TABLES}
        return cls(card.duration_s, **tables)

    def __post_init__(self) -> None:
        """Reject tables that contradict each other, and recordings that are in both splits."""
        for name, schema in TABLES.items():
            if list(getattr(self, name).columns) != schema.names:
                raise ManifestError(
                    f"table {name!r} must have the columns {schema.names}, got {list(getattr(self, name).columns)}"
                )
        sides = self.sources.groupby("recording").split.nunique()
        if (both := sides[sides > 1]).size:
            raise ManifestError(
                f"{both.size} source recordings are both in training and held out; the first is "
                f"{both.index[0]!r}; split by recording before composing clips"
            )
        split = dict(zip(self.sources.clip_id, self.sources.split, strict=True))
        for column in ("clip_a", "clip_b"):
            wrong = self.groups[self.groups[column].map(split) != self.groups.split]
            if len(wrong):
                raise ManifestError(
                    f"{len(wrong)} groups use a clip that is not a source of their split; the first is "
                    f"{wrong.iloc[0].group_id}: {column} {wrong.iloc[0][column]}"
                )

    def write(self, folder: Path, unseen: Iterable[tuple[str, str]], left_out: Iterable[tuple[str, str]]) -> None:
        """Write the payload of an artifact.

        Parameters
        ----------
        folder : Path
        unseen : iterable of couples of classes
            The couples that no training group has.
        left_out : iterable of (clip_id, reason)
            Clips that could not be used.
        """
        for name, schema in TABLES.items():
            write_table(getattr(self, name), schema, folder / f"{name}.parquet")
        clips = Counter(self.sources.split + " " + self.sources["class"])
        couples = Counter((group.split, group.class_a, group.class_b) for group in Group.of(self.groups))
        CompositionsCard(
            duration_s=self.duration_s,
            clips=dict(sorted(clips.items())),
            recordings={str(split): int(n) for split, n in self.sources.groupby("split").recording.nunique().items()},
            couples=[{"split": s, "classes": [a, b], "groups": n} for (s, a, b), n in sorted(couples.items())],
            unseen_couples=sorted(unseen),
            left_out=[{"clip_id": clip, "reason": reason} for clip, reason in left_out],
        ).write(folder)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the sources, sorted."""
        return tuple(sorted(self.sources["class"].unique()))

    @cached_property
    def caption_ids(self) -> dict[Meaning, list[str]]:
        """The caption ids of each meaning, in the order of the table of connectors."""
        return {meaning: list(said.values()) for meaning, said in self.phrasings.items()}

    @cached_property
    def phrasings(self) -> dict[Meaning, dict[str, str]]:
        """The caption ids of each meaning by connector, in the order of the table of connectors."""
        found: dict[Meaning, dict[str, str]] = defaultdict(dict)
        for caption_id, _, relation, one, other, connector in self.captions.to_numpy(str):
            found[cast(Meaning, (relation, one, other))][connector] = caption_id
        return {
            meaning: {connector: said[connector] for connector in phrasings(meaning) if connector in said}
            for meaning, said in found.items()
        }

    def of_split(self, split: str) -> pd.DataFrame:
        """Return the groups of one split, with row labels from 0."""
        return self.groups[self.groups.split == split].reset_index(drop=True)


def item_id(group_id: str, kind: Kind) -> str:
    """Return the name of an item, from which it can be rendered."""
    return f"{group_id}:{kind}"


def meaning_of(class_a: str, class_b: str, kind: Kind) -> Meaning:
    """Return the meaning of an item of these classes.

    Parameters
    ----------
    class_a, class_b : str
        Classes of the sounds A and B.
    kind : {"first", "second", "forward", "reversed", "overlap"}
    """
    if kind == "overlap":
        return "overlap", class_a, class_b
    if kind in ("forward", "reversed"):
        return ("sequence", class_a, class_b) if kind == "forward" else ("sequence", class_b, class_a)
    return "single", class_a if kind == "first" else class_b, ""


class Renderer:
    """Renders the waveforms of items; can be shared by threads.

    Parameters
    ----------
    compositions : Compositions
    paths : mapping
        clip_id -> address of every source.
    cache : WaveformCache
        Cache of decoded clips.

    Raises
    ------
    ManifestError
        The address of a source is missing.
    """

    def __init__(self, compositions: Compositions, paths: Mapping[str, str], cache: WaveformCache):
        if missing := set(compositions.sources.clip_id) - set(paths):
            raise ManifestError(
                f"{len(missing)} clips of the compositions are in none of the given manifests; the first is "
                f"{min(missing)}; give the manifest that they were composed from"
            )
        self.duration_s, self._paths, self._cache = compositions.duration_s, paths, cache
        sources = compositions.sources
        parts = zip(sources.start_s.tolist(), sources.end_s.tolist(), strict=True)
        self._parts = dict(zip(sources.clip_id, parts, strict=True))
        self._groups = {group.group_id: group for group in Group.of(compositions.groups)}

    def __contains__(self, name: str) -> bool:
        """Return whether this is the name of an item."""
        return name.partition(":")[0] in self._groups

    def render(self, name: str, sample_rate: int) -> NDArray[np.float32]:
        """Return the waveform of an item, `duration_s` long.

        Raises
        ------
        clapcur.audio.UnusableAudio
            The file of a source is missing, or now contains another clip.
        """
        group_id, _, kind = name.partition(":")
        group = self._groups[group_id]
        num_samples = round(self.duration_s * sample_rate)
        if kind in ("first", "second"):
            clip, offset = (group.clip_a, group.offset_a) if kind == "first" else (group.clip_b, group.offset_b)
            return one_sound(self._heard(clip, sample_rate), num_samples, offset, sample_rate)
        clips, offsets = [group.clip_a, group.clip_b], [group.offset_a, group.offset_b]
        if kind == "reversed":
            clips.reverse()
            offsets.reverse()
        join = both_at_once if kind == "overlap" else one_after_the_other
        one, other = (self._heard(clip, sample_rate) for clip in clips)
        return join(one, other, num_samples, (offsets[0], offsets[1]), sample_rate)

    def window(self, name: str, sample_rate: int, num_samples: int) -> NDArray[np.float32]:
        """Return an item as a model's window, padded with silence: repeating it would destroy the order of its sounds.

        Parameters
        ----------
        name : str
            Name of the item, see `item_id`.
        sample_rate : int
            Hz.
        num_samples : int
            Length of the window, at least that of the item.

        Returns
        -------
        NDArray, shape (num_samples,), float32

        Raises
        ------
        clapcur.audio.UnusableAudio
            As `render`.
        """
        waveform = self.render(name, sample_rate)
        assert len(waveform) <= num_samples, f"{name} is longer than the window: who reads it checks that first"
        return np.pad(waveform, (0, num_samples - len(waveform)))

    def _heard(self, clip: str, sample_rate: int) -> NDArray[np.float32]:
        start_s, end_s = self._parts[clip]
        whole = self._cache.crop(self._paths[clip], sample_rate, round(READ_S * sample_rate), 0.0, "pad", clip)
        return whole[round(start_s * sample_rate) : round(end_s * sample_rate)]
