"""A checkpoint as served by MLflow: a table of audio files in, their most likely classes out.

    export CLAPCUR_AUDIO_FOLDERS=/pool/incoming
    mlflow models predict -m models:/clapcur-esc50@champion -i clips.csv -t csv --env-manager local

Requests to a served model name files on the server. Therefore the model reads only regular files in the folders of
`CLAPCUR_AUDIO_FOLDERS`, and nothing if that is not set: no URLs, and no files outside that a symbolic link points to.
Forbidden files are reported like missing ones. `clapcur.audio.access.open_regular` checks this when it opens a file, so
a link that changes meanwhile cannot lead outside.

The model in MLflow is only an address: the weights stay in the store, which must be accessible. After a home was moved,
`clapcur sync` rewrites the address. `clapcur.tracking.models` writes the files that MLflow keeps, and MLflow calls
`_load_pyfunc` to load them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clapcur.audio.access import VARIABLE, confined_to
from clapcur.data.class_names import PROMPT
from clapcur.data.takedowns import why_tainted
from clapcur.errors import DataError
from clapcur.sequences import list_of_texts
from clapcur.store.artifacts import Artifact, Store

if TYPE_CHECKING:
    import pandas as pd

    from clapcur.models.clap import Clap

ADDRESS = "checkpoint.json"
SEPARATOR = ";"
COLUMNS = {"path": "string", "class": "string", "similarity": "float", "probability": "float"}


def address(checkpoint: Artifact) -> str:
    """Return the content of a model's address file in MLflow, as JSON: the store and id of the checkpoint."""
    return json.dumps({"store": str(checkpoint.path.parents[1]), "id": checkpoint.id})


class ZeroShotClassifier:
    """Classifies audio files zero-shot, among classes given by name.

    Parameters
    ----------
    model : Clap
    class_names : sequence of str
        Classes for requests without class names: those that the checkpoint was last scored on.
    prompt : str
        Class prompt; ``{}`` is replaced by the class name.
    """

    def __init__(self, model: "Clap", class_names: Sequence[str] = (), prompt: str = PROMPT) -> None:
        self._model, self._class_names, self._prompt = model, list(class_names), prompt

    def predict(self, frame: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """Classify files.

        Parameters
        ----------
        frame : DataFrame
            Columns ``path`` (audio files) and, optionally, ``class_names`` (classes of the row, separated by ``;``).
        params : mapping, optional
            ``class_names`` for rows without their own; ``prompt``; ``num_crops`` as in
            `clapcur.models.clap.Clap.embed_audio`.

        Returns
        -------
        DataFrame, rows as in `frame`
            ``path``, ``class``, its cosine ``similarity`` and its ``probability`` among the classes.

        Raises
        ------
        DataError
            There is no column ``path``, no classes are given, `CLAPCUR_AUDIO_FOLDERS` is not set, or a file cannot be
            used.
        """
        import pandas as pd

        if confined_to() is None:
            raise DataError(
                f"set {VARIABLE} where the model is served to the folders that it may read, such as "
                f"{VARIABLE}=/pool/incoming:/pool/field"
            )
        if "path" not in frame:
            raise DataError(f"expected a column 'path' of audio files, got the columns {', '.join(map(str, frame))}")
        options = {name: value for name, value in (params or {}).items() if value is not None and len(str(value))}
        named = options.get("class_names", ())
        given = _split(named) if isinstance(named, str) else list_of_texts("class_names", named)
        given = given or list(self._class_names)
        own = frame["class_names"] if "class_names" in frame else pd.Series(None, index=frame.index, dtype=object)
        answers = []
        for classes, rows in frame.groupby(own.fillna(""), sort=False):
            names = _split(str(classes)) or given
            if not names:
                raise DataError(
                    "this checkpoint was not scored yet, so it has no classes of its own: give them in a column "
                    "'class_names', separated by ';', or as the parameter class_names"
                )
            told = self._model.classify(
                rows["path"].tolist(), names, str(options.get("prompt", self._prompt)),
                num_crops=int(options.get("num_crops", 1)),
            )  # fmt: skip
            answers.append(told[list(COLUMNS)].set_index(rows.index))
        return pd.concat(answers).loc[frame.index] if answers else pd.DataFrame(columns=list(COLUMNS))


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(SEPARATOR) if name.strip()]


def _store_of(told: Mapping[str, Any]) -> Store:
    """Return the store that an address names or, if the checkpoint is not there, the store of `CLAPCUR_HOME`.

    Raises
    ------
    DataError
        Neither store has the checkpoint.
    """
    chosen = os.environ.get("CLAPCUR_HOME")
    places = [Path(told["store"]), *([Path(chosen).expanduser() / "store"] if chosen else [])]
    for place in places:
        if (place / "checkpoint" / told["id"]).is_dir():
            return Store(place)
    raise DataError(
        f"checkpoint {told['id']} not found in {' or in '.join(map(str, places))}; if its home was moved, run "
        "`clapcur sync --home HOME`, or set CLAPCUR_HOME to the home"
    )


def _load_pyfunc(path: str) -> ZeroShotClassifier:
    """Return the model that an address file refers to; MLflow calls this function by its name."""
    from clapcur.models.clap import load_model

    told = json.loads(Path(path).read_text())
    store = _store_of(told)
    checkpoint = store.find(told["id"])
    if why := why_tainted(store, checkpoint):
        raise DataError(f"the checkpoint {checkpoint.id} cannot be served: {why}; serve the champion that replaced it")
    protocol: Mapping[str, Any] = {}
    for scores in store.of_kind("scores"):  # the last scores take precedence
        if scores.record.inputs.get("checkpoint") == checkpoint.id:
            protocol = scores.record.config
    return ZeroShotClassifier(
        load_model(checkpoint.path), protocol.get("class_names", ()), protocol.get("prompt", PROMPT)
    )
