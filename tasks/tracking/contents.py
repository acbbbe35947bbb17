"""What a registered version holds: a transformers directory, stored once per weights as an MLflow model."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.models import Model

from tasks.errors import TrackingError

WEIGHTS = "regraft.weights"
WEIGHTS_FILE = "model.safetensors"


def log(
    client: MlflowClient, name: str, directory: Path, run_id: str, weights: str, *, max_length: int, kind: str
) -> Any:
    """The complete MLflow model of these weights, logged now or when a registration got no further."""
    experiment = client.get_run(run_id).info.experiment_id
    for found in client.search_logged_models([experiment], f"tags.`{WEIGHTS}` = '{weights}'"):
        if found.status == "READY":
            return found
    made = client.create_logged_model(experiment, name, run_id, tags={WEIGHTS: weights})
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        from tasks.tracking import flavor  # heavy, and a registered model needs it no more

        about = Model(run_id=run_id, model_id=made.model_id)
        flavor.save(directory, target, about, max_length=max_length, kind=kind)
        client.log_model_artifacts(made.model_id, str(target))
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, 0)])
    return client.finalize_logged_model(made.model_id, "READY")


def fetch(client: MlflowClient, name: str, number: str, draft: Path) -> None:
    """Model and tokenizer of version `number` into `draft`; TrackingError where a file is missing."""
    source = client.get_model_version_download_uri(name, number)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = Path(mlflow.artifacts.download_artifacts(source, None, None, folder, client.tracking_uri))
            shutil.copytree(found / "model", draft, dirs_exist_ok=True)
            shutil.copytree(found / "components" / "tokenizer", draft, dirs_exist_ok=True)
            (draft / WEIGHTS_FILE).stat()
        except FileNotFoundError as error:
            raise TrackingError(f"{name} version {number} is not whole in {source}: {error}") from error
