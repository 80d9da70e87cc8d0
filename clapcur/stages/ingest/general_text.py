"""General text -> captions: the sentences of any text that describe something audible.

The rules use the text only. A rejected sentence counts for the first reason that applies: not text, too short, too
long, not heard, a duplicate, a near duplicate. Kept sentences are in the order of their ids, like any captions.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from clapcur.data.manifest import caption_id
from clapcur.data.text_corpus import sentences
from clapcur.errors import EmptySetError
from clapcur.methods.hearing import Hearing, features, shipped
from clapcur.methods.min_hash import NearDuplicates
from clapcur.progress import progress
from clapcur.stages.ingest.config import TextRules

NUM_EXAMPLES = 5  # per reason
TOLD_EVERY = 10_000  # sentences between two progress updates
LEAST_LETTERS = 0.6  # minimum fraction of letters among the characters of a sentence; ours


@dataclass
class Sifted:
    """The result of sifting a text."""

    kept: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    # number of sentences by outcome: kept, or the reason for rejection
    examples: dict[str, list[tuple[str, str, float]]] = field(default_factory=dict)
    # examples by outcome: where, sentence, score
    closest: tuple[float, str] = (0.0, "")
    # the best score among sentences that are not heard, and that sentence

    def note(self, what: str, where: str, text: str, score: float) -> None:
        """Count a sentence, and keep it as an example if it is among the first with this outcome.

        Parameters
        ----------
        what : str
            Outcome: kept, or the reason for rejection.
        where : str
            Position in the text, for people.
        text : str
            The sentence.
        score : float
            Score from `Hearing.score`; 0 if it was not scored.
        """
        self.counts[what] += 1
        some = self.examples.setdefault(what, [])
        if len(some) < NUM_EXAMPLES:
            some.append((where, text, score))


def sift(source: Path, rules: TextRules, hearing: Hearing | None = None) -> Sifted:
    """Read a text and decide which sentences to keep.

    Parameters
    ----------
    source : Path
        A source for `clapcur.data.text_corpus.sentences`.
    rules : TextRules
    hearing : Hearing, optional
        Classifier of audible sentences; None: the one that is shipped.

    Raises
    ------
    DataError
        The source is missing or cannot be read.
    EmptySetError
        No sentence is audible; the message has the one with the best score.
    """
    found, hearing = Sifted(), hearing or shipped()
    seen: set[str] = set()
    near = NearDuplicates(rules.near_duplicate) if rules.near_duplicate is not None else None
    with progress("read", None, "sentences") as advance:
        for number, (where, text) in enumerate(sentences(source, rules.column), 1):
            what, score = _judge(text, rules, hearing)
            if what == "not_heard" and score > found.closest[0]:
                found.closest = (score, text)
            if what == "kept":
                name = caption_id(text.casefold())
                if name in seen:
                    what = "duplicate"
                elif near is not None and near.add(features(text)[0]):
                    what = "near_duplicate"
                seen.add(name)
            if what == "kept":
                found.kept.append(text)
            found.note(what, where, text, score)
            if number % TOLD_EVERY == 0:
                advance(TOLD_EVERY, f"{len(found.kept):,} kept")
    if not found.kept:
        raise EmptySetError(_why_none(source, rules, found))
    return found


def _judge(text: str, rules: TextRules, hearing: Hearing) -> tuple[str, float]:
    letters = sum(character.isalpha() or character.isspace() for character in text)
    if letters < LEAST_LETTERS * len(text):
        return "not_text", 0.0
    num_words = len(text.split())
    if num_words < rules.least_words:
        return "too_short", 0.0
    if num_words > rules.most_words:
        return "too_long", 0.0
    score = hearing.score(text)
    return ("kept" if score >= rules.least_score else "not_heard"), score


def _why_none(source: Path, rules: TextRules, found: Sifted) -> str:
    total = found.counts.total()
    if not total:
        return f"{source} has no sentence"
    reasons = ", ".join(f"{reason.replace('_', ' ')} {number:,}" for reason, number in found.counts.most_common())
    score, text = found.closest
    closest = f"; the closest is {text[:120]!r} with score {score:.2f}" if text else ""
    return (
        f"none of the {total:,} sentences of {source} describes something audible ({reasons}){closest}; give another "
        f"text, or lower least_score (now {rules.least_score:g})"
    )
