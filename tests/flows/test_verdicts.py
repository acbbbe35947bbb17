"""A new verdict is told once, also where the process that made it died before it could tell."""

import pytest
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import pipeline
from tasks import files
from tasks.artifacts import Promotion


@pytest.fixture
def told(monkeypatch):
    """The events that were sent so far."""
    AssertingEventsClient.reset()
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):  # else a server is started
        worker = EventsWorker.instance(AssertingEventsClient)
    monkeypatch.setattr(EventsWorker, "instance", lambda *_: worker)

    def events():
        worker.drain()
        sent = [event for client in AssertingEventsClient.all for event in client.events]
        return [event.resource["regraft.version"] for event in sent if event.event == "regraft.verdict"]

    return events


def _judge(root, version):
    with files.replace_directory(Promotion.folder(root)) as draft:
        Promotion.save(draft, model="m", version=version, alias_moved=True, outcome="promote", reasons=())


def test_a_new_verdict_is_told_once(tmp_path, told):
    for version in ("1", "1", "2"):
        with pipeline._new_verdict_told(tmp_path):
            _judge(tmp_path, version)
    assert told() == ["1", "2"]


def test_a_verdict_that_a_killed_run_could_not_tell_is_told_by_the_next(tmp_path, told):
    killed = pipeline._new_verdict_told(tmp_path)
    killed.__enter__()
    _judge(tmp_path, "1")
    with pipeline._new_verdict_told(tmp_path):
        pass
    assert told() == ["1"]


def test_a_known_verdict_that_a_killed_run_was_writing_again_is_not_told_again(tmp_path, told):
    """DVC removes a stage's outputs before it runs."""
    _judge(tmp_path, "1")
    killed = pipeline._new_verdict_told(tmp_path)
    killed.__enter__()
    (Promotion.folder(tmp_path) / "manifest.json").unlink()
    with pipeline._new_verdict_told(tmp_path):
        _judge(tmp_path, "1")
    assert told() == []
