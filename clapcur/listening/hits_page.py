"""The page of a search: its hits with their sounds, in one self-contained HTML file that needs no server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clapcur.data.manifest import Manifest
from clapcur.pages import render
from clapcur.stages.audition import AuditionConfig, embed_sounds, silent_clip

QUERY = "query"  # in place of the id of a clip
MARKUP = 600  # bytes reserved for the markup around each sound


def as_html(
    query: str,
    hits: Sequence[tuple[float, str]],
    manifest: Manifest,
    *,
    model: str,
    config: AuditionConfig | None = None,
) -> str:
    """Return the page as HTML.

    Audio and spectrograms are included, the best hits first, as long as the page stays within ``config.max_bytes``.

    Parameters
    ----------
    query : str
        Words, or the path of an audio file, which can be played on the page too.
    hits : sequence of (float, str)
        Similarity and clip id of every hit, the best first.
    manifest : Manifest
        The clips that were searched.
    model : str
        Checkpoint that embedded query and clips.
    config : AuditionConfig, optional
        Sample rate and maximum length of an excerpt, and the maximum size of the page.

    Raises
    ------
    ValueError
        Even without audio, the hits exceed the size limit of the page.
    """
    config = config or AuditionConfig()
    wanted = {clip for _, clip in hits}
    table = manifest.clips[manifest.clips.clip_id.isin(wanted)].set_index("clip_id")
    clips = {
        clip: silent_clip(str(manifest.paths[clip]), table.duration_s[clip], table.recording_id[clip], config)
        for _, clip in hits
    }
    sound = Path(query)
    if sound.is_file():
        clips = {QUERY: _query_clip(sound, config), **clips}

    def page() -> str:
        shown: list[dict[str, Any]] = [
            {"clip_id": clip, "similarity": similarity, **clips[clip]} for similarity, clip in hits
        ]
        return render(
            "hits.html",
            query=sound.name if QUERY in clips else query,
            query_clip=clips.get(QUERY),
            hits=shown,
            num_clips=len(manifest.clips),
            model=model,
            num_silent=sum("audio" not in clips[clip] for _, clip in hits),
            data={clip: entry["audio"] for clip, entry in clips.items() if "audio" in entry},
        )

    silent_bytes = len(page().encode())
    room = config.max_bytes - silent_bytes - MARKUP * len(clips)
    if room < 0:
        raise ValueError(
            f"a page of {len(hits):,} hits needs {silent_bytes:,} bytes even without audio, and may have "
            f"{config.max_bytes:,}; give a lower --limit"
        )
    embed_sounds(clips, room, config)
    return page()


def _query_clip(sound: Path, config: AuditionConfig) -> dict[str, str]:
    import soundfile

    return silent_clip(str(sound), soundfile.info(sound).duration, "", config)
