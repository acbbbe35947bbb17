"""The run of a sweep in MLflow, and the trials' runs below it."""

from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks import files, params
from tasks.artifacts import Sources
from tasks.tracking import runs, server, sweeps

PARAMS = params.load(Path(__file__).parents[2] / "params.yaml")


@pytest.fixture
def root(tracked):
    with files.replace_directory(Sources.folder(tracked)) as draft:
        Sources.save(draft, text="sha256:1", checkpoint="sha256:2")
    return tracked


@pytest.fixture
def client(root):
    return MlflowClient(tracking_uri=server.uri(root))


def _found(client, sweep):
    return client.get_run(sweep.id)


def test_trials_stand_below_the_sweep_with_figures_of_one_name(root, client):
    trials = [params.override(PARAMS, [f"finetuning.seed={seed}"]) for seed in (1, 2)]
    with sweeps.open_sweep("s1", {"finetuning.seed": "1, 2"}, PARAMS, root) as sweep:
        for number, trial in enumerate(trials):
            with runs.open_run("finetuning", trial, root):
                pass
            sweeps.adopt(sweep.id, {"accuracy": number / 2}, trial, root)
        sweep.metrics({"trials": 2.0})
    whole = _found(client, sweep)
    assert (whole.info.status, whole.data.params["finetuning.seed"]) == ("FINISHED", "1, 2")
    below = client.search_runs([whole.info.experiment_id], f"tags.`mlflow.parentRunId` = '{sweep.id}'")
    assert {run.info.run_name for run in below} == {"head+upper+whole seed 1", "head+upper+whole seed 2"}
    assert sorted(run.data.metrics["validation.accuracy"] for run in below) == [0.0, 0.5]
    assert len(runs.table(root, PARAMS.promotion.model, 9)) == 2, "a sweep is no run of the pipeline"


def test_a_trial_from_the_cache_has_a_run_too(root, client):
    with sweeps.open_sweep("s1", {}, PARAMS, root) as sweep:
        sweeps.adopt(sweep.id, {"accuracy": 1.0}, PARAMS, root)
    (below,) = client.search_runs(
        [_found(client, sweep).info.experiment_id], f"tags.`mlflow.parentRunId` = '{sweep.id}'"
    )
    assert below.data.metrics["validation.accuracy"] == 1.0


def test_the_same_sweep_is_opened_again(root):
    ids = []
    for _ in range(2):
        with sweeps.open_sweep("s1", {"a": "1"}, PARAMS, root) as sweep:
            ids.append(sweep.id)
    with sweeps.open_sweep("s2", {"a": "1"}, PARAMS, root) as sweep:
        assert sweep.id not in ids
    assert ids[0] == ids[1]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "KILLED"), (OSError("full"), "FAILED")])
def test_how_it_ended_stands_in_its_state(root, client, error, status):
    with pytest.raises(type(error)), sweeps.open_sweep("s1", {}, PARAMS, root) as sweep:
        raise error
    assert _found(client, sweep).info.status == status


def test_one_whose_process_is_gone_is_killed_by_the_next_run(root, client):
    with sweeps.open_sweep("s1", {}, PARAMS, root) as sweep:
        pass
    client.set_tag(sweep.id, "regraft.process", f"{_host(client, sweep)}|999999999|1")
    client.update_run(sweep.id, status="RUNNING")
    with runs.open_run("finetuning", PARAMS, root):
        pass
    assert _found(client, sweep).info.status == "KILLED"


def _host(client, sweep):
    return _found(client, sweep).data.tags["regraft.host"]


@pytest.fixture
def away(monkeypatch):
    """While it lasts no server answers."""

    @contextmanager
    def last():
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            yield

    return last


def _try(root, sweep):
    with runs.open_run("finetuning", PARAMS, root):
        pass
    sweeps.adopt(sweep.id, {"accuracy": 0.5}, PARAMS, root)


def _below(client, sweep):
    """(state, validation figure) of the pipeline's runs of a sweep."""
    experiment = _found(client, sweep).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{sweep.id}'")
    return [(run.info.status, run.data.metrics["validation.accuracy"]) for run in found]


def test_a_server_that_is_down_costs_no_sweep_and_the_same_one_again_groups_its_trials(
    root, client, away, caplog
):
    for answers in (False, True):
        with nullcontext() if answers else away(), sweeps.open_sweep("s1", {}, PARAMS, root) as sweep:
            _try(root, sweep)
            sweep.metrics({"trials": 1.0})
            sweep.file(root / ".regraft" / "mlflow.db")
        assert bool(sweep.id) == answers
    assert "Give the same command again later" in caplog.text
    assert _below(client, sweep) == [("FINISHED", 0.5)]
    assert _found(client, sweep).data.metrics == {"trials": 1.0}


@pytest.mark.e2e
def test_a_server_that_goes_away_during_a_sweep_fails_no_trial(served, root):
    client = MlflowClient(served.address)
    with sweeps.open_sweep("s1", {}, PARAMS, root) as sweep:
        served.stop()
        _try(root, sweep)
        sweep.metrics({"trials": 1.0})
    served.start()
    assert _found(client, sweep).info.status == "RUNNING"
    with sweeps.open_sweep("s1", {}, PARAMS, root) as again:
        _try(root, again)
    assert again.id == sweep.id
    assert _found(client, sweep).info.status == "FINISHED"
    assert _below(client, sweep) == [("FINISHED", 0.5)]
