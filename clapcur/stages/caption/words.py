"""Words of tags and captions: AudioSet's class names as plain phrases, and whether a caption mentions one."""

import re
from collections.abc import Iterable

from clapcur.methods.hearing import stems

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def synonyms(name: str) -> tuple[str, ...]:
    """Return the phrases that a class name lists, in lower case: "Fire engine, fire truck (siren)" has two.

    Notes in parentheses are left out; a part that is only a number or a note gives no phrase.
    """
    parts = re.sub(r"\([^)]*\)", " ", name).split(",")
    found = dict.fromkeys(" ".join(part.lower().replace("_", " ").replace("/", " ").split()) for part in parts)
    return tuple(part for part in found if WORD.search(part)) or (name.lower(),)


def mentions(caption_stems: Iterable[str], name: str) -> bool:
    """Return whether a caption contains all words of one of a class's phrases, in any order."""
    said = set(caption_stems)
    return any(set(stems(phrase)) <= said for phrase in synonyms(name) if stems(phrase))
