"""Several adapters as one MLflow model, asked by a column."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib import metadata
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from packaging.requirements import Requirement

from tasks import environment
from tasks.errors import InputError
from tasks.serving.messages import Row
from tasks.stages import bundle
from tasks.stages.serving import Service
from tasks.tracking import flavor, server

DEPENDENCIES = ("accelerate", "charset-normalizer", "datasets")  # of transformers, peft and requests
pytestmark = pytest.mark.e2e
TEXTS = ["another book by Alice", "daisies close at day", "a White Rabbit"]


@pytest.fixture
def bundled(base, project):
    """A registered bundle of three tasks, and the service that it was made of."""
    made = {
        "moods": project("moods", seed=1, decision={"temperature": 2.5, "abstain_below": 0.4}),
        "news": project("news", seed=2),
        "rating": project("rating", kind="score", labels=(), seed=3),
        "tells": project("tells", kind="labels", labels=("a", "b"), seed=4),
    }
    service = Service(base)
    for name, (root, _) in made.items():
        service.load(name, str(root))
    assert bundle.register(service, base, "tasks") == "1"
    return service


def _loaded(base):
    mlflow.set_tracking_uri(server.uri(base))
    return mlflow.pyfunc.load_model("models:/tasks/1")


def _expected(service, rows):
    prepared = service.prepare([Row(text=text, adapter=name) for text, name in rows])
    found = service.answer(prepared)
    service.release(prepared)
    return found


def test_each_row_is_answered_by_the_adapter_of_its_column(base, bundled):
    rows = [(text, name) for text in TEXTS for name in ("moods", "news", "rating", "tells")] * 20
    found = _loaded(base).predict(pd.DataFrame(rows, columns=["text", "adapter"]))
    assert list(found.columns) == ["adapter", "version", "prediction", "probabilities"]
    assert found["adapter"].tolist() == [name for _, name in rows]
    for told, one in zip(found.to_dict("records"), _expected(bundled, rows), strict=True):
        assert told["version"] is None
        if one.adapter == "rating":
            assert json.loads(told["prediction"]) == pytest.approx(one.prediction, abs=1e-6)
            assert told["probabilities"] is None
        else:
            said = json.loads(told["prediction"]) if one.adapter == "tells" else told["prediction"]
            assert said == one.prediction
            assert json.loads(told["probabilities"]) == pytest.approx(one.probabilities, abs=1e-6)
    assert None in found["prediction"].tolist(), "moods abstains"


def test_a_version_says_what_it_is_made_of(base, bundled):
    found = MlflowClient(server.uri(base)).get_model_version("tasks", "1")
    told = json.loads(found.tags["regraft.adapters"])
    assert sorted(told) == ["moods", "news", "rating", "tells"]
    assert all(one["digest"].startswith("sha256:") for one in told.values())
    assert bundle.register(bundled, base, "tasks") == "1", "the same adapters on the same base are known"
    bundled.unload("news")
    assert bundle.register(bundled, base, "tasks") == "2"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("a text", "mood")], "no adapter 'mood' is served; did you mean 'moods'"),
        ([("a text", None)], "row 0 names no adapter; known: moods, news, rating, tells"),
        ([("a text", "moods"), (" ", "moods")], "row 1: cleaned, nothing is left of its text"),
        ([("a text", "moods")] * 70 + [(" ", "news")], "row 70: cleaned, nothing is left of its text"),
    ],
)
def test_a_row_that_cannot_be_answered_is_told(base, bundled, rows, told):
    asked = pd.DataFrame(rows, columns=["text", "adapter"])
    with pytest.raises(InputError, match=told):
        bundle.Answering(_data(base)).predict(asked)


def _data(base):
    (found,) = (base / ".regraft" / "mlartifacts").rglob(bundle.ADAPTERS)
    return found.parent


def test_a_text_may_be_longer_than_a_request_of_the_server(base, bundled):
    asked = pd.DataFrame([("word " * 10_000, "news")], columns=["text", "adapter"])
    assert bundle.Answering(_data(base)).predict(asked)["adapter"].tolist() == ["news"]


def test_an_environment_of_its_own_has_all_that_is_imported():
    """By names of distributions; what those need themselves comes along."""
    told = "import sys, tasks.stages.bundle; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    packages = metadata.packages_distributions()
    used = {one.lower() for name in done.stdout.split() for one in packages.get(name, ())}
    ours = [Requirement(line) for line in metadata.requires("regraft") or ()]
    declared = {one.name.lower() for one in ours if not one.marker}
    assert used & declared <= {*flavor.BUNDLED, *DEPENDENCIES}


def test_a_name_that_another_model_has_is_refused(base, bundled, project, register):
    register("tweets", project("yes")[0])
    with pytest.raises(
        InputError, match="tweets version 1 is no bundle: choose a name that only bundles have"
    ):
        bundle.register(bundled, base, "tweets")


def test_nothing_is_registered_of_no_adapter(base):
    with pytest.raises(InputError, match="no adapter"):
        bundle.register(Service(base), base, "tasks")


def test_mlflow_serves_all_tasks_at_one_address(base, bundled, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/tasks/1", "--env-manager",
             "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            env={
                **os.environ, **environment.QUIET, "MLFLOW_TRACKING_URI": server.uri(base),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            cwd=tmp_path, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            _wait(f"http://127.0.0.1:{port}/ping", process, tmp_path / "log")
            rows = [(TEXTS[0], "news"), (TEXTS[1], "rating")]
            body = {"dataframe_split": {"columns": ["text", "adapter"], "data": rows}}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                found = json.load(answer)["predictions"]
        finally:
            os.killpg(process.pid, 15)
            process.wait(60)
    one, other = _expected(bundled, rows)
    assert (found[0]["adapter"], found[0]["prediction"]) == ("news", one.prediction)
    assert json.loads(found[1]["prediction"]) == pytest.approx(other.prediction, abs=1e-6)


def _wait(address, process, log):
    for _ in range(900):
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text(errors="replace")[-2000:])
