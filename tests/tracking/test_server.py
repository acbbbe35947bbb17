"""Against a real `mlflow server`, as a team has one."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks import files, params
from tasks.artifacts import Sources
from tasks.errors import TrackingError
from tasks.tracking import runs, server
from tasks.tracking.registry import Registry

PARAMS = params.override(params.load(Path(__file__).parents[2] / "params.yaml"), ["promotion.model=reviews"])


@pytest.fixture
def served(tracked, monkeypatch):
    """(address, process) of a server on a free port with the tracked database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    database, artifacts = server.uri(tracked), str(tracked / "served artifacts")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
         "--backend-store-uri", database, "--artifacts-destination", artifacts],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        cwd=tracked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    _wait(address, process)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    yield address, process
    _stop(process)


def _wait(address, process):
    for _ in range(600):
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not start")


def _stop(process):
    if process.poll() is None:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)


@pytest.mark.e2e
def test_runs_models_and_aliases_through_a_server(
    served, tracked, tiny_classifier, tmp_path, monkeypatch, capfd
):
    address, process = served
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
    version = reviews.register(model, run_id=run.id, max_length=16, kind="label", tags={})
    with reviews.locked():
        reviews.promote(version.number, reason="first", by="ann")
    assert reviews.champion() == version
    reviews.keep_predictions(version, model / "config.json", test="sha256:aa")
    assert reviews.predictions(reviews.version("1"), tmp_path, test="sha256:aa").exists()
    directory = reviews.download(version)
    assert files.digest_file(directory / "model.safetensors") == version.weights

    _stop(process)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=f"MLflow at {address}"):
        server.connect(tracked)
