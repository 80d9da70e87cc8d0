"""Manifests: clips, captions and pairs as Parquet tables.

- ``clips``: clip_id (SHA-256 of the file's bytes), pcm_sha256 (of the decoded samples: identifies the same sound in
  another container), duration_s, sample_rate (Hz), num_channels, bytes; optional recording_id (the source recording
  that the clip was cut from), label and fold.
- ``captions``: caption_id (SHA-256 of the normalised text), caption.
- ``pairs``: clip_id, caption_id.

Any table may be empty. Rows are sorted by id, so that the same content gives the same bytes, whatever the order of the
input. The location of a clip on this machine (``locations``: a path, a URL, a part of a container) is not part of its
identity: a file that moves keeps its id.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from clapcur.errors import ManifestError
from clapcur.store.artifacts import LOCATIONS, Artifact, write_atomic

CLIPS = pa.schema(
    {
        "clip_id": pa.string(), "pcm_sha256": pa.string(), "duration_s": pa.float64(), "sample_rate": pa.int64(),
        "num_channels": pa.int64(), "bytes": pa.int64(), "recording_id": pa.string(), "label": pa.string(),
        "fold": pa.string(),
    }
)  # fmt: skip
CAPTIONS = pa.schema({"caption_id": pa.string(), "caption": pa.string()})
PAIRS = pa.schema({"clip_id": pa.string(), "caption_id": pa.string()})
QUARANTINE = pa.schema({"path": pa.string(), "reason": pa.string(), "detail": pa.string()})
PLACES = pa.schema({"clip_id": pa.string(), "path": pa.string()})
ROW_GROUP = 2**16  # rows; small enough that looking up one clip among millions of pairs reads little


def normalise_caption(text: str) -> str:
    """Return `text` in Unicode NFC with each run of white space as one space, so that equal captions are equal bytes.

    NUL, which databases and command lines do not accept, is removed.
    """
    return " ".join(unicodedata.normalize("NFC", text).replace("\0", "").split())


def caption_id(text: str) -> str:
    """Return the id of a caption: the SHA-256 of its normalised text."""
    return hashlib.sha256(normalise_caption(text).encode()).hexdigest()


def captions_table(texts: Iterable[str]) -> pd.DataFrame:
    """Return the captions table of some texts: normalised, without duplicates, sorted by id."""
    unique = sorted({normalise_caption(text) for text in texts})
    table = pd.DataFrame({"caption_id": [caption_id(text) for text in unique], "caption": unique}, dtype="str")
    return table.sort_values("caption_id", ignore_index=True)


@dataclass(frozen=True)
class Manifest:
    """The tables of one manifest, checked: ids are unique, and pairs refer to existing clips and captions."""

    clips: pd.DataFrame
    captions: pd.DataFrame
    pairs: pd.DataFrame
    locations: pd.DataFrame  # clip_id, path

    @classmethod
    def open(cls, artifact: Artifact) -> "Manifest":
        """Read the manifest of a finished artifact.

        Raises
        ------
        ManifestError
            The artifact is of another kind, or its tables contradict each other.
        """
        if artifact.kind != "manifest":
            raise ManifestError(f"expected a manifest, got the {artifact.kind} {artifact.id}")
        read = {name: pd.read_parquet(artifact.path / f"{name}.parquet") for name in ("clips", "captions", "pairs")}
        return cls(**read, locations=read_locations(artifact.path))

    def __post_init__(self) -> None:
        """Reject tables that contradict each other."""
        for name, table, columns in (
            ("clips", self.clips, CLIPS.names),
            ("captions", self.captions, CAPTIONS.names),
            ("pairs", self.pairs, PAIRS.names),
        ):
            if list(table.columns) != columns:
                raise ManifestError(f"table {name!r} must have the columns {columns}, got {list(table.columns)}")
        for table, column in ((self.clips, "clip_id"), (self.captions, "caption_id")):
            if not table[column].is_unique:
                raise ManifestError(
                    f"{column} must be unique, but {table[column].duplicated().sum()} rows repeat a value"
                )
        for table, column in ((self.clips, "clip_id"), (self.captions, "caption_id")):
            if unknown := set(self.pairs[column]) - set(table[column]):
                raise ManifestError(f"{len(unknown)} pairs name a {column} that is not in the manifest: {min(unknown)}")

    def write(self, folder: Path) -> None:
        """Write the tables as the payload of an artifact, and the locations of the clips beside it."""
        for name, table, schema in (
            ("clips.parquet", self.clips, CLIPS),
            ("captions.parquet", self.captions, CAPTIONS),
            ("pairs.parquet", self.pairs, PAIRS),
        ):
            write_table(table, schema, folder / name)
        write_locations(self.locations, folder)

    @property
    def paths(self) -> dict[str, str]:
        """The location of each clip on this machine: clip_id -> address (`clapcur.audio.addresses`)."""
        return dict(zip(self.locations.clip_id, self.locations.path, strict=True))

    @property
    def groups(self) -> dict[str, str]:
        """The group of each clip, which must not be split: clip_id -> recording_id, or the clip_id if it has none."""
        recording = self.clips.recording_id.where(self.clips.recording_id != "", self.clips.clip_id)
        return dict(zip(self.clips.clip_id, recording, strict=True))

    def held_out(self, fraction: float) -> set[str]:
        """Return the clips that are excluded from all training and used for selection and calibration.

        The choice depends only on a hash of the source recording: all clips of a recording are on the same side, for
        the teacher and for every student, whatever else is in the manifest.

        Parameters
        ----------
        fraction : float in [0, 1)
            Expected share of the recordings.
        """
        if not 0 <= fraction < 1:
            raise ValueError(f"the held-out fraction must be in [0, 1), got {fraction}")
        return {clip for clip, group in self.groups.items() if _uniform("held-out", group) < fraction}

    def sample(self, share: float) -> "Manifest":
        """Return a share of the source recordings, with their captions and all captions that have no clip.

        The choice depends on a hash of the recording, independent of that of `held_out`. A smaller share is a subset of
        a larger one.
        """
        kept = {clip for clip, group in self.groups.items() if _uniform("share", group) < share}
        pairs = self.pairs[self.pairs.clip_id.isin(kept)].reset_index(drop=True)
        lost = set(self.pairs.caption_id) - set(pairs.caption_id)
        return Manifest(
            clips=self.clips[self.clips.clip_id.isin(kept)].reset_index(drop=True),
            captions=self.captions[~self.captions.caption_id.isin(lost)].reset_index(drop=True),
            pairs=pairs,
            locations=self.locations[self.locations.clip_id.isin(kept)].reset_index(drop=True),
        )


def union(manifests: Sequence[Manifest]) -> Manifest:
    """Return all clips, captions and pairs; if a clip is in several manifests, its first description is used."""

    def joined(name: str, *columns: str) -> pd.DataFrame:
        tables = pd.concat([getattr(manifest, name) for manifest in manifests])
        return tables.drop_duplicates(list(columns)).sort_values(list(columns), ignore_index=True)

    return Manifest(
        clips=joined("clips", "clip_id"),
        captions=joined("captions", "caption_id"),
        pairs=joined("pairs", "clip_id", "caption_id"),
        locations=joined("locations", "clip_id"),
    )


def read_locations(folder: Path) -> pd.DataFrame:
    """Return the locations of the clips of the manifest in `folder`.

    The record has no digest of this table, because locations may change; the table's own checksums reveal damage.

    Raises
    ------
    ManifestError
        The table is missing or damaged.
    """
    path = folder / LOCATIONS
    try:
        found = parquet.read_table(path, schema=PLACES, page_checksum_verification=True).to_pandas()
        why = "a location is missing" if found.isna().to_numpy().any() else ""
    except (OSError, ValueError, pa.ArrowException) as error:
        why = " ".join(str(error).split()) or type(error).__name__
    if why:
        raise ManifestError(
            f"cannot read {path}, the locations of the clips of manifest {folder.name}: {why:.200}; ingest or merge "
            "the "
            "same sources again to rewrite it"
        )
    return found


def write_locations(places: pd.DataFrame, folder: Path) -> bool:
    """Write the locations of the clips of the manifest in `folder`; return whether they changed."""
    try:
        if read_locations(folder).equals(places):
            return False
    except ManifestError:  # missing or damaged
        pass
    write_table(places, PLACES, folder / LOCATIONS, checksums=True)
    return True


def write_table(table: pd.DataFrame, schema: pa.Schema, path: Path, checksums: bool = False) -> None:
    """Write a table without pandas' metadata, so that the same content gives the same bytes.

    Parameters
    ----------
    table : DataFrame
    schema : pyarrow.Schema
    path : Path
    checksums : bool
        Whether to write page checksums, by which damage is detected when the table is read.
    """
    content = BytesIO()
    plain = pa.Table.from_pandas(table, schema=schema, preserve_index=False).replace_schema_metadata(None)
    parquet.write_table(plain, content, row_group_size=ROW_GROUP, compression="zstd", write_page_checksum=checksums)
    write_atomic(path, content.getvalue())


def _uniform(purpose: str, text: str) -> float:
    """Map a text to a pseudo-random number, uniform in [0, 1), that depends only on the text and the purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{text}".encode()).digest()[:8]) / 2**64
