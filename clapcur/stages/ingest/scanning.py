"""Rows and probes -> the tables of a manifest.

Files with equal bytes are one clip, with the captions of all of them. Every unusable row is in the quarantine with a
reason; nothing is dropped without being counted.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa

from clapcur.audio import ClipInfo, ProbeRules, Problem, addresses
from clapcur.data.manifest import CLIPS, PAIRS, PLACES, QUARANTINE, Manifest, caption_id, captions_table
from clapcur.errors import ManifestError, printable
from clapcur.stages.ingest.config import IngestConfig, TextRules
from clapcur.stages.ingest.exclusion import Names, excluded
from clapcur.stages.ingest.general_text import sift
from clapcur.stages.ingest.probes import Answer, ProbeCache, probe_all
from clapcur.stages.ingest.rows import Row
from clapcur.stages.ingest.source import Source, read_source

Quarantined = tuple[str, str, str]  # (path or line, reason, detail)


@dataclass(frozen=True)
class Scan:
    """Everything that an ingest decides, before anything is written."""

    manifest: Manifest
    quarantine: pd.DataFrame
    # columns path (as in the source), reason, detail
    counts: dict[str, int]
    # clips, captions, pairs; rows of the source; quarantined; duplicates: files with the same bytes as another clip;
    # same_sound: clips with the same samples as another clip; excluded: clips named by an exclusion list;
    # forgotten: clips that were taken down
    reasons: dict[str, int]
    # number of rows in the quarantine, by reason
    exclusions: dict[str, dict[str, int]]
    # by exclusion list: entries, hit, clips
    rules: ProbeRules
    source: str


@dataclass
class _Clip:
    """One clip while its rows are gathered."""

    info: ClipInfo
    paths: set[str] = field(default_factory=set)
    # absolute
    written: set[str] = field(default_factory=set)
    # as in the source
    captions: set[str] = field(default_factory=set)
    values: dict[str, set[str]] = field(default_factory=lambda: {"recording_id": set(), "label": set(), "fold": set()})

    def add(self, row: Row, path: str) -> None:
        self.paths.add(path)
        self.written.add(addresses.readable(row.path))
        self.captions.update(row.captions)
        for name, values in self.values.items():
            values.update({getattr(row, name)} - {""})

    @property
    def names(self) -> Names:
        paths = self.paths | {addresses.readable(path) for path in self.paths}
        return Names(self.info.clip_id, self.info.pcm_sha256, paths, self.values["recording_id"])

    def value(self, name: str) -> str:
        """Return the value of a column; if there are several, the first in sorted order."""
        return min(self.values[name], default="")


def scan(
    config: IngestConfig,
    probe_cache: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    forgotten: Set[str] = frozenset(),
) -> Scan:
    """Read a source, probe its files, and decide the content of the manifest.

    Parameters
    ----------
    config : IngestConfig
    probe_cache : Path or None
        SQLite file that caches probes, so that unchanged files are not decoded again and a killed ingest resumes.
    on_progress : callable or None
        Called with (done, total) files whenever the probe cache is on disk.
    forgotten : set of str
        Names of everything that was taken down (`clapcur.data.forgotten`): clips, sounds and recordings that must never
        enter again, in any container.

    Raises
    ------
    ManifestError
        The source or a column is missing, or nothing or too little (see `max_bad_fraction`) of the source is usable.
    """
    if config.text is not None:
        return _scan_text(config, config.text)
    with ProbeCache(probe_cache, config.rules) as memory:
        source = read_source(config, memory.listing)
    paths = sorted({source.locate(row.path) for row in source.rows if row.path}, key=addresses.reading_order)
    answers = probe_all(
        paths, config.rules, num_workers=config.num_workers, cache=probe_cache, stamps=source.stamps,
        on_progress=on_progress,
    )  # fmt: skip
    clips, texts, bad = _gather(source, answers)
    _check(config, source, bad)
    names = [clip.names for clip in clips.values()]
    gone, exclusions = excluded(names, config.exclude, config.columns, source.base)
    taken_down = {clip.clip_id for clip in names if not forgotten.isdisjoint(clip.all_names)}
    gone |= taken_down
    kept = {id: clips[id] for id in sorted(clips) if id not in gone}
    quarantine = sorted({*bad, *_conflicts(kept.values())})
    manifest = _manifest(kept, texts)
    if not len(manifest.clips) and not len(manifest.captions):
        why = f"all its {len(gone)} clips are excluded or forgotten" if gone else _told(bad)
        raise ManifestError(f"{config.source} has no usable clip or caption: {why}")
    counts = {
        "clips": len(kept),
        "captions": len(manifest.captions),
        "pairs": len(manifest.pairs),
        "rows": len(source.rows) + source.num_refused,
        "quarantined": len(quarantine),
        "duplicates": sum(len(clip.paths) - 1 for clip in kept.values()),
        "same_sound": len(kept) - manifest.clips.pcm_sha256.nunique(),
        "excluded": len(gone - taken_down),
        "forgotten": len(taken_down),
        **source.counts,
    }
    return Scan(
        manifest=manifest,
        quarantine=_table(QUARANTINE, quarantine),
        counts=counts,
        reasons=dict(sorted(Counter(reason for _, reason, _ in quarantine).items())),
        exclusions=exclusions,
        rules=config.rules,
        source=config.source,
    )


def _scan_text(config: IngestConfig, rules: TextRules) -> Scan:
    """Return the captions of general text, with counts of rejected sentences and a few examples for each reason."""
    found = sift(Path(config.source), rules)
    manifest = _manifest({}, set(found.kept))
    reasons = {name: number for name, number in sorted(found.counts.items()) if name != "kept"}
    examples = [
        (where, reason, f"{text[:200]} (score {score:.2f})" if score else text[:200])
        for reason, some in sorted(found.examples.items()) if reason != "kept"
        for where, text, score in some
    ]  # fmt: skip
    counts = dict.fromkeys(("clips", "pairs", "duplicates", "same_sound", "excluded", "forgotten"), 0)
    counts |= {
        "captions": len(manifest.captions), "rows": found.counts.total(), "quarantined": sum(reasons.values()),
    }  # fmt: skip
    return Scan(manifest, _table(QUARANTINE, examples), counts, reasons, {}, config.rules, config.source)


def _gather(source: Source, answers: dict[str, Answer]) -> tuple[dict[str, _Clip], set[str], Counter[Quarantined]]:
    """Return the clips by id, the captions without a clip, and the problems with their numbers of rows."""
    clips: dict[str, _Clip] = {}
    texts: set[str] = set()
    bad: Counter[Quarantined] = Counter(source.bad)
    for row in source.rows:
        problem = row.problem
        if row.path:
            path = source.locate(row.path)
            answer = answers[path]
            if isinstance(answer, Problem):
                problem = answer
            else:
                clips.setdefault(answer.clip_id, _Clip(answer)).add(row, path)
        else:
            texts.update(row.captions)
        if problem is not None:
            bad[addresses.readable(row.path) or f"line {row.line}", problem.reason, problem.detail] += 1
    return clips, texts, bad


def _check(config: IngestConfig, source: Source, bad: Counter[Quarantined]) -> None:
    """Reject a source with too many bad rows: a wrong folder looks like a thousand missing files."""
    num_bad, num_rows = bad.total(), len(source.rows) + source.bad.total()
    if num_bad <= config.max_bad_fraction * num_rows:
        return
    raise ManifestError(
        f"{num_bad} of the {num_rows} rows of {config.source} cannot be used, more than max_bad_fraction "
        f"({config.max_bad_fraction:g}): {_told(bad)}; fix them, or raise max_bad_fraction"
        + (f". {source.about}" if source.about else "")
    )


def _told(bad: Counter[Quarantined]) -> str:
    """Return the number of bad rows by reason, and the first of them."""
    by_reason = Counter[str]()
    for (_, reason, _), rows in bad.items():
        by_reason[reason] += rows
    if not bad:
        return "it has no rows"
    reasons = ", ".join(f"{reason} {rows}" for reason, rows in by_reason.most_common())
    path, reason, detail = next(iter(bad))
    return f"{reasons}; the first is {printable(path)} ({reason}: {detail})"


def _conflicts(clips: Iterable[_Clip]) -> Iterable[Quarantined]:
    """Yield the clips with conflicting labels, folds or recordings, of which the first in sorted order is kept."""
    for clip in clips:
        for name, values in clip.values.items():
            if len(values) > 1:
                first, *others = sorted(values)
                yield min(clip.written), f"conflicting_{name}", f"kept {first!r}, not {', '.join(map(repr, others))}"


def _manifest(clips: dict[str, _Clip], texts: set[str]) -> Manifest:
    """Build the tables, sorted by id."""
    pairs = sorted((clip_id, caption_id(text)) for clip_id, clip in clips.items() for text in clip.captions)
    return Manifest(
        clips=_table(
            CLIPS,
            [
                (
                    clip_id, clip.info.pcm_sha256, clip.info.duration_s, clip.info.sample_rate, clip.info.num_channels,
                    clip.info.bytes, clip.value("recording_id"), clip.value("label"), clip.value("fold"),
                )
                for clip_id, clip in clips.items()
            ],
        ),
        captions=captions_table(texts.union(*(clip.captions for clip in clips.values()))),
        pairs=_table(PAIRS, pairs),
        locations=_table(PLACES, [(clip_id, min(clip.paths)) for clip_id, clip in clips.items()]),
    )  # fmt: skip


def _table(schema: pa.Schema, rows: Sequence[tuple[object, ...]]) -> pd.DataFrame:
    """Return rows as a table with fixed types, even if it is empty."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema).to_pandas()
