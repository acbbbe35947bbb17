"""A server that does not answer costs no training: what was told waits, and is sent once."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks import files, params
from tasks.artifacts import Sources
from tasks.errors import TrackingError
from tasks.tracking import live, runs, server, spool
from tasks.tracking.registry import Registry

SHIPPED = Path(__file__).parents[2] / "params.yaml"
PARAMS = params.override(params.load(SHIPPED), ["promotion.model=reviews"])
NOWHERE = "http://127.0.0.1:9"
DIES = """
import os, sys
from pathlib import Path
from tasks import params
from tasks.tracking import runs
settings = params.override(params.load(Path(sys.argv[1])), ["promotion.model=reviews"])
with runs.open_run("preparation", settings, Path(sys.argv[2])) as run:
    run.metrics({"loss": 2.0}, step=1)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def root(tracked, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with files.replace_directory(Sources.folder(tracked)) as draft:
        Sources.save(draft, text="sha256:1", checkpoint="sha256:2")
    (tracked / "curve.csv").write_text("1,2", encoding="utf-8")
    return tracked


@pytest.fixture
def client(root):
    return MlflowClient(server.uri(root))


@pytest.fixture
def degraded(root, monkeypatch):
    """Runs a stage while no server answers."""

    def work(stage="preparation", loss=2.0):
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
            with runs.open_run(stage, PARAMS, root) as run:
                run.metrics({"loss": loss}, step=1)
                run.metrics({"test.accuracy": 0.5})
                run.file(root / "curve.csv", "curves")
                run.output("sha256:9")

    return work


def every(client):
    experiment = client.get_experiment_by_name("reviews").experiment_id
    return {run.data.tags["regraft.stage"]: run for run in client.search_runs([experiment])}


def test_what_was_told_without_a_server_is_sent_by_the_next_stage(root, client, degraded):
    degraded()
    (root / "curve.csv").unlink()
    assert spool.told(root).startswith("tracking degraded: the run of 1 stage waits in ")
    with runs.open_run("vocabulary", PARAMS, root):
        pass
    assert spool.told(root) == ""
    found = every(client)
    run, parent = found["preparation"], found["pipeline"]
    assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", parent.info.run_id)
    assert (run.data.metrics["loss"], parent.data.metrics["test.accuracy"]) == (2.0, 0.5)
    assert (run.data.tags["regraft.output"], run.data.tags["regraft.tracking"]) == ("sha256:9", "degraded")
    assert run.data.params["threshold"] == "0.8"
    assert [entry.path for entry in client.list_artifacts(run.info.run_id, "curves")] == ["curves/curve.csv"]
    assert run.info.start_time <= run.info.end_time < found["vocabulary"].info.start_time
    assert "regraft.tracking" not in found["vocabulary"].data.tags
    assert not list((root / ".regraft" / "spool").iterdir())


def test_stages_are_sent_in_order_and_later_figures_are_the_last(root, client, degraded):
    degraded(loss=2.0)
    degraded("vocabulary")
    degraded(loss=1.0)
    assert [found.opening().stage for found in spool.waiting(root)] == [
        "preparation",
        "vocabulary",
        "preparation",
    ]
    runs.send_waiting(client, root)
    assert every(client)["preparation"].data.metrics["loss"] == 1.0
    assert spool.waiting(root) == []


def test_sending_that_is_broken_off_goes_on_in_the_same_run(root, client, degraded, monkeypatch):
    degraded()
    take = live.Live.take

    def broken(self, event):
        if event["kind"] == "file":
            raise TrackingError("gone again")
        take(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(live.Live, "take", broken)
        runs.send_waiting(client, root)
    assert len(spool.waiting(root)) == 1
    runs.send_waiting(client, root)
    experiment = client.get_experiment_by_name("reviews").experiment_id
    assert len(client.search_runs([experiment])) == 2
    run = every(client)["preparation"]
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1


def test_a_body_that_fails_without_a_server_is_told_later_too(root, client, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="row 7"):
        patch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        with runs.open_run("preparation", PARAMS, root):
            raise ValueError("row 7")
    runs.send_waiting(client, root)
    run = every(client)["preparation"]
    assert (run.info.status, run.data.tags["regraft.message"]) == ("FAILED", "ValueError: row 7")


@pytest.mark.e2e
def test_what_a_killed_process_had_told_is_sent_and_said_to_be_killed(root, client):
    environment = os.environ | {"MLFLOW_TRACKING_URI": NOWHERE}
    done = subprocess.run([sys.executable, "-c", DIES, str(SHIPPED), str(root)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    (found,) = spool.waiting(root)
    with (found.path / "events.jsonl").open("a") as stream:
        stream.write('{"kind": "metr')  # a line that was not finished
    runs.send_waiting(client, root)
    run = every(client)["preparation"]
    assert (run.info.status, run.data.metrics["loss"]) == ("KILLED", 2.0)


def test_a_run_that_goes_on_is_not_sent_before_its_end(root, client, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        opened = runs.open_run("preparation", PARAMS, root)
        opened.__enter__()
    runs.send_waiting(client, root)
    assert len(spool.waiting(root)) == 1
    opened.__exit__(None, None, None)
    runs.send_waiting(client, root)
    assert spool.waiting(root) == []


def test_a_run_of_another_machine_is_sent_after_its_end_or_a_long_silence(root, client, monkeypatch):
    opening = replace(runs.introduction("preparation", PARAMS, root), process="another machine|1|1")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        run = runs.Run(root, opening)
    (found,) = spool.waiting(root)
    os.utime(found.path / "opening.json", (1, 1))
    run.beat([])
    runs.send_waiting(client, root)
    assert len(spool.waiting(root)) == 1
    os.utime(found.path / "opening.json", (1, 1))
    runs.send_waiting(client, root)
    assert spool.waiting(root) == []
    assert every(client)["preparation"].info.status == "KILLED"


def test_nothing_is_promoted_while_a_run_waits(root, client, degraded, monkeypatch):
    degraded()
    monkeypatch.setattr(runs, "_send", _refused)
    client.create_registered_model("reviews")
    version = client.create_model_version("reviews", str(root))
    reviews = Registry(root, "reviews")
    with pytest.raises(TrackingError, match="tracking degraded: the run of 1 stage waits"), reviews.locked():
        reviews.promote(str(version.version), reason="", by="ann")
    assert (reviews.champion(), reviews.history()) == (None, [])


def _refused(*args):
    raise TrackingError("refused")


@pytest.fixture
def elsewhere(root, tmp_path, monkeypatch):
    """A stage's run that began on another server, which went away before its end."""
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
        run = runs.Run(root, runs.introduction("preparation", PARAMS, root))
        patch.setattr(live.Live, "take", _refused)
        run.metrics({"loss": 2.0}, step=1)
        run.end("FINISHED")
    return run


def test_a_run_of_another_server_is_sent_as_a_new_one(root, client, elsewhere):
    runs.send_waiting(client, root)
    assert spool.told(root) == ""
    run = every(client)["preparation"]
    assert run.info.run_id != elsewhere.id
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 2.0)


@pytest.fixture
def refused(root, client, degraded):
    """A run that waits for an experiment which was deleted."""
    degraded()
    place = str(root / ".regraft" / "mlartifacts")
    client.delete_experiment(client.create_experiment("reviews", artifact_location=place))
    other = params.override(PARAMS, ["promotion.model=films"])

    def work(stage):
        with runs.open_run(stage, other, root):
            pass

    return work


def test_a_refused_run_is_set_aside_and_the_others_are_sent(root, client, refused, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        refused("preparation")
    refused("vocabulary")
    assert spool.waiting(root) == []
    (aside,) = spool.refused(root)
    assert "was deleted" in (aside.path / "reason.txt").read_text(encoding="utf-8")
    experiment = client.get_experiment_by_name("films").experiment_id
    stages = {run.data.tags["regraft.stage"] for run in client.search_runs([experiment])}
    assert stages == {"pipeline", "preparation", "vocabulary"}


def test_a_hold_names_the_reason_of_a_refusal_and_the_way_out(root, client, refused):
    client.create_registered_model("films")
    number = str(client.create_model_version("films", str(root)).version)
    films = Registry(root, "films")
    with pytest.raises(TrackingError) as held, films.locked():
        films.promote(number, reason="", by="ann")
    (aside,) = spool.refused(root)
    assert "will be sent when MLflow answers" not in str(held.value)
    for part in ("preparation", "'reviews' was deleted", f"delete {aside.path} to give it up"):
        assert part in str(held.value)
    shutil.rmtree(aside.path)
    with films.locked():
        films.promote(number, reason="", by="ann")
    assert films.champion().number == number


def test_a_refused_run_that_is_given_its_name_again_is_sent(root, client, refused):
    runs.send_waiting(client, root)
    (aside,) = spool.refused(root)
    client.restore_experiment(client.get_experiment_by_name("reviews").experiment_id)
    aside.path.rename(aside.path.with_suffix(""))
    runs.send_waiting(client, root)
    assert spool.told(root) == ""
    assert every(client)["preparation"].info.status == "FINISHED"


def test_a_server_that_answers_no_more_is_no_refusal(root, degraded):
    degraded()
    runs.send_waiting(MlflowClient(NOWHERE), root)
    assert (len(spool.waiting(root)), spool.refused(root)) == (1, [])


def test_a_checkout_that_was_moved_still_sends_its_files(root, degraded, tmp_path):
    degraded()
    moved = root.rename(tmp_path / "moved")
    with runs.open_run("vocabulary", PARAMS, moved):
        pass
    assert spool.told(moved) == ""
    client = MlflowClient(server.uri(moved))
    run = every(client)["preparation"]
    assert [entry.path for entry in client.list_artifacts(run.info.run_id, "curves")] == ["curves/curve.csv"]


def _without_files(found):
    shutil.rmtree(found.path / "files")


def _cut_short(found):
    (found.path / "opening.json").write_text('{"stage"', encoding="utf-8")


def _of_a_later_version(found):
    opening = json.loads((found.path / "opening.json").read_text(encoding="utf-8"))
    (found.path / "opening.json").write_text(json.dumps({**opening, "shade": "red"}), encoding="utf-8")


def _of_an_earlier_version(found):
    opening = json.loads((found.path / "opening.json").read_text(encoding="utf-8"))
    opening.pop("process")
    (found.path / "opening.json").write_text(json.dumps(opening), encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_without_files, "curve.csv"),
        (_cut_short, "opening.json is damaged, or another version of regraft wrote it"),
        (_of_a_later_version, "opening.json is damaged, or another .* unexpected keyword argument 'shade'"),
        (_of_an_earlier_version, "opening.json is damaged, or another .* missing .* 'process'"),
    ],
)
def test_a_damaged_spool_is_set_aside_and_stops_no_stage(root, client, degraded, harm, reason):
    degraded()
    harm(spool.waiting(root)[0])
    with runs.open_run("vocabulary", PARAMS, root):
        pass
    assert (spool.waiting(root), len(spool.refused(root))) == ([], 1)
    assert re.search(rf"cannot be sent \(.*{reason}.*\): delete ", spool.told(root))
    assert every(client)["vocabulary"].info.status == "FINISHED"


@pytest.mark.e2e
def test_a_server_that_goes_away_during_the_training_costs_nothing(served, root, monkeypatch):
    with runs.open_run("preparation", PARAMS, root) as run:
        run.metrics({"loss": 3.0}, step=1)
        served.stop()
        run.metrics({"loss": 2.0, "test.accuracy": 0.5}, step=2)
        run.file(root / "curve.csv")
        run.metrics({"loss": 1.0}, step=3)
    assert len(spool.waiting(root)) == 1
    served.start()
    with runs.open_run("vocabulary", PARAMS, root):
        pass
    client = MlflowClient(served.address)
    history = client.get_metric_history(run.id, "loss")
    assert [(one.step, one.value) for one in history] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert client.get_run(run.id).info.status == "FINISHED"
    assert client.get_run(run.parent_id).data.metrics["test.accuracy"] == 0.5
    assert "curve.csv" in [entry.path for entry in client.list_artifacts(run.id)]
