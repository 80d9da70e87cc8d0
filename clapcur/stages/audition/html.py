"""The audition page: one HTML file with pairs, sounds and spectrograms inside, which loads nothing from elsewhere."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from clapcur.stages.audition.script import SCRIPT
from clapcur.stages.audition.style import STYLE

STRATEGIES = {"du": "domain-unspecific", "ds": "domain-specific", "ads": "augmented domain-specific"}


def as_html(facts: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]], clips: Mapping[str, Any]) -> str:
    """Return the page.

    Parameters
    ----------
    facts : mapping
        ``set`` (id), ``strategy``, ``thresholds`` (of the set), ``num_pairs``, ``num_clips``, ``num_captions`` of the
        set, ``seed``, and ``classes``: for each class ``name``, ``threshold``, ``pairs`` and ``clips`` of the set,
        and how many pairs are ``here``.
    pairs : sequence of mappings
        In the order of the page: clip_id, caption_id, caption, similarity, class, class_similarity, threshold, margin
        (score above threshold) and reason.
    clips : mapping
        By clip id: path, recording_id, excerpt (which part is heard, in words), and ``audio`` and ``image`` in base64
        or a ``note`` that says why there is none.
    """
    data = {"set": facts["set"], "cut": cut_by(facts["strategy"]), "pairs": pairs, "clips": clips}
    return PAGE.format(
        title=html.escape(f"Hear the pairs of {facts['set']}"), set=html.escape(facts["set"]), style=STYLE,
        script=SCRIPT, data=as_json(data), facts=_facts(facts), classes=_classes(facts["classes"]),
        protocol=html.escape(_protocol(facts, pairs)), silent=_silent(pairs, clips),
        strategy=f"{facts['strategy'].upper()} ({STRATEGIES[facts['strategy']]})",
    )  # fmt: skip


def as_json(value: Any) -> str:
    """Write JSON that may stand inside a script element, whatever text is in it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def cut_by(strategy: str) -> str:
    """Return which of a set's thresholds cuts its pairs: that of its captions for DS, else that of the audio."""
    return "caption" if strategy == "ds" else "audio"


def _facts(facts: Mapping[str, Any]) -> str:
    lines = {"strategy": facts["strategy"].upper()}
    own = [line["threshold"] for line in facts["classes"]]
    for name, value in facts["thresholds"].items():
        differs = name == cut_by(facts["strategy"]) and max(own) > value
        lines[f"{name} threshold"] = f"{value:.3f} to {max(own):.3f}, by class" if differs else f"{value:.3f}"
    lines |= {
        "pairs in the set": f"{facts['num_pairs']:,}", "clips": f"{facts['num_clips']:,}",
        "captions": f"{facts['num_captions']:,}", "classes": str(len(facts["classes"])),
    }  # fmt: skip
    return "".join(f"<div><dt>{html.escape(name)}</dt><dd>{value}</dd></div>" for name, value in lines.items())


def _classes(classes: Sequence[Mapping[str, Any]]) -> str:
    return "".join(
        f"<tr><th scope=row>{html.escape(line['name'])}</th><td>{line['threshold']:.3f}</td><td>{line['pairs']:,}</td>"
        f"<td>{line['clips']:,}</td><td>{line['here']}</td></tr>"
        for line in classes
    )


def _protocol(facts: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> str:
    """Say how the pairs came here, which decides what their marks can show."""
    counts = {reason: sum(pair["reason"] == reason for pair in pairs) for reason in ("border", "top", "random")}
    cut = "class similarity" if facts["strategy"] == "ds" else "similarity"
    return (
        f"{len(pairs):,} of {facts['num_pairs']:,} pairs, spread evenly over the classes, with seed {facts['seed']}: "
        f"{counts['border']} at the border (the lowest {cut} of their class), {counts['top']} at the top, "
        f"{counts['random']} drawn at random from those between. Pairs below a threshold are not in the set, so none "
        "can be heard here."
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
    return f'<p class="note">{without:,} of {len(pairs):,} pairs have no sound here; clips: {html.escape(reasons)}.</p>'


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>Hear the pairs <code>{set}</code></h1>
<p class="lead">Pairs from which a student learns: the {strategy} Improvement-Set. Does the caption describe the
sound?</p>
<dl class="facts">{facts}</dl>
<p>{protocol}</p>
{silent}
<details><summary>Classes and their thresholds</summary>
<div class="scroll"><table>
<thead><tr><th scope=col>class</th><th scope=col>threshold</th><th scope=col>pairs</th><th scope=col>clips</th>
<th scope=col>pairs here</th></tr></thead>
<tbody>{classes}</tbody>
</table></div>
</details>
<noscript><p class="note">Playing and marking need JavaScript; the same pairs are in pairs.csv.</p></noscript>
</header>
<div class="tools">
<form id="filters" aria-label="filter, sort and export">
<label>class<select id="class"><option value="">all classes</option></select></label>
<label>chosen as<select id="reason"><option value="">any</option><option>border</option><option>top</option>
<option>random</option></select></label>
<label>mark<select id="mark"><option value="">any</option><option value="none">not yet</option>
<option value="any">marked</option><option>wrong</option><option>right</option></select></label>
<label>order<select id="sort"><option value="chosen">classes in turn</option><option value="class">by class</option>
<option value="similarity-down">similarity, highest first</option>
<option value="similarity-up">similarity, lowest first</option>
<option value="margin-up">nearest to the threshold</option>
<option value="class_similarity-down">class score, highest first</option>
<option value="class_similarity-up">class score, lowest first</option></select></label>
<label class="search">search<input type="search" id="search" placeholder="caption, class, path, id"></label>
<span class="end"><button type="button" id="as-text">Copy as text</button>
<button type="button" id="export" class="main">Export marks</button></span>
</form>
</div>
<main>
<div class="state"><span id="shown" role="status"></span><span id="judged" role="status"></span>
<span class="keys"><label><input type="checkbox" id="follow" checked>play as you move</label>
<span><kbd>space</kbd> play</span><span><kbd>j</kbd> <kbd>k</kbd> next, previous</span><span><kbd>r</kbd> right</span>
<span><kbd>x</kbd> wrong</span><span><kbd>/</kbd> search</span></span></div>
<p class="note" id="unsaved" hidden>This frame keeps nothing: the marks live as long as the page is open. Export them
before you leave, or download audition.html and open it from disk.</p>
<ol id="pairs" aria-label="pairs"></ol>
<p class="none" id="none" hidden>No pair fits these filters.</p>
<audio id="player" preload="auto"></audio>
</main>
<footer>
<p>The exported table has one line per marked pair. <code>wrong</code> takes a pair out of a set
(<code>clapcur curate --exclude-pairs</code>); both marks together measure precision. A pair without a mark counts as
not heard.</p>
</footer>
<dialog id="text" aria-labelledby="why">
<p id="why"></p>
<textarea id="csv" readonly aria-label="marks as CSV" spellcheck="false"></textarea>
<div class="end"><span id="copied" role="status"></span><button type="button" id="close">Close</button>
<button type="button" id="copy" class="main">Copy</button></div>
</dialog>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
