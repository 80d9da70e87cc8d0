"""A checkpoint as an MLflow model: its description, signature and example; `serving` loads it and predicts."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clapcur import __version__
from clapcur.store.artifacts import Artifact
from clapcur.tracking import serving

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel


def write_model(checkpoint: Artifact, model: "LoggedModel", folder: Path) -> None:
    """Write the files of a logged model into a new folder; the weights stay in the store.

    Parameters
    ----------
    checkpoint : Artifact
    model : LoggedModel
        Logged model as created by MLflow.
    folder : Path
        Folder that does not exist yet; the address of the checkpoint is written next to it, as JSON.
    """
    import pandas as pd

    address = folder.with_suffix(".json")
    address.write_text(serving.address(checkpoint))
    with warnings.catch_warnings():  # MLflow's own, about its chat models and its use of pandas
        for message in (".*Any type hint is inferred", "Operation with range is deprecated"):
            warnings.filterwarnings("ignore", message)
        from mlflow.models import Model
        from mlflow.pyfunc import save_model

        save_model(
            str(folder),
            loader_module=serving.__name__,
            data_path=str(address),
            mlflow_model=Model(
                artifact_path=model.artifact_location, run_id=model.source_run_id, model_uuid=model.model_id,
                model_id=model.model_id,
            ),
            signature=signature(),
            input_example=pd.DataFrame({"path": ["dog.wav", "rain.flac"], "class_names": ["dog bark; rain"] * 2}),
            pip_requirements=[f"clapcur=={__version__}"],
        )  # fmt: skip


def signature() -> Any:
    """Return the signature of the model: its inputs, outputs and parameters."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    known = Schema([ColSpec("string", "path"), ColSpec("string", "class_names", required=False)])
    said = Schema([ColSpec(kind, name) for name, kind in serving.COLUMNS.items()])
    options = [
        ParamSpec("class_names", "string", [], (-1,)), ParamSpec("prompt", "string", ""),
        ParamSpec("num_crops", "long", 1),
    ]  # fmt: skip
    return ModelSignature(known, said, ParamSchema(options))
