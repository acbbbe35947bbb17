"""What a model is worth, where MLflow shows it model by model: figures of an evaluation's run, linked to the
logged model and to the test rows that they were found on, beside the version that it is."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    Metric,
)
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from tasks.tracking.metrics import valid_name
from tasks.tracking.registry import Version
from tasks.tracking.server import asking, connect

ROWS = "test rows"  # name of the data set; models that answered the same rows stand in one column


def link(
    values: Mapping[str, float],
    run_id: str,
    root: Path,
    *,
    name: str,
    version: Version,
    test: str,
    rows: int,
) -> None:
    """Say of `version` of the registered model `name`, on its own page, which version it is and what the
    evaluation `run_id` found on the test rows of digest `test`.

    The run's own points get the link; it is given those that it lacks, as one whose output came from a cache
    does. What is linked already is not sent again. Raises TrackingError where MLflow does not answer.
    """
    if not version.model_id:
        return  # registered by other hands: there is no page to put the figures on
    client = connect(root)
    with asking(client.tracking_uri):
        model = client.get_logged_model(version.model_id)
        _name_version(client, model, name, version.number)
        data = Dataset(ROWS, _digest(test), "local", json.dumps({"digest": test}), None, _profile(rows))
        points = [_point(client, run_id, valid_name(name), value) for name, value in values.items()]
        if new := _linked(points, model, run_id, data):
            shown = DatasetInput(data, [InputTag("mlflow.data.context", "evaluation")])
            client.log_inputs(run_id, [shown], [LoggedModelInput(model.model_id)])
            client.log_batch(run_id, metrics=new)


def _name_version(client: MlflowClient, model: LoggedModel, name: str, number: str) -> None:
    """A client on a database is not told by MLflow, nor is one of a registration that was broken off."""
    told = json.loads(model.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    if (name, number) not in {(one["name"], str(one["version"])) for one in told}:
        more = json.dumps([*told, {"name": name, "version": number}])
        client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: more})


def _point(client: MlflowClient, run_id: str, name: str, value: float) -> Metric:
    """The run's newest point of this value, else one of now."""
    found = [one for one in client.get_metric_history(run_id, name) if one.value == value]
    now = Metric(name, value, int(time.time() * 1000), 0)
    return max(found, key=lambda one: (one.timestamp, one.step), default=now)


def _linked(points: list[Metric], model: LoggedModel, run_id: str, data: Dataset) -> list[Metric]:
    """`points` with model and data set, without those that MLflow links so already."""
    said = {(m.run_id, m.dataset_digest, m.key, m.timestamp, m.step) for m in model.metrics or ()}
    return [
        Metric(p.key, p.value, p.timestamp, p.step, model.model_id, data.name, data.digest, run_id)
        for p in points
        if (run_id, data.digest, p.key, p.timestamp, p.step) not in said
    ]


def _digest(whole: str) -> str:
    return whole.removeprefix("sha256:")[:36]  # MLflow holds no more


def _profile(rows: int) -> str:
    return json.dumps({"rows": rows})
