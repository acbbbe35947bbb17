"""Fine-tuning on another worker: two clones with caches of their own share a DVC remote, an MLflow server, no more."""

import configparser
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from types import SimpleNamespace
from uuid import uuid4

import pytest
import yaml
from prefect.states import AwaitingRetry, Completed, Crashed, Running, Scheduled

from flows import elsewhere
from tasks import params as parameters
from tasks.artifacts import Promotion
from tasks.errors import TrainingError

PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


@contextmanager
def _running(words, log, **more):
    with log.open("a") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said, start_new_session=True, **more)
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _wait(condition, *, patience, what):
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what} did not happen within {patience} s")


def _runs(flow):
    body = {"flows": {"name": {"any_": [flow]}}}
    request = urllib.request.Request(
        os.environ["PREFECT_API_URL"] + "/flow_runs/filter", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def _git(root, *words):
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def remote(tmp_path, variables, monkeypatch):
    """The settings of DVC's remote `store`: a bucket where DVC's plugin for S3 and moto are installed, else a directory."""
    if not (find_spec("dvc_s3") and find_spec("moto")):
        yield {"url": str(tmp_path / "store")}
        return
    import boto3

    address = f"http://127.0.0.1:{_free_port()}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    port = address.rpartition(":")[2]
    with _running([sys.executable, "-m", "moto.server", "-p", port], tmp_path / "s3.log"):
        _wait(lambda: _answers(address), patience=120, what="the start of the S3 server")
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="regraft")
        yield {"url": "s3://regraft/dvc", "endpointurl": address}


@pytest.fixture
def clones(seed_project, remote, tmp_path, variables):
    """One has the table and the checkpoint; the other is a clone of what is in git."""
    here, there, origin = tmp_path / "a cpu", tmp_path / "a gpu", tmp_path / "origin.git"
    shutil.copytree(seed_project, here)
    _git(here, "init", "-q", "-b", "main")
    (here / ".git" / "info" / "exclude").write_text("/reviews.csv\n/base/\n")
    config = configparser.ConfigParser()
    config.read(here / ".dvc" / "config")
    config.read_dict({"core": {"remote": "store"}, """'remote "store"'""": remote})
    with (here / ".dvc" / "config").open("w") as stream:
        config.write(stream)
    operations = ["operations.finetuning=finetune/gpu", "operations.commit_lock=true"]
    path = here / "params.yaml"
    path.write_text(parameters.dump(parameters.override(parameters.load(path), operations)))
    _git(here, "add", "-A")
    _git(here, "commit", "-q", "-m", "Start")
    _git(tmp_path, "clone", "-q", "--bare", str(here), str(origin))
    _git(tmp_path, "clone", "-q", str(origin), str(there))
    return here, there


def _worker(pool, clone, log):
    own = {"REGRAFT_CHECKOUT": str(clone), "PYTHONPATH": str(clone), "DVC_SITE_CACHE_DIR": f"{clone}.site"}
    words = [*PREFECT, "worker", "start", "--pool", pool, "--type", "process"]
    return _running(words, log, cwd=log.parent, env=os.environ | own)


def _pool(clone, deployment):
    listed = yaml.safe_load((clone / "prefect.yaml").read_text())["deployments"]
    (found,) = [one for one in listed if one["name"] == deployment]
    return found["work_pool"]["name"]


def _outs(root):
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def _cached(root, digest):
    return (root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]).exists()


@pytest.mark.e2e
def test_a_worker_elsewhere_fine_tunes_as_it_would_be_done_here(
    clones, served, prefect_server, request, tmp_path
):
    here, there = clones
    for pool in {_pool(here, "transfer"), "gpu"}:
        subprocess.run([*PREFECT, "work-pool", "create", pool, "--type", "process"], cwd=here, check=True)
    for name in ("transfer", "gpu"):
        subprocess.run([*PREFECT, "deploy", "--name", name], cwd=here, check=True)
    call = [*PREFECT, "deployment", "run", "transfer/transfer", "--param", 'leaf="inprocess"']
    subprocess.run(call, cwd=here, check=True)
    log = tmp_path / "workers.log"
    with _worker(_pool(here, "transfer"), here, log), _worker("gpu", there, log):
        _wait(
            lambda: all(run["state_type"] in {"COMPLETED", "FAILED", "CRASHED"} for run in _runs("transfer")),
            patience=500,
            what="the end of the run",
        )
    assert [run["state_name"] for run in _runs("transfer")] == ["Completed"], log.read_text()[-6000:]
    assert [run["state_name"] for run in _runs("finetune")] == ["Completed"]
    assert _outs(here) == _outs(request.getfixturevalue("seed_reproduced")), (
        "the same digests, wherever the model was trained"
    )
    assert Promotion.load(here).outcome == "promote"
    assert _cached(there, _outs(here)["data/finetuning"])
    assert not _cached(there, _outs(here)["data/preparation"]), "texts that are not needed there stay here"
    assert not list((there / ".regraft" / "runs").iterdir())
    assert _git(here, "log", "-1", "--format=%s") == "Reproduce"
    assert not _git(here, "status", "--porcelain")


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(elsewhere, "PAUSE", 0.0)


def _client(*states):
    """Tells one state after the other, the last one for ever."""
    left = list(states)
    return SimpleNamespace(
        read_flow_run=lambda run: SimpleNamespace(state=left.pop(0) if len(left) > 1 else left[0])
    )


def test_a_crashed_run_that_goes_on_is_waited_for(no_pause):
    client = _client(Running(), Crashed(), AwaitingRetry(), Running(), Completed())
    assert elsewhere._final(client, uuid4(), "finetune/gpu").is_completed()


def test_a_crashed_run_that_nobody_begins_again_has_ended(no_pause, monkeypatch):
    monkeypatch.setattr(elsewhere, "REVIVAL", 0.0)
    assert elsewhere._final(_client(Running(), Crashed()), uuid4(), "finetune/gpu").is_crashed()


def test_a_pool_without_a_worker_is_not_waited_for_without_end(no_pause, monkeypatch):
    monkeypatch.setattr(elsewhere, "PATIENCE", 0.0)
    with pytest.raises(TrainingError, match="no worker took the run within 0 h: `regraft doctor`"):
        elsewhere._final(_client(Scheduled()), uuid4(), "finetune/gpu")
