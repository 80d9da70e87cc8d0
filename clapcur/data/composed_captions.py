"""Captions of composed clips, built from a table of connectors for each relation.

"A before B" and "B after A" mean the same, and both are correct for A and then B. A meaning is (relation, one, other):
``("single", a, "")``, ``("sequence", first, second)`` or ``("overlap", one, other)``. The names of an overlap are
sorted, because an overlap has no order.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations, permutations
from typing import Literal

import pandas as pd

from clapcur.data.class_names import PROMPT, check_prompt
from clapcur.data.manifest import caption_id, normalise_caption

Relation = Literal["single", "sequence", "overlap"]
Meaning = tuple[Relation, str, str]

CONNECTORS: dict[Relation, dict[str, str]] = {
    "single": {"sound": "{one}", "single": "a single {one}", "only": "{one} and nothing else"},
    "sequence": {
        "before": "{one} before {other}",
        "then": "{one} and then {other}",
        "followed by": "{one} followed by {other}",
        "after": "{other} after {one}",
        "preceded by": "{other} preceded by {one}",
    },
    "overlap": {
        "while": "{one} while {other}",
        "as": "{one} as {other}",
        "at the same time": "{one} and {other} at the same time",
    },
}
FORWARD = ("before", "then", "followed by")  # these name the sounds of a sequence in the order in which they are heard
OPPOSITE = {  # the connector that reverses the meaning when both names keep their places
    "before": "after", "after": "before", "then": "preceded by", "followed by": "preceded by",
    "preceded by": "followed by",
}  # fmt: skip


def phrase(meaning: Meaning, connector: str, template: str = PROMPT) -> str:
    """Return the caption of a meaning with one connector.

    Parameters
    ----------
    meaning : Meaning
        (relation, one, other).
    connector : str
        A key of ``CONNECTORS[relation]``.
    template : str
        Prompt template, in which ``{}`` is replaced by what is heard.
    """
    relation, one, other = meaning
    return normalise_caption(template.replace("{}", CONNECTORS[relation][connector].format(one=one, other=other)))


def phrasings(meaning: Meaning, template: str = PROMPT) -> dict[str, str]:
    """Return every caption of a meaning, by connector; an overlap also has the captions with its names swapped."""
    relation, one, other = meaning
    said = {connector: phrase(meaning, connector, template) for connector in CONNECTORS[relation]}
    if relation == "overlap":
        turned: Meaning = (relation, other, one)
        said |= {f"{connector}, turned": phrase(turned, connector, template) for connector in CONNECTORS[relation]}
    return said


def reversed_meaning(meaning: Meaning) -> Meaning:
    """Return the meaning of a sequence with its sounds swapped."""
    relation, one, other = meaning
    return relation, other, one


def replaced_phrase(meaning: Meaning, connector: str, template: str = PROMPT) -> str:
    """Return the caption of a sequence with its connector replaced by the opposite one: same names, another meaning.

    "a before b" becomes "a after b".

    Parameters
    ----------
    meaning : Meaning
        The meaning of a sequence.
    connector : str
        The connector that is replaced.
    template : str
        As for `phrase`.
    """
    return phrase(reversed_meaning(meaning), OPPOSITE[connector], template)


def meanings(class_names: Sequence[str]) -> Iterable[Meaning]:
    """Yield every meaning with one or two of these classes."""
    names = sorted(class_names)
    for name in names:
        yield "single", name, ""
    for one, other in permutations(names, 2):
        yield "sequence", one, other
    for one, other in combinations(names, 2):
        yield "overlap", one, other


def captions_of(wanted: Iterable[Meaning], template: str = PROMPT, connectors: Sequence[str] = ()) -> pd.DataFrame:
    """Return the captions of some meanings.

    Parameters
    ----------
    wanted : iterable of Meaning
        Repeated meanings are ignored.
    template : str
        As for `phrase`.
    connectors : sequence of str
        The connectors to use for sequences; all if empty.

    Returns
    -------
    DataFrame
        caption_id, caption, relation, one, other, connector; sorted by id.

    Raises
    ------
    ValueError
        The template does not contain ``{}`` exactly once.
    """
    check_prompt(template)
    rows = [
        (caption_id(text), text, *meaning, connector)
        for meaning in sorted(set(wanted))
        for connector, text in phrasings(meaning, template).items()
        if meaning[0] != "sequence" or not connectors or connector in connectors
    ]
    columns = ["caption_id", "caption", "relation", "one", "other", "connector"]
    return pd.DataFrame(rows, columns=columns, dtype="str").sort_values(columns, ignore_index=True)
