"""Label Studio: pairs as tasks, and its annotations as marks.

Tasks follow its basic JSON format and annotations its JSON export (not JSON-MIN), as documented at
https://labelstud.io/guide/task_format: a list of tasks with ``data`` and ``annotations``; an annotation has
``completed_by`` (a number, or an object with ``id`` and ``email``), ``was_cancelled`` (skipped) and ``result``.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from clapcur.data.marks import COLUMNS, MARKS, PAIR, TEXTS
from clapcur.errors import DataError
from clapcur.textfiles import read_text

CONFIG = """<View>
  <Audio name="audio" value="$audio"/>
  <Header value="Does the caption describe the sound?"/>
  <Text name="caption" value="$caption"/>
  <Choices name="mark" toName="audio" choice="single" required="true" showInline="true">
    <Choice value="right" hotkey="r"/>
    <Choice value="wrong" hotkey="x"/>
  </Choices>
</View>
"""
"""The labelling interface for `tasks`."""


def tasks(pairs: pd.DataFrame, audio: Mapping[str, str]) -> str:
    """Return pairs as tasks in JSON. `CONFIG` does not show the similarity, which would influence listeners.

    Parameters
    ----------
    pairs : DataFrame
        One row per pair: clip_id, caption_id, similarity, class, caption and path of each pair.
    audio : mapping of str to str
        Address of the sound of each clip, as Label Studio reads it; pairs of other clips are left out.
    """
    names = [*PAIR, "similarity", "class", *TEXTS]
    here = pairs[pairs.clip_id.isin(list(audio))]
    found = [{"data": {"audio": audio[str(pair["clip_id"])], **pair}} for pair in here[names].to_dict("records")]
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def read_annotations(path: Path) -> dict[str, pd.DataFrame]:
    """Read the marks of every person from Label Studio's JSON export.

    Skipped tasks, drafts and predictions are no marks.

    Returns
    -------
    dict of str to DataFrame
        By the person's e-mail address or number: marks with texts, as `clapcur.data.marks.read_marks` returns them.

    Raises
    ------
    DataError
        The file does not exist, is not such an export, a task is not one of `tasks`, or a person marked a pair both
        right and wrong.
    """
    if not path.is_file():
        raise DataError(f"the export {path} does not exist; export the project from Label Studio as JSON")
    try:
        exported = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(exported, list) or not all(
        isinstance(task, dict) and isinstance(task.get("data"), dict) for task in exported
    ):
        raise DataError(f"{path} must be a list of tasks with 'data'; export the project as JSON, not as JSON-MIN")
    rows: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for task in exported:
        where = f"{path}, task {task.get('id', '?')}"
        for person, mark in _marks_of(task, where):
            row = _row(task["data"], mark, where)
            of_person = rows.setdefault(person, {})
            pair = (row["clip_id"], row["caption_id"])
            if of_person.get(pair, row)["mark"] != mark:
                raise DataError(f"{where}: {person} marked this pair both right and wrong; delete one annotation")
            of_person[pair] = row
    names = [*COLUMNS, *TEXTS]
    return {
        person: pd.DataFrame(list(of_person.values()), columns=names).sort_values(PAIR, ignore_index=True)
        for person, of_person in sorted(rows.items())
    }


def _marks_of(task: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """Yield person and mark of every annotation of a task."""
    annotations = task.get("annotations", [])
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise DataError(f"{where}: 'annotations' must be a list of objects")
    for annotation in annotations:
        if annotation.get("was_cancelled"):
            continue
        by = annotation.get("completed_by", "unknown")
        person = str(by.get("email") or by.get("id") or "unknown") if isinstance(by, dict) else str(by)
        for result in annotation.get("result") or []:
            if result.get("from_name") != "mark":
                continue
            choices = (result.get("value") or {}).get("choices") or []
            if len(choices) != 1 or choices[0] not in MARKS:
                raise DataError(f"{where}: expected one choice, {' or '.join(MARKS)}, got {choices!r} of {person}")
            yield person, choices[0]


def _row(data: Mapping[str, Any], mark: str, where: str) -> dict[str, Any]:
    if missing := [name for name in PAIR if not isinstance(data.get(name), str) or not data[name]]:
        raise DataError(f"{where} has no {', '.join(missing)}; import tasks made by `clapcur audition --label-studio`")
    similarity = data.get("similarity")
    is_cosine = isinstance(similarity, (int, float)) and -1 <= similarity <= 1
    if similarity is not None and not is_cosine:
        raise DataError(f"{where}: similarity must be a cosine in [-1, 1], got {similarity!r}")
    texts = {name: str(data.get(name) or "") for name in ("class", *TEXTS)}
    ids = {name: data[name].lower() for name in PAIR}
    return {**ids, "mark": mark, "similarity": float("nan") if similarity is None else float(similarity), **texts}
