"""Words of tags and captions: the names of AudioSet's classes as people say them, and whether a caption says one."""

import re
from collections.abc import Iterable

from clapcur.methods.hearing import stems

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def synonyms(name: str) -> tuple[str, ...]:
    """Return the phrases that a class name lists, in lower case: "Fire engine, fire truck (siren)" has two.

    What is in parentheses is a note and left out; a part that is a number or a note alone gives none.
    """
    parts = re.sub(r"\([^)]*\)", " ", name).split(",")
    found = dict.fromkeys(" ".join(part.lower().replace("_", " ").replace("/", " ").split()) for part in parts)
    return tuple(part for part in found if WORD.search(part)) or (name.lower(),)


def mentions(caption_stems: Iterable[str], name: str) -> bool:
    """Return whether a caption has all words of one of a class's phrases, in any order."""
    said = set(caption_stems)
    return any(set(stems(phrase)) <= said for phrase in synonyms(name) if stems(phrase))
