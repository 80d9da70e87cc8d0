"""Captions that a captioner generates (BLAT): from the sound of a clip, with its tags as a guide.

The captions of a clip depend on its sound, its tags, the captioner and the seed, not on other clips, up to the rounding
of another batch.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from clapcur.audio import UnusableAudio
from clapcur.data.generated import read_generated
from clapcur.data.manifest import Manifest, normalise_caption
from clapcur.data.tags import Tags
from clapcur.errors import DataError
from clapcur.progress import progress
from clapcur.store.artifacts import Artifact, Workspace, write_atomic

BLOCK = 512  # clips that are captioned before it is noted on disk; ours
BATCH = 32  # clips at a time; ours
MAX_BAD = 0.01  # fraction of the clips that may be missing, changed or unusable; as in the tags
log = logging.getLogger("clapcur")


@dataclass
class Generated:
    """What a captioner said."""

    captions: dict[str, list[str]] = field(default_factory=dict)
    # by clip, without repeats; none of a clip that cannot be heard
    not_heard: list[tuple[str, str]] = field(default_factory=list)
    # clip and reason
    unknown_classes: int = 0
    # classes of the tags that the captioner never learned
    num_reused: int = 0
    # clips whose captions were generated earlier


def generated(
    captioner: Artifact, clips: Sequence[str], pool: Manifest, tags: Tags, num_captions: int, decoding: Any, seed: int,
    device: str, work: Workspace, before: tuple[Artifact, Artifact] | None = None,
) -> Generated:  # fmt: skip
    """Return captions of clips, block by block: a run that was killed resumes with the next block.

    Parameters
    ----------
    captioner : Artifact
    clips : sequence of str
        Sorted.
    pool : Manifest
        Where the clips are.
    tags : Tags
        Of the clips.
    num_captions : int
        Of a clip, before repeats are left out.
    decoding : Decoding
    seed : int
        Of sampling.
    device : str
    work : Workspace
        Whose scratch remembers the blocks.
    before : tuple of Artifact, optional
        Captions by the same captioner with the same settings, and the tags that guided them. They are reused for the
        clips whose tags are the same.

    Raises
    ------
    DataError
        The tags are of other classes than the captioner's, or too many clips cannot be heard.
    """
    from clapcur.models.captioner import load_captioner

    model = load_captioner(captioner.path, device)
    names = set(tags.classes.name)
    if not names & set(model.class_names):
        raise DataError(
            f"the captioner {captioner.id} knows none of the {len(names)} classes of the tags, such as "
            f"{min(names, default='none')!r}; tag the pool as its pairs were tagged"
        )
    found = Generated(unknown_classes=len(names - set(model.class_names)))
    if found.unknown_classes:
        log.warning(
            "%d of %d classes of the tags are unknown to the captioner %s and do not guide it", found.unknown_classes,
            len(names), captioner.id,
        )  # fmt: skip
    if before is not None:
        found.captions = _said_before(model, clips, tags, *before)
        found.num_reused = len(found.captions)
    new = [clip for clip in clips if clip not in found.captions]
    blocks = [new[start : start + BLOCK] for start in range(0, len(new), BLOCK)]
    files = [work.scratch / f"captions-{index:05d}.json" for index in range(len(blocks))]
    done = sum(len(block) for block, file in zip(blocks, files, strict=True) if work.is_done(file.stem))
    with progress("caption", len(new), "clips", done=done) as advance:
        for block, file in zip(blocks, files, strict=True):
            if not work.is_done(file.stem):
                said = _block(model, block, pool, tags, num_captions, decoding, seed)
                write_atomic(file, json.dumps(said))
                work.mark_done(file.stem)
                advance(len(block))
    for file in files:
        said = json.loads(file.read_text())
        found.captions |= said["captions"]
        found.not_heard += [(clip, reason) for clip, reason in said["not_heard"]]
    if len(found.not_heard) > MAX_BAD * len(clips):
        clip, reason = found.not_heard[0]
        raise DataError(
            f"{len(found.not_heard)} of {len(clips)} clips cannot be read; the first is {pool.paths[clip]}: {reason}. "
            f"That is more than {MAX_BAD:.0%}: restore the files, or ingest again"
        )
    return found


def _said_before(
    model: Any, clips: Sequence[str], tags: Tags, captions: Artifact, tags_of_then: Artifact
) -> dict[str, list[str]]:
    """Return the earlier captions of the clips of which the captioner is told what it was told then."""
    then, table = Tags.open(tags_of_then), read_generated(captions)
    said: dict[str, list[str]] = {}
    for clip, caption in zip(table.clip_id, table.caption, strict=True):
        said.setdefault(clip, []).append(caption)
    known = [clip for clip in clips if clip in said]
    found: dict[str, list[str]] = {}
    for start in range(0, len(known), BLOCK):
        block = known[start : start + BLOCK]
        now_NK, then_NK = (each.vectors(block, model.class_names, model.config.tag_vector) for each in (tags, then))
        is_same = (now_NK == then_NK).all(axis=1)
        found |= {clip: said[clip] for clip, same in zip(block, is_same, strict=True) if same}
    return found


def _block(
    model: Any, clips: Sequence[str], pool: Manifest, tags: Tags, num_captions: int, decoding: Any, seed: int
) -> dict[str, Any]:
    """Return the captions of some clips, and the clips that cannot be heard, as JSON."""
    import torch

    paths = [pool.paths[clip] for clip in clips]
    bad: dict[str, UnusableAudio] = {}
    vector_NK = torch.from_numpy(tags.vectors(clips, model.class_names, model.config.tag_vector))
    heard = model.hear(paths, BATCH, clip_ids=dict(zip(paths, clips, strict=True)), on_bad=bad.__setitem__)
    captions: dict[str, list[str]] = {}
    for start, frames in zip(range(0, len(clips), BATCH), heard, strict=True):
        part = clips[start : start + BATCH]
        texts = model.generate(frames, vector_NK[start : start + BATCH], num_captions, decoding, seed, part)
        captions |= {
            clip: list(dict.fromkeys(map(normalise_caption, said))) for clip, said in zip(part, texts, strict=True)
        }
    lost = {clip: bad[path].detail for clip, path in zip(clips, paths, strict=True) if path in bad}
    return {"captions": captions | {clip: [] for clip in lost}, "not_heard": list(lost.items())}
