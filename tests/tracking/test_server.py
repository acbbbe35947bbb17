"""Against a real `mlflow server`, as a team has one."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks import files, params
from tasks.artifacts import Sources
from tasks.errors import TrackingError
from tasks.tracking import runs, server
from tasks.tracking.registry import Registry

PARAMS = params.override(params.load(Path(__file__).parents[2] / "params.yaml"), ["promotion.model=reviews"])


@pytest.mark.e2e
def test_runs_models_and_aliases_through_a_server(
    served, tracked, tiny_classifier, tmp_path, monkeypatch, capfd
):
    address = served.address
    with files.replace_directory(Sources.folder(tracked)) as draft:
        Sources.save(draft, text="sha256:1", checkpoint="sha256:2")
    with runs.open_run("preparation", PARAMS, tracked) as run:
        run.metrics({"test.accuracy": 0.5})
        run.file(Sources.folder(tracked) / "manifest.json")
    client = MlflowClient(tracking_uri=address)
    assert client.get_run(run.parent_id).data.metrics["test.accuracy"] == 0.5
    experiment = client.get_experiment_by_name("reviews")
    assert run.uri == f"{address}/#/experiments/{experiment.experiment_id}/runs/{run.id}"
    assert list((tracked / "served artifacts").rglob("manifest.json"))

    reviews = Registry(tracked, "reviews")
    assert reviews.champion() is None
    model = tiny_classifier(tmp_path / "model")
    version = reviews.register(model, run_id=run.id, max_length=16, kind="label", reading={}, tags={})
    with reviews.locked():
        reviews.promote(version.number, reason="first", by="ann")
    assert reviews.champion() == version
    reviews.keep_predictions(version, model / "config.json", test="sha256:aa")
    assert reviews.predictions(reviews.version("1"), tmp_path, test="sha256:aa").exists()
    directory = reviews.download(version)
    assert files.digest_file(directory / "model.safetensors") == version.weights

    served.stop()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=f"MLflow at {address}"):
        server.connect(tracked)
