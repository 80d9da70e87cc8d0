"""The content of a record as flat names and numbers, for people, tables and MLflow.

Pure functions of a record. Names contain only the characters that MLflow accepts: letters, digits and ``_-./: ``.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from clapcur.store.artifacts import ANCESTOR, HISTORY, TIMES
from clapcur.store.record import Record

MAX_NAME = 250


WORDS = {  # counts whose name tells where a number is from instead of what it counts
    "teacher_pairs_pairs": "pairs", "improvement_set_pairs": "pairs of the Improvement-Set",
    "replay_pairs": "pairs to replay", "single_sounds_pairs": "single sounds to replay",
}  # fmt: skip


def shown_inputs(record: Record) -> dict[str, str]:
    """Return the direct inputs by role, without those of `ANCESTOR` roles."""
    return {role: name for role, name in record.inputs.items() if not role.startswith(ANCESTOR)}


def in_words(count: str, number: float) -> str:
    """Return a count of a record in words: ``189 pairs``, not ``189 teacher_pairs_pairs``."""
    return f"{number:,} {count_name(count)}"


def count_name(count: str) -> str:
    """Return what a count of a record counts: ``pairs``, not ``teacher_pairs_pairs``."""
    before, _, last = count.rpartition(".")  # seen.teacher_pairs: teacher pairs seen
    return f"{WORDS.get(last, last)} {before}".replace("_", " ").strip()


def label(record: Record) -> str:
    """Return a short name for an artifact, from its stage and tags: ``curate ads``, ``train ads+sl``, ``report``."""
    return label_of(record.stage, record.tags)


def label_of(stage: str, tags: Mapping[str, Any]) -> str:
    """Return the label of an artifact of this stage with these tags."""
    named = next((str(tags[name]) for name in ("name", "row", "strategy", "role") if name in tags), "")
    return f"{stage} {named}".rstrip() if named != stage else named


def summary(record: Record, reused: bool = False) -> str:
    """Summarise an artifact in one line: made or reused, its accuracy, its first count and its computing time."""
    said = ["reused" if reused else "made"]
    if "accuracy" in record.metrics:
        said.append(f"accuracy {record.metrics['accuracy']:.3f}")
    said += [in_words(name, count) for name, count in list(record.counts.items())[:1]]
    if not reused:
        said.append(f"{record.seconds:.1f} s")
    return f"{run_name(record)} -> {record.kind.replace('_', ' ')} {record.id} ({', '.join(said)})"


def run_name(record: Record) -> str:
    """Return the name of a record in the lines of a command: its label and, if it has one, the seed."""
    seed = record.tags.get("seed")
    return label(record) if seed is None else f"{label(record)} seed {seed}"


def dataset_name(record: Record) -> str:
    """Return a name of a manifest or an Improvement-Set for people, such as ``esc50 pool`` or ``esc50 ads``."""
    tags = record.tags
    said = [str(tags[name]) for name in ("dataset", "name", "strategy") if name in tags]
    if len(said) < 2 and "role" in tags:
        said.append(str(tags["role"]))
    return " ".join(said) or record.kind.replace("_", " ")


def model_name(dataset: str) -> str:
    """Return the name under which the models of a dataset are registered."""
    return f"clapcur-{folder_name(dataset)}"


def folder_name(name: str) -> str:
    """Return a name that is safe in a path and a URL."""
    return re.sub(r"[^\w.\-]", "_", name).lstrip(".") or "_"


def digest(record: Record) -> str:
    """Return MLflow's digest of a dataset: the first 32 digits of the artifact's key."""
    return str(record.key_sha256)[:32]


def metrics(record: Record) -> dict[str, float]:
    """Return the numbers in a record: metrics under their own names, counts as ``count.<name>``."""
    counts = {f"count.{name}": value for name, value in flat(record.counts).items()}
    return _numbers(flat(record.metrics) | counts)


def thresholds(record: Record) -> dict[str, Any]:
    """Return every threshold in the config and the metrics."""
    known = flat(record.config) | flat(record.metrics)
    return {name: value for name, value in known.items() if "threshold" in name and value is not None}


def history(folder: Path) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Yield step, time (ms since 1970) and metrics from a checkpoint's history file and times file.

    The two files match line by line. Checkpoints of older versions have everything in one file. A step whose time is
    missing or unreadable gets the modification time of the history file.
    """
    path = folder / HISTORY
    if not path.exists():
        return
    last_ms = int(1000 * path.stat().st_mtime)
    for row, measured in zip(_lines(path), chain(_times(folder / TIMES), repeat({})), strict=False):
        said = {"time_ms": last_ms} | measured | row
        yield int(said.pop("step")), int(said.pop("time_ms")), _numbers(flat(said))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path) as lines:
        yield from map(json.loads, lines)


def _times(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the content of each line of the times file, empty if damaged: no digest covers this file."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            said = json.loads(line)
            is_time = isinstance(said, dict) and isinstance(said.get("time_ms"), int)
        except ValueError:
            is_time = False
        yield said if is_time else {}


def last_step(folder: Path) -> int:
    """Return the last step of a training, 0 if nothing was trained."""
    return max((step for step, _, _ in history(folder)), default=0)


def flat(nested: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted path, with names that MLflow accepts."""
    leaves: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{path}.{key}" if path else str(key)
        leaves |= flat(value, name) if isinstance(value, Mapping) else {spelled(name): value}
    return leaves


def _numbers(leaves: Mapping[str, Any]) -> dict[str, float]:
    kinds = (int, float)
    return {
        name: float(value)
        for name, value in leaves.items()
        if isinstance(value, kinds) and not isinstance(value, bool) and not math.isinf(value)
    }


def spelled(text: str) -> str:
    """Replace the characters in a name that MLflow does not accept, and remove ``.`` and ``..`` between slashes."""
    name = re.sub(r"[^\w.\- :/]", "_", text)[:MAX_NAME]
    parts = (part for part in name.split("/") if part.strip(".") or len(part) > 2)
    return "/".join(parts) or "_"
