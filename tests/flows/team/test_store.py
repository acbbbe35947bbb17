"""`regraft servers --artifacts s3://…` on a real S3 server: only MLflow's server holds a key."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

boto3 = pytest.importorskip("boto3", reason="S3 comes with regraft[servers]")
pytest.importorskip("moto", reason="an S3 server comes with regraft[dev]")
pytestmark = pytest.mark.e2e
KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "planted-store-5e8c",
    "AWS_DEFAULT_REGION": "us-east-1",
}
SERVERS = [sys.executable, "-m", "flows.cli", "servers"]


@contextmanager
def _running(words, log, env):
    with log.open("a") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said, env=env, start_new_session=True)
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(condition, *, patience, what):
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what} did not happen within {patience} s")


def _answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@pytest.fixture
def store(tmp_path, variables):
    """Variables with which the bucket `models` can be written to."""
    address = f"http://127.0.0.1:{_free_port()}"
    words = [sys.executable, "-m", "moto.server", "-p", address.rpartition(":")[2]]
    with _running(words, tmp_path / "s3.log", {**variables}):
        _wait(lambda: _answers(address), patience=120, what="the start of the S3 server")
        _s3(address).create_bucket(Bucket="models")
        yield KEYS | {"AWS_ENDPOINT_URL": address}


def _s3(address):
    return boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )


def _objects(store):
    found = _s3(store["AWS_ENDPOINT_URL"]).list_objects_v2(Bucket="models")
    return [one["Key"] for one in found.get("Contents", [])]


def test_what_is_logged_lies_in_the_bucket_and_comes_back_without_a_key(store, tmp_path, variables):
    ports = (_free_port(), _free_port())
    words = [*SERVERS, "--root", str(tmp_path), "--artifacts", "s3://models/mlflow"]
    words += ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    log = tmp_path / "servers.log"
    with _running(words, log, {**variables, **store}) as process:
        _wait(
            lambda: "Ctrl-C stops both" in log.read_text() or process.poll() is not None,
            patience=300, what="the start of both servers",
        )  # fmt: skip
        assert process.poll() is None, log.read_text()
        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{ports[1]}")
        run = client.create_run(client.create_experiment("reviews"))
        page = tmp_path / "page.html"
        page.write_text("<p>a page</p>")
        client.log_artifact(run.info.run_id, str(page))
        (found,) = _objects(store)
        assert found.startswith("mlflow/")
        assert found.endswith(f"{run.info.run_id}/artifacts/page.html")
        (tmp_path / "back").mkdir()
        back = client.download_artifacts(run.info.run_id, "page.html", str(tmp_path / "back"))
        assert Path(back).read_text() == "<p>a page</p>"
    assert "planted-store" not in log.read_text()


def test_a_bucket_that_is_not_there_is_told_before_anything_begins(store, tmp_path, variables):
    done = subprocess.run(
        [*SERVERS, "--root", str(tmp_path), "--artifacts", "s3://modles/mlflow"],
        env={**variables, **store}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "--artifacts s3://modles/mlflow: " in done.stderr
    assert "Make the bucket 'modles'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".regraft").exists()
