"""`regraft serve` as users have it: a process that answers, follows the champion, and ends in order."""

import json
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.commands import serving
from tasks import params as parameters
from tasks.errors import InputError
from tasks.tracking import server

REPOSITORY = Path(__file__).parents[3]
TEXTS = ["the staff was lovely", "a horrible garden", "the price of this book is superb 7"]
ADAPTER = "finetuning.adapter={kind: lora, rank: 4, alpha: 16}"


@pytest.fixture
def served(reproduced, command):
    """A project whose champion learned with an adapter."""
    command("regraft", "init", "-S", ADAPTER, "--force")
    command("dvc", "repro", "promotion")
    command("regraft", "promote", "--force", "--reason", "a test")
    return reproduced


@contextmanager
def _serving(root, *words, environment=None):
    """A server on a free port: its process and address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (root / "serve.log").open("w") as log:
        process = subprocess.Popen(
            ["regraft", "serve", *words, "--port", str(port)],
            cwd=root,
            stdout=log,
            stderr=log,
            env=environment,
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", root / "serve.log")
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def _wait(process, address, log):
    ends = time.monotonic() + 180
    while time.monotonic() < ends:
        try:
            return urllib.request.urlopen(address, timeout=5)
        except urllib.error.URLError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def _ask(address, *rows):
    body = json.dumps({"rows": [{"text": text, "adapter": name} for text, name in rows]}).encode()
    request = urllib.request.Request(f"{address}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.e2e
def test_it_answers_as_predict_does_ends_in_order_and_begins_again_as_it_was(served, command):
    with _serving(served, "reviews=models:/reviews@champion", "here=.") as (process, address):
        rows = [(text, name) for text in TEXTS for name in ("reviews", "here")]
        before = _ask(address, *rows)
        _demand_as_predicted(before, command)
        _demand_an_orderly_end(process, address)
    with _serving(served) as (process, _):
        process.kill()
    with _serving(served, "here=.", "reviews=models:/reviews@champion") as (_, address):
        assert _ask(address, *rows) == before
    made = command("regraft", "bundle", "reviews=models:/reviews@champion", "here=.", "--model", "both")
    where = shlex.quote(f"sqlite:///{served}/.regraft/mlflow.db")
    told = f"MLFLOW_TRACKING_URI={where} mlflow models serve -m models:/both/1 --env-manager local"
    assert made.stdout.splitlines()[-1] == told
    refused = command("regraft", "bundle", "--model", "reviews", code=2)
    assert "reviews is a model that this project's gate judges" in refused.stderr


def _demand_as_predicted(found, command):
    for place, text in enumerate(TEXTS):
        told = command("regraft", "predict", text).stdout.split()
        for one in found[2 * place : 2 * place + 2]:
            assert [one["prediction"], f"({one['probabilities'][one['prediction']]:.3f})"] == told


def _demand_an_orderly_end(process, address):
    """Told to end, it answers what it has begun and takes no more."""
    rows = [(f"{TEXTS[0]} {number}", "reviews") for number in range(256)]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(_ask, address, *rows) for _ in range(4)]
        while 'path="/predict",status="200"} 1.0' in _metrics(address):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        ended = [one.exception(120) for one in asked]
    assert process.wait(60) in (0, 128 + signal.SIGTERM)
    assert None in ended
    refused = [error for error in ended if error is not None]
    assert all(isinstance(error, urllib.error.URLError | ConnectionError) for error in refused)
    assert all(len(one.result()) == 256 for one, error in zip(asked, ended, strict=True) if error is None)


def _metrics(address):
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
        return answer.read().decode()


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], {"tweet-sentiment": "models:/tweet-sentiment@champion"}),
        (["a=models:/m@champion", "b=../other"], {"a": "models:/m@champion", "b": "../other"}),
    ],
)
def test_names_and_sources(tmp_path, entries, expected):
    shutil.copyfile(REPOSITORY / "params.yaml", tmp_path / "params.yaml")
    assert serving.named(entries, tmp_path) == expected


def test_champions_of_tasks_are_served_where_there_are_any(project, champions, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri(champions))
    params = parameters.load(project / "params.yaml")
    changed = parameters.override(params, ["tasks={none-yet: {}, careful: {}}"])
    (project / "params.yaml").write_text(parameters.dump(changed))
    assert serving.named([], project) == {
        "reviews": "models:/reviews@champion",
        "careful": "models:/careful@champion",
    }
    with pytest.raises(InputError, match="none-yet is a model that this project's gate judges"):
        serving.bundle(project, {}, "none-yet", lambda line: None)


@pytest.mark.parametrize("entry", ["models:/m@champion", "=x", "a=", "a b=x", f"{'a' * 101}=x"])
def test_an_entry_that_is_none_is_told(tmp_path, entry):
    with pytest.raises(InputError, match="write NAME=models:/MODEL@champion or NAME=DIRECTORY"):
        serving.named([entry], tmp_path)


def test_a_name_that_is_given_twice_is_told(tmp_path):
    with pytest.raises(InputError, match="a is x already"):
        serving.named(["a=x", "a=y"], tmp_path)


def test_sources_and_their_weights():
    entries = ["models:/m@champion=1", "a=b=.5", "../other=-2e-1"]
    assert serving.weighed(entries) == {"models:/m@champion": 1.0, "a=b": 0.5, "../other": -0.2}


@pytest.mark.parametrize("entry", ["models:/m@champion", "=1", "a=", "a=much", "1"])
def test_a_weight_that_is_none_is_told(entry):
    with pytest.raises(InputError, match=f"^{entry}: write SOURCE=WEIGHT, such as"):
        serving.weighed([entry])


def test_a_weight_that_is_given_twice_is_told():
    with pytest.raises(InputError, match="a=2: the weight of a is 1 already"):
        serving.weighed(["a=1", "a=2"])


@pytest.mark.parametrize(
    ("host", "token", "told"),
    [
        ("0.0.0.0", None, "0.0.0.0: others can reach it.*Set REGRAFT_TOKEN in the environment"),
        ("0.0.0.0", "short", "REGRAFT_TOKEN has fewer than 16 characters"),
        ("127.0.0.1", "short", "REGRAFT_TOKEN has fewer than 16 characters"),
    ],
)
def test_nobody_is_let_in_without_a_token(tmp_path, monkeypatch, host, token, told):
    monkeypatch.delenv("REGRAFT_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("REGRAFT_TOKEN", token)
    with pytest.raises(InputError, match=told):
        serving.serve(tmp_path, {}, serving.Plan(host, 8000, None, 32, 30.0), print)


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.delenv("REGRAFT_TOKEN", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port} cannot be had"):
            serving.serve(tmp_path, {}, serving.Plan("127.0.0.1", port, None, 32, 30.0), print)
