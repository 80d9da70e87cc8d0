"""The audition page: one self-contained HTML file with pairs, audio and spectrograms."""

from collections.abc import Mapping, Sequence
from typing import Any

from clapcur.pages import render

STRATEGIES = {
    "du": "domain-unspecific", "ds": "domain-specific", "ads": "augmented domain-specific",
    "tagcap": "generated captions", "tagcap-classes": "generated captions of the classes",
    "pl": "pseudo-labels",
}  # fmt: skip


def as_html(facts: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]], clips: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    facts : mapping
        Facts about the set: ``set`` (id), ``strategy``, ``thresholds``, ``num_pairs``, ``num_clips``,
        ``num_captions``, ``seed``, and ``classes``: for each class ``name``, ``threshold``, the set's ``pairs`` and
        ``clips``, and the number of its pairs on the page (``here``).
    pairs : sequence of mappings
        In the order of the page: clip_id, caption_id, caption, similarity, class, class_similarity, threshold, margin
        (score minus threshold) and reason.
    clips : mapping
        By clip id: path, recording_id, excerpt (which part is played, in words), and ``audio`` and ``image`` in
        base64, or a ``note`` with the reason why there is no audio.
    """
    return render(
        "audition.html",
        set=facts["set"],
        strategy=f"{facts['strategy'].upper()} ({STRATEGIES[facts['strategy']]})",
        facts=_facts(facts),
        classes=facts["classes"],
        protocol=_protocol(facts, pairs),
        silent=_silent(pairs, clips),
        data={"set": facts["set"], "cut": cut_by(facts["strategy"]), "pairs": pairs, "clips": clips},
    )


def cut_by(strategy: str) -> str:
    """Return which threshold of a set applies to its pairs: the caption threshold for DS, else the audio threshold."""
    return "caption" if strategy == "ds" else "audio"


def _facts(facts: Mapping[str, Any]) -> dict[str, str]:
    lines = {"strategy": facts["strategy"].upper()}
    own = [line["threshold"] for line in facts["classes"]]
    for name, value in facts["thresholds"].items():
        differs = name == cut_by(facts["strategy"]) and max(own) > value
        lines[f"{name} threshold"] = f"{value:.3f} to {max(own):.3f}, by class" if differs else f"{value:.3f}"
    lines |= {
        "pairs in the set": f"{facts['num_pairs']:,}", "clips": f"{facts['num_clips']:,}",
        "captions": f"{facts['num_captions']:,}", "classes": str(len(facts["classes"])),
    }  # fmt: skip
    return lines


def _protocol(facts: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> str:
    """Return how the pairs were chosen, which determines what their marks can show."""
    counts = {reason: sum(pair["reason"] == reason for pair in pairs) for reason in ("border", "top", "random")}
    cut = "class similarity" if facts["strategy"] == "ds" else "similarity"
    return (
        f"{len(pairs):,} of {facts['num_pairs']:,} pairs, spread evenly over the classes, with seed {facts['seed']}: "
        f"{counts['border']} at the border (the lowest {cut} of their class), {counts['top']} at the top, "
        f"{counts['random']} drawn at random from those between. Pairs below a threshold are not in the set and are "
        "not shown."
    )


def _silent(pairs: Sequence[Mapping[str, Any]], clips: Mapping[str, Any]) -> str:
    without = sum("audio" not in clips[pair["clip_id"]] for pair in pairs)
    if not without:
        return ""
    notes: dict[str, int] = {}
    for clip in clips.values():
        if "note" in clip:
            notes[clip["kind"]] = notes.get(clip["kind"], 0) + 1
    reasons = ", ".join(f"{count} {kind}" for kind, count in sorted(notes.items()))
    return f"{without:,} of {len(pairs):,} pairs cannot be played here; clips: {reasons}."
