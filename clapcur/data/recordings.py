"""Ids of source recordings, written the same way in every corpus: ``freesound:100032``, ``youtube:7fmOlUlwoNg``.

Corpora take their clips from the same places: ESC-50, UrbanSound8K, FSD50K and Clotho from Freesound; AudioSet,
AudioCaps and VGGSound from YouTube. Two clips of one recording must be recognised as such, so an id consists of the
place that the recording is from and the recording's name at that place.

`recording_id` is the only function that parses an id, whatever its source:

- White space around it, the case of the place and the Unicode form do not matter.
- A whole number is the same in every notation: ``100032.0`` and ``1.00032e5``, as pandas, R and spreadsheets write
  numbers, are ``100032``. A possible YouTube id (eleven letters, digits, ``_`` or ``-``) is never read as a number.
- Leading zeros are part of an id: ``000123`` differs from ``123``. Freesound's ids are numbers and have none.
- What tools write for a missing value (``nan``, ``None``, ``NA``, ``null``, ``unknown``, ``-1``) is not an id.

An id without a place matches that id with any place (`known_as`, `asked_as`): ``100032`` in one table and
``freesound:100032`` in another are the same recording, while ``tut:100032`` and ``freesound:100032`` differ.
"""

import re
import unicodedata
from collections.abc import Iterable

from clapcur.data.tables import whole_number

NOT_AN_ID = frozenset(
    {
        "", "-", "--", "?", "-1", "#n/a", "<na>", "missing", "n/a", "n.a.", "na", "nan", "nat", "nil", "none", "null",
        "undefined", "unknown",
        "not found",  # what Clotho writes if the uploader took a sound down
    }
)  # fmt: skip
PLACE = re.compile(r"(?P<place>[A-Za-z][A-Za-z0-9_.-]*)\s*:(?!//)\s*(?P<name>.*)", re.DOTALL)
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
ADDRESSES = {
    "freesound": re.compile(r"https?://(www\.)?freesound\.org/(people/[^/]+/sounds|s)/(?P<name>\d+)/?"),
    "youtube": re.compile(
        r"https?://((www\.|m\.)?youtube\.com/watch\?v=|youtu\.be/)(?P<name>[A-Za-z0-9_-]{11})([&?#].*)?"
    ),
}
ANY_PLACE = "*:"
PLACE_OF_COLUMN = {
    "fsID": "freesound",  # UrbanSound8K
    "src_file": "freesound",  # ESC-50
    "freesound_id": "freesound",
    "sound_id": "freesound",  # Clotho
    "youtube_id": "youtube",  # AudioCaps
    "YTID": "youtube",  # AudioSet
}
# Copies of AudioSet put ``Y`` before the id, because many programs take a name that begins with - for an option.
YOUTUBE_STEM = re.compile(r"(?P<prefix>Y?)(?P<id>[A-Za-z0-9_-]{11})(?P<times>(_\d+(\.\d+)?){0,2})")
AUDIO_FILE = re.compile(r"(?P<stem>[^/]+)\.(wav|flac|mp3|m4a|ogg|opus|webm|mp4)", re.IGNORECASE)


def recording_id(value: object) -> str:
    """Return the recording id in a table cell, an option or a line of a list; "" if there is none.

    Parameters
    ----------
    value : object
        A string or a number of any library; None, NaN and pandas' NA are not ids.
    """
    text = " ".join(unicodedata.normalize("NFC", str(value)).split())
    for place, address in ADDRESSES.items():
        if match := address.fullmatch(text):
            return f"{place}:{match['name']}"
    match = PLACE.fullmatch(text)
    place, name = (match["place"].casefold(), match["name"]) if match else ("", text)
    if place != "youtube" and not YOUTUBE_ID.fullmatch(name):
        name = whole_number(name)
    if place == "freesound" and name.isdecimal():
        name = str(int(name))
    if name.casefold() in NOT_AN_ID or (place, name) == ("freesound", "0"):
        return ""
    return f"{place}:{name}" if place else name


def recording(place: str, name: object) -> str:
    """Return the id of a recording; "" if `name` is missing or unknown.

    Parameters
    ----------
    place : str
        Where the recording is from: freesound, youtube, tut, tau.
    name : object
        Its name at that place.
    """
    return recording_id(f"{place}:{name}")


def without_place(recording: str) -> str:
    """Return an id without its place."""
    match = PLACE.fullmatch(recording)
    return match["name"] if match else recording


def known_as(recording: str) -> tuple[str, ...]:
    """Return the keys under which a recording is stored; a key from `asked_as` of the same recording is among them."""
    bare = without_place(recording)
    return (recording,) if bare == recording else (recording, ANY_PLACE + bare)


def asked_as(recording: str) -> tuple[str, ...]:
    """Return the keys that ask for a recording: one is among those from `known_as` if both are the same recording."""
    bare = without_place(recording)
    return (recording, ANY_PLACE + recording) if bare == recording else (recording, bare)


def place_differs(ids: Iterable[str], others: Iterable[str]) -> bool:
    """Return whether all ids of one side have a place and none of the other side."""
    own, foreign = ({without_place(name) != name for name in side if name} for side in (ids, others))
    return {frozenset(own), frozenset(foreign)} == {frozenset({True}), frozenset({False})}


def youtube_ids(stem: str) -> tuple[str, ...]:
    """Return the YouTube ids that a file name without its suffix may contain, the likeliest first.

    ``--PJHxphWEs``, ``Y--PJHxphWEs``, ``--PJHxphWEs_30`` and ``--PJHxphWEs_30000_40000`` all mean ``--PJHxphWEs``.
    """
    with_prefix = re.fullmatch(YOUTUBE_STEM, stem)
    without = re.fullmatch(YOUTUBE_STEM, f"Y{stem}")
    found = (match["id"] for match in (with_prefix, without) if match)
    return tuple(dict.fromkeys(found))


def recording_of_file_name(name: str) -> str:
    """Return the recording id in a bare AudioSet file name, such as ``Y--PJHxphWEs.wav``; "" if there is none."""
    match = re.fullmatch(AUDIO_FILE, name)
    ids = youtube_ids(match["stem"]) if match and match["stem"].startswith("Y") else ()
    return recording("youtube", ids[0]) if ids else ""
