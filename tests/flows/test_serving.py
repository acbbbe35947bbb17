"""`mlflow models serve` on the champion, over HTTP."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from flows.commands import consume
from tasks import environment, params
from tasks.tracking import server

PARAMS = params.override(params.load(Path(__file__).parents[2] / "params.yaml"), ["promotion.model=reviews"])
TEXTS = ["good film", "bad", "film film bad", "a word it does not know", "good " * 40]


@pytest.fixture
def address(champions, tmp_path, monkeypatch):
    """Of `mlflow models serve`, as the README has it, on a free port; elsewhere than the project."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/reviews@champion", "--env-manager",
         "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        env={
            **os.environ, **environment.QUIET, "MLFLOW_TRACKING_URI": server.uri(champions),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        cwd=tmp_path, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        _wait(f"http://127.0.0.1:{port}", process, tmp_path / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 15)
            process.wait(timeout=60)
        log.close()


def _wait(address, process, log):
    for _ in range(900):
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text(errors="replace")[-2000:])


def _asked(address, body):
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.e2e
def test_what_mlflow_serves_says_what_regraft_predict_says(address, champions):
    said = _asked(address, {"inputs": TEXTS})
    ours = [next(consume.predict(PARAMS, champions, text, None)) for text in TEXTS]
    assert [f"{one['label']} ({one['score']:.3f})" for one in said] == ours
    assert len(set(ours)) > 2, "a constant would agree too"
    with pytest.raises(urllib.error.HTTPError, match="400"):
        _asked(address, {"inputs": [{"text": 3}]})
