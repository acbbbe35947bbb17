"""Sweeps end to end: a failing trial, finished ones from the cache, Ctrl-C, and a checkout that stays as it is."""

import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from mlflow import MlflowClient

from tasks import params as parameters
from tasks.artifacts import Evaluation, TrainedModel

pytestmark = pytest.mark.e2e

SHORT = ("-S", "finetuning.phases.1.epochs=2")


def _regraft(command, *words, code=0):
    return command(sys.executable, "-m", "flows.cli", *words, code=code)


def _workspaces(root):
    folder = root / ".regraft" / "runs"
    return sorted(folder.iterdir()) if folder.exists() else []


def test_trials_side_by_side(reproduced, command):
    """One project, as a person would use it; each step needs the one before."""
    before = {name: (reproduced / name).read_bytes() for name in ("params.yaml", "dvc.lock")}
    versions = len(_client(reproduced).search_model_versions("name = 'reviews'"))
    models = _logged(reproduced)
    _a_failing_trial_stops_no_other(reproduced, command)
    _finished_trials_come_from_the_cache(reproduced, command)
    assert {name: (reproduced / name).read_bytes() for name in before} == before
    found = len(_client(reproduced).search_model_versions("name = 'reviews'"))
    assert found == versions, "nothing is registered unless asked"
    assert _logged(reproduced) == models, "a trial logs figures and no weights"
    assert command("git", "worktree", "list").stdout.count("\n") == 1 + len(_workspaces(reproduced))
    _the_winner_becomes_the_projects_own(reproduced, command)


def _a_failing_trial_stops_no_other(root, command):
    done = _regraft(command, "sweep", *SHORT, "-S", "sources.checkpoint.path=nowhere/else,base", "--dry-run")
    assert "sources, preparation" in done.stdout
    assert _workspaces(root) == []
    done = _regraft(command, "sweep", *SHORT, "-S", "sources.checkpoint.path=base,nowhere/else", code=1)
    assert "failed: " in done.stderr
    assert "nowhere/else" in done.stdout.partition("failed ")[2]
    assert "1 of 2" in done.stderr
    (place,) = _workspaces(root)
    assert parameters.load(place / "params.yaml").sources.checkpoint.path == "base"
    assert "1 failed." in (root / "reports" / "sweep.html").read_text()


def _finished_trials_come_from_the_cache(root, command):
    done = _regraft(command, "sweep", *SHORT, "-S", "finetuning.seed=1,2", "--jobs", "2")
    told = {
        line.partition(": ")[2].partition(":")[0]: line
        for line in done.stderr.splitlines()
        if " of 2: " in line
    }
    assert "from cache" in told["finetuning.seed=1"], "the sweep before has trained it"
    assert "from cache" not in told["finetuning.seed=2"]
    place = _workspaces(root)[-1]
    assert TrainedModel.load(place).digest == Evaluation.load(place).model
    client = _client(root)
    (experiment,) = [e for e in client.search_experiments() if e.name == "reviews"]
    newest = client.search_runs([experiment.experiment_id], "tags.`regraft.stage` = 'sweep'")[0]
    below = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{newest.info.run_id}'"
    )
    assert len(below) == 2
    assert all("validation.accuracy" in run.data.metrics for run in below)
    assert sum("test.accuracy" in run.data.metrics for run in below) <= 2
    assert newest.data.metrics["trials.failed"] == 0


def _the_winner_becomes_the_projects_own(root, command):
    seed = parameters.load(_workspaces(root)[-1] / "params.yaml").finetuning.seed
    _regraft(command, "init", *SHORT, "-S", f"finetuning.seed={seed}")
    assert parameters.load(root / "params.yaml") == parameters.load(_workspaces(root)[-1] / "params.yaml")


def _logged(root):
    """MLflow's models, each of which has weights."""
    client = _client(root)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return {one.model_id for one in client.search_logged_models(experiments)}


def _client(root):
    return MlflowClient(tracking_uri=f"sqlite:///{root}/.regraft/mlflow.db")


def test_ctrl_c_ends_the_trials_and_leaves_no_workspace(reproduced):
    long = ("-S", "finetuning.phases.1.epochs=400", "-S", "finetuning.seed=7,8")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "sweep", *long],
        cwd=reproduced, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    points = reproduced / ".regraft" / "resume"
    known = set(points.glob("*/point.safetensors"))
    while not set(points.glob("*/point.safetensors")) - known:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    assert re.search(r"interrupted; run again: finished trials are kept", told)
    assert "Traceback" not in told
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert _workspaces(reproduced) == []
    assert set(points.glob("*/point.safetensors")) - known, "the same command goes on from here"
