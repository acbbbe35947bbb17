"""Retraining on new data and promotion by a person, by prefect.yaml as shipped, a real server and a real worker."""

import json
import random
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks import params as parameters
from tasks.artifacts import PreparedText, TrainedModel
from tasks.errors import RegraftError
from tasks.tracking.registry import Registry

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
BUSY = 60  # seconds that a server may answer 503: two write to its SQLite file at once


class Deployed:
    """The deployments of a project on a server, asked as the UI asks."""

    def __init__(self, address, project):
        self.address, self.project = address, project

    def ask(self, path, body=None, method=None):
        data, kind = None if body is None else json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, kind, method=method)
        for _ in range(BUSY):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.loads(answer.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
            time.sleep(1)
        raise AssertionError(f"{path}: the server's SQLite file stays locked")

    def start(self, name, **parameters):
        deployment = self.ask(f"/deployments/name/{name}")["id"]
        return self.ask(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"]

    def unschedule(self, name):
        """It runs when it is asked to."""
        deployment = self.ask(f"/deployments/name/{name}")
        for schedule in deployment["schedules"]:
            self.ask(f"/deployments/{deployment['id']}/schedules/{schedule['id']}", method="DELETE")

    def state(self, run, among, *, patience=900):
        ends = time.monotonic() + patience
        while time.monotonic() < ends:
            state = self.ask(f"/flow_runs/{run}")["state"]
            if state["type"] in among:
                return state
            assert state["type"] not in ENDED, state
            time.sleep(1)
        raise AssertionError(f"{run} is {state['name']} after {patience} s")

    def ends(self, name, **parameters):
        """Name and message of the state in which the run ends."""
        state = self.state(self.start(name, **parameters), ENDED)
        return state["name"], state["message"]

    def artifacts(self):
        return {artifact["key"]: artifact for artifact in self.ask("/artifacts/filter", {})}


@pytest.fixture
def deployed(reproduced, command, prefect_server, tmp_path):
    """With a worker that has one run at a time, as the README says."""
    for pool in ("cpu", "gpu"):
        command(*PREFECT, "work-pool", "create", pool, "--type", "process", "--overwrite")
    command(*PREFECT, "work-pool", "set-concurrency-limit", "cpu", "1")
    command(*PREFECT, "deploy", "--all")
    found = Deployed(prefect_server, reproduced)
    for name in ("transfer/prepare-nightly", "transfer/nightly", "retrain/retrain-on-new-data"):
        found.unschedule(name)
    with _worker(tmp_path):
        yield found


@contextmanager
def _worker(folder):
    words = [*PREFECT, "worker", "start", "--pool", "cpu", "--type", "process"]
    with (folder / "worker.log").open("w") as log:
        worker = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)
        try:
            yield
        finally:
            worker.terminate()
            worker.wait(timeout=60)


def _add_rows(project, count):
    """Unlike the others: half as long, of other words, nearly all good."""
    chance = random.Random(7)
    with (project / "reviews.csv").open("a") as stream:
        for number in range(count):
            said = " ".join(chance.sample(["sofa", "lamp", "rug", "chair", "desk", "shelf"], 3))
            stream.write(f"{said} {number},{'bad' if number % 10 == 0 else 'good'}\n")


def test_new_rows_are_looked_at_and_then_trained_on(deployed):
    project, where = deployed.project, {"checkout": str(deployed.project), "leaf": "inprocess"}
    before = TrainedModel.load(project).weights
    assert deployed.ends("retrain/retrain-on-new-data", **where) == (
        "Skipped",
        "nothing new: the last run was made from this very data",
    )
    assert not (project / "reports" / "drift.html").exists()
    _add_rows(project, 80)
    name, message = deployed.ends("retrain/retrain-on-new-data", maximum_drift=0.2, **where)
    assert name == "Held", message
    assert "80 of 320 rows are new: unlike the training rows in length, words, classes" in message
    for nightly in ("transfer/prepare-nightly", "transfer/nightly"):
        name, message = deployed.ends(nightly, maximum_drift=0.2, **where)
        assert (name, "More than maximum_drift = 0.2" in message) == ("Held", True), message
        assert deployed.ask(f"/deployments/name/{nightly}")["parameters"]["maximum_drift"] is None
    assert _drift_in_mlflow(project).keys() == {
        f"drift.{measure}{what}"
        for measure in ("length", "words", "classes", "states")
        for what in ("", ".by_chance", ".p")
    }
    assert PreparedText.load(project).rows_in == 240, "held before anything was prepared"
    assert {"drift", "drift-measures"} <= deployed.artifacts().keys()
    name, message = deployed.ends("retrain/retrain-on-new-data", **where)
    assert (name, message.partition(".")[0]) == ("Retrained", "the text source has changed")
    assert PreparedText.load(project).rows_in == 320
    assert TrainedModel.load(project).weights != before
    assert "80 of 320 rows are new" in (project / "reports" / "drift.html").read_text()
    assert deployed.ends("retrain/retrain-on-new-data", **where)[0] == "Skipped"


def test_what_fails_alike_is_not_begun_at_every_look(deployed):
    project, where = deployed.project, {"checkout": str(deployed.project), "leaf": "inprocess"}
    path = project / "params.yaml"
    path.write_text(parameters.dump(parameters.override(parameters.load(path), ["finetuning.device=cuda"])))
    _add_rows(project, 80)
    assert deployed.ends("retrain/retrain-on-new-data", **where)[0] == "Failed"
    name, message = deployed.ends("retrain/retrain-on-new-data", **where)
    assert name == "Held"
    assert message.startswith("tried once on this very data, params and code: "), message
    assert "torch sees no CUDA device" in message
    assert deployed.ends("retrain/retrain-on-new-data", **where) == ("Skipped", message)
    assert deployed.ends("retrain/retrain-on-new-data", again=True, **where)[0] == "Failed"


def _drift_in_mlflow(project):
    """The figures of the one run that three looks at the same rows have made."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/.regraft/mlflow.db")
    experiment = client.get_experiment_by_name("reviews").experiment_id
    (run,) = client.search_runs([experiment], "tags.`regraft.stage` = 'drift'")
    return run.data.metrics


def test_a_person_says_no_and_then_yes(deployed):
    project = deployed.project
    _judge_alone(project)
    registry = Registry(project, "opinions")
    run = _paused(deployed)
    assert "promotion-verdict" in deployed.artifacts()
    state = _answered(deployed, run, approve=False, by="bob", reason="not before the release")
    assert state["name"] == "Refused"
    assert state["message"].endswith("bob said no: not before the release")
    assert registry.champion() is None
    run = _paused(deployed)
    assert (
        deployed.ends("retrain/retrain-on-new-data", checkout=str(project), leaf="inprocess")[0] == "Skipped"
    )
    state = _answered(deployed, run, approve=True, by="ann", reason="read the errors")
    assert state["name"] == "Promoted"
    last = registry.history()[-1]
    assert (registry.champion().number, last.by) == (last.version, "ann")
    assert last.reason.startswith("by hand: read the errors")


def _judge_alone(project):
    """A pipeline that only judges, before the first promotion under this name."""
    path, changes = project / "params.yaml", ["promotion.move_alias=false", "promotion.model=opinions"]
    path.write_text(parameters.dump(parameters.override(parameters.load(path), changes)))


def _paused(deployed):
    run = deployed.start("promote/promote", checkout=str(deployed.project), poll_seconds=1)
    deployed.state(run, {"PAUSED"})
    return run


def _answered(deployed, run, **answer):
    said = deployed.ask(f"/flow_runs/{run}/resume", {"run_input": answer})
    assert said["status"] == "ACCEPT", said
    return deployed.state(run, ENDED)


def test_a_run_that_broke_off_is_not_finished(reproduced):
    from flows.checkout.stage import reproduce
    from flows.retraining import arrived

    assert arrived(reproduced) is None
    _add_rows(reproduced, 40)
    for stage, told in (
        ("sources", "the text source has changed"),
        ("preparation", "the last run did not finish: vocabulary has not seen this data"),
        (
            "vocabulary",
            "the last run did not finish: encoding has not seen this data",
        ),  # the tokenizer is the same
    ):
        reproduce(stage, reproduced, "inprocess", lambda message: None)
        assert arrived(reproduced) == told


def test_a_flow_may_end_at_a_stage(reproduced):
    from typing import get_args

    from flows.checkout.stage import Stage, in_order

    assert in_order(reproduced, until="preparation") == ["sources", "preparation"]
    assert in_order(reproduced, until="encoding") == ["sources", "preparation", "vocabulary", "encoding"]
    assert sorted(get_args(Stage)) == sorted(in_order(reproduced))
    assert in_order(reproduced, until="promotion") == in_order(reproduced)


@pytest.fixture
def importing(tmp_path, variables):
    """A repository whose table DVC imported from a path beside it."""
    root, origin = tmp_path / "a project", tmp_path / "origin.csv"
    origin.write_text("text,label\nfirst,a\n")
    root.mkdir()
    for words in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["dvc", "import-url", str(origin), "data.csv"],
    ):
        subprocess.run(words, cwd=root, check=True, capture_output=True)
    shipped = parameters.load(REPOSITORY / "params.yaml")
    mine = parameters.override(shipped, ["sources.text.path=data.csv"])
    (root / "params.yaml").write_text(parameters.dump(mine))
    return root


def test_an_imported_table_is_fetched_from_where_it_comes_from(importing, tmp_path):
    from flows.retraining import fetch

    (tmp_path / "origin.csv").write_text("text,label\nfirst,a\nsecond,b\n")
    assert fetch(importing)
    assert (importing / "data.csv").read_text().endswith("second,b\n")
    (tmp_path / "origin.csv").unlink()
    with pytest.raises(RegraftError, match=r"data\.csv\.dvc cannot be brought up to date: .*`dvc update"):
        fetch(importing)


def test_a_tracked_table_that_is_missing_is_pulled(importing, command, tmp_path):
    from flows.retraining import fetch

    (importing / "data.csv.dvc").unlink()
    command("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    command("dvc", "add", "data.csv")
    command("dvc", "push")
    (importing / "data.csv").unlink()
    shutil.rmtree(importing / ".dvc" / "cache")
    assert fetch(importing)
    assert (importing / "data.csv").read_text().endswith("first,a\n")


def test_a_table_that_dvc_does_not_keep_is_left_alone(importing):
    from flows.retraining import fetch

    (importing / "data.csv.dvc").unlink()
    assert not fetch(importing)
