"""Ids of source recordings, written alike in every corpus: ``freesound:100032``, ``youtube:7fmOlUlwoNg``.

Corpora cut their clips from the same places: ESC-50, UrbanSound8K, FSD50K and Clotho from Freesound, AudioSet,
AudioCaps and VGGSound from YouTube. Two clips of one recording must be seen to be that, so an id starts with where the
recording is from, and is otherwise what that place calls it.
"""

import re

NOT_AN_ID = frozenset({"", "na", "nan", "none", "not found"})  # what Clotho writes where the uploader took a sound down
PLACE_OF_COLUMN = {
    "fsID": "freesound",  # UrbanSound8K
    "src_file": "freesound",  # ESC-50
    "freesound_id": "freesound",
    "sound_id": "freesound",  # Clotho
    "youtube_id": "youtube",  # AudioCaps
    "YTID": "youtube",  # AudioSet
}
# ``Y`` before the id is a habit of AudioSet copies: a name that begins with - is taken for an option by many programs
YOUTUBE_STEM = re.compile(r"(?P<prefix>Y?)(?P<id>[A-Za-z0-9_-]{11})(?P<times>(_\d+(\.\d+)?){0,2})")
AUDIO_FILE = re.compile(r"(?P<stem>[^/]+)\.(wav|flac|mp3|m4a|ogg|opus|webm|mp4)", re.IGNORECASE)


def recording(place: str, name: str) -> str:
    """Return the id of a recording; "" where the corpus does not know it.

    Parameters
    ----------
    place : str
        Where it is from: freesound, youtube, tut, tau.
    name : str
        What it is called there.
    """
    name = name.strip()
    return "" if name.casefold() in NOT_AN_ID else f"{place}:{name}"


def youtube_ids(stem: str) -> tuple[str, ...]:
    """Return the YouTube ids that a file's name without its suffix may mean, the likeliest first.

    ``--PJHxphWEs``, ``Y--PJHxphWEs``, ``--PJHxphWEs_30`` and ``--PJHxphWEs_30000_40000`` all mean ``--PJHxphWEs``.
    """
    with_prefix = re.fullmatch(YOUTUBE_STEM, stem)
    without = re.fullmatch(YOUTUBE_STEM, f"Y{stem}")
    found = (match["id"] for match in (with_prefix, without) if match)
    return tuple(dict.fromkeys(found))


def recording_of_file_name(name: str) -> str:
    """Return the id that a bare file name of AudioSet means, such as ``Y--PJHxphWEs.wav``; "" where it means none."""
    match = re.fullmatch(AUDIO_FILE, name)
    ids = youtube_ids(match["stem"]) if match and match["stem"].startswith("Y") else ()
    return recording("youtube", ids[0]) if ids else ""
