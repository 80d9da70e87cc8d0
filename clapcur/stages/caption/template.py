"""Captions from templates: the tags of a clip in a few phrasings. No model is needed, and this is not BLAT."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clapcur.data.tags import Tag
from clapcur.errors import DataError
from clapcur.stages.caption.words import synonyms

PHRASINGS = {  # ours, in the style of the captions of AudioCaps and Clotho
    1: ("{}", "the sound of {}", "{} can be heard", "a recording of {}", "{} is heard nearby"),
    2: ("{} and {}", "the sound of {} and {}", "{} with {} in the background", "{} is heard along with {}"),
    3: ("{}, {} and {}", "the sound of {}, {} and {}", "{} and {} with {} in the background"),
}
LONGEST_DESCRIPTION = 10  # maximum number of words of a description that is used in a caption; ours
NOISE_WORDS = re.compile(r"^((the|any|a) )?(characteristic )?sounds? (of|from|made by|emitted by|associated with) ")
# beginnings of the ontology's descriptions that captions do not need


def read_descriptions(path: Path) -> dict[str, str]:
    """Return the first sentence of each class's description in AudioSet's ontology (a JSON file), by class name.

    "Sounds of a body of water with a current." becomes "a body of water with a current". Descriptions that are long, or
    have commas or numbers in their first sentence, are left out.

    Raises
    ------
    DataError
        The file is missing, or is no ontology.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        said = {entry["name"]: entry["description"] for entry in entries}
    except FileNotFoundError:
        raise DataError(f"the ontology {path} does not exist; it is AudioSet's ontology.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not an ontology: expected a list of classes with name and description: {error}"
        ) from None
    found = {}
    for name, description in said.items():
        start = re.split(r"[.;:(]| i\.e\.| e\.g\.", description, maxsplit=1)[0].strip()
        start = NOISE_WORDS.sub("", start[:1].lower() + start[1:])
        if 2 <= len(start.split()) <= LONGEST_DESCRIPTION and not re.search(r"[\d,]", start):
            found[name] = start
    return found


def phrased(tags: Sequence[Tag], most_tags: int, descriptions: dict[str, str], rng: np.random.Generator) -> list[str]:
    """Return captions of a clip in random order, all different.

    Parameters
    ----------
    tags : sequence of Tag
        One or more tags, strongest first.
    most_tags : int
        Maximum number of tags in one caption, up to three.
    descriptions : dict
        Descriptions of classes as alternatives to their names; may be empty.
    rng : Generator
    """
    found: dict[str, None] = {}
    ways = {tag.name: [*synonyms(tag.name), *([descriptions[tag.name]] if tag.name in descriptions else [])]
            for tag in tags}  # fmt: skip
    most = min(most_tags, len(tags), max(PHRASINGS))
    for number in range(most, 0, -1):  # captions with more tags come first
        drawn = []
        for phrasing in PHRASINGS[number]:
            for _ in range(2):
                words = [str(rng.choice(ways[tag.name])) for tag in tags[:number]]
                if len(set(words)) == number:
                    drawn.append(phrasing.format(*words))
        found |= dict.fromkeys(drawn[index] for index in rng.permutation(len(drawn)))
    return list(found)
