"""Captions that a captioner generates (BLAT): from the sound of a clip, with its tags as a guide."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from clapcur.audio import UnusableAudio
from clapcur.data.manifest import Manifest
from clapcur.data.tags import Tags
from clapcur.errors import DataError
from clapcur.progress import progress
from clapcur.store.artifacts import Artifact, Workspace, write_atomic

BLOCK = 512  # clips that are captioned before it is noted on disk; ours
BATCH = 32  # clips at a time; fixed, for what is sampled for a clip depends on the clips beside it; ours
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


def generated(
    captioner: Artifact, clips: Sequence[str], pool: Manifest, tags: Tags, num_captions: int, decoding: Any, seed: int,
    device: str, work: Workspace,
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
    blocks = [list(clips[start : start + BLOCK]) for start in range(0, len(clips), BLOCK)]
    files = [work.scratch / f"captions-{index:05d}.json" for index in range(len(blocks))]
    done = sum(len(block) for block, file in zip(blocks, files, strict=True) if work.is_done(file.stem))
    with progress("caption", len(clips), "clips", done=done) as advance:
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
        digest = hashlib.sha256(f"{seed} {part[0]}".encode()).digest()
        drawn = int.from_bytes(digest[:8]) >> 1
        texts = model.generate(frames, vector_NK[start : start + BATCH], num_captions, decoding, drawn)
        captions |= {clip: list(dict.fromkeys(said)) for clip, said in zip(part, texts, strict=True)}
    lost = {clip: bad[path].detail for clip, path in zip(clips, paths, strict=True) if path in bad}
    return {"captions": captions | {clip: [] for clip in lost}, "not_heard": list(lost.items())}
