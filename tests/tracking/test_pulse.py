"""While a stage works its run shows what the machine does, and that somebody is there."""

import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks import files, params
from tasks.artifacts import Sources
from tasks.errors import TrackingError
from tasks.tracking import pulse, runs, server, spool

SHIPPED = Path(__file__).parents[2] / "params.yaml"
PARAMS = params.override(params.load(SHIPPED), ["promotion.model=reviews"])
USED = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}


@pytest.fixture
def root(tracked, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with files.replace_directory(Sources.folder(tracked)) as draft:
        Sources.save(draft, text="sha256:1", checkpoint="sha256:2")
    return tracked


@pytest.fixture
def client(root):
    return MlflowClient(server.uri(root))


@pytest.fixture
def beats(monkeypatch):
    """Waits until a stage's run has given two signs of life more."""
    given = threading.Semaphore(0)
    beat = runs.Run.beat

    def counted(self, sample):
        beat(self, sample)
        given.release()

    monkeypatch.setattr(runs.Run, "beat", counted)
    return lambda: [given.acquire(timeout=120) for _ in range(2)] == [True, True]


def beating():
    return [thread for thread in threading.enumerate() if thread.name == "pulse"]


def test_a_stages_run_shows_what_the_machine_does_until_its_end(root, client, beats):
    with runs.open_run("preparation", PARAMS, root) as run:
        client.set_tag(run.id, "regraft.seen", "1")
        assert beats()
        assert len(beating()) == 1
    assert beating() == []
    found = client.get_run(run.id)
    assert found.data.metrics.keys() >= USED
    assert len(client.get_metric_history(run.id, "system/cpu_utilization_percentage")) >= 2
    assert int(found.data.tags["regraft.seen"]) > 1
    assert found.info.status == "FINISHED"


def test_switched_off_a_run_gives_signs_of_life_alone(root, client, beats, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with runs.open_run("preparation", PARAMS, root) as run:
        client.set_tag(run.id, "regraft.seen", "1")
        assert beats()
    found = client.get_run(run.id).data
    assert not [name for name in found.metrics if name.startswith("system/")]
    assert int(found.tags["regraft.seen"]) > 1


def test_a_run_in_the_spool_keeps_no_samples(root, client, beats, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with runs.open_run("preparation", PARAMS, root):
            assert beats()
    (found,) = spool.waiting(root)
    assert "system/" not in (found.path / "events.jsonl").read_text(encoding="utf-8")


def test_a_sign_that_does_not_arrive_costs_nothing_and_is_made_up_for():
    given, again = [], threading.Event()

    def beat(sample):
        given.append(sample)
        if len(given) == 1:
            raise TrackingError("gone")
        again.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
        with pulse.kept(beat):
            assert again.wait(120)


def test_the_bodys_own_error_comes_through_and_the_thread_ends(root):
    with pytest.raises(ValueError, match="row 7"), runs.open_run("preparation", PARAMS, root):
        raise ValueError("row 7")
    assert beating() == []
